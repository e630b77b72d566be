"""Restarts: condition, delay, attempts, window; nodes that go (reference manager §6.7, §10.7)."""

from __future__ import annotations

import pytest

from procs.manager.allocator.allocator import Allocator
from procs.manager.orchestration.reaper import Reaper
from procs.manager.orchestration.replicated import Replicated
from procs.manager.orchestration.restart import attempts, delay_ns, may_restart
from procs.manager.orchestration.supervisor import RestartSupervisor
from procs.manager.scheduler.scheduler import Scheduler
from swarm.api.objects_pb2 import Node, Service, Task
from swarm.api.specs_pb2 import NodeSpec
from swarm.api.types_pb2 import (
    COMPLETE,
    FAILED,
    PENDING,
    READY,
    REJECTED,
    REMOVE,
    RUNNING,
    SHUTDOWN,
    NodeStatus,
    RestartPolicy,
)
from tests.unit.orchestration.world import World, global_service, ids, node, service

ANY, ON_FAILURE, NONE = RestartPolicy.ANY, RestartPolicy.ON_FAILURE, RestartPolicy.NONE


def world(*objects) -> World:
    w = World(RestartSupervisor(ids("r")), Replicated(ids("t")), Allocator(), Scheduler(), Reaper())
    w.put(*objects)
    w.settle()
    return w


def task(id_, *, created, state=FAILED, version=1, desired=SHUTDOWN, ended=0, attempts=0, window=0):
    made = Task(id=id_, service_id="s", slot=1, desired_state=desired)
    made.status.state = state
    made.status.timestamp.FromSeconds(ended)
    made.spec_version.index = version
    made.spec.restart.condition = ANY
    made.spec.restart.max_attempts = attempts
    made.spec.restart.window.FromSeconds(window)
    made.meta.created_at.FromSeconds(created)
    return made


@pytest.mark.parametrize(
    ("condition", "state", "again"),
    [
        (ANY, FAILED, True),
        (ANY, COMPLETE, True),
        (ANY, REJECTED, True),
        (ON_FAILURE, FAILED, True),
        (ON_FAILURE, REJECTED, True),
        (ON_FAILURE, COMPLETE, False),
        (NONE, FAILED, False),
        (NONE, COMPLETE, False),
    ],
)
def test_the_condition_decides_whether_an_ended_task_is_replaced(condition, state, again) -> None:
    w = world(node("a"), service("s", 1, condition=condition))
    first = w.running()[0]
    w.report(first.id, state)
    w.settle()
    assert w.get(Task, first.id).desired_state == SHUTDOWN
    assert len(w.running()) == (1 if again else 0)


def test_without_a_policy_every_end_is_followed_by_a_restart_after_five_seconds() -> None:
    made = service("s", 1)
    made.spec.task.ClearField("restart")
    w = world(node("a"), made)
    w.report(w.running()[0].id, COMPLETE)
    w.settle()
    w.turn(4.9)
    assert w.running() == []
    w.turn(0.1)
    assert len(w.running()) == 1


def test_a_policy_without_delay_means_five_seconds() -> None:
    made = Task()
    made.spec.restart.condition = ANY
    assert delay_ns(made) == 5_000_000_000


def test_the_replacement_is_prepared_during_the_delay_and_starts_after_it() -> None:
    w = world(node("a"), service("s", 1, delay=2))
    w.fail(w.running()[0].id)
    w.settle()
    replacement = w.wanted()[0]
    assert (replacement.desired_state, replacement.status.state, replacement.slot) == (READY, READY, 1)
    w.turn(1.999)
    assert w.running() == []
    w.turn(0.001)
    assert [t.id for t in w.running()] == [replacement.id]


def test_without_delay_the_replacement_of_an_ended_task_starts_at_once() -> None:
    w = world(node("a"), service("s", 1))
    w.fail(w.running()[0].id)
    w.settle()
    assert len(w.running()) == 1
    assert all(event.object.desired_state != READY for event in w.history if isinstance(event.object, Task))


def test_max_attempts_bounds_the_restarts_of_a_slot_and_a_new_spec_starts_over() -> None:
    w = world(node("a"), service("s", 2, attempts=2))
    for _ in range(5):
        for t in w.running():
            if t.slot == 1:
                w.fail(t.id)
        w.settle()
    assert [t.slot for t in w.running()] == [2]
    assert len([t for t in w.tasks() if t.slot == 1]) == 3

    # The next task of slot 2 has a new spec version, and its own attempts.
    w.scale("s", 2)
    w.settle()
    for _ in range(5):
        for t in w.running():
            w.fail(t.id)
        w.settle()
    second = w.get(Service, "s").spec_version.index
    assert len([t for t in w.tasks() if t.slot == 2 and t.spec_version.index == second]) == 3


