"""Replicated services: slots, what scaling creates and removes (reference manager §6.4, §10.7)."""

from __future__ import annotations

import pytest

from procs.manager.orchestration.replicated import Replicated, by_preference, classify
from procs.manager.orchestration.supervisor import RestartSupervisor
from swarm.api.objects_pb2 import Cluster, Service, Task
from swarm.api.types_pb2 import (
    COMPLETE,
    FAILED,
    NEW,
    PENDING,
    READY,
    REMOVE,
    RUNNING,
    SHUTDOWN,
    RestartPolicy,
)
from tests.unit.orchestration.world import World, global_service, ids, node, service


def world(*more) -> World:
    return World(Replicated(ids()), *more)


def slots(tasks) -> list[int]:
    return [task.slot for task in tasks]


def task(id_, slot, *, desired=RUNNING, state=RUNNING, node_id="a", version=1, created=0, condition=RestartPolicy.ANY):
    made = Task(id=id_, service_id="s", slot=slot, node_id=node_id, desired_state=desired)
    made.status.state = state
    made.spec_version.index = version
    made.spec.restart.condition = condition
    made.meta.created_at.FromSeconds(created)
    return made


def test_each_service_gets_its_own_tasks() -> None:
    w = world()
    w.put(service("s", 2), service("other", 3))
    w.settle()
    assert slots(w.tasks("s")) == [1, 2]
    assert slots(w.tasks("other")) == [1, 2, 3]


def test_a_new_task_says_what_it_was_made_of() -> None:
    w = world()
    w.change(Cluster, "c", lambda c: setattr(c.spec.task_defaults.log_driver, "name", "json"))
    made = service("s", 1)
    made.spec.annotations.labels["a"] = "b"
    w.put(made)
    w.settle()
    (created,) = w.tasks()
    stored = w.get(Service, "s")
    assert created.spec == stored.spec.task
    assert created.spec_version == stored.spec_version
    assert created.service_annotations == stored.spec.annotations
    assert (created.status.state, created.status.message, created.desired_state) == (NEW, "created", RUNNING)
    assert created.log_driver.name == "json"
    assert not created.annotations.name
    assert created.node_id == ""
    assert created.endpoint.HasField("spec")


def test_the_tasks_own_log_driver_wins() -> None:
    w = world()
    w.change(Cluster, "c", lambda c: setattr(c.spec.task_defaults.log_driver, "name", "json"))
    made = service("s", 1)
    made.spec.task.log_driver.name = "none"
    w.put(made)
    w.settle()
    assert w.tasks()[0].log_driver.name == "none"


def test_scale_up_and_down() -> None:
    w = world()
    w.put(service("s", 1))
    w.settle()
    w.scale("s", 3)
    w.settle()
    assert slots(w.wanted()) == [1, 2, 3]
    w.scale("s", 1)
    w.settle()
    assert slots(w.wanted()) == [1]
    assert [t.desired_state for t in w.tasks()] == [RUNNING, REMOVE, REMOVE]
    w.scale("s", 0)
    w.settle()
    assert w.wanted() == []


def test_a_task_deleted_by_hand_is_made_again() -> None:
    w = world()
    w.put(service("s", 2))
    w.settle()
    w.delete(Task, w.tasks()[0].id)
    w.settle()
    assert slots(w.wanted()) == [1, 2]


def test_tasks_of_a_deleted_service_are_told_to_go() -> None:
    w = world()
    w.put(service("s", 2), service("other", 1))
    w.settle()
    w.delete(Service, "s")
    w.settle()
    assert [t.desired_state for t in w.tasks("s")] == [REMOVE, REMOVE]
    assert len(w.wanted("other")) == 1


def test_tasks_that_outlived_their_service_are_told_to_go_at_start_not_deleted() -> None:
    w = world()
    w.agents = False
    w.put(task("x", 1), task("y", 0, desired=SHUTDOWN))
    w.replace(w.components[0], Replicated(ids()))
    w.settle()
    assert [t.desired_state for t in w.tasks()] == [REMOVE, REMOVE]


def test_other_modes_and_tasks_without_service_are_left_alone() -> None:
    w = world()
    alone = task("alone", 0)
    alone.service_id = ""
    w.put(global_service("g"), alone)
    w.settle()
    w.delete(Task, "alone")
    w.settle()
    assert w.find(Task) == []


def test_free_slot_numbers_are_taken_lowest_first() -> None:
    w = world()
    w.put(node("a"), task("x", 2), task("y", 4), service("s", 5))
    w.settle()
    assert slots(w.wanted()) == [1, 2, 3, 4, 5]


