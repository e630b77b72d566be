"""The worker against scripted hands: a plug-in that answers when the test says so, a journal that is always quick."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ipc.topics import TaskProcess
from procs.agent.database import Change, DeleteTask, PutTask, TaskRow
from procs.agent.executor import Executor, Resolved
from procs.agent.processes import WORKLOAD_ENDED, Instance, Processes, boot_id
from procs.agent.reporter import ReportQueue
from procs.agent.worker import Worker
from swarm.api import dispatcher_pb2, objects_pb2, types_pb2
from swarm.clock import SystemClock
from swarm.errors import Unreachable
from swarm.nodeconfig import NodeConfig
from swarm.workload import TaskExit

S = types_pb2.TaskState
Message = dispatcher_pb2.AssignmentsMessage
LIVE = Instance(boot_id(), 2**22 + 1, 1)
"""A workload supervisord with a pid that no process has."""
NEXT = Instance(boot_id(), 2**22 + 2, 1)


class Plugin:
    def __init__(self) -> None:
        self.attached = True
        self.instance: Instance | None = LIVE
        self.adds: list[str] = []
        self.stops: list[str] = []
        self.releases: list[str] = []
        self.looks = 0
        self.revivals = 0
        self.absent = 0
        self.listener: Any = None
        self.called = asyncio.Event()

    @property
    def current(self) -> str:
        return self.instance.name if self.instance else ""

    def listen(self, listener: Any) -> None:
        self.listener = listener

    async def ensure(self) -> Instance:
        if self.absent:
            self.absent -= 1
            raise Unreachable("nobody there")
        self.instance = self.instance or LIVE
        return self.instance

    def add(self, ids: Sequence[str]) -> None:
        self.adds.extend(ids)
        self.called.set()

    def stop(self, ids: Sequence[str]) -> None:
        self.stops.extend(ids)
        self.called.set()

    def release(self, ids: Sequence[str]) -> None:
        self.releases.extend(ids)
        self.called.set()

    def look_again(self) -> None:
        self.looks += 1

    def revive(self) -> None:
        self.revivals += 1


class Journal:
    def __init__(self) -> None:
        self.rows: dict[str, TaskRow] = {}
        self.changes: list[Change] = []

    def write(self, changes: Sequence[Change], done: Callable[[], None] | None = None) -> None:
        for change in changes:
            self.changes.append(change)
            if isinstance(change, PutTask):
                self.rows[change.row.id] = change.row
            elif isinstance(change, DeleteTask):
                self.rows.pop(change.id, None)
        if done is not None:
            asyncio.get_running_loop().call_soon(done)

    async def flush(self) -> None:
        await asyncio.sleep(0)


class Files:
    def __init__(self) -> None:
        self.prepared: list[str] = []
        self.removed: list[str] = []
        self.exits: dict[str, TaskExit] = {}
        self.directories: list[str] = []
        self.broken = ""
        self.written: dict[str, list[str]] = {}
        self.withdrawn: list[str] = []

    async def prepare(self, tasks: Sequence[Resolved]) -> dict[str, str]:
        self.prepared += [task.spec.task_id for task in tasks]
        self.written |= {t.spec.task_id: [f.name for f in t.private.files] for t in tasks if t.private}
        return {task.spec.task_id: self.broken for task in tasks}

    async def remove(self, ids: Sequence[str]) -> dict[str, str]:
        self.removed.extend(ids)
        return dict.fromkeys(ids, "")

    async def withdraw(self, ids: Sequence[str]) -> dict[str, str]:
        self.withdrawn.extend(ids)
        return dict.fromkeys(ids, "")

    async def leftovers(self) -> list[str]:
        return self.directories

    def exit(self, task_id: str) -> TaskExit | None:
        return self.exits.get(task_id)


class World:
    def __init__(self, state: Path) -> None:
        self.plugin, self.journal, self.files = Plugin(), Journal(), Files()
        self.processes, self.reports = Processes(), ReportQueue()
        self.seq = 0
        self.started: list[str] = []
        self.worker = Worker(
            executor=Executor(state=state, config=NodeConfig(), node_id=lambda: "n", euid=1, memory=state / "memory"),
            plugin=self.plugin,  # type: ignore[arg-type]
            processes=self.processes,
            files=self.files,  # type: ignore[arg-type]
            journal=self.journal,  # type: ignore[arg-type]
            reports=self.reports,
            reported=lambda: None,
            started=lambda task: self.started.append(task.id),
            clock=SystemClock(),
            log=logging.getLogger("test"),
        )

    async def assign(self, *tasks: objects_pb2.Task, complete: bool = False) -> None:
        message = Message(type=Message.COMPLETE if complete else Message.INCREMENTAL)
        for task in tasks:
            message.changes.add().assignment.task.CopyFrom(task)
        await self.worker.apply(message)
        await self.settle()

    async def remove(self, task_id: str) -> None:
        message = Message(type=Message.INCREMENTAL)
        change = message.changes.add(action=dispatcher_pb2.AssignmentChange.REMOVE)
        change.assignment.task.id = task_id
        await self.worker.apply(message)
        await self.settle()

    async def hear(self, state: str, task_id: str = "t", *, pid: int = 7, wait_status: int = 0, why: str = "") -> None:
        self.seq += 1
        words = TaskProcess(task_id, state, pid, 5, wait_status=wait_status, why=why)
        self.processes.offer(words, 1, self.seq)
        self.worker.observed(task_id)
        await self.settle()

    async def added(self, error: str = "", task_id: str = "t") -> None:
        self.worker.added({task_id: error})
        await self.settle()

    async def settle(self) -> None:
        for _ in range(30):
            await asyncio.sleep(0)

    async def until(self, predicate: Callable[[], bool]) -> None:
        """Wait for the plug-in to be asked for something, after a retry's own wait."""
        async with asyncio.timeout(5):
            while not predicate():
                self.plugin.called.clear()
                await self.plugin.called.wait()

    async def running(self, task_id: str = "t") -> None:
        await self.assign(task(S.RUNNING, task_id))
        await self.added(task_id=task_id)
        await self.hear("running", task_id)

    def status(self, task_id: str = "t") -> types_pb2.TaskStatus:
        return self.journal.rows[task_id].status

    def state(self, task_id: str = "t") -> int:
        return self.status(task_id).state

    def told(self) -> list[tuple[str, int]]:
        batch = [(r.task_id, int(r.status.state)) for r in self.reports.take()]
        self.worker.acknowledged(self.reports.arrived())
        return batch


