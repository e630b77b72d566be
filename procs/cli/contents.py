"""What a swarm holds beyond this node, and would lose with it (SwarmKit's IsStateDirty, reference node-and-ca §1.2)."""

from __future__ import annotations

from collections.abc import Sequence

from procs.cli.control import Control
from swarm.api import control_pb2 as api

_LISTS = (
    ("service", "ListServices", api.ListServicesRequest, "services"),
    ("task", "ListTasks", api.ListTasksRequest, "tasks"),
    ("secret", "ListSecrets", api.ListSecretsRequest, "secrets"),
    ("config", "ListConfigs", api.ListConfigsRequest, "configs"),
    ("volume", "ListVolumes", api.ListVolumesRequest, "volumes"),
    ("resource", "ListResources", api.ListResourcesRequest, "resources"),
)
"""What is counted; networks are not, as in SwarmKit: a swarm has some of its own."""


def count(control: Control, node_id: str) -> list[tuple[str, int]]:
    """(word, how many) of everything but this node that the swarm holds; empty: the state is clean."""
    nodes = [node for node in control.nodes() if node.id != node_id]
    found = [("other node", len(nodes))]
    for word, method, request, field in _LISTS:
        found.append((word, len(getattr(control.call(method, request()), field))))
    return [(word, number) for word, number in found if number]


def words(counted: Sequence[tuple[str, int]]) -> str:
    """`2 services, 1 other node`; for nothing, that it holds only this node."""
    if not counted:
        return "it holds nothing but this node"
    return ", ".join(f"{number} {word}{'s' if number > 1 else ''}" for word, number in counted)
