"""Whatever happens, in whatever order the components act and whoever of them dies: what must always hold, and that
everything comes to rest where it should."""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from procs.manager.orchestration.leader import components
from procs.manager.store import Action
from swarm.api.objects_pb2 import Node, Service, Task
from swarm.api.specs_pb2 import NodeSpec
from swarm.api.types_pb2 import (
    ASSIGNED,
    COMPLETE,
    FAILED,
    ORPHANED,
    PENDING,
    REJECTED,
    RUNNING,
    NodeStatus,
    RestartPolicy,
)
from tests.unit.orchestration.world import World, node, service

NODES = ("a", "b", "c")
SERVICES = ("s", "t")
CPU = 3

ops = st.one_of(
    st.tuples(st.just("scale"), st.sampled_from(SERVICES), st.integers(0, 6)),
    st.tuples(st.just("remove"), st.sampled_from(SERVICES)),
    st.tuples(st.just("end"), st.integers(0, 20), st.sampled_from([FAILED, COMPLETE, REJECTED])),
    st.tuples(st.just("availability"), st.sampled_from(NODES), st.integers(0, 2)),
    st.tuples(
        st.just("state"),
        st.sampled_from(NODES),
        st.sampled_from([NodeStatus.READY, NodeStatus.DOWN, NodeStatus.UNKNOWN]),
    ),
    st.tuples(st.just("delete node"), st.sampled_from(NODES)),
    st.tuples(st.just("stubborn"), st.integers(0, 20)),
    st.tuples(st.just("turn"), st.sampled_from([0.5, 3, 61])),
    st.tuples(st.just("crash"), st.integers(0, 5)),
    st.tuples(st.just("steps"), st.integers(1, 12)),
    st.just(("settle",)),
)
policies = st.tuples(
    st.sampled_from([RestartPolicy.ANY, RestartPolicy.ON_FAILURE, RestartPolicy.NONE]),
    st.sampled_from([0.0, 2.0]),
    st.integers(0, 2),
)


@dataclass
class Drama:
    """A world, what may happen to it, and what is checked after each commit."""

    policy: tuple
    chance: random.Random
    world: World = field(init=False)
    checked: int = 0
    made: Counter = field(default_factory=Counter)
    generation: int = 0
    services: dict[str, str] = field(default_factory=dict)
    """Name to id: a service made anew is another one."""

    def __post_init__(self) -> None:
        self.world = World(*components(), chance=self.chance)
        for id_ in NODES:
            self.world.put(node(id_, cpu=CPU))
        for name in SERVICES:
            self.create(name)

    def create(self, name: str) -> None:
        condition, delay, attempts = self.policy
        self.generation += 1
        self.services[name] = id_ = f"{name}{self.generation}"
        self.world.put(service(id_, 2, condition=condition, delay=delay, attempts=attempts, cpu=1))

    def perform(self, op: tuple) -> None:
        w = self.world
        match op:
            case ("scale", name, replicas):
                if w.get(Service, self.services[name]) is None:
                    self.create(name)
                w.scale(self.services[name], replicas)
            case ("remove", name) if w.get(Service, self.services[name]) is not None:
                w.delete(Service, self.services[name])
            case ("end", number, state):
                running = [t for t in w.find(Task) if ASSIGNED <= t.status.state <= RUNNING]
                if running:
                    w.report(running[number % len(running)].id, state)
            case ("availability", id_, value) if w.get(Node, id_) is not None:
                w.availability(id_, value)
            case ("state", id_, value):
                if w.get(Node, id_) is None:
                    w.put(node(id_, cpu=CPU))
                w.state(id_, value)
            case ("delete node", id_) if w.get(Node, id_) is not None:
                self.remove_node(id_)
            case ("stubborn", number) if w.find(Task):
                tasks = w.find(Task)
                w.stubborn.add(tasks[number % len(tasks)].id)
            case ("turn", seconds):
                w.turn(seconds)
            case ("crash", number):
                victim = w.components[number % len(w.components)]
                w.replace(victim, type(victim)())
            case ("steps", number):
                for _ in range(number):
                    w.step(self.chance.choice(w.components))
            case ("settle",):
                w.settle()
        self.check()

    def remove_node(self, id_: str) -> None:
        """As RemoveNode does it: its tasks are orphaned in the same transaction."""

        def write(tx):
            for task in tx.find(Task):
                if task.node_id == id_ and task.status.state <= RUNNING:
                    copy = Task()
                    copy.CopyFrom(task)
                    copy.status.state = ORPHANED
                    tx.update(copy)
            tx.delete(Node, id_)

        self.world.update(write)

    def check(self) -> None:
        w = self.world
        for event in w.history[self.checked :]:
            task, old = event.object, event.old
            if not isinstance(task, Task):
                continue
            if event.action is Action.CREATE:
                self.made[task.service_id, task.slot, task.spec_version.index] += 1
            elif event.action is Action.UPDATE:
                assert task.status.state >= old.status.state
                assert task.desired_state >= old.desired_state
                assert task.spec == old.spec
                assert old.node_id in ("", task.node_id)
        self.checked = len(w.history)

        started = Counter((t.service_id, t.slot) for t in w.find(Task) if t.desired_state == RUNNING)
        assert not [slot for slot, number in started.items() if number > 1], "a slot with two tasks that shall run"
        used = Counter(t.node_id for t in w.find(Task) if ASSIGNED <= t.status.state <= RUNNING)
        assert all(number <= CPU for number in used.values()), f"more reserved than there is: {used}"

    def end(self) -> None:
        """Everything works again: where does it come to rest?"""
        w = self.world
        w.stubborn.clear()
        for id_ in NODES:
            if w.get(Node, id_) is None:
                w.put(node(id_, cpu=CPU))
            w.state(id_, NodeStatus.READY)
            w.availability(id_, NodeSpec.ACTIVE)
        w.turn(200)
        self.check()
        for id_ in {t.service_id for t in w.find(Task)} | set(self.services.values()):
            made = w.get(Service, id_)
            tasks = w.staying(id_)
            if made is None:
                assert w.tasks(id_) == []
                continue
            slots = {t.slot for t in tasks}
            assert len(slots) == made.spec.replicated.replicas
            assert all(t.desired_state >= RUNNING for t in tasks), "a delay that never ended"
            assert all(t.desired_state <= RUNNING or t.status.state > RUNNING or not t.node_id for t in tasks)
        shall = [t for id_ in self.services.values() for t in w.wanted(id_)]
        up = [t for t in shall if t.status.state == RUNNING]
        assert len(up) == min(len(shall), CPU * len(NODES))
        index = w.index
        w.turn(10_000)
        assert w.index == index, "no rest"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(policy=policies, seed=st.integers(0, 2**32), script=st.lists(ops, max_size=25))
