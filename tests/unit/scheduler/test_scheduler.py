"""The scheduler on a swarm in memory: spread, explanations, waiting and waking (reference manager §7, §10.11)."""

from __future__ import annotations

from collections import Counter

import pytest

from procs.manager.allocator.allocator import Allocator
from procs.manager.orchestration.reaper import Reaper
from procs.manager.orchestration.replicated import Replicated
from procs.manager.orchestration.supervisor import RestartSupervisor
from procs.manager.scheduler.nodeset import NodeSet
from procs.manager.scheduler.scheduler import ASSIGNED_MESSAGE, CONFIRMED_MESSAGE, Scheduler, family_of
from swarm.api.objects_pb2 import Node, Service, Task
from swarm.api.specs_pb2 import NodeSpec
from swarm.api.types_pb2 import (
    ASSIGNED,
    COMPLETE,
    FAILED,
    PENDING,
    REJECTED,
    REMOVE,
    RUNNING,
    SHUTDOWN,
    NodeStatus,
)
from tests.unit.orchestration.world import World, ids, node, service


def world(*objects) -> World:
    w = World(Replicated(ids()), RestartSupervisor(ids("r")), Allocator(), Scheduler(), Reaper())
    w.put(*objects)
    w.settle()
    return w


def alone(*objects) -> World:
    """Only the scheduler."""
    w = World(Scheduler())
    w.agents = False
    w.put(*objects)
    w.settle()
    return w


def pending(id_, *, service_id="s", version=1, desired=RUNNING, node_id="", slot=1, cpu=0) -> Task:
    made = Task(id=id_, service_id=service_id, slot=slot, node_id=node_id, desired_state=desired)
    made.status.state = PENDING
    made.status.message = "pending task scheduling"
    made.spec_version.index = version
    made.spec.container.image = "host"
    made.spec.resources.reservations.nano_cpus = cpu * 10**9
    return made


def per_node(w: World, service_id="s") -> list[int]:
    return sorted(Counter(t.node_id for t in w.running(service_id)).values(), reverse=True)


def err(w: World, service_id="s") -> set[str]:
    return {t.status.err for t in w.tasks(service_id) if t.status.state == PENDING}


def test_eighteen_tasks_on_five_nodes() -> None:
    w = world(*(node(f"n{n}") for n in range(5)), service("s", 18))
    assert per_node(w) == [4, 4, 4, 3, 3]
    assert {t.status.message for t in w.running()} == {ASSIGNED_MESSAGE}
    assert {t.status.err for t in w.running()} == {""}


def test_ties_are_broken_by_node_id() -> None:
    w = world(*(node(n) for n in "cab"), service("s", 4))
    assert [t.node_id for t in w.running()] == ["a", "b", "c", "a"]


def test_a_second_service_balances_on_the_total() -> None:
    w = world(node("a"), node("b"), service("s", 3))
    w.put(service("other", 1))
    w.settle()
    assert [t.node_id for t in w.running("other")] == ["b"]


def test_scaling_up_goes_to_the_node_with_fewest_tasks_of_the_service() -> None:
    w = world(node("a"), service("s", 4))
    w.put(node("b"))
    w.scale("s", 8)
    w.settle()
    assert per_node(w) == [4, 4]


def test_no_nodes() -> None:
    w = world(service("s", 2))
    assert err(w) == {"no suitable node"}
    w.put(node("a"))
    w.settle()
    assert len(w.running()) == 2


def test_the_explanation_names_all_reasons() -> None:
    w = world(
        node("a", availability=NodeSpec.DRAIN),
        node("b", state=NodeStatus.DOWN),
        node("c", cpu=1),
        service("s", 1, cpu=2),
    )
    assert err(w) == {"no suitable node (2 nodes not available for new tasks; insufficient resources on 1 node)"}
    (waiting,) = w.tasks()
    assert (waiting.status.state, waiting.status.message) == (PENDING, "pending task scheduling")


