"""One request for a certificate, over real TLS: whom it is sent to, and what becomes of managers that fail."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from procs.renewer.requester import Requester
from swarm.api import ca_pb2, ca_pb2_grpc, types_pb2
from swarm.errors import SwarmvisorError
from swarm.paths import Paths
from swarm.pki.credentials import Credentials
from swarm.remotes import Peer, Remotes
from tests.tools.authority import HOUR, Authority

LOG = logging.getLogger("test")


@dataclass
class Manager(ca_pb2_grpc.NodeCAServicer):
    """Takes requests, and signs them unless it is to die first."""

    authority: Authority
    held: Credentials
    dies: bool = False
    refuses: str = ""
    requests: list[bytes] = field(default_factory=list)
    addr: str = ""

    async def IssueNodeCertificate(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.requests.append(request.csr)
        return ca_pb2.IssueNodeCertificateResponse(node_id=self.held.node_id)

    async def NodeCertificateStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        if self.dies:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the manager goes down")
        answer = ca_pb2.NodeCertificateStatusResponse()
        answer.certificate.csr = csr = self.requests[-1]
        answer.status.state = types_pb2.IssuanceStatus.FAILED if self.refuses else types_pb2.IssuanceStatus.ISSUED
        answer.status.err = self.refuses
        answer.certificate.certificate = self.authority.root.sign(
            csr, self.held.node_id, "swarm-worker", self.held.cluster_id, 24 * HOUR
        )
        return answer


@asynccontextmanager
async def two_managers() -> AsyncIterator[tuple[Credentials, list[Manager]]]:
    authority = Authority()
    held = authority.issue("worker")
    managers, servers = [Manager(authority, held) for _ in range(2)], []
    for manager in managers:
        shown = authority.issue("manager")
        server = grpc.aio.server()
        ca_pb2_grpc.add_NodeCAServicer_to_server(manager, server)
        pair = grpc.ssl_server_credentials([(shown.key_pem, shown.certificate_pem)], authority.root.certs, True)
        manager.addr = f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', pair)}"
        await server.start()
        servers.append(server)
    try:
        yield held, managers
    finally:
        await asyncio.gather(*(server.stop(0) for server in servers))


async def test_another_manager_is_asked_anew_when_one_dies_before_it_has_signed(tmp_path: Path) -> None:
    async with two_managers() as (held, (first, second)):
        peers = [Peer("m1", first.addr), Peer("m2", second.addr)]
        remotes = Remotes(peers)
        for _ in range(8):
            remotes.observe(peers[1], -10)  # so that the first one is asked first
        asks = Requester(Paths(tmp_path / "s", tmp_path / "r"), remotes, LOG)

        first.dies = True
        issued, kek = await asks.request(held, local=False)
        assert (issued.node_id, issued.role, kek.key) == (held.node_id, "worker", b"")
        assert (len(first.requests), len(second.requests)) == (1, 1)
        assert first.requests != second.requests, "each request has a key of its own"
        weights = remotes.weights()
        assert weights[peers[0]] < 0

        second.dies = True
        with pytest.raises(SwarmvisorError) as nobody:
            await asks.request(held, local=False)
        for manager in (first, second):
            assert f"{manager.addr}: UNAVAILABLE: the manager goes down" in nobody.value.message
        second.dies, second.refuses = False, "no such luck"
        with pytest.raises(SwarmvisorError, match="the swarm's CA refused the request: no such luck"):
            await asks.request(held, local=False)


async def test_who_knows_no_manager_says_so(tmp_path: Path) -> None:
    asks = Requester(Paths(tmp_path / "s", tmp_path / "r"), Remotes(), LOG)
    with pytest.raises(SwarmvisorError, match="^no manager issued a certificate: none is known$"):
        await asks.request(Authority().issue("worker"), local=False)
