"""What a peer manager forwards in the name of others: refused for who was removed, taken for an expired node's proof.

The peer is scripted: a real manager's certificate over real TLS, and the metadata that SwarmKit's followers send
(reference node-and-ca §5.3, §5.4).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from procs.manager.store import Tx
from swarm.api import (
    ca_pb2,
    ca_pb2_grpc,
    control_pb2,
    control_pb2_grpc,
    dispatcher_pb2,
    dispatcher_pb2_grpc,
    objects_pb2,
    specs_pb2,
    types_pb2,
)
from swarm.pki.certificate import parse_bundle
from swarm.pki.credentials import Credentials
from swarm.pki.reenrol import METADATA, REFUSED, make_proof
from swarm.pki.request import new_request
from tests.integration.manager_node import ManagerNode, code_and_text
from tests.tools.aged import DAY, HOUR, believe, rewrite

DENIED = grpc.StatusCode.PERMISSION_DENIED
TOKEN_TEXT = "A valid join token is necessary to join this cluster"
Metadata = tuple[tuple[str, str | bytes], ...]


@dataclass
class Scene:
    """A manager, another one of its swarm that forwards, and three workers: one well, one expired, one removed."""

    node: ManagerNode
    peer: Credentials
    well: Credentials
    late: Credentials
    gone: Credentials

    def channel(self) -> grpc.aio.Channel:
        return self.node.remote(self.peer)

    async def remove(self, node_id: str) -> None:
        async with self.node.control() as channel:
            request = control_pb2.RemoveNodeRequest(node_id=node_id, force=True)
            await control_pb2_grpc.ControlStub(channel).RemoveNode(request, timeout=10)

    async def version(self, node_id: str) -> int:
        async with self.node.control() as channel:
            request = control_pb2.GetNodeRequest(node_id=node_id)
            answer = await control_pb2_grpc.ControlStub(channel).GetNode(request, timeout=10)
            return int(answer.node.meta.version.index)


def in_the_name_of(who: Credentials) -> Metadata:
    return (
        ("forwarded_cert", "true"),
        ("forwarded_cert_cn", who.node_id),
        ("forwarded_cert_org", who.cluster_id),
        ("forwarded_cert_ou", f"swarm-{who.role}"),
        ("remote_addr", "198.51.100.7:7"),
    )


def of_nobody(proof: bytes) -> Metadata:
    """A caller without a certificate, who sent a proof: metadata is passed along."""
    blank: Metadata = (("forwarded_cert", "true"), ("forwarded_cert_cn", ""), ("forwarded_cert_org", ""))
    return (*blank, ("remote_addr", "198.51.100.7:7"), (METADATA, proof))


def proof_of(held: Credentials, csr: bytes) -> bytes:
    leaf = parse_bundle(held.certificate_pem)[0]
    return make_proof(held.cluster_id, held.node_id, leaf, held.key_pem, csr, time.time_ns())


async def heartbeat(channel: grpc.aio.Channel, metadata: Metadata) -> Any:
    request = dispatcher_pb2.HeartbeatRequest(session_id="none")
    return await dispatcher_pb2_grpc.DispatcherStub(channel).Heartbeat(request, timeout=10, metadata=metadata)


async def issue(channel: grpc.aio.Channel, csr: bytes, metadata: Metadata) -> str:
    request = ca_pb2.IssueNodeCertificateRequest(csr=csr)
    stub = ca_pb2_grpc.NodeCAStub(channel)
    return str((await stub.IssueNodeCertificate(request, timeout=10, metadata=metadata)).node_id)


@contextmanager
def refused(code: grpc.StatusCode, text: str, marker: str = "") -> Iterator[None]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        yield
    assert code_and_text(error.value) == (code, text)
    trailing: Any = error.value.trailing_metadata() or ()
    assert dict(trailing).get(REFUSED, "") == marker


async def test_a_peer_manager_forwards_for_members_and_proofs_but_not_for_who_was_removed(short_dir: Path) -> None:
    node = ManagerNode.new(short_dir)
    await node.start()
    try:
        await node.ready()
        well, late, gone = [await node.join() for _ in range(3)]
        await node.stop()
        peer = node.authority.issue("manager")
        late = node.authority.issue("worker", node_id=late.node_id, expiry=HOUR, issued_at=time.time() - HOUR - 3 * DAY)

        def admit(tx: Tx) -> None:
            made = objects_pb2.Node(id=peer.node_id, role=types_pb2.NodeRole.MANAGER)
            made.spec.desired_role = types_pb2.NodeRole.MANAGER
            made.spec.membership = specs_pb2.NodeSpec.ACCEPTED
            tx.create(made)

        await rewrite(node.paths, peer.cluster_id, admit)
        await believe(node.paths, [late])
        await node.start()
        await node.ready()
        scene = Scene(node, peer, well, late, gone)
        async with scene.channel() as channel:
            await forwards(scene, channel)
            await proves(scene, channel)
            await scene.remove(peer.node_id)
            text = f"Permission denied: node {peer.node_id} was removed from swarm"
            wrapped = (
                "Permission denied: unauthorized forwarder role: rpc error: code = PermissionDenied desc = " + text
            )
            with refused(DENIED, wrapped):
                await heartbeat(channel, in_the_name_of(well))
            with refused(grpc.StatusCode.INVALID_ARGUMENT, TOKEN_TEXT):
                await issue(channel, new_request()[1], in_the_name_of(well))
    finally:
        await node.stop()


async def forwards(scene: Scene, channel: grpc.aio.Channel) -> None:
    assert await issue(channel, new_request()[1], in_the_name_of(scene.well)) == scene.well.node_id, "it renews"
    with pytest.raises(grpc.aio.AioRpcError) as session:
        await heartbeat(channel, in_the_name_of(scene.well))
    assert code_and_text(session.value)[0] is not DENIED, "let in: it only has no session"
    await scene.remove(scene.gone.node_id)
    with refused(DENIED, f"Permission denied: node {scene.gone.node_id} was removed from swarm"):
        await heartbeat(channel, in_the_name_of(scene.gone))
    with refused(grpc.StatusCode.INVALID_ARGUMENT, TOKEN_TEXT):
        await issue(channel, new_request()[1], in_the_name_of(scene.gone))


async def proves(scene: Scene, channel: grpc.aio.Channel) -> None:
    late = scene.late
    _, csr = new_request()
    proof = proof_of(late, csr)
    assert await issue(channel, csr, of_nobody(proof)) == late.node_id
    question = ca_pb2.NodeCertificateStatusRequest(node_id=late.node_id)
    signed = await ca_pb2_grpc.NodeCAStub(channel).NodeCertificateStatus(question, timeout=10)
    assert signed.status.state == types_pb2.IssuanceStatus.ISSUED
    assert parse_bundle(signed.certificate.certificate)[0].not_after > time.time()
    version = await scene.version(late.node_id)
    assert await issue(channel, csr, of_nobody(proof)) == late.node_id, "its answer was lost: the same again, at once"
    assert await scene.version(late.node_id) == version, "and nothing was written"
    # More than one new proof a second is too much, however it comes; one of them may be the first in its second.
    results = await asyncio.gather(
        *(issue(channel, fresh, of_nobody(proof_of(late, fresh))) for fresh in (new_request()[1] for _ in range(2))),
        return_exceptions=True,
    )
    markers = [dict(r.trailing_metadata() or ()).get(REFUSED) for r in results if isinstance(r, grpc.aio.AioRpcError)]
    assert "too-soon" in markers
    with refused(grpc.StatusCode.INVALID_ARGUMENT, TOKEN_TEXT, "removed"):
        await issue(channel, csr, of_nobody(proof_of(expired_like(scene, scene.gone), csr)))


def expired_like(scene: Scene, held: Credentials) -> Credentials:
    return scene.node.authority.issue(
        "worker", node_id=held.node_id, expiry=HOUR, issued_at=time.time() - HOUR - 3 * DAY
    )
