"""Writes of the dispatcher, gathered: the first goes out at once, what comes meanwhile goes together in the next.

SwarmKit waits a fixed 100 ms and answers before anything is written; here an answer follows the commit
(reference agent-and-dispatcher §10.3).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from procs.manager.status import Status
from procs.manager.store import Store, Tx
from procs.manager.store.errors import TooLarge

Write = Callable[[Tx], Any]
"""Changes at most one object, at its very end: then one that fails leaves the others of its batch untouched."""

MAX_WRITES = 1000
"""Writes in one transaction."""


class Batch:
    """Queue in front of a store. `run` writes; `submit` waits until its write is durable."""

    def __init__(self, store: Store, cause: str) -> None:
        self._store = store
        self._cause = cause
        self._queue: list[tuple[Write, asyncio.Future[None]]] = []
        self._wake = asyncio.Event()
        self._closed: Status | None = None

    def put(self, *writes: Write) -> list[asyncio.Future[None]]:
        """Queue `writes`, in order; each one's future is done once it is committed, or has failed."""
        if self._closed is not None:
            raise self._closed
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[None]] = [loop.create_future() for _ in writes]
        self._queue += zip(writes, futures, strict=True)
        self._wake.set()
        for future in futures:
            future.add_done_callback(_retrieved)
        return futures

    async def submit(self, *writes: Write) -> None:
        """Return after all of `writes` are committed. Raises what one of them, or the store, raised."""
        for future in self.put(*writes):
            # shielded: a caller that goes away must not take the write with it
            await asyncio.shield(future)

    async def run(self) -> None:
        """Write until cancelled. A write that fails is its submitter's; a store that fails is everybody's."""
        while True:
            await self._wake.wait()
            taken, self._queue = self._queue[:MAX_WRITES], self._queue[MAX_WRITES:]
            if not self._queue:
                self._wake.clear()
            try:
                errors = await self._store.update(lambda tx, taken=taken: _apply(tx, taken), cause=self._cause)  # type: ignore[misc]
            except Exception as error:  # noqa: BLE001  (handed to each submitter, who knows what it means)
                for _, future in taken:
                    if not future.done():
                        future.set_exception(error)
                continue
            except BaseException:
                self._queue[:0] = taken
                raise
            if len(errors) < len(taken):
                self._queue[:0] = taken[len(errors) :]
                self._wake.set()
            for (_, future), failed in zip(taken, errors, strict=False):
                if future.done():
                    continue
                if failed is None:
                    future.set_result(None)
                else:
                    future.set_exception(failed)

    def close(self, reason: Status) -> None:
        """Refuse what waits and what comes with `reason`."""
        self._closed = reason
        for _, future in self._queue:
            if not future.done():
                future.set_exception(reason)
        self._queue.clear()


def _apply(tx: Tx, taken: list[tuple[Write, asyncio.Future[None]]]) -> list[Exception | None]:
    """Run the writes; what each raised. Shorter than `taken` if the transaction is full: the rest is for the next."""
    errors: list[Exception | None] = []
    for write, _ in taken:
        try:
            write(tx)
        except TooLarge as error:
            if errors:
                return errors
            errors.append(error)
        except Exception as error:  # noqa: BLE001  (one bad report must not take the others along)
            errors.append(error)
        else:
            errors.append(None)
    return errors


def _retrieved(future: asyncio.Future[None]) -> None:
    """A submitter that went away leaves its future unread; its error is no news then."""
    if not future.cancelled():
        future.exception()
