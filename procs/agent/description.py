"""What this node tells managers of itself (reference agent-and-dispatcher §2.4)."""

from __future__ import annotations

import os
import platform
import re
import socket
from pathlib import Path

from swarm import VERSION
from swarm.api import types_pb2
from swarm.nodeconfig import NodeConfig

RUNTIME_LABEL = ("runtime", "process")
"""Engine label of nodes that run processes; our scheduler matches tasks to nodes by it (DESIGN §7)."""
PLUGINS = (("Network", "host"), ("Runtime", "process"))
"""No (Network, overlay): this node has none, and tasks on overlay networks must not be placed here. The host's own
network (`--network host`) is where every process is."""
_NANOS = 10**9


def describe(
    config: NodeConfig, tls: types_pb2.NodeTLSInfo, *, meminfo: Path = Path("/proc/meminfo")
) -> types_pb2.NodeDescription:
    """The whole description. Resources are what this process may use of the machine."""
    description = types_pb2.NodeDescription(
        hostname=config.hostname or socket.gethostname(),
        platform=types_pb2.Platform(architecture=platform.machine(), os="linux"),
        resources=types_pb2.Resources(
            nano_cpus=len(os.sched_getaffinity(0)) * _NANOS, memory_bytes=memory_bytes(meminfo.read_text())
        ),
        engine=types_pb2.EngineDescription(engine_version=VERSION),
        tls_info=tls,
        fips=config.fips,
    )
    for kind, value in sorted(config.generic_resources.items()):
        _add_generic(description.resources, kind, value)
    # Through a dict of our own: the operator's labels must not deny what the node is.
    for key, value in {**config.labels, RUNTIME_LABEL[0]: RUNTIME_LABEL[1]}.items():
        description.engine.labels[key] = value
    for kind, name in sorted(PLUGINS):
        description.engine.plugins.add(type=kind, name=name)
    return description


def memory_bytes(meminfo: str) -> int:
    """MemTotal of /proc/meminfo, in bytes."""
    match = re.search(r"^MemTotal:\s+(\d+) kB$", meminfo, re.MULTILINE)
    if match is None:
        raise ValueError("/proc/meminfo names no MemTotal")
    return int(match[1]) * 1024


def _add_generic(resources: types_pb2.Resources, kind: str, value: str) -> None:
    """A count, or names separated by commas (node.toml's `generic_resources`)."""
    if value.isdigit():
        resources.generic.add().discrete_resource_spec.CopyFrom(
            types_pb2.DiscreteGenericResource(kind=kind, value=int(value))
        )
        return
    for name in filter(None, map(str.strip, value.split(","))):
        resources.generic.add().named_resource_spec.CopyFrom(types_pb2.NamedGenericResource(kind=kind, value=name))
