"""The bus for asyncio processes: the same verbs as `ipc.bus.Bus`, driven by the running loop.

Plain descriptors on the loop rather than `zmq.asyncio`: one implementation of the edge-triggered rules, and 4 MB less.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from ipc.bus import Bus, Value
from ipc.errors import Closed

__all__ = ["AsyncBus", "Updates", "Value"]


class Updates:
    """New values as they come: first those already held, then each newer one. A consumer that is slow gets the
    newest of each topic, not all. Ends when the bus is closed."""

    def __init__(self, held: dict[str, Value]) -> None:
        self._pending = held
        self._changed = asyncio.Event()
        self._closed = False
        if held:
            self._changed.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Value:
        while not self._pending:
            if self._closed:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        return self._pending.pop(next(iter(self._pending)))

    def feed(self, values: Iterable[Value]) -> None:
        """Called by the bus."""
        for value in values:
            self._pending.pop(value.topic, None)
            self._pending[value.topic] = value
        self._changed.set()

    def close(self) -> None:
        """Called by the bus: what is pending still comes, then the end."""
        self._closed = True
        self._changed.set()


class AsyncBus:
    """`async with AsyncBus(directory, proc, subscribe) as bus:`; arguments as for `ipc.bus.Bus`."""

    def __init__(self, directory: Path, proc: str | None, subscribe: Iterable[str] = ()) -> None:
        self._arguments = (directory, proc, tuple(subscribe))
        self._open: Bus | None = None
        self._counters: dict[str, int] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._filenos: list[int] = []
        self._timer: asyncio.TimerHandle | None = None
        self._soon: asyncio.Handle | None = None
        self._consumers: weakref.WeakSet[Updates] = weakref.WeakSet()

    async def __aenter__(self) -> Self:
        self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> None:
        """Open on the running loop. Raises Refused, BusError."""
        self._loop = asyncio.get_running_loop()
        self._open = Bus(*self._arguments)
        self._filenos = self._open.filenos()
        for fd in self._filenos:
            self._loop.add_reader(fd, self._pump)
        self._pump()

    def close(self) -> None:
        """Close at once; `updates` end, waits raise Closed. May be called twice."""
        if self._open is None or self._loop is None:
            return
        for fd in self._filenos:
            self._loop.remove_reader(fd)
        for handle in (self._timer, self._soon):
            if handle is not None:
                handle.cancel()
        self._counters = self._open.counters
        self._open.close()
        self._open = None
        for consumer in list(self._consumers):
            consumer.close()

    @property
    def counters(self) -> dict[str, int]:
        """Everything counted so far, by name; the last figures once closed."""
        return dict(self._counters) if self._open is None else self._open.counters

    @property
    def epoch(self) -> int:
        return self._bus.epoch

    def publish(self, topic: str, body: object, *, cause: str = "") -> None:
        """See Bus.publish."""
        self._bus.publish(topic, body, cause=cause)
        self._pump_soon()

    def retire(self, topic: str) -> None:
        """See Bus.retire."""
        self._bus.retire(topic)
        self._pump_soon()

    def last(self, topic: str) -> Value | None:
        """See Bus.last."""
        return self._bus.last(topic)

    def values(self) -> dict[str, Value]:
        """All newest values, by topic."""
        return self._bus.values()

    def silent(self, owner: str) -> bool:
        """See Bus.silent."""
        return self._bus.silent(owner)

    def complete(self, owner: str) -> bool:
        """See Bus.complete."""
        return self._bus.complete(owner)

    def updates(self) -> Updates:
        """New values, beginning with those already held; each caller gets a stream of its own."""
        consumer = Updates(self._bus.values())
        self._consumers.add(consumer)
        return consumer

    async def wait(self, topic: str, predicate: Callable[[Value], bool], timeout: float | None) -> Value:  # noqa: ASYNC109  part of the contract: the deadline belongs to the wait
        """The first value of `topic`, held or to come, that `predicate` accepts. TimeoutError after `timeout` seconds,
        Closed if the bus is closed meanwhile."""
        async with asyncio.timeout(timeout):
            async for value in self.updates():
                if value.topic == topic and predicate(value):
                    return value
        raise Closed(f"the bus was closed while waiting for {topic!r}")

    @property
    def _bus(self) -> Bus:
        if self._open is None:
            raise Closed("the bus is not open")
        return self._open

    def _pump_soon(self) -> None:
        # A send may swallow the edge of what arrived meanwhile, so look again; once for all sends of this pass.
        if self._soon is None and self._loop is not None:
            self._soon = self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        if self._open is None or self._loop is None:
            return
        self._soon = None
        if self._timer is not None:
            self._timer.cancel()
        fresh = self._open.service()
        if fresh:
            for consumer in list(self._consumers):
                consumer.feed(fresh)
        self._timer = self._loop.call_later(max(0.0, self._open.next_timer() - time.monotonic()), self._pump)
