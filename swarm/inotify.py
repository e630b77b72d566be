"""Linux's own way to be told of changes in directories: one descriptor, many watches.

Through ctypes, since Python has no binding of its own. A user has few instances (128 by default) and many watches, so
whoever watches many directories holds one `Inotify`.
"""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

_MODIFY = 0x002
_MOVED_TO = 0x080
_CREATE = 0x100
_DELETE_SELF = 0x400
_IGNORED = 0x8000
_OVERFLOW = 0x4000
_CLOEXEC = 0o2000000
_NONBLOCK = 0o4000
_MASK = _MODIFY | _MOVED_TO | _CREATE | _DELETE_SELF

_EVENT = struct.Struct("iIII")
_READ = 65536


class Inotify:
    """Watches directories for files that change or appear in them, and for their own end."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = int(self._libc.inotify_init1(_CLOEXEC | _NONBLOCK))
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")

    def fileno(self) -> int:
        """Becomes readable when `changed` has something to say."""
        return self._fd

    def add(self, directory: Path) -> int:
        """Watch `directory`; the same one has the same number. Raises FileNotFoundError, or OSError (too many)."""
        number = int(self._libc.inotify_add_watch(self._fd, os.fsencode(directory), _MASK))
        if number < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), os.fspath(directory))
        return number

    def remove(self, number: int) -> None:
        """Watch it no longer; it may be gone already."""
        self._libc.inotify_rm_watch(self._fd, number)

    def changed(self) -> set[int] | None:
        """Numbers of what has changed since the last call, without waiting; None: too much, look at all of them."""
        found: set[int] = set()
        lost = False
        while True:
            try:
                data = os.read(self._fd, _READ)
            except BlockingIOError:
                return None if lost else found
            at = 0
            while at < len(data):
                number, mask, _, length = _EVENT.unpack_from(data, at)
                at += _EVENT.size + length
                lost = lost or bool(mask & _OVERFLOW)
                if not mask & _IGNORED:
                    found.add(number)

    def close(self) -> None:
        os.close(self._fd)