def test_a_host_task_waits_for_a_node_that_runs_processes() -> None:
    w = world(node("docker", process=False), node("docker2", process=False), service("s", 1))
    assert err(w) == {"no suitable node (no process runtime on 2 nodes)"}
    w.put(node("ours"))
    w.settle()
    assert [t.node_id for t in w.running()] == ["ours"]


def test_what_does_not_fit_waits_with_a_reason_and_comes_when_something_is_freed() -> None:
    w = world(node("a", cpu=3), service("s", 5, cpu=1))
    assert len(w.running()) == 3
    assert err(w) == {"no suitable node (insufficient resources on 1 node)"}
    w.report(w.running()[0].id, COMPLETE)
    w.settle()
    assert len(w.running()) == 3
    w.scale("s", 3)
    w.settle()
    assert len(w.running()) == 3
    assert err(w) == set()


def test_a_task_that_still_stops_keeps_its_resources() -> None:
    w = world(node("a", cpu=1), service("s", 1, cpu=1))
    (old,) = w.running()
    w.stubborn.add(old.id)
    w.delete(Service, "s")
    w.put(service("next", 1, cpu=1))
    w.settle()
    assert w.running("next") == []
    w.stubborn.clear()
    w.settle()
    assert len(w.running("next")) == 1


@pytest.mark.parametrize(
    "wake",
    [
        lambda w: w.put(node("b")),
        lambda w: w.change(Node, "a", lambda n: setattr(n.description.resources, "nano_cpus", 9 * 10**9)),
        lambda w: w.delete(Task, "big"),
        lambda w: w.report("big", FAILED),
    ],
    ids=["node created", "node grew", "task deleted", "task ended"],
)
def test_what_wakes_a_waiting_task(wake) -> None:
    big = pending("big", service_id="other", cpu=1)
    big.node_id, big.status.state = "a", RUNNING
    w = alone(node("a", cpu=1), big, service("s", 1), pending("x", cpu=1))
    assert w.get(Task, "x").status.state == PENDING
    wake(w)
    w.settle()
    assert w.get(Task, "x").status.state == ASSIGNED


def test_a_deleted_node_changes_the_explanation() -> None:
    w = alone(node("a", cpu=0), node("b", availability=NodeSpec.DRAIN), service("s"), pending("x", cpu=1))
    w.delete(Node, "a")
    w.settle()
    assert w.get(Task, "x").status.err == "no suitable node (1 node not available for new tasks)"


def test_waiting_for_the_same_reason_is_not_written_again() -> None:
    w = alone(node("a", cpu=0), service("s"), *(pending(f"x{n}", cpu=1) for n in range(5)))
    w.change(Node, "a", lambda n: setattr(n.status, "message", "hello"))
    index = w.index
    w.settle()
    assert w.index == index
    w.put(pending("late", cpu=1))
    index = w.index
    w.settle()
    assert w.index == index + 1
    assert w.get(Task, "late").status.err == "no suitable node (insufficient resources on 1 node)"


def test_the_next_leader_knows_what_is_taken_and_does_not_repeat_the_reason() -> None:
    w = world(node("a", cpu=3), service("s", 5, cpu=1))
    index = w.index
    w.replace(w.components[3], Scheduler())
    w.settle()
    assert w.index == index
    assert len(w.running()) == 3


def test_a_node_that_is_not_ready_gets_nothing_until_it_is() -> None:
    w = world(node("a", state=NodeStatus.UNKNOWN), service("s", 1))
    assert w.running() == []
    w.state("a", NodeStatus.READY)
    w.settle()
    assert len(w.running()) == 1


