"""The proof with which a node whose certificate has expired asks for a new one without a join token. Pure.

Signed with the expired certificate's key, SHA-256 (ECDSA, or RSA PKCS#1 v1.5), over `swarmvisor-reenrol/1\\0` and then,
each behind its length in four bytes (big endian): cluster id, node id, SHA-256 of the leaf's DER, SHA-256 of the CSR
as it is sent, and the time in Unix nanoseconds in eight bytes. So a proof serves one request, of one node, of one
swarm; who overhears it gets nothing by sending it again, since the key in the CSR is not his.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from google.protobuf.message import DecodeError

from swarm.api.reenrol_pb2 import ReenrolProof
from swarm.errors import BadInput
from swarm.pki import privatekey
from swarm.pki.certificate import Certificate

METADATA = "swarmvisor-reenrol-bin"
"""Key of the proof in the request's metadata."""
REFUSED = "swarmvisor-reenrol-refused"
"""Key of the reason in a refusal's trailing metadata; only given once the signature has verified."""

VERSION = 1
MAX_LEAF = 4096
"""Bytes."""
MAX_PROOF = 8192
"""Bytes of the whole metadata value."""
MAX_RSA_BITS = 4096
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_LABEL = b"swarmvisor-reenrol/1\0"

NOT_EXPIRED, GRACE_OVER, REMOVED, NOT_LATEST = "not-expired", "grace-over", "removed", "not-latest"
TOO_SOON = "too-soon"
"""A fifth one, beyond the issue's four: nothing is wrong with the proof."""

_WORDS = {
    NOT_EXPIRED: "this node's certificate is still valid by the manager's clock: check this machine's clock",
    GRACE_OVER: "this node's certificate expired longer ago than the swarm allows (cluster label "
    "swarmvisor.cert-grace): `swarmvisor rejoin` with a join token",
    REMOVED: "this node was removed from the swarm: `swarmvisor leave --force`, then join again",
    NOT_LATEST: "this node has had a newer certificate than the one it holds: restore it from a backup; else "
    "`swarmvisor leave --force`, then join again",
    TOO_SOON: "this node asked twice within a second: it asks again by itself",
}
_WRONG_TOKEN = (
    "this is not a join token of the swarm at present, and without one the certificate expired longer ago than the "
    "swarm allows: the token may have been rotated; `swarmvisor join-token worker` on a manager prints the present one"
)
_LATE_MANAGER = (
    "this node's certificate is a manager's and expired longer ago than the swarm allows, for managers 14 days "
    "at most: `swarmvisor node demote` it on another manager, then `swarmvisor rejoin` with a worker's token"
)


def words(marker: str, *, with_token: bool, role: str) -> str:
    """What a refusal means for the operator of the node that asked, with or without a join token, in a certificate of
    this role."""
    if marker == GRACE_OVER and role == "manager":
        return _LATE_MANAGER
    if marker == GRACE_OVER and with_token:
        return _WRONG_TOKEN
    return _WORDS.get(marker, f"refused: {marker[:40]!r}")


@dataclass(frozen=True)
class Proof:
    """A proof that is well-formed: sizes and kinds of key are checked, no signature is."""

    leaf: Certificate
    issued_at: int
    """Unix nanoseconds."""
    signature: bytes = field(repr=False)

    def is_signed(self, cluster_id: str, node_id: str, csr: bytes) -> bool:
        """Whether the leaf's key signed exactly this request."""
        signed = statement(cluster_id, node_id, self.leaf.data, csr, self.issued_at)
        try:
            key = self.leaf.key()
            if isinstance(key, ec.EllipticCurvePublicKey):
                key.verify(self.signature, signed, ec.ECDSA(hashes.SHA256()))
            elif isinstance(key, rsa.RSAPublicKey):
                key.verify(self.signature, signed, padding.PKCS1v15(), hashes.SHA256())
            else:
                return False
        except (InvalidSignature, UnsupportedAlgorithm, ValueError):
            return False
        return True


def statement(cluster_id: str, node_id: str, leaf: bytes, csr: bytes, issued_at: int) -> bytes:
    """The bytes that are signed."""
    parts = (
        cluster_id.encode(),
        node_id.encode(),
        hashlib.sha256(leaf).digest(),
        hashlib.sha256(csr).digest(),
        issued_at.to_bytes(8, "big"),
    )
    return _LABEL + b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def make_proof(cluster_id: str, node_id: str, leaf: Certificate, key_pem: bytes, csr: bytes, issued_at: int) -> bytes:
    """The metadata value. Raises BadInput if the key is none that managers take."""
    key = privatekey.load_pem(key_pem)
    signed = statement(cluster_id, node_id, leaf.data, csr, issued_at)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        signature = key.sign(signed, ec.ECDSA(hashes.SHA256()))
    elif isinstance(key, rsa.RSAPrivateKey):
        signature = key.sign(signed, padding.PKCS1v15(), hashes.SHA256())
    else:
        raise BadInput("this node's key is neither ECDSA nor RSA")
    proof = ReenrolProof(version=VERSION, leaf=leaf.data, issued_at=issued_at, signature=signature)
    return proof.SerializeToString()


def parse_proof(data: bytes) -> Proof:
    """Raises BadInput for what is no proof, is too large, or has a key of another kind."""
    if len(data) > MAX_PROOF:
        raise BadInput("re-enrolment proof: too large")
    try:
        found = ReenrolProof.FromString(data)
    except DecodeError as error:
        raise BadInput("re-enrolment proof: cannot be decoded") from error
    if found.version != VERSION:
        raise BadInput(f"re-enrolment proof: version {found.version} is unknown")
    if not 0 < len(found.leaf) <= MAX_LEAF or not found.signature or found.issued_at <= 0:
        raise BadInput("re-enrolment proof: a part is missing or too large")
    leaf = Certificate.load(found.leaf)
    key = leaf.key()
    fits = (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, _CURVES)) or (
        isinstance(key, rsa.RSAPublicKey) and key.key_size <= MAX_RSA_BITS
    )
    if not fits:
        raise BadInput("re-enrolment proof: a key of this kind or size is not taken")
    return Proof(leaf, found.issued_at, found.signature)
