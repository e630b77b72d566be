"""What a process needs to speak as this node: certificate chain, key, roots, and what they say (§3.7)."""

from __future__ import annotations

import hashlib

from cryptography.x509.oid import NameOID

from swarm.errors import BadInput, CorruptFile
from swarm.paths import Paths
from swarm.pki.certificate import MANAGER_OU, WORKER_OU, parse_bundle
from swarm.pki.chain import CertificateInvalid, ValidChain, validate_chain
from swarm.pki.held import Credentials
from swarm.pki.keyfile import REMEDY, KeyFile, Pair
from swarm.unlock import raw, read_unlock_keys

__all__ = [
    "OU_OF_ROLE",
    "ROLE_OF_OU",
    "CertificateExpired",
    "Credentials",
    "load_credentials",
    "make_credentials",
    "verify_credentials",
]

ROLE_OF_OU = {MANAGER_OU: "manager", WORKER_OU: "worker"}
OU_OF_ROLE = {role: ou for ou, role in ROLE_OF_OU.items()}


class CertificateExpired(CorruptFile):
    """The node's certificate is past its end, or a date says that it is not valid yet."""


def load_credentials(
    paths: Paths, *, unlock_key: bytes | None = None, allow_expired: bool = False, now: float | None = None
) -> Credentials:
    """Read and verify the node's files. Blocks for at most the key file's lock deadline (5 s); repairs nothing.

    A locked key is opened with `unlock_key`, else with what `unlock.json` holds.

    Raises FileNotFoundError (something is missing), Locked, CorruptFile naming the file (CertificateExpired, a kind
    of it, for dates), TimedOut for the lock.
    """
    root_pem = paths.root_cert.read_bytes()
    pair = KeyFile.of(paths).read(*([unlock_key] if unlock_key else raw(read_unlock_keys(paths))))
    return verify_credentials(paths, pair, root_pem, allow_expired=allow_expired, now=now)


def verify_credentials(
    paths: Paths, pair: Pair, root_pem: bytes, *, allow_expired: bool = False, now: float | None = None
) -> Credentials:
    """Credentials of what was read from the files of `paths`, verified. Raises CorruptFile as `load_credentials`."""
    try:
        pool = parse_bundle(root_pem)
    except BadInput as error:
        raise CorruptFile(paths.root_cert, f"invalid root certificates: {error.message}", remedy=REMEDY) from error
    if not pool:
        raise CorruptFile(paths.root_cert, "no valid root CA certificates found", remedy=REMEDY)
    try:
        chain = validate_chain(pool, pair.certificate_pem, allow_expired=allow_expired, now=now)
        return make_credentials(chain, pair.certificate_pem, pair.key_pem, root_pem)
    except CertificateInvalid as error:
        raise CertificateExpired(paths.node_cert, error.message, remedy=error.remedy) from error
    except BadInput as error:
        raise CorruptFile(paths.node_cert, error.message, remedy=REMEDY) from error


def make_credentials(chain: ValidChain, certificate_pem: bytes, key_pem: bytes, root_pem: bytes) -> Credentials:
    """Credentials of a verified chain. Raises BadInput if its subject does not name a node (§3.7)."""
    leaf = chain.leaf
    units = leaf.names(NameOID.ORGANIZATIONAL_UNIT_NAME)
    organizations = leaf.names(NameOID.ORGANIZATION_NAME)
    if not units:
        raise BadInput("no OU found in certificate subject")
    if not organizations:
        raise BadInput("no organization found in certificate subject")
    if not leaf.common_name:
        raise BadInput("no valid subject names found for TLS configuration")
    if units[0] not in ROLE_OF_OU:
        raise BadInput(f"certificate subject names no role that a node can have: {units[0]!r}")
    return Credentials(
        node_id=leaf.common_name,
        cluster_id=organizations[0],
        role=ROLE_OF_OU[units[0]],
        certificate_pem=certificate_pem,
        key_pem=key_pem,
        root_pem=root_pem,
        not_before=leaf.not_before,
        not_after=leaf.not_after,
        fingerprint=leaf.fingerprint,
        root_digest=hashlib.sha256(root_pem).hexdigest(),
        issuer_subject=chain.issuer.subject,
        issuer_public_key=chain.issuer.public_key,
    )
