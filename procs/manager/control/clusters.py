"""The cluster object (reference manager §5.8)."""

from __future__ import annotations

from typing import Any

import grpc

from procs.manager.ca.grace import LABEL, parse_grace
from procs.manager.control.ca_config import is_usable, plan
from procs.manager.control.durations import HOUR, nanoseconds
from procs.manager.control.filters import labels_match, one_of, starts_with
from procs.manager.control.later import not_yet
from procs.manager.control.nodes import DEFAULT_CLUSTER, drop_expired
from procs.manager.control.ports import Ports, copied
from procs.manager.status import Status, invalid_argument, not_found
from procs.manager.store import Tx
from procs.manager.store.errors import OutOfSequence
from swarm.api import control_pb2
from swarm.api.objects_pb2 import Cluster
from swarm.api.specs_pb2 import ClusterSpec
from swarm.api.types_pb2 import EncryptionKey, RootCA
from swarm.errors import BadInput
from swarm.pki.tokens import generate_join_token, generate_unlock_key

# ruff: noqa: N802, ARG002  (gRPC's method names and arguments)

UNLOCK_SUBSYSTEM = "swarm-manager"

_SHOWN = ("meta", "spec", "root_ca")
_DEFAULT_POOL = "10.0.0.0/8"
_DEFAULT_SUBNET_SIZE = 24
_DEFAULT_VXLAN_PORT = 4789


class ClusterMethods(Ports):
    """GetCluster, ListClusters, UpdateCluster."""

    async def GetCluster(self, request: control_pb2.GetClusterRequest, context: Any) -> control_pb2.GetClusterResponse:
        if not request.cluster_id:
            raise invalid_argument()
        cluster = self._store.get(Cluster, request.cluster_id)
        if cluster is None:
            raise not_found(f"cluster {request.cluster_id} not found")
        return control_pb2.GetClusterResponse(cluster=redacted(cluster))

    async def ListClusters(
        self, request: control_pb2.ListClustersRequest, context: Any
    ) -> control_pb2.ListClustersResponse:
        filters = request.filters
        clusters = [
            redacted(cluster)
            for cluster in self._store.find(Cluster)
            if one_of(filters.names, cluster.spec.annotations.name)
            and starts_with(filters.name_prefixes, cluster.spec.annotations.name)
            and starts_with(filters.id_prefixes, cluster.id)
            and labels_match(filters.labels, cluster.spec.annotations.labels)
        ]
        return control_pb2.ListClustersResponse(clusters=clusters)

    async def UpdateCluster(
        self, request: control_pb2.UpdateClusterRequest, context: Any
    ) -> control_pb2.UpdateClusterResponse:
        if not request.cluster_id or not request.HasField("cluster_version"):
            raise invalid_argument()
        if not request.HasField("spec"):
            raise invalid_argument()
        check_cluster_spec(request.spec)
        seen = self._store.get(Cluster, request.cluster_id)
        if seen is None:
            raise not_found(f"cluster {request.cluster_id} not found")
        if not is_usable(seen.root_ca):
            raise Status(grpc.StatusCode.INTERNAL, "error loading cluster rootCA for update")
        self._refuse_unsupported(seen, request.spec)
        root_ca = copied(seen.root_ca)
        if request.rotation.worker_join_token:
            root_ca.join_tokens.worker = generate_join_token(root_ca.ca_cert, seen.fips)
        if request.rotation.manager_join_token:
            root_ca.join_tokens.manager = generate_join_token(root_ca.ca_cert, seen.fips)
        root_ca = await plan(root_ca, request.spec.ca_config, self._externals, self._now().seconds)
        cluster = await self._store.update(
            lambda tx: self._update(tx, request, seen, root_ca), cause=f"UpdateCluster {request.cluster_id}"
        )
        return control_pb2.UpdateClusterResponse(cluster=redacted(cluster))

    def _update(self, tx: Tx, request: control_pb2.UpdateClusterRequest, seen: Cluster, root_ca: RootCA) -> Cluster:
        stored = tx.get(Cluster, request.cluster_id)
        if stored is None:
            raise not_found(f"cluster {request.cluster_id} not found")
        if stored.meta.version != seen.meta.version:
            raise OutOfSequence  # the root was planned for what has been replaced meanwhile
        cluster = copied(stored)
        cluster.meta.version.CopyFrom(request.cluster_version)
        cluster.spec.CopyFrom(request.spec)
        cluster.root_ca.CopyFrom(root_ca)
        drop_expired(cluster, self._now().seconds)
        _set_unlock_key(cluster, rotate=request.rotation.manager_unlock_key)
        tx.update(cluster)
        return cluster

    def _refuse_unsupported(self, stored: Cluster, spec: ClusterSpec) -> None:
        """Unimplemented for what nothing here would carry out."""
        if spec.task_defaults.log_driver.name:
            raise not_yet("task_defaults.log_driver (log drivers)")
        locks = spec.encryption_config.auto_lock_managers and not stored.spec.encryption_config.auto_lock_managers
        if locks and not self._may_lock:
            raise not_yet("encryption_config.auto_lock_managers (locking the managers' keys)")


