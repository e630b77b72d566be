"""The manager's shell: opens what it needs, serves, leads term after term, and says how it ended."""

from __future__ import annotations

import asyncio
import functools
import signal
import ssl
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import replace

import grpc.aio

from ipc.aio import AsyncBus
from ipc.topics import Certificate
from ipc.topics import Manager as ManagerTopic
from procs.manager import forcing, unserved
from procs.manager.authorization import Authorizer, Identity
from procs.manager.ca.external import ExternalCAs
from procs.manager.ca.grace import DEFAULT as DEFAULT_GRACE
from procs.manager.ca.grace import grace_of
from procs.manager.ca.reconciler import Reconciler
from procs.manager.ca.rotation import BRIDGES, read_bridges, young
from procs.manager.ca.server import CAServer
from procs.manager.ca.service import CAService, NodeCAService
from procs.manager.ca.stopgap import Stopgap, stopgap
from procs.manager.control import ControlService
from procs.manager.datakey import KeyRing, Rotation
from procs.manager.dispatcher.dispatcher import Dispatcher
from procs.manager.dispatcher.service import DispatcherService
from procs.manager.door import Door
from procs.manager.founding import UNLOCK_SUBSYSTEM, found, root_digest_held
from procs.manager.gateway.front import Front
from procs.manager.gateway.interceptor import Guard
from procs.manager.gateway.listeners import listen_control
from procs.manager.gateway.records import Listener, Records
from procs.manager.gateway.server import make_server
from procs.manager.gateway.tls import server_context
from procs.manager.gauges import Gauges, MeteredStore, bus_samples, gateway_samples
from procs.manager.health import CONTROL_API, RAFT, HealthService
from procs.manager.members import Membership, SoleMember
from procs.manager.orchestration.leader import lead
from procs.manager.roles import RoleManager
from procs.manager.store import Store
from procs.manager.store.engine import LEAP
from procs.manager.store.sealing import SealedEngine, Sealer
from procs.manager.store.sqlite import SqliteEngine
from swarm.api import (
    ca_pb2_grpc,
    control_pb2_grpc,
    dispatcher_pb2_grpc,
    health_pb2_grpc,
    logbroker_pb2_grpc,
    objects_pb2,
    raft_pb2_grpc,
    resource_pb2_grpc,
    watch_pb2_grpc,
)
from swarm.backoff import Backoff, BackoffPolicy
from swarm.clock import Clock, SystemClock
from swarm.errors import CorruptFile, Locked, Refused, SwarmvisorError
from swarm.exits import ExitCode
from swarm.files import write_atomic
from swarm.logs import set_node_id
from swarm.metrics import Metrics, MetricsServer
from swarm.nodeconfig import NodeConfig, load_node_config
from swarm.pki.credentials import CertificateExpired, Credentials, load_credentials
from swarm.pki.keyfile import Kek
from swarm.pki.locking import change_unlock_key
from swarm.pki.pem import normalize_pems
from swarm.process import Context

ENGINE = "ENGINE"
"""File in `manager/` that names the store's engine."""
STORE = "store.db"

STOP_GRACE = 0.5
"""Seconds that calls under way get when the process stops."""
TERM_BACKOFF = BackoffPolicy(base=0.2, factor=2.0, cap=10.0)
TERM_HEALTHY = 60.0
"""Seconds after which a term's end counts as the first failure again."""


async def run_manager(context: Context, stop: asyncio.Event) -> ExitCode:
    """Be the manager until `stop`, or until there is a reason to end (see ExitCode)."""
    async with AsyncBus(context.paths.bus, "manager", ("certificate",)) as bus:
        bus.publish("manager", ManagerTopic(state="starting"))
        try:
            code = await _run(context, stop, bus)
        except SwarmvisorError as error:
            bus.publish("manager", ManagerTopic(state="stopped", why=error.describe()))
            raise
        if code is not ExitCode.REMOVED:  # that says itself who removed it
            bus.publish("manager", ManagerTopic(state="stopped", why=code.name.lower().replace("_", " ")))
        return code


async def _run(context: Context, stop: asyncio.Event, bus: AsyncBus) -> ExitCode:
    config = load_node_config(context.paths.node_toml)
    credentials = await _credentials(context, stop, bus)
    if credentials is None:
        return ExitCode.DONE
    if credentials.role != "manager":
        context.log.warning("the certificate says %s: nothing to manage", credentials.role)
        return ExitCode.ROLE_LOST
    set_node_id(credentials.node_id)
    async with AsyncExitStack() as stack:
        manager = await Manager.open(context, config, credentials, bus, SystemClock(), stack)
        return await manager.serve(stop)


