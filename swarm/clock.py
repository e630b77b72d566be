"""Time, injected: monotonic for durations, wall clock for dates (habits §4.18)."""

from __future__ import annotations

import time
from typing import Protocol


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
