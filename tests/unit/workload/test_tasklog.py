"""Reading a task's output: holes, tails, truncation, half lines; and following it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from procs.workload.logfile import bound
from swarm.tasklog import LONGEST_LINE, LogFile, follow_task_log, read_task_log
from swarm.workload import EXIT


def data_of(lines: list) -> list[bytes]:  # type: ignore[type-arg]
    return [line.data for line in lines]


def test_lines_carry_stream_and_time_of_reading(tmp_path: Path) -> None:
    (tmp_path / "stdout").write_bytes(b"a\nb\n")
    (tmp_path / "stderr").write_bytes(b"c\nhalf")
    lines = read_task_log(tmp_path, wall_ns=lambda: 42)
    assert [(line.stream, line.at, line.data) for line in lines] == [
        ("stdout", 42, b"a"),
        ("stdout", 42, b"b"),
        ("stderr", 42, b"c"),
        ("stderr", 42, b"half"),
    ]


def test_a_task_without_output_has_no_lines(tmp_path: Path) -> None:
    assert read_task_log(tmp_path) == []
    assert read_task_log(tmp_path, tail=3) == []


def test_after_a_hole_reading_begins_with_a_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "stdout"
    path.write_bytes(b"".join(b"line %07d\n" % number for number in range(100_000)))
    bound(str(path), 50_000)
    numbers = [int(line.split()[1]) for line in data_of(read_task_log(tmp_path))]
    assert numbers == list(range(numbers[0], 100_000))
    assert 3000 < len(numbers) < 5000


def test_a_reader_that_is_overtaken_by_the_hole_goes_on_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "stdout"
    path.write_bytes(b"first\n" + b"half a li")
    log = LogFile(path)
    assert data_of(log.read()) == [b"first"]
    with path.open("ab") as file:
        file.write(b"ne\n" + b"".join(b"line %07d\n" % number for number in range(100_000)))
    bound(str(path), 10_000)
    numbers = [int(line.split()[1]) for line in data_of(log.read())]
    log.close()
    assert numbers == list(range(numbers[0], 100_000))


def test_a_truncated_file_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "stdout"
    path.write_bytes(b"long ago\nhalf")
    log = LogFile(path)
    log.read()
    path.write_bytes(b"new\n")
    assert data_of(log.read()) == [b"new"]
    log.close()


def test_a_very_long_line_comes_in_pieces(tmp_path: Path) -> None:
    (tmp_path / "stdout").write_bytes(b"x" * (3 * LONGEST_LINE + 5) + b"\nnext\n")
    lines = data_of(read_task_log(tmp_path))
    assert b"".join(lines[:-1]) == b"x" * (3 * LONGEST_LINE + 5)
    assert max(map(len, lines)) <= 2 * LONGEST_LINE
    assert lines[-1] == b"next"


@settings(max_examples=60)
@given(
    st.lists(st.binary(max_size=6).map(lambda b: b.replace(b"\n", b"")), max_size=12), st.booleans(), st.integers(0, 14)
)
def test_a_tail_is_the_last_lines(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], ended: bool, n: int
) -> None:
    directory = tmp_path_factory.mktemp("task")
    (directory / "stdout").write_bytes(b"\n".join(lines) + (b"\n" if ended and lines else b""))
    everything = data_of(read_task_log(directory))
    assert data_of(read_task_log(directory, tail=n)) == everything[len(everything) - min(n, len(everything)) :]


def test_a_tail_longer_than_what_a_hole_left_is_what_is_left(tmp_path: Path) -> None:
    path = tmp_path / "stdout"
    path.write_bytes(b"".join(b"line %07d\n" % number for number in range(50_000)))
    bound(str(path), 8192)
    assert data_of(read_task_log(tmp_path, tail=10_000)) == data_of(read_task_log(tmp_path))
    assert data_of(read_task_log(tmp_path, tail=2)) == [b"line 0049998", b"line 0049999"]


def test_following_a_task_that_has_ended_reads_and_ends(tmp_path: Path) -> None:
    (tmp_path / "stdout").write_bytes(b"a\nb")
    (tmp_path / EXIT).touch()
    assert data_of(list(follow_task_log(tmp_path))) == [b"a", b"b"]


def test_following_gives_lines_as_they_come_until_the_end(tmp_path: Path) -> None:
    (tmp_path / "stdout").write_bytes(b"old\nolder\n")
    follower = follow_task_log(tmp_path, tail=1)
    assert next(follower).data == b"older"
    with (tmp_path / "stdout").open("ab") as file:
        file.write(b"new\nrest")
    assert next(follower).data == b"new"
    (tmp_path / "stderr").write_bytes(b"late\n")
    assert next(follower).data == b"late"
    (tmp_path / EXIT).touch()
    assert data_of(list(follower)) == [b"rest"]


def test_following_ends_when_asked_to(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    (tmp_path / "stdout").write_bytes(b"a\n")
    follower = follow_task_log(tmp_path, stop=reading)
    assert next(follower).data == b"a"
    os.write(writing, b"x")
    assert list(follower) == []
    os.close(reading)
    os.close(writing)


def test_following_an_unknown_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        next(follow_task_log(tmp_path / "nothing"))


def test_what_is_written_while_the_reader_looks_for_holes_is_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "stdout"
    path.write_bytes(b"first\n")
    log = LogFile(path)
    assert data_of(log.read()) == [b"first"]
    seek = os.lseek

    def slow_seek(descriptor: int, position: int, how: int) -> int:
        try:
            return seek(descriptor, position, how)
        finally:
            with path.open("ab") as out:
                out.write(b"second\n")
            monkeypatch.undo()

    monkeypatch.setattr(os, "lseek", slow_seek)
    assert data_of(log.read()) + data_of(log.read()) == [b"second"]
    log.close()