async def _credentials(context: Context, stop: asyncio.Event, bus: AsyncBus) -> Credentials | None:
    """The node's credentials; waits for the renewer where they are missing, locked or expired, and with what cannot be
    used for its judgement. None: asked to stop.

    An expired manager's certificate is taken: it may take this very manager to renew it.
    """
    updates = bus.updates()
    while not stop.is_set():
        try:
            return await asyncio.to_thread(_load, context)
        except FileNotFoundError as error:
            why = f"waiting for a certificate: {error.filename} is missing"
        except (Locked, CertificateExpired) as error:
            why = f"waiting for the renewer: {error.describe()}"
        except CorruptFile as error:
            said = bus.last("certificate")
            if said is not None and isinstance(said.body, Certificate) and said.body.state == "valid":
                raise
            # The renewer mends what a killed write left, and else names the file itself.
            why = f"waiting for the renewer: {error.describe()}"
        context.log.info("%s", why)
        bus.publish("manager", ManagerTopic(state="starting", why=why))
        waits = {asyncio.ensure_future(anext(updates)), asyncio.ensure_future(stop.wait())}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
    return None


class Manager:
    """Everything open. Made by `open`, which also sees to the closing, in reverse order."""

    def __init__(
        self,
        context: Context,
        credentials: Credentials,
        bus: AsyncBus,
        clock: Clock,
        store: MeteredStore,
        door: Door,
        members: Membership,
        rotation: Rotation,
    ) -> None:
        self._context = context
        self._log = context.log
        self._credentials = credentials
        self._bus = bus
        self._clock = clock
        self._store = store
        self._door = door
        self._reread = asyncio.Event()
        self._members = members
        self._rotation = rotation
        self._records: Records = {}
        addresses = door.addresses
        identity = Identity(credentials.node_id, credentials.cluster_id, addresses.advertised)
        self._authorizer = Authorizer(store, identity, clock)
        self._guard = Guard(self._records, self._authorizer)
        externals = ExternalCAs(lambda: self._credentials)
        self._externals = externals
        self._ca = CAServer(store, credentials.cluster_id, externals)
        self._reconciler = Reconciler(store, credentials.cluster_id, clock)
        self._dispatcher = Dispatcher(store, clock, credentials.node_id)
        self._health = HealthService()
        self._log_broker = unserved.LogBrokerService()
        self._metrics = Metrics()
        self._gauges = Gauges(self._metrics, credentials.cluster_id, credentials.node_id)
        self._front: Front | None = None
        self._fips = False
        self._stopgap: Stopgap | None = None
        self._opened = False
        """Whether other nodes are let in: not while our certificate has expired, no other node would talk to us."""
        self._state = ManagerTopic(
            state="starting",
            control_socket=str(context.paths.control_socket),
            remote_addr=addresses.bound,
            advertise_addr=addresses.advertised,
            configured=addresses.configured,
        )

    @classmethod
    async def open(
        cls,
        context: Context,
        config: NodeConfig,
        credentials: Credentials,
        bus: AsyncBus,
        clock: Clock,
        stack: AsyncExitStack,
    ) -> Manager:
        """Open store and sockets, found the swarm where it is new, and start to serve."""
        paths = context.paths
        tls = _context(credentials)  # before anything is created: a key that does not fit is a refusal
        door = Door(config)
        stack.callback(door.close)
        control = listen_control(paths.control_socket)
        stack.callback(paths.control_socket.unlink, missing_ok=True)
        stack.callback(paths.control_certificate.unlink, missing_ok=True)
        stack.callback(control.close)
        store, rotation = await _open_store(context, credentials, clock, fips=config.fips)
        stack.push_async_callback(store.close)
        members = await SoleMember.load(store, credentials.node_id, door.addresses.advertised)
        manager = cls(context, credentials, bus, clock, store, door, members, rotation)
        manager._fips = config.fips
        store.measure(manager._metrics)
        await store.update(lambda tx: found(tx, paths, credentials, config), cause="founding")
        await forcing.carry_out(store, paths, credentials.node_id)
        server = make_server(manager._guard, paths.gateway_socket)
        manager._register(server)
        front = manager._front = Front(manager._records, paths.gateway_socket, tls)
        manager._use(credentials)
        stack.push_async_callback(front.close)
        await server.start()
        stack.push_async_callback(server.stop, STOP_GRACE)
        manager._open_door()
        front.listen(control, Listener.CONTROL)
        manager._metrics.add_source(lambda: gateway_samples(front, manager._guard))
        manager._metrics.add_source(lambda: bus_samples(lambda: bus.counters))
        stack.enter_context(MetricsServer(paths.metrics_socket("manager"), manager._metrics))
        return manager

    def _register(self, server: grpc.aio.Server) -> None:
        store, members, cluster_id = self._store, self._members, self._credentials.cluster_id
        ca_pb2_grpc.add_CAServicer_to_server(CAService(store, cluster_id), server)
        node_ca = NodeCAService(store, self._ca, cluster_id, may_grow=False, members=members, clock=self._clock)
        ca_pb2_grpc.add_NodeCAServicer_to_server(node_ca, server)
        dispatcher = DispatcherService(store, self._dispatcher, members)
        dispatcher_pb2_grpc.add_DispatcherServicer_to_server(dispatcher, server)
        control = ControlService(store, members, self._clock, may_lock=True, externals=self._externals)
        control_pb2_grpc.add_ControlServicer_to_server(control, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        logbroker_pb2_grpc.add_LogBrokerServicer_to_server(self._log_broker, server)
        logbroker_pb2_grpc.add_LogsServicer_to_server(unserved.LogsService(), server)
        watch_pb2_grpc.add_WatchServicer_to_server(unserved.WatchService(), server)
        resource_pb2_grpc.add_ResourceAllocatorServicer_to_server(unserved.ResourceAllocatorService(), server)
        raft_pb2_grpc.add_RaftServicer_to_server(unserved.RaftService(), server)
        raft_pb2_grpc.add_RaftMembershipServicer_to_server(unserved.RaftMembershipService(), server)

    async def serve(self, stop: asyncio.Event) -> ExitCode:
        """Lead and follow the node's certificate until one of them ends, or `stop`."""
        self._health.set(RAFT, True)
        self._health.set(CONTROL_API, True)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reread.set)
        self._state = replace(self._state, state="ready", leader=True)
        self._publish_root()
        self._log.info(
            "ready: remote API on %s, control socket %s", self._state.remote_addr, self._state.control_socket
        )
        tasks: dict[str, asyncio.Task[ExitCode]] = {
            name: asyncio.create_task(body, name=name)
            for name, body in {
                "stop": _stopped(stop),
                "store": self._store_failure(),
                "terms": self._terms(),
                "objects": self._follow_objects(),
                "certificate": self._follow_certificate(),
                "membership": self._follow_membership(),
                "addresses": self._follow_addresses(),
                "lock": self._follow_lock(),
                "data key": self._rotation.run(),
            }.items()
        }
        try:
            done, _ = await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
            return next(iter(done)).result()
        finally:
            self._health.set(RAFT, False)
            self._health.set(CONTROL_API, False)
            self._log_broker.close()
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)

    # -- what runs ----------------------------------------------------------------------------------

    async def _terms(self) -> ExitCode:
        """One task group per term; a component that dies ends it, and after a pause the next one begins."""
        backoff = Backoff(TERM_BACKOFF)
        while True:
            started = self._clock.monotonic()
            self._gauges.leader.set(1)
            try:
                async with asyncio.TaskGroup() as term:
                    for name, component in (
                        ("dispatcher", self._dispatcher.run),
                        ("ca", self._ca.run),
                        ("reconciler", self._reconciler.run),
                        ("orchestration", functools.partial(lead, self._store, self._clock)),
                        ("roles", RoleManager(self._store, self._members, self._credentials.node_id).run),
                    ):
                        term.create_task(_never_ends(name, component), name=name)
            except ExceptionGroup as group:
                self._gauges.leader.set(0)
                if self._clock.monotonic() - started > TERM_HEALTHY:
                    backoff.reset()
                pause = backoff.failed()
                self._log.error("the term ended; the next one begins in %.1f s", pause, exc_info=group)
                await asyncio.sleep(pause)

    async def _store_failure(self) -> ExitCode:
        error = await self._store.failed()
        raise error

    async def _follow_objects(self) -> ExitCode:
        """Keep the gauges, and the root digest on the bus, true to the committed store."""
        async with self._store.watch() as counted, self._store.watch() as clusters, asyncio.TaskGroup() as group:
            self._publish_root()
            group.create_task(self._gauges.follow(self._store, counted))
            async for commit in clusters:
                if any(isinstance(event.object, objects_pb2.Cluster) for event in commit.events):
                    self._publish_root()
        raise RuntimeError("the store's watch ended")

    async def _follow_certificate(self) -> ExitCode:
        """Serve with the newest certificate; end when it does not say manager any more."""
        async for value in self._bus.updates():
            body = value.body
            if value.topic != "certificate" or not isinstance(body, Certificate):
                continue
            held = self._credentials
            if body.state == "expired" and body.fingerprint == held.fingerprint:
                self._use(held)
                continue
            if body.state != "valid":
                continue
            if (body.fingerprint, body.root_digest) == (held.fingerprint, held.root_digest):
                continue
            try:
                fresh = await asyncio.to_thread(load_credentials, self._context.paths)
            except (OSError, SwarmvisorError) as error:
                self._log.error("a new certificate cannot be used, serving with the old one: %s", error)
                continue
            if fresh.role != "manager":
                self._log.warning("the certificate says %s now: ending", fresh.role)
                return ExitCode.ROLE_LOST
            if self._use(fresh):
                self._credentials = fresh
                self._rotation.wake()  # the renewer may have locked the key file with it
                self._open_door()
                self._log.info("serving with certificate %s, valid until %d", fresh.fingerprint[:16], fresh.not_after)
        raise RuntimeError("the bus ended")

    async def _follow_membership(self) -> ExitCode:
        """End when this manager was taken out of the managers. Said at once: agent and renewer then ask another one,
        and closing everything takes a moment (DESIGN §4.6)."""
        why = await self._members.removed()
        self._log.warning("removed from the managers: %s", why)
        self._state = replace(self._state, state="removed", leader=False, why=why)
        self._publish()
        return ExitCode.REMOVED

    async def _follow_lock(self) -> ExitCode:
        """Keep this node's key file under the unlock key that the cluster names (reference manager §1.10)."""
        async with self._store.watch() as clusters:
            await self._lock()
            async for commit in clusters:
                if any(isinstance(event.object, objects_pb2.Cluster) for event in commit.events):
                    await self._lock()
        raise RuntimeError("the store's watch ended")

    async def _lock(self) -> None:
        """Every cluster is looked at once; what fails is tried again with the next change, and said."""
        cluster = self._store.get(objects_pb2.Cluster, self._credentials.cluster_id)
        if cluster is None:
            return
        mine = [key.key for key in cluster.unlock_keys if key.subsystem == UNLOCK_SUBSYSTEM]
        wanted = Kek(mine[0] if mine else b"", cluster.meta.version.index)
        try:
            changed, locked = await asyncio.to_thread(change_unlock_key, self._context.paths, wanted, fips=self._fips)
        except (OSError, SwarmvisorError) as error:
            why = error.describe() if isinstance(error, SwarmvisorError) else str(error)
            self._log.error("the key file stays under the unlock key of before: %s", why)
            return
        if changed:
            self._log.info("the node's key is %s", "under the swarm's unlock key" if wanted.key else "not locked now")
        if locked:
            self._log.info("asking for a new certificate: the key of this one lay on the disk in the clear")
            self._state = replace(self._state, replace_fingerprint=self._credentials.fingerprint)
            self._publish()
        self._rotation.wake()

    def _use(self, credentials: Credentials) -> bool:
        """Serve new connections with these; where they have expired, with a stopgap. False: they cannot be used."""
        if self._front is None:
            return False
        try:
            if self._has_expired(credentials):
                if self._stopgap is None:  # else who dials at this moment would trust the one of before
                    self._stopgap = stopgap(credentials)
                    write_atomic(self._context.paths.control_certificate, self._stopgap.root, mode=0o600)
                    self._front.use(server_context(self._stopgap.chain, self._stopgap.key, credentials.root_pem))
            else:
                self._front.use(_context(credentials, self._bridges()))
                self._context.paths.control_certificate.unlink(missing_ok=True)
                self._stopgap = None
        except SwarmvisorError as error:
            self._log.error("a certificate cannot be served, going on as before: %s", error.describe())
            return False
        return True

    def _open_door(self) -> None:
        """Let other nodes in, once there is a certificate that they take."""
        if self._front is not None and not self._opened and not self._has_expired(self._credentials):
            self._door.serve(self._front)
            self._opened = True

    def _has_expired(self, credentials: Credentials) -> bool:
        return credentials.not_after * 1_000_000_000 < self._clock.wall_ns()

    def _bridges(self) -> list[bytes]:
        """Cross-signed roots of the rotations that finished within the grace of expired certificates (PEM)."""
        cluster = self._store.get(objects_pb2.Cluster, self._credentials.cluster_id)
        grace = grace_of(cluster.spec.annotations.labels) if cluster else DEFAULT_GRACE
        found = read_bridges(self._store.side(BRIDGES))
        return [normalize_pems(b.cross_signed) for b in young(found, grace, self._clock.wall_ns() / 1e9)]

    async def _follow_addresses(self) -> ExitCode:
        """After SIGHUP (`swarmvisor update`): serve where node.toml says now, and tell every node that is connected."""
        while True:
            await self._reread.wait()
            self._reread.clear()
            try:
                config = await asyncio.to_thread(load_node_config, self._context.paths.node_toml)
                if not self._opened:
                    raise Refused("this manager's certificate has expired, nobody is let in until it is renewed")
                found = self._door.move(config)
            except (OSError, SwarmvisorError) as error:
                why = error.describe() if isinstance(error, SwarmvisorError) else str(error)
                self._log.error("the addresses stay as they are: %s", why)
                self._state = replace(self._state, why=why)
            else:
                self._members.move_to(found.advertised)
                self._authorizer.move_to(found.advertised)
                self._dispatcher.show_managers()
                self._log.info("listening on %s, found at %s", found.bound, found.advertised)
                self._state = replace(
                    self._state,
                    remote_addr=found.bound,
                    advertise_addr=found.advertised,
                    configured=found.configured,
                    why="",
                )
            self._publish()

    # -- words --------------------------------------------------------------------------------------

    def _publish_root(self) -> None:
        cluster = self._store.get(objects_pb2.Cluster, self._credentials.cluster_id)
        self._state = replace(self._state, root_digest_held=root_digest_held(cluster))
        self._publish()

    def _publish(self) -> None:
        self._bus.publish("manager", self._state)


