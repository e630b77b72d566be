"""The bus for a process without asyncio: the coordinator, the command line, plug-ins of supervisord.

No thread of ours, nothing blocks but `poll`. Not thread-safe, and not to be used across a fork.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import zmq

from ipc.errors import Closed, Refused
from ipc.publisher import Publisher
from ipc.subscriber import Subscriber, Value

__all__ = ["Bus", "Value"]

_ROUNDS = 10
"""Passes over both sockets in one service: more work than that waits for the next call, which comes at once."""


class Bus:
    """One process's ear and mouth.

    Whoever waits on `filenos` by itself calls `service` right before each wait (the descriptors are edge-triggered, and
    a publish or a service may swallow the edge), and again when one is readable or `next_timer` has come.
    """

    def __init__(self, directory: Path, proc: str | None, subscribe: Iterable[str] = ()) -> None:
        """`proc` names the publisher, None for a reader only; `subscribe`: topics, `process.*` for a family, `*` for
        all. The caller of a publisher holds the lock of `proc`. Raises Refused, BusError."""
        self._context: zmq.Context[Any] = zmq.Context()
        self._publisher: Publisher | None = None
        self._subscriber: Subscriber | None = None
        self._poller = zmq.Poller()
        self._more = False
        try:
            patterns = tuple(subscribe)
            if patterns:
                self._subscriber = Subscriber(self._context, directory, patterns)
            if proc is not None:
                self._publisher = Publisher(self._context, directory, proc)
            for own in self.filenos():
                self._poller.register(own, zmq.POLLIN)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def counters(self) -> dict[str, int]:
        """Everything counted so far, by name."""
        merged: dict[str, int] = {}
        for part in (self._publisher, self._subscriber):
            if part is not None:
                merged.update(part.counters)
        return merged

    @property
    def epoch(self) -> int:
        """Of this publisher. Raises Refused for a reader."""
        return self._own_publisher().epoch

    def publish(self, topic: str, body: object, *, cause: str = "") -> None:
        """Say the newest value of an own topic; a body equal to the last one is not sent again.

        Raises Refused: not the owner, no such topic, or a body that no reader would take.
        """
        self._own_publisher().publish(topic, body, cause)

    def retire(self, topic: str) -> None:
        """Say that an own topic is gone. Raises Refused."""
        self._own_publisher().retire(topic)

    def last(self, topic: str) -> Value | None:
        """The newest value heard; the last known one if its owner no longer runs."""
        return None if self._subscriber is None else self._subscriber.values.get(topic)

    def values(self) -> dict[str, Value]:
        """All newest values, by topic."""
        return {} if self._subscriber is None else dict(self._subscriber.values)

    def silent(self, owner: str) -> bool:
        """Whether `owner` has not been heard for three periods (6 s), as of the last service. Raises Refused if
        this bus does not listen to it."""
        if self._subscriber is None:
            raise Refused(f"not subscribed to anything of {owner!r}")
        return self._subscriber.silent(owner)

    def complete(self, owner: str) -> bool:
        """Whether everything that `owner` has to say was received; False as long as it was never heard."""
        return self._subscriber is not None and self._subscriber.complete(owner)

    def filenos(self) -> list[int]:
        """Descriptors to wait on for reading, edge-triggered."""
        speaking = [] if self._publisher is None else [self._publisher.fileno()]
        return speaking + ([] if self._subscriber is None else self._subscriber.filenos())

    def next_timer(self) -> float:
        """Monotonic time at which `service` wants to be called, at the latest."""
        if self._more:
            return 0.0
        parts = [part.next_timer() for part in (self._publisher, self._subscriber) if part is not None]
        return min(parts, default=time.monotonic() + 1.0)

    def service(self) -> list[Value]:
        """Answer subscriptions, send the digest if due, read what is waiting. Never blocks.

        Returns the new values, the newest of each topic, in the order they came.
        """
        fresh: dict[str, Value] = {}
        worked = False
        for _ in range(_ROUNDS):
            worked = self._publisher is not None and self._publisher.service()
            worked |= self._subscriber is not None and self._subscriber.service(fresh)
            # Once more after any work: sending and subscribing make libzmq look at its mailbox, and what came in
            # meanwhile shows in EVENTS and nowhere else, the edge on the descriptor is gone.
            if not worked:
                break
        self._more = worked
        return list(fresh.values())

    def poll(self, timeout: float | None, fds: Sequence[int] = ()) -> list[Value]:
        """Wait at most `timeout` seconds (None: for ever) for new values, until an owner became `complete`, or until
        one of `fds` is readable.

        Signals do not end the wait (PEP 475): pass the descriptor of `signal.set_wakeup_fd`.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        poller = self._poller
        if fds:
            poller = zmq.Poller()
            for fd in (*fds, *self.filenos()):
                poller.register(fd, zmq.POLLIN)
        completions = self._completions()
        while True:
            fresh = self.service()
            now = time.monotonic()
            if fresh or (deadline is not None and now >= deadline) or self._completions() != completions:
                return fresh
            until = self.next_timer() if deadline is None else min(deadline, self.next_timer())
            ready = poller.poll(max(0, math.ceil((until - now) * 1000)))
            if any(fd in fds for fd, _ in ready):
                return self.service()

    def close(self) -> None:
        """Close at once, nothing lingers. May be called twice."""
        for part in (self._publisher, self._subscriber):
            if part is not None:
                part.close()
        self._publisher = self._subscriber = None
        self._context.term()

    def _completions(self) -> int:
        return 0 if self._subscriber is None else self._subscriber.completions

    def _own_publisher(self) -> Publisher:
        if self._publisher is None:
            if self._context.closed:
                raise Closed("the bus is closed")
            raise Refused("this bus only reads: it was opened without a process name")
        return self._publisher
