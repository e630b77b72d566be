"""The swarm's root: trust anchors, and where its key is at hand, the signing of node certificates.

Formats, validation and texts: reference/node-and-ca §3.1 to §3.5.
"""

from __future__ import annotations

import hashlib
import string
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from swarm.errors import BadInput, Refused
from swarm.pki import privatekey
from swarm.pki.certificate import CA_NAME, MALFORMED, MANAGER_OU, Certificate, parse_bundle
from swarm.pki.chain import ChainError, validate_chain, verify
from swarm.pki.pem import decode

ROOT_LIFETIME = 630_720_000
"""Seconds: 7300 days."""
ROOT_BACKDATE = 5 * 60
NODE_BACKDATE = 3600
DEFAULT_NODE_EXPIRY = 2160 * 3600
"""Seconds: 90 days."""
MIN_NODE_EXPIRY = 3600

_PRINTABLE = frozenset(string.ascii_letters + string.digits + " '()+,-./:=?")
_CSR_TITLES = ("CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST")
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)


class NoValidSigner(Refused):
    """No key is at hand that could sign: recoverable, another try may find one (§5.6)."""

    def __init__(self) -> None:
        super().__init__("no valid signer found")


class RequestRejected(BadInput):
    """The CSR will never be signed; the text is what SwarmKit stores in the node's certificate status."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(f'failed to sign node certificate: {{"code":{code},"message":"{why}"}}')


@dataclass(frozen=True)
class RootCA:
    """Trust anchors and, where `can_sign`, a signer. Immutable; made by `create` or `from_pem`."""

    certs: bytes
    """The bundle, PEM, byte for byte as given."""
    pool: tuple[Certificate, ...]
    intermediates: bytes = b""
    """PEM appended verbatim to every leaf."""
    key_pem: bytes = field(default=b"", repr=False)
    """The signing key, PEM; empty: cannot sign."""
    signing_cert: bytes = b""
    signer: Certificate | None = None

    @property
    def digest(self) -> str:
        """SHA-256 over the bundle's exact bytes, hex."""
        return hashlib.sha256(self.certs).hexdigest()

    @property
    def can_sign(self) -> bool:
        return bool(self.pool and self.key_pem and self.signer)

    @classmethod
    def create(cls, cn: str = CA_NAME, *, now: float | None = None) -> RootCA:
        """A new root: P-256, self-signed, 20 years (§3.1). `now` in Unix seconds."""
        key = privatekey.generate()
        name = x509.Name([_attribute(NameOID.COMMON_NAME, cn)])
        start = _minute(now) - ROOT_BACKDATE
        usage = _key_usage(key_cert_sign=True, crl_sign=True)
        builder = (
            _builder(name, name, key.public_key(), start, start + ROOT_LIFETIME)
            .add_extension(usage, critical=True)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        certificate = Certificate.load(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER))
        key_pem = privatekey.to_sec1_pem(key)
        return cls(certificate.pem, (certificate,), key_pem=key_pem, signing_cert=certificate.pem, signer=certificate)

    @classmethod
    def from_pem(
        cls,
        certs: bytes,
        signing_key: bytes | None = None,
        signing_cert: bytes | None = None,
        intermediates: bytes = b"",
        *,
        now: float | None = None,
    ) -> RootCA:
        """A root from what a peer or a file says, checked as §3.5. Raises BadInput with SwarmKit's texts."""
        moment = time.time() if now is None else now
        try:
            pool = parse_bundle(certs)
        except BadInput as error:
            raise BadInput(f"invalid root certificates: {error.message}") from error
        if not pool:
            raise BadInput("no valid root CA certificates found")
        for certificate in pool:
            certificate.check_signature_algorithm()
            try:  # against a pool of itself: dates, critical extensions and usages only
                verify(certificate, (certificate,), (), moment)
            except ChainError as error:
                raise type(error)(f"error while validating Root CA Certificate: {error.message}") from error
        middle: tuple[Certificate, ...] = ()
        if intermediates:
            try:
                middle = validate_chain(pool, intermediates, now=moment).certificates
            except ChainError as error:
                raise type(error)(f"invalid intermediate chain: {error.message}") from error
            except BadInput as error:
                raise BadInput(f"invalid intermediate chain: {error.message}") from error
        if not signing_key and not signing_cert:
            return cls(certs, pool, intermediates)
        if not signing_key or not signing_cert:
            raise BadInput("must provide both a signing key and a signing cert, or neither")
        signer = _load_signer(signing_key, signing_cert, pool, middle, moment)
        if middle and (middle[0].subject, middle[0].public_key) != (signer.subject, signer.public_key):
            raise BadInput(
                "invalid intermediate chain - the first intermediate must have the same subject and public key "
                "as the signing cert"
            )
        return cls(certs, pool, intermediates, signing_key, signing_cert, signer)

    def sign(
        self, csr_pem: bytes, cn: str, ou: str, org: str, expiry_seconds: float, *, now: float | None = None
    ) -> bytes:
        """A node certificate for the CSR's key: PEM leaf, then the intermediates (§3.2).

        `ou` is `swarm-manager` or `swarm-worker`. Nothing but the public key is taken from the CSR. An expiry under
        one hour is replaced by the default. Raises NoValidSigner (try again later), RequestRejected (never).
        """
        request = _load_request(csr_pem)
        if not self.can_sign or self.signer is None:
            raise NoValidSigner
        key = privatekey.load_pem(self.key_pem)
        public_key = request.public_key()
        expiry = DEFAULT_NODE_EXPIRY if expiry_seconds < MIN_NODE_EXPIRY else int(expiry_seconds)
        start = _minute(now) - NODE_BACKDATE
        subject = x509.Name(
            [
                _attribute(NameOID.ORGANIZATION_NAME, org),
                _attribute(NameOID.ORGANIZATIONAL_UNIT_NAME, ou),
                _attribute(NameOID.COMMON_NAME, cn),
            ]
        )
        hosts = [ou, cn, *([CA_NAME] if ou == MANAGER_OU else [])]
        builder = (
            _builder(subject, self.signer.parsed.subject, public_key, start, start + expiry + NODE_BACKDATE)
            .add_extension(_key_usage(digital_signature=True, key_encipherment=True), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        )
        if self.signer.subject_key_id:
            identifier = x509.AuthorityKeyIdentifier(self.signer.subject_key_id, None, None)
            builder = builder.add_extension(identifier, critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(h) for h in hosts]), critical=False)
        if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            raise NoValidSigner
        signed = builder.sign(key, hash_for(key)).public_bytes(serialization.Encoding.DER)
        leaf = Certificate.load(signed)
        if leaf.issuer != self.signer.subject:
            raise Refused("the signing certificate's name cannot be copied byte for byte into what it signs")
        return leaf.pem + self.intermediates


