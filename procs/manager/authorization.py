"""Who may call what: one table of roles, and the rules by which a connection becomes a caller.

Texts and rules: reference node-and-ca §5.3. Stricter than SwarmKit where it left holes (DESIGN §6): a node counts only
while its object exists, a manager only while that object says MANAGER, and both hold for forwarders and for whom they
forward.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import grpc

from procs.manager.gateway.records import Listener, Record
from procs.manager.status import Status, permission_denied
from swarm.api import objects_pb2, types_pb2
from swarm.clock import Clock

WORKER = "swarm-worker"
MANAGER = "swarm-manager"

ANYONE: tuple[str, ...] = ()
"""No certificate needed; the service itself looks at who calls."""
MANAGERS = (MANAGER,)
NODES = (WORKER, MANAGER)

SERVICES: Mapping[str, tuple[str, ...]] = {
    "CA": MANAGERS,
    "NodeCA": ANYONE,
    "Control": MANAGERS,
    "Dispatcher": NODES,
    "Health": MANAGERS,
    "LogBroker": NODES,
    "Logs": MANAGERS,
    "Raft": MANAGERS,
    "RaftMembership": MANAGERS,
    "ResourceAllocator": NODES,
    "Watch": MANAGERS,
}
"""Roles that may call the methods of a service of docker.swarmkit.v1 …"""

EXCEPTIONS: Mapping[str, tuple[str, ...]] = {"CA/GetRootCACertificate": ANYONE}
"""… but for these methods."""

PACKAGE = "docker.swarmkit.v1"


def roles_of(method: str) -> tuple[str, ...]:
    """Roles that may call the full method name `/docker.swarmkit.v1.Service/Method`; empty: anyone.

    Raises Status for what is not in the table: what nobody thought of nobody may call.
    """
    name = method.removeprefix(f"/{PACKAGE}.")
    service = name.partition("/")[0]
    if name == method or service not in SERVICES:
        raise permission_denied(f"Permission denied: nobody may call {method}")
    return EXCEPTIONS.get(name, SERVICES[service])


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf a call is made, after authorization."""

    node_id: str
    """Empty: somebody without an acceptable certificate, on a method that anyone may call."""
    roles: tuple[str, ...]
    """What the caller counts as now: `swarm-worker`, `swarm-manager`."""
    organization: str
    local: bool
    """It came through the control socket: this node itself."""
    remote_addr: str
    """`HOST:PORT` of the node, even where another manager forwarded the call."""
    forwarded_by: str | None = None
    """Node id of the manager that forwarded the call."""
    local_addr: str = ""
    """`HOST:PORT` of ours that a remote caller dialled; empty on the control socket."""
    leaf_hash: str = ""
    """SHA-256 (hex) of the caller's own certificate; empty where it came through another manager or locally."""


class CallContext(Protocol):
    """What services see of a call."""

    caller: Caller


def caller_of(context: Any) -> Caller:
    """The caller of the RPC that `context` belongs to."""
    caller: Caller = context.caller
    return caller


class Objects(Protocol):
    """The part of the store that authorization reads."""

    def get(self, kind: type[Any], id: str) -> Any: ...  # noqa: A002  (the store's own name)

    def find(self, kind: type[Any], *selectors: Any) -> list[Any]: ...


@dataclass(frozen=True)
class Identity:
    """This manager itself: what callers on the control socket are taken for."""

    node_id: str
    organization: str
    addr: str
    """Advertised, else listening address, else 127.0.0.1:0."""


