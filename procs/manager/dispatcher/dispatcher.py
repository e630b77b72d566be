"""The dispatcher's shell: one term at a time, its node table, timers, feeds and writes."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable

from procs.manager.dispatcher import reports
from procs.manager.dispatcher.batch import Batch
from procs.manager.dispatcher.feeds import Feeds
from procs.manager.dispatcher.nodes import NOT_REGISTERED, Effect, MarkDown, NodeTable, OrphanTasks, Timing
from procs.manager.status import Status, aborted, not_found
from procs.manager.store import Store, Tx, Watch, by
from procs.manager.store.errors import NotWritten, StoreFull
from swarm.api import objects_pb2, types_pb2
from swarm.backoff import Backoff, BackoffPolicy
from swarm.clock import Clock

log = logging.getLogger(__name__)

MOVED_TO_UNKNOWN = 'Node moved to "unknown" state due to leadership change in cluster'

_NodeState = types_pb2.NodeStatus
_RETRY = BackoffPolicy(base=0.5, factor=2.0, cap=10.0)


def stopped() -> Status:
    return aborted("dispatcher is stopped")


class Term:
    """Everything of one leadership: dropped whole when it ends."""

    def __init__(self, store: Store, clock: Clock, node_id: str, timing: Timing) -> None:
        self.store = store
        self.clock = clock
        self.node_id = node_id
        self.table = NodeTable(timing)
        self.feeds = Feeds()
        self.batch = Batch(store, "dispatcher")
        self.root_ca = b""
        self.keys: list[types_pb2.EncryptionKey] = []
        self._rearm = asyncio.Event()

    def timers_changed(self) -> None:
        """A deadline was added that may be earlier than the one waited for."""
        self._rearm.set()

    # -- writes -------------------------------------------------------------------------------------

    async def write_node(
        self,
        node_id: str,
        state: types_pb2.NodeStatus.State.ValueType,
        message: str = "",
        addr: str = "",
        description: types_pb2.NodeDescription | None = None,
    ) -> None:
        """Write a node's status; return when it is durable. A node that is gone by then stays gone."""
        await self.batch.submit(_node_write(node_id, state, message, addr, description))

    async def write_statuses(self, statuses: list[tuple[str, types_pb2.TaskStatus]]) -> None:
        """Write task statuses; return when they are durable."""
        await self.batch.submit(*(self._status_write(task_id, status) for task_id, status in statuses))

    def _status_write(self, task_id: str, status: types_pb2.TaskStatus) -> Callable[[Tx], None]:
        def write(tx: Tx) -> None:
            task = tx.get(objects_pb2.Task, task_id)
            changed = task and reports.task_status(task, status, self.node_id, self.clock.wall_ns())
            if changed:
                tx.update(changed)

        return write

    async def write_unpublished(self, node_id: str, volume_ids: list[str]) -> None:
        """Write that the node let volumes go; return when that is durable. Unknown volumes are passed over."""

        def write_one(volume_id: str) -> Callable[[Tx], None]:
            def write(tx: Tx) -> None:
                volume = tx.get(objects_pb2.Volume, volume_id)
                changed = volume and reports.unpublished(volume, node_id)
                if changed:
                    tx.update(changed)

            return write

        await self.batch.submit(*(write_one(volume_id) for volume_id in volume_ids))

    # -- what runs ----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Take in the store as it is: before the first RPC of the term, and in front of all its writes."""
        self.read_cluster()
        nodes = self.store.find(objects_pb2.Node)
        unknown = self.table.start(
            ((node.id, node.status.state == _NodeState.DOWN) for node in nodes), self.clock.monotonic()
        )
        self.batch.put(*(_node_write(node_id, _NodeState.UNKNOWN, MOVED_TO_UNKNOWN) for node_id in unknown))

    async def follow(self, watch: Watch) -> None:
        """Route commits to the feeds, until cancelled."""
        async for commit in watch:
            if any(isinstance(event.object, objects_pb2.Cluster) for event in commit.events):
                self.read_cluster()
            for node_id in self.feeds.route(commit):
                self.table.remove(node_id)

    def read_cluster(self) -> None:
        """Take root, network keys and heartbeat period from the cluster; tell the sessions if they show it."""
        clusters = self.store.find(objects_pb2.Cluster, by.name("default"))
        if not clusters:
            return
        cluster = clusters[0]
        duration = cluster.spec.dispatcher.heartbeat_period
        period = duration.seconds + duration.nanos / 1e9
        if period > 0 and period != self.table.timing.period:
            self.table.retime(dataclasses.replace(self.table.timing, period=period))
        shown = (cluster.root_ca.ca_cert, list(cluster.network_bootstrap_keys))
        if shown != (self.root_ca, self.keys):
            self.root_ca, self.keys = shown
            self.feeds.look_all()

    async def watch_timers(self) -> None:
        """Do what follows from silence, until cancelled."""
        while True:
            deadline = self.table.next_deadline()
            self._rearm.clear()
            if deadline is None:
                await self._rearm.wait()
                continue
            delay = deadline - self.clock.monotonic()
            if delay > 0:
                try:
                    async with asyncio.timeout(delay):  # wait_for loses a cancellation that comes with the event
                        await self._rearm.wait()
                except TimeoutError:
                    pass
                else:
                    continue
            for effect in self.table.expire(self.clock.monotonic()):
                await self._perform(effect)

    async def _perform(self, effect: Effect) -> None:
        match effect:
            case MarkDown(node_id, message):
                log.warning("node %s is down: %s", node_id, message)
                await self._persist(_node_write(node_id, _NodeState.DOWN, message))
                # Unless it registered again while that was written: its new session is not to suffer.
                if not self.table.known(node_id):
                    self.feeds.end(node_id, not_found(NOT_REGISTERED))
            case OrphanTasks(node_id):
                log.warning("node %s was down too long: its tasks are given up", node_id)
                await self._persist(lambda tx: _orphan(tx, node_id))

    async def _persist(self, write: Callable[[Tx], None]) -> None:
        """Write what silence demands; a disk that is full for now delays it, and costs nobody else the session."""
        backoff = Backoff(_RETRY)
        while True:
            try:
                await self.batch.submit(write)
            except (StoreFull, NotWritten) as error:
                pause = backoff.failed()
                log.error("a node's silence cannot be recorded, next try in %.1f s: %s", pause, error.describe())
                await asyncio.sleep(pause)
            else:
                return

    def close(self) -> None:
        """End every stream, refuse every write."""
        self.batch.close(stopped())
        self.feeds.end_all(aborted("node must disconnect"))


