"""Whether an expired certificate may still be exchanged for a new one. Pure; the checks stand in their order.

what                                                         refused as
sizes, kinds of key (`swarm.pki.reenrol.parse_proof`)        no word: as a stranger without a token
the leaf is one that this swarm's CA signed, or that the
node object holds (its CA may be that of a rotation which
another one replaced)                                        no word
the proof is signed by the leaf's key, the CSR by its own    no word
the leaf's organization is this swarm                        no word
at most one proof a node and second, but for repetitions     too-soon
the node object is there, accepted, not listed as removed    removed
the very same CSR was taken before                           (taken: the same answer, nothing is written)
the leaf is the one issued last, or the one it last used     not-latest
notAfter < now                                               not-expired
now ≤ notAfter + grace (with a join token: any time)         grace-over
the proof was made after the last one that was taken         not-latest
a manager: still one of the members, at most 14 days late    removed, grace-over
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cryptography.x509.oid import NameOID

from procs.manager.ca.grace import grace_of
from procs.manager.store import Tx
from swarm.api import objects_pb2, specs_pb2, types_pb2
from swarm.errors import BadInput, SwarmvisorError
from swarm.pki.certificate import Certificate, parse_bundle
from swarm.pki.reenrol import GRACE_OVER, NOT_EXPIRED, NOT_LATEST, REMOVED, TOO_SOON, Proof
from swarm.pki.rootca import check_request

MANAGER_GRACE = 14 * 24 * 3600
"""Seconds for which a manager's certificate may be expired: it would get the swarm's keys back."""
_SIDE = "reenrol/"


class NotTaken(SwarmvisorError):
    """The proof is not taken. `marker` says why to a node that has proven who it is; empty: to nobody."""

    def __init__(self, marker: str, why: str) -> None:
        super().__init__(why)
        self.marker = marker


@dataclass(frozen=True)
class Trace:
    """Side record of a node: what it showed last. Hashes are SHA-256, hex."""

    leaf: str = ""
    """Of the certificate with which it authenticated last."""
    issued_at: int = 0
    """Of the newest proof that was taken, Unix nanoseconds."""
    csr: str = ""
    """Of the request that came with it."""


def side_key(node_id: str) -> str:
    """Name of a node's side record."""
    return _SIDE + node_id


def read_trace(record: bytes | None) -> Trace:
    if not record:
        return Trace()
    row = json.loads(record)
    return Trace(str(row["leaf"]), int(row["issued_at"]), str(row["csr"]))


def write_trace(trace: Trace) -> bytes:
    return json.dumps({"leaf": trace.leaf, "issued_at": trace.issued_at, "csr": trace.csr}).encode()


def note_leaf(tx: Tx, node_id: str, leaf: str) -> None:
    """Keep with which certificate a node authenticated (SHA-256, hex; empty: not known), unless that is known."""
    trace = read_trace(tx.side(side_key(node_id)))
    if leaf and trace.leaf != leaf:
        tx.put_side(side_key(node_id), write_trace(replace(trace, leaf=leaf)))


@dataclass(frozen=True)
class Known:
    """What the store knows of a node."""

    node: objects_pb2.Node | None
    trace: Trace

    def has_held(self, leaf: Certificate) -> bool:
        """Whether `leaf` is the one that was issued to it last, or the one that it showed last."""
        return self.node is not None and leaf.fingerprint in (self.trace.leaf, _issued(self.node))

    def has_asked(self, proof: Proof, csr: bytes) -> bool:
        """Whether this very request was taken before."""
        request = hashlib.sha256(csr).hexdigest()
        same = (self.trace.csr, self.trace.leaf) == (request, proof.leaf.fingerprint)
        return same and self.node is not None and self.node.certificate.csr == csr


