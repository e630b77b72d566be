"""Time, injected: monotonic for durations, wall clock for dates (habits §4.18)."""

from __future__ import annotations

import errno
import os
import struct
import time
from typing import Protocol

_CLOCK_REALTIME = 0
_NONBLOCK, _CLOEXEC = 0o4000, 0o2000000
_ABSTIME, _CANCEL_ON_SET = 1, 2
_TIMER = struct.Struct("@qqqq")
_NEVER = 1 << 33
"""Seconds since the epoch; the year 2242."""


class Clock(Protocol):
    """What the brains know of time. Tests pass one that they turn by hand."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back; for durations and deadlines."""
        ...

    def wall_ns(self) -> int:
        """Nanoseconds since the epoch; for certificates, statuses and logs."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall_ns(self) -> int:
        return time.time_ns()


class ClockWatch:
    """Tells when the wall clock was set, or the machine woke from a suspend: whoever waits for a date on the monotonic
    clock must look at the date again.

    A timer of the kernel that never ends but is cancelled by exactly that (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET).
    Through ctypes: Python has `os.timerfd_create` from 3.13.
    """

    def __init__(self) -> None:
        """Raises OSError where the kernel cannot tell."""
        import ctypes  # late: few processes wait for a date

        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = int(libc.timerfd_create(_CLOCK_REALTIME, _NONBLOCK | _CLOEXEC))
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        if libc.timerfd_settime(self._fd, _ABSTIME | _CANCEL_ON_SET, _TIMER.pack(0, 0, _NEVER, 0), None) != 0:
            code = ctypes.get_errno()
            os.close(self._fd)
            raise OSError(code, f"timerfd_settime(TFD_TIMER_CANCEL_ON_SET): {os.strerror(code)}")

    def fileno(self) -> int:
        """Becomes readable when `was_set` has something to say."""
        return self._fd

    def was_set(self) -> bool:
        """Whether the clock was set since the last call, without waiting."""
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.ECANCELED:
                raise
        return True

    def close(self) -> None:
        os.close(self._fd)
