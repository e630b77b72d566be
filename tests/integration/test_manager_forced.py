"""A manager process that is ordered to go on alone, while its certificate has expired."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from procs.manager.store.engine import LEAP
from swarm.api import control_pb2, control_pb2_grpc
from swarm.pki.keyfile import KeyFile
from tests.integration.manager_node import ManagerNode
from tests.tools.authority import HOUR


async def version(node: ManagerNode) -> int:
    """Index of the newest change to the cluster object."""
    async with node.control() as channel:
        stub = control_pb2_grpc.ControlStub(channel)
        cluster = (await stub.ListClusters(control_pb2.ListClustersRequest(), timeout=10)).clusters[0]
        cluster.spec.annotations.labels["touched"] = str(time.monotonic_ns())
        request = control_pb2.UpdateClusterRequest(
            cluster_id=cluster.id, cluster_version=cluster.meta.version, spec=cluster.spec
        )
        return int((await stub.UpdateCluster(request, timeout=10)).cluster.meta.version.index)


@pytest.mark.timeout(120)
async def test_an_expired_certificate_does_not_keep_a_manager_from_going_on_alone(short_dir: Path) -> None:
    node = ManagerNode.new(short_dir)
    assert node.own is not None
    await node.start()
    try:
        await node.ready()
        before = await version(node)
        await node.stop()
        then = time.time() - 30 * 24 * HOUR
        expired = node.authority.issue("manager", node_id=node.own.node_id, expiry=HOUR, issued_at=then)
        KeyFile.of(node.paths).write(expired.certificate_pem, expired.key_pem)
        node.paths.forced.touch()
        await node.start()
        await node.ready()
        assert not node.paths.forced.exists(), "ready before it was done"
        assert "forced: this node is the only manager of its swarm" in node.said()
        assert before + LEAP < await version(node) < before + 2 * LEAP
    finally:
        await node.stop()