def test_the_attempts_are_remembered_by_the_next_leader() -> None:
    w = world(node("a"), service("s", 1, attempts=2))
    for _ in range(5):
        for t in w.running():
            w.fail(t.id)
        w.settle()
        w.replace(w.components[0], RestartSupervisor(ids("q")))
        w.settle()
    assert w.running() == []
    assert len(w.tasks()) == 3


def test_a_window_forgets_old_attempts() -> None:
    w = world(node("a"), service("s", 1, attempts=1, window=10))
    for _ in range(4):
        w.turn(11)
        w.fail(w.running()[0].id)
        w.settle()
        assert len(w.running()) == 1
    w.turn(1)
    w.fail(w.running()[0].id)
    w.settle()
    assert w.running() == []


@pytest.mark.parametrize(
    ("slot", "window", "ended", "expected"),
    [
        ([0], 0, 100, 0),
        ([0, 1, 2], 0, 100, 2),
        ([0, 10, 20], 15, 30, 1),
        ([0, 10, 20], 15, 25, 1),  # the border itself is outside
        ([0, 10, 20], 16, 25, 2),
        ([0, 10, 20], 5, 100, 0),
    ],
)
def test_how_many_attempts_count(slot, window, ended, expected) -> None:
    tasks = [task(f"t{n}", created=created, window=window, ended=ended) for n, created in enumerate(slot)]
    assert attempts(tasks[-1], tasks) == expected


def test_attempts_of_another_spec_version_and_of_leaving_tasks_do_not_count() -> None:
    last = task("t9", created=9, attempts=1)
    slot = [task("t1", created=1, version=0), task("t2", created=2, desired=REMOVE), last]
    assert attempts(last, slot) == 0
    assert may_restart(last, slot)
    assert not may_restart(last, [task("t3", created=3), *slot])


def test_a_replacement_that_fails_in_its_delay_is_replaced_when_the_delay_is_over() -> None:
    w = world(node("a"), service("s", 1, delay=3))
    w.fail(w.running()[0].id)
    w.settle()
    second = w.wanted()[0]
    w.fail(second.id, REJECTED)
    w.turn(2.9)
    assert [t.id for t in w.wanted()] == [second.id]
    w.turn(0.1)
    (third,) = w.wanted()
    assert third.id != second.id
    assert third.desired_state == READY
    w.turn(3)
    assert [t.id for t in w.running()] == [third.id]


def test_draining_waits_for_the_old_task_to_stop_but_not_for_the_delay() -> None:
    w = world(node("a"), node("b"), service("s", 1, delay=30))
    (old,) = w.running()
    w.stubborn.add(old.id)
    w.availability(old.node_id, NodeSpec.DRAIN)
    w.settle()
    assert w.running() == []
    assert w.wanted()[0].desired_state == READY
    w.stubborn.clear()
    w.settle()
    assert len(w.running()) == 1
    assert w.running()[0].node_id != old.node_id


def test_a_task_that_does_not_stop_holds_its_successor_for_a_minute_after_the_delay() -> None:
    w = world(node("a"), node("b"), service("s", 1, delay=100))
    (old,) = w.running()
    w.stubborn.add(old.id)
    w.change(Node, old.node_id, lambda n: setattr(n.spec, "availability", NodeSpec.DRAIN))
    w.settle()
    w.turn(59.9)
    assert w.running() == []
    w.turn(0.1)
    assert len(w.running()) == 1


def test_the_tasks_of_a_node_that_is_down_move_after_the_delay_without_waiting_for_them() -> None:
    w = world(node("a"), node("b"), service("s", 4, delay=5))
    w.state("a", NodeStatus.DOWN)
    w.settle()
    assert len(w.running()) == 2
    w.turn(5)
    assert [t.node_id for t in w.running()] == ["b"] * 4


def test_a_deleted_node_loses_its_tasks() -> None:
    w = world(node("a"), node("b"), service("s", 4))
    w.delete(Node, "a")
    w.settle()
    assert [t.node_id for t in w.running()] == ["b"] * 4


@pytest.mark.parametrize("state", [NodeStatus.UNKNOWN, NodeStatus.DISCONNECTED])
def test_a_node_of_unknown_state_keeps_its_tasks(state) -> None:
    w = world(node("a"), node("b"), service("s", 4))
    before = [t.id for t in w.running()]
    w.state("a", state)
    w.settle()
    assert [t.id for t in w.running()] == before


def test_a_paused_node_keeps_its_tasks() -> None:
    w = world(node("a"), node("b"), service("s", 4))
    before = [t.id for t in w.running()]
    w.availability("a", NodeSpec.PAUSE)
    w.settle()
    assert [t.id for t in w.running()] == before


