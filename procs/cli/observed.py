"""What can be known of this node from outside: from supervisord, from the bus, and with both down from its files."""

from __future__ import annotations

import os
import re
import select
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ipc import topics
from swarm.errors import Refused, SwarmvisorError, TimedOut, Unreachable
from swarm.exits import ExitCode
from swarm.paths import Paths
from swarm.supervisor_rpc import SupervisorClient, SupervisorFault

if TYPE_CHECKING:
    from ipc.bus import Bus

NODE_TOPICS = ("node", "certificate", "role", "remotes", "manager", "agent", "node.changes", "process.*")

GATHER = 1.0
"""Seconds that the last values of all live publishers may take (measured: 20 ms)."""

FAILURE_GRACE = 2.0
"""Seconds for which `failed` must stand: right after `up` it may be the news of before."""

NO_NODE = "create a swarm with `swarmvisor init`, or join one with `swarmvisor join`"
"""What to do on a host that is no node."""

B = TypeVar("B")


@dataclass
class View:
    """One look at a node. Absent parts: nobody said anything about them."""

    supervisor_pid: int = 0
    """0: the node's supervisord does not answer."""
    processes: dict[str, topics.Process] = field(default_factory=dict)
    workload_pid: int = 0
    """0: no workload supervisord answers."""
    bodies: dict[str, Any] = field(default_factory=dict)
    """Topic to the newest body, without `process.*`."""

    def body(self, topic: str, kind: type[B]) -> B | None:
        found = self.bodies.get(topic)
        return found if isinstance(found, kind) else None


def supervisor_pid(socket_path: Path) -> int:
    """The pid of the supervisord behind `socket_path`, 0 if nobody answers there."""
    try:
        pid: int = SupervisorClient(socket_path).call("supervisor.getPID")
    except Unreachable:
        return 0
    return pid


def look(paths: Paths) -> View:
    """Ask everybody once; takes at most about a second."""
    view = View(supervisor_pid(paths.supervisor_socket), workload_pid=supervisor_pid(paths.workload_socket))
    if not paths.bus.is_dir():
        return view
    from ipc.bus import Bus  # late: zmq; who starts a node loads it while supervisord starts

    with Bus(paths.bus, None, NODE_TOPICS) as bus:
        if view.supervisor_pid:
            _gather(bus, paths)
        for topic, value in bus.values().items():
            if isinstance(value.body, topics.Process):
                view.processes[value.body.name] = value.body
            else:
                view.bodies[topic] = value.body
    return view


def _gather(bus: Bus, paths: Paths) -> None:
    """Until every process that runs has said everything; a process that just starts is not waited for longer."""
    infos = SupervisorClient(paths.supervisor_socket).call("supervisor.getAllProcessInfo")
    owners = {info["name"] for info in infos if info["pid"]} & {
        topics.COORDINATOR,
        topics.RENEWER,
        topics.AGENT,
        topics.MANAGER,
    }
    deadline = time.monotonic() + GATHER
    while (left := deadline - time.monotonic()) > 0 and not _all_said(bus, {topics.SUPERVISOR, *owners}):
        bus.poll(left)


def _all_said(bus: Bus, owners: set[str]) -> bool:
    """One that has just begun is complete with nothing at all: each has something to say."""
    heard = {value.proc for value in bus.values().values()}
    return owners <= heard and all(bus.complete(owner) for owner in owners)


