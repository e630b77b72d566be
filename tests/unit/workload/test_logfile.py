"""Output files are bounded in place, under a writer and a reader who notice nothing."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

import pytest

from procs.workload import logfile
from procs.workload.logfile import BLOCK, LONGEST_WAIT, SHORTEST_WAIT, LogWatch, bound


def on_disk(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_the_head_is_freed_and_the_tail_and_the_size_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "stdout"
    text = b"".join(b"line %07d\n" % number for number in range(100_000))
    path.write_bytes(text)
    bound(str(path), 100_000)
    assert path.stat().st_size == len(text)
    assert on_disk(path) <= 100_000 + 2 * BLOCK
    assert path.read_bytes()[-100_000:] == text[-100_000:]


def test_a_writer_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "stdout"
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fd, b"x" * (1 << 20))
        bound(str(path), BLOCK)
        os.write(fd, b"end")
    finally:
        os.close(fd)
    assert path.stat().st_size == (1 << 20) + 3
    assert path.read_bytes().endswith(b"xend")
    assert on_disk(path) <= 3 * BLOCK


@pytest.mark.parametrize("size", [0, 1, BLOCK, 3 * BLOCK])
def test_a_small_file_is_left_alone(tmp_path: Path, size: int) -> None:
    path = tmp_path / "stdout"
    path.write_bytes(b"y" * size)
    bound(str(path), 3 * BLOCK)
    assert path.read_bytes() == b"y" * size


def test_a_missing_file_is_nothing_to_bound(tmp_path: Path) -> None:
    bound(str(tmp_path / "stdout"), 1)
    watch = LogWatch(str(tmp_path / "stdout"), 1)
    watch.look()
    assert watch.wait == LONGEST_WAIT


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"z" * 100_000)
    (tmp_path / "stdout").symlink_to("target")
    with pytest.raises(OSError, match="Too many levels"):
        bound(str(tmp_path / "stdout"), 0)


def test_a_file_near_the_largest_size_starts_over(tmp_path: Path) -> None:
    path = tmp_path / "stdout"
    path.touch()
    os.truncate(path, 10_000_000)
    bound(str(path), 1000, reset_size=9_999_999)
    assert path.stat().st_size == 0


def test_a_file_system_without_holes_loses_the_tail_but_stays_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoHoles:
        @staticmethod
        def fallocate(*_: int) -> int:
            ctypes.set_errno(errno.EOPNOTSUPP)
            return -1

    monkeypatch.setattr(logfile, "_libc", NoHoles)
    path = tmp_path / "stdout"
    path.write_bytes(b"x" * 100_000)
    bound(str(path), 1000)
    assert path.stat().st_size == 0


def test_a_growing_file_is_looked_at_often_and_a_quiet_one_seldom(tmp_path: Path) -> None:
    path = tmp_path / "stdout"
    path.touch()
    watch = LogWatch(str(path), 40_000)
    waits = []
    for _ in range(8):
        watch.look()
        waits.append(watch.wait)
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_WAIT
    for _ in range(4):
        with path.open("ab") as file:
            file.write(b"x" * 30_000)
        watch.look()
    assert watch.wait == SHORTEST_WAIT
    assert on_disk(path) <= 40_000 * 5 // 4 + 2 * BLOCK
