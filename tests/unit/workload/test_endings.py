"""Exit files are written beside the loop, and never into a directory that was given up."""

from __future__ import annotations

from pathlib import Path

import pytest

from procs.workload import endings as endings_module
from procs.workload.endings import Endings
from swarm.errors import CorruptFile
from swarm.identity import new_id
from swarm.workload import EXIT, TaskExit


def test_everything_is_on_disk_after_close(tmp_path: Path) -> None:
    endings = Endings(lambda task_id: tmp_path / task_id / EXIT)
    ends = [TaskExit(task_id=new_id(), boot_id="b", wait_status=number) for number in range(30)]
    for end in ends:
        (tmp_path / end.task_id).mkdir()
        endings.write(end)
    assert endings.close(20.0) == []
    assert [TaskExit.load(tmp_path / end.task_id / EXIT) for end in ends] == ends
    assert not endings.troubles


def test_closing_without_any_end_is_nothing(tmp_path: Path) -> None:
    assert Endings(lambda task_id: tmp_path / task_id).close(1.0) == []


def test_a_forgotten_end_is_not_written_after_forget_returned(tmp_path: Path) -> None:
    endings = Endings(lambda task_id: tmp_path / task_id / EXIT)
    for _ in range(20):
        end = TaskExit(task_id=new_id(), boot_id="b")
        directory = tmp_path / end.task_id
        directory.mkdir()
        endings.write(end)
        endings.forget([end.task_id])
        before = sorted(directory.iterdir())
        for path in before:
            path.unlink()
        directory.rmdir()
    assert endings.close(20.0) == []
    assert list(tmp_path.iterdir()) == []
    assert not endings.troubles


def test_what_cannot_be_written_is_told_and_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endings_module, "RETRY", 0.01)
    endings = Endings(lambda task_id: tmp_path / task_id / EXIT)
    late, lost = TaskExit(task_id=new_id(), boot_id="b"), TaskExit(task_id=new_id(), boot_id="b")
    endings.write(late)
    with endings._changed:
        assert endings._changed.wait_for(lambda: endings.troubles, 20.0)
    assert "cannot be written: No such file or directory" in endings.troubles[0]
    (tmp_path / late.task_id).mkdir()
    with endings._changed:
        assert endings._changed.wait_for(lambda: not endings._waiting and not endings._writing, 20.0)
    assert TaskExit.load(tmp_path / late.task_id / EXIT) == late
    endings.write(lost)
    assert endings.close(20.0) == [lost.task_id]


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"task_id": "a", "boot_id": 1}{'])
def test_a_record_that_cannot_be_read_is_named_and_left(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "exit"
    path.write_bytes(raw)
    with pytest.raises(CorruptFile, match="exit: not a TaskExit"):
        TaskExit.load(path)
    assert path.read_bytes() == raw