def test_a_number_whose_tasks_still_stop_is_given_again_and_nothing_is_deleted() -> None:
    w = world()
    w.agents = False
    w.put(node("a"), service("s", 1))
    w.settle()
    w.report(w.tasks()[0].id, RUNNING)
    w.scale("s", 0)
    w.settle()
    w.scale("s", 1)
    w.settle()
    assert [(t.slot, t.desired_state) for t in w.tasks()] == [(1, REMOVE), (1, RUNNING)]


def test_scaled_down_slots_lose_their_history_too() -> None:
    w = world(RestartSupervisor(ids("r")))
    w.agents = False
    w.put(node("a"), service("s", 2))
    w.settle()
    for t in w.tasks():
        w.fail(t.id)
    w.settle()
    w.scale("s", 1)
    w.settle()
    assert [(t.slot, t.desired_state >= REMOVE) for t in w.tasks()] == [(1, False), (1, False), (2, True), (2, True)]


def test_live_and_dead_slots() -> None:
    none = RestartPolicy.NONE
    tasks = [
        task("run", 1),
        task("old", 1, desired=SHUTDOWN, state=FAILED),
        task("done", 2, desired=SHUTDOWN, state=COMPLETE, condition=none),
        task("again", 3, desired=SHUTDOWN, state=COMPLETE),
        task("gone", 4, desired=REMOVE, condition=none),
        task("kept-by-nobody", 5, desired=SHUTDOWN, state=FAILED, created=1),
        task("done-before", 5, desired=SHUTDOWN, state=FAILED, condition=none, created=0),
        task("held", 6, desired=READY, state=PENDING),
    ]
    live, dead = classify(tasks)
    assert {number: [t.id for t in members] for number, members in live.items()} == {
        1: ["old", "run"],
        2: ["done"],
        6: ["held"],
    }
    assert sorted(dead) == [3, 5]  # slot 4 is on its way out: it counts for nothing


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        ([task("x", 1, state=NEW, node_id=""), task("y", 2)], [2, 1]),
        ([task("x", 1), task("y", 2), task("z", 3, node_id="b")], [1, 3, 2]),
        ([task("x", 1, state=FAILED), task("y", 2)], [2, 1]),
        ([task("x", 2), task("y", 1)], [1, 2]),
        ([task("x", 1), task("x2", 1), task("y", 2), task("z", 3)], [2, 3, 1]),
        ([task("x", 1, state=NEW, node_id=""), task("y", 2, state=NEW, node_id="")], [1, 2]),
    ],
    ids=["unassigned last", "most loaded node first out", "running first", "low number", "doubled last", "stable"],
)
def test_what_scaling_down_keeps(tasks, expected) -> None:
    live, _ = classify(tasks)
    assert by_preference(live) == expected


def test_scaling_down_thins_out_the_fullest_node() -> None:
    """7 → 6 → 4 → 2: unassigned, then the node with most copies (§10.7)."""
    w = world()
    w.agents = False
    w.put(*(node(n) for n in "abc"))
    placed = [("a", 1), ("a", 2), ("a", 3), ("b", 4), ("b", 5), ("c", 6)]
    w.put(*(task(f"t{n}", n, node_id=where) for where, n in placed), task("t7", 7, node_id="", state=PENDING))
    w.put(service("s", 7))
    w.settle()
    left = []
    for replicas in (6, 4, 2):
        w.scale("s", replicas)
        w.settle()
        left.append(slots(w.wanted()))
    assert left == [[1, 2, 3, 4, 5, 6], [1, 2, 4, 6], [1, 4]]


def test_a_finished_slot_is_not_started_again_by_looking_at_the_service() -> None:
    w = world(RestartSupervisor(ids("r")))
    w.agents = False
    w.put(node("a"), service("s", 2, condition=RestartPolicy.NONE))
    w.settle()
    w.fail(w.tasks()[0].id)
    w.settle()
    w.scale("s", 2)
    w.settle()
    assert [(t.slot, t.desired_state) for t in w.tasks()] == [(1, SHUTDOWN), (2, RUNNING)]
    w.scale("s", 3)
    w.settle()
    assert slots(w.wanted()) == [2, 3]


def test_many_replicas_take_several_transactions() -> None:
    w = world()
    w.agents = False
    w.put(service("s", 600))
    w.settle()
    assert slots(w.wanted()) == list(range(1, 601))
    w.scale("s", 0)
    w.settle()
    assert w.wanted() == []


def test_a_new_task_takes_over_the_history_of_a_slot_whose_task_was_deleted_by_hand() -> None:
    w = world(RestartSupervisor(ids("r")))
    w.agents = False
    w.put(node("a"), service("s", 1))
    w.settle()
    w.fail(w.tasks()[0].id)
    w.settle()
    w.delete(Task, w.wanted()[0].id)
    w.settle()
    assert [(t.slot, t.desired_state) for t in w.tasks()] == [(1, SHUTDOWN), (1, RUNNING)]
