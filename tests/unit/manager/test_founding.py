from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from procs.manager.founding import found, read_root_key, root_digest_held
from procs.manager.store import Store
from procs.manager.store.sqlite import SqliteEngine
from swarm.api import objects_pb2, specs_pb2, types_pb2
from swarm.clock import SystemClock
from swarm.errors import CorruptFile
from swarm.nodeconfig import NodeConfig
from swarm.paths import Paths
from swarm.pki.tokens import JoinToken
from tests.tools.authority import Authority


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "s", tmp_path / "r")


async def test_new_swarm_has_the_defaults_and_its_node_is_a_manager_at_once(paths: Paths) -> None:
    authority = Authority()
    own = authority.bootstrap(paths)
    store = await Store.open(SqliteEngine(paths.state / "store.db"), clock=SystemClock())
    config = NodeConfig(availability="drain", election_tick=20)
    for _ in range(2):  # a restart changes nothing
        await store.update(lambda tx: found(tx, paths, own, config))
    (cluster,) = store.find(objects_pb2.Cluster)
    assert (cluster.id, cluster.spec.annotations.name) == (own.cluster_id, "default")
    assert cluster.spec.orchestration.task_history_retention_limit == 5
    assert cluster.spec.dispatcher.heartbeat_period.seconds == 5
    assert (cluster.spec.raft.snapshot_interval, cluster.spec.raft.log_entries_for_slow_followers) == (10000, 500)
    assert (cluster.spec.raft.heartbeat_tick, cluster.spec.raft.election_tick) == (1, 20)
    assert cluster.spec.ca_config.node_cert_expiry.seconds == 2160 * 3600
    assert (cluster.root_ca.ca_cert, cluster.root_ca.ca_key) == (authority.root.certs, authority.root.key_pem)
    digest = hashlib.sha256(authority.root.certs).hexdigest()
    assert cluster.root_ca.ca_cert_hash == f"sha256:{digest}"
    assert root_digest_held(cluster) == digest
    tokens = cluster.root_ca.join_tokens
    assert tokens.worker != tokens.manager
    assert JoinToken.parse(tokens.worker).root_digest() == digest
    (node,) = store.find(objects_pb2.Node)
    manager = types_pb2.NodeRole.MANAGER
    assert (node.id, node.role, node.spec.desired_role, node.certificate.role) == (own.node_id, *[manager] * 3)
    assert node.certificate.status.state == types_pb2.IssuanceStatus.ISSUED
    assert node.spec.availability == specs_pb2.NodeSpec.DRAIN
    await store.close()


async def test_store_of_another_swarm_is_refused(paths: Paths) -> None:
    authority = Authority()
    own = authority.bootstrap(paths)
    store = await Store.open(SqliteEngine(paths.state / "store.db"), clock=SystemClock())
    await store.update(lambda tx: tx.create(objects_pb2.Cluster(id="another")))
    with pytest.raises(CorruptFile, match="belongs to swarm another"):
        await store.update(lambda tx: found(tx, paths, own, NodeConfig()))
    assert len(store.find(objects_pb2.Cluster)) == 1
    await store.close()


def test_root_key_that_is_missing_or_another_ones_is_a_refusal_naming_the_file(paths: Paths) -> None:
    authority = Authority()
    own = authority.bootstrap(paths)
    paths.bootstrap_root_key.write_bytes(Authority().root.key_pem)
    with pytest.raises(CorruptFile, match=r"bootstrap-ca\.key.*is not the key of"):
        read_root_key(paths, own)
    paths.bootstrap_root_key.unlink()
    with pytest.raises(CorruptFile, match=r"bootstrap-ca\.key.*missing"):
        read_root_key(paths, own)
    paths.root_key.write_bytes(authority.root.key_pem)  # an operator's
    assert read_root_key(paths, own).can_sign
