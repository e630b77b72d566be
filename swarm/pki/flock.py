"""An flock with a deadline, shared or exclusive, around the files of `certificates/` (DESIGN §5)."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from swarm.errors import TimedOut

_PAUSE = 0.01


@contextmanager
def locked(path: Path, *, exclusive: bool, timeout: float) -> Iterator[None]:
    """Hold `path`'s lock, which is made if it is not there. Raises TimedOut after `timeout` seconds.

    Blocks its thread: asyncio callers use `asyncio.to_thread`. FileNotFoundError if the directory is missing.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _acquire(fd, path, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH, time.monotonic() + timeout)
        yield
    finally:
        os.close(fd)


def _acquire(fd: int, path: Path, operation: int, deadline: float) -> None:
    """flock has no deadline of its own and cannot be waited for with others: so it is asked every 10 ms."""
    while True:
        try:
            fcntl.flock(fd, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise TimedOut(
                    f"{path}: another process has held this lock for too long",
                    remedy="see `swarmvisor debug ps` for a process that hangs",
                ) from None
            time.sleep(_PAUSE)
        else:
            return
