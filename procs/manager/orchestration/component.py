"""The shell around every brain: follow the commits, and let the brain decide inside a transaction.

A component reads everything when it starts and then only what changed, so it may be restarted at any time. It acts on
the first commit that gives it work; the commits that arrive while its transaction is in flight are taken together
afterwards: the write itself is the debounce.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Protocol

from procs.manager.orchestration.view import Now, View
from procs.manager.orchestration.writes import Unit, apply
from procs.manager.store import Event, Store, Tx
from procs.manager.store.errors import AlreadyExists, NotExist, NotWritten, OutOfSequence, StoreFull, WatchOverflow
from swarm.backoff import Backoff, BackoffPolicy
from swarm.clock import Clock

BATCH = 250
"""Writes of one transaction: bounds how long it holds the event loop."""

RETRY = BackoffPolicy(base=0.05, factor=2.0, cap=5.0)
CONFLICTS = 5
"""So many in a row are a defect, not a race."""

_log = logging.getLogger(__name__)


class Component(Protocol):
    """A brain. It does no I/O and knows the time only as `now`."""

    @property
    def name(self) -> str:
        """For logs, and the cause of writes that nothing else caused."""
        ...

    def resync(self, view: View) -> None:
        """Forget everything; look at all objects."""
        ...

    def observe(self, event: Event) -> None:
        """Take note of one committed change."""
        ...

    def wake_at(self) -> float | None:
        """Monotonic time from which on there is something to decide (in the past: now); None: only after an event."""
        ...

    def decide(self, view: View, now: Now, /) -> Iterator[Unit]:
        """What is to be written, given the newest state. Each unit is in `view` before the next is asked for. May be
        left after any unit, and is then asked again: what was not finished must stay noted."""
        ...


def moment(clock: Clock) -> Now:
    """Both clocks, now."""
    return Now(clock.monotonic(), clock.wall_ns())


async def run(component: Component, store: Store, clock: Clock) -> None:
    """Run `component` until cancelled. Writes that surely failed are decided anew, with back-off; anything else (the
    leadership is lost, the brain is defective) is raised."""
    backoff = Backoff(RETRY)
    conflicts = 0
    while True:
        try:
            await _follow(component, store, clock, backoff)
        except (StoreFull, NotWritten, WatchOverflow) as error:
            conflicts = 0
            pause = backoff.failed()
            _log.warning("%s: %s; deciding anew in %.2f s", component.name, error.describe(), pause)
        except (OutOfSequence, NotExist, AlreadyExists) as error:
            conflicts = conflicts + 1 if backoff.failures else 1
            if conflicts > CONFLICTS:
                raise
            pause = backoff.failed()
            _log.warning("%s: conflicting write (%s); deciding anew in %.2f s", component.name, error, pause)
        await asyncio.sleep(pause)


async def _follow(component: Component, store: Store, clock: Clock, backoff: Backoff) -> None:
    """Until something fails."""
    async with store.watch() as watch:
        component.resync(store)
        cause, own = "", 0
        while True:
            wake_at = component.wake_at()
            wait = None if wake_at is None else wake_at - clock.monotonic()
            if wait is not None and wait <= 0:
                own = await store.update(lambda tx: _decide(component, tx, clock), cause=cause or component.name)
                backoff.reset()
                cause = ""
                commits = watch.drain()
            else:
                cause = ""  # what came so far was no reason to write
                try:
                    async with asyncio.timeout(wait):
                        commits = [await anext(watch)]
                except TimeoutError:
                    continue
                commits += watch.drain()
            for commit in commits:
                if commit.index != own:
                    cause = cause or commit.cause
                for event in commit.events:
                    component.observe(event)


def _decide(component: Component, tx: Tx, clock: Clock) -> int:
    """Inside a transaction: ask for units and apply each, up to the bound. Returns the transaction's index; 0 if it
    changed nothing."""
    now = moment(clock)
    left = BATCH
    for unit in component.decide(tx, now):
        for write in unit:
            apply(tx, write, now)
        left -= len(unit)
        if left <= 0:
            break
    return tx.index if tx.operations else 0
