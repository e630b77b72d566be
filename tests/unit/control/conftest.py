"""A Control API over a real store, with managers that the tests choose."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from procs.manager.control import ControlService
from procs.manager.status import Status
from procs.manager.store import Store
from procs.manager.store.sqlite import SqliteEngine
from swarm.api import raft_pb2
from swarm.api.objects_pb2 import Cluster, Node
from swarm.api.specs_pb2 import ServiceSpec
from swarm.api.types_pb2 import RaftMemberStatus
from swarm.pki.rootca import RootCA

IA = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
UNKNOWN = grpc.StatusCode.UNKNOWN
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED
EXISTS = grpc.StatusCode.ALREADY_EXISTS

NOW = 1_700_000_000
"""Unix seconds at which the tests stand still."""


class StillClock:
    """Time stands still."""

    def monotonic(self) -> float:
        return 0.0

    def wall_ns(self) -> int:
        return NOW * 1_000_000_000


@dataclass
class ChosenMembers:
    """Managers by node id, and whether each can be reached."""

    reachable: dict[str, bool] = field(default_factory=dict)

    def members(self) -> list[raft_pb2.RaftMember]:
        found = []
        for number, (node_id, reachable) in enumerate(self.reachable.items(), 1):
            member = raft_pb2.RaftMember(raft_id=number, node_id=node_id, addr=f"192.0.2.{number}:2377")
            member.status.leader = number == 1
            member.status.reachability = RaftMemberStatus.REACHABLE if reachable else RaftMemberStatus.UNREACHABLE
            found.append(member)
        return found


@dataclass
class Api:
    """What a test works with: the service, and what lies under it."""

    control: ControlService
    store: Store
    members: ChosenMembers

    async def call(self, method: str, request: Any) -> Any:
        return await getattr(self.control, method)(request, None)

    async def refusal(self, method: str, request: Any) -> tuple[grpc.StatusCode, str]:
        """Code and text with which the call ends."""
        with pytest.raises(Status) as refused:
            await self.call(method, request)
        return refused.value.code, refused.value.message

    async def put(self, *objects: Any) -> None:
        def write(tx: Any) -> None:
            for obj in objects:
                tx.create(obj)

        await self.store.update(write)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await Store.open(SqliteEngine(tmp_path / "store.db"), clock=StillClock())
    yield opened
    await opened.close()


@pytest.fixture
def api(store: Store) -> Api:
    members = ChosenMembers()
    return Api(ControlService(store, members, StillClock()), store, members)


@pytest.fixture
def many(store: Store) -> Api:
    """The same over an engine that takes several managers, which lock their keys."""
    members = ChosenMembers()
    return Api(ControlService(store, members, StillClock(), may_grow=True, may_lock=True), store, members)


@pytest.fixture(scope="session")
def root() -> RootCA:
    return RootCA.create(now=NOW)


@pytest.fixture
def cluster(root: RootCA) -> Cluster:
    made = Cluster(id="cluster")
    made.spec.annotations.name = "default"
    made.spec.ca_config.node_cert_expiry.seconds = 7776000
    made.root_ca.ca_cert = root.certs
    made.root_ca.ca_key = b"the signing key"
    made.root_ca.join_tokens.worker = "worker token"
    made.root_ca.join_tokens.manager = "manager token"
    return made


def a_spec() -> ServiceSpec:
    """The smallest spec of a service that can be created."""
    spec = ServiceSpec()
    spec.annotations.name = "web"
    spec.task.container.image = "host"
    spec.replicated.replicas = 2
    return spec


def a_node(id_: str, *, role: int = 0, state: int = 2) -> Node:
    node = Node(id=id_, role=role)
    node.spec.desired_role = role
    node.spec.membership = 1
    node.status.state = state
    node.description.hostname = f"host-{id_}"
    return node
