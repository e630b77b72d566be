"""A swarm in memory, turned by hand: the store's real transactions, the real brains, agents that obey, one clock.

Nothing happens by itself: `settle` lets everybody act until nobody has anything to do, `turn` lets time pass.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Callable, Iterator

from procs.manager.orchestration.component import BATCH, Component
from procs.manager.orchestration.view import NS, Now
from procs.manager.orchestration.writes import apply
from procs.manager.store import Event, Tx, by
from procs.manager.store.tables import KINDS, Table
from procs.manager.store.transaction import Layers, find_in
from swarm.api.objects_pb2 import Cluster, Node, Service, Task
from swarm.api.specs_pb2 import NodeSpec
from swarm.api.types_pb2 import (
    ASSIGNED,
    FAILED,
    READY,
    REMOVE,
    RUNNING,
    SHUTDOWN,
    NodeStatus,
    RestartPolicy,
)

START = 1_700_000_000 * NS


def node(id_, *, state=NodeStatus.READY, availability=NodeSpec.ACTIVE, labels=(), cpu=8, memory=1 << 30, process=True):
    """A node that runs processes; `cpu` in cores, `memory` in bytes."""
    made = Node(id=id_)
    made.spec.availability = availability
    made.spec.annotations.labels.update(dict(labels))
    made.status.state = state
    made.description.hostname = id_
    made.description.platform.os = "linux"
    made.description.platform.architecture = "x86_64"
    made.description.resources.nano_cpus = int(cpu * NS)
    made.description.resources.memory_bytes = memory
    if process:
        made.description.engine.labels["runtime"] = "process"
        made.description.engine.plugins.add(type="Runtime", name="process")
    return made


def service(id_, replicas=1, *, condition=RestartPolicy.ANY, delay=0.0, attempts=0, window=0.0, cpu=0.0, image="host"):
    """A replicated service of processes; times in seconds, `cpu` in cores."""
    made = Service(id=id_)
    made.spec.annotations.name = id_
    made.spec.replicated.replicas = replicas
    made.spec.replicated.SetInParent()
    made.spec_version.index = 1
    task = made.spec.task
    task.container.image = image
    task.container.command.append("/bin/true")
    task.restart.condition = condition
    task.restart.delay.FromNanoseconds(int(delay * NS))
    task.restart.max_attempts = attempts
    if window:
        task.restart.window.FromNanoseconds(int(window * NS))
    if cpu:
        task.resources.reservations.nano_cpus = int(cpu * NS)
    return made


def global_service(id_):
    """A service of a mode that is not replicated."""
    made = service(id_, 0)
    getattr(made.spec, "global").SetInParent()
    return made


def cluster(retention=5):
    made = Cluster(id="c")
    made.spec.annotations.name = "default"
    made.spec.orchestration.task_history_retention_limit = retention
    return made


class World:
    """See the module. `components` act in turn, or in an order drawn from `chance`."""

    def __init__(self, *components: Component, chance: random.Random | None = None) -> None:
        self.monotonic = 1000.0
        self.wall_ns = START
        self.index = 0
        self.tables = {type_: Table() for type_ in KINDS}
        self.components = list(components)
        self.queues: dict[str, deque[Event]] = {component.name: deque() for component in components}
        self.chance = chance
        self.agents = True
        self.silent: set[str] = set()
        """Nodes whose agent does not answer."""
        self.stubborn: set[str] = set()
        """Tasks that do not stop."""
        self.history: list[Event] = []
        self.put(cluster())
        for component in components:
            self.queues[component.name].clear()
            component.resync(self)

    # -- a store -----------------------------------------------------------------------------------

    def get(self, kind, id_):
        entry = self.tables[kind].entries.get(id_)
        return None if entry is None else entry.object

    def find(self, kind, *selectors):
        return find_in(self.tables[kind], None, set(), selectors)

    def update(self, write: Callable[[Tx], object]) -> list[Event]:
        """Run and commit a transaction; its events reach the components when they act next."""
        self.wall_ns += 1  # no two transactions happen at the same nanosecond
        tx = Tx(Layers(self.tables, {}), self.index + 1, self.wall_ns)
        write(tx)
        if not tx.events:
            return []
        self.index = tx.index
        for type_, id_, entry in tx.changes:
            if entry is None:
                self.tables[type_].remove(id_)
            else:
                self.tables[type_].put(id_, entry)
        self.history.extend(tx.events)
        for queue in self.queues.values():
            queue.extend(tx.events)
        return tx.events

    def put(self, *objects) -> None:
        """Create them."""

        def create(tx):
            for obj in objects:
                copy = type(obj)()
                copy.CopyFrom(obj)
                tx.create(copy)

        self.update(create)

    def change(self, kind, id_, edit) -> None:
        """Edit one stored object."""

        def write(tx):
            copy = kind()
            copy.CopyFrom(tx.get(kind, id_))
            edit(copy)
            tx.update(copy)

        self.update(write)

    def delete(self, kind, id_) -> None:
        self.update(lambda tx: tx.delete(kind, id_))

    # -- what happens ------------------------------------------------------------------------------

    def scale(self, id_, replicas) -> None:
        """As UpdateService does it: the spec gets a new version."""

        def edit(s):
            s.spec_version.index = s.meta.version.index
            s.spec.replicated.replicas = replicas

        self.change(Service, id_, edit)

    def availability(self, id_, value) -> None:
        self.change(Node, id_, lambda n: setattr(n.spec, "availability", value))

    def state(self, id_, value) -> None:
        """Sets the node's state; its agent answers only while it is READY."""
        (self.silent.discard if value == NodeStatus.READY else self.silent.add)(id_)
        self.change(Node, id_, lambda n: setattr(n.status, "state", value))

    def report(self, task_id, state) -> None:
        """An agent's report, if it is news."""
        if self.get(Task, task_id).status.state >= state:
            return

        def edit(t):
            t.status.state = state
            t.status.timestamp.FromNanoseconds(self.wall_ns)
            t.status.applied_at.FromNanoseconds(self.wall_ns)

        self.change(Task, task_id, edit)

    def fail(self, task_id, state=FAILED) -> None:
        self.report(task_id, state)

    @property
    def now(self) -> Now:
        return Now(self.monotonic, self.wall_ns)

    def step(self, component: Component) -> bool:
        """Let one component see its events and, if it wants to, decide once; whether it did anything."""
        queue = self.queues[component.name]
        acted = bool(queue)
        while queue:
            component.observe(queue.popleft())
        wake_at = component.wake_at()
        if wake_at is None or wake_at > self.monotonic:
            return acted

        def decide(tx):
            left = BATCH
            for unit in component.decide(tx, self.now):
                for write in unit:
                    apply(tx, write, self.now)
                left -= len(unit)
                if left <= 0:
                    break

        self.update(decide)
        return True

    def agents_act(self) -> bool:
        """Every agent that answers does what it is told; whether any did."""
        before = self.index
        for task in self.find(Task):
            if not self.agents or task.node_id in self.silent or not ASSIGNED <= task.status.state <= RUNNING:
                continue
            if task.desired_state > RUNNING:
                if task.id not in self.stubborn:
                    self.report(task.id, SHUTDOWN)
            else:
                self.report(task.id, READY if task.desired_state == READY else RUNNING)
        return self.index != before

    def settle(self, rounds: int = 500) -> None:
        """Until nobody has anything to do now."""
        for _ in range(rounds):
            order = list(self.components)
            if self.chance is not None:
                self.chance.shuffle(order)
            acted = [self.step(component) for component in order]
            if self.agents_act() or any(acted):
                continue
            return
        raise AssertionError(f"no rest after {rounds} rounds: {self.components}")

    def turn(self, seconds: float) -> None:
        """Let time pass; everybody acts when it is their time."""
        end = round(self.monotonic + seconds, 6)
        while True:
            self.settle()
            wakes = [w for w in (component.wake_at() for component in self.components) if w is not None]
            if not wakes or min(wakes) > end:
                break
            self._to(min(wakes))
        self._to(end)
        self.settle()

    def _to(self, monotonic: float) -> None:
        self.wall_ns += round((monotonic - self.monotonic) * NS)
        self.monotonic = monotonic

    def replace(self, component: Component, successor: Component) -> None:
        """The component dies; another takes over."""
        self.components[self.components.index(component)] = successor
        self.queues[component.name].clear()
        successor.resync(self)

    # -- what one looks at -------------------------------------------------------------------------

    def tasks(self, service_id="s") -> list[Task]:
        return sorted(
            self.find(Task, by.service(service_id)), key=lambda t: (t.slot, t.meta.created_at.ToNanoseconds(), t.id)
        )

    def running(self, service_id="s") -> list[Task]:
        return [t for t in self.tasks(service_id) if t.status.state == RUNNING and t.desired_state == RUNNING]

    def wanted(self, service_id="s") -> list[Task]:
        return [t for t in self.tasks(service_id) if t.desired_state <= RUNNING]

    def staying(self, service_id="s") -> list[Task]:
        return [t for t in self.tasks(service_id) if t.desired_state < REMOVE]


def ids(prefix: str = "t") -> Callable[[], str]:
    """Ids in order of making."""
    numbers: Iterator[int] = itertools.count()
    return lambda: f"{prefix}{next(numbers):06d}"
