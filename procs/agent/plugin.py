"""The conversation with the workload's plug-in: find or start its supervisord, ask it for things, notice its end.

All calls are XML-RPC in one worker thread, many tasks per call, stops before starts. An existing supervisord is
adopted, whoever started it; none is started before there is a task to run (DESIGN §7). Its death is told by a pidfd,
not by polling.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol

from ipc.topics import TaskProcess
from procs.agent.processes import EXITED, FAILED, STARTING, Instance, Processes, boot_id, start_ticks
from swarm.backoff import Backoff, BackoffPolicy
from swarm.errors import TimedOut, Unreachable
from swarm.paths import Paths
from swarm.supervisor_rpc import ALREADY_STARTED, SupervisorClient, SupervisorFault

ADD_CHUNK = 25
"""Tasks started by one call: at 2–5 ms each the answer comes well within its deadline, and news flows meanwhile."""
STOP_CHUNK = 200
CALL_TIMEOUT = 15.0
"""Seconds for one call to the plug-in."""
START_DEADLINE = 10.0
"""Seconds for a workload supervisord to come up."""
SETTLE = 0.5
"""Seconds within which the plug-in's topic must tell of a process that a call started; then a snapshot is taken."""

_CONNECT = BackoffPolicy(base=0.01, factor=1.3, cap=0.1)
_ATTACH = BackoffPolicy(base=0.1, factor=2.0, cap=4.0)


class Listener(Protocol):
    """Who asked, and is told. All on the event loop."""

    def added(self, answers: dict[str, str]) -> None:
        """Answers to `add`: empty for done, else why not."""

    def add_failed(self, ids: Sequence[str], error: str) -> None:
        """`add` got no answer: perhaps done, perhaps not. A snapshot follows or the supervisord is gone."""

    def stop_failed(self, ids: Sequence[str], error: str) -> None:
        """`stop` was not taken."""

    def released(self, answers: dict[str, str]) -> None:
        """Answers to `remove`: empty if the plug-in holds nothing of the task any more."""

    def judged_anew(self) -> None:
        """What is known of processes has changed as a whole: attached, or gone."""


