"""The agent's database off the event loop: one writer thread; what queues up during a commit goes into the next.

So a thousand statuses of one moment cost a few fsyncs, and a lone one waits for none but its own.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from procs.agent.database import Change, Database
from swarm.errors import SwarmvisorError


class JournalFailed(SwarmvisorError):
    """A change could not be made durable; the agent ends rather than promise what it might forget."""


class Journal:
    """Queues changes and commits them in order. `run` must be running for `write` to get anywhere."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queue: list[tuple[Sequence[Change], Callable[[], None] | None]] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="agent-db")
        self.commits = 0

    def write(self, changes: Sequence[Change], done: Callable[[], None] | None = None) -> None:
        """Queue changes; `done` is called on the event loop once they are durable."""
        self._queue.append((changes, done))
        self._idle.clear()
        self._wake.set()

    async def flush(self) -> None:
        """Wait until everything queued so far is durable."""
        await self._idle.wait()

    async def run(self) -> None:
        """Commit what is queued until cancelled; raises JournalFailed if the database refuses."""
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch, self._queue = self._queue, []
            changes = [change for group, _ in batch for change in group]
            if changes:
                try:
                    await loop.run_in_executor(self._thread, self._database.write, changes)
                except sqlite3.Error as error:
                    raise JournalFailed(
                        f"{self._database.path} could not be written: {error}",
                        remedy="make room on the disk; the agent tries again when it is restarted",
                    ) from error
                self.commits += 1
            for _, done in batch:
                if done is not None:
                    done()
            if not self._queue:
                self._idle.set()

    def close(self) -> None:
        """Commit what is still queued, here and now, then close the file."""
        self._thread.shutdown(wait=True)
        changes = [change for group, _ in self._queue for change in group]
        if changes:
            self._database.write(changes)
        self._database.close()
