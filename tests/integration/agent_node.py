"""A real agent process under a scripted dispatcher: the smallest node and the smallest manager that it takes."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from ipc import topics
from ipc.aio import AsyncBus
from procs.workload.cgroup import subtree_name
from swarm.api import dispatcher_pb2, dispatcher_pb2_grpc, objects_pb2, types_pb2
from swarm.identity import new_id
from swarm.paths import Paths
from swarm.pki.credentials import Credentials
from swarm.pki.keyfile import KeyFile
from tests.tools.authority import Authority
from tests.tools.scratch import scratch

DEADLINE = 20.0
State = types_pb2.TaskState
Message = dispatcher_pb2.AssignmentsMessage

SUPERVISORD = """\
[unix_http_server]
file={runtime}/supervisord.sock
chmod=0700
[supervisord]
nodaemon=true
logfile={state}/logs/supervisord.log
pidfile={runtime}/supervisord.pid
environment=SWARMVISOR_STATE_DIR="{state}",SWARMVISOR_RUNTIME_DIR="{runtime}"
{user}
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[rpcinterface:swarmvisor]
supervisor.rpcinterface_factory=ipc.supervisor_plugin:make_node_interface
bus={runtime}/bus
[program:workload]
command={python} -m procs.workload --node test
autostart=false
autorestart=unexpected
startretries=1000000
stopwaitsecs=20
redirect_stderr=true
stdout_logfile={state}/logs/workload.log
"""


class ScriptedDispatcher(dispatcher_pb2_grpc.DispatcherServicer):
    """Says what a test wants, remembers what it is told. `Unimplemented` is what it does not serve."""

    def __init__(self) -> None:
        self.requests: list[dispatcher_pb2.SessionRequest] = []
        self.tasks: dict[str, objects_pb2.Task] = {}
        self.statuses: dict[str, list[types_pb2.TaskStatus]] = {}
        self.batches: list[int] = []
        self.heartbeats = 0
        self.streams = 0
        self.known_sessions: set[str] = set()
        self.silent = False
        self.refuse_session: tuple[grpc.StatusCode, str] | None = None
        self.refuse_update: tuple[grpc.StatusCode, str] | None = None
        self.node = objects_pb2.Node(id="node")
        self.root_ca = b""
        self.managers: list[tuple[str, str]] = []
        self._changed = asyncio.Condition()
        self._assignments: list[asyncio.Queue[Message | None]] = []
        self._sessions: list[asyncio.Queue[dispatcher_pb2.SessionMessage | None]] = []

    # -- what a test does --------------------------------------------------------------------------

    async def until(self, predicate: Callable[[], Any], what: str, deadline: float = DEADLINE) -> Any:
        async with asyncio.timeout(deadline), self._changed:
            try:
                await self._changed.wait_for(predicate)
            except asyncio.CancelledError:
                sys.stderr.write(f"still waiting for {what}; statuses: {self.words()}\n")
                raise
        return predicate()

    def words(self) -> dict[str, list[tuple[str, str, str]]]:
        return {
            task_id[:4]: [(State.Name(s.state), s.message, s.err) for s in statuses]
            for task_id, statuses in self.statuses.items()
        }

    def state(self, task_id: str) -> int:
        return self.statuses[task_id][-1].state if self.statuses.get(task_id) else -1

    async def reached(self, task_id: str, state: int, deadline: float = DEADLINE) -> types_pb2.TaskStatus:
        await self.until(lambda: self.state(task_id) >= state, f"{task_id} {State.Name(state)}", deadline)
        return self.statuses[task_id][-1]

    def send(self, message: Message | None) -> None:
        for queue in self._assignments:
            queue.put_nowait(message)

    def assign(self, *tasks: objects_pb2.Task) -> None:
        message = Message(type=Message.INCREMENTAL)
        for task in tasks:
            self.tasks[task.id] = task
            message.changes.add().assignment.task.CopyFrom(task)
        self.send(message)

    def desire(self, task_id: str, state: int) -> None:
        task = objects_pb2.Task()
        task.CopyFrom(self.tasks[task_id])
        task.desired_state = state
        self.assign(task)

    def remove(self, *ids: str) -> None:
        message = Message(type=Message.INCREMENTAL)
        for task_id in ids:
            del self.tasks[task_id]
            change = message.changes.add(action=dispatcher_pb2.AssignmentChange.REMOVE)
            change.assignment.task.id = task_id
        self.send(message)

    def end_sessions(self) -> None:
        for queue in self._sessions:
            queue.put_nowait(None)

    def say(self) -> None:
        for queue in self._sessions:
            queue.put_nowait(self.session_message(""))

    def session_message(self, session_id: str) -> dispatcher_pb2.SessionMessage:
        message = dispatcher_pb2.SessionMessage(session_id=session_id, node=self.node, RootCA=self.root_ca)
        for node_id, addr in self.managers:
            message.managers.add(weight=10).peer.CopyFrom(types_pb2.Peer(node_id=node_id, addr=addr))
        return message

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    # -- what an agent asks ------------------------------------------------------------------------

    async def Session(  # noqa: N802
        self, request: dispatcher_pb2.SessionRequest, context: Any
    ) -> AsyncIterator[dispatcher_pb2.SessionMessage]:
        self.requests.append(request)
        await self._notify()
        if self.silent:
            await asyncio.get_running_loop().create_future()
        if self.refuse_session is not None:
            await context.abort(*self.refuse_session)
        session_id = request.session_id if request.session_id in self.known_sessions else new_id()
        self.known_sessions.add(session_id)
        queue: asyncio.Queue[dispatcher_pb2.SessionMessage | None] = asyncio.Queue()
        self._sessions.append(queue)
        try:
            yield self.session_message(session_id)
            while (message := await queue.get()) is not None:
                message.session_id = session_id
                yield message
        finally:
            self._sessions.remove(queue)

    async def Heartbeat(  # noqa: N802
        self, request: dispatcher_pb2.HeartbeatRequest, context: Any
    ) -> dispatcher_pb2.HeartbeatResponse:
        if request.session_id not in self.known_sessions:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "session invalid")
        self.heartbeats += 1
        await self._notify()
        response = dispatcher_pb2.HeartbeatResponse()
        response.period.FromMilliseconds(200)
        return response

    async def UpdateTaskStatus(  # noqa: N802
        self, request: dispatcher_pb2.UpdateTaskStatusRequest, context: Any
    ) -> dispatcher_pb2.UpdateTaskStatusResponse:
        if request.session_id not in self.known_sessions:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "session invalid")
        if self.refuse_update is not None:
            refusal, self.refuse_update = self.refuse_update, None
            await context.abort(*refusal)
        self.batches.append(len(request.updates))
        for update in request.updates:
            self.statuses.setdefault(update.task_id, []).append(update.status)
        await self._notify()
        return dispatcher_pb2.UpdateTaskStatusResponse()

    async def Assignments(  # noqa: N802
        self, request: dispatcher_pb2.AssignmentsRequest, context: Any
    ) -> AsyncIterator[Message]:
        queue: asyncio.Queue[Message | None] = asyncio.Queue()
        self._assignments.append(queue)
        self.streams += 1
        number = 1
        complete = Message(type=Message.COMPLETE, results_in=str(number))
        for task in self.tasks.values():
            complete.changes.add().assignment.task.CopyFrom(task)
        try:
            yield complete
            await self._notify()
            while (given := await queue.get()) is not None:
                message = Message()
                message.CopyFrom(given)
                message.applies_to = message.applies_to or str(number)
                number += 1
                message.results_in = str(number)
                yield message
        finally:
            self._assignments.remove(queue)


class AgentNode:
    """The processes of a worker that an agent needs around it, played by the test."""

    def __init__(self, base: Path, authority: Authority) -> None:
        self.paths = Paths(state=base / "state", runtime=base / "run")
        self.authority = authority
        for directory in (self.paths.logs, self.paths.bus, self.paths.certificates):
            directory.mkdir(mode=0o700, parents=True)
        self.paths.node_toml.write_text('hostname = "worker"\n')
        self.credentials = self.install(authority.issue("worker"))
        self.agent: asyncio.subprocess.Process | None = None
        self.supervisord: asyncio.subprocess.Process | None = None
        self.renewer = AsyncBus(self.paths.bus, topics.RENEWER)
        self.coordinator = AsyncBus(self.paths.bus, topics.COORDINATOR)
        self.bus = AsyncBus(self.paths.bus, None, ("agent", "node.changes", "managers", "task.*"))

    def install(self, credentials: Credentials) -> Credentials:
        self.paths.root_cert.write_bytes(credentials.root_pem)
        KeyFile.of(self.paths).write(credentials.certificate_pem, credentials.key_pem)
        return credentials

    def publish_certificate(self) -> None:
        held = self.credentials
        self.renewer.publish(
            "certificate",
            topics.Certificate(
                state="valid",
                node_id=held.node_id,
                cluster_id=held.cluster_id,
                role=held.role,
                not_before=held.not_before,
                not_after=held.not_after,
                issuer_subject=held.issuer_subject,
                issuer_public_key=held.issuer_public_key,
                fingerprint=held.fingerprint,
                root_digest=held.root_digest,
            ),
        )

    def publish_remotes(self, *addrs: str) -> None:
        managers = tuple(topics.ManagerAddress(f"manager{i}", addr, 10) for i, addr in enumerate(addrs))
        self.coordinator.publish("remotes", topics.Remotes(managers))

    async def start_supervisord(self) -> None:
        text = SUPERVISORD.format(
            runtime=self.paths.runtime,
            state=self.paths.state,
            python=sys.executable,
            user="user=root" if os.geteuid() == 0 else "",
        )
        self.paths.supervisor_conf.write_text(text)
        self.supervisord = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "supervisor.supervisord", "-c", str(self.paths.supervisor_conf),
            stdout=asyncio.subprocess.DEVNULL,
        )  # fmt: skip

    async def start_agent(self, *program: str) -> asyncio.subprocess.Process:
        """`program`: what Python runs in place of the agent's module."""
        log = (self.paths.logs / "agent.log").open("ab")
        self.agent = await asyncio.create_subprocess_exec(
            sys.executable, *(program or ("-m", "procs.agent")), "--log-level", "debug",
            "--state-dir", str(self.paths.state), "--runtime-dir", str(self.paths.runtime), stderr=log,
        )  # fmt: skip
        log.close()
        return self.agent

    async def kill_agent(self, number: int = signal.SIGKILL) -> int:
        assert self.agent is not None
        self.agent.send_signal(number)
        code = await self.agent.wait()
        self.agent = None
        return code

    async def agent_says(self, state: str, deadline: float = DEADLINE) -> topics.Agent:
        pid = self.agent.pid if self.agent else 0
        value = await self.bus.wait("agent", lambda v: v.pid == pid and v.body.state == state, deadline)
        body: topics.Agent = value.body
        return body

    async def acknowledgements_stored(self) -> None:
        """Wait until the agent's database knows that the manager has every status."""

        def stored() -> bool:
            with closing(sqlite3.connect(f"file:{self.paths.agent_db}?mode=ro", uri=True)) as database:
                (open_ones,) = database.execute("SELECT count(*) FROM tasks WHERE acknowledged < version").fetchone()
            return bool(open_ones == 0)

        await eventually(stored, "all acknowledgements are stored")

    def workload_pid(self) -> int:
        try:
            return int(self.paths.workload_pid.read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def log(self) -> str:
        path = self.paths.logs / "agent.log"
        return path.read_text() if path.exists() else ""

    async def close(self) -> None:
        if self.agent is not None:
            await self.kill_agent()
        if self.supervisord is not None:
            self.supervisord.terminate()
            await asyncio.wait_for(self.supervisord.wait(), DEADLINE)
        pid = self.workload_pid()
        if alive(pid):  # one that an earlier supervisord started
            os.kill(pid, signal.SIGKILL)
            await gone(pid)
        for bus in (self.renewer, self.coordinator, self.bus):
            bus.close()
        name = subtree_name(self.paths.state)
        for root in [Path(at) / name for at, names, _ in os.walk("/sys/fs/cgroup") if name in names]:
            if (root / "cgroup.kill").exists():
                (root / "cgroup.kill").write_text("1")
            await eventually(lambda root=root: _rmdir(root), "the cgroups are empty")  # type: ignore[misc]


def _rmdir(root: Path) -> bool:
    for at, _, _ in os.walk(root, topdown=False):
        try:
            os.rmdir(at)
        except OSError:
            return False
    return True


def alive(pid: int) -> bool:
    """Whether `pid` runs (a zombie does not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes() if pid else b""
    except (FileNotFoundError, ProcessLookupError):
        return False
    return bool(stat) and stat.rpartition(b")")[2].split()[0] not in (b"Z", b"X")


async def eventually(found: Callable[[], Any], what: str, deadline: float = DEADLINE) -> Any:
    """The first true answer: for things that nobody announces."""
    end = time.monotonic() + deadline
    while not (answer := found()):
        assert time.monotonic() < end, f"not within {deadline} s: {what}"
        await asyncio.sleep(0.01)
    return answer


async def gone(pid: int) -> None:
    await eventually(lambda: not alive(pid), f"process {pid} has ended")


@asynccontextmanager
async def serving(authority: Authority, dispatcher: ScriptedDispatcher) -> AsyncIterator[str]:
    """A manager's remote API on a free port; its address."""
    held = authority.issue("manager")
    server = grpc.aio.server()
    dispatcher_pb2_grpc.add_DispatcherServicer_to_server(dispatcher, server)
    tls = grpc.ssl_server_credentials(
        [(held.key_pem, held.certificate_pem)], authority.root.certs, require_client_auth=True
    )
    port = server.add_secure_port("127.0.0.1:0", tls)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@asynccontextmanager
async def agent_node(authority: Authority, *addrs: str, supervisord: bool = True) -> AsyncIterator[AgentNode]:
    """A node whose certificate and managers are published, with supervisord, without an agent yet."""
    with scratch() as base:
        node = AgentNode(base, authority)
        async with node.renewer, node.coordinator, node.bus:
            node.publish_certificate()
            node.publish_remotes(*addrs)
            if supervisord:
                await node.start_supervisord()
            try:
                yield node
            except BaseException:
                sys.stderr.write(node.log())
                raise
            finally:
                await node.close()


def task(*command: str, desired: int = State.RUNNING, **container: Any) -> objects_pb2.Task:
    """A task as the scheduler assigns it."""
    made = objects_pb2.Task(id=new_id(), service_id=new_id(), slot=1, desired_state=desired)  # type: ignore[arg-type]
    made.service_annotations.name = "web"
    made.status.state = State.ASSIGNED
    made.status.message = "scheduler assigned task to node"
    made.spec.container.image = "host"
    made.spec.container.command.extend(command)
    made.spec.container.stop_grace_period.FromSeconds(5)
    for name, value in container.items():
        field = getattr(made.spec.container, name)
        if isinstance(value, list):
            field.extend(value)
        else:
            setattr(made.spec.container, name, value)
    return made