class Plugin:
    """Owns the connection. `run` must be running; every method is for the event loop."""

    def __init__(self, paths: Paths, processes: Processes, log: logging.Logger) -> None:
        self._paths = paths
        self._processes = processes
        self._log = log
        self._workload = SupervisorClient(paths.workload_socket, timeout=CALL_TIMEOUT)
        self._node = SupervisorClient(paths.supervisor_socket)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="agent-workload")
        self._listener: Listener | None = None
        self._adds: list[str] = []
        self._stops: list[str] = []
        self._releases: list[str] = []
        self._look = False
        self._revive = False
        self._watched: Instance | None = None
        self._wake = asyncio.Event()
        self._lock = asyncio.Lock()
        self._pidfd = -1
        self._boot = boot_id()
        self.instance: Instance | None = None
        """The supervisord that we are attached to."""
        self.attached = False
        """Whether it is known what runs: a complete snapshot is held, or nothing runs for sure."""

    @property
    def current(self) -> str:
        """Name of the attached supervisord, empty if none."""
        return self.instance.name if self.instance else ""

    def listen(self, listener: Listener) -> None:
        self._listener = listener

    def add(self, ids: Sequence[str]) -> None:
        """Start these tasks; their spec files are written."""
        self._adds.extend(ids)
        self._wake.set()

    def stop(self, ids: Sequence[str]) -> None:
        """End these tasks: their stop signal, and the kill after their grace."""
        self._stops.extend(ids)
        self._wake.set()

    def release(self, ids: Sequence[str]) -> None:
        """Drop the plug-in's memory of tasks that have ended and whose end is stored."""
        self._releases.extend(ids)
        self._wake.set()

    def look_again(self) -> None:
        """Something hints at news that did not come (a silence, a restart): take a snapshot."""
        self._look = True
        self._wake.set()

    def revive(self) -> None:
        """Its supervisor died and took tasks along: the next one ends what those left behind, so start it now."""
        self._revive = True
        self._wake.set()

    def heard(self, words: TaskProcess, epoch: int, seq: int) -> bool:
        """A topic's news; says whether it is news. What is said to run counts only from the supervisord of today: the
        last words of a dead one may arrive after its death was seen."""
        over = words.state in (EXITED, FAILED)
        if not over and (self._watched is None or epoch < self._watched.born_ns):
            return False
        return self._processes.offer(words, epoch, seq)

    async def ensure(self) -> Instance:
        """The live supervisord, started if there is none. Raises Unreachable or SupervisorFault (both may pass)."""
        async with self._lock:
            if self.instance is not None:
                return self.instance
            if not await self._attach():
                self._lost()
                self._log.info("starting the workload supervisor")
                await self._call(_start_program, self._node)
                await self._await_birth()
            if self.instance is None:
                raise Unreachable("the workload supervisor ended right after its start")
            return self.instance

    async def run(self) -> None:
        """Attach to what runs, then serve the queues until cancelled."""
        try:
            await self._first_look()
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._adds or self._stops or self._releases or self._look:
                    await self._serve()
                if self._revive:
                    self._revive = False
                    await self._start_again()
        finally:
            self._unwatch()
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _first_look(self) -> None:
        backoff = Backoff(_ATTACH)
        while True:
            try:
                async with self._lock:
                    if not self.attached and not await self._attach():
                        self._lost()
                return
            except (Unreachable, SupervisorFault) as error:
                self._log.warning("the workload supervisor is there and does not answer: %s", error.describe())
                await asyncio.sleep(backoff.failed())

    async def _start_again(self) -> None:
        try:
            await self.ensure()
        except (Unreachable, SupervisorFault) as error:
            # Nothing is lost by that: the next task, or the next agent, starts it.
            self._log.warning("the workload supervisor is not started again: %s", error.describe())

    async def _serve(self) -> None:
        """One call: the most urgent queue first."""
        listener = self._told
        if self._look:
            self._look = False
            async with self._lock:
                await self._snapshot_or_lose()
        elif self._stops:
            ids, self._stops = self._stops[:STOP_CHUNK], self._stops[STOP_CHUNK:]
            _, error = await self._ask("workload.stop", ids)
            if error:
                listener.stop_failed(ids, error)
        elif self._adds:
            ids, self._adds = self._adds[:ADD_CHUNK], self._adds[ADD_CHUNK:]
            answer, error = await self._ask("workload.add", ids)
            if error:
                listener.add_failed(ids, error)
                self._look = True
            else:
                listener.added({task_id: str(answer.get(task_id, "")) for task_id in ids})
        else:
            ids, self._releases = self._releases[:STOP_CHUNK], self._releases[STOP_CHUNK:]
            await self._release(ids)

    async def _release(self, ids: list[str]) -> None:
        answers = dict.fromkeys(ids, "")
        if self.instance is not None:
            answer, error = await self._ask("workload.remove", ids)
            answers = {task_id: error or str(answer.get(task_id, "")) for task_id in ids}
        for task_id, error in answers.items():
            if not error:
                self._processes.forget(task_id)
        self._told.released(answers)

    async def _ask(self, method: str, ids: list[str]) -> tuple[dict[str, Any], str]:
        """The answer, or an empty one and why."""
        if self.instance is None:
            return {}, "the workload supervisor is not running"
        try:
            answer = await self._call(self._workload.call, method, ids)
        except (Unreachable, SupervisorFault, TimedOut) as error:
            self._log.warning("%s of %d tasks: %s", method, len(ids), error.describe())
            self._look = True
            return {}, error.message
        return answer if isinstance(answer, dict) else {}, ""

    async def _attach(self) -> bool:
        """Take a live supervisord and its snapshot as the present one; False: nobody listens.

        Raises Unreachable or SupervisorFault if somebody is there and does not answer.
        """
        pid = await self._call(_listener_pid, os.fspath(self._paths.workload_socket))
        ticks = start_ticks(pid)
        if not ticks:
            return False
        instance = Instance(self._boot, pid, ticks)
        self._watch(instance)
        await self._take_snapshot(instance)
        return self.instance is not None

    async def _snapshot_or_lose(self) -> None:
        instance = self.instance
        try:
            if instance is None:
                if not await self._attach():
                    self._lost()
            else:
                await self._take_snapshot(instance)
        except (Unreachable, SupervisorFault) as error:
            # Its death is told by the pidfd; anything else passes, and the next word or failed call looks again.
            self._log.warning("no snapshot of the workload: %s", error.describe())
            if self.instance is not None:
                asyncio.get_running_loop().call_later(SETTLE, self.look_again)

    async def _take_snapshot(self, instance: Instance) -> None:
        listed = json.loads(await self._call(self._workload.call, "workload.snapshot"))
        if self._pidfd < 0:
            return  # died meanwhile, and that has been told
        self._processes.born(instance.born_ns)
        for entry in listed:
            words, seq = task_process(entry), int(entry["seq"])
            # No topic yet: forked, and not yet known whether it became the task.
            self._processes.offer(words if seq else replace(words, state=STARTING), int(entry["epoch"]), seq)
        self.instance = instance
        self.attached = True
        self._told.judged_anew()

    async def _await_birth(self) -> None:
        """Wait for a supervisord just started to answer: its socket is its first sign of life."""
        backoff = Backoff(_CONNECT, uniform=lambda _, bound: bound)
        try:
            async with asyncio.timeout(START_DEADLINE):
                while True:
                    # Somebody listening who does not answer yet is a supervisord that is not yet in its loop.
                    with contextlib.suppress(Unreachable):
                        if await self._attach():
                            return
                    await asyncio.sleep(backoff.failed())
        except TimeoutError as error:
            raise Unreachable(
                f"the workload supervisor was not up within {START_DEADLINE:g} s of its start",
                remedy=f"see {self._paths.logs}",
            ) from error

    def _watch(self, instance: Instance) -> None:
        self._unwatch()
        try:
            self._pidfd = os.pidfd_open(instance.pid)
        except ProcessLookupError:
            return
        self._watched = instance
        asyncio.get_running_loop().add_reader(self._pidfd, self._died)

    def _unwatch(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
            self._watched = None

    def _died(self) -> None:
        self._log.warning("the workload supervisor has ended")
        self._unwatch()
        self._lost()

    def _lost(self) -> None:
        self.instance = None
        self.attached = True
        self._processes.died()
        self._told.judged_anew()

    @property
    def _told(self) -> Listener:
        if self._listener is None:
            raise RuntimeError("nobody listens to the plug-in")
        return self._listener

    async def _call(self, function: Callable[..., Any], *args: object) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)


def task_process(entry: dict[str, Any]) -> TaskProcess:
    """One entry of the plug-in's snapshot."""
    return TaskProcess(
        task_id=str(entry["task_id"]),
        state=str(entry["state"]),
        pid=int(entry["pid"]),
        start_ticks=int(entry["start_ticks"]),
        started_at=int(entry["started_at"]),
        exited_at=int(entry["exited_at"]),
        wait_status=int(entry["wait_status"]),
        why=str(entry["why"]),
    )


def _start_program(node: SupervisorClient) -> None:
    try:
        node.call("supervisor.startProcess", "workload", False)
    except SupervisorFault as fault:
        if fault.code != ALREADY_STARTED:
            raise


def _listener_pid(path: str) -> int:
    """Pid of the process that listens on a Unix socket; 0 if nobody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(CALL_TIMEOUT)
        try:
            connection.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return 0
        except OSError as error:
            raise Unreachable(f"{path} does not answer: {error}") from error
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", credentials)[0])
