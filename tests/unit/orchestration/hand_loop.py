"""An event loop whose time is turned by hand, and stores on it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from procs.manager.store import Store
from procs.manager.store.sqlite import SqliteEngine
from tests.unit.orchestration.world import NS, START


class HandLoop(asyncio.SelectorEventLoop):
    """Timers fire when `turn` passes them, whatever the real time."""

    now = 1000.0

    def time(self) -> float:
        return self.now

    def turn(self, seconds: float) -> None:
        self.now += seconds


class LoopClock:
    """The same time for those who ask a clock. No two moments are at the same nanosecond."""

    ticks = itertools.count()

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def wall_ns(self) -> int:
        return START + int((self.monotonic() - 1000.0) * NS) + next(self.ticks)


def turn(seconds: float) -> None:
    asyncio.get_running_loop().turn(seconds)


def by_hand(main: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine on such a loop."""
    with asyncio.Runner(loop_factory=HandLoop) as runner:
        runner.run(main())


@asynccontextmanager
async def opened(path: Path, engine: type[SqliteEngine] = SqliteEngine):
    """A real store in a file."""
    store = await Store.open(engine(path / "store.db"), clock=LoopClock())
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def running(main: Awaitable[None]):
    """A task beside the test; what it raises comes out at the end."""
    task = asyncio.ensure_future(main)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def quiet(store: Store, rounds: int = 20) -> None:
    """Let everybody act who can act without time passing."""
    for _ in range(rounds):
        await store.update(lambda tx: None)
        for _ in range(5):
            await asyncio.sleep(0)


async def until(store: Store, holds: Callable[[], bool]) -> None:
    """Wait for a state of the store; the test's own timeout is the deadline."""
    async with store.watch() as watch:
        while not holds():
            await anext(watch)
