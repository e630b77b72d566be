"""The bridge between two roots: the new root's name and key, signed by the old one (reference/node-and-ca §3.8).

Better than SwarmKit's in one point (§12.4): ours always names the key that signed it (AuthorityKeyIdentifier). Without
that, a certificate whose subject and issuer are the same name looks self-signed to OpenSSL, which then stops looking.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from swarm.errors import BadInput
from swarm.pki import privatekey
from swarm.pki.certificate import Certificate, parse_bundle
from swarm.pki.rootca import NoValidSigner, RootCA, hash_for

_KEPT = (x509.KeyUsage, x509.BasicConstraints, x509.ExtendedKeyUsage)
"""Extensions taken over as they are; the key's own identifier is taken over or made."""


def cross_sign(signer: RootCA, new_root: bytes) -> bytes:
    """A certificate like the first one of `new_root` (PEM), but issued by `signer`: PEM.

    Same subject, public key, serial, dates, usages. Raises NoValidSigner, or BadInput with SwarmKit's texts.
    """
    if not signer.can_sign or signer.signer is None:
        raise NoValidSigner
    try:
        found = parse_bundle(new_root)
    except BadInput as error:
        raise BadInput(f"could not parse new CA certificate: {error.message}") from error
    if not found:
        raise BadInput("could not parse new CA certificate")
    new, issuer = found[0], signer.signer
    if new.basic_constraints is None or not new.basic_constraints.ca:
        raise BadInput("certificate not a CA")
    key = privatekey.load_pem(signer.key_pem)
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise NoValidSigner
    public_key = new.key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(new.parsed.subject)
        .issuer_name(issuer.parsed.subject)
        .public_key(public_key)
        .serial_number(new.parsed.serial_number)
        .not_valid_before(new.parsed.not_valid_before_utc)
        .not_valid_after(new.parsed.not_valid_after_utc)
    )
    for extension in new.parsed.extensions:
        if isinstance(extension.value, _KEPT):
            builder = builder.add_extension(extension.value, critical=extension.critical)
    own = (
        x509.SubjectKeyIdentifier(new.subject_key_id)
        if new.subject_key_id
        else x509.SubjectKeyIdentifier.from_public_key(public_key)
    )
    by = issuer.subject_key_id or x509.SubjectKeyIdentifier.from_public_key(issuer.parsed.public_key()).digest
    builder = builder.add_extension(own, critical=False)
    builder = builder.add_extension(x509.AuthorityKeyIdentifier(by, None, None), critical=False)
    made = Certificate.load(builder.sign(key, hash_for(key)).public_bytes(serialization.Encoding.DER))
    if (made.subject, made.issuer, made.public_key) != (new.subject, issuer.subject, new.public_key):
        raise BadInput("the names of the two roots cannot be copied byte for byte into a cross-signed certificate")
    return made.pem
