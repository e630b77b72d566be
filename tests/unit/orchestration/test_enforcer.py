"""The constraint enforcer: tasks that their node may not keep (reference manager §6.10, §10.10)."""

from __future__ import annotations

import pytest

from procs.manager.allocator.allocator import Allocator
from procs.manager.orchestration.enforcer import ERR, MESSAGE, ConstraintEnforcer
from procs.manager.orchestration.replicated import Replicated
from procs.manager.orchestration.supervisor import RestartSupervisor
from procs.manager.scheduler.scheduler import Scheduler
from swarm.api.objects_pb2 import Node, Service, Task
from swarm.api.specs_pb2 import NodeSpec
from swarm.api.types_pb2 import COMPLETE, MANAGER, REJECTED, RUNNING
from tests.unit.orchestration.world import NS, World, ids, node, service


def world(*objects) -> World:
    w = World(Replicated(ids()), RestartSupervisor(ids("r")), Allocator(), Scheduler(), ConstraintEnforcer())
    w.put(*objects)
    w.settle()
    return w


def constrained(*constraints, **more) -> Service:
    made = service("s", **more)
    made.spec.task.placement.constraints.extend(constraints)
    return made


def rejected(w: World) -> list[Task]:
    return [t for t in w.tasks() if t.status.state == REJECTED]


def test_a_label_that_goes_takes_its_tasks_along_and_they_move() -> None:
    w = world(node("a", labels={"disk": "ssd"}), node("b"), constrained("node.labels.disk==ssd"))
    w.change(Node, "b", lambda n: n.spec.annotations.labels.update(disk="ssd"))
    w.settle()
    assert [t.node_id for t in w.running()] == ["a"]
    w.change(Node, "a", lambda n: n.spec.annotations.labels.clear())
    w.settle()
    (gone,) = rejected(w)
    assert (gone.status.message, gone.status.err) == (MESSAGE, ERR)
    assert [t.node_id for t in w.running()] == ["b"]


def test_a_promotion_rejects_what_wants_a_worker() -> None:
    w = world(node("a"), constrained("node.role==worker"))
    w.change(Node, "a", lambda n: setattr(n, "role", MANAGER))
    w.settle()
    assert len(rejected(w)) == 1


def test_the_constraints_are_those_of_the_service_now() -> None:
    w = world(node("a"), constrained("node.id==a"))
    w.change(Service, "s", lambda s: s.spec.task.placement.constraints.append("node.labels.x==y"))
    w.settle()
    assert not rejected(w)  # a change of the service is the updater's
    w.change(Node, "a", lambda n: n.spec.annotations.labels.update(new="label"))
    w.settle()
    assert len(rejected(w)) == 1


@pytest.mark.parametrize("shrink", [("nano_cpus", 2 * NS), ("memory_bytes", 200)])
def test_when_a_node_shrinks_the_youngest_tasks_go(shrink) -> None:
    made = service("s", 4, cpu=1)
    made.spec.task.resources.reservations.memory_bytes = 100
    w = world(node("a"), made)
    first = [t.id for t in w.running()]
    w.change(Node, "a", lambda n: setattr(n.description.resources, *shrink))
    w.settle()
    assert [t.id for t in w.running()] == first[:2]
    assert len(rejected(w)) == 2


def test_a_node_that_says_nothing_of_its_resources_keeps_its_tasks() -> None:
    w = world(node("a"), service("s", 2, cpu=1))
    w.change(Node, "a", lambda n: n.description.ClearField("resources"))
    w.settle()
    assert len(w.running()) == 2


@pytest.mark.parametrize("availability", [NodeSpec.PAUSE, NodeSpec.DRAIN])
def test_only_active_nodes_are_looked_at(availability) -> None:
    w = world(node("a"), constrained("node.role==worker"))
    w.components = [w.components[4]]
    w.change(Node, "a", lambda n: setattr(n, "role", MANAGER))
    w.availability("a", availability)
    w.settle()
    assert not rejected(w)


def test_what_is_wrong_when_a_leader_starts_is_found() -> None:
    w = world(node("a"), constrained("node.role==worker"))
    enforcer = w.components[4]
    w.components = [enforcer]
    w.queues[enforcer.name].clear()
    w.change(Node, "a", lambda n: setattr(n, "role", MANAGER))
    w.replace(enforcer, ConstraintEnforcer())
    w.settle()
    assert len(rejected(w)) == 1


def test_ended_tasks_take_nothing() -> None:
    w = world(node("a"), service("s", 2, cpu=1))
    w.components = [w.components[4]]
    w.report(w.running()[0].id, COMPLETE)
    w.change(Node, "a", lambda n: setattr(n.description.resources, "nano_cpus", NS))
    w.settle()
    assert not rejected(w)
    assert len([t for t in w.tasks() if t.status.state == RUNNING]) == 1


def test_named_generic_resources_that_go_take_their_task_along() -> None:
    made = service("s", 2)
    wanted = made.spec.task.resources.reservations.generic.add().discrete_resource_spec
    wanted.kind, wanted.value = "gpu", 1
    host = node("a")
    for name in ("g0", "g1"):
        named = host.description.resources.generic.add().named_resource_spec
        named.kind, named.value = "gpu", name
    w = world(host, made)
    assert [t.assigned_generic_resources[0].named_resource_spec.value for t in w.running()] == ["g0", "g1"]
    w.change(Node, "a", lambda n: n.description.resources.generic.pop(0))
    w.components = [w.components[4]]
    w.settle()
    assert [t.assigned_generic_resources[0].named_resource_spec.value for t in rejected(w)] == ["g0"]


def test_a_status_change_of_the_node_is_nothing_to_look_at() -> None:
    enforcer = ConstraintEnforcer()
    w = World(enforcer)
    w.put(node("a"))
    w.settle()
    w.change(Node, "a", lambda n: setattr(n.status, "message", "hello"))
    enforcer.observe(w.queues[enforcer.name].pop())
    assert enforcer.wake_at() is None
