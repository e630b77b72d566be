"""What this node's certificate says, read from its file, for the time when no process is there to ask."""

from __future__ import annotations

from dataclasses import dataclass

from swarm.errors import CorruptFile
from swarm.paths import Paths

_ROLES = {"swarm-manager": "manager", "swarm-worker": "worker"}


@dataclass(frozen=True)
class OnDisk:
    """Names in the node certificate (reference node-and-ca §3.2)."""

    node_id: str
    cluster_id: str
    role: str
    not_after: int
    """Unix seconds."""


def read(paths: Paths) -> OnDisk | None:
    """The certificate on disk, not verified; None if there is none. Raises CorruptFile."""
    try:
        pem = paths.node_cert.read_bytes()
    except FileNotFoundError:
        return None
    # late: 10 MB and 30 ms
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    try:
        leaf = x509.load_pem_x509_certificate(pem)
        names = {a.oid: str(a.value) for a in leaf.subject}
        return OnDisk(
            node_id=names[NameOID.COMMON_NAME],
            cluster_id=names[NameOID.ORGANIZATION_NAME],
            role=_ROLES[names[NameOID.ORGANIZATIONAL_UNIT_NAME]],
            not_after=int(leaf.not_valid_after_utc.timestamp()),
        )
    except (ValueError, KeyError) as error:
        raise CorruptFile(paths.node_cert, f"not a node certificate: {error}") from error