def task(desired: int = S.RUNNING, task_id: str = "t", **fields: Any) -> objects_pb2.Task:
    made = objects_pb2.Task(id=task_id, desired_state=desired, **fields)  # type: ignore[arg-type]
    if not made.HasField("status"):
        made.status.state = S.ASSIGNED
    made.spec.container.image = "host"
    made.spec.container.command.append("/bin/app")
    return made


@asynccontextmanager
async def working(state: Path) -> AsyncIterator[World]:
    world = World(state)
    running = asyncio.create_task(world.worker.run())
    try:
        yield world
    finally:
        running.cancel()
        await asyncio.wait({running})


async def test_a_task_is_prepared_its_start_is_on_record_and_only_then_asked_for(tmp_path: Path) -> None:
    async with working(tmp_path) as world:
        await world.assign(task())
        assert world.files.prepared == ["t"]
        assert world.plugin.adds == ["t"]
        assert world.journal.rows["t"].instance == LIVE.name
        assert world.state() == S.STARTING
        await world.added()
        assert world.state() == S.STARTING, "forked is not yet running"
        await world.hear("running")
        assert (world.state(), world.status().container.pid) == (S.RUNNING, 7)
        assert world.told() == [("t", S.RUNNING)]
        assert world.journal.rows["t"].pid == 7


