"""Defaults of a service, shown to those who ask for them and never stored (reference manager §0.6)."""

from __future__ import annotations

from swarm.api import specs_pb2, types_pb2

STOP_GRACE_SECONDS = 10
RESTART_DELAY_SECONDS = 5
MONITOR_SECONDS = 5


def fill_defaults(spec: specs_pb2.ServiceSpec) -> None:
    """Put the defaults into `spec` where it says nothing."""
    task = spec.task
    if task.WhichOneof("runtime") == "container":
        container = task.container
        if not container.HasField("stop_grace_period"):
            container.stop_grace_period.seconds = STOP_GRACE_SECONDS
        if not container.HasField("pull_options"):
            container.pull_options.SetInParent()
        if not container.HasField("dns_config"):
            container.dns_config.SetInParent()
    if not task.HasField("resources"):
        task.resources.SetInParent()
    if not task.HasField("restart"):
        task.restart.condition = types_pb2.RestartPolicy.ANY
    if not task.restart.HasField("delay"):
        task.restart.delay.seconds = RESTART_DELAY_SECONDS
    if not task.HasField("placement"):
        task.placement.SetInParent()
    for name in ("update", "rollback"):
        config: types_pb2.UpdateConfig = getattr(spec, name)
        if not spec.HasField(name):
            config.parallelism = 1
            config.delay.SetInParent()
        if not config.HasField("monitor"):
            config.monitor.seconds = MONITOR_SECONDS