class Authorizer:
    """Decides on calls. Reads the store at each call, so a removal or demotion counts from the next call on."""

    def __init__(self, objects: Objects, identity: Identity, clock: Clock) -> None:
        self._objects = objects
        self._identity = identity
        self._clock = clock

    def move_to(self, addr: str) -> None:
        """This manager is found at another address from now on."""
        self._identity = replace(self._identity, addr=addr)

    def authorize(self, method: str, record: Record | None, metadata: Iterable[tuple[str, str | bytes]]) -> Caller:
        """The caller of `method`, or a Status that refuses. `metadata` is the call's, unverified."""
        roles = roles_of(method)
        if record is None:
            raise Status(
                grpc.StatusCode.UNAUTHENTICATED, "this connection did not come through the gateway of the manager"
            )
        if record.listener is Listener.CONTROL:
            own = self._identity
            return Caller(own.node_id, MANAGERS, own.organization, local=True, remote_addr=own.addr)
        if roles:
            return self._remote(record, metadata, roles)
        try:
            return self._remote(record, metadata, NODES)
        except Status:  # an open method: whoever has no standing is a stranger there, nothing worse
            return Caller("", (), "", False, record.remote_addr, local_addr=record.local_addr)

    def _remote(self, record: Record, metadata: Iterable[tuple[str, str | bytes]], roles: Sequence[str]) -> Caller:
        forwarded = _forwarded(metadata)
        if forwarded is None:
            try:
                return self._direct(record, roles)
            except Status as refusal:
                raise _wrapped("unauthorized peer role", refusal) from refusal
        try:
            forwarder = self._direct(record, MANAGERS)
        except Status as refusal:
            raise _wrapped("unauthorized forwarder role", refusal) from refusal
        if not forwarded.cn or not forwarded.org or not forwarded.ou:
            raise permission_denied("Permission denied: missing information in forwarded request")
        counted = self._counted(forwarded.cn, forwarded.ou)
        if not set(counted) & set(roles):
            raise permission_denied(
                f"Permission denied: unauthorized forwarded role, expecting: {_list(roles)}",
            )
        if forwarded.org != self._identity.organization:
            raise permission_denied(
                f"Permission denied: organization mismatch, expecting: {self._identity.organization}",
            )
        self._must_be_member(forwarded.cn)
        return Caller(
            forwarded.cn, counted, forwarded.org, False, forwarded.remote_addr, forwarder.node_id, record.local_addr
        )

    def _direct(self, record: Record, roles: Sequence[str]) -> Caller:
        """The peer of the connection itself, if its certificate and its node object give it one of `roles`."""
        if not record.leaf_hash:
            raise permission_denied("no client certificates in request")
        if record.not_after * 1_000_000_000 < self._clock.wall_ns():
            raise permission_denied(f"Permission denied: certificate of node {record.cn} has expired")
        counted = self._counted(record.cn, record.ou)
        if not set(counted) & set(roles):
            raise permission_denied(f"Permission denied: remote certificate not part of OUs: {_list(roles)}")
        if record.cn in self._blacklist():
            raise _removed(record.cn)
        if record.org != self._identity.organization:
            raise permission_denied(
                f"Permission denied: remote certificate not part of organization: {self._identity.organization}"
            )
        self._must_be_member(record.cn)
        return Caller(
            record.cn,
            counted,
            record.org,
            False,
            record.remote_addr,
            local_addr=record.local_addr,
            leaf_hash=record.leaf_hash,
        )

    def _counted(self, node_id: str, ou: Sequence[str]) -> tuple[str, ...]:
        """The roles a certificate is good for now: MANAGER only while the node object agrees, else it is a worker's."""
        if MANAGER not in ou:
            return tuple(ou)
        node = self._objects.get(objects_pb2.Node, node_id)
        # Without an object the node was removed, or never was of this swarm; the later checks say which.
        if node is None or node.role == types_pb2.NodeRole.MANAGER:
            return tuple(ou)
        return tuple(dict.fromkeys(WORKER if role == MANAGER else role for role in ou))

    def _must_be_member(self, node_id: str) -> None:
        if node_id in self._blacklist() or self._objects.get(objects_pb2.Node, node_id) is None:
            raise _removed(node_id)

    def _blacklist(self) -> Mapping[str, Any]:
        clusters = self._objects.find(objects_pb2.Cluster)
        named = [c for c in clusters if c.spec.annotations.name == "default"]
        return named[0].blacklisted_certificates if len(named) == 1 else {}


@dataclass(frozen=True, slots=True)
class _Forwarded:
    cn: str
    org: str
    ou: tuple[str, ...]
    remote_addr: str


def _forwarded(metadata: Iterable[tuple[str, str | bytes]]) -> _Forwarded | None:
    """What a forwarding manager says of the original caller; None if the call is not marked as forwarded."""
    values: dict[str, list[str]] = {}
    for key, value in metadata:
        if key.startswith("forwarded_") or key == "remote_addr":
            values.setdefault(key, []).append(value.decode(errors="replace") if isinstance(value, bytes) else value)
    if values.get("forwarded_cert") != ["true"]:
        return None

    def only(key: str) -> str:
        found = values.get(key, [])
        return found[0] if len(found) == 1 else ""

    return _Forwarded(
        only("forwarded_cert_cn"),
        only("forwarded_cert_org"),
        tuple(v for v in values.get("forwarded_cert_ou", []) if v),
        only("remote_addr"),
    )


def _removed(node_id: str) -> Status:
    return permission_denied(f"Permission denied: node {node_id} was removed from swarm")


def _wrapped(prefix: str, refusal: Status) -> Status:
    """As Go prints a status inside another one's text; peers match it."""
    return permission_denied(
        f"Permission denied: {prefix}: rpc error: code = PermissionDenied desc = {refusal.message}",
    )


def _list(roles: Sequence[str]) -> str:
    """As Go prints a list of strings."""
    return f"[{' '.join(roles)}]"