async def test_a_task_parks_at_ready_until_it_is_wanted(tmp_path: Path) -> None:
    async with working(tmp_path) as world:
        await world.assign(task(S.READY))
        assert (world.state(), world.plugin.adds) == (S.READY, [])
        await world.assign(task(S.RUNNING))
        assert world.plugin.adds == ["t"]


async def test_a_stop_while_the_start_is_under_way_waits_for_its_answer_and_then_stops_it(tmp_path: Path) -> None:
    async with working(tmp_path) as world:
        await world.assign(task())
        await world.assign(task(S.SHUTDOWN))
        assert world.plugin.stops == []
        await world.added()
        await world.hear("running")
        assert world.plugin.stops == ["t"]
        await world.hear("stopping")
        assert world.plugin.stops == ["t"], "asked once"
        await world.hear("exited", wait_status=15)
        assert (world.state(), world.status().container.exit_code) == (S.SHUTDOWN, 143)


async def test_a_start_that_hangs_in_its_last_step_can_be_stopped(tmp_path: Path) -> None:
    async with working(tmp_path) as world:
        await world.assign(task())
        await world.added()
        await world.hear("starting")
        await world.assign(task(S.SHUTDOWN))
        assert world.plugin.stops == ["t"]


async def test_a_task_that_never_ran_is_shut_down_at_once(tmp_path: Path) -> None:
    async with working(tmp_path) as world:
        await world.assign(task(S.READY))
        await world.assign(task(S.REMOVE))
        assert (world.state(), world.plugin.adds, world.plugin.stops) == (S.SHUTDOWN, [], [])


async def test_a_task_removed_while_its_start_is_under_way_leaves_no_process_behind(tmp_path: Path) -> None:
    async with working(tmp_path) as world:
        await world.assign(task())
        await world.remove("t")
        assert world.journal.rows["t"].removing
        assert world.plugin.releases == []
        await world.added()
        await world.hear("running")
        assert world.plugin.stops == ["t"]
        await world.hear("exited", wait_status=15)
        assert world.plugin.releases == ["t"]
        assert world.files.removed == []
        world.worker.released({"t": ""})
        await world.settle()
        assert world.files.removed == ["t"]
        assert world.journal.rows == {}
        assert world.worker.count == 0


async def test_no_status_of_a_removed_task_is_told(tmp_path: Path) -> None:
    async with working(tmp_path) as world:
        await world.running()
        await world.remove("t")
        await world.hear("exited")
        assert len(world.reports) == 0
        assert world.worker.reports(everything=True) == []


async def test_a_removal_that_the_plugin_refuses_is_tried_again(tmp_path: Path) -> None:
    async with working(tmp_path) as world:
        await world.running()
        await world.hear("exited")
        world.plugin.releases.clear()
        await world.remove("t")
        world.worker.released({"t": "still runs"})
        await world.settle()
        assert world.journal.rows["t"].removing
        await world.until(lambda: world.plugin.releases == ["t", "t"])


async def test_a_task_assigned_again_during_its_removal_is_taken_up_after_it(tmp_path: Path) -> None:
    async with working(tmp_path) as world:
        await world.assign(task(S.READY))
        await world.remove("t")
        again = task(S.READY, slot=9)
        await world.assign(again)
        world.worker.released({"t": ""})
        await world.settle()
        assert (world.journal.rows["t"].task.slot, world.state()) == (9, S.READY)


async def test_the_end_of_a_task_is_durable_before_the_plugin_may_forget_it(tmp_path: Path) -> None:
    async with working(tmp_path) as world:
        await world.running()
        assert world.plugin.releases == []
        await world.hear("exited", wait_status=2 << 8)
        assert (world.state(), world.status().err) == (S.FAILED, "task: non-zero exit (2)")
        assert world.plugin.releases == ["t"]
        assert not world.journal.rows["t"].removing


