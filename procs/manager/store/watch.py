"""Committed changes, as those who follow the store see them: one Commit a transaction, in order, without gaps."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Any, Self

from procs.manager.store.errors import StoreClosed, StoreError, WatchOverflow


class Action(Enum):
    """What happened to an object."""

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Event:
    """One change of one object. `type(event.object)` is its kind. Neither object may be changed."""

    action: Action
    object: Any
    """As it is now; for DELETE as it was."""
    old: Any = None
    """For UPDATE: as it was before."""


@dataclass(frozen=True, slots=True)
class Commit:
    """One transaction."""

    index: int
    events: tuple[Event, ...]
    cause: str = ""
    """Why, as the writer said: consequences repeat it in their logs (DESIGN §3)."""


class Watch:
    """A stream of commits from the moment of `async with` on. One reader.

    `async with` does not give other tasks a turn: what is read from the store right after it, without an await in
    between, and the commits that follow have no gap and no overlap. Iteration raises WatchOverflow when the reader
    was too slow, and StoreClosed when the store was closed.
    """

    def __init__(self, watches: set[Watch], limit: int) -> None:
        self._watches = watches
        self._limit = limit
        self._commits: deque[Commit] = deque()
        self._events = 0
        self._end: StoreError | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        self._watches.add(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watches.discard(self)
        self._commits.clear()
        self._end = StoreClosed()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Commit:
        while not self._commits:
            if self._end is not None:
                raise self._end
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        commit = self._commits.popleft()
        self._events -= len(commit.events)
        return commit

    def drain(self) -> list[Commit]:
        """What has arrived and was not read yet; does not wait and does not raise."""
        commits = list(self._commits)
        self._commits.clear()
        self._events = 0
        return commits

    def push(self, commit: Commit) -> None:
        """Called by the store, in commit order."""
        if self._events and self._events + len(commit.events) > self._limit:
            self._commits.clear()
            self._events = 0
            self.end(WatchOverflow(self._limit))
            return
        self._commits.append(commit)
        self._events += len(commit.events)
        self._wake()

    def end(self, error: StoreError) -> None:
        """No commit follows; the reader gets `error` after those that wait."""
        self._watches.discard(self)
        self._end = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
