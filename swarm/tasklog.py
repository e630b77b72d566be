"""Reads the output files of a task, while it runs or afterwards (DESIGN §7).

`tasks/<id>/stdout` and `stderr` are written by the task itself and bounded by freeing their head in place: a file may
begin with a hole, and a hole may grow while one reads. Lines carry the time at which they were read, since nobody sits
between the task and its file to stamp them.
"""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from swarm.inotify import Inotify
from swarm.workload import EXIT, STDERR, STDOUT

CHUNK = 65536
LONGEST_LINE = 65536
"""Bytes; a longer one comes in pieces."""


@dataclass(frozen=True)
class LogLine:
    """One line of a task's output."""

    stream: str
    """`stdout` or `stderr`."""
    at: int
    """Unix ns at which it was read."""
    data: bytes
    """Without the newline; bytes, as a task may print anything."""


class LogFile:
    """One output file, read from wherever it begins now. It need not exist yet."""

    def __init__(self, path: Path, *, wall_ns: Callable[[], int] = time.time_ns) -> None:
        self._path = path
        self._wall_ns = wall_ns
        self._fd = -1
        self._position = 0
        self._pending = b""
        self._cut = False
        """The position is in the middle of a line whose beginning is gone."""

    def seek_tail(self, lines: int) -> None:
        """Go to the beginning of the last `lines` lines (an unfinished last one counts)."""
        if not self._open():
            return
        size = os.fstat(self._fd).st_size
        first = self._first_data(0)
        position, missing = size, lines
        if size > first and os.pread(self._fd, 1, size - 1) == b"\n":
            missing += 1  # that newline ends the last line, it begins none
        while position > first and missing > 0:
            start = max(first, position - CHUNK)
            block = os.pread(self._fd, position - start, start)
            at = len(block)
            while missing > 0 and (at := block.rfind(b"\n", 0, at)) >= 0:
                missing -= 1
            position = start + at + 1 if missing == 0 else start
        self._position = size if lines == 0 else position
        self._cut = missing > 0 and first > 0

    def read(self) -> list[LogLine]:
        """Every line that is complete by now."""
        lines: list[LogLine] = []
        while (some := self.read_some()) is not None:
            lines += some
        return lines

    def read_some(self) -> list[LogLine] | None:
        """The lines that the next CHUNK completes (perhaps none); None at the end of what is there by now."""
        data = self._read_chunk()
        if not data:
            return None
        parts = (self._pending + data).split(b"\n")
        self._pending = parts.pop()
        if self._cut and parts:
            parts = parts[1:]
            self._cut = False
        lines = [self._line(part) for part in parts]
        while len(self._pending) > LONGEST_LINE:
            if not self._cut:
                lines.append(self._line(self._pending[:LONGEST_LINE]))
            self._pending = self._pending[LONGEST_LINE:]
        return lines

    @property
    def position(self) -> int:
        """The offset up to which the file was read."""
        return self._position

    def look(self) -> tuple[int, int]:
        """Its size now, and when it was last written to (Unix ns); zeros if it does not exist yet."""
        if not self._open():
            return 0, 0
        now = os.fstat(self._fd)
        return now.st_size, now.st_mtime_ns

    def rest(self) -> list[LogLine]:
        """The unfinished last line, once nothing follows."""
        pending, self._pending = self._pending, b""
        return [self._line(pending)] if pending and not self._cut else []

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _line(self, data: bytes) -> LogLine:
        return LogLine(self._path.name, self._wall_ns(), data)

    def _open(self) -> bool:
        if self._fd < 0:
            try:
                self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                return False
        return True

    def _read_chunk(self) -> bytes:
        """The next bytes that are really there; empty at the end."""
        if not self._open():
            return b""
        if os.fstat(self._fd).st_size < self._position:
            # started over: the task truncated its own output, or the file had reached its largest size
            self._position, self._pending, self._cut = 0, b"", False
        while True:
            first = self._first_data(self._position)
            if first > self._position:
                self._position, self._pending, self._cut = first, b"", True
            data = os.pread(self._fd, CHUNK, self._position)
            if self._first_data(self._position) == self._position:
                self._position += len(data)
                return data
            # its head was freed between the two looks: these are zeros that nobody wrote

    def _first_data(self, position: int) -> int:
        """The first byte from `position` on that is not in a hole; the size if there is none."""
        size = os.fstat(self._fd).st_size  # before the look: what is written during it is no hole
        try:
            return os.lseek(self._fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return max(position, size)
            raise


def read_task_log(
    directory: Path, *, tail: int | None = None, wall_ns: Callable[[], int] = time.time_ns
) -> list[LogLine]:
    """What the task in `directory` (tasks/<id>) has written: stdout, then stderr; of each the last `tail` lines."""
    lines: list[LogLine] = []
    for stream in (STDOUT, STDERR):
        log = LogFile(directory / stream, wall_ns=wall_ns)
        try:
            if tail is not None:
                log.seek_tail(tail)
            lines += log.read() + log.rest()
        finally:
            log.close()
    return lines


def follow_task_log(
    directory: Path, *, tail: int | None = None, stop: int | None = None, wall_ns: Callable[[], int] = time.time_ns
) -> Iterator[LogLine]:
    """As `read_task_log`, and then each line as it comes, until the task has ended or its directory is gone.

    `stop`: a descriptor; following ends when it becomes readable. Raises FileNotFoundError if there is no such task.
    """
    logs = [LogFile(directory / stream, wall_ns=wall_ns) for stream in (STDOUT, STDERR)]
    watch = Inotify()
    try:
        watch.add(directory)
        if tail is not None:
            for log in logs:
                log.seek_tail(tail)
        poller = select.poll()
        poller.register(watch, select.POLLIN)
        if stop is not None:
            poller.register(stop, select.POLLIN)
        while True:
            # before reading: what was written before the end is then read for certain
            over = (directory / EXIT).exists() or not directory.exists()
            for log in logs:
                yield from log.read()
            if over:
                break
            if any(fd == stop for fd, _ in poller.poll()):
                break
            watch.changed()
        for log in logs:
            yield from log.rest()
    finally:
        watch.close()
        for log in logs:
            log.close()
