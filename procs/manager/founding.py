"""What a manager finds in its store or puts there first: the cluster object, its own node object.

Defaults: reference manager §1.7. Better than it in one point (DESIGN §4): our own node object has role MANAGER at once.
"""

from __future__ import annotations

import hashlib

from procs.manager.store import Tx
from swarm.api import objects_pb2, specs_pb2, types_pb2
from swarm.errors import BadInput, CorruptFile, Locked
from swarm.nodeconfig import NodeConfig
from swarm.paths import Paths
from swarm.pki import privatekey
from swarm.pki.credentials import Credentials
from swarm.pki.pem import decode
from swarm.pki.rootca import DEFAULT_NODE_EXPIRY, RootCA
from swarm.pki.tokens import generate_join_token
from swarm.unlock import raw, read_unlock_keys

UNLOCK_SUBSYSTEM = "swarm-manager"

CLUSTER_NAME = "default"
TASK_HISTORY = 5
HEARTBEAT_SECONDS = 5
SNAPSHOT_INTERVAL = 10_000
LOG_ENTRIES_FOR_SLOW_FOLLOWERS = 500

_AVAILABILITY = {
    "active": specs_pb2.NodeSpec.ACTIVE,
    "pause": specs_pb2.NodeSpec.PAUSE,
    "drain": specs_pb2.NodeSpec.DRAIN,
}


def read_root_key(paths: Paths, credentials: Credentials) -> RootCA:
    """The root that may sign, for a swarm that is being founded: an operator's key, else the renewer's.

    Raises CorruptFile if there is none or it does not fit the root certificate.
    """
    for path in (paths.root_key, paths.bootstrap_root_key):
        try:
            key = path.read_bytes()
        except FileNotFoundError:
            continue
        key = _plain_key(paths, key)
        try:
            return RootCA.from_pem(credentials.root_pem, key, credentials.root_pem)
        except BadInput as error:
            raise CorruptFile(
                path, f"is not the key of {paths.root_cert}: {error.message}", remedy="restore the file from a backup"
            ) from error
    raise CorruptFile(
        paths.bootstrap_root_key,
        "is missing, and the store does not hold the swarm's root key yet",
        remedy=f"restore it, or restore {paths.manager} if there was one; else start over: `swarmvisor leave --force`",
    )


def found(tx: Tx, paths: Paths, credentials: Credentials, config: NodeConfig) -> None:
    """Create what is missing of cluster and own node. Raises CorruptFile if the store is another swarm's."""
    clusters = tx.find(objects_pb2.Cluster)
    if any(cluster.id != credentials.cluster_id for cluster in clusters):
        raise CorruptFile(
            paths.manager,
            f"belongs to swarm {clusters[0].id}, the certificate to {credentials.cluster_id}",
            remedy="restore the certificates that belong to it, or move the directory away",
        )
    if not clusters:
        cluster = default_cluster(credentials, config, read_root_key(paths, credentials))
        for kek in read_unlock_keys(paths)[:1]:  # `init --autolock`
            cluster.spec.encryption_config.auto_lock_managers = True
            cluster.unlock_keys.add(subsystem=UNLOCK_SUBSYSTEM, key=kek.key)
        tx.create(cluster)
    if tx.get(objects_pb2.Node, credentials.node_id) is None:
        tx.create(own_node(credentials, config))


def default_cluster(credentials: Credentials, config: NodeConfig, root: RootCA) -> objects_pb2.Cluster:
    """The cluster object of a new swarm; the root key in it is sealed with everything else in the store."""
    cluster = objects_pb2.Cluster(id=credentials.cluster_id)
    spec = cluster.spec
    spec.annotations.name = CLUSTER_NAME
    spec.orchestration.task_history_retention_limit = TASK_HISTORY
    spec.dispatcher.heartbeat_period.seconds = HEARTBEAT_SECONDS
    spec.raft.snapshot_interval = SNAPSHOT_INTERVAL
    spec.raft.log_entries_for_slow_followers = LOG_ENTRIES_FOR_SLOW_FOLLOWERS
    spec.raft.heartbeat_tick = config.heartbeat_tick
    spec.raft.election_tick = config.election_tick
    spec.ca_config.node_cert_expiry.seconds = DEFAULT_NODE_EXPIRY
    spec.encryption_config.auto_lock_managers = False
    cluster.root_ca.ca_key = root.key_pem
    cluster.root_ca.ca_cert = root.certs
    cluster.root_ca.ca_cert_hash = f"sha256:{root.digest}"
    cluster.fips = config.fips
    cluster.root_ca.join_tokens.worker = generate_join_token(root.certs, config.fips)
    cluster.root_ca.join_tokens.manager = generate_join_token(root.certs, config.fips)
    cluster.defaultAddressPool.extend(config.default_address_pools)
    cluster.subnetSize = config.subnet_size
    return cluster


def own_node(credentials: Credentials, config: NodeConfig) -> objects_pb2.Node:
    """The node object of the swarm's first manager."""
    role = types_pb2.NodeRole.MANAGER
    node = objects_pb2.Node(id=credentials.node_id, role=role)
    node.certificate.cn = credentials.node_id
    node.certificate.role = role
    node.certificate.status.state = types_pb2.IssuanceStatus.ISSUED
    node.spec.desired_role = role
    node.spec.membership = specs_pb2.NodeSpec.ACCEPTED
    node.spec.availability = _AVAILABILITY[config.availability]
    return node


def root_digest_held(cluster: objects_pb2.Cluster | None) -> str:
    """SHA-256 (hex) of the root whose key the store holds, empty if it holds none."""
    if cluster is None or not cluster.root_ca.ca_key:
        return ""
    return hashlib.sha256(cluster.root_ca.ca_cert).hexdigest()


def _plain_key(paths: Paths, key: bytes) -> bytes:
    """The root's key of a file, opened with the unlock key where `init --autolock` locked it. Raises Locked."""
    block, _ = decode(key)
    if block is None or not privatekey.is_encrypted(block):
        return key
    for kek in raw(read_unlock_keys(paths)):
        try:
            return privatekey.to_pem(privatekey.load(privatekey.decrypt(block, kek)))
        except Locked:
            continue
    raise Locked(f"{paths.bootstrap_root_key} is encrypted", remedy="run `swarmvisor unlock`")
