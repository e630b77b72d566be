"""What this version refuses in words: methods, and fields of a spec, that later versions serve."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from procs.manager.status import Status, unimplemented
from swarm.api import control_pb2, specs_pb2, types_pb2

# ruff: noqa: N802, ARG002  (gRPC's method names; a refusal looks at nothing)

_DEFAULT_MONITOR = 5
"""Seconds (reference manager §0.6)."""


def not_yet(what: str) -> Status:
    """Unimplemented, with a sentence that names what was asked for."""
    return unimplemented(f"{what}: this version of Swarmvisor does not support that yet")


def refuse_unsupported(spec: specs_pb2.ServiceSpec) -> None:
    """Unimplemented for the first thing a valid spec asks for that nothing here would do."""
    for field in unsupported(spec):
        raise not_yet(field)


def unsupported(spec: specs_pb2.ServiceSpec) -> Iterator[str]:
    """Fields of `spec` that ask for something nothing here would do, with what they ask for."""
    mode = spec.WhichOneof("mode")
    if mode != "replicated":
        yield f"mode.{mode} (only replicated services run)"
    for name, config in (("update", spec.update), ("rollback", spec.rollback)):
        if not _is_default(config):
            yield f"{name} (an update config other than the default)"
    if spec.networks:
        yield "networks (attachment to networks)"
    if spec.endpoint.ports:
        yield "endpoint.ports (published ports)"
    yield from _unsupported_in_task(spec.task)


def _unsupported_in_task(task: specs_pb2.TaskSpec) -> Iterator[str]:
    if task.placement.preferences:
        yield "task.placement.preferences (placement preferences)"
    if task.placement.max_replicas:
        yield "task.placement.max_replicas (a bound of replicas per node)"
    if task.networks:
        yield "task.networks (attachment to networks)"
    if task.log_driver.name:
        yield "task.log_driver (log drivers)"
    if task.resource_references:
        yield "task.resource_references (references to resources)"
    for resources in (task.resources.limits, task.resources.reservations):
        if resources.generic:
            yield "task.resources.generic (generic resources)"
    container = task.container
    if container.secrets:
        yield "task.container.secrets (secrets)"
    if container.configs:
        yield "task.container.configs (configs)"
    if container.privileges.HasField("credential_spec"):
        yield "task.container.privileges.credential_spec (credential specs)"
    if any(mount.type == types_pb2.Mount.CLUSTER for mount in container.mounts):
        yield "task.container.mounts (cluster volumes)"
    yield from (f"task.container.{field} (templates)" for field in _templates(container))


def _templates(container: specs_pb2.ContainerSpec) -> Iterator[str]:
    """Fields in which Docker expands Go templates, and that hold one."""
    if any("{{" in variable for variable in container.env):
        yield "env"
    if "{{" in container.hostname:
        yield "hostname"
    for mount in container.mounts:
        volume = mount.volume_options
        texts = [mount.source, mount.target, *volume.labels.values(), *volume.driver_config.options.values()]
        if any("{{" in text for text in texts):
            yield "mounts"


def _is_default(config: types_pb2.UpdateConfig) -> bool:
    """Whether an update config says nothing but the defaults of §0.6 (or nothing at all)."""
    return (
        config.parallelism in (0, 1)
        and config.delay.ToNanoseconds() == 0
        and config.failure_action == types_pb2.UpdateConfig.PAUSE
        and config.monitor.ToNanoseconds() in (0, _DEFAULT_MONITOR * 1_000_000_000)
        and config.max_failure_ratio == 0
        and config.order == types_pb2.UpdateConfig.STOP_FIRST
    )


class LaterMethods:
    """Objects that cannot exist yet: their lists are empty, everything else about them is refused."""

    async def ListSecrets(self, request: control_pb2.ListSecretsRequest, context: Any) -> Any:
        return control_pb2.ListSecretsResponse()

    async def ListConfigs(self, request: control_pb2.ListConfigsRequest, context: Any) -> Any:
        return control_pb2.ListConfigsResponse()

    async def ListResources(self, request: control_pb2.ListResourcesRequest, context: Any) -> Any:
        return control_pb2.ListResourcesResponse()

    async def ListVolumes(self, request: control_pb2.ListVolumesRequest, context: Any) -> Any:
        return control_pb2.ListVolumesResponse()

    async def CreateNetwork(self, request: Any, context: Any) -> Any:
        raise not_yet("CreateNetwork")

    async def RemoveNetwork(self, request: Any, context: Any) -> Any:
        raise not_yet("RemoveNetwork")

    async def GetSecret(self, request: Any, context: Any) -> Any:
        raise not_yet("GetSecret")

    async def CreateSecret(self, request: Any, context: Any) -> Any:
        raise not_yet("CreateSecret")

    async def UpdateSecret(self, request: Any, context: Any) -> Any:
        raise not_yet("UpdateSecret")

    async def RemoveSecret(self, request: Any, context: Any) -> Any:
        raise not_yet("RemoveSecret")

    async def GetConfig(self, request: Any, context: Any) -> Any:
        raise not_yet("GetConfig")

    async def CreateConfig(self, request: Any, context: Any) -> Any:
        raise not_yet("CreateConfig")

    async def UpdateConfig(self, request: Any, context: Any) -> Any:
        raise not_yet("UpdateConfig")

    async def RemoveConfig(self, request: Any, context: Any) -> Any:
        raise not_yet("RemoveConfig")

    async def GetExtension(self, request: Any, context: Any) -> Any:
        raise not_yet("GetExtension")

    async def CreateExtension(self, request: Any, context: Any) -> Any:
        raise not_yet("CreateExtension")

    async def RemoveExtension(self, request: Any, context: Any) -> Any:
        raise not_yet("RemoveExtension")

    async def GetResource(self, request: Any, context: Any) -> Any:
        raise not_yet("GetResource")

    async def CreateResource(self, request: Any, context: Any) -> Any:
        raise not_yet("CreateResource")

    async def UpdateResource(self, request: Any, context: Any) -> Any:
        raise not_yet("UpdateResource")

    async def RemoveResource(self, request: Any, context: Any) -> Any:
        raise not_yet("RemoveResource")

    async def GetVolume(self, request: Any, context: Any) -> Any:
        raise not_yet("GetVolume")

    async def CreateVolume(self, request: Any, context: Any) -> Any:
        raise not_yet("CreateVolume")

    async def UpdateVolume(self, request: Any, context: Any) -> Any:
        raise not_yet("UpdateVolume")

    async def RemoveVolume(self, request: Any, context: Any) -> Any:
        raise not_yet("RemoveVolume")
