"""Timers in supervisord's loop: its own `poll` sleeps up to a second, which is too coarse for a grace period.

The poller's `poll` is wrapped: due timers run before it, and it sleeps no longer than until the next one.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
import traceback
from collections.abc import Callable
from typing import Any


class Timer:
    """One callback to run once; `cancel` forgets it."""

    __slots__ = ("call", "due")

    def __init__(self, due: float, call: Callable[[], None]) -> None:
        self.due = due
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class LoopTimers:
    """Timers that run in the thread of supervisord's loop, in order of their time."""

    def __init__(self, report: Callable[[str], None], *, monotonic: Callable[[], float] = time.monotonic) -> None:
        """`report` takes the traceback of a callback that failed: one bad timer must not end every task."""
        self._report = report
        self._monotonic = monotonic
        self._heap: list[tuple[float, int, Timer]] = []
        self._count = itertools.count()

    def call_later(self, delay: float, call: Callable[[], None], *, slack: float = 0.0) -> Timer:
        """Run `call` once, `delay` seconds from now, up to `slack` seconds later: timers with the same slack then
        share one wake-up of the loop."""
        due = self._monotonic() + delay
        timer = Timer(math.ceil(due / slack) * slack if slack else due, call)
        heapq.heappush(self._heap, (timer.due, next(self._count), timer))
        return timer

    def run_due(self) -> None:
        """Run what is due. A timer set by a callback waits for the next call, so this always returns."""
        now = self._monotonic()
        due: list[Timer] = []
        while self._heap and (self._heap[0][0] <= now or self._heap[0][2].call is None):
            due.append(heapq.heappop(self._heap)[2])
        for timer in due:
            call, timer.call = timer.call, None
            if call is None:
                continue
            try:
                call()
            except Exception:  # noqa: BLE001 - reported whole; the loop, and with it every task, must live on
                self._report(traceback.format_exc())

    def timeout(self, longest: float) -> float:
        """Seconds until the next timer, at most `longest`."""
        if not self._heap:
            return longest
        return min(longest, max(0.0, self._heap[0][0] - self._monotonic()))

    def install(self, poller: Any) -> None:
        """Drive these timers from `poller.poll` of a supervisord."""
        poll = poller.poll

        def poll_with_timers(timeout: float) -> Any:
            self.run_due()
            return poll(self.timeout(timeout))

        poller.poll = poll_with_timers
