"""What the scheduler knows of the nodes: what they offer, what tasks on them take, where tasks failed lately
(reference manager §7.4, §7.5). Kept up to date task by task, never recomputed.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from typing import NamedTuple

from procs.manager.scheduler.generic import GenericUse
from swarm.api.objects_pb2 import Node, Task
from swarm.api.specs_pb2 import NodeSpec
from swarm.api.types_pb2 import ASSIGNED, COMPLETE, RUNNING, GenericResource, NodeStatus, Resources

FAILURE_WINDOW = 300.0
"""Seconds that a failure is remembered."""
FAULTY = 5
"""So many failures of one service make a node the last choice for it."""

Family = tuple[str, int | bytes]
"""Tasks that are equal to the scheduler: service id, and spec version (or the spec itself where there is none)."""

_NOTHING = Resources()


def occupies(task: Task) -> bool:
    """Whether it takes a place on its node: until it has ended, whatever is desired of it."""
    return bool(task.node_id) and ASSIGNED <= task.status.state <= RUNNING


class Place(NamedTuple):
    """What one task takes."""

    node_id: str
    service_id: str
    cpu: int
    memory: int
    active: bool
    """Whether it shall run: what balance and replica limits count."""
    generic: tuple[GenericResource, ...]


class NodeInfo:
    """One node with its load. `node` is None while tasks are on a node whose object is gone."""

    __slots__ = (
        "active",
        "active_of",
        "cpu",
        "failures",
        "generic",
        "id",
        "memory",
        "node",
        "offers",
        "places",
        "process",
        "ready",
    )

    def __init__(self, node_id: str) -> None:
        self.id = node_id
        self.node: Node | None = None
        self.ready = False
        self.process = False
        """Whether it runs processes: engine label and plugin say so (DESIGN §7)."""
        self.offers = _NOTHING
        """What the node declares in total; what it does not declare it has none of."""
        self.cpu = 0
        """Reserved, 10^9 a core."""
        self.memory = 0
        """Reserved, bytes."""
        self.generic = GenericUse()
        self.places = 0
        self.active = 0
        self.active_of: Counter[str] = Counter()
        self.failures: dict[Family, deque[float]] = {}

    def describe(self, node: Node | None) -> None:
        """Take over what the node object says."""
        self.node = node
        self.ready = (
            node is not None and node.status.state == NodeStatus.READY and node.spec.availability == NodeSpec.ACTIVE
        )
        self.offers = node.description.resources if node is not None else _NOTHING
        engine = node.description.engine if node is not None else None
        self.process = (
            engine is not None
            and engine.labels.get("runtime", "") == "process"
            and any(plugin.type == "Runtime" and plugin.name == "process" for plugin in engine.plugins)
        )

    def put(self, place: Place, sign: int) -> None:
        """Add (1) or take back (-1) what a task takes."""
        self.places += sign
        self.cpu += sign * place.cpu
        self.memory += sign * place.memory
        if place.generic:
            (self.generic.add if sign > 0 else self.generic.drop)(place.generic)
        if place.active:
            self.active += sign
            self.active_of[place.service_id] += sign
            if not self.active_of[place.service_id]:
                del self.active_of[place.service_id]

    def failed(self, family: Family, at: float) -> None:
        """Remember a failure at monotonic time `at`."""
        self.failures.setdefault(family, deque(maxlen=100)).append(at)

    def recent_failures(self, family: Family, now: float) -> int:
        """Failures of `family` in the last five minutes."""
        times = self.failures.get(family)
        if times is None:
            return 0
        while times and times[0] <= now - FAILURE_WINDOW:
            times.popleft()
        if not times:
            del self.failures[family]
        return len(times)

    def rank(self, family: Family, now: float) -> tuple[int, int, int]:
        """Sorts nodes, the better first: not faulty, few tasks of the service, few tasks."""
        failures = self.recent_failures(family, now)
        return (failures if failures >= FAULTY else 0, self.active_of.get(family[0], 0), self.active)


class NodeSet:
    """All nodes, and all tasks that take a place on one."""

    def __init__(self) -> None:
        self._infos: dict[str, NodeInfo] = {}
        self._places: dict[str, Place] = {}

    def __iter__(self) -> Iterator[NodeInfo]:
        """The nodes that exist, in no order."""
        return (info for info in self._infos.values() if info.node is not None)

    def get(self, node_id: str) -> NodeInfo | None:
        """The node, if it exists."""
        info = self._infos.get(node_id)
        return info if info is not None and info.node is not None else None

    def put(self, node: Node) -> None:
        self._info(node.id).describe(node)

    def remove(self, node_id: str) -> None:
        """The node object is gone; tasks may still be on it."""
        info = self._infos.get(node_id)
        if info is not None:
            info.describe(None)
            self._tidy(info)

    def track(self, task: Task) -> bool:
        """Take the task's place into account, as it is now; returns whether that freed anything. Idempotent."""
        old = self._places.get(task.id)
        new = _place(task) if occupies(task) else None
        if old == new:
            return False
        if old is not None:
            self._drop(task.id, old)
        if new is not None:
            self._places[task.id] = new
            self._info(new.node_id).put(new, 1)
        return old is not None

    def forget(self, task_id: str) -> bool:
        """The task is gone; returns whether that freed anything."""
        old = self._places.get(task_id)
        if old is not None:
            self._drop(task_id, old)
        return old is not None

    def failed(self, node_id: str, family: Family, at: float) -> None:
        """A task of `family` failed on the node at monotonic time `at`."""
        info = self.get(node_id)
        if info is not None:
            info.failed(family, at)

    def _drop(self, task_id: str, place: Place) -> None:
        del self._places[task_id]
        info = self._infos[place.node_id]
        info.put(place, -1)
        self._tidy(info)

    def _info(self, node_id: str) -> NodeInfo:
        info = self._infos.get(node_id)
        if info is None:
            info = self._infos[node_id] = NodeInfo(node_id)
        return info

    def _tidy(self, info: NodeInfo) -> None:
        if info.node is None and not info.places:
            del self._infos[info.id]


def _place(task: Task) -> Place:
    reserved = task.spec.resources.reservations
    return Place(
        task.node_id,
        task.service_id,
        reserved.nano_cpus,
        reserved.memory_bytes,
        task.desired_state <= COMPLETE,
        tuple(task.assigned_generic_resources),
    )