def test_what_always_holds(policy, seed, script) -> None:
    drama = Drama(policy, random.Random(seed))
    for op in script:
        drama.perform(op)
    drama.end()
    attempts = policy[2]
    if attempts:
        for (_, slot, version), number in drama.made.items():
            assert number <= attempts + 1, f"slot {slot}, spec {version}: {number} tasks"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32),
    cpus=st.lists(st.integers(0, 6), min_size=1, max_size=6),
    wanted=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), min_size=1, max_size=4),
)
def test_one_state_has_one_outcome(seed, cpus, wanted) -> None:
    """Two leaders that start on the same stored state place every task alike, whatever order their memory has."""

    def outcome(shuffle: bool) -> dict[str, str]:
        w = World()
        for number, cpu in enumerate(cpus):
            w.put(node(f"n{number}", cpu=cpu))
        for number, (replicas, cpu) in enumerate(wanted):
            w.put(service(f"s{number}", replicas, cpu=cpu))
        for number, (replicas, _) in enumerate(wanted):
            for slot in range(1, replicas + 1):
                task = Task(id=f"{number}-{slot}", service_id=f"s{number}", slot=slot, desired_state=RUNNING)
                task.status.state = PENDING
                task.spec_version.index = 1
                task.spec.CopyFrom(w.get(Service, f"s{number}").spec.task)
                w.put(task)
        if shuffle:
            for table in w.tables.values():
                entries = list(table.entries.items())
                random.Random(seed).shuffle(entries)
                table.entries = dict(entries)
        scheduler = components()[4]
        w.components = [scheduler]
        w.queues = {scheduler.name: deque()}
        scheduler.resync(w)
        w.agents = False
        w.settle()
        return {t.id: f"{t.node_id} {t.status.err}" for t in w.find(Task)}

    assert outcome(False) == outcome(True)


@settings(max_examples=60, deadline=None)
@given(
    loads=st.lists(st.integers(0, 5), min_size=1, max_size=6),
    cpus=st.lists(st.integers(0, 8), min_size=6, max_size=6),
    replicas=st.integers(0, 20),
)
def test_spreading_is_as_even_as_the_room_allows(loads, cpus, replicas) -> None:
    """Against the plain rule: each task goes to the fitting node with fewest of the service, then fewest in all."""
    w = World(*components())
    names = [f"n{number}" for number in range(len(loads))]
    w.put(*(node(name, cpu=cpu) for name, cpu in zip(names, cpus, strict=False)), service("other", 0))
    for name, load in zip(names, loads, strict=True):
        for number in range(load):
            task = Task(id=f"{name}-{number}", service_id="ballast", node_id=name, desired_state=RUNNING)
            task.status.state = RUNNING
            w.put(task)
    w.put(Service(id="ballast"))
    w.put(service("s", replicas, cpu=1))
    w.settle()

    model = dict.fromkeys(names, 0)
    for _ in range(replicas):
        fitting = [n for n, name in enumerate(names) if model[name] < cpus[n]]
        if not fitting:
            break
        best = min(fitting, key=lambda n: (model[names[n]], model[names[n]] + loads[n], names[n]))
        model[names[best]] += 1
    assert dict(Counter(t.node_id for t in w.running())) == {name: n for name, n in model.items() if n}
    assert all(t.status.err for t in w.wanted() if not t.node_id)
