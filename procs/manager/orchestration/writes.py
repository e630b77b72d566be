"""What brains decide, as data; `apply` performs it inside a transaction.

A brain decides on the transaction's own state and each of its decisions is applied before it goes on, so nothing is
ever written from a copy that was read earlier (reference manager §11.5-33).
"""

from __future__ import annotations

from dataclasses import dataclass

from procs.manager.orchestration.view import Now, timestamp
from procs.manager.store import Tx
from swarm.api.objects_pb2 import Task
from swarm.api.types_pb2 import ASSIGNED, GenericResource, TaskState
from swarm.errors import SwarmvisorError


class IllegalWrite(SwarmvisorError):
    """A decision would take a task backwards: a defect of the brain that made it."""


@dataclass(frozen=True, slots=True)
class Create:
    """Store a new task."""

    task: Task


@dataclass(frozen=True, slots=True)
class Desire:
    """Raise a task's desired state."""

    task_id: str
    state: TaskState.ValueType


@dataclass(frozen=True, slots=True)
class Report:
    """Set a task's status; `None` leaves a text as it is."""

    task_id: str
    state: TaskState.ValueType
    message: str | None = None
    err: str | None = None


@dataclass(frozen=True, slots=True)
class Assign:
    """Give a pending task to a node."""

    task_id: str
    node_id: str
    message: str
    generic: tuple[GenericResource, ...] = ()


@dataclass(frozen=True, slots=True)
class Remove:
    """Delete a task from the store; its agent then deletes what it left."""

    task_id: str


Write = Create | Desire | Report | Assign | Remove
Unit = tuple[Write, ...]
"""Writes that belong together: all in one transaction."""


def apply(tx: Tx, write: Write, now: Now) -> None:
    """Perform one decision. IllegalWrite if it would lower a state (reference manager §0.3), or the task is gone."""
    if isinstance(write, Create):
        tx.create(write.task)
        return
    if isinstance(write, Remove):
        tx.delete(Task, write.task_id)
        return
    stored = tx.get(Task, write.task_id)
    if stored is None:
        raise IllegalWrite(f"task {write.task_id} is gone, and {write} was decided")
    task = Task()
    task.CopyFrom(stored)
    if isinstance(write, Desire):
        if write.state <= task.desired_state:
            raise IllegalWrite(
                f"task {task.id}: desired state {task.desired_state} may only grow, not to {write.state}"
            )
        task.desired_state = write.state
    else:
        state = ASSIGNED if isinstance(write, Assign) else write.state
        if state < task.status.state:
            raise IllegalWrite(f"task {task.id}: observed state {task.status.state} may only grow, not to {state}")
        task.status.state = state
        task.status.timestamp.CopyFrom(timestamp(now.wall_ns))
        if isinstance(write, Assign):
            task.node_id = write.node_id
            task.status.message = write.message
            task.status.err = ""
            del task.assigned_generic_resources[:]
            task.assigned_generic_resources.extend(write.generic)
        else:
            if write.message is not None:
                task.status.message = write.message
            if write.err is not None:
                task.status.err = write.err
    tx.update(task)
