"""One owner per process name: an `flock` taken before anything else (DESIGN §3).

A second bind on a live ipc path would succeed silently, so the lock, not the socket, says who owns the name.
The kernel drops it with the last descriptor: a SIGKILLed owner leaves none behind.
"""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path
from typing import Self

from swarm.errors import Twin

TWIN_DEADLINE = 5.0
"""Seconds a twin waits before it gives up (DESIGN §3)."""


class ProcessLock:
    """An exclusive `flock` on `path`; the file holds the owner's pid for humans and for `holder_pid`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def acquire(self, timeout: float = TWIN_DEADLINE) -> None:
        """Take the lock within `timeout` seconds, else raise Twin naming the holder."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not _try_lock(fd) and not _wait_for_lock(fd, timeout):
            holder = _read_pid(self.path)
            os.close(fd)
            raise Twin(
                f"{self.path}: held by process {holder or '(unknown)'}, still after {timeout:g} s",
                remedy="end that process, or select another node with --state-dir",
            )
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._fd = fd

    def release(self) -> None:
        """Give the lock back; harmless if it is not held."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


def holder_pid(path: Path) -> int | None:
    """The pid that holds the lock at this moment, None if it is free (or the file is absent)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        # A shared lock, for an instant: two askers never take each other for a holder, and an owner who starts at
        # this very moment only waits for the close below.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_pid(path)
    finally:
        os.close(fd)
    return None


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait_for_lock(fd: int, timeout: float) -> bool:
    """Block in the kernel, not in a polling loop, and still keep a deadline: flock has none, so a thread waits in it.

    SIGALRM would do too, but only in the main thread and only once per process. A thread left behind in flock ends with
    the process, or when the holder lets go (it then holds a description of its own, closed at once).
    """
    granted = threading.Event()
    waiting = os.dup(fd)

    def wait() -> None:
        try:
            fcntl.flock(waiting, fcntl.LOCK_EX)
            granted.set()
        finally:
            os.close(waiting)

    threading.Thread(target=wait, name="lock", daemon=True).start()
    return granted.wait(timeout)


def _read_pid(path: Path) -> int | None:
    text = path.read_text(errors="replace").strip()
    return int(text) if text.isdigit() else None
