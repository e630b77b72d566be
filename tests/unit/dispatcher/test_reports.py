from __future__ import annotations

from typing import Any

import pytest

from procs.manager.dispatcher import reports
from swarm.api import objects_pb2, types_pb2

State = types_pb2.TaskState
NodeState = types_pb2.NodeStatus


def task(state: Any, message: str = "") -> objects_pb2.Task:
    made = objects_pb2.Task(id="t", node_id="n")
    made.status.state = state
    made.status.message = message
    return made


def test_report_replaces_the_status_and_is_stamped() -> None:
    status = types_pb2.TaskStatus(state=State.RUNNING, message="started", err="")
    status.container.pid = 7
    changed = reports.task_status(task(State.ASSIGNED, "assigned"), status, "leader", 1_500_000_000_000_000_007)
    assert changed is not None
    assert (changed.status.state, changed.status.message, changed.status.container.pid) == (State.RUNNING, "started", 7)
    assert changed.status.applied_by == "leader"
    assert (changed.status.applied_at.seconds, changed.status.applied_at.nanos) == (1_500_000_000, 7)


@pytest.mark.parametrize("state", [State.NEW, State.PENDING, State.ASSIGNED, State.ORPHANED, State.REMOVE])
def test_states_that_are_the_managers_are_not_taken_from_an_agent(state: Any) -> None:
    assert reports.task_status(task(State.NEW), types_pb2.TaskStatus(state=state, message="x"), "l", 1) is None


def test_lower_state_is_ignored_and_equal_state_overwrites() -> None:
    assert reports.task_status(task(State.RUNNING), types_pb2.TaskStatus(state=State.READY), "l", 1) is None
    changed = reports.task_status(task(State.RUNNING), types_pb2.TaskStatus(state=State.RUNNING, err="x"), "l", 1)
    assert changed is not None
    assert changed.status.err == "x"


def test_same_report_again_is_no_news() -> None:
    status = types_pb2.TaskStatus(state=State.RUNNING, message="started")
    stored = reports.task_status(task(State.ASSIGNED), status, "l", 1)
    assert stored is not None
    assert reports.task_status(stored, status, "other leader", 2) is None


@pytest.mark.parametrize("state", list(State.values()))
def test_only_tasks_on_the_node_and_not_over_are_orphaned(state: Any) -> None:
    changed = reports.orphaned(task(state, "as it was"))
    if State.ASSIGNED <= state <= State.RUNNING:
        assert changed is not None
        assert (changed.status.state, changed.status.message) == (State.ORPHANED, "as it was")
    else:
        assert changed is None


def test_node_status_keeps_address_and_description_where_none_is_given() -> None:
    node = objects_pb2.Node(id="n")
    node.description.hostname = "h"
    node.status.addr = "192.0.2.1"
    node.status.message = "heartbeat failure"
    changed = reports.node_status(node, NodeState.READY)
    assert changed is not None
    assert (changed.status.message, changed.status.addr, changed.description.hostname) == ("", "192.0.2.1", "h")
    assert reports.node_status(changed, NodeState.READY) is None


def test_volume_the_node_was_not_asked_to_release_stays() -> None:
    volume = objects_pb2.Volume(id="v")
    volume.publish_status.add(node_id="other", state=types_pb2.VolumePublishStatus.PENDING_NODE_UNPUBLISH)
    assert reports.unpublished(volume, "n") is None
    volume.publish_status.add(node_id="n", state=types_pb2.VolumePublishStatus.PENDING_NODE_UNPUBLISH)
    changed = reports.unpublished(volume, "n")
    assert changed is not None
    assert [p.state for p in changed.publish_status] == [
        types_pb2.VolumePublishStatus.PENDING_NODE_UNPUBLISH,
        types_pb2.VolumePublishStatus.PENDING_UNPUBLISH,
    ]
