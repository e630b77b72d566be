"""Replicated services: as many slots as there shall be replicas (reference manager §6.4).

Slots are numbered from 1. Tasks that are on their way out (desired REMOVE) count for nothing. Of the others, a slot

- is **live** if one of its tasks shall run, or if its newest has ended and the policy says that it is not to be
  replaced (it has done its work: a slot is not started again just because somebody looks at the service);
- else is **dead**: its tasks get desired REMOVE, unless a new task takes the number and with it the history.

SwarmKit deletes the tasks of dead slots at once, even such as still run (§11.5-31); here the reaper does, when they
have stopped.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import count

from procs.manager.orchestration.restart import may_restart
from procs.manager.orchestration.tasks import age, leaving, new_task, replicated, wanted
from procs.manager.orchestration.view import Now, View
from procs.manager.orchestration.writes import Create, Desire, Unit
from procs.manager.store import Action, Event, by
from swarm.api.objects_pb2 import Service, Task
from swarm.api.types_pb2 import REMOVE, RUNNING
from swarm.identity import new_id

Slots = dict[int, list[Task]]
"""Tasks by slot number, oldest first."""


def classify(tasks: list[Task]) -> tuple[Slots, Slots]:
    """Live and dead slots."""
    slots: Slots = defaultdict(list)
    for task in sorted(tasks, key=age):
        if not leaving(task):
            slots[task.slot].append(task)
    live, dead = {}, {}
    for number, members in slots.items():
        if any(map(wanted, members)) or not may_restart(members[-1], members):
            live[number] = members
        else:
            dead[number] = members
    return live, dead


def by_preference(live: Slots) -> list[int]:
    """Slot numbers, the most worth keeping first.

    Running before not running, then low numbers; then each slot gets its place among those of its node (1st, 2nd …)
    and is sorted by that; without a node, or with two tasks that shall run, it comes last. So scaling down removes
    what is not assigned first, and then thins out the node with most copies.
    """
    tasks = {number: [task for task in members if wanted(task)] or members[-1:] for number, members in live.items()}
    order = sorted(live, key=lambda number: (not any(t.status.state == RUNNING for t in tasks[number]), number))
    copies: Counter[str] = Counter()
    place: dict[int, float] = {}
    for number in order:
        node_id = tasks[number][0].node_id
        if node_id and len(tasks[number]) == 1:
            copies[node_id] += 1
            place[number] = copies[node_id]
        else:
            place[number] = float("inf")
    return sorted(order, key=lambda number: place[number])


class Replicated:
    """The component. Notes services to look at, by id."""

    name = "replicated"

    def __init__(self, make_id: Callable[[], str] = new_id) -> None:
        self._make_id = make_id
        self._services: dict[str, None] = {}

    def resync(self, view: View) -> None:
        self._services = {service.id: None for service in view.find(Service)}
        # Tasks may have outlived their service: it is looked for, not found, and they are told to go (§11.5-30).
        self._services |= {task.service_id: None for task in view.find(Task) if task.service_id and not leaving(task)}

    def observe(self, event: Event) -> None:
        if isinstance(event.object, Service):
            self._services[event.object.id] = None
        elif isinstance(event.object, Task) and event.action is Action.DELETE and wanted(event.object):
            self._services[event.object.service_id] = None  # deleted by hand

    def wake_at(self) -> float | None:
        return 0.0 if self._services else None

    def decide(self, view: View, now: Now) -> Iterator[Unit]:
        for service_id in sorted(self._services):
            service = view.get(Service, service_id)
            if service is None:
                yield from _remove(view.find(Task, by.service(service_id)) if service_id else [])
            elif replicated(service):
                yield from self._reconcile(view, service, now)
            del self._services[service_id]

    def _reconcile(self, view: View, service: Service, now: Now) -> Iterator[Unit]:
        live, dead = classify(view.find(Task, by.service(service.id)))
        missing = service.spec.replicated.replicas - len(live)
        if missing > 0:
            free = (number for number in count(1) if number not in live)
            for _ in range(missing):
                number = next(free)
                dead.pop(number, None)
                yield (Create(new_task(view, service, number, self._make_id(), RUNNING, now)),)
        for number in by_preference(live)[service.spec.replicated.replicas :] if missing < 0 else ():
            yield from _remove(live[number])
        for number in sorted(dead):
            yield from _remove(dead[number])


def _remove(tasks: list[Task]) -> Iterator[Unit]:
    for task in tasks:
        if not leaving(task):
            yield (Desire(task.id, REMOVE),)
