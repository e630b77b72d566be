"""What agents report, as changes of objects. Pure: an object in, its new version or None (nothing to write) out."""

from __future__ import annotations

from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from swarm.api import objects_pb2, types_pb2

State = types_pb2.TaskState
_Publish = types_pb2.VolumePublishStatus

REPORTABLE = range(int(State.ACCEPTED), int(State.REJECTED) + 1)
"""States an agent may set. Below is the manager's; ORPHANED is the manager's word for an agent that says nothing."""


def timestamp(wall_ns: int) -> Timestamp:
    """Nanoseconds since the epoch as a protobuf Timestamp."""
    return Timestamp(seconds=wall_ns // 1_000_000_000, nanos=wall_ns % 1_000_000_000)


def task_status(
    task: objects_pb2.Task, reported: types_pb2.TaskStatus, applied_by: str, wall_ns: int
) -> objects_pb2.Task | None:
    """The task with the reported status; None if the report is older, out of the agent's range, or nothing new."""
    if reported.state not in REPORTABLE or reported.state < task.status.state:
        return None
    if _content(reported) == _content(task.status):
        return None
    changed = objects_pb2.Task()
    changed.CopyFrom(task)
    changed.status.CopyFrom(reported)
    changed.status.applied_by = applied_by
    changed.status.applied_at.CopyFrom(timestamp(wall_ns))
    return changed


def orphaned(task: objects_pb2.Task) -> objects_pb2.Task | None:
    """The task as lost with its node; only the state changes. None if it is not on a node, or over already."""
    if not State.ASSIGNED <= task.status.state <= State.RUNNING:
        return None
    changed = objects_pb2.Task()
    changed.CopyFrom(task)
    changed.status.state = State.ORPHANED
    return changed


def node_status(
    node: objects_pb2.Node,
    state: types_pb2.NodeStatus.State.ValueType,
    message: str = "",
    addr: str = "",
    description: Any = None,
) -> objects_pb2.Node | None:
    """The node in `state`; address and description stay where none is given. None if nothing changes."""
    changed = objects_pb2.Node()
    changed.CopyFrom(node)
    changed.status.state = state
    changed.status.message = message
    if addr:
        changed.status.addr = addr
    if description is not None:
        changed.description.CopyFrom(description)
    return None if changed == node else changed


def unpublished(volume: objects_pb2.Volume, node_id: str) -> objects_pb2.Volume | None:
    """The volume after `node_id` let it go; None if it was not asked to."""
    changed = objects_pb2.Volume()
    changed.CopyFrom(volume)
    for published in changed.publish_status:
        if published.node_id == node_id:
            published.state = _Publish.PENDING_UNPUBLISH
    return None if changed == volume else changed


def _content(status: types_pb2.TaskStatus) -> types_pb2.TaskStatus:
    """What the agent said, without the leader's stamps."""
    content = types_pb2.TaskStatus()
    content.CopyFrom(status)
    content.ClearField("applied_by")
    content.ClearField("applied_at")
    return content