async def test_an_add_that_is_refused_because_the_task_runs_already_is_no_failure(tmp_path: Path) -> None:
    async with working(tmp_path) as world:
        await world.assign(task())
        await world.added("task t has been started already")
        assert world.plugin.looks == 1
        await world.hear("running")
        assert world.state() == S.RUNNING


async def test_an_add_that_is_refused_for_good_fails_the_task_once_a_snapshot_shows_it_is_not_there(
    tmp_path: Path,
) -> None:
    async with working(tmp_path) as world:
        await world.assign(task())
        await world.added("spec: not a TaskSpec")
        assert world.state() == S.STARTING
        world.worker.judged_anew()
        await world.settle()
        assert (world.state(), world.status().err) == (S.FAILED, "spec: not a TaskSpec")


async def test_a_step_that_failed_in_the_child_is_told(tmp_path: Path) -> None:
    async with working(tmp_path) as world:
        await world.assign(task())
        await world.added()
        await world.hear("failed", why="user 12: Operation not permitted")
        assert (world.state(), world.status().message) == (S.FAILED, "starting")
        assert world.status().err == "user 12: Operation not permitted"


async def test_a_missing_workload_shows_in_the_status_and_is_tried_again(tmp_path: Path) -> None:
    async with working(tmp_path) as world:
        world.plugin.absent = 1
        await world.assign(task())
        assert (world.state(), world.status().err) == (
            S.STARTING,
            "the workload supervisor is not there: nobody there",
        )
        await world.until(lambda: bool(world.plugin.adds))
        await world.hear("running")
        assert (world.state(), world.status().err) == (S.RUNNING, "")


async def test_a_wait_for_a_retry_ends_when_the_task_should_end(tmp_path: Path) -> None:
    async with working(tmp_path) as world:
        world.plugin.absent = 99
        await world.assign(task())
        await world.assign(task(S.SHUTDOWN))
        assert world.state() == S.SHUTDOWN


async def test_a_spec_that_cannot_be_written_rejects_the_task(tmp_path: Path) -> None:
    async with working(tmp_path) as world:
        world.files.broken = "the task's directory could not be written: disk full"
        await world.assign(task())
        assert (world.state(), world.status().err) == (S.REJECTED, world.files.broken)


async def test_a_task_that_cannot_run_here_is_rejected_and_the_others_run(tmp_path: Path) -> None:
    async with working(tmp_path) as world:
        bad = task(task_id="bad")
        bad.spec.container.hostname = "other"
        await world.assign(bad, task(task_id="good"))
        assert (world.state("bad"), world.status("bad").message) == (S.REJECTED, "resolving controller failed")
        assert world.status("bad").err.startswith("hostname cannot be honoured")
        assert world.plugin.adds == ["good"]


async def test_the_death_of_the_workload_fails_what_ran_and_asks_for_a_new_one(tmp_path: Path) -> None:
    async with working(tmp_path) as world:
        await world.running()
        world.plugin.instance = None
        world.processes.died()
        world.worker.judged_anew()
        await world.settle()
        assert (world.state(), world.status().err) == (S.FAILED, WORKLOAD_ENDED)
        assert world.plugin.revivals == 1


async def test_a_complete_set_removes_everything_else_also_what_nobody_remembers(tmp_path: Path) -> None:
    async with working(tmp_path) as world:
        world.files.directories = ["left", "kept"]
        world.processes.offer(TaskProcess("stray", "running", 9, 9), 1, 1)
        await world.assign(task(S.READY, "kept"), task(S.READY, "old"))
        await world.assign(task(S.READY, "kept"), complete=True)
        assert world.journal.rows["old"].removing
        assert world.journal.rows["left"].removing
        assert world.journal.rows["stray"].removing
        assert world.plugin.stops == ["stray"]
        assert not world.journal.rows["kept"].removing
        assert world.worker.count == 1


