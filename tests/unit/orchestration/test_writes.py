"""Decisions are performed on the stored object, and never take a task backwards."""

from __future__ import annotations

import pytest

from procs.manager.orchestration.writes import Assign, Create, Desire, IllegalWrite, Remove, Report, apply
from swarm.api.objects_pb2 import Task
from swarm.api.types_pb2 import ASSIGNED, NEW, PENDING, READY, RUNNING, SHUTDOWN, GenericResource
from tests.unit.orchestration.world import World


def world(state=PENDING, desired=RUNNING) -> World:
    w = World()
    made = Task(id="x", desired_state=desired)
    made.status.state = state
    made.status.message = "as it was"
    made.status.err = "old"
    w.put(made)
    return w


def perform(w: World, write) -> Task:
    w.update(lambda tx: apply(tx, write, w.now))
    return w.get(Task, "x")


def test_an_assignment_sets_node_status_and_claims() -> None:
    w = world()
    claim = GenericResource()
    claim.discrete_resource_spec.kind = "gpu"
    task = perform(w, Assign("x", "n", "here", (claim,)))
    assert (task.node_id, task.status.state, task.status.message, task.status.err) == ("n", ASSIGNED, "here", "")
    assert list(task.assigned_generic_resources) == [claim]


def test_a_report_leaves_what_it_does_not_name() -> None:
    task = perform(world(), Report("x", PENDING, err="new"))
    assert (task.status.message, task.status.err) == ("as it was", "new")
    task = perform(world(), Report("x", SHUTDOWN, "over"))
    assert (task.status.state, task.status.message, task.status.err) == (SHUTDOWN, "over", "old")


def test_create_desire_and_remove() -> None:
    w = world()
    perform(w, Create(Task(id="y")))
    assert w.get(Task, "y") is not None
    assert perform(w, Desire("x", SHUTDOWN)).desired_state == SHUTDOWN
    assert perform(w, Remove("x")) is None


@pytest.mark.parametrize(
    "write",
    [Desire("x", READY), Desire("x", RUNNING), Report("x", NEW), Desire("gone", SHUTDOWN), Report("gone", RUNNING)],
    ids=str,
)
def test_no_state_is_ever_lowered_and_nothing_is_written_to_a_task_that_is_gone(write) -> None:
    with pytest.raises(IllegalWrite):
        perform(world(), write)


def test_a_task_that_went_on_is_not_assigned_again() -> None:
    with pytest.raises(IllegalWrite):
        perform(world(state=RUNNING), Assign("x", "n", "here"))
