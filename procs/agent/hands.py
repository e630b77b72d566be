"""The slow work on tasks, in batches: writing specs, asking for starts, removing directories.

A start is asked for only once the database says which life of the workload's supervisord is asked, so that the next
life of the agent can tell a task that never started from one that was lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from procs.agent.entry import Entry
from procs.agent.executor import Executor
from procs.agent.files import TaskFiles
from procs.agent.plugin import Plugin
from procs.agent.task import Failed, Operation
from swarm.errors import BadInput, Unreachable
from swarm.supervisor_rpc import SupervisorFault


class Hands:
    """Queues of entries; `poke` is called for each when its work is done, `removed` when nothing is left of it.

    `supply` completes what is to be written for a task; it raises BadInput if that cannot be had.
    """

    def __init__(
        self,
        *,
        executor: Executor,
        plugin: Plugin,
        files: TaskFiles,
        supply: Callable[[Entry], None],
        store: Callable[[Sequence[Entry]], asyncio.Future[None]],
        poke: Callable[[Entry], None],
        removed: Callable[[Entry], None],
        retry: Callable[[Entry], None],
        log: logging.Logger,
    ) -> None:
        self._executor = executor
        self._plugin = plugin
        self._files = files
        self._supply = supply
        self._store = store
        self._poke = poke
        self._removed = removed
        self._retry = retry
        self._log = log
        self._prepares: list[Entry] = []
        self._starts: list[Entry] = []
        self._cleanups: list[Entry] = []
        self._withdrawals: list[str] = []
        self._files_wake = asyncio.Event()
        self._starts_wake = asyncio.Event()

    def prepare(self, entry: Entry) -> None:
        """Write the spec of a resolved task."""
        entry.preparing = True
        self._prepares.append(entry)
        self._files_wake.set()

    def start(self, entry: Entry) -> None:
        """Ask the workload to start the task."""
        entry.starting = True
        self._starts.append(entry)
        self._starts_wake.set()

    def clean(self, entry: Entry) -> None:
        """Remove the directory of a task of which the workload knows nothing any more."""
        self._cleanups.append(entry)
        self._files_wake.set()

    def withdraw(self, task_id: str) -> None:
        """Remove the secrets and configs of a task that has ended."""
        self._withdrawals.append(task_id)
        self._files_wake.set()

    async def run(self) -> None:
        """Serve the queues until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._serve_files(), name="files of tasks")
            group.create_task(self._serve_starts(), name="starts of tasks")

    async def _serve_files(self) -> None:
        while True:
            await self._files_wake.wait()
            self._files_wake.clear()
            while self._prepares or self._cleanups or self._withdrawals:
                await self._prepare_batch()
                await self._withdraw_batch()
                await self._cleanup_batch()

    async def _prepare_batch(self) -> None:
        batch, self._prepares = self._prepares, []
        await self._write_specs(batch)
        for entry in batch:
            entry.preparing = False
            self._poke(entry)

    async def _write_specs(self, entries: Sequence[Entry]) -> None:
        """Write what is resolved; `prepared` or `problem` says how it went."""
        resolved = [entry.resolved for entry in entries if entry.resolved is not None]
        results = await self._files.prepare(resolved) if resolved else {}
        for entry in entries:
            error = results.get(entry.id)
            entry.prepared = error == ""
            if error:
                entry.problem = Failed(error)

    async def _withdraw_batch(self) -> None:
        batch, self._withdrawals = self._withdrawals, []
        for task_id, error in (await self._files.withdraw(batch) if batch else {}).items():
            if error:
                # Tried again when the task is removed.
                self._log.warning("task %s: %s", task_id, error)

    async def _cleanup_batch(self) -> None:
        batch, self._cleanups = self._cleanups, []
        results = await self._files.remove([entry.id for entry in batch]) if batch else {}
        for entry in batch:
            entry.cleaning = False
            if results[entry.id]:
                self._log.warning("task %s: %s", entry.id, results[entry.id])
                self._retry(entry)
            else:
                self._removed(entry)

    async def _serve_starts(self) -> None:
        while True:
            await self._starts_wake.wait()
            self._starts_wake.clear()
            batch, self._starts = self._starts, []
            batch = self._still_wanted(batch)
            if batch:
                await self._start(batch)

    def _still_wanted(self, batch: Sequence[Entry]) -> list[Entry]:
        wanted = []
        for entry in batch:
            if entry.machine is not None and entry.machine.operation is Operation.START:
                wanted.append(entry)
            else:
                self._give_up(entry)
        return wanted

    def _give_up(self, entry: Entry) -> None:
        entry.starting = False
        self._poke(entry)

    async def _start(self, batch: list[Entry]) -> None:
        try:
            instance = await self._plugin.ensure()
        except (Unreachable, SupervisorFault) as error:
            self._log.warning("%d tasks cannot be started yet: %s", len(batch), error.describe())
            for entry in batch:
                entry.problem = Failed(f"the workload supervisor is not there: {error.message}", temporary=True)
                self._give_up(entry)
            return
        ready = await self._prepare_again(batch)
        for entry in ready:
            entry.row.instance = instance.name
            entry.row.pid = entry.row.start_ticks = 0
        await self._store(ready)
        self._plugin.add([entry.id for entry in self._still_wanted(ready)])

    async def _prepare_again(self, batch: list[Entry]) -> list[Entry]:
        """Specs that an earlier life of this agent wrote are written again, so that they are there for sure."""
        missing = [entry for entry in batch if not entry.prepared]
        for entry in missing:
            if entry.machine is not None:
                try:
                    if entry.resolved is None:
                        entry.resolved = self._executor.resolve(entry.machine.task)
                    self._supply(entry)
                except BadInput as error:
                    entry.problem = Failed(error.describe())
        await self._write_specs([entry for entry in missing if entry.problem is None])
        for entry in batch:
            if entry.problem is not None:
                self._give_up(entry)
        return [entry for entry in batch if entry.starting]
