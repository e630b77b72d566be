"""One task of this node, with everything that is under way for it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from procs.agent.database import TaskRow
from procs.agent.executor import Resolved
from procs.agent.task import Failed, Machine
from swarm.api import objects_pb2, types_pb2
from swarm.backoff import Backoff, BackoffPolicy

RETRY = BackoffPolicy(base=0.1, factor=2.0, cap=8.0)
"""Between two tries of one task's operation."""


@dataclass
class Entry:
    """The row as it is (or is about to be) stored, and what only this life of the agent knows."""

    row: TaskRow
    machine: Machine | None
    """None: the task is being removed."""
    resolved: Resolved | None = None
    prepared: bool = False
    preparing: bool = False
    starting: bool = False
    """Queued for a start, or its `add` is not answered yet."""
    awaiting: bool = False
    """`add` was answered, the plug-in's word about the process is still to come."""
    problem: Failed | None = None
    """Why the operation under way did not work."""
    stop_asked: str = ""
    """The workload's life that was asked to stop it."""
    cleaning: bool = False
    timer: asyncio.TimerHandle | None = None
    """Runs until the operation, or the removal, is tried again."""
    backoff: Backoff = field(default_factory=lambda: Backoff(RETRY))
    committed: int = 0
    """Version of the status that is durable."""
    successor: objects_pb2.Task | None = None
    """Assigned again while it was being removed."""
    lost_since: float = 0.0
    """Since when its process has been outliving its supervisor; monotonic seconds, 0: it does not."""

    @property
    def id(self) -> str:
        return self.row.id

    def cancel_timer(self) -> None:
        """Try again now rather than later."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
            self.problem = None


def restored(row: TaskRow) -> Entry:
    """The entry of a row that an earlier life of the agent wrote."""
    if row.removing:
        return Entry(row=row, machine=None, committed=row.version)
    task = objects_pb2.Task()
    task.CopyFrom(row.task)
    task.status.CopyFrom(row.status)
    return Entry(row=row, machine=Machine(task, row.status), committed=row.version)


def stray(task_id: str) -> Entry:
    """The entry of a task of which only a process or a directory is left: to be removed."""
    row = TaskRow(task_id, objects_pb2.Task(id=task_id), types_pb2.TaskStatus(), removing=True)
    return Entry(row=row, machine=None)


def without_status(task: objects_pb2.Task) -> objects_pb2.Task:
    """A copy for the database, which keeps the status apart."""
    copy = objects_pb2.Task()
    copy.CopyFrom(task)
    copy.ClearField("status")
    return copy