def wait_ready(paths: Paths, timeout: float, tell: Callable[[str], None], watch: tuple[int, ...] = ()) -> topics.Node:
    """Wait until the node is `ready` (or `locked`, which waits for an operator).

    `tell` gets each new cause in words; a readable descriptor in `watch` ends the wait (a supervisord that died).
    Raises TimedOut, Refused (no node here), SwarmvisorError naming what failed.
    """
    from ipc.bus import Bus  # late: zmq; who starts a node loads it while supervisord starts

    deadline = time.monotonic() + timeout
    failed_at: float | None = None
    said = ""
    paths.bus.mkdir(mode=0o700, parents=True, exist_ok=True)
    with Bus(paths.bus, None, NODE_TOPICS) as bus:
        while True:
            node = _body(bus, "node", topics.Node)
            trouble = _trouble(bus, paths, node)
            if node is not None and not trouble and node.state in ("ready", "locked"):
                return node
            if node is not None and node.state == "uninitialized":
                raise Refused(node.cause)
            words = trouble or (node.cause if node is not None else "waiting for the coordinator")
            if words != said:
                said = words
                tell(words)
            now = time.monotonic()
            failed_at = (failed_at or now) if trouble else None
            if failed_at is not None and now >= failed_at + FAILURE_GRACE:
                raise SwarmvisorError(f"the node failed: {trouble}")
            if now >= deadline:
                raise TimedOut(f"the node is not ready after {timeout:g} s: {words}", remedy="see `swarmvisor status`")
            if watch and select.select(watch, [], [], 0)[0]:
                raise SwarmvisorError("supervisord ended", remedy=f"see {paths.logs / 'supervisord.start.log'}")
            until = min(deadline, failed_at + FAILURE_GRACE) if failed_at is not None else deadline
            bus.poll(max(0.0, until - now), fds=watch)


def _trouble(bus: Bus, paths: Paths, node: topics.Node | None) -> str:
    """What a restart cannot mend, in words; empty if there is nothing of the kind."""
    for topic, value in sorted(bus.values().items()):
        body = value.body
        if isinstance(body, topics.Process) and is_hopeless(body):
            return explain_end(paths, body)
        if topic == "node" and node is not None and node.state == "failed":
            return node.cause
    return ""


def is_hopeless(process: topics.Process) -> bool:
    """Whether the program ended for a reason that a restart cannot mend."""
    return process.state == "EXITED" and process.exit_code in (ExitCode.CONFIG, ExitCode.USAGE)


def explain_end(paths: Paths, process: topics.Process) -> str:
    """Why a process ended: the last error in its log, else its exit code in words."""
    said = last_error(paths.logs / f"{process.name}.log")
    if said:
        return f"{process.name}: {said}"
    if process.signal:
        return f"{process.name} was ended by signal {process.signal}"
    return f"{process.name} ended with exit code {process.exit_code}; see {paths.logs / process.name}.log"


_MESSAGE = re.compile(r'level=error .*\bmsg=(?:"((?:[^"\\]|\\.)*)"|(\S+))')


def last_error(log: Path) -> str:
    """The message of the last `level=error` line in the tail of a process's log; empty if there is none."""
    try:
        with log.open("rb") as source:
            source.seek(max(0, os.fstat(source.fileno()).st_size - 65536))
            lines = source.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    for line in reversed(lines):
        found = _MESSAGE.search(line)
        if found:
            return re.sub(r"\\(.)", r"\1", found[1]) if found[1] is not None else found[2]
    return ""


def _body(bus: Bus, topic: str, kind: type[B]) -> B | None:
    value = bus.last(topic)
    return value.body if value is not None and isinstance(value.body, kind) else None


def wait_for_end(pid: int, timeout: float, what: str) -> None:
    """Wait until process `pid` (not our child) is gone. Raises TimedOut."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poller = select.poll()
        poller.register(handle, select.POLLIN)
        if not poller.poll(timeout * 1000):
            raise TimedOut(f"{what} (process {pid}) still runs after {timeout:g} s", remedy="see `swarmvisor status`")
    finally:
        os.close(handle)


def order(client: SupervisorClient, method: str, name: str, *harmless: int) -> None:
    """Start or stop a program, waiting for it; faults in `harmless` mean that it is so already."""
    try:
        client.call(method, name, True)
    except SupervisorFault as fault:
        if fault.code not in harmless:
            raise