def _load(context: Context) -> Credentials:
    """Raises what `load_credentials` raises; of what has expired only the worker's."""
    try:
        return load_credentials(context.paths)
    except CertificateExpired as error:
        found = load_credentials(context.paths, allow_expired=True)
        if found.role != "manager":
            raise
        context.log.warning("%s; serving the control socket only, until the renewer has renewed it", error.message)
        return found


async def _stopped(stop: asyncio.Event) -> ExitCode:
    await stop.wait()
    return ExitCode.DONE


async def _never_ends(name: str, component: Callable[[], Awaitable[None]]) -> None:
    await component()
    raise RuntimeError(f"{name} ended by itself")


def _context(credentials: Credentials, bridges: Iterable[bytes] = ()) -> ssl.SSLContext:
    """`bridges`: cross-signed roots of finished rotations, for nodes that slept through them; none is sent twice."""
    chain = normalize_pems(credentials.certificate_pem)
    for bridge in bridges:
        chain += b"" if bridge in chain else bridge
    return server_context(chain, credentials.key_pem, credentials.root_pem)


async def _open_store(
    context: Context, credentials: Credentials, clock: Clock, *, fips: bool
) -> tuple[MeteredStore, Rotation]:
    directory = context.paths.manager
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    engine_file, store_file = directory / ENGINE, directory / STORE
    try:
        engine = engine_file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        engine = "sqlite"
        write_atomic(engine_file, f"{engine}\n".encode())
    except UnicodeDecodeError as error:
        raise CorruptFile(engine_file, "is not text", remedy="write `sqlite` into it") from error
    if engine != "sqlite":
        raise CorruptFile(engine_file, f"names the engine {engine!r}, this version knows sqlite", remedy="update")
    ring = KeyRing(context.paths, fips=fips)
    keys = await asyncio.to_thread(ring.read, store_exists=store_file.exists())
    sealer = Sealer(credentials.cluster_id, keys.current, [keys.pending] if keys.pending else [])
    sealed = SealedEngine(SqliteEngine(store_file, node_id=credentials.node_id), sealer)
    leap = LEAP if forcing.is_ordered(context.paths) else 0
    try:
        store: Store = await MeteredStore.open(sealed, clock=clock, leap=leap)
    except CorruptFile as error:
        if error.path == str(store_file):
            raise
        # It names a key of the store; the operator needs the file.
        raise CorruptFile(store_file, error.message, remedy=error.remedy) from error
    if not isinstance(store, MeteredStore):
        raise TypeError("Store.open made another class")
    return store, Rotation(ring, sealed, store)
