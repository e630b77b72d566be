"""The task reaper: the only one who deletes tasks (reference manager §6.9).

- A task that shall be removed goes when it has stopped, or was never given to a node.
- A task of no service goes when it is orphaned.
- A slot keeps its newest tasks up to the history limit, the live one counted. Older ones go when they have been told
  to stop and have, or never started. Two rules are stricter than SwarmKit's: a task that ended but was not yet judged
  by the restart supervisor stays (it is the history that judges), and so does the newest of a slot (it is the proof
  that the slot has done its work).

Deleting the object is what lets the agent delete what the task left on its node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from procs.manager.orchestration.restart import history_limit
from procs.manager.orchestration.tasks import DEFAULT_CLUSTER, Slot, in_slot, leaving, replicated, slot_of, wanted
from procs.manager.orchestration.view import Now, View
from procs.manager.orchestration.writes import Remove, Unit
from procs.manager.store import Action, Event, by
from swarm.api.objects_pb2 import Cluster, Service, Task
from swarm.api.types_pb2 import ASSIGNED, COMPLETE, ORPHANED


def over(task: Task) -> bool:
    """Whether nothing of it runs and nothing will: it is not on a node, or has ended there."""
    return not wanted(task) and not ASSIGNED <= task.status.state < COMPLETE


def doomed(task: Task) -> bool:
    """Whether it can be deleted whatever the history."""
    if not task.service_id and task.status.state >= ORPHANED:
        return True
    return leaving(task) and over(task)


def outdated(slot: list[Task], limit: int) -> list[Task]:
    """What of a slot (oldest first) is beyond the history; negative `limit`: nothing."""
    kept = [task for task in slot if not leaving(task)]
    if limit < 0 or len(kept) <= limit:
        return []
    return [task for task in kept[:-1] if over(task)][: len(kept) - limit]


class Reaper:
    """The component. Notes tasks to delete and slots to trim, and how many tasks each slot has."""

    name = "reaper"

    def __init__(self) -> None:
        self._tasks: dict[str, None] = {}
        self._slots: dict[Slot, None] = {}
        self._sizes: Counter[Slot] = Counter()

    def resync(self, view: View) -> None:
        tasks = view.find(Task)
        self._tasks = {task.id: None for task in tasks if doomed(task)}
        self._sizes = Counter(slot_of(task) for task in tasks if task.service_id)
        self._slots = {slot: None for slot, size in self._sizes.items() if size > 1}

    def observe(self, event: Event) -> None:
        if isinstance(event.object, Task):
            self._observe_task(event)
        elif isinstance(event.object, Service):
            if event.action is Action.UPDATE and _attempts(event.old) != _attempts(event.object):
                self._slots |= {s: None for s, size in self._sizes.items() if size > 1 and s[0] == event.object.id}
        elif isinstance(event.object, Cluster):
            self._slots |= {slot: None for slot, size in self._sizes.items() if size > 1}

    def _observe_task(self, event: Event) -> None:
        task: Task = event.object
        slot = slot_of(task)
        if event.action is Action.DELETE:
            self._tasks.pop(task.id, None)
            self._sizes[slot] -= 1
            if self._sizes[slot] <= 0:
                del self._sizes[slot]
            return
        if event.action is Action.CREATE and task.service_id:
            self._sizes[slot] += 1
        if doomed(task):
            self._tasks[task.id] = None
        elif self._sizes.get(slot, 0) > 1 and (event.action is Action.CREATE or (over(task) and not over(event.old))):
            self._slots[slot] = None

    def wake_at(self) -> float | None:
        return 0.0 if self._tasks or self._slots else None

    def decide(self, view: View, _now: Now) -> Iterator[Unit]:
        for task_id in sorted(self._tasks):
            task = view.get(Task, task_id)
            if task is not None and doomed(task):
                yield (Remove(task_id),)
            del self._tasks[task_id]
        cluster_limit = _cluster_limit(view)
        for slot in sorted(self._slots):
            service = view.get(Service, slot[0])
            # Tasks of a service that is gone are leaving anyway.
            if service is not None and replicated(service):
                limit = history_limit(_attempts(service), cluster_limit)
                for task in outdated(in_slot(view, slot), limit):
                    yield (Remove(task.id),)
            del self._slots[slot]


def _attempts(service: Service) -> int:
    return service.spec.task.restart.max_attempts


def _cluster_limit(view: View) -> int:
    """The cluster's retention limit; without a cluster object nothing is known, and nothing deleted."""
    for cluster in view.find(Cluster, by.name(DEFAULT_CLUSTER)):
        return cluster.spec.orchestration.task_history_retention_limit
    return -1