@pytest.mark.parametrize(("preassigned", "expected"), [("", "b"), ("a", None)])
def test_a_drain_that_is_committed_but_not_yet_observed_is_respected(preassigned, expected) -> None:
    w = alone(node("a"), node("b"), service("s"))
    scheduler = w.components[0]
    w.put(pending("x", node_id=preassigned))
    while w.queues["scheduler"]:
        scheduler.observe(w.queues["scheduler"].popleft())
    w.change(Node, "a", lambda n: setattr(n.spec, "availability", NodeSpec.DRAIN))
    w.queues["scheduler"].clear()
    w.step(scheduler)
    task = w.get(Task, "x")
    assert (task.node_id if task.status.state == ASSIGNED else None) == expected


def test_a_task_that_was_told_to_go_meanwhile_is_not_placed() -> None:
    w = alone(node("a"), service("s"))
    scheduler = w.components[0]
    w.put(pending("x"), pending("y"))
    while w.queues["scheduler"]:
        scheduler.observe(w.queues["scheduler"].popleft())
    w.change(Task, "x", lambda t: setattr(t, "desired_state", REMOVE))
    w.queues["scheduler"].clear()
    w.step(scheduler)
    assert w.get(Task, "x").status.state == PENDING
    assert w.get(Task, "y").status.state == ASSIGNED


@pytest.mark.parametrize("waits", [False, True], ids=["at once", "after waiting"])
def test_a_pending_task_told_to_stop_is_over_so_that_nobody_waits_for_it(waits) -> None:
    w = alone(service("s"), pending("x", desired=RUNNING if waits else SHUTDOWN))
    if waits:
        assert w.get(Task, "x").status.err == "no suitable node"
        w.change(Task, "x", lambda t: setattr(t, "desired_state", SHUTDOWN))
        w.settle()
    assert w.get(Task, "x").status.state == SHUTDOWN
    assert w.components[0].wake_at() is None


def test_a_task_of_an_older_spec_gets_no_explanation() -> None:
    new = service("s")
    new.spec_version.index = 7
    w = alone(new, pending("old", version=1), pending("new", version=7, slot=2))
    assert w.get(Task, "old").status.err == ""
    assert w.get(Task, "new").status.err == "no suitable node"
    w.put(node("a"))
    w.settle()
    assert {w.get(Task, t).status.state for t in ("old", "new")} == {ASSIGNED}


def test_tasks_of_a_service_that_is_gone_are_dropped() -> None:
    w = alone(pending("x"))
    w.put(node("a"))
    w.settle()
    assert w.get(Task, "x").status.state == PENDING
    assert w.get(Task, "x").status.err == ""


def test_a_task_without_service_is_placed_alone() -> None:
    w = alone(node("a"), pending("x", service_id=""), pending("y", service_id=""))
    assert [w.get(Task, t).node_id for t in "xy"] == ["a", "a"]


def test_a_preassigned_task_is_confirmed_or_told_why_not() -> None:
    w = alone(node("a", cpu=1), service("g"), *(pending(t, service_id="g", node_id="a", slot=0, cpu=1) for t in "xy"))
    x, y = w.get(Task, "x"), w.get(Task, "y")
    assert (x.status.state, x.status.message) == (ASSIGNED, CONFIRMED_MESSAGE)
    assert (y.status.state, y.status.err) == (PENDING, "insufficient resources on 1 node")
    w.delete(Task, "x")
    w.settle()
    assert w.get(Task, "y").status.state == ASSIGNED


def test_a_node_where_a_service_failed_five_times_comes_last_for_five_minutes() -> None:
    w = world(node("a"), node("b", availability=NodeSpec.PAUSE), service("s", 1))
    for n in range(5):
        w.fail(w.running()[0].id, REJECTED if n % 2 else FAILED)
        w.settle()
    w.availability("a", NodeSpec.PAUSE)
    w.availability("b", NodeSpec.ACTIVE)
    w.put(service("other", 3))
    w.settle()
    assert per_node(w, "other") == [3]
    w.availability("a", NodeSpec.ACTIVE)
    w.fail(w.running()[0].id)
    w.settle()
    assert w.running()[0].node_id == "b"  # which has more to do, and has not failed
    w.turn(300)
    w.fail(w.running()[0].id)
    w.settle()
    assert w.running()[0].node_id == "a"


