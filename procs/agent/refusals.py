"""What a task may ask for that a process on the host cannot get: each field with its sentence.

Nothing is ignored silently: a task that asks for one of these is REJECTED, and its status says which field and why.
What a later release honours leaves this table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from procs.agent.dependencies import refused_targets
from swarm.api import objects_pb2, specs_pb2, types_pb2

_DELIVERED = (types_pb2.TASK, types_pb2.SECRET, types_pb2.CONFIG)
_HOST_FILES = "a process uses the host's own files as they are"
_HOST = "host"
_HOST_NETWORK = "a process uses the host's own network"


def _other_networks(task: objects_pb2.Task) -> bool:
    """Whether the task wants more than the host's own network (`--network host`)."""
    own = [
        a for a in task.networks if a.network.driver_state.name == _HOST or a.network.spec.driver_config.name == _HOST
    ]
    return len(own) < max(len(task.networks), len(task.spec.networks))


_CONTAINER: tuple[tuple[str, Callable[[specs_pb2.ContainerSpec], object], str], ...] = (
    ("hostname", lambda c: c.hostname, "a process shares the host's name"),
    ("tty", lambda c: c.tty, "tasks have no terminal"),
    ("open_stdin", lambda c: c.open_stdin, "tasks have no standard input"),
    ("read_only", lambda c: c.read_only, _HOST_FILES),
    ("mounts", lambda c: c.mounts, _HOST_FILES),
    ("hosts", lambda c: c.hosts, "a process uses the host's own /etc/hosts"),
    (
        "dns_config",
        lambda c: c.dns_config.nameservers or c.dns_config.search or c.dns_config.options,
        "a process uses the host's own resolver",
    ),
    (
        "healthcheck",
        lambda c: c.HasField("healthcheck") and list(c.healthcheck.test) not in ([], ["NONE"]),
        "this release runs no health checks",
    ),
    ("isolation", lambda c: c.isolation != specs_pb2.ContainerSpec.ISOLATION_DEFAULT, "that is a Windows setting"),
    ("sysctls", lambda c: c.sysctls, "a process shares the host's kernel settings"),
    ("init", lambda c: c.HasField("init") and c.init.value, "a process is reaped by the node's own supervisor"),
    ("pull_options.registry_auth", lambda c: c.pull_options.registry_auth, "nothing is pulled from a registry here"),
    (
        "privileges.credential_spec",
        lambda c: c.privileges.HasField("credential_spec"),
        "that is a Windows setting",
    ),
    (
        "privileges.selinux_context",
        lambda c: c.privileges.HasField("selinux_context") and _asks(c.privileges.selinux_context),
        "this release does not change security labels",
    ),
    (
        "privileges.seccomp",
        lambda c: c.privileges.seccomp.mode == types_pb2.Privileges.SeccompOpts.CUSTOM or c.privileges.seccomp.profile,
        "this release installs no system call filters",
    ),
)

_TASK: tuple[tuple[str, Callable[[objects_pb2.Task], object], str], ...] = (
    ("networks", _other_networks, _HOST_NETWORK),
    (
        "endpoint.ports",
        lambda t: t.endpoint.ports or t.endpoint.spec.ports,
        "this release publishes no ports; a process may listen on the host's own",
    ),
    ("volumes", lambda t: t.volumes, "this node has no volume plugins"),
    (
        "resource_references",
        lambda t: any(r.resource_type not in _DELIVERED for r in t.spec.resource_references),
        "this node has no volume plugins",
    ),
    (
        "log_driver",
        lambda t: t.log_driver.name or t.spec.log_driver.name,
        "the output of tasks goes to files of the node",
    ),
    (
        "resources.limits.generic",
        lambda t: t.spec.resources.limits.generic,
        "generic resources can be reserved, not limited",
    ),
    (
        "resources.swap_bytes",
        lambda t: t.spec.resources.HasField("swap_bytes"),
        "this release does not limit swap",
    ),
    (
        "resources.memory_swappiness",
        lambda t: t.spec.resources.HasField("memory_swappiness"),
        "this release does not set swappiness",
    ),
)


def refusals(task: objects_pb2.Task) -> Iterator[str]:
    """A sentence for each thing that `task` (with a container runtime) asks for and cannot get here."""
    for name, asks, why in _TASK:
        if asks(task):
            yield f"{name} cannot be honoured: {why}"
    for name, asks_of_container, why in _CONTAINER:
        if asks_of_container(task.spec.container):
            yield f"{name} cannot be honoured: {why}"
    yield from refused_targets(task.spec.container)
    for entry in task.spec.container.env:
        key, _, value = entry.partition("=")
        if "{{" in value:
            yield f"env {key!r} cannot be honoured: this release expands no templates"


def _asks(context: types_pb2.Privileges.SELinuxContext) -> bool:
    return bool(context.user or context.role or context.type or context.level)