def _load_signer(
    key_pem: bytes, cert_pem: bytes, pool: Sequence[Certificate], middle: Sequence[Certificate], now: float
) -> Certificate:
    """The signing certificate, checked against pool and key (§3.5.5). Raises BadInput."""
    try:
        signers = parse_bundle(cert_pem)
    except BadInput as error:
        raise BadInput(f"invalid signing CA cert: {error.message}") from error
    if not signers:
        raise BadInput("no valid signing CA certificates found")
    signer = signers[0]
    signer.check_signature_algorithm()
    try:
        verify(signer, pool, middle, now)
    except ChainError as error:
        prefix = "error while validating signing CA certificate against roots and intermediates"
        raise type(error)(f"{prefix}: {error.message}") from error
    key = privatekey.load_pem(key_pem)
    public_key = signer.key()
    if isinstance(public_key, rsa.RSAPublicKey):
        if public_key.key_size < 2048 or public_key.public_numbers().e == 1:
            raise BadInput("unsupported RSA key parameters")
    elif isinstance(public_key, ec.EllipticCurvePublicKey):
        if not isinstance(public_key.curve, _CURVES):
            raise BadInput("unsupported ECDSA key parameters")
    else:
        raise BadInput("unknown or unsupported certificate public key algorithm")
    if privatekey.public_key_info(key) != signer.public_key:
        raise BadInput("certificate key mismatch")
    return signer


def _load_request(csr_pem: bytes) -> x509.CertificateSigningRequest:
    """The first block, if it is a CSR signed by its own key (§3.3); cfssl's codes otherwise."""
    block, _ = decode(csr_pem)
    if block is None or block.type not in _CSR_TITLES:
        raise RequestRejected(9002, "CSR Decode failed")
    try:
        request = x509.load_der_x509_csr(block.data)
        request.public_key()
    except MALFORMED as error:
        raise RequestRejected(9003, "x509: malformed certificate request") from error
    try:
        genuine = request.is_signature_valid
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        genuine = False
    if not genuine:
        raise RequestRejected(9300, "x509: signature of the certificate request does not verify")
    return request


def check_request(csr_pem: bytes) -> None:
    """Raises RequestRejected for a CSR that nobody would sign."""
    _load_request(csr_pem)


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: CertificatePublicKeyTypes, not_before: int, not_after: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())  # 20 random bytes, top bit clear
        .not_valid_before(datetime.fromtimestamp(not_before, UTC))
        .not_valid_after(datetime.fromtimestamp(not_after, UTC))
    )


def _attribute(oid: x509.ObjectIdentifier, value: str) -> x509.NameAttribute[str]:
    """PrintableString where the characters allow it, as Go writes names; the library alone would write UTF8String,
    and Go compares names as bytes."""
    kind = _ASN1Type.PrintableString if value and _PRINTABLE.issuperset(value) else _ASN1Type.UTF8String
    return x509.NameAttribute(oid, value, _type=kind)


def _key_usage(
    *,
    digital_signature: bool = False,
    key_encipherment: bool = False,
    key_cert_sign: bool = False,
    crl_sign: bool = False,
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=key_encipherment,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def hash_for(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> hashes.SHA256 | hashes.SHA384 | hashes.SHA512:
    """The digest that cfssl picks for a signer's key (§3.2)."""
    small, large = (384, 521) if isinstance(key, ec.EllipticCurvePrivateKey) else (3072, 4096)
    if key.key_size >= large:
        return hashes.SHA512()
    return hashes.SHA384() if key.key_size >= small else hashes.SHA256()


def _minute(now: float | None) -> int:
    """`now` (the machine's clock if None) rounded to the nearest whole minute, halves up, in Unix seconds."""
    return int((time.time() if now is None else now) + 30) // 60 * 60
