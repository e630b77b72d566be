"""Which tasks this node has, and what is being done about each: assignments in, operations and statuses out.

Everything here runs on the event loop and is level-triggered: `_poke` looks at what is known of a task now and carries
it as far as that goes; whoever learns something pokes. Slow things (commits, files, RPCs) are queued and answered
later, in batches. A status is reported once it is durable.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from procs.agent import task as states
from procs.agent.database import Acknowledge, Change, DeleteTask, PutTask, TaskRow
from procs.agent.dependencies import Dependencies, needs_files
from procs.agent.entry import Entry, restored, stray, without_status
from procs.agent.executor import Executor, Unresolvable
from procs.agent.files import TaskFiles
from procs.agent.hands import Hands
from procs.agent.journal import Journal
from procs.agent.plugin import Plugin
from procs.agent.processes import WORKLOAD_ENDED, Observation, Phase, Processes
from procs.agent.reporter import Report, ReportQueue
from procs.agent.task import Done, Failed, Machine, Operation, Outcome
from procs.agent.watcher import Watcher
from swarm.api import dispatcher_pb2, objects_pb2, types_pb2
from swarm.clock import Clock
from swarm.errors import BadInput

_ELSEWHERE = "?"
"""Instance of a task that was started before our memory begins."""


class Worker:
    """The tasks of this node. Implements `plugin.Listener`."""

    def __init__(
        self,
        *,
        executor: Executor,
        plugin: Plugin,
        processes: Processes,
        files: TaskFiles,
        journal: Journal,
        reports: ReportQueue,
        reported: Callable[[], None],
        started: Callable[[objects_pb2.Task], None] = lambda _task: None,
        clock: Clock,
        log: logging.Logger,
    ) -> None:
        self._executor = executor
        self._plugin = plugin
        self._processes = processes
        self._files = files
        self._journal = journal
        self._reports = reports
        self._reported = reported
        self._started = started
        self._clock = clock
        self._log = log
        self._dependencies = Dependencies()
        self._entries: dict[str, Entry] = {}
        self._dirty: dict[str, Entry] = {}
        self._flushing = False
        self._complete_seen = False
        self._leaving = False
        self._changed = asyncio.Event()
        self._watcher = Watcher(
            self._entries, self._poke, plugin=plugin, processes=processes, files=files, clock=clock, log=log
        )
        self._hands = Hands(
            executor=executor,
            plugin=plugin,
            files=files,
            supply=self._supply,
            store=self._store,
            poke=self._poke,
            removed=self._forget,
            retry=self._retry_later,
            log=log,
        )
        plugin.listen(self)

    # -- what others ask -----------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """Tasks assigned to this node."""
        return sum(1 for entry in self._entries.values() if not entry.row.removing)

    def tasks(self) -> list[objects_pb2.Task]:
        """The tasks assigned to this node."""
        return [entry.row.task for entry in self._entries.values() if not entry.row.removing]

    def load(self, rows: Iterable[TaskRow]) -> None:
        """Take up what the database remembers."""
        for row in rows:
            entry = self._entries[row.id] = restored(row)
            self._poke(entry)
            if row.status.state >= states.COMPLETE:
                self._withdraw(row)

    def discard(self) -> None:
        """Remove every task: they were another identity's, or the node leaves."""
        for entry in list(self._entries.values()):
            self._remove(entry)
            self._poke(entry)

    async def apply(self, message: dispatcher_pb2.AssignmentsMessage) -> None:
        """Apply a change set (reference agent-and-dispatcher §2.7)."""
        if self._leaving:
            return
        complete = message.type == dispatcher_pb2.AssignmentsMessage.COMPLETE
        waiting = not self._dependencies.complete
        self._dependencies.apply(message)
        assigned: set[str] = set()
        removed: list[str] = []
        for change in message.changes:
            if change.assignment.WhichOneof("item") != "task":
                continue  # secrets and configs were taken above; tasks that need volumes are rejected in words
            task = change.assignment.task
            if change.action == dispatcher_pb2.AssignmentChange.UPDATE:
                assigned.add(task.id)
                self._assign(task)
            elif not complete:
                removed.append(task.id)
        if complete:
            removed = [task_id for task_id in self._entries if task_id not in assigned]
            await self._remove_unknown()
        for task_id in removed:
            entry = self._entries.get(task_id)
            if entry is not None:
                self._remove(entry)
                self._poke(entry)

        if waiting and complete:
            for entry in list(self._entries.values()):
                self._poke(entry)

    def reports(self, *, everything: bool) -> list[Report]:
        """Durable statuses that the manager has not acknowledged, or all of them."""
        return [
            Report(entry.id, entry.row.status, entry.row.version)
            for entry in self._entries.values()
            if not entry.row.removing
            and entry.committed == entry.row.version > 0
            and (everything or entry.row.acknowledged < entry.row.version)
        ]

    def acknowledged(self, reports: Sequence[Report]) -> None:
        """A manager has taken these."""
        changes: list[Change] = []
        for report in reports:
            entry = self._entries.get(report.task_id)
            if entry is not None and not entry.row.removing:
                entry.row.acknowledged = max(entry.row.acknowledged, report.version)
                changes.append(Acknowledge(report.task_id, report.version))
        self._journal.write(changes)

    def observed(self, task_id: str) -> None:
        """The plug-in has said something new about a process."""
        entry = self._entries.get(task_id)
        if entry is not None:
            entry.awaiting = False
            entry.cancel_timer()
            self._poke(entry)
        elif self._complete_seen:
            self._adopt_stray(task_id)

    async def leave(self) -> None:
        """End and remove every task; returns when nothing is left. Later assignments are ignored."""
        self._leaving = True
        self.discard()
        while self._entries:
            self._changed.clear()
            await self._changed.wait()
        await self._journal.flush()

    async def run(self) -> None:
        """Serve the queues of slow work until cancelled."""
        try:
            await self._hands.run()
        finally:
            self._watcher.close()
            for entry in self._entries.values():
                entry.cancel_timer()

    # -- assignments ---------------------------------------------------------------------------------

    def _assign(self, task: objects_pb2.Task) -> None:
        entry = self._entries.get(task.id)
        if entry is None:
            self._poke(self._new_entry(task))
        elif entry.machine is None:
            entry.successor = task
        elif entry.machine.update(task):
            entry.row.task = without_status(task)
            self._dirty[entry.id] = entry
            entry.cancel_timer()
            self._poke(entry)

    def _new_entry(self, task: objects_pb2.Task) -> Entry:
        status = types_pb2.TaskStatus()
        status.CopyFrom(task.status)
        started = status.state >= states.STARTING
        row = TaskRow(task.id, without_status(task), status, instance=_ELSEWHERE if started else "")
        machine = Machine(task, status)
        entry = self._entries[task.id] = Entry(row=row, machine=machine)
        self._dirty[task.id] = entry
        if not started:
            try:
                entry.resolved = self._executor.resolve(task)
                machine.status = states.resolve(status)
            except Unresolvable as error:
                self._log.warning("task %s cannot run here: %s", task.id, error.describe())
                machine.status = states.resolve(status, error.describe())
        return entry

    def _remove(self, entry: Entry) -> None:
        """No longer assigned. Its removal is remembered until it is done; no status of it is sent any more."""
        entry.successor = None
        if entry.row.removing:
            return
        entry.row.removing = True
        entry.machine = None
        entry.problem = None
        entry.cancel_timer()
        self._reports.forget(entry.id)
        self._dirty[entry.id] = entry

    async def _remove_unknown(self) -> None:
        """Processes and directories that neither the manager nor our database knows: of a database that was lost."""
        unknown = self._processes.ids()
        if not self._complete_seen:
            self._complete_seen = True
            unknown += await self._files.leftovers()
        for task_id in dict.fromkeys(unknown):
            if task_id not in self._entries:
                self._adopt_stray(task_id)

    def _adopt_stray(self, task_id: str) -> None:
        self._log.warning("task %s is not assigned to this node; removing what is left of it", task_id)
        entry = self._entries[task_id] = stray(task_id)
        self._dirty[task_id] = entry
        self._poke(entry)

    # -- one task ------------------------------------------------------------------------------------

    def _poke(self, entry: Entry) -> None:
        """Carry one task as far as what is known allows."""
        if entry.timer is None:
            if entry.machine is None:
                self._poke_removal(entry)
            else:
                self._poke_machine(entry, entry.machine)
        self._flush_soon()

    def _poke_machine(self, entry: Entry, machine: Machine) -> None:
        if (
            machine.operation is Operation.START
            and machine.task.desired_state >= states.SHUTDOWN
            and not entry.starting
        ):
            machine.cancel()  # a start whose answer was given may hang in its last step
        while (operation := machine.operation or machine.advance(self._clock.wall_ns())) is not None:
            result = self._attempt(entry, operation)
            if result is None:
                break
            entry.problem = None
            if machine.finish(operation, result, self._clock.wall_ns()) is Outcome.RETRY:
                self._retry_later(entry)
                break
            entry.backoff.reset()
            if isinstance(result, Failed) and result.error == WORKLOAD_ENDED:
                self._plugin.revive()
        if machine.status != entry.row.status:
            entry.row.status = machine.status
            entry.row.version += 1
            self._dirty[entry.id] = entry
        elif machine.terminal and entry.committed == entry.row.version:
            self._release(entry)

    def _attempt(self, entry: Entry, operation: Operation) -> Done | Failed | None:
        """The result of an operation as far as it is known; None while it is under way."""
        if operation is Operation.PREPARE:
            return self._attempt_prepare(entry)
        seen = self._watcher.observe(entry)
        match operation:
            case Operation.START:
                return self._attempt_start(entry, seen)
            case Operation.WAIT:
                return self._attempt_wait(entry, seen)
            case _:
                return self._attempt_shutdown(entry, seen)

    def _attempt_prepare(self, entry: Entry) -> Done | Failed | None:
        if entry.prepared:
            return Done()
        if entry.problem is not None:
            return entry.problem
        if entry.resolved is None and entry.machine is not None:
            try:
                entry.resolved = self._executor.resolve(entry.machine.task)
            except Unresolvable as error:
                return Failed(error.describe())
        if not entry.preparing and self._supplied(entry):
            try:
                self._supply(entry)
            except BadInput as error:
                return Failed(error.describe())
            self._hands.prepare(entry)
        return None

    def _supplied(self, entry: Entry) -> bool:
        """Whether the task's secrets and configs are here, or will not come: after a restart the manager sends them
        again."""
        return self._dependencies.complete or not needs_files(entry.row.task)

    def _supply(self, entry: Entry) -> None:
        """Add secrets and configs to what is written for the task. Raises BadInput."""
        resolved = entry.resolved
        if resolved is not None and resolved.private is not None:
            files = self._dependencies.files(entry.row.task)
            entry.resolved = replace(resolved, private=replace(resolved.private, files=files))

    def _withdraw(self, row: TaskRow) -> None:
        if needs_files(row.task):
            self._hands.withdraw(row.id)

    def _attempt_start(self, entry: Entry, seen: Observation) -> Done | Failed | None:
        match seen.phase:
            case Phase.ALIVE:
                self._remember(entry, seen)
                return Done(seen.process(entry.id), at=seen.started_at)
            case Phase.ENDED:
                return seen.result(entry.id) if seen.why else Done(seen.process(entry.id), at=seen.started_at)
            case Phase.ABSENT if entry.problem is not None:
                return entry.problem
            case Phase.ABSENT if not entry.starting and (entry.prepared or self._supplied(entry)):
                self._hands.start(entry)
        return None

    def _attempt_wait(self, entry: Entry, seen: Observation) -> Done | Failed | None:
        match seen.phase:
            case Phase.ENDED:
                return seen.result(entry.id)
            case Phase.ABSENT:
                return Failed("the task's process is gone")
            case Phase.ALIVE:
                self._remember(entry, seen)
        return None

    def _attempt_shutdown(self, entry: Entry, seen: Observation) -> Done | Failed | None:
        match seen.phase:
            case Phase.ENDED:
                return Done(seen.process(entry.id), at=seen.exited_at)
            case Phase.ABSENT:
                return Done()
            case Phase.ALIVE | Phase.STARTING if entry.problem is not None:
                return entry.problem
            case Phase.ALIVE | Phase.STARTING:
                self._ask_stop(entry)
        return None

    def _poke_removal(self, entry: Entry) -> None:
        if entry.starting or entry.preparing or entry.cleaning:
            return
        seen = self._watcher.observe(entry)
        if seen.phase in (Phase.ALIVE, Phase.STARTING):
            self._ask_stop(entry)
        elif seen.phase is not Phase.UNKNOWN:
            entry.cleaning = True
            self._plugin.release([entry.id])

    def _ask_stop(self, entry: Entry) -> None:
        if entry.stop_asked != self._plugin.current:
            entry.stop_asked = self._plugin.current
            self._plugin.stop([entry.id])

    def _release(self, entry: Entry) -> None:
        """Its end is durable here: the plug-in may forget it."""
        if entry.id in self._processes:
            self._plugin.release([entry.id])

    def _remember(self, entry: Entry, seen: Observation) -> None:
        if (entry.row.pid, entry.row.start_ticks) != (seen.pid, seen.start_ticks):
            entry.row.pid, entry.row.start_ticks = seen.pid, seen.start_ticks
            entry.row.instance = self._plugin.current or entry.row.instance
            self._dirty[entry.id] = entry

    def _retry_later(self, entry: Entry) -> None:
        entry.cancel_timer()
        entry.timer = asyncio.get_running_loop().call_later(entry.backoff.failed(), self._retry, entry)

    def _retry(self, entry: Entry) -> None:
        entry.timer = None
        entry.problem = None
        self._poke(entry)

    # -- durable, then told --------------------------------------------------------------------------

    def _flush_soon(self) -> None:
        if self._dirty and not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        entries, self._dirty = list(self._dirty.values()), {}
        rows = [replace(entry.row) for entry in entries]
        self._journal.write([PutTask(row) for row in rows], lambda: self._durable(rows))

    def _store(self, entries: Sequence[Entry]) -> asyncio.Future[None]:
        """Everything known of `entries` will be durable when the future is done."""
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._dirty.update({entry.id: entry for entry in entries})
        self._flush()

        def done() -> None:
            if not durable.done():  # cancelled at the end of the process
                durable.set_result(None)

        self._journal.write([], done)
        return durable

    def _durable(self, rows: Sequence[TaskRow]) -> None:
        told = False
        for row in rows:
            entry = self._entries.get(row.id)
            if entry is None or entry.machine is None:
                continue
            if row.version > entry.committed:
                entry.committed = row.version
                self._reports.put(Report(row.id, row.status, row.version))
                told = True
            if row.status.state >= states.STARTING:
                self._started(row.task)
            if row.status.state >= states.COMPLETE:
                self._release(entry)
                self._withdraw(row)
        if told:
            self._reported()

    def _forget(self, entry: Entry) -> None:
        """Nothing is left of a removed task."""
        del self._entries[entry.id]
        self._dirty.pop(entry.id, None)
        self._journal.write([DeleteTask(entry.id)])
        self._changed.set()
        if entry.successor is not None:
            self._assign(entry.successor)

    # -- plugin.Listener -----------------------------------------------------------------------------

    def added(self, answers: dict[str, str]) -> None:
        """See plugin.Listener."""
        for task_id, error in answers.items():
            entry = self._entries.get(task_id)
            if entry is None:
                continue
            entry.starting = False
            entry.awaiting = task_id not in self._processes
            if error:
                entry.problem = Failed(error)
                self._plugin.look_again()
            elif entry.awaiting:
                self._watcher.word_expected()
            self._poke(entry)

    def add_failed(self, ids: Sequence[str], error: str) -> None:
        """See plugin.Listener."""
        for task_id in ids:
            entry = self._entries.get(task_id)
            if entry is not None:
                entry.starting = False
                entry.awaiting = self._plugin.instance is not None
                entry.problem = Failed(error, temporary=True)
                self._poke(entry)

    def stop_failed(self, ids: Sequence[str], error: str) -> None:
        """See plugin.Listener."""
        for task_id in ids:
            entry = self._entries.get(task_id)
            if entry is None:
                continue
            entry.stop_asked = ""
            if entry.machine is None:
                self._retry_later(entry)
            elif entry.machine.operation is Operation.SHUTDOWN:
                entry.problem = Failed(error, temporary=True)
                self._poke(entry)

    def released(self, answers: dict[str, str]) -> None:
        """See plugin.Listener."""
        for task_id, error in answers.items():
            entry = self._entries.get(task_id)
            if entry is None or not entry.cleaning:
                continue
            if error:
                entry.cleaning = False
                self._retry_later(entry)
            else:
                self._hands.clean(entry)

    def judged_anew(self) -> None:
        """See plugin.Listener."""
        for entry in list(self._entries.values()):
            entry.awaiting = False
            self._poke(entry)
        if self._complete_seen:
            for task_id in self._processes.ids():
                if task_id not in self._entries:
                    self._adopt_stray(task_id)
