"""The allocator: moves new tasks on to PENDING once they have what they need (reference manager §8.1, §8.4).

There are no networks yet, so a task that names none has everything at once. One that does stays NEW, and its status
says why (in SwarmKit that is only in the log, §11.6-50).
"""

from __future__ import annotations

from collections.abc import Iterator

from procs.manager.orchestration.view import Now, View
from procs.manager.orchestration.writes import Report, Unit
from procs.manager.store import Action, Event, by
from swarm.api.objects_pb2 import Task
from swarm.api.types_pb2 import COMPLETE, NEW, PENDING

MESSAGE = "pending task scheduling"
NO_NETWORKS = "network support is unavailable"


class Allocator:
    """The component. Notes new tasks."""

    name = "allocator"

    def __init__(self) -> None:
        self._tasks: dict[str, None] = {}

    def resync(self, view: View) -> None:
        self._tasks = {task.id: None for task in view.find(Task, by.observed_state(NEW))}

    def observe(self, event: Event) -> None:
        if isinstance(event.object, Task) and event.action is Action.CREATE and event.object.status.state == NEW:
            self._tasks[event.object.id] = None

    def wake_at(self) -> float | None:
        return 0.0 if self._tasks else None

    def decide(self, view: View, _now: Now) -> Iterator[Unit]:
        for task_id in list(self._tasks):
            task = view.get(Task, task_id)
            # What shall not run any more needs nothing; the reaper deletes it.
            if task is not None and task.status.state == NEW and task.desired_state <= COMPLETE:
                if not task.spec.networks:
                    yield (Report(task_id, PENDING, MESSAGE),)
                elif task.status.err != NO_NETWORKS:
                    yield (Report(task_id, NEW, err=NO_NETWORKS),)
            del self._tasks[task_id]