def test_a_task_that_comes_up_on_a_lost_node_is_moved() -> None:
    w = world(node("a"), node("b", state=NodeStatus.DOWN), service("s", 0))
    made = Task(id="x", service_id="s", slot=1, node_id="b", desired_state=RUNNING)
    made.status.state = RUNNING
    made.spec.CopyFrom(w.get(Service, "s").spec.task)
    w.change(Service, "s", lambda s: setattr(s.spec.replicated, "replicas", 1))
    w.put(made)
    w.settle()
    assert [t.node_id for t in w.running()] == ["a"]


def test_with_condition_none_a_lost_task_is_not_replaced() -> None:
    w = world(node("a"), node("b"), service("s", 2, condition=NONE))
    w.state("a", NodeStatus.DOWN)
    w.settle()
    assert [t.node_id for t in w.running()] == ["b"]


def test_the_next_leader_waits_for_what_is_left_of_a_delay() -> None:
    w = world(node("a"), service("s", 1, delay=5))
    w.fail(w.running()[0].id)
    w.turn(3)
    w.replace(w.components[0], RestartSupervisor(ids("q")))
    w.turn(1.9)
    assert w.running() == []
    w.turn(0.1)
    assert len(w.running()) == 1


def test_the_next_leader_replaces_what_ended_while_nobody_led() -> None:
    w = world(node("a"), node("b"), service("s", 3))
    first = w.components[0]
    w.fail(w.running()[0].id)
    w.report(w.running()[0].id, REJECTED)
    w.state("b", NodeStatus.DOWN)
    w.replace(first, RestartSupervisor(ids("q")))
    w.settle()
    assert [(t.slot, t.node_id) for t in w.running()] == [(1, "a"), (2, "a"), (3, "a")]


@pytest.mark.parametrize("jump", [-3600, 3600])
def test_a_jump_of_the_wall_clock_does_not_change_a_delay_under_way(jump) -> None:
    w = world(node("a"), service("s", 1, delay=5))
    w.fail(w.running()[0].id)
    w.turn(1)
    w.wall_ns += jump * 10**9
    w.turn(3.9)
    assert w.running() == []
    w.turn(0.1)
    assert len(w.running()) == 1


def test_a_delay_seen_by_a_leader_whose_clock_is_behind_is_never_longer_than_itself() -> None:
    w = world(node("a"), service("s", 1, delay=5))
    w.fail(w.running()[0].id)
    w.settle()
    w.wall_ns -= 3600 * 10**9
    w.replace(w.components[0], RestartSupervisor(ids("q")))
    w.turn(5)
    assert len(w.running()) == 1


def test_scaling_down_ends_a_delay() -> None:
    w = world(node("a"), service("s", 1, delay=5))
    w.fail(w.running()[0].id)
    w.settle()
    assert w.components[0].wake_at() is not None
    w.scale("s", 0)
    w.settle()
    assert w.components[0].wake_at() is None
    w.turn(10)
    assert w.tasks() == []


def test_a_slot_that_has_a_successor_already_gets_no_second_one() -> None:
    w = world(node("a"), service("s", 1))
    (running,) = w.running()
    twin = Task()
    twin.CopyFrom(running)
    twin.id = "twin"
    twin.ClearField("meta")
    w.put(twin)
    w.fail("twin")
    w.settle()
    assert [t.id for t in w.wanted()] == [running.id]


def test_a_thousand_delays_are_one_timer_each_and_all_fire() -> None:
    w = world(node("a", cpu=1), node("b", cpu=1), service("s", 300, delay=5))
    w.state("a", NodeStatus.DOWN)
    w.settle()
    assert len(w.running()) == 150
    w.turn(5)
    assert len(w.running()) == 300
    assert w.components[0].wake_at() is None


def test_other_modes_are_not_restarted_here() -> None:
    task_ = Task(id="x", service_id="g", node_id="a", desired_state=RUNNING)
    task_.status.state = FAILED
    w = world(node("a"), global_service("g"), task_)
    assert w.get(Task, "x").desired_state == RUNNING
    assert w.components[0].wake_at() is None


def test_a_pending_task_is_not_restarted_for_want_of_a_node() -> None:
    w = world(service("s", 1))
    w.turn(1)
    assert [(t.status.state, t.desired_state) for t in w.tasks()] == [(PENDING, RUNNING)]


def test_a_node_that_goes_down_is_not_waited_for_any_longer() -> None:
    w = world(node("a"), service("s", 1))
    w.silent.add("a")
    w.availability("a", NodeSpec.DRAIN)
    w.put(node("b"))
    w.turn(1)
    assert w.wanted()[0].desired_state == READY
    w.state("a", NodeStatus.DOWN)
    w.settle()
    assert [t.node_id for t in w.wanted()] == ["b"]
    assert w.wanted()[0].status.state == RUNNING
