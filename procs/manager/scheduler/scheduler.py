"""The scheduler: gives each pending task a node, or says why there is none (reference manager §7).

Equal tasks (same service and spec version) wait together in a group and are placed in one go. A group whose tasks fit
nowhere is stuck: it is tried again when a node changed or something was freed, and its tasks are only looked at one by
one when some node has become suitable or the reason has changed.

The books of the nodes follow the commits; a task that is placed is booked at once, and its own commit then finds
nothing to change. If the transaction fails, everything is read anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from procs.manager.orchestration.tasks import ended, status_time
from procs.manager.orchestration.view import NS, Now, View, nanoseconds
from procs.manager.orchestration.writes import Assign, Report, Unit
from procs.manager.scheduler.filters import Pipeline
from procs.manager.scheduler.generic import quantities
from procs.manager.scheduler.nodeset import Family, NodeInfo, NodeSet
from procs.manager.scheduler.placement import spread
from procs.manager.store import Action, Event
from swarm.api.objects_pb2 import Node, Service, Task
from swarm.api.types_pb2 import ASSIGNED, COMPLETE, FAILED, PENDING, REJECTED, RUNNING, SHUTDOWN, GenericResource

ASSIGNED_MESSAGE = "scheduler assigned task to node"
CONFIRMED_MESSAGE = "scheduler confirmed task can run on preassigned node"
NO_NODE = "no suitable node"


def family_of(task: Task) -> Family:
    """Service and spec version. Without a spec version it is the spec itself; without a service, the task alone."""
    if not task.service_id:
        return ("", task.id.encode())
    if task.HasField("spec_version"):
        return (task.service_id, task.spec_version.index)
    return (task.service_id, task.spec.SerializeToString(deterministic=True))


class Group:
    """Equal tasks that wait for a node."""

    __slots__ = ("explanation", "fresh", "since", "stuck")

    def __init__(self, since: tuple[int, str]) -> None:
        self.since = since
        """Creation time and id of the first: the order in which groups are served."""
        self.fresh: dict[str, int] = {}
        """Not tried yet: task id to slot."""
        self.stuck: dict[str, int] = {}
        """Tried, and told `explanation`."""
        self.explanation: str | None = None


class Scheduler:
    """The component."""

    name = "scheduler"

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._nodes = NodeSet()
        self._groups: dict[Family, Group] = {}
        self._families: dict[str, Family] = {}
        self._due: set[Family] = set()
        self._preassigned: dict[str, None] = {}
        self._preassigned_due = False
        self._failed: deque[Task] = deque(maxlen=10_000)
        """Not yet in the books of their nodes."""

    # -- following -----------------------------------------------------------------------------------

    def resync(self, view: View) -> None:
        self._forget()
        for node in view.find(Node):
            self._nodes.put(node)
        for task in view.find(Task):
            self._nodes.track(task)
            if task.status.state == PENDING:
                self._wait(task)
            elif task.status.state in (FAILED, REJECTED):
                self._failed.append(task)

    def observe(self, event: Event) -> None:
        if isinstance(event.object, Task):
            self._observe_task(event)
        elif isinstance(event.object, Node):
            if event.action is Action.DELETE:
                self._nodes.remove(event.object.id)
            else:
                self._nodes.put(event.object)
            self._wake()

    def _observe_task(self, event: Event) -> None:
        task: Task = event.object
        if event.action is Action.DELETE:
            self._leave(task.id)
            if self._nodes.forget(task.id):
                self._wake()
            return
        state = task.status.state
        if state == PENDING:
            self._wait(task)
            return
        old: Task | None = event.old
        if (
            old is not None
            and ASSIGNED <= old.status.state <= state <= RUNNING
            and old.desired_state == task.desired_state
            and old.node_id == task.node_id
        ):
            return  # nothing that the books show; by far the most events
        self._leave(task.id)
        if self._nodes.track(task):
            self._wake()
        if state in (FAILED, REJECTED) and old is not None and not ended(old):
            self._failed.append(task)

    def _wait(self, task: Task) -> None:
        """Note a pending task, once."""
        if task.node_id:
            self._preassigned[task.id] = None
            self._preassigned_due = True
            return
        family = self._families.get(task.id)
        if family is None:
            family = self._families[task.id] = family_of(task)
            group = self._groups.get(family)
            if group is None:
                group = self._groups[family] = Group((nanoseconds(task.meta.created_at), task.id))
            group.fresh[task.id] = task.slot
            self._due.add(family)
        elif task.desired_state > COMPLETE:  # it must not wait any longer
            group = self._groups[family]
            group.stuck.pop(task.id, None)
            group.fresh[task.id] = task.slot
            self._due.add(family)

    def _leave(self, task_id: str) -> None:
        self._preassigned.pop(task_id, None)
        family = self._families.pop(task_id, None)
        if family is not None:
            group = self._groups[family]
            group.fresh.pop(task_id, None)
            group.stuck.pop(task_id, None)
            if not group.fresh and not group.stuck:
                del self._groups[family]
                self._due.discard(family)

    def _wake(self) -> None:
        """Something was freed or a node changed: what did not fit may fit now."""
        self._due.update(self._groups)
        self._preassigned_due = bool(self._preassigned)

    # -- deciding ------------------------------------------------------------------------------------

    def wake_at(self) -> float | None:
        return 0.0 if self._due or self._preassigned_due else None

    def decide(self, view: View, now: Now) -> Iterator[Unit]:
        while self._failed:
            task = self._failed.popleft()
            ago = max(0.0, (now.wall_ns - status_time(task)) / NS)
            self._nodes.failed(task.node_id, family_of(task), now.monotonic - ago)
        if self._preassigned_due:
            yield from self._confirm(view)
            self._preassigned_due = False
        groups = self._groups
        for family in sorted(self._due, key=lambda family: groups[family].since):
            yield from self._place(view, family, groups[family], now)
            self._due.discard(family)

    def _confirm(self, view: View) -> Iterator[Unit]:
        """Tasks that came with a node."""
        for task_id in sorted(self._preassigned):
            task = view.get(Task, task_id)
            if task is None or task.status.state != PENDING or not task.node_id:
                del self._preassigned[task_id]
                continue
            if task.desired_state > COMPLETE:
                continue
            self._refresh(view, task.node_id)
            info = self._nodes.get(task.node_id)
            pipeline = Pipeline(task)
            if info is not None and pipeline.passes(info):
                del self._preassigned[task_id]
                yield self._assign(task, info, CONFIRMED_MESSAGE)
            else:
                explanation = pipeline.explain([info] if info is not None else [])
                if task.status.err != explanation:
                    yield (Report(task_id, PENDING, err=explanation),)

    def _place(self, view: View, family: Family, group: Group, now: Now) -> Iterator[Unit]:
        """Tasks of one group."""
        service = view.get(Service, family[0]) if family[0] else None
        sample = self._sample(view, group)
        if sample is None or (family[0] and service is None):
            for task_id in (*group.fresh, *group.stuck):
                self._leave(task_id)
            return
        pipeline = Pipeline(sample)
        places = spread(self._nodes, pipeline, family, now.monotonic, lambda node_id: self._refresh(view, node_id))
        info = next(places, None)
        outdated = service is not None and sample.spec_version.index < service.spec_version.index
        explanation = self._explain(pipeline) if info is None and not outdated else None
        waiting = group.fresh if info is None and explanation == group.explanation else group.fresh | group.stuck
        for task_id in sorted(waiting, key=lambda task_id: (waiting[task_id], task_id)):
            if info is None and explanation == group.explanation and task_id in group.stuck:
                continue  # it has been told
            task = view.get(Task, task_id)
            if task is None or task.status.state != PENDING or task.node_id:
                self._leave(task_id)
            elif task.desired_state > COMPLETE:
                self._leave(task_id)
                if task.desired_state == SHUTDOWN:  # it never started; nobody must wait for it (§7.2)
                    yield (Report(task_id, SHUTDOWN),)
            elif info is not None:
                unit = self._assign(task, info, ASSIGNED_MESSAGE)
                self._leave(task_id)
                yield unit
                info = next(places, None)
                if info is None and not outdated:
                    explanation = self._explain(pipeline)
            else:
                group.fresh.pop(task_id, None)
                group.stuck[task_id] = task.slot
                if explanation is not None and task.status.err != explanation:
                    yield (Report(task_id, PENDING, err=explanation),)
        group.explanation = explanation

    def _sample(self, view: View, group: Group) -> Task | None:
        """Any task of the group that is still there."""
        for task_id in (*group.fresh, *group.stuck):
            task = view.get(Task, task_id)
            if task is not None:
                return task
        return None

    def _assign(self, task: Task, info: NodeInfo, message: str) -> Unit:
        """Book the task on the node, and say so."""
        generic = self._claim(task, info)
        placed = Task(id=task.id, service_id=task.service_id, node_id=info.id, desired_state=task.desired_state)
        placed.spec.resources.reservations.CopyFrom(task.spec.resources.reservations)
        placed.assigned_generic_resources.extend(generic)
        placed.status.state = ASSIGNED
        self._nodes.track(placed)
        return (Assign(task.id, info.id, message, generic),)

    def _claim(self, task: Task, info: NodeInfo) -> tuple[GenericResource, ...]:
        wanted = quantities(task.spec.resources.reservations.generic)
        return info.generic.claim(info.offers.generic, wanted) if wanted else ()

    def _explain(self, pipeline: Pipeline) -> str:
        reasons = pipeline.explain(self._nodes)
        return f"{NO_NODE} ({reasons})" if reasons else NO_NODE

    def _refresh(self, view: View, node_id: str) -> None:
        """Take over the newest object of the node: a commit that is not observed yet (a drain just before this
        transaction) is respected this way."""
        info = self._nodes.get(node_id)
        node = view.get(Node, node_id)
        if node is None:
            self._nodes.remove(node_id)
        elif info is None or info.node is None or info.node.meta.version.index != node.meta.version.index:
            self._nodes.put(node)
