"""The manager's numbers, with SwarmKit's names (reference manager §1.12)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from procs.manager.gateway.front import Front
from procs.manager.gateway.interceptor import Guard
from procs.manager.store import Action, Event, Store, Tx, Watch
from swarm.api import objects_pb2, types_pb2
from swarm.metrics import Histogram, Metrics, Sample

T = TypeVar("T")

_TOTALS = {
    objects_pb2.Service: "services",
    objects_pb2.Network: "networks",
    objects_pb2.Secret: "secrets",
    objects_pb2.Config: "configs",
}


class MeteredStore(Store):
    """A store that remembers how long its writes took: from the call to the durable answer."""

    _latency: Histogram | None = None

    def measure(self, metrics: Metrics) -> None:
        """Observe writes from now on."""
        self._latency = metrics.histogram(
            "swarm_store_write_tx_latency_seconds", "Seconds from the start of a write to its durable commit"
        )

    async def update(self, write: Callable[[Tx], T], *, cause: str = "") -> T:
        started = time.perf_counter()
        try:
            return await super().update(write, cause=cause)
        finally:
            if self._latency is not None:  # the first writes come before there is anything to measure with
                self._latency.observe(time.perf_counter() - started)


class Gauges:
    """Counts of objects, kept up to date from the store's commits."""

    def __init__(self, metrics: Metrics, cluster_id: str, node_id: str) -> None:
        info = metrics.gauge("swarm_node_info", "Information related to the swarm", ("swarm_id", "node_id"))
        info.labels(cluster_id, node_id).set(1)
        metrics.gauge("swarm_node_manager", "Whether this node is a manager or not").set(1)
        self.leader = metrics.gauge("swarm_manager_leader", "Indicates if this manager node is a leader")
        self._nodes = metrics.gauge("swarm_manager_nodes", "The number of nodes", ("state",))
        self._tasks = metrics.gauge("swarm_manager_tasks_total", "The number of tasks in the cluster", ("state",))
        self._totals = {
            kind: metrics.gauge(f"swarm_manager_{name}_total", f"The number of {name} in the cluster")
            for kind, name in _TOTALS.items()
        }
        for state in types_pb2.NodeStatus.State.keys():  # noqa: SIM118  (an enum wrapper, not a dict)
            self._nodes.labels(state.lower()).set(0)
        for state in types_pb2.TaskState.keys():  # noqa: SIM118
            self._tasks.labels(state.lower()).set(0)

    async def follow(self, store: Store, watch: Watch) -> None:
        """Count what is there, then follow until cancelled. `watch` is open, and nothing was awaited since."""
        kinds: tuple[type[Any], ...] = (objects_pb2.Node, objects_pb2.Task, *_TOTALS)
        for kind in kinds:
            for present in store.find(kind):
                self._count(present, 1)
        async for commit in watch:
            for event in commit.events:
                self._event(event)

    def _event(self, event: Event) -> None:
        match event.action:
            case Action.CREATE:
                self._count(event.object, 1)
            case Action.DELETE:
                self._count(event.object, -1)
            case Action.UPDATE:
                self._count(event.old, -1)
                self._count(event.object, 1)

    def _count(self, found: object, by: int) -> None:
        match found:
            case objects_pb2.Node():
                self._nodes.labels(types_pb2.NodeStatus.State.Name(found.status.state).lower()).inc(by)
            case objects_pb2.Task():
                self._tasks.labels(_task_state(found.status.state)).inc(by)
            case _ if type(found) in self._totals:
                self._totals[type(found)].inc(by)


def _task_state(number: types_pb2.TaskState.ValueType) -> str:
    """The state's name; a number between the known ones is shown as such."""
    known = types_pb2.TaskState.DESCRIPTOR.values_by_number
    return known[number].name.lower() if number in known else str(number)


def gateway_samples(front: Front, guard: Guard) -> Iterable[Sample]:
    """Figures of the door, at each scrape."""
    for name, value in list(front.counters.items()):
        yield Sample("swarmvisor_gateway_connections_total", "Connections by fate", value, "counter", {"fate": name})
    yield Sample("swarmvisor_gateway_connections", "Established connections", front.connections)
    yield Sample("swarmvisor_gateway_handshakes", "Handshakes under way", front.pending)
    for (method, code), value in list(guard.calls.items()):
        service, _, name = method.removeprefix("/").partition("/")
        labels = {"grpc_service": service, "grpc_method": name, "grpc_code": code}
        yield Sample("grpc_server_handled_total", "Calls by method and status code", value, "counter", labels)


def bus_samples(counters: Callable[[], dict[str, int]]) -> Iterable[Sample]:
    """Counters of the bus, at each scrape."""
    for name, value in counters().items():
        yield Sample(f"swarmvisor_bus_{name}_total", "Counted by the bus.", value, "counter")
