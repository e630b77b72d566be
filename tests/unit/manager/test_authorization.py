"""Who may call what: every method of every service, every kind of caller, exact texts (reference node-and-ca §5.3)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from procs.manager.authorization import ANYONE, MANAGER, SERVICES, WORKER, Authorizer, Identity, roles_of
from procs.manager.gateway.records import Listener, Record
from procs.manager.status import Status
from swarm.api import objects_pb2, types_pb2

WIRE = json.loads((Path(__file__).parents[2] / "fixtures/wire/docker.swarmkit.v1.json").read_text())
METHODS: dict[str, Any] = {
    f"/docker.swarmkit.v1.{service}/{method}": about["roles"]
    for file in WIRE.values()
    for service, methods in file.get("services", {}).items()
    for method, about in methods.items()
}
ORG, OTHER = "cluster0000000000000000000", "another000000000000000000"
NOW = 1_700_000_000
WRAP = "Permission denied: unauthorized peer role: rpc error: code = PermissionDenied desc = "
FORWARDER = "Permission denied: unauthorized forwarder role: rpc error: code = PermissionDenied desc = "
DENIED = grpc.StatusCode.PERMISSION_DENIED


class Clock:
    def monotonic(self) -> float:
        return 0.0

    def wall_ns(self) -> int:
        return NOW * 1_000_000_000


class Objects:
    def __init__(self) -> None:
        self.cluster = objects_pb2.Cluster(id=ORG)
        self.cluster.spec.annotations.name = "default"
        self.cluster.blacklisted_certificates["blacklisted"].SetInParent()
        role = types_pb2.NodeRole
        self.nodes = {
            name: objects_pb2.Node(id=name, role=role.MANAGER if "manager" in name else role.WORKER)
            for name in ("manager", "worker", "demoted", "blacklisted", "manager2")
        }

    def get(self, kind: type[Any], id_: str) -> Any:
        return self.nodes.get(id_) if kind is objects_pb2.Node else None

    def find(self, kind: type[Any], *selectors: Any) -> list[Any]:
        return [self.cluster] if kind is objects_pb2.Cluster else []


def tls(cn: str, ou: str, org: str = ORG, not_after: int = NOW + 60) -> Record:
    return Record(Listener.REMOTE, "192.0.2.9:999", "192.0.2.1:2377", cn, (ou,), org, not_after, "ff" * 32)


def forwarded(cn: str, ou: str, org: str = ORG) -> list[tuple[str, str]]:
    return [
        ("forwarded_cert", "true"),
        ("forwarded_cert_cn", cn),
        ("forwarded_cert_org", org),
        ("forwarded_cert_ou", ou),
        ("remote_addr", "198.51.100.7:7"),
    ]


def listed(roles: list[str]) -> str:
    return f"[{' '.join(roles)}]"


@dataclass(frozen=True)
class Case:
    record: Record | None
    metadata: tuple[tuple[str, str], ...] = ()
    counts_as: str = ""
    """The role it counts as: it is served wherever that is enough."""
    text: str = ""
    """What it is told otherwise, or everywhere; {roles} stands for the method's."""
    node_id: str = ""
    claims: str = ""
    """The role that is looked at before the rest: where it is not enough, that is what the caller is told."""


