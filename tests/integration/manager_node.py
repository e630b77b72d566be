"""A real manager process of a new swarm on free ports, and what tests need to talk to it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio

from ipc.aio import AsyncBus
from ipc.topics import Manager
from swarm import dial
from swarm.api import ca_pb2, ca_pb2_grpc, control_pb2, control_pb2_grpc, types_pb2
from swarm.paths import Paths
from swarm.pki.chain import validate_chain
from swarm.pki.credentials import Credentials, make_credentials
from swarm.pki.request import new_request
from tests.tools.authority import Authority, open_channel

READY_SECONDS = 20.0


@dataclass
class ManagerNode:
    """One state directory and, while it runs, its manager."""

    paths: Paths
    authority: Authority = field(default_factory=Authority)
    own: Credentials | None = None
    process: asyncio.subprocess.Process | None = None
    address: str = ""
    log: Path = Path()

    @classmethod
    def new(cls, directory: Path, **toml: str) -> ManagerNode:
        node = cls(Paths(state=directory / "s", runtime=directory / "r"), log=directory / "log")
        node.own = node.authority.bootstrap(node.paths, **toml)
        return node

    async def start(self) -> None:
        """Start the process; it may end by itself."""
        environment = {**os.environ, "PYTHONWARNINGS": "default"}
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "procs.manager",
                "--state-dir",
                str(self.paths.state),
                "--runtime-dir",
                str(self.paths.runtime),
                stdout=log,
                stderr=log,
                env=environment,
            )

    async def ready(self) -> Manager:
        """Until the process says so on the bus."""
        if self.process is None:
            raise RuntimeError("start it first")
        pid = self.process.pid
        async with AsyncBus(self.paths.bus, None, ("manager",)) as bus:
            waiting = asyncio.ensure_future(
                bus.wait("manager", lambda v: v.pid == pid and v.body.state == "ready", READY_SECONDS)
            )
            ended = asyncio.ensure_future(self.process.wait())
            await asyncio.wait({waiting, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                waiting.cancel()
                raise AssertionError(f"the manager ended with {ended.result()}:\n{self.said()}")
            ended.cancel()
            body: Manager = (await waiting).body
            self.address = body.remote_addr
            return body

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End the process; its exit code."""
        if self.process is None:
            raise RuntimeError("not started")
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), 10)

    def said(self) -> str:
        """Its log so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    # -- talking to it ------------------------------------------------------------------------------

    def remote(self, credentials: Credentials | None = None) -> grpc.aio.Channel:
        return open_channel(self.address, credentials, self.authority.root.certs)

    def control(self) -> grpc.aio.Channel:
        return dial.control_channel(self.paths, self.authority.root.certs)

    def own_chain_length(self) -> int:
        """Certificates in the chain that the manager holds."""
        return self.own.certificate_pem.count(b"-----BEGIN CERTIFICATE-----") if self.own else 0

    async def token(self, role: str = "worker") -> str:
        """The swarm's join token."""
        async with self.control() as channel:
            stub = control_pb2_grpc.ControlStub(channel)
            cluster = (await stub.ListClusters(control_pb2.ListClustersRequest(), timeout=10)).clusters[0]
            return str(getattr(cluster.root_ca.join_tokens, role))

    async def join(self, role: str = "worker") -> Credentials:
        """Credentials of a new node, as a joiner gets them."""
        token = await self.token(role)
        async with self.remote() as channel:
            return await request_certificate(channel, self.authority, token)


async def request_certificate(channel: grpc.aio.Channel, authority: Authority, token: str = "") -> Credentials:
    """Issue and poll, as the renewer does."""
    key, csr = new_request()
    stub = ca_pb2_grpc.NodeCAStub(channel)
    issued = await stub.IssueNodeCertificate(ca_pb2.IssueNodeCertificateRequest(csr=csr, token=token), timeout=10)
    status = await stub.NodeCertificateStatus(ca_pb2.NodeCertificateStatusRequest(node_id=issued.node_id), timeout=10)
    assert status.status.state == types_pb2.IssuanceStatus.ISSUED, status.status.err
    assert status.certificate.csr == csr
    chain = status.certificate.certificate
    return make_credentials(validate_chain(authority.root.pool, chain), chain, key, authority.root.certs)


@asynccontextmanager
async def running(directory: Path, **toml: str) -> AsyncIterator[ManagerNode]:
    """A manager that is ready; ended with the block."""
    node = ManagerNode.new(directory, **toml)
    await node.start()
    try:
        await node.ready()
        yield node
    finally:
        await node.stop()


def code_and_text(error: BaseException) -> tuple[Any, str]:
    """What a refused call says."""
    if not isinstance(error, grpc.aio.AioRpcError):
        raise TypeError(f"not a refusal: {error!r}")
    return error.code(), error.details() or ""
