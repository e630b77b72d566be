"""A parsed certificate with the raw bytes that Go compares, and Go's rules for one certificate signing another.

Names are compared as DER bytes, never as text (reference/node-and-ca §12.6), so this keeps them as they stand.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID, SignatureAlgorithmOID

from swarm.errors import BadInput
from swarm.pki import der
from swarm.pki.pem import CERTIFICATE, Block, bundle

MANAGER_OU = "swarm-manager"
WORKER_OU = "swarm-worker"
CA_NAME = "swarm-ca"
"""Name of the root, and a server name that managers answer to."""

DECODE_FAILED = '{"code":1002,"message":"Failed to decode certificate"}'
PARSE_FAILED = '{"code":1003,"message":"Failed to parse certificate"}'

MALFORMED = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What the library raises for input that is no certificate or request; not all of it is a ValueError."""

E = TypeVar("E", bound=x509.ExtensionType)

_ALLOWED_SIGNATURES = frozenset(
    {
        SignatureAlgorithmOID.RSA_WITH_SHA256,
        SignatureAlgorithmOID.RSA_WITH_SHA384,
        SignatureAlgorithmOID.RSA_WITH_SHA512,
        SignatureAlgorithmOID.ECDSA_WITH_SHA256,
        SignatureAlgorithmOID.ECDSA_WITH_SHA384,
        SignatureAlgorithmOID.ECDSA_WITH_SHA512,
    }
)

_SIGNATURE_NAMES = {
    SignatureAlgorithmOID.RSA_WITH_MD5: "MD5-RSA",
    SignatureAlgorithmOID.RSA_WITH_SHA1: "SHA1-RSA",
    SignatureAlgorithmOID.ECDSA_WITH_SHA1: "ECDSA-SHA1",
    SignatureAlgorithmOID.DSA_WITH_SHA1: "DSA-SHA1",
    SignatureAlgorithmOID.DSA_WITH_SHA256: "DSA-SHA256",
    SignatureAlgorithmOID.RSASSA_PSS: "SHA256-RSAPSS",
    SignatureAlgorithmOID.ED25519: "Ed25519",
}
"""Go's names of what is refused."""

_KNOWN_EXTENSIONS = frozenset(
    {
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
        ExtensionOID.CERTIFICATE_POLICIES,
    }
)


