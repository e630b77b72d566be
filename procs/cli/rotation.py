"""How far a root rotation is: who has followed, and who it waits for. `stand` is pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from procs.cli import convergence
from procs.cli.control import Control
from swarm.api import objects_pb2, types_pb2
from swarm.errors import BadInput, SwarmvisorError

SHOWN = 3
"""Blocking nodes that a line names."""

_ROTATE, _FAILED = types_pb2.IssuanceStatus.ROTATE, types_pb2.IssuanceStatus.FAILED


@dataclass(frozen=True)
class Stand:
    """Where a rotation stands; `running` False: there is none."""

    running: bool
    followed: int
    total: int
    blocking: tuple[str, ...] = ()
    """A sentence for each node that has not followed."""

    @property
    def line(self) -> str:
        return f"{self.followed} of {self.total} nodes"

    def row(self, cluster: objects_pb2.Cluster) -> dict[str, Any]:
        """For `-o json`."""
        expiry = cluster.spec.ca_config.node_cert_expiry
        return {
            "root": cluster.root_ca.ca_cert.decode(errors="replace"),
            "root_digest": hashlib.sha256(cluster.root_ca.ca_cert).hexdigest(),
            "cert_expiry_seconds": expiry.seconds,
            "external_cas": [entry.url for entry in cluster.spec.ca_config.external_cas],
            "rotation": {"followed": self.followed, "total": self.total, "blocking": list(self.blocking)}
            if self.running
            else None,
        }


def stand(cluster: objects_pb2.Cluster, nodes: Sequence[objects_pb2.Node]) -> Stand:
    """Where the cluster's rotation stands."""
    if not cluster.root_ca.HasField("root_rotation"):
        return Stand(False, len(nodes), len(nodes))
    from swarm.pki.certificate import parse_bundle  # late: imports cryptography

    found = parse_bundle(cluster.root_ca.root_rotation.ca_cert)
    if not found:
        raise BadInput("the root that is rotated to holds no certificate")
    behind = [
        node
        for node in nodes
        if (node.description.tls_info.cert_issuer_subject, node.description.tls_info.cert_issuer_public_key)
        != (found[0].subject, found[0].public_key)
    ]
    return Stand(True, len(nodes) - len(behind), len(nodes), tuple(_why(node) for node in behind))


def wait(control: Control, cluster: objects_pb2.Cluster, *, timeout: float) -> None:
    """Wait until all nodes have followed this rotation. Raises TimedOut that names who has not, SwarmvisorError if
    another one took its place."""
    target = cluster.root_ca.root_rotation.ca_cert

    def look() -> convergence.Verdict:
        now = control.cluster()
        if now.root_ca.ca_cert == target:
            return convergence.Verdict(True, "all nodes")
        if now.root_ca.root_rotation.ca_cert != target:
            raise SwarmvisorError("the rotation was given up or replaced by another one", remedy="see `swarm ca`")
        standing = stand(now, control.nodes())
        rest = len(standing.blocking) - SHOWN
        more = (f"and {rest} more",) if rest > 0 else ()
        return convergence.Verdict(False, standing.line, (*standing.blocking[:SHOWN], *more))

    convergence.wait(
        look, what="root rotation", timeout=timeout, remedy="it goes on; look again with `swarmvisor swarm ca`"
    )


def _why(node: objects_pb2.Node) -> str:
    """A node that has not followed, and what is known of the reason."""
    name = node.description.hostname or node.id
    if node.status.state != types_pb2.NodeStatus.READY:
        state = types_pb2.NodeStatus.State.Name(node.status.state).lower()
        return f"{name} is {state}: start it, or `swarmvisor node rm` it"
    if node.certificate.status.state == _FAILED:
        return f"{name} was refused a certificate: {node.certificate.status.err}"
    if node.certificate.status.err:
        return f"{name} waits for the swarm's CA: {node.certificate.status.err}"
    if node.certificate.status.state == _ROTATE:
        return f"{name} was told and has not asked yet"
    return f"{name} has not followed yet"
