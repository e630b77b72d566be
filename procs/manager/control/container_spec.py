"""Checks of what a task shall run: runtimes, secret and config references (reference manager §5.4, steps 5 to 7)."""

from __future__ import annotations

from procs.manager.control.durations import MILLISECOND, nanoseconds
from procs.manager.control.gotext import quoted
from procs.manager.control.reference import is_image_reference
from procs.manager.status import invalid_argument, unimplemented
from swarm.api import specs_pb2, types_pb2

_RESERVED_RUNTIMES = ("container", "attachment")
_KIND_LENGTH = 3


def check_secrets(container: specs_pb2.ContainerSpec) -> None:
    """Every reference names a secret and a file, no two the same file."""
    targets: dict[str, str] = {}
    for reference in container.secrets:
        if not reference.secret_id or not reference.secret_name:
            raise invalid_argument("malformed secret reference")
        if reference.WhichOneof("target") is None:
            raise invalid_argument("malformed secret reference, no target provided")
        _check_file("secret", reference.secret_name, reference.file.name, targets)


def check_configs(container: specs_pb2.ContainerSpec) -> None:
    """The same for configs, which may also be meant for the runtime: a credential spec must be."""
    targets: dict[str, str] = {}
    for_runtime: set[str] = set()
    for reference in container.configs:
        if not reference.config_id or not reference.config_name:
            raise invalid_argument("malformed config reference")
        target = reference.WhichOneof("target")
        if target is None:
            raise invalid_argument("malformed config reference, no target provided")
        if target == "runtime":
            for_runtime.add(reference.config_id)
        else:
            _check_file("config", reference.config_name, reference.file.name, targets)
    credentials = container.privileges.credential_spec
    if credentials.WhichOneof("source") == "config" and credentials.config not in for_runtime:
        raise invalid_argument(
            f"CredentialSpec references config '{credentials.config}', "
            "but that config isn't in config references with RuntimeTarget"
        )


def check_runtime(task: specs_pb2.TaskSpec) -> None:
    """The runtime is there, and what it says can be run."""
    match task.WhichOneof("runtime"):
        case None:
            raise invalid_argument("TaskSpec: missing runtime")
        case "attachment":
            raise unimplemented("RuntimeSpec: unimplemented runtime in service spec")
        case "generic":
            _check_generic(task.generic)
        case _:
            _check_container(task.container)


def _check_file(kind: str, name: str, file: str, targets: dict[str, str]) -> None:
    if not file:
        raise invalid_argument(f"malformed file {kind} reference, invalid target file name provided")
    if file in targets:
        raise invalid_argument(f"{kind} references '{targets[file]}' and '{name}' have a conflicting target: '{file}'")
    targets[file] = name


def _check_generic(generic: specs_pb2.GenericRuntimeSpec) -> None:
    if len(generic.kind.encode()) < _KIND_LENGTH:
        raise invalid_argument(f"Generic runtime: Invalid name {quoted(generic.kind)}")
    if generic.kind.lower() in _RESERVED_RUNTIMES:
        raise invalid_argument(f"Generic runtime: {quoted(generic.kind)} is a reserved name")
    if not generic.HasField("payload"):
        raise invalid_argument("Generic runtime is missing payload")
    if not generic.payload.type_url:
        raise invalid_argument("Generic runtime is missing payload type")
    if not generic.payload.value:
        raise invalid_argument("Generic runtime has an empty payload")


def _check_container(container: specs_pb2.ContainerSpec) -> None:
    if not container.image:
        raise invalid_argument("ContainerSpec: image reference must be provided")
    if not is_image_reference(container.image):
        raise invalid_argument(f"ContainerSpec: {quoted(container.image)} is not a valid repository/tag")
    targets: set[str] = set()
    for mount in container.mounts:
        if mount.target in targets:
            raise invalid_argument(f"ContainerSpec: duplicate mount point: {mount.target}")
        targets.add(mount.target)
    if container.HasField("healthcheck"):
        _check_health(container.healthcheck)


def _check_health(health: types_pb2.HealthConfig) -> None:
    times = (
        ("Interval", health.interval),
        ("Timeout", health.timeout),
        ("StartPeriod", health.start_period),
        ("StartInterval", health.start_interval),
    )
    for name, duration in times:
        length = nanoseconds(duration)
        if length != 0 and length < MILLISECOND:
            raise invalid_argument(f"ContainerSpec: {name} in HealthConfig cannot be less than 1ms")
    if health.retries < 0:
        raise invalid_argument("ContainerSpec: Retries in HealthConfig cannot be negative")