OUS = WRAP + "Permission denied: remote certificate not part of OUs: {roles}"
EXPECTING = "Permission denied: unauthorized forwarded role, expecting: {roles}"
CASES: dict[str, Case] = {
    "no certificate": Case(Record(Listener.REMOTE, "192.0.2.9:999"), text=WRAP + "no client certificates in request"),
    "worker": Case(tls("worker", WORKER), counts_as=WORKER, text=OUS, node_id="worker"),
    "manager": Case(tls("manager", MANAGER), counts_as=MANAGER, node_id="manager"),
    "unknown role": Case(tls("worker", "swarm-ca"), text=OUS),
    "no role": Case(Record(Listener.REMOTE, "a:1", "b:1", "worker", (), ORG, NOW + 60, "f" * 64), text=OUS),
    "worker of another organization": Case(
        tls("worker", WORKER, OTHER),
        text=WRAP + f"Permission denied: remote certificate not part of organization: {ORG}",
        claims=WORKER,
    ),
    "manager of another organization": Case(
        tls("manager", MANAGER, OTHER),
        text=WRAP + f"Permission denied: remote certificate not part of organization: {ORG}",
    ),
    "stranger of another organization": Case(
        tls("stranger", MANAGER, OTHER),
        text=WRAP + f"Permission denied: remote certificate not part of organization: {ORG}",
    ),
    "expired worker": Case(
        tls("worker", WORKER, not_after=NOW - 1),
        text=WRAP + "Permission denied: certificate of node worker has expired",
    ),
    "expired manager": Case(
        tls("manager", MANAGER, not_after=NOW - 1),
        text=WRAP + "Permission denied: certificate of node manager has expired",
    ),
    "removed worker": Case(
        tls("gone", WORKER), text=WRAP + "Permission denied: node gone was removed from swarm", claims=WORKER
    ),
    "removed manager": Case(tls("gone", MANAGER), text=WRAP + "Permission denied: node gone was removed from swarm"),
    "blacklisted worker": Case(
        tls("blacklisted", WORKER),
        text=WRAP + "Permission denied: node blacklisted was removed from swarm",
        claims=WORKER,
    ),
    "demoted manager": Case(tls("demoted", MANAGER), counts_as=WORKER, text=OUS, node_id="demoted"),
    "worker forwarded by a manager": Case(
        tls("manager", MANAGER), tuple(forwarded("worker", WORKER)), WORKER, EXPECTING, "worker"
    ),
    "manager forwarded by a manager": Case(
        tls("manager", MANAGER), tuple(forwarded("manager2", MANAGER)), MANAGER, "", "manager2"
    ),
    "demoted manager forwarded by a manager": Case(
        tls("manager", MANAGER), tuple(forwarded("demoted", MANAGER)), WORKER, EXPECTING, "demoted"
    ),
    "removed worker forwarded by a manager": Case(
        tls("manager", MANAGER),
        tuple(forwarded("gone", WORKER)),
        text="Permission denied: node gone was removed from swarm",
        claims=WORKER,
    ),
    "blacklisted worker forwarded by a manager": Case(
        tls("manager", MANAGER),
        tuple(forwarded("blacklisted", WORKER)),
        text="Permission denied: node blacklisted was removed from swarm",
        claims=WORKER,
    ),
    "worker of another organization forwarded by a manager": Case(
        tls("manager", MANAGER),
        tuple(forwarded("worker", WORKER, OTHER)),
        text=f"Permission denied: organization mismatch, expecting: {ORG}",
        claims=WORKER,
    ),
    "no certificate, forwarded by a manager": Case(
        tls("manager", MANAGER),
        (("forwarded_cert", "true"), ("forwarded_cert_cn", ""), ("forwarded_cert_org", "")),
        text="Permission denied: missing information in forwarded request",
    ),
    "two names, forwarded by a manager": Case(
        tls("manager", MANAGER),
        (*forwarded("manager2", MANAGER), ("forwarded_cert_cn", "worker")),
        text="Permission denied: missing information in forwarded request",
    ),
    "manager forwarded by a worker": Case(
        tls("worker", WORKER),
        tuple(forwarded("manager", MANAGER)),
        text=FORWARDER + "Permission denied: remote certificate not part of OUs: [swarm-manager]",
    ),
    "manager forwarded by a demoted manager": Case(
        tls("demoted", MANAGER),
        tuple(forwarded("manager", MANAGER)),
        text=FORWARDER + "Permission denied: remote certificate not part of OUs: [swarm-manager]",
    ),
    "manager forwarded by a removed manager": Case(
        tls("gone", MANAGER),
        tuple(forwarded("manager", MANAGER)),
        text=FORWARDER + "Permission denied: node gone was removed from swarm",
    ),
    "manager forwarded by an expired manager": Case(
        tls("manager", MANAGER, not_after=NOW - 1),
        tuple(forwarded("manager2", MANAGER)),
        text=FORWARDER + "Permission denied: certificate of node manager has expired",
    ),
    "manager forwarded by nobody with a certificate": Case(
        Record(Listener.REMOTE, "192.0.2.9:999"),
        tuple(forwarded("manager", MANAGER)),
        text=FORWARDER + "no client certificates in request",
    ),
    "manager forwarded by another organization": Case(
        tls("manager", MANAGER, OTHER),
        tuple(forwarded("manager", MANAGER)),
        text=FORWARDER + f"Permission denied: remote certificate not part of organization: {ORG}",
    ),
    "mark twice is no mark": Case(
        tls("worker", WORKER),
        (("forwarded_cert", "true"), *forwarded("manager", MANAGER)),
        WORKER,
        OUS,
        "worker",
    ),
    "mark of another value is no mark": Case(
        tls("worker", WORKER), (("forwarded_cert", "yes"), *forwarded("manager", MANAGER)[1:]), WORKER, OUS, "worker"
    ),
    "remote_addr alone changes nothing": Case(
        tls("worker", WORKER), (("remote_addr", "203.0.113.1:1"),), WORKER, OUS, "worker"
    ),
}