async def test_unknown_removals_and_other_kinds_of_objects_are_no_error(tmp_path: Path) -> None:
    async with working(tmp_path) as world:
        message = Message(type=Message.COMPLETE)
        message.changes.add().assignment.secret.id = "s"
        message.changes.add().assignment.config.id = "c"
        message.changes.add(action=dispatcher_pb2.AssignmentChange.REMOVE).assignment.volume.id = "v"
        await world.worker.apply(message)
        await world.remove("never")
        assert world.worker.count == 0


async def test_the_same_assignment_again_writes_and_tells_nothing(tmp_path: Path) -> None:
    async with working(tmp_path) as world:
        await world.running()
        world.told()
        changes = len(world.journal.changes)
        same = task()
        same.status.state = S.RUNNING
        same.meta.version.index = 9
        await world.assign(same)
        assert len(world.journal.changes) == changes
        assert len(world.reports) == 0


async def test_only_what_is_not_acknowledged_is_reported_to_a_resumed_session(tmp_path: Path) -> None:
    async with working(tmp_path) as world:
        await world.running("a")
        world.told()
        await world.running("b")
        assert [r.task_id for r in world.worker.reports(everything=False)] == ["b"]
        assert [r.task_id for r in world.worker.reports(everything=True)] == ["a", "b"]


def restored(state: int, *, instance: str = "", pid: int = 0, **fields: Any) -> TaskRow:
    row_task = task(**fields)
    row_task.ClearField("status")
    status = types_pb2.TaskStatus(state=state, message="before")  # type: ignore[arg-type]
    return TaskRow("t", row_task, status, version=3, acknowledged=3, instance=instance, pid=pid, start_ticks=5)


async def test_after_a_restart_a_running_task_is_found_again_and_nothing_is_told(tmp_path: Path) -> None:
    async with working(tmp_path) as world:
        world.plugin.attached = False
        world.worker.load([restored(S.RUNNING, instance=LIVE.name, pid=7)])
        await world.settle()
        world.processes.offer(TaskProcess("t", "running", 7, 5), 1, 1)
        world.plugin.attached = True
        world.worker.judged_anew()
        await world.settle()
        assert world.journal.changes == []
        assert len(world.reports) == 0
        assert world.plugin.adds == []


async def test_after_a_restart_a_start_that_was_never_sent_is_sent_and_one_that_was_lost_is_not(tmp_path: Path) -> None:
    for instance, state in ((LIVE.name, S.STARTING), (NEXT.name, S.FAILED), ("", S.STARTING)):
        async with working(tmp_path) as world:
            world.worker.load([restored(S.STARTING, instance=instance)])
            await world.settle()
            assert world.plugin.adds == (["t"] if state == S.STARTING else []), instance
            if state == S.FAILED:
                assert world.status().err == WORKLOAD_ENDED


async def test_after_a_restart_an_end_that_happened_meanwhile_is_read_from_its_file(tmp_path: Path) -> None:
    async with working(tmp_path) as world:
        world.plugin.instance = None
        world.files.exits["t"] = TaskExit("t", boot_id(), pid=7, start_ticks=5, wait_status=0)
        world.worker.load([restored(S.RUNNING, instance=LIVE.name, pid=7)])
        await world.settle()
        assert (world.state(), world.status().message) == (S.COMPLETE, "finished")


async def test_a_removal_goes_on_after_a_restart(tmp_path: Path) -> None:
    async with working(tmp_path) as world:
        row = restored(S.RUNNING, instance=LIVE.name, pid=7)
        row.removing = True
        world.processes.offer(TaskProcess("t", "running", 7, 5), 1, 1)
        world.worker.load([row])
        await world.settle()
        assert world.plugin.stops == ["t"]


