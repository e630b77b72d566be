"""What runs inside the workload's supervisord: the RPC namespace `workload`, and the topics `task.<id>` (DESIGN §7).

    [rpcinterface:workload]
    supervisor.rpcinterface_factory = procs.workload.plugin:make_workload_interface
    state = <state directory>
    runtime = <runtime directory>

Methods carry ids only (supervisord logs the body of a request that fails); what to run is in `tasks/<id>/spec`.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from supervisor import events
from supervisor.states import SupervisorStates
from supervisor.xmlrpc import Faults, RPCError

from ipc.supervisor_plugin import LoopWaker, SupervisorBus, before_cleanup, on_event
from ipc.topics import WORKLOAD
from ipc.topics import TaskProcess as TaskTopic
from procs.workload.cgroup import Cgroups
from procs.workload.config import GROUP, TaskConfig, check_id, check_spec
from procs.workload.containment import Containment
from procs.workload.endings import Endings
from procs.workload.marked import MarkedProcesses
from procs.workload.task import Surroundings, TaskProcess, as_topic, highest_descriptor, printable
from procs.workload.timers import LoopTimers
from swarm.errors import SwarmvisorError
from swarm.paths import Paths
from swarm.workload import EXIT, SPEC, TaskSpec

SWEEP_PERIOD = 0.2
"""Seconds between two attempts to free cgroups whose last process is still dying."""
CLOSE_DEADLINE = 5.0
"""Seconds at the end for exit files to be written and cgroups to empty."""
TROUBLE_PERIOD = 1.0
"""Seconds between two looks at what the writer of exit files complains of."""


class Workload:
    """The table of tasks in this supervisord. Methods raise SwarmvisorError; the interface makes texts of that."""

    def __init__(self, supervisord: Any, paths: Paths) -> None:
        self._supervisord = supervisord
        self._options = supervisord.options
        self._logger = supervisord.options.logger
        self._paths = paths
        self._table: dict[str, TaskProcess] = {}
        self._sweeping = False
        # The order matters: each handler of SupervisorRunningEvent builds on those subscribed before it.
        self.waker = LoopWaker(supervisord)
        self.bus = SupervisorBus(supervisord, paths.bus, WORKLOAD, self.waker)
        self._timers = LoopTimers(self._logger.critical)
        self._timers.install(self._options.poller)
        self._endings = Endings(lambda task_id: paths.task(task_id) / EXIT)
        self._containment = choose_containment(paths, self._logger.warn)
        self._containment.end_all()
        self._logger.info("tasks are held together by: %(way)s", way=self._containment.name)
        self._surroundings = Surroundings(
            containment=self._containment,
            endings=self._endings,
            timers=self._timers,
            published=self._publish,
            boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            oom_score_adj=int(Path("/proc/self/oom_score_adj").read_text()),
            highest_fd=highest_descriptor(),
        )
        on_event(supervisord, events.SupervisorRunningEvent, lambda _: self._look_for_trouble())
        before_cleanup(supervisord, self._close)

    def add(self, task_id: str) -> None:
        """Start a task, once. A spec that can be read makes a task, whatever becomes of it."""
        if self._options.mood < SupervisorStates.RUNNING:
            raise SwarmvisorError("the workload supervisor is shutting down")
        check_id(task_id)
        if task_id in self._table:
            raise SwarmvisorError(f"task {task_id} has been started already")
        directory = self._paths.task(task_id)
        if (directory / EXIT).exists():
            raise SwarmvisorError(f"task {task_id} has ended already: {directory / EXIT} says how")
        try:
            spec = check_spec(TaskSpec.load(directory / SPEC), task_id)
        except OSError as error:
            raise SwarmvisorError(f"{directory / SPEC}: {error.strerror}") from error
        group = self._group()
        process = TaskConfig(self._options, spec, directory, self._surroundings).make_process(group)
        self._table[task_id] = group.processes[task_id] = process
        process.spawn()

    def stop(self, task_id: str) -> None:
        """Stop signal, grace, end of everything. Nothing for a task that is stopping or has ended."""
        process = self._known(task_id)
        if not process.ended:
            _raise_text(process.stop())

    def signal(self, task_id: str, number: int) -> None:
        """A signal to the main process of a running task."""
        _raise_text(self._known(task_id).signal(number))

    def remove(self, task_id: str) -> None:
        """Forget a task that has ended; one that is not known is forgotten already."""
        process = self._table.get(check_id(task_id))
        if process is not None and not process.ended:
            raise SwarmvisorError(f"task {task_id} still runs as pid {process.pid}: stop it first")
        if process is not None:
            del self._table[task_id]
            self._group().processes.pop(task_id, None)
            self.bus.retire(f"task.{task_id}")

    def give_up_endings(self, ids: list[str]) -> None:
        """These are to be removed, so their exit files need not be written: at once for all, since the writer would
        otherwise always be at the next one."""
        self._endings.forget(ids)

    def snapshot(self) -> list[dict[str, Any]]:
        """Every task, with the epoch of this publisher and the seq of its topic's newest value (0: none yet)."""
        epoch = self.bus.epoch
        return [
            {**as_topic(process), "epoch": epoch, "seq": self.bus.seq(f"task.{task_id}")}
            for task_id, process in self._table.items()
        ]

    def _known(self, task_id: str) -> TaskProcess:
        try:
            return self._table[check_id(task_id)]
        except KeyError:
            raise SwarmvisorError(f"task {task_id} is not known to this workload supervisor") from None

    def _group(self) -> Any:
        """The group of all tasks, also after somebody's `supervisorctl remove`."""
        if GROUP not in self._supervisord.process_groups:
            config = next(c for c in self._options.process_group_configs if c.name == GROUP)
            self._supervisord.add_process_group(config)
            self._supervisord.process_groups[GROUP].processes.update(self._table)
        return self._supervisord.process_groups[GROUP]

    def _publish(self, process: TaskProcess) -> None:
        self.bus.publish(f"task.{process.task_id}", TaskTopic(**as_topic(process)), f"workload:{process.word}")
        if process.ended and not self._sweeping:
            self._sweeping = True
            self._timers.call_later(0.0, self._sweep)

    def _sweep(self) -> None:
        self._sweeping = self._containment.sweep()
        if self._sweeping:
            self._timers.call_later(SWEEP_PERIOD, self._sweep)

    def _look_for_trouble(self) -> None:
        while self._endings.troubles:
            self._logger.critical(self._endings.troubles.popleft())
        self._timers.call_later(TROUBLE_PERIOD, self._look_for_trouble)

    def _close(self) -> None:
        for task_id in self._endings.close(CLOSE_DEADLINE):
            self._logger.critical("%(path)s: not written", path=self._paths.task(task_id) / EXIT)
        self._containment.close(CLOSE_DEADLINE)


