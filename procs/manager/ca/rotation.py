"""Who still has to follow a root rotation, and what the cluster's root becomes when nobody has. Pure.

Facts: reference node-and-ca §6.4, §6.5. A node follows when it tells, in its description, that its certificate comes
from the next root. It is told by the state ROTATE of its certificate record.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from procs.manager.ca.issuance import State
from swarm.api import objects_pb2, types_pb2
from swarm.errors import BadInput, CorruptFile
from swarm.pki.certificate import Certificate, parse_bundle
from swarm.pki.tokens import generate_join_token

BATCH = 30
"""Nodes told at once: each comes back with a certificate request and a new session."""
INTERVAL = 3.0
"""Seconds between two batches."""
INSTALL_SECONDS = 30.0
"""What a node gets to install a certificate of the next root and say so, before it is told again."""
BRIDGES = "finished-rotations"
"""Side record: the cross-signed certificates of finished rotations."""

_BUSY = frozenset({State.RENEW, State.PENDING, State.ROTATE})


@dataclass(frozen=True)
class Bridge:
    """A finished rotation: the new root as the old one signed it."""

    cross_signed: bytes
    """PEM."""
    finished_at: int
    """Unix seconds."""


def target_of(root: types_pb2.RootCA) -> types_pb2.RootCA:
    """What tells one rotation from another: the record without the join tokens."""
    target = types_pb2.RootCA()
    target.CopyFrom(root)
    target.ClearField("join_tokens")
    return target


def next_root(root: types_pb2.RootCA) -> Certificate | None:
    """The CA that certificates shall come from while a rotation runs; None if none runs. Raises BadInput."""
    if not root.HasField("root_rotation"):
        return None
    found = parse_bundle(root.root_rotation.ca_cert)
    if not found:
        raise BadInput("the root that is rotated to holds no certificate")
    return found[0]


def has_followed(node: objects_pb2.Node, issuer: Certificate) -> bool:
    """Whether the node says that its certificate comes from `issuer`."""
    told = node.description.tls_info
    return told.cert_issuer_subject == issuer.subject and told.cert_issuer_public_key == issuer.public_key


class Follow:
    """Which nodes to tell next, in one rotation."""

    def __init__(self, issuer: Certificate) -> None:
        self.issuer = issuer
        self._issued: dict[str, tuple[bytes, float]] = {}
        """Node id to digest of a certificate that comes from the next root already, and since when we know."""

    def batch(self, nodes: Iterable[objects_pb2.Node], now: float) -> tuple[list[str], list[str]]:
        """(all ids that have not followed, those of them to tell now). `now` is monotonic, in seconds."""
        behind = [node for node in nodes if not has_followed(node, self.issuer)]
        told: list[str] = []
        for node in behind:
            if len(told) == BATCH:
                break
            if node.certificate.status.state not in _BUSY and not self._installing(node, now):
                told.append(node.id)
        return [node.id for node in behind], told

    def _installing(self, node: objects_pb2.Node, now: float) -> bool:
        """Whether the node got its new certificate lately and only has not said so yet."""
        chain = node.certificate.certificate
        digest = hashlib.sha256(chain).digest()
        known = self._issued.get(node.id)
        if known is not None and known[0] == digest:
            return now < known[1] + INSTALL_SECONDS
        try:
            leaves = parse_bundle(chain)
        except BadInput:
            return False
        if not leaves or leaves[0].issuer != self.issuer.subject or not leaves[0].is_signed_by(self.issuer):
            return False
        self._issued[node.id] = (digest, now)
        return True


def told_to_rotate(node: objects_pb2.Node) -> objects_pb2.Node | None:
    """The node in state ROTATE; None if a request of its own is under way."""
    if node.certificate.status.state in _BUSY:
        return None
    changed = objects_pb2.Node()
    changed.CopyFrom(node)
    changed.certificate.status.state = State.ROTATE
    return changed


def finished(
    cluster: objects_pb2.Cluster, make_token: Callable[[bytes, bool], str] = generate_join_token
) -> objects_pb2.Cluster:
    """The cluster with the next root as its root, and fresh tokens that pin it (§6.5)."""
    changed = objects_pb2.Cluster()
    changed.CopyFrom(cluster)
    rotation, root = cluster.root_ca.root_rotation, changed.root_ca
    root.ca_cert, root.ca_key = rotation.ca_cert, rotation.ca_key
    root.ca_cert_hash = f"sha256:{hashlib.sha256(rotation.ca_cert).hexdigest()}"
    root.join_tokens.worker = make_token(rotation.ca_cert, cluster.fips)
    root.join_tokens.manager = make_token(rotation.ca_cert, cluster.fips)
    root.ClearField("root_rotation")
    return changed


# -- finished rotations ------------------------------------------------------------------------------------------------


def read_bridges(record: bytes | None) -> list[Bridge]:
    """The side record's content, oldest first."""
    if not record:
        return []
    try:
        rows = json.loads(record)
        return [Bridge(str(row["cross_signed"]).encode(), int(row["finished_at"])) for row in rows]
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptFile(BRIDGES, f"this record of the store is none: {error}", remedy="restore a backup") from error


def write_bridges(bridges: Sequence[Bridge]) -> bytes:
    rows = [{"cross_signed": b.cross_signed.decode("ascii"), "finished_at": b.finished_at} for b in bridges]
    return json.dumps(rows).encode()


def young(bridges: Iterable[Bridge], grace: float, now: float) -> list[Bridge]:
    """Those whose rotation finished less than `grace` seconds ago: a node that slept through it may still come."""
    return [bridge for bridge in bridges if now < bridge.finished_at + grace]
