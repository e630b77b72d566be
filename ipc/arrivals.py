"""Publishers that come: the kernel tells when one has bound its socket, so that no reader waits for a next try.

libzmq tries an absent publisher again and again, ever more slowly; between the processes of a node that starts, each
such wait is a tenth of a second. Through ctypes, since Python has no binding of inotify.
"""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

_ATTRIB = 0x4
_ONLYDIR = 0x01000000
_CLOEXEC = 0o2000000
_NONBLOCK = 0o4000

_EVENT = struct.Struct("iIII")
_READ = 65536


class Arrivals:
    """Watches the directory of the bus. Raises OSError: there is no such directory, or the user has no more watches."""

    def __init__(self, directory: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = int(libc.inotify_init1(_CLOEXEC | _NONBLOCK))
        # A publisher sets the mode of its socket right after it listens there: nothing before that would do.
        if self._fd < 0 or int(libc.inotify_add_watch(self._fd, os.fsencode(directory), _ATTRIB | _ONLYDIR)) < 0:
            code = ctypes.get_errno()
            self.close()
            raise OSError(code, os.strerror(code), os.fspath(directory))

    def fileno(self) -> int:
        """Readable while `take` has something to say."""
        return self._fd

    def take(self) -> set[str]:
        """Names of the sockets (`agent.sock`) that were bound since the last call, without waiting. What the kernel
        dropped (16,384 events) is missing."""
        found: set[str] = set()
        while True:
            try:
                data = os.read(self._fd, _READ)
            except BlockingIOError:
                return found
            at = 0
            while at < len(data):
                _, _, _, length = _EVENT.unpack_from(data, at)
                at += _EVENT.size
                found.add(os.fsdecode(data[at : at + length].rstrip(b"\0")))
                at += length

    def close(self) -> None:
        """May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
