"""The cluster object: redaction, validation, tokens, unlock key."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest

from procs.manager.store import Tx
from procs.manager.store.errors import OutOfSequence
from swarm.api.control_pb2 import GetClusterRequest, ListClustersRequest, UpdateClusterRequest
from swarm.api.objects_pb2 import Cluster
from swarm.api.specs_pb2 import ClusterSpec
from swarm.pki.tokens import JoinToken
from tests.unit.control.conftest import IA, NOT_FOUND, NOW, UNIMPLEMENTED, Api

NOT_YET = ": this version of Swarmvisor does not support that yet"


def update_of(cluster: Cluster) -> UpdateClusterRequest:
    return UpdateClusterRequest(cluster_id=cluster.id, cluster_version=cluster.meta.version, spec=cluster.spec)


async def test_requests_without_an_id_and_unknown_ids(api: Api) -> None:
    assert await api.refusal("GetCluster", GetClusterRequest()) == (IA, "invalid argument")
    assert await api.refusal("GetCluster", GetClusterRequest(cluster_id="x")) == (NOT_FOUND, "cluster x not found")
    unknown = UpdateClusterRequest(cluster_id="x")
    unknown.spec.annotations.name = "default"
    unknown.cluster_version.SetInParent()
    assert await api.refusal("UpdateCluster", unknown) == (NOT_FOUND, "cluster x not found")


@pytest.mark.parametrize("missing", ["cluster_id", "cluster_version", "spec"])
async def test_an_update_needs_id_version_and_spec(api: Api, cluster: Cluster, missing: str) -> None:
    await api.put(cluster)
    request = update_of(cluster)
    request.ClearField(missing)  # type: ignore[arg-type]
    assert await api.refusal("UpdateCluster", request) == (IA, "invalid argument")


def policy(alg: str) -> Callable[[ClusterSpec], object]:
    def change(spec: ClusterSpec) -> None:
        secret = spec.acceptance_policy.policies.add().secret
        secret.alg = alg
        secret.data = b"hash"

    return change


WRONG: dict[str, tuple[Callable[[ClusterSpec], object], grpc.StatusCode, str]] = {
    "short expiry": (
        lambda spec: setattr(spec.ca_config.node_cert_expiry, "seconds", 3599),
        IA,
        "minimum certificate expiry time is: 1h0m0s",
    ),
    "no expiry": (
        lambda spec: spec.ca_config.node_cert_expiry.Clear(),
        IA,
        "minimum certificate expiry time is: 1h0m0s",
    ),
    "algorithm": (policy("sha1"), IA, "hashing algorithm is not supported: sha1"),
    "negative heartbeat": (
        lambda spec: setattr(spec.dispatcher.heartbeat_period, "seconds", -1),
        IA,
        "heartbeat time period cannot be a negative duration",
    ),
    "no name": (
        lambda spec: spec.annotations.ClearField("name"),
        IA,
        "modification of cluster name is not allowed",
    ),
    "another name": (
        lambda spec: setattr(spec.annotations, "name", "mine"),
        IA,
        "modification of cluster name is not allowed",
    ),
    "key without certificate": (
        lambda spec: setattr(spec.ca_config, "signing_ca_key", b"key"),
        IA,
        "if a signing CA key is provided, the signing CA cert must also be provided",
    ),
    "no certificate at all": (
        lambda spec: setattr(spec.ca_config, "signing_ca_cert", b"cert"),
        IA,
        "no valid root CA certificates found",
    ),
    "rotation without a usable root": (
        lambda spec: setattr(spec.ca_config, "force_rotate", 1),
        grpc.StatusCode.INTERNAL,
        "unable to generate a cross-signed certificate for root rotation",
    ),
    "log driver": (
        lambda spec: setattr(spec.task_defaults.log_driver, "name", "syslog"),
        UNIMPLEMENTED,
        f"task_defaults.log_driver (log drivers){NOT_YET}",
    ),
    "autolock": (
        lambda spec: setattr(spec.encryption_config, "auto_lock_managers", True),
        UNIMPLEMENTED,
        f"encryption_config.auto_lock_managers (locking the managers' keys){NOT_YET}",
    ),
}


@pytest.mark.parametrize("case", WRONG)
async def test_what_is_wrong_or_not_there_yet_is_refused(api: Api, cluster: Cluster, case: str) -> None:
    await api.put(cluster)
    change, code, text = WRONG[case]
    request = update_of(cluster)
    change(request.spec)
    assert await api.refusal("UpdateCluster", request) == (code, text)
    assert api.store.get(Cluster, "cluster") == cluster


async def test_settings_change_and_an_old_version_is_refused(api: Api, cluster: Cluster) -> None:
    await api.put(cluster)
    request = update_of(cluster)
    request.spec.orchestration.task_history_retention_limit = 1
    request.spec.dispatcher.heartbeat_period.seconds = 1
    policy("BCrypt")(request.spec)
    updated = (await api.call("UpdateCluster", request)).cluster
    assert updated.spec.orchestration.task_history_retention_limit == 1
    assert updated.spec.acceptance_policy.policies[0].secret.data == b"hash"
    with pytest.raises(OutOfSequence):
        await api.call("UpdateCluster", request)


async def test_an_unusable_stored_root_is_an_internal_error(api: Api, cluster: Cluster) -> None:
    cluster.root_ca.ca_cert = b"junk"
    await api.put(cluster)
    assert await api.refusal("UpdateCluster", update_of(cluster)) == (
        grpc.StatusCode.INTERNAL,
        "error loading cluster rootCA for update",
    )


async def test_no_response_shows_a_private_thing(many: Api, cluster: Cluster) -> None:
    cluster.root_ca.root_rotation.ca_key = b"private rotation"
    cluster.root_ca.root_rotation.ca_cert = b"public rotation"
    cluster.root_ca.ca_key = b"private root"
    cluster.unlock_keys.add(subsystem="swarm-manager", key=b"private unlock")
    cluster.network_bootstrap_keys.add(subsystem="networking:gossip", key=b"private gossip")
    cluster.spec.encryption_config.auto_lock_managers = True
    await many.put(cluster)

    def with_private_spec(tx: Tx) -> None:
        changed = Cluster()
        changed.CopyFrom(cluster)
        changed.spec.ca_config.signing_ca_key = b"private signing"
        changed.spec.ca_config.signing_ca_cert = b"private signing cert"
        tx.update(changed)

    await many.store.update(with_private_spec)
    got = (await many.call("GetCluster", GetClusterRequest(cluster_id="cluster"))).cluster
    listed = (await many.call("ListClusters", ListClustersRequest())).clusters[0]
    request = update_of(got)
    request.cluster_version.CopyFrom(got.meta.version)
    updated = (await many.call("UpdateCluster", request)).cluster
    for shown in (got, listed, updated):
        assert b"private" not in shown.SerializeToString()
        assert shown.root_ca.root_rotation.ca_cert == b"public rotation"
        assert shown.root_ca.join_tokens.worker == "worker token"
        assert not shown.unlock_keys


async def test_network_defaults_are_shown_and_chosen_ones_kept(api: Api, cluster: Cluster) -> None:
    await api.put(cluster)
    shown = (await api.call("GetCluster", GetClusterRequest(cluster_id="cluster"))).cluster
    assert (list(shown.defaultAddressPool), shown.subnetSize, shown.VXLANUDPPort) == (["10.0.0.0/8"], 24, 4789)
    cluster.defaultAddressPool.append("172.16.0.0/12")
    cluster.subnetSize = 20
    cluster.VXLANUDPPort = 4790
    await api.store.update(lambda tx: tx.update(cluster))
    shown = (await api.call("GetCluster", GetClusterRequest(cluster_id="cluster"))).cluster
    assert (list(shown.defaultAddressPool), shown.subnetSize, shown.VXLANUDPPort) == (["172.16.0.0/12"], 20, 4790)


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        ({"names": ["default"]}, 1),
        ({"names": ["Default"]}, 0),
        ({"name_prefixes": ["def"]}, 1),
        ({"id_prefixes": ["other"]}, 0),
        ({"labels": {"a": ""}}, 1),
        ({"labels": {"b": ""}}, 0),
    ],
    ids=str,
)
async def test_listing(api: Api, cluster: Cluster, filters: dict[str, object], count: int) -> None:
    cluster.spec.annotations.labels["a"] = "1"
    await api.put(cluster)
    request = ListClustersRequest(filters=ListClustersRequest.Filters(**filters))  # type: ignore[arg-type]
    assert len((await api.call("ListClusters", request)).clusters) == count


@pytest.mark.parametrize(("worker", "manager"), [(True, False), (False, True), (True, True), (False, False)])
async def test_exactly_the_join_tokens_asked_for_are_replaced(
    api: Api, cluster: Cluster, worker: bool, manager: bool
) -> None:
    await api.put(cluster)
    request = update_of(cluster)
    request.rotation.worker_join_token = worker
    request.rotation.manager_join_token = manager
    tokens = (await api.call("UpdateCluster", request)).cluster.root_ca.join_tokens
    assert (tokens.worker != "worker token") is worker
    assert (tokens.manager != "manager token") is manager
    rotated = [JoinToken.parse(token) for token in (tokens.worker, tokens.manager) if token.startswith("SWMTKN-1-")]
    assert len(rotated) == worker + manager
    assert len({token.digest for token in rotated}) <= 1
    assert len({token.secret for token in rotated}) == len(rotated)


async def test_the_unlock_key_follows_autolock(many: Api, cluster: Cluster) -> None:
    cluster.unlock_keys.add(subsystem="other", key=b"other")
    await many.put(cluster)

    async def update(*, lock: bool, rotate: bool = False) -> list[bytes]:
        stored = many.store.get(Cluster, "cluster")
        assert stored is not None
        request = update_of(stored)
        request.spec.encryption_config.auto_lock_managers = lock
        request.rotation.manager_unlock_key = rotate
        await many.call("UpdateCluster", request)
        after = many.store.get(Cluster, "cluster")
        assert after is not None
        assert [key.key for key in after.unlock_keys if key.subsystem == "other"] == [b"other"]
        return [key.key for key in after.unlock_keys if key.subsystem == "swarm-manager"]

    assert await update(lock=False, rotate=True) == []
    (first,) = await update(lock=True)
    assert len(first) == 32
    assert await update(lock=True) == [first]
    (second,) = await update(lock=True, rotate=True)
    assert second != first
    assert await update(lock=False, rotate=True) == []


async def test_long_expired_blacklist_entries_are_dropped_at_an_update(api: Api, cluster: Cluster) -> None:
    week = 7 * 24 * 3600
    cluster.blacklisted_certificates["long ago"].expiry.seconds = NOW - week - 300
    cluster.blacklisted_certificates["lately"].expiry.seconds = NOW - week + 300
    await api.put(cluster)
    updated = (await api.call("UpdateCluster", update_of(cluster))).cluster
    assert set(updated.blacklisted_certificates) == {"lately"}
