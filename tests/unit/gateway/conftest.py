from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from procs.manager.authorization import Authorizer, Identity
from procs.manager.gateway.front import Front, Limits
from procs.manager.gateway.interceptor import Guard
from procs.manager.gateway.listeners import listen_control, listen_remote
from procs.manager.gateway.records import Listener, Records
from procs.manager.gateway.server import make_server
from procs.manager.gateway.tls import server_context
from swarm.api import objects_pb2, types_pb2
from swarm.clock import SystemClock
from swarm.pki.credentials import Credentials
from tests.tools.authority import Authority, open_channel


class Objects:
    """The part of a store that authorization reads."""

    def __init__(self, cluster_id: str) -> None:
        self.cluster = objects_pb2.Cluster(id=cluster_id)
        self.cluster.spec.annotations.name = "default"
        self.nodes: dict[str, objects_pb2.Node] = {}

    def add(self, node_id: str, role: str) -> None:
        number = types_pb2.NodeRole.MANAGER if role == "manager" else types_pb2.NodeRole.WORKER
        self.nodes[node_id] = objects_pb2.Node(id=node_id, role=number)

    def get(self, kind: type[Any], id_: str) -> Any:
        return self.nodes.get(id_) if kind is objects_pb2.Node else None

    def find(self, kind: type[Any], *selectors: Any) -> list[Any]:
        return [self.cluster] if kind is objects_pb2.Cluster else list(self.nodes.values())


@dataclass
class Door:
    """A front and a guarded server, and what a test needs to knock."""

    authority: Authority
    own: Credentials
    objects: Objects
    records: Records
    front: Front
    guard: Guard
    server: grpc.aio.Server
    address: str
    control: Path

    @property
    def host_port(self) -> tuple[str, int]:
        host, _, port = self.address.rpartition(":")
        return host, int(port)

    def member(self, role: str = "worker", **how: Any) -> Credentials:
        """Credentials of a node that the swarm knows."""
        credentials = self.authority.issue(role, **how)
        self.objects.add(credentials.node_id, role)
        return credentials

    def channel(self, credentials: Credentials | None) -> grpc.aio.Channel:
        return open_channel(self.address, credentials, self.authority.root.certs)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.host_port, timeout=5)


@pytest.fixture
def opened(short_dir: Path) -> Any:
    @asynccontextmanager
    async def opening(register: Any, limits: Limits | None = None) -> AsyncIterator[Door]:
        authority = Authority()
        own = authority.issue("manager")
        objects = Objects(authority.cluster_id)
        objects.add(own.node_id, "manager")
        records: Records = {}
        identity = Identity(own.node_id, own.cluster_id, "192.0.2.1:2377")
        guard = Guard(records, Authorizer(objects, identity, SystemClock()))
        server = make_server(guard, short_dir / "inner.sock")
        register(server)
        await server.start()
        context = server_context(own.certificate_pem, own.key_pem, own.root_pem)
        front = Front(records, short_dir / "inner.sock", context, limits)
        remote, bound = listen_remote("127.0.0.1:0")
        front.listen(remote, Listener.REMOTE)
        front.listen(listen_control(short_dir / "control.sock"), Listener.CONTROL)
        try:
            door = Door(authority, own, objects, records, front, guard, server, bound, short_dir / "control.sock")
            yield door
        finally:
            await front.close(0.2)
            await server.stop(0)

    return opening
