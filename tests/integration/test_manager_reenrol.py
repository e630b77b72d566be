"""Nodes whose certificates expired while they were off, at a real manager process."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import pytest

from ipc.aio import AsyncBus
from ipc.topics import Certificate
from procs.renewer.files import install
from procs.renewer.requester import Requester
from swarm.api import control_pb2, control_pb2_grpc
from swarm.errors import SwarmvisorError
from swarm.paths import Paths
from swarm.pki.credentials import Credentials, load_credentials
from swarm.pki.keyfile import KeyFile
from swarm.remotes import Peer, Remotes
from tests.integration.manager_node import ManagerNode, running
from tests.tools.aged import believe
from tests.tools.authority import HOUR, Authority

LOG = logging.getLogger(__name__)


def asks(node: ManagerNode, directory: Path) -> Requester:
    return Requester(Paths(directory / "w", directory / "r"), Remotes([Peer("m", node.address)]), LOG, 10)


def aged(node: ManagerNode, held: Credentials, days: float) -> Credentials:
    """A certificate of the node's that expired `days` ago, as its swarm's CA would have issued it."""
    return node.authority.issue(
        held.role, node_id=held.node_id, expiry=HOUR, issued_at=time.time() - HOUR - days * 24 * HOUR
    )


async def test_a_node_that_slept_too_long_is_back_with_the_same_id(short_dir: Path) -> None:
    node = ManagerNode.new(short_dir)
    await node.start()
    try:
        await node.ready()
        expired = aged(node, await node.join(), days=80)
        gone = aged(node, await node.join(), days=100)
        await node.stop()
        await believe(node.paths, [expired, gone])
        await node.start()
        await node.ready()
        requester = asks(node, short_dir)
        fresh, _ = await requester.request(expired, local=False)
        assert (fresh.node_id, fresh.role, fresh.not_after > time.time()) == (expired.node_id, "worker", True)
        with pytest.raises(SwarmvisorError, match=r"longer ago than the swarm allows .*rejoin"):
            await requester.request(gone, local=False)
        requester.paths.state.mkdir()
        requester.paths.join_token.write_text(await node.token())
        # At once, so the manager finds it too soon at first.
        assert (await requester.request(gone, local=False))[0].node_id == gone.node_id
    finally:
        await node.stop()


async def test_an_expired_node_renews_by_its_old_key_and_only_by_its_newest(short_dir: Path) -> None:
    async with running(short_dir) as node:
        old = await node.join()
        requester = asks(node, short_dir)
        with pytest.raises(SwarmvisorError, match="check this machine's clock"):
            # what a node with a wrong clock does: its certificate is the right one, and has not expired
            await requester.request(replace(old, not_after=int(time.time()) - 5), local=False)
        other = await node.join()
        stranger = aged(node, other, days=3)
        with pytest.raises(SwarmvisorError, match="has had a newer certificate"):
            await requester.request(stranger, local=False)
        foreign = Authority(cluster_id=node.authority.cluster_id).issue(
            "worker", node_id=other.node_id, expiry=HOUR, issued_at=time.time() - 48 * HOUR
        )
        with pytest.raises(SwarmvisorError, match="A valid join token is necessary"):
            await requester.request(replace(foreign, root_pem=node.authority.root.certs), local=False)
        removed = await node.join()
        async with node.control() as channel:
            await control_pb2_grpc.ControlStub(channel).RemoveNode(
                control_pb2.RemoveNodeRequest(node_id=removed.node_id, force=True)
            )
        late = aged(node, removed, days=3)
        with pytest.raises(SwarmvisorError, match="was removed from the swarm"):
            await requester.request(late, local=False)


async def test_a_sole_manager_whose_certificate_expired_serves_its_control_socket_until_it_is_renewed(
    short_dir: Path,
) -> None:
    node = ManagerNode.new(short_dir)
    await node.start()
    await node.ready()
    await node.stop()
    assert node.own is not None
    expired = node.authority.issue(
        "manager", node_id=node.own.node_id, expiry=HOUR, issued_at=time.time() - 400 * 24 * HOUR
    )
    KeyFile.of(node.paths).write(expired.certificate_pem, expired.key_pem)
    await node.start()
    try:
        said = await node.ready()
        async with grpc.aio.insecure_channel(said.remote_addr) as channel:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(channel.channel_ready(), 0.3)
        async with AsyncBus(node.paths.bus, "renewer", ()) as bus:
            requester = Requester(node.paths, Remotes([]), LOG, 10)
            held = load_credentials(node.paths, allow_expired=True)
            assert held.not_after < time.time()
            fresh = install(node.paths, *await requester.request(held, local=True))
            assert (fresh.node_id, fresh.role) == (node.own.node_id, "manager")
            bus.publish(
                "certificate",
                Certificate(
                    "valid",
                    fresh.node_id,
                    fresh.cluster_id,
                    "manager",
                    fingerprint=fresh.fingerprint,
                    root_digest=fresh.root_digest,
                    not_after=fresh.not_after,
                ),
            )
            joined = await node.join()
            assert joined.cluster_id == fresh.cluster_id
    finally:
        await node.stop()