def test_failures_count_only_for_the_same_spec_and_are_forgotten() -> None:
    nodes = NodeSet()
    nodes.put(node("a"))
    info = nodes.get("a")
    family = family_of(pending("x"))
    for n in range(5):
        nodes.failed("a", family, float(n))
    assert info.rank(family, 10.0)[0] == 5
    assert info.rank(("s", 2), 10.0)[0] == 0
    assert info.rank(family, 300.5)[0] == 0  # one is forgotten, four are not enough
    assert info.rank(family, 1000.0)[0] == 0
    assert not info.failures


def failing(id_, seconds_ago, w) -> Task:
    made = pending(id_, node_id="a")
    made.status.state = FAILED
    made.desired_state = SHUTDOWN
    made.status.timestamp.FromNanoseconds(w.wall_ns - seconds_ago * 10**9)
    return made


@pytest.mark.parametrize(("ago", "expected"), [(10, "b"), (400, "a")])
def test_the_next_leader_remembers_the_failures_that_are_stored(ago, expected) -> None:
    w = alone(node("a"), node("b"), service("s"))
    running = pending("other", service_id="else", node_id="b")
    running.status.state = RUNNING
    w.put(running, *(failing(f"f{n}", ago, w) for n in range(5)))
    w.replace(w.components[0], Scheduler())
    w.put(pending("x"))
    w.settle()
    assert w.get(Task, "x").node_id == expected


def test_max_replicas_per_node() -> None:
    made = service("s", 5)
    made.spec.task.placement.max_replicas = 2
    w = world(node("a"), node("b"), made)
    assert per_node(w) == [2, 2]
    assert err(w) == {"no suitable node (max replicas per node limit exceed)"}


def test_low_slots_are_served_first() -> None:
    w = alone(node("a", cpu=2), service("s"))
    w.put(*(pending(id_, slot=slot, cpu=1) for id_, slot in (("x", 3), ("y", 2), ("z", 1))))
    w.settle()
    assert [w.get(Task, t).status.state for t in "xyz"] == [PENDING, ASSIGNED, ASSIGNED]


def test_groups_are_served_oldest_first() -> None:
    w = alone(service("s"), service("older"))
    w.put(pending("z", service_id="older", cpu=1))
    w.put(pending("a", cpu=1))
    w.settle()
    w.put(node("n", cpu=1))
    w.settle()
    assert [w.get(Task, t).status.state for t in "za"] == [ASSIGNED, PENDING]


def test_the_books_are_the_same_as_counted_anew() -> None:
    w = world(node("a", cpu=4), node("b", cpu=4), service("s", 6, cpu=1))
    for _ in range(3):
        w.fail(w.running()[0].id)
        w.settle()
    w.availability("a", NodeSpec.DRAIN)
    w.settle()
    w.scale("s", 3)
    w.settle()
    books = {i.id: (i.cpu, i.memory, i.active, i.places, dict(i.active_of)) for i in w.components[3]._nodes}
    anew = Scheduler()
    anew.resync(w)
    assert books == {i.id: (i.cpu, i.memory, i.active, i.places, dict(i.active_of)) for i in anew._nodes}


def test_a_node_object_that_returns_finds_its_tasks_still_booked() -> None:
    nodes = NodeSet()
    nodes.put(node("a", cpu=1))
    placed = pending("x", node_id="a", cpu=1)
    placed.status.state = RUNNING
    assert not nodes.track(placed)
    nodes.remove("a")
    assert nodes.get("a") is None
    assert list(nodes) == []
    nodes.put(node("a", cpu=1))
    assert nodes.get("a").cpu == 10**9
    assert nodes.forget("x")
    assert not nodes.forget("x")
    nodes.remove("a")
    assert nodes._infos == {}