def _node_write(
    node_id: str,
    state: types_pb2.NodeStatus.State.ValueType,
    message: str = "",
    addr: str = "",
    description: types_pb2.NodeDescription | None = None,
) -> Callable[[Tx], None]:
    def write(tx: Tx) -> None:
        node = tx.get(objects_pb2.Node, node_id)
        changed = node and reports.node_status(node, state, message, addr, description)
        if changed:
            tx.update(changed)

    return write


def _orphan(tx: Tx, node_id: str) -> None:
    for task in tx.find(objects_pb2.Task, by.node(node_id)):
        changed = reports.orphaned(task)
        if changed is not None:
            tx.update(changed)


class Dispatcher:
    """One per process; serves while `run` runs, and says `dispatcher is stopped` otherwise."""

    def __init__(self, store: Store, clock: Clock, node_id: str, timing: Timing | None = None) -> None:
        self._store = store
        self._clock = clock
        self._node_id = node_id
        self._timing = timing or Timing()
        self._term: Term | None = None

    def term(self) -> Term:
        """The running term. Raises Status if there is none."""
        if self._term is None:
            raise stopped()
        return self._term

    def show_managers(self) -> None:
        """The managers changed, or where they are found: every session is to show it."""
        if self._term is not None:
            self._term.feeds.look_all()

    def check_running(self, term: Term) -> None:
        """Raises Status if `term` is over."""
        if self._term is not term:
            raise stopped()

    async def run(self) -> None:
        """Serve a term, until cancelled. What dies in it ends it."""
        if self._term is not None:
            raise RuntimeError("dispatcher is already running")
        async with self._store.watch() as watch:
            term = Term(self._store, self._clock, self._node_id, self._timing)
            term.begin()
            self._term = term
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(term.batch.run(), name="dispatcher-batch")
                    group.create_task(term.follow(watch), name="dispatcher-follow")
                    group.create_task(term.watch_timers(), name="dispatcher-timers")
            finally:
                self._term = None
                term.close()