async def test_leaving_ends_every_task_and_takes_no_more(tmp_path: Path) -> None:
    async with working(tmp_path) as world:
        await world.running()
        leaving = asyncio.create_task(world.worker.leave())
        await world.settle()
        assert world.plugin.stops == ["t"]
        await world.assign(task(task_id="more"))
        assert world.worker.count == 0
        await world.hear("exited")
        world.worker.released({"t": ""})
        async with asyncio.timeout(5):
            await leaving
        assert world.journal.rows == {}


@pytest.mark.parametrize("error", ["nobody there", "no answer in time"])
async def test_a_stop_that_was_not_taken_is_asked_for_again(tmp_path: Path, error: str) -> None:
    async with working(tmp_path) as world:
        await world.running()
        await world.assign(task(S.SHUTDOWN))
        world.worker.stop_failed(["t"], error)
        await world.settle()
        assert (world.state(), world.status().err) == (S.RUNNING, error)
        await world.until(lambda: world.plugin.stops == ["t", "t"])


def with_secret(task_id: str = "t", desired: int = S.RUNNING) -> objects_pb2.Task:
    made = task(desired, task_id)
    made.spec.container.secrets.add(secret_id="s", secret_name="s").file.name = "pw"
    return made


def secret_message(*, complete: bool) -> Message:
    message = Message(type=Message.COMPLETE if complete else Message.INCREMENTAL)
    message.changes.add().assignment.secret.id = "s"
    return message


async def test_a_task_whose_secret_did_not_come_is_rejected(tmp_path: Path) -> None:
    async with working(tmp_path) as world:
        await world.assign(with_secret(), complete=True)
        assert (world.state(), world.status().err) == (S.REJECTED, "secret s not found")


async def test_a_task_gets_its_secret_from_the_same_change_set_and_loses_it_at_its_end(tmp_path: Path) -> None:
    async with working(tmp_path) as world:
        message = Message(type=Message.COMPLETE)
        message.changes.add().assignment.task.CopyFrom(with_secret())
        message.changes.add().assignment.secret.id = "s"
        await world.worker.apply(message)
        await world.settle()
        assert world.files.written == {"t": ["secrets/pw"]}
        await world.added()
        await world.hear("running")
        assert world.files.withdrawn == []
        await world.hear("exited")
        assert (world.state(), world.files.withdrawn) == (S.COMPLETE, ["t"])


async def test_after_a_restart_a_task_waits_for_the_manager_to_send_its_secret_again(tmp_path: Path) -> None:
    row = TaskRow("t", with_secret(), types_pb2.TaskStatus(state=S.PREPARING), version=1)
    async with working(tmp_path) as world:
        world.worker.load([row])
        await world.settle()
        assert (world.files.prepared, row.status.state) == ([], S.PREPARING)
        message = secret_message(complete=True)
        message.changes.add().assignment.task.CopyFrom(with_secret())
        await world.worker.apply(message)
        await world.settle()
        assert world.files.written == {"t": ["secrets/pw"]}
        assert world.plugin.adds == ["t"]


async def test_statuses_have_the_times_of_what_happened_not_of_hearing_of_it(tmp_path: Path) -> None:
    async with working(tmp_path) as world:
        await world.assign(task())
        await world.added()
        started = world.status().timestamp.ToNanoseconds() + 1000
        world.processes.offer(TaskProcess("t", "running", 7, 5, started_at=started), 1, 1)
        world.worker.observed("t")
        await world.settle()
        assert world.status().timestamp.ToNanoseconds() == started
        world.processes.offer(TaskProcess("t", "exited", 7, 5, started_at=started, exited_at=started + 7), 1, 2)
        world.worker.observed("t")
        await world.settle()
        assert (world.state(), world.status().timestamp.ToNanoseconds()) == (S.COMPLETE, started + 7)


async def test_those_who_follow_logs_are_told_of_each_task_that_has_started(tmp_path: Path) -> None:
    async with working(tmp_path) as world:
        await world.assign(task(S.READY))
        assert world.started == []
        await world.assign(task(S.RUNNING))
        assert set(world.started) == {"t"}
