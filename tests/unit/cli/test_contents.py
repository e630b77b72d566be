"""What is counted of a swarm before its last manager goes (SwarmKit's IsStateDirty)."""

from __future__ import annotations

from typing import Any

from procs.cli.contents import count, words
from swarm.api import control_pb2 as api
from swarm.api import objects_pb2


class Swarm:
    """A control API that holds what the test put there."""

    def __init__(self, **held: list[Any]) -> None:
        self.held = held

    def nodes(self) -> list[objects_pb2.Node]:
        return self.held.get("nodes", [])

    def call(self, method: str, request: object) -> Any:
        assert type(request).__name__ == f"{method}Request"
        answer = getattr(api, f"{method}Response")()
        field = answer.DESCRIPTOR.fields[0].name
        getattr(answer, field).extend(self.held.get(field, []))
        return answer


ME, OTHER = objects_pb2.Node(id="me"), objects_pb2.Node(id="other")


def test_a_swarm_of_this_node_alone_is_clean() -> None:
    assert count(Swarm(nodes=[ME]), "me") == []  # type: ignore[arg-type]
    assert words([]) == "it holds nothing but this node"


def test_everything_but_networks_makes_it_dirty() -> None:
    held = Swarm(
        nodes=[ME, OTHER],
        services=[objects_pb2.Service(), objects_pb2.Service()],
        networks=[objects_pb2.Network()],
        secrets=[objects_pb2.Secret()],
        volumes=[objects_pb2.Volume()],
    )
    counted = count(held, "me")  # type: ignore[arg-type]
    assert counted == [("other node", 1), ("service", 2), ("secret", 1), ("volume", 1)]
    assert words(counted) == "1 other node, 2 services, 1 secret, 1 volume"
