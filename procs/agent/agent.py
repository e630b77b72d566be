"""The agent: what it hears on the bus, its sessions with managers, its tasks; put together on one event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ipc import topics
from ipc.aio import AsyncBus, Value
from procs.agent import session
from procs.agent.database import Database, PutSession, SessionRow
from procs.agent.description import describe
from procs.agent.executor import Executor
from procs.agent.files import TaskFiles
from procs.agent.journal import Journal
from procs.agent.link import Link, SessionEnded
from procs.agent.logs import LogPublisher
from procs.agent.plugin import Plugin
from procs.agent.processes import Processes
from procs.agent.reporter import Report, ReportQueue
from procs.agent.session import SessionBrain, Target
from procs.agent.verdict import refusal
from procs.agent.worker import Worker
from swarm import logs
from swarm.api import dispatcher_pb2, objects_pb2, specs_pb2, types_pb2
from swarm.backoff import Backoff, BackoffPolicy
from swarm.clock import Clock
from swarm.dial import MANAGER_NAME, control_channel, remote_channel
from swarm.errors import BadInput, Refused, SwarmvisorError
from swarm.metrics import Metrics, Sample
from swarm.nodeconfig import NodeConfig
from swarm.paths import Paths
from swarm.pki.held import Credentials, read_published
from swarm.remotes import Peer
from swarm.tmpfs import tasks_in_memory

if TYPE_CHECKING:
    import grpc.aio

HEARD = ("certificate", "manager", "remotes", "node", "task.*")

DESCRIPTION_PERIOD = 20.0
"""Seconds between two looks at what the managers were told of this node (SwarmKit's)."""
_RELOAD = BackoffPolicy(base=0.2, factor=2.0, cap=8.0)
_ROLES = {types_pb2.WORKER: topics.WORKER_ROLE, types_pb2.MANAGER: topics.MANAGER_ROLE}


class Agent:
    """Implements `link.Ports`. `run` works until cancelled and raises what cannot be mended here."""

    def __init__(
        self,
        *,
        paths: Paths,
        config: NodeConfig,
        database: Database,
        bus: AsyncBus,
        metrics: Metrics,
        clock: Clock,
        log: logging.Logger,
    ) -> None:
        self._paths = paths
        self._config = config
        self._bus = bus
        self._log = log
        self._clock = clock
        self._remembered, rows = database.load()
        self._journal = Journal(database)
        memory = _memory(paths, log)
        self._files = TaskFiles(paths, memory)
        self._processes = Processes()
        self._plugin = Plugin(paths, self._processes, log)
        self._reports = ReportQueue()
        self._reports_waiting = asyncio.Event()
        self._credentials: Credentials | None = None
        self._logs = LogPublisher(directory=paths.task, node_id=self._node_id, log=log)
        self._executor = Executor(state=paths.state, config=config, node_id=self._node_id, memory=memory)
        self._worker = Worker(
            executor=self._executor,
            plugin=self._plugin,
            processes=self._processes,
            files=self._files,
            journal=self._journal,
            reports=self._reports,
            reported=self._reports_waiting.set,
            started=self._logs.started,
            clock=clock,
            log=log,
        )
        self._logs.of(self._worker.tasks)
        self._worker.load(rows)
        self._brain = SessionBrain(session_id=self._remembered.session_id)
        self._description: types_pb2.NodeDescription | None = None
        self._said = session.Say("waiting", why="waiting for a certificate")
        self._assigned = False
        self._under = topics.Under()
        self._node = objects_pb2.Node()
        self._closing = ""
        self._leaving = False
        self._session: asyncio.Task[None] | None = None
        self._begun = False
        """Whether the present session's task has run at all."""
        self._resting: asyncio.TimerHandle | None = None
        self._reload: asyncio.TimerHandle | None = None
        self._reload_backoff = Backoff(_RELOAD)
        self._group: asyncio.TaskGroup | None = None
        self._sessions = metrics.counter("swarmvisor_agent_sessions_total", "Sessions by how they went.", ("event",))
        metrics.add_source(self._samples)

    async def run(self) -> None:
        """Work until cancelled."""
        self._publish()
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                for name, part in {
                    "journal": self._journal.run(),
                    "plugin": self._plugin.run(),
                    "worker": self._worker.run(),
                    "listen": self._listen(),
                    "description": self._watch_description(),
                }.items():
                    group.create_task(part, name=name)
        finally:
            for timer in (self._resting, self._reload):
                if timer is not None:
                    timer.cancel()
            await self._logs.close()
            self._files.close()
            self._journal.close()

    def stop(self) -> None:
        """The agent is about to be cancelled: open no session any more."""
        self._group = None

    def leave(self) -> None:
        """The node leaves the swarm: close the session, end and remove all tasks, take no new ones, then say `left`."""
        if self._group is None or self._leaving:
            return
        self._leaving = True
        self._said = session.Say("waiting", why="the node leaves the swarm: ending its tasks")
        self._publish()
        self._perform(self._brain.left())
        self._group.create_task(self._end_tasks(), name="leave")

    # -- the bus -------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        async for value in self._bus.updates():
            await self._hear(value)

    async def _hear(self, value: Value) -> None:
        match value.body:
            case topics.TaskProcess() as words:
                if self._plugin.heard(words, value.epoch, value.seq):
                    self._worker.observed(words.task_id)
            case topics.Certificate() as certificate:
                await self._certificate(certificate)
            case topics.Manager() as manager:
                self._perform(self._brain.local_manager(ready=manager.state == "ready", epoch=value.epoch))
            case topics.Remotes(managers):
                self._perform(self._brain.managers((Peer(m.node_id, m.addr), m.weight) for m in managers))
            case topics.Node(state="leaving"):
                self.leave()

    async def _certificate(self, certificate: topics.Certificate) -> None:
        if not certificate.fingerprint or certificate.state == "locked":
            why = certificate.why or f"waiting for a certificate ({certificate.state})"
            self._perform(self._brain.no_certificate(why))
            return
        held = self._credentials
        known = held and (held.fingerprint, held.root_digest) == (certificate.fingerprint, certificate.root_digest)
        self._perform(self._brain.dates(expired=certificate.state == "expired", known=bool(known)))
        if known:
            return
        await self._load_certificate(certificate)

    async def _load_certificate(self, certificate: topics.Certificate) -> None:
        try:
            # In a thread: it may wait for the key file's lock.
            credentials = await asyncio.to_thread(_credentials, self._paths, certificate)
        except (SwarmvisorError, FileNotFoundError) as error:
            why = error.describe() if isinstance(error, SwarmvisorError) else str(error)
            self._log.warning("the certificate cannot be read: %s", why)
            self._perform(self._brain.no_certificate(why))
            self._reload = asyncio.get_running_loop().call_later(
                self._reload_backoff.failed(), self._load_again, certificate
            )
            return
        self._reload_backoff.reset()
        self._take(credentials)

    def _load_again(self, certificate: topics.Certificate) -> None:
        if self._group is not None:
            self._group.create_task(self._load_certificate(certificate), name="certificate")

    def _take(self, credentials: Credentials) -> None:
        logs.set_node_id(credentials.node_id)
        if self._remembered.node_id not in ("", credentials.node_id):
            self._log.warning("the tasks on record are those of node %s; removing them", self._remembered.node_id)
            self._worker.discard()
            self._brain.session_id = ""
        self._remembered = SessionRow(node_id=credentials.node_id)
        self._credentials = credentials
        self._perform(self._brain.certificate(credentials.node_id, credentials.fingerprint, credentials.root_digest))

    # -- sessions ------------------------------------------------------------------------------------

    def _perform(self, effects: list[session.Effect]) -> None:
        for effect in effects:
            match effect:
                case session.Open(target, session_id):
                    self._open(target, session_id)
                case session.Close(why):
                    self._closing = why
                    # A task that is cancelled before its first step never runs: it would not say that it ended.
                    if self._session is not None and self._begun:
                        self._session.cancel()
                case session.Rest(seconds):
                    loop = asyncio.get_running_loop()
                    self._resting = loop.call_later(seconds, lambda: self._perform(self._brain.rested()))
                case session.Say():
                    self._said = effect
                    self._publish()

    def _open(self, target: Target, session_id: str) -> None:
        if self._group is None:
            return  # the agent ends
        if self._credentials is None:
            raise AssertionError("a session is opened only under a certificate")
        self._closing = ""
        self._begun = False
        self._assigned = False
        credentials = self._credentials
        self._under = topics.Under(credentials.fingerprint, credentials.root_digest)
        self._session = self._group.create_task(self._hold(target, session_id, credentials), name="session")

    async def _hold(self, target: Target, session_id: str, credentials: Credentials) -> None:
        """One session from its first packet to its end, which the brain is told."""
        self._begun = True
        if self._closing:  # before its first step
            self._session = None
            self._perform(self._brain.ended(self._closing))
            return
        channel = self._channel(target, credentials)
        self._description = self._describe(credentials)
        self._log.info("opening a session with %s", target.addr)
        link = Link(
            channel,
            description=self._description,
            session_id=session_id,
            reports=self._reports,
            reports_waiting=self._reports_waiting,
            ports=self,
            logs=self._logs,
            log=self._log,
        )
        refused = ""
        try:
            await link.run()
        except SessionEnded as error:
            why = error.message
            self._log.warning("session with %s: %s", target.addr, why)
            self._sessions.labels("failed").inc()
            if not target.local and await _learn(target.addr, credentials.root_pem):
                self._log.warning(
                    "%s speaks TLS as Go does and grpc does not; tunnelling to it from now on", target.addr
                )
            refused = await refusal(
                error.__cause__, target.addr, credentials, first=not session_id, now=self._clock.wall_ns() / 1e9
            )
        except asyncio.CancelledError:
            if not self._closing:
                raise  # the whole agent ends
            why = self._closing
            self._log.info("closed the session with %s: %s", target.addr, why)
            self._sessions.labels("closed").inc()
        finally:
            await channel.close()
        self._session = None
        self._perform(self._brain.ended(refused or why, refused=bool(refused)))

    def _channel(self, target: Target, credentials: Credentials) -> grpc.aio.Channel:
        if target.local:
            return control_channel(self._paths, credentials.root_pem)
        return remote_channel(target.addr, credentials, credentials.root_pem)

    async def _watch_description(self) -> None:
        while True:
            await asyncio.sleep(DESCRIPTION_PERIOD)
            credentials, told = self._credentials, self._description
            if credentials is not None and told is not None and self._describe(credentials) != told:
                self._perform(self._brain.description_changed())

    def _describe(self, credentials: Credentials) -> types_pb2.NodeDescription:
        tls = types_pb2.NodeTLSInfo(
            trust_root=credentials.root_pem,
            cert_issuer_subject=credentials.issuer_subject,
            cert_issuer_public_key=credentials.issuer_public_key,
        )
        return describe(self._config, tls)

    # -- link.Ports ----------------------------------------------------------------------------------

    def session_message(self, message: dispatcher_pb2.SessionMessage, *, foreign: bool) -> None:
        """See link.Ports."""
        if message.HasField("node"):
            self._node = message.node
            try:
                self._executor.configure(vxlan_port=message.node.VXLANUDPPort)
            except BadInput as error:
                self._log.warning("%s", error.message)
        node = self._node
        self._bus.publish(
            "node.changes",
            topics.NodeChanges(
                desired_role=_ROLES.get(node.spec.desired_role, ""),
                observed_role=_ROLES.get(node.role, ""),
                issuance_state=int(node.certificate.status.state),
                vxlan_port=self._executor.vxlan_port,
                root_ca=message.RootCA,
                under=self._under,
                availability=specs_pb2.NodeSpec.Availability.Name(node.spec.availability).lower(),
                foreign=foreign,
            ),
        )
        managers = tuple(
            topics.ManagerAddress(entry.peer.node_id, entry.peer.addr, entry.weight)
            for entry in message.managers
            if entry.peer.addr
        )
        self._bus.publish("managers", topics.Managers(managers))
        # At once, and each time: a manager that failed us is tried again when another one lists it (reference §1.10).
        self._perform(self._brain.managers((Peer(m.node_id, m.addr), m.weight) for m in managers))

    def registered(self, session_id: str, *, resumed: bool) -> None:
        """See link.Ports."""
        self._sessions.labels("registered").inc()
        target = self._brain.target
        self._remembered = SessionRow(
            node_id=self._node_id(),
            session_id=session_id,
            manager_id=target.node_id if target else "",
            manager_addr=target.addr if target else "",
        )
        self._journal.write([PutSession(self._remembered)])
        self._reports.restart(self._worker.reports(everything=not resumed))
        self._reports_waiting.set()
        self._log.info("%s session %s", "resumed" if resumed else "registered", session_id)
        self._perform(self._brain.registered(session_id))

    async def assignments(self, message: dispatcher_pb2.AssignmentsMessage) -> None:
        """See link.Ports."""
        await self._worker.apply(message)
        self._assigned = True
        self._publish()

    def acknowledged(self, reports: list[Report]) -> None:
        """See link.Ports."""
        self._worker.acknowledged(reports)

    # -- small things --------------------------------------------------------------------------------

    async def _end_tasks(self) -> None:
        await self._worker.leave()
        self._said = session.Say("left", why="the node leaves the swarm")
        self._publish()

    def _publish(self) -> None:
        said = self._said
        state = "ready" if said.state == "connected" and self._assigned else said.state
        self._bus.publish(
            "agent",
            topics.Agent(
                state=state,
                session_id=said.session_id,
                manager_id=said.target.node_id if said.target else "",
                manager_addr=said.target.addr if said.target else "",
                why=said.why,
                tasks=self._worker.count,
            ),
        )

    def _node_id(self) -> str:
        return self._credentials.node_id if self._credentials else ""

    def _samples(self) -> Iterator[Sample]:
        yield Sample("swarmvisor_agent_tasks", "Tasks assigned to this node.", self._worker.count)
        yield Sample("swarmvisor_agent_reports_waiting", "Statuses not yet with a manager.", len(self._reports))
        yield Sample(
            "swarmvisor_agent_commits_total", "Commits of the agent's database.", self._journal.commits, "counter"
        )
        for name, count in self._bus.counters.items():
            yield Sample(f"swarmvisor_bus_{name}_total", "Counted by the bus.", count, "counter")


async def _learn(addr: str, root_pem: bytes) -> bool:
    """Whether the manager turns out to be one that grpc cannot speak to, and a tunnel can."""
    from swarm.tunnel import learn  # late: cryptography, only where a session has failed

    return await learn(addr, root_pem, MANAGER_NAME)


def _memory(paths: Paths, log: logging.Logger) -> Path | None:
    """Where tasks get their secrets and configs; without such a place tasks that have some are refused."""
    try:
        return tasks_in_memory(paths, mount=True)
    except Refused as error:
        log.warning("%s", error.describe())
        return None


def _credentials(paths: Paths, said: topics.Certificate) -> Credentials:
    """What the renewer said, with the files that it said it of; where the files are others, what those say."""
    files = read_published(paths, said.fingerprint, said.root_digest)
    if files is None:
        from swarm.pki.credentials import load_credentials  # late: cryptography, 60 ms and 8 MB, seldom needed

        return load_credentials(paths, allow_expired=True)
    return Credentials(
        node_id=said.node_id,
        cluster_id=said.cluster_id,
        role=said.role,
        certificate_pem=files.certificate_pem,
        key_pem=files.key_pem,
        root_pem=files.root_pem,
        not_before=said.not_before,
        not_after=said.not_after,
        fingerprint=said.fingerprint,
        root_digest=said.root_digest,
        issuer_subject=said.issuer_subject,
        issuer_public_key=said.issuer_public_key,
    )
