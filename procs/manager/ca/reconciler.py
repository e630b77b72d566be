"""Carries a root rotation through: tells nodes in batches, and makes the next root the root once all have followed.

Runs on the leader. What to do is decided in `rotation`; this follows the store and writes.
"""

from __future__ import annotations

import asyncio
import logging

from procs.manager.ca import rotation
from procs.manager.ca.grace import grace_of
from procs.manager.store import Store, Tx, Watch
from swarm.api import objects_pb2, types_pb2
from swarm.clock import Clock
from swarm.errors import BadInput

log = logging.getLogger(__name__)


class Reconciler:
    """One per process; `run` works until cancelled."""

    def __init__(self, store: Store, cluster_id: str, clock: Clock, interval: float = rotation.INTERVAL) -> None:
        self._store = store
        self._cluster_id = cluster_id
        self._clock = clock
        self._interval = interval
        self._wake = asyncio.Event()
        self._target: types_pb2.RootCA | None = None
        self._follow: rotation.Follow | None = None
        self._next_batch = 0.0

    async def run(self) -> None:
        async with self._store.watch() as watch, asyncio.TaskGroup() as group:
            self._wake.set()
            group.create_task(self._listen(watch), name="reconciler-follow")
            group.create_task(self._work(), name="reconciler-work")

    async def _listen(self, watch: Watch) -> None:
        async for commit in watch:
            if any(isinstance(e.object, objects_pb2.Node | objects_pb2.Cluster) for e in commit.events):
                self._wake.set()

    async def _work(self) -> None:
        while True:
            self._wake.clear()
            delay = await self._step()
            try:
                async with asyncio.timeout(delay):  # wait_for loses a cancellation that comes together with the event
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _step(self) -> float | None:
        """Do what can be done now; seconds until time alone allows more, None: until something changes."""
        cluster = self._store.get(objects_pb2.Cluster, self._cluster_id)
        if cluster is None or not self._aim(cluster.root_ca) or self._follow is None:
            return None
        now = self._clock.monotonic()
        behind, told = self._follow.batch(self._store.find(objects_pb2.Node), now)
        if not behind:
            await self._store.update(self._finish, cause="root rotation")
            return None
        if now < self._next_batch:
            return self._next_batch - now
        if told:
            self._next_batch = now + self._interval
            log.info("root rotation: %d nodes have not followed, telling %d of them", len(behind), len(told))
            await self._store.update(lambda tx: _tell(tx, told), cause="root rotation")
        return self._interval

    def _aim(self, root: types_pb2.RootCA) -> bool:
        """Look at the rotation that the record names; False if it names none."""
        target = rotation.target_of(root)
        if target == self._target:
            return self._follow is not None
        self._target, self._follow, self._next_batch = target, None, 0.0
        try:
            issuer = rotation.next_root(root)
        except BadInput as error:
            log.error("the root rotation cannot go on: %s", error.describe())
            return False
        if issuer is not None:
            self._follow = rotation.Follow(issuer)
            log.info("root rotation: to the root with fingerprint %s", issuer.fingerprint[:16])
        return issuer is not None

    def _finish(self, tx: Tx) -> None:
        """One transaction: if it is still this rotation, and still nobody is behind, the next root is the root."""
        cluster = tx.get(objects_pb2.Cluster, self._cluster_id)
        follow = self._follow
        if cluster is None or follow is None or rotation.target_of(cluster.root_ca) != self._target:
            return  # the target has changed
        if any(not rotation.has_followed(node, follow.issuer) for node in tx.find(objects_pb2.Node)):
            return
        now = self._clock.wall_ns() // 1_000_000_000
        grace = grace_of(cluster.spec.annotations.labels)
        bridges = rotation.young(rotation.read_bridges(tx.side(rotation.BRIDGES)), grace, now)
        bridges.append(rotation.Bridge(cluster.root_ca.root_rotation.cross_signed_ca_cert, now))
        tx.put_side(rotation.BRIDGES, rotation.write_bridges(bridges))
        tx.update(rotation.finished(cluster))
        log.info("root rotation finished: all nodes have followed")


def _tell(tx: Tx, node_ids: list[str]) -> None:
    for node_id in node_ids:
        node = tx.get(objects_pb2.Node, node_id)
        changed = node and rotation.told_to_rotate(node)
        if changed:
            tx.update(changed)
