"""The node's credentials as a value, and the short way to them for who trusts the renewer's word.

No cryptography here: it costs 60 ms and 8 MB, which a process that only presents the files need not spend. What the
long way verifies (`swarm.pki.credentials`), the renewer has verified before it published the digests of the files.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from swarm.pki import pem
from swarm.pki.flock import locked

if TYPE_CHECKING:
    from swarm.paths import Paths

_PLAIN = "PRIVATE KEY"
_LOCK_TIMEOUT = 5.0
"""Seconds for the lock of the key file."""


@dataclass(frozen=True)
class Credentials:
    """A matching, verified set."""

    node_id: str
    cluster_id: str
    role: str
    """`worker` or `manager`."""
    certificate_pem: bytes
    """Leaf first, then intermediates: send all of it."""
    key_pem: bytes = field(repr=False)
    """Plain PKCS#8 without headers."""
    root_pem: bytes
    """The trusted bundle, byte for byte as on disk."""
    not_before: int
    """Unix seconds."""
    not_after: int
    """Unix seconds."""
    fingerprint: str
    """SHA-256 of the leaf's DER, hex."""
    root_digest: str
    """SHA-256 of `root_pem`, hex."""
    issuer_subject: bytes
    """Raw DER subject of the CA that signed the leaf."""
    issuer_public_key: bytes
    """Raw DER SubjectPublicKeyInfo of that CA."""


@dataclass(frozen=True)
class Files:
    """What a node presents and trusts, as texts."""

    certificate_pem: bytes
    key_pem: bytes = field(repr=False)
    """Plain PKCS#8 without headers."""
    root_pem: bytes


def read_published(paths: Paths, fingerprint: str, root_digest: str) -> Files | None:
    """The node's files if they are those whose digests the renewer published; None if they are not, or not plain.

    The key file's lock makes the pair a pair: the renewer changes both in one hold of it. Blocks for at most the
    lock's deadline. Raises FileNotFoundError, TimedOut.
    """
    with locked(paths.node_key.with_name(".lock"), exclusive=False, timeout=_LOCK_TIMEOUT):
        if paths.node_cert.with_name(f".{paths.node_cert.name}").exists():
            return None  # the write of a killed renewer: which certificate fits the key is for the long way to find
        key, _ = pem.decode(paths.node_key.read_bytes())
        certificate_pem = paths.node_cert.read_bytes()
    leaf, _ = pem.decode(certificate_pem)
    root_pem = paths.root_cert.read_bytes()
    if (
        key is None
        or key.type != _PLAIN
        or leaf is None
        or hashlib.sha256(leaf.data).hexdigest() != fingerprint
        or hashlib.sha256(root_pem).hexdigest() != root_digest
    ):
        return None
    return Files(certificate_pem, pem.Block(_PLAIN, key.data).encode(), root_pem)