@dataclass(frozen=True)
class Certificate:
    """One certificate. Equal when the DER is."""

    data: bytes = field(repr=False)
    """The whole certificate, DER."""
    parsed: x509.Certificate = field(compare=False)
    issuer: bytes = field(compare=False, repr=False)
    """Raw DER issuer name."""
    subject: bytes = field(compare=False, repr=False)
    """Raw DER subject name."""
    public_key: bytes = field(compare=False, repr=False)
    """Raw DER SubjectPublicKeyInfo."""
    not_before: int = field(compare=False)
    """Unix seconds."""
    not_after: int = field(compare=False)
    """Unix seconds."""

    @classmethod
    def load(cls, data: bytes) -> Certificate:
        """Parse DER. Raises BadInput with cfssl's text for what is no certificate."""
        try:
            parsed = x509.load_der_x509_certificate(data)
            # parsed late by the library: what is malformed must show here
            late = parsed.extensions, parsed.subject, parsed.issuer
            not_before, not_after = parsed.not_valid_before_utc, parsed.not_valid_after_utc
            tbs = [whole for tag, _, whole in der.children(parsed.tbs_certificate_bytes) if tag != der.CONTEXT_0]
            _, _, issuer, _, subject, public_key = tbs[:6]
        except (*MALFORMED, BadInput) as error:
            raise BadInput(PARSE_FAILED) from error
        del late
        return cls(data, parsed, issuer, subject, public_key, int(not_before.timestamp()), int(not_after.timestamp()))

    @property
    def pem(self) -> bytes:
        return Block(CERTIFICATE, self.data).encode()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the DER, hex."""
        return hashlib.sha256(self.data).hexdigest()

    def names(self, oid: x509.ObjectIdentifier) -> list[str]:
        """The subject's values of one attribute, in order."""
        found = self.parsed.subject.get_attributes_for_oid(oid)
        return [value if isinstance(value, str) else value.decode("latin-1") for value in (n.value for n in found)]

    @property
    def common_name(self) -> str:
        """The last CN as Go takes it; empty if there is none."""
        return (self.names(NameOID.COMMON_NAME) or [""])[-1]

    @cached_property
    def subject_key_id(self) -> bytes:
        """Empty if the certificate has none."""
        found = self._extension(x509.SubjectKeyIdentifier)
        return found.digest if found else b""

    @cached_property
    def basic_constraints(self) -> x509.BasicConstraints | None:
        return self._extension(x509.BasicConstraints)

    def key(self) -> CertificatePublicKeyTypes:
        """The public key. Raises BadInput for a kind that the library does not know, or no key."""
        try:
            return self.parsed.public_key()
        except (UnsupportedAlgorithm, ValueError, TypeError) as error:
            raise BadInput("unknown or unsupported certificate public key algorithm") from error

    @property
    def may_serve(self) -> bool:
        """Whether its extended key usages, if any, include serverAuth."""
        usages = self._extension(x509.ExtendedKeyUsage)
        allowed = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}
        return usages is None or any(usage in allowed for usage in usages)

    @property
    def unknown_critical(self) -> list[str]:
        """Critical extensions that nobody here understands, as dotted numbers."""
        critical = (e.oid for e in self.parsed.extensions if e.critical)
        return [oid.dotted_string for oid in critical if oid not in _KNOWN_EXTENSIONS]

    def check_signature_algorithm(self) -> None:
        """Raises BadInput unless signed with SHA-2 and RSA (PKCS#1 v1.5) or ECDSA (§3.5.2)."""
        oid = self.parsed.signature_algorithm_oid
        if oid not in _ALLOWED_SIGNATURES:
            raise BadInput(f"unsupported signature algorithm: {_SIGNATURE_NAMES.get(oid, oid.dotted_string)}")

    def is_signed_by(self, parent: Certificate) -> bool:
        """Go's CheckSignatureFrom: `parent` may sign certificates, and its key made this signature.

        Names are not looked at.
        """
        constraints = parent.basic_constraints
        version_3 = parent.parsed.version is x509.Version.v3
        if (version_3 and constraints is None) or (constraints is not None and not constraints.ca):
            return False
        usage = parent._extension(x509.KeyUsage)
        if usage is not None and not usage.key_cert_sign:
            return False
        if self.parsed.signature_algorithm_oid not in _ALLOWED_SIGNATURES:
            return False  # and the library does not know each of the others
        algorithm = self.parsed.signature_hash_algorithm
        if algorithm is None:
            return False
        return _verifies(parent, self.parsed.signature, self.parsed.tbs_certificate_bytes, algorithm)

    def _extension(self, kind: type[E]) -> E | None:
        try:
            return self.parsed.extensions.get_extension_for_class(kind).value
        except x509.ExtensionNotFound:
            return None


def parse_bundle(data: bytes) -> tuple[Certificate, ...]:
    """Every certificate of a PEM bundle; white space only gives none.

    Raises BadInput with cfssl's texts `Failed to decode certificate` (also for garbage behind the last block) and
    `Failed to parse certificate`.
    """
    blocks, rest = bundle(data)
    found = tuple(Certificate.load(block.data) for block in blocks)
    if rest:
        raise BadInput(DECODE_FAILED)
    return found


def _verifies(parent: Certificate, signature: bytes, signed: bytes, algorithm: hashes.HashAlgorithm) -> bool:
    try:
        key = parent.key()
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, signed, ec.ECDSA(algorithm))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, signed, padding.PKCS1v15(), algorithm)
        else:
            return False
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, BadInput):
        return False
    return True
