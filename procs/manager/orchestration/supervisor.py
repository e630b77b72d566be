"""The restart supervisor: replaces tasks that ended or lost their node, and starts replacements when their delay is
over and their predecessor has stopped (reference manager §6.4, §6.7).

A replacement is born with desired state READY in its predecessor's slot. It starts at its creation + the policy's
delay (at once if the old node was drained), and then not before the others in its slot that shall stop have stopped or
their node is DOWN or gone, at most `STOP_WAIT` later. All of that is read off the stored tasks, so a new leader goes
on where the old one stopped. A replacement that fails in its delay is itself replaced only when the delay is over.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from procs.manager.orchestration import restart
from procs.manager.orchestration.tasks import (
    Slot,
    alive,
    ended,
    in_slot,
    invalid,
    new_task,
    replicated,
    slot_of,
    wanted,
)
from procs.manager.orchestration.view import NS, Now, View, nanoseconds
from procs.manager.orchestration.writes import Create, Desire, Unit
from procs.manager.store import Action, Event, by
from swarm.api.objects_pb2 import Node, Service, Task
from swarm.api.specs_pb2 import NodeSpec
from swarm.api.types_pb2 import READY, RUNNING, SHUTDOWN
from swarm.identity import new_id


@dataclass(frozen=True, slots=True)
class Hold:
    """A replacement that waits. Monotonic seconds."""

    slot: Slot
    due: float
    """End of the delay."""
    cap: float
    """From here on it waits for nobody."""


class RestartSupervisor:
    """The component. Notes tasks to judge, nodes that cannot keep theirs, and replacements that wait."""

    name = "restart"

    def __init__(self, make_id: Callable[[], str] = new_id) -> None:
        self._make_id = make_id
        self._forget()

    def _forget(self) -> None:
        self._tasks: dict[str, None] = {}
        self._nodes: dict[str, None] = {}
        self._valid: set[str] = set()
        self._holds: dict[str, Hold] = {}
        self._waiting: dict[Slot, str] = {}
        self._timers: list[tuple[float, str]] = []
        self._wakes: dict[str, float] = {}

    def resync(self, view: View) -> None:
        self._forget()
        self._valid = {node.id for node in view.find(Node) if not invalid(node)}
        self._tasks = {task.id: None for task in view.find(Task) if self._interesting(task)}

    def observe(self, event: Event) -> None:
        if isinstance(event.object, Node):
            self._observe_node(event.action, event.object)
        elif isinstance(event.object, Task):
            self._observe_task(event.action, event.object)

    def _observe_node(self, action: Action, node: Node) -> None:
        if action is Action.DELETE or invalid(node):
            self._valid.discard(node.id)
            self._nodes[node.id] = None
            # A predecessor that somebody waits for may be on it.
            self._tasks.update(dict.fromkeys(self._holds))
        else:
            self._valid.add(node.id)

    def _observe_task(self, action: Action, task: Task) -> None:
        gone = action is Action.DELETE
        if gone or task.desired_state != READY:
            self._release(task.id)
        if not gone and self._interesting(task):
            self._tasks[task.id] = None
        if gone or not wanted(task):
            waiting = self._waiting.get(slot_of(task))
            if waiting is not None and (gone or ended(task)):
                self._tasks[waiting] = None

    def _interesting(self, task: Task) -> bool:
        """Whether something may have to be done about it."""
        if not wanted(task):
            return False
        if task.desired_state == READY and task.id not in self._holds:
            return True
        return ended(task) or bool(task.node_id and task.node_id not in self._valid)

    def wake_at(self) -> float | None:
        if self._tasks or self._nodes:
            return 0.0
        while self._timers and self._wakes.get(self._timers[0][1]) != self._timers[0][0]:
            heapq.heappop(self._timers)  # overtaken by a later one, or released
        return self._timers[0][0] if self._timers else None

    def decide(self, view: View, now: Now) -> Iterator[Unit]:
        for node_id in self._nodes:
            self._tasks.update({task.id: None for task in view.find(Task, by.node(node_id)) if wanted(task)})
        self._nodes.clear()
        while self._timers and self._timers[0][0] <= now.monotonic:
            at, task_id = heapq.heappop(self._timers)
            if self._wakes.get(task_id) == at:
                del self._wakes[task_id]
                self._tasks[task_id] = None
        for task_id in sorted(self._tasks):
            yield from self._judge(view, task_id, now)
            del self._tasks[task_id]

    def _judge(self, view: View, task_id: str, now: Now) -> Iterator[Unit]:
        task = view.get(Task, task_id)
        service = view.get(Service, task.service_id) if task is not None and task.service_id else None
        if task is None or service is None or not wanted(task) or not replicated(service):
            self._release(task_id)
            return
        lost = ended(task) or bool(task.node_id and invalid(view.get(Node, task.node_id)))
        if task.desired_state != READY:
            if lost:
                yield self._replace(view, service, task, now)
            return
        siblings = [other for other in in_slot(view, slot_of(task)) if other.id != task.id]
        hold = self._hold(view, task, siblings, now)
        if now.monotonic < hold.due:
            return
        if lost:
            yield self._replace(view, service, task, now)
        elif now.monotonic < hold.cap and any(alive(view, other) and not wanted(other) for other in siblings):
            self._wake(hold.cap, task_id)
            return
        else:
            yield (Desire(task_id, RUNNING),)
        self._release(task_id)

    def _replace(self, view: View, service: Service, task: Task, now: Now) -> Unit:
        """End `task`, and, if the policy allows it, make its successor."""
        slot = in_slot(view, slot_of(task))
        stop = Desire(task.id, SHUTDOWN)
        if any(wanted(other) for other in slot if other.id != task.id) or not restart.may_restart(task, slot):
            return (stop,)
        # Of the others none is wanted any more, and the old one is told to stop by this very decision.
        waits = any(alive(view, other) for other in slot)
        delayed = restart.delay_ns(task) > 0 and not _drained(view, task)
        desired = READY if waits or delayed else RUNNING
        return (stop, Create(new_task(view, service, task.slot, self._make_id(), desired, now)))

    def _hold(self, view: View, task: Task, siblings: list[Task], now: Now) -> Hold:
        """The task's waiting, noted when first seen: later jumps of the wall clock do not change it."""
        hold = self._holds.get(task.id)
        if hold is None:
            before = [other for other in siblings if not wanted(other)]
            delay = 0 if before and _drained(view, before[-1]) else restart.delay_ns(task)
            left = nanoseconds(task.meta.created_at) + delay - now.wall_ns
            due = now.monotonic + min(max(left, 0), delay) / NS
            hold = self._holds[task.id] = Hold(slot_of(task), due, due + restart.STOP_WAIT)
            self._waiting[hold.slot] = task.id
            if due > now.monotonic:
                self._wake(due, task.id)
        return hold

    def _wake(self, at: float, task_id: str) -> None:
        if self._wakes.get(task_id) != at:
            self._wakes[task_id] = at
            heapq.heappush(self._timers, (at, task_id))

    def _release(self, task_id: str) -> None:
        self._wakes.pop(task_id, None)
        hold = self._holds.pop(task_id, None)
        if hold is not None and self._waiting.get(hold.slot) == task_id:
            del self._waiting[hold.slot]


def _drained(view: View, task: Task) -> bool:
    node = view.get(Node, task.node_id) if task.node_id else None
    return node is not None and node.spec.availability == NodeSpec.DRAIN