class WorkloadInterface:
    """XML-RPC namespace `workload`. One answer per id: empty, or what went wrong; a Fault only for a senseless call."""

    def __init__(self, workload: Workload, logger: Any) -> None:
        self._workload = workload
        self._logger = logger

    def add(self, ids: list[str]) -> dict[str, str]:
        """Start the tasks with these ids, each described by tasks/<id>/spec

        An empty answer: the task exists, and `task.<id>` says whether it runs or why it could not be started. A text:
        no task came to be (bad id, unusable spec, started before), and no topic follows.

        @param array ids
        @return struct  id to error text
        """
        return self._each(ids, self._workload.add)

    def stop(self, ids: list[str]) -> dict[str, str]:
        """Send each task its stop signal, and end all its processes after its grace period

        @param array ids
        @return struct  id to error text
        """
        return self._each(ids, self._workload.stop)

    def signal(self, ids: list[str], signum: int) -> dict[str, str]:
        """Send a signal to the main process of each task

        @param array ids
        @param int signum
        @return struct  id to error text
        """
        if not isinstance(signum, int) or isinstance(signum, bool):
            raise RPCError(Faults.INCORRECT_PARAMETERS, "signum: not a number")
        return self._each(ids, lambda task_id: self._workload.signal(task_id, signum))

    def remove(self, ids: list[str]) -> dict[str, str]:
        """Forget tasks that have ended, their topics and cgroups

        After this returned nothing is written into tasks/<id> any more: removing that directory is the caller's.

        @param array ids
        @return struct  id to error text
        """
        return self._each(ids, self._workload.remove, before=self._workload.give_up_endings)

    def snapshot(self) -> str:
        """All tasks: a JSON array of objects with the fields of ipc.topics.TaskProcess, and epoch and seq to merge it
        with the topics

        One text, because XML-RPC's own structs take the reader of 1,000 tasks 0.2 s, and know no numbers above 32 bits.

        @return string  JSON
        """
        try:
            return json.dumps(self._workload.snapshot())
        except Exception as error:
            self._logger.critical("snapshot: %(trace)s", trace=traceback.format_exc())
            raise RPCError(Faults.FAILED, f"internal error: {type(error).__name__}; see the log") from error

    def _each(
        self, ids: object, act: Callable[[str], None], before: Callable[[list[str]], None] | None = None
    ) -> dict[str, str]:
        if not isinstance(ids, list) or not all(isinstance(task_id, str) for task_id in ids):
            raise RPCError(Faults.INCORRECT_PARAMETERS, "ids: not an array of strings")
        if before is not None:
            before(ids)
        answers: dict[str, str] = {}
        for task_id in dict.fromkeys(ids):
            try:
                act(task_id)
                answers[task_id] = ""
            except SwarmvisorError as error:
                answers[task_id] = printable(error.describe())
            except Exception as error:  # noqa: BLE001 - told to the caller and the log; the other ids go on
                self._logger.critical("%(id)r: %(trace)s", id=task_id, trace=traceback.format_exc())
                answers[task_id] = printable(f"{type(error).__name__}: {error}")
        self._workload.waker.wake()
        return answers


def choose_containment(paths: Paths, warn: Callable[[str], None]) -> Containment:
    """Cgroups where this process may make and enter them, else marks."""
    try:
        return Cgroups.of_this_process(paths.state)
    except OSError as error:
        why = f"no right to cgroups ({error.strerror or error})"
    marked = MarkedProcesses(why, lambda: os.listdir(paths.tasks) if paths.tasks.exists() else [])
    marked.become_subreaper()
    warn(f"{why}: a task that daemonizes and empties its environment escapes its end")
    return marked


def _raise_text(text: str | None) -> None:
    if text:
        raise SwarmvisorError(text)


def make_workload_interface(supervisord: Any, **config: str) -> WorkloadInterface:
    """The factory that supervisord calls. ValueError keeps it from starting, with this text in its log."""
    if set(config) != {"state", "runtime"}:
        raise ValueError(f"[rpcinterface:workload] needs state=<directory> and runtime=<directory>, got {config!r}")
    paths = Paths(state=Path(config["state"]), runtime=Path(config["runtime"]))
    return WorkloadInterface(Workload(supervisord, paths), supervisord.options.logger)
