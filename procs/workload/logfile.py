"""Bounds the output files of tasks without the tasks knowing (DESIGN §7).

A task writes straight into an O_APPEND file; nobody sits between. The head of the file is freed in place by punching a
hole, which keeps the size, and so the offsets of the writer and of readers (`swarm.tasklog` skips holes).
"""

from __future__ import annotations

import ctypes
import errno
import os
from dataclasses import dataclass

FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
BLOCK = 4096
RESET_SIZE = 1 << 40
"""Bytes after which a file starts over at 0: file systems end at some size (ext4 at 16 TiB)."""

SHORTEST_WAIT = 0.2
LONGEST_WAIT = 5.0
"""Seconds between two looks at a file that grows fast, and at one that does not."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def bound(path: str, max_bytes: int, *, reset_size: int = RESET_SIZE) -> None:
    """Free the head of `path` so that about its last `max_bytes` stay on disk. A missing file is nothing to bound."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        size = os.fstat(fd).st_size
        if size > reset_size:
            os.ftruncate(fd, 0)
            return
        hole = (size - max_bytes) // BLOCK * BLOCK
        if hole > 0:
            _punch(fd, hole)
    finally:
        os.close(fd)


def _punch(fd: int, length: int) -> None:
    if _libc.fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, length) == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EOPNOTSUPP, errno.ENOSYS):
        raise OSError(code, os.strerror(code))
    # A file system without holes: an O_APPEND writer goes on at 0. Bounded matters more than the tail.
    os.ftruncate(fd, 0)


@dataclass
class LogWatch:
    """One output file and when to look at it next."""

    path: str
    max_bytes: int
    reset_size: int = RESET_SIZE
    wait: float = SHORTEST_WAIT
    """Seconds until the next look."""
    _seen: int = 0

    def look(self) -> None:
        """Bound the file if it has outgrown its bound by a quarter, and choose the next wait by how fast it grows."""
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            self.wait = LONGEST_WAIT
            return
        slack = self.max_bytes // 4
        if status.st_blocks * 512 > self.max_bytes + slack or status.st_size > self.reset_size:
            bound(self.path, self.max_bytes, reset_size=self.reset_size)
        grown, self._seen = status.st_size - self._seen, status.st_size
        if grown > slack:
            self.wait = max(SHORTEST_WAIT, self.wait / 4)
        else:
            self.wait = min(LONGEST_WAIT, self.wait * 2)