def authenticate(proof: Proof, csr: bytes, cluster: objects_pb2.Cluster, known: Callable[[str], Known]) -> str:
    """The node id that the proof names, once its signatures have verified. `known`: what is known of the node with an
    id. Raises NotTaken without a marker."""
    node_id = proof.leaf.common_name
    ours = any(proof.leaf.issuer == ca.subject and proof.leaf.is_signed_by(ca) for ca in _authorities(cluster))
    if not ours and not known(node_id).has_held(proof.leaf):
        raise NotTaken("", "its certificate is not of this swarm's CA")
    if not node_id or not proof.is_signed(cluster.id, node_id, csr):
        raise NotTaken("", "its signature does not verify")
    try:
        check_request(csr)
    except BadInput as error:
        raise NotTaken("", error.message) from error
    organizations = proof.leaf.names(NameOID.ORGANIZATION_NAME)
    if organizations[:1] != [cluster.id]:
        raise NotTaken("", "its certificate is of another swarm")
    return node_id


@dataclass(frozen=True)
class Taken:
    """The proof is good."""

    repeated: bool
    """The same request was taken before: nothing is to be written."""
    trace: Trace
    """To be kept."""


def judge(
    proof: Proof,
    csr: bytes,
    cluster: objects_pb2.Cluster,
    known: Known,
    now_ns: int,
    *,
    with_token: bool,
    is_member: Callable[[], bool],
) -> Taken:
    """The rest of the checks, for a proof that `authenticate` let pass. Raises NotTaken."""
    node, trace = known.node, known.trace
    if node is None or node.id in cluster.blacklisted_certificates:
        raise NotTaken(REMOVED, "the node was removed")
    if node.spec.membership != specs_pb2.NodeSpec.ACCEPTED:
        raise NotTaken(REMOVED, "the node is not accepted")
    if known.has_asked(proof, csr):
        return Taken(True, trace)
    if not known.has_held(proof.leaf):
        raise NotTaken(NOT_LATEST, "the node has had a newer certificate")
    now = now_ns / 1e9
    late = now - proof.leaf.not_after
    if late <= 0:
        raise NotTaken(NOT_EXPIRED, "the certificate has not expired")
    manager = node.role == types_pb2.NodeRole.MANAGER
    grace: float = float("inf") if with_token else grace_of(cluster.spec.annotations.labels)
    if late > (min(grace, MANAGER_GRACE) if manager else grace):
        raise NotTaken(GRACE_OVER, f"the certificate expired {late / 86400:.1f} days ago")
    if proof.issued_at <= trace.issued_at:
        raise NotTaken(NOT_LATEST, "a newer proof was taken before")
    if manager and not is_member():
        raise NotTaken(REMOVED, "the node is no member of the managers any more")
    return Taken(False, Trace(proof.leaf.fingerprint, proof.issued_at, hashlib.sha256(csr).hexdigest()))


class Pace:
    """At most one proof per node and second; forgets who has been silent for one."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def admit(self, node_id: str, now: float) -> None:
        """`now` is monotonic, in seconds. Raises NotTaken."""
        if now - self._last.get(node_id, -1.0) < 1.0:
            raise NotTaken(TOO_SOON, "too many proofs in one second")
        self._last = {name: at for name, at in self._last.items() if now - at < 1.0}
        self._last[node_id] = now


def _authorities(cluster: objects_pb2.Cluster) -> Sequence[Certificate]:
    """Every CA whose certificates count: the root, and the next one while a rotation runs."""
    found: list[Certificate] = []
    for bundle in (cluster.root_ca.ca_cert, cluster.root_ca.root_rotation.ca_cert):
        try:
            found += parse_bundle(bundle)
        except BadInput:
            continue  # the CA server has said so; the other one may still serve
    return found


def _issued(node: objects_pb2.Node) -> str:
    """SHA-256 of the leaf that the node object holds, hex; empty if none."""
    try:
        found = parse_bundle(node.certificate.certificate)
    except BadInput:
        return ""
    return found[0].fingerprint if found else ""
