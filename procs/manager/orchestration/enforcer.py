"""The constraint enforcer: when a node changes, rejects tasks that may not be there any more (reference manager §6.10).

Looks at active nodes only. The constraints are those of the service as it is now; then the reservations, oldest task
first, so that the youngest loses where not all fit (in SwarmKit a random one does). A node that says nothing about
its resources is not judged by them (in SwarmKit it counts as having none, §11.5-43).
"""

from __future__ import annotations

from collections.abc import Iterator

from procs.manager.constraints import all_match, parse
from procs.manager.orchestration.tasks import age
from procs.manager.orchestration.view import Now, View
from procs.manager.orchestration.writes import Report, Unit
from procs.manager.scheduler.generic import GenericUse, quantities
from procs.manager.store import Action, Event, by
from swarm.api.objects_pb2 import Node, Service, Task
from swarm.api.specs_pb2 import NodeSpec
from swarm.api.types_pb2 import ASSIGNED, COMPLETE, REJECTED
from swarm.errors import BadInput

MESSAGE = "task rejected by constraint enforcer"
ERR = "assigned node no longer meets constraints"


def rejected(view: View, node: Node) -> Iterator[Task]:
    """The tasks on `node` that it may not keep."""
    if node.spec.availability != NodeSpec.ACTIVE:
        return
    resources = node.description.resources if node.description.HasField("resources") else None
    cpu = resources.nano_cpus if resources is not None else 0
    memory = resources.memory_bytes if resources is not None else 0
    generic = GenericUse()
    for task in sorted(view.find(Task, by.node(node.id)), key=age):
        if not (ASSIGNED <= task.desired_state <= COMPLETE and task.status.state < COMPLETE):
            continue
        if not _allowed(view, task, node):
            yield task
            continue
        if resources is None:
            continue
        reserved = task.spec.resources.reservations
        if reserved.nano_cpus > cpu or reserved.memory_bytes > memory:
            yield task
            continue
        generic.add(task.assigned_generic_resources)
        if generic.exceeds(resources.generic, quantities(task.assigned_generic_resources)):
            generic.drop(task.assigned_generic_resources)
            yield task
            continue
        cpu -= reserved.nano_cpus
        memory -= reserved.memory_bytes


def _allowed(view: View, task: Task, node: Node) -> bool:
    """Whether the constraints of the task's service (its own, if it has none) hold on `node`."""
    service = view.get(Service, task.service_id) if task.service_id else None
    spec = task.spec if service is None else service.spec.task
    try:
        return all_match(parse(spec.placement.constraints), node)
    except BadInput:  # the Control API takes none such; what runs already is not ended for it
        return True


class ConstraintEnforcer:
    """The component. Notes nodes to look at."""

    name = "enforcer"

    def __init__(self) -> None:
        self._nodes: dict[str, None] = {}

    def resync(self, view: View) -> None:
        self._nodes = {node.id: None for node in view.find(Node)}

    def observe(self, event: Event) -> None:
        if isinstance(event.object, Node) and event.action is Action.UPDATE and _relevant(event.old, event.object):
            self._nodes[event.object.id] = None

    def wake_at(self) -> float | None:
        return 0.0 if self._nodes else None

    def decide(self, view: View, _now: Now) -> Iterator[Unit]:
        for node_id in sorted(self._nodes):
            node = view.get(Node, node_id)
            for task in list(rejected(view, node)) if node is not None else ():
                yield (Report(task.id, REJECTED, MESSAGE, ERR),)
            del self._nodes[node_id]


def _relevant(old: Node, new: Node) -> bool:
    """Whether anything changed that constraints or reservations look at."""
    return (
        old.spec != new.spec
        or old.role != new.role
        or old.status.addr != new.status.addr
        or old.description != new.description
    )
