"""What the TLS front knows of a connection, for the authorization of every call on it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum

from cryptography import x509
from cryptography.x509.oid import NameOID


class Listener(Enum):
    """Which of the two doors a connection came through."""

    REMOTE = "remote"
    """The TCP port that other nodes use."""
    CONTROL = "control"
    """The Unix socket of this node; whoever can open it is this node."""


@dataclass(frozen=True, slots=True)
class Record:
    """One connection. The certificate's fields are empty where the peer presented none; else it was verified."""

    listener: Listener
    remote_addr: str = ""
    """`HOST:PORT` of the peer, empty on the control socket."""
    local_addr: str = ""
    """`HOST:PORT` that the peer dialled, empty on the control socket."""
    cn: str = ""
    ou: tuple[str, ...] = ()
    org: str = ""
    not_after: int = 0
    """Unix seconds, 0 without a certificate."""
    leaf_hash: str = ""
    """SHA-256 of the leaf's DER, hex; empty without a certificate."""


Records = dict[str, Record]
"""Records by the abstract name of the inner connection's client side, for as long as that connection lives."""

PEER_PREFIX = "unix-abstract:"
"""What grpcio puts before that name in `context.peer()`."""


def lookup(records: Records, peer: str) -> Record | None:
    """The record of the connection that a call arrived on, None if the front knows no such connection."""
    if not peer.startswith(PEER_PREFIX):
        return None
    return records.get(peer[len(PEER_PREFIX) :])


def read_subject(der: bytes) -> tuple[str, tuple[str, ...], str, int, str]:
    """CN, OUs, first O, notAfter (unix seconds) and SHA-256 (hex) of a verified leaf certificate.

    A part that is missing is empty: authorization then refuses by its own rules.
    """
    leaf = x509.load_der_x509_certificate(der)
    subject = leaf.subject
    cn = [str(a.value) for a in subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    ou = [str(a.value) for a in subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)]
    org = [str(a.value) for a in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
    return (
        cn[-1] if cn else "",
        tuple(ou),
        org[0] if org else "",
        int(leaf.not_valid_after_utc.timestamp()),
        hashlib.sha256(der).hexdigest(),
    )
