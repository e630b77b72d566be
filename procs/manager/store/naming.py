"""Names that are derived, not stored (reference manager §0.5)."""

from __future__ import annotations

from procs.manager.store.errors import StoreError
from swarm.api import objects_pb2, specs_pb2


def task_name(task: objects_pb2.Task) -> str:
    """The display name: the annotation's, else `<service>.<slot>.<id>`, with the node id where there is no slot."""
    if task.annotations.name:
        return task.annotations.name
    place = str(task.slot) if task.slot else task.node_id
    return f"{task.service_annotations.name}.{place}.{task.id}"


def runtime_name(spec: specs_pb2.TaskSpec) -> str:
    """`attachment`, `container`, or the generic runtime's kind in lower case. StoreError if there is no runtime."""
    runtime = spec.WhichOneof("runtime")
    if runtime == "generic":
        return spec.generic.kind.lower()
    if runtime is None:
        raise StoreError("unrecognized runtime")
    return runtime
