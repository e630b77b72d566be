"""What a task says about itself, and how a new one is made (reference manager §6.1, agent-and-dispatcher §1)."""

from __future__ import annotations

from procs.manager.orchestration.view import Now, View, nanoseconds, timestamp
from procs.manager.store import by
from swarm.api.objects_pb2 import Cluster, Node, Service, Task
from swarm.api.specs_pb2 import NodeSpec
from swarm.api.types_pb2 import ASSIGNED, NEW, REMOVE, RUNNING, Driver, NodeStatus, TaskState

DEFAULT_CLUSTER = "default"

Slot = tuple[str, int]
"""Service id and slot number."""


def slot_of(task: Task) -> Slot:
    return (task.service_id, task.slot)


def replicated(service: Service | None) -> bool:
    """Whether this is a service of the replicated mode, the one these components look after."""
    return service is not None and service.spec.WhichOneof("mode") == "replicated"


def wanted(task: Task) -> bool:
    """Whether it shall run, now or after a delay."""
    return task.desired_state <= RUNNING


def ended(task: Task) -> bool:
    """Whether it will never run again, whatever is desired."""
    return task.status.state > RUNNING


def leaving(task: Task) -> bool:
    """Whether it is to be deleted: it counts for nothing any more."""
    return task.desired_state >= REMOVE


def age(task: Task) -> tuple[int, str]:
    """Sorts tasks by creation, oldest first; the same in every run."""
    return (nanoseconds(task.meta.created_at), task.id)


def status_time(task: Task) -> int:
    """When the status was set, ns: by the leader's clock if it says so, else by the agent's (§6.7)."""
    status = task.status
    return nanoseconds(status.applied_at if status.HasField("applied_at") else status.timestamp)


def invalid(node: Node | None) -> bool:
    """Whether a node cannot keep its tasks. UNKNOWN, DISCONNECTED and PAUSE can (§6.2)."""
    return node is None or node.status.state == NodeStatus.DOWN or node.spec.availability == NodeSpec.DRAIN


def alive(view: View, task: Task) -> bool:
    """Whether it may still run, as far as its node can tell us: a successor waits for it to stop."""
    if not ASSIGNED <= task.status.state <= RUNNING:
        return False
    node = view.get(Node, task.node_id)
    return node is not None and node.status.state != NodeStatus.DOWN


def in_slot(view: View, slot: Slot) -> list[Task]:
    """All tasks of a slot, oldest first."""
    return sorted(view.find(Task, by.slot(*slot)), key=age)


def default_log_driver(view: View) -> Driver | None:
    """What the cluster says for tasks that name no log driver."""
    for cluster in view.find(Cluster, by.name(DEFAULT_CLUSTER)):
        if cluster.spec.task_defaults.HasField("log_driver"):
            return cluster.spec.task_defaults.log_driver
    return None


def new_task(view: View, service: Service, slot: int, task_id: str, desired: TaskState.ValueType, now: Now) -> Task:
    """A task of `service` as it is now, in state NEW."""
    task = Task(id=task_id, service_id=service.id, slot=slot, desired_state=desired)
    task.service_annotations.CopyFrom(service.spec.annotations)
    task.spec.CopyFrom(service.spec.task)
    task.spec_version.CopyFrom(service.spec_version)
    task.status.state = NEW
    task.status.message = "created"
    task.status.timestamp.CopyFrom(timestamp(now.wall_ns))
    task.endpoint.spec.CopyFrom(service.spec.endpoint)
    driver = service.spec.task.log_driver if service.spec.task.HasField("log_driver") else default_log_driver(view)
    if driver is not None:
        task.log_driver.CopyFrom(driver)
    return task
