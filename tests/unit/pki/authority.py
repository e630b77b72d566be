"""Certificates of any shape for the tests of this directory."""

from __future__ import annotations

import datetime as dt

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOW = 1_700_000_000.0
DAY = 86400

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | dsa.DSAPrivateKey


class Party:
    """A certificate with its key; `issue` makes further ones below it."""

    def __init__(self, certificate: x509.Certificate, key: Key) -> None:
        self.certificate = certificate
        self.key = key

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def issue(self, name: str, **kwargs) -> Party:
        return make(name, signer=self, **kwargs)


def make(
    name: str,
    *,
    signer: Party | None = None,
    key: Key | None = None,
    ca: bool | None = True,
    start: float = NOW - DAY,
    end: float = NOW + 900 * DAY,
    digest: hashes.HashAlgorithm | None = None,
    path_length: int | None = None,
    client_only: bool = False,
    critical: bool = False,
    org: str = "org1",
    ou: str = "swarm-manager",
) -> Party:
    """One certificate; `ca` None leaves basic constraints out."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else []
    if not ca:
        attributes[:0] = [
            x509.NameAttribute(oid, value)
            for oid, value in ((NameOID.ORGANIZATION_NAME, org), (NameOID.ORGANIZATIONAL_UNIT_NAME, ou))
            if value
        ]
    subject = x509.Name(attributes)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer.certificate.subject if signer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(dt.datetime.fromtimestamp(start, dt.UTC))
        .not_valid_after(dt.datetime.fromtimestamp(end, dt.UTC))
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca, path_length if ca else None), critical=True)
    if client_only:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    if critical:
        unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
        builder = builder.add_extension(unknown, critical=True)
    certificate = builder.sign(signer.key if signer else key, digest or hashes.SHA256())
    return Party(certificate, key)