def check_cluster_spec(spec: ClusterSpec) -> None:
    """InvalidArgument for the first thing that cannot be."""
    if LABEL in spec.annotations.labels:
        try:
            parse_grace(spec.annotations.labels[LABEL])
        except BadInput as error:
            raise invalid_argument(error.describe()) from error
    if spec.ca_config.HasField("node_cert_expiry") and nanoseconds(spec.ca_config.node_cert_expiry) < HOUR:
        raise invalid_argument("minimum certificate expiry time is: 1h0m0s")
    for policy in spec.acceptance_policy.policies:
        if policy.HasField("secret") and policy.secret.alg.lower() != "bcrypt":
            raise invalid_argument(f"hashing algorithm is not supported: {policy.secret.alg}")
    if nanoseconds(spec.dispatcher.heartbeat_period) < 0:
        raise invalid_argument("heartbeat time period cannot be a negative duration")
    if spec.annotations.name != DEFAULT_CLUSTER:
        raise invalid_argument("modification of cluster name is not allowed")


def redacted(cluster: Cluster) -> Cluster:
    """What a client may see: no signing key, no unlock key, no network key; and the defaults that are in force."""
    shown = Cluster(id=cluster.id, VXLANUDPPort=cluster.VXLANUDPPort or _DEFAULT_VXLAN_PORT)
    for field in _SHOWN:
        getattr(shown, field).CopyFrom(getattr(cluster, field))
    if shown.spec.HasField("ca_config"):
        shown.spec.ca_config.ClearField("signing_ca_key")
        shown.spec.ca_config.ClearField("signing_ca_cert")
    shown.root_ca.ClearField("ca_key")
    if shown.root_ca.HasField("root_rotation"):
        shown.root_ca.root_rotation.ClearField("ca_key")
    for name, entry in cluster.blacklisted_certificates.items():
        shown.blacklisted_certificates[name].CopyFrom(entry)
    if cluster.defaultAddressPool:
        shown.defaultAddressPool.extend(cluster.defaultAddressPool)
        shown.subnetSize = cluster.subnetSize
    else:
        shown.defaultAddressPool.append(_DEFAULT_POOL)
        shown.subnetSize = _DEFAULT_SUBNET_SIZE
    return shown


def _set_unlock_key(cluster: Cluster, *, rotate: bool) -> None:
    """The managers' key is there exactly while autolock is on; keys of other subsystems stay as they are."""
    keys = cluster.unlock_keys
    mine = [number for number, key in enumerate(keys) if key.subsystem == UNLOCK_SUBSYSTEM]
    if not cluster.spec.encryption_config.auto_lock_managers:
        for number in reversed(mine):
            del keys[number]
    elif not mine:
        keys.append(EncryptionKey(subsystem=UNLOCK_SUBSYSTEM, key=generate_unlock_key()))
    elif rotate:
        keys[mine[0]].key = generate_unlock_key()
