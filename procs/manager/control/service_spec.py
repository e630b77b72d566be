"""Checks of a service's spec, in SwarmKit's order (reference manager §5.4, steps 1 to 10).

What is valid and asked of something that does not exist yet is refused after these, by `later.refuse_unsupported`;
steps 11 and 12 (ingress network, port conflicts) and the existence of secrets and configs come with those objects.
"""

from __future__ import annotations

from procs.manager import constraints
from procs.manager.control.annotations import check_annotations
from procs.manager.control.container_spec import check_configs, check_runtime, check_secrets
from procs.manager.control.durations import nanoseconds
from procs.manager.control.gotext import shortest
from procs.manager.status import invalid_argument, unknown
from swarm.api import specs_pb2, types_pb2
from swarm.errors import BadInput

MIN_NANO_CPUS = 1_000_000
MIN_MEMORY = 4 * 1024 * 1024
"""Bytes."""

_NEGATIVE = 1 << 63
"""Go clients cast negative numbers to uint64: from here on they are that."""
_JOBS = ("replicated_job", "global_job")


def check_service_spec(spec: specs_pb2.ServiceSpec) -> None:
    """Ends the call at the first thing that is wrong."""
    check_annotations(spec.annotations)
    check_task_spec(spec.task)
    _check_mode(spec)
    _check_update(spec)
    _check_endpoint(spec.endpoint)


def check_task_spec(task: specs_pb2.TaskSpec) -> None:
    """Resources, restart policy, placement, references, runtime."""
    _check_resources(task.resources.limits)
    _check_resources(task.resources.reservations)
    if nanoseconds(task.restart.delay) < 0:
        raise invalid_argument("TaskSpec: restart-delay cannot be negative")
    if nanoseconds(task.restart.window) < 0:
        raise invalid_argument("TaskSpec: restart-window cannot be negative")
    try:
        constraints.parse(task.placement.constraints)
    except BadInput as error:
        raise unknown(error.message) from error
    check_secrets(task.container)
    check_configs(task.container)
    check_runtime(task)


def _check_resources(resources: types_pb2.Resources) -> None:
    if resources.nano_cpus != 0 and resources.nano_cpus < MIN_NANO_CPUS:
        raise invalid_argument(
            f"invalid cpu value {shortest(resources.nano_cpus / 1e9)}: Must be at least {shortest(MIN_NANO_CPUS / 1e9)}"
        )
    if resources.memory_bytes != 0 and resources.memory_bytes < MIN_MEMORY:
        raise invalid_argument(f"invalid memory value {resources.memory_bytes}: Must be at least 4MiB")


def _check_mode(spec: specs_pb2.ServiceSpec) -> None:
    match spec.WhichOneof("mode"):
        case None:
            raise invalid_argument("Unrecognized service mode")
        case "replicated":
            if spec.replicated.replicas >= _NEGATIVE:
                raise invalid_argument("Number of replicas must be non-negative")
        case "replicated_job":
            if spec.replicated_job.max_concurrent >= _NEGATIVE:
                raise invalid_argument("Maximum concurrent jobs must not be negative")
            if spec.replicated_job.total_completions >= _NEGATIVE:
                raise invalid_argument("Total completed jobs must not be negative")


def _check_update(spec: specs_pb2.ServiceSpec) -> None:
    """`rollback` is not looked at, as in SwarmKit."""
    if not spec.HasField("update"):
        return
    if spec.WhichOneof("mode") in _JOBS:
        raise invalid_argument("Jobs may not have an update config")
    if nanoseconds(spec.update.delay) < 0:
        raise invalid_argument("TaskSpec: update-delay cannot be negative")
    if nanoseconds(spec.update.monitor) < 0:
        raise invalid_argument("TaskSpec: update-monitor cannot be negative")
    if not 0 <= spec.update.max_failure_ratio <= 1:
        raise invalid_argument("TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1")


def _check_endpoint(endpoint: specs_pb2.EndpointSpec) -> None:
    published: set[tuple[int, int]] = set()
    for port in endpoint.ports:
        if endpoint.mode == specs_pb2.EndpointSpec.DNSRR and port.publish_mode == types_pb2.PortConfig.INGRESS:
            raise invalid_argument("EndpointSpec: port published with ingress mode can't be used with dnsrr mode")
    for port in endpoint.ports:
        if port.published_port == 0:
            continue
        if (port.protocol, port.published_port) in published:
            raise invalid_argument("EndpointSpec: duplicate published ports provided")
        published.add((port.protocol, port.published_port))