def authorizer() -> Authorizer:
    return Authorizer(Objects(), Identity("own", ORG, "192.0.2.1:2377"), Clock())


def enough(counts_as: str, roles: list[str]) -> bool:
    return counts_as in roles


@pytest.mark.parametrize("method", sorted(METHODS))
def test_table_of_roles_is_that_of_the_wire(method: str) -> None:
    wanted = METHODS[method]
    assert roles_of(method) == (tuple(wanted) if isinstance(wanted, list) else ANYONE)


def test_table_names_no_service_that_the_wire_lacks() -> None:
    assert set(SERVICES) == {name.rpartition("/")[0].rpartition(".")[2] for name in METHODS}


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_method_for_every_kind_of_caller(name: str) -> None:
    case, subject = CASES[name], authorizer()
    for method, roles in METHODS.items():
        if not isinstance(roles, list):
            caller = subject.authorize(method, case.record, case.metadata)
            assert caller.node_id == case.node_id, method
            assert not caller.local, method
            continue
        if case.counts_as and enough(case.counts_as, roles):
            caller = subject.authorize(method, case.record, case.metadata)
            assert (caller.node_id, caller.organization, caller.local) == (case.node_id, ORG, False), method
            assert case.counts_as in caller.roles
            is_forwarded = name.endswith("forwarded by a manager")
            assert caller.forwarded_by == ("manager" if is_forwarded else None)
            assert caller.remote_addr == ("198.51.100.7:7" if is_forwarded else "192.0.2.9:999")
            continue
        with pytest.raises(Status) as refusal:
            subject.authorize(method, case.record, case.metadata)
        short = case.claims and not enough(case.claims, roles)
        wanted = (EXPECTING if case.metadata else OUS) if short else case.text
        wanted = wanted.replace("{roles}", listed(roles))
        assert (refusal.value.code, refusal.value.message) == (DENIED, wanted), method


@pytest.mark.parametrize("method", sorted(METHODS))
def test_control_socket_is_this_node_whatever_the_metadata_says(method: str) -> None:
    local = Record(Listener.CONTROL)
    for metadata in ([], forwarded("worker", WORKER), forwarded("manager", MANAGER, OTHER)):
        caller = authorizer().authorize(method, local, metadata)
        assert (caller.node_id, caller.local, caller.roles) == ("own", True, (MANAGER,))
        assert (caller.organization, caller.remote_addr, caller.forwarded_by) == (ORG, "192.0.2.1:2377", None)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_connection_without_a_record_is_unauthenticated_everywhere(method: str) -> None:
    for metadata in ([], forwarded("manager", MANAGER)):
        with pytest.raises(Status) as refusal:
            authorizer().authorize(method, None, metadata)
        assert refusal.value.code is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("method", ["/docker.swarmkit.v1.New/Thing", "/grpc.health.v1.Health/Check", "", "x"])
def test_what_is_not_in_the_table_nobody_may_call(method: str) -> None:
    for record in (Record(Listener.CONTROL), tls("manager", MANAGER), None):
        with pytest.raises(Status) as refusal:
            authorizer().authorize(method, record, ())
        assert refusal.value.code is DENIED


def test_two_clusters_named_default_mean_no_blacklist_but_a_missing_node_is_still_removed() -> None:
    objects = Objects()
    subject = Authorizer(objects, Identity("own", ORG, ""), Clock())
    objects.find = lambda kind, *s: [objects.cluster, objects.cluster]  # type: ignore[method-assign]
    method = "/docker.swarmkit.v1.Dispatcher/Heartbeat"
    assert subject.authorize(method, tls("blacklisted", WORKER), ()).node_id == "blacklisted"
    with pytest.raises(Status, match="node gone was removed from swarm"):
        subject.authorize(method, tls("gone", WORKER), ())
