"""Validation of roots and signers, and the texts of refusal (node-and-ca §3.3, §3.5)."""

from __future__ import annotations

import os
import re

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa

from swarm.errors import BadInput
from swarm.pki.certificate import parse_bundle
from swarm.pki.chain import validate_chain
from swarm.pki.pem import Block
from swarm.pki.request import new_request
from swarm.pki.rootca import NoValidSigner, RequestRejected, RootCA
from tests.unit.pki.authority import NOW, make

ROOT = make("swarm-ca")
OTHER = make("swarm-ca")
MIDDLE = ROOT.issue("middle")
EXPIRED = make("swarm-ca", end=NOW - 1)
EARLY = make("swarm-ca", start=NOW + 3600)
SMALL = rsa.generate_private_key(65537, 1024)
DSA = make("dsa", key=dsa.generate_private_key(1024))
P224 = ec.generate_private_key(ec.SECP224R1())
NAME_FIRST = "invalid intermediate chain - the first intermediate must have the same subject and public key"


def test_a_bundle_keeps_its_bytes_and_signs() -> None:
    bundle = b"\n" + ROOT.pem + b"\n" + OTHER.pem
    ca = RootCA.from_pem(bundle, ROOT.key_pem, ROOT.pem, now=NOW)
    assert (ca.certs, len(ca.pool), ca.can_sign, ca.key_pem) == (bundle, 2, True, ROOT.key_pem)
    _key, csr = new_request()
    chain = ca.sign(csr, "n", "swarm-worker", "o", 0, now=NOW)
    assert validate_chain(ca.pool, chain, now=NOW).issuer.pem == ROOT.pem
    assert ROOT.key_pem.decode() not in repr(ca)


def test_intermediates_follow_the_leaf_verbatim() -> None:
    middle = b"  " + MIDDLE.pem
    ca = RootCA.from_pem(ROOT.pem, MIDDLE.key_pem, MIDDLE.pem, middle, now=NOW)
    _, csr = new_request()
    chain = ca.sign(csr, "n", "swarm-worker", "o", 0, now=NOW)
    assert chain.endswith(middle)
    assert validate_chain(ca.pool, chain, now=NOW).issuer.pem == MIDDLE.pem


@pytest.mark.parametrize(
    ("certs", "key", "signer", "middle", "text"),
    [
        (b"junk", b"", b"", b"", "invalid root certificates: .*Failed to decode certificate"),
        (ROOT.key_pem, b"", b"", b"", "invalid root certificates: .*Failed to parse certificate"),
        (ROOT.pem + b"junk", b"", b"", b"", "invalid root certificates: .*Failed to decode certificate"),
        (b" \n", b"", b"", b"", "no valid root CA certificates found"),
        (EXPIRED.pem, b"", b"", b"", "error while validating Root CA Certificate: .*expired"),
        (EARLY.pem, b"", b"", b"", "error while validating Root CA Certificate: .*not yet valid"),
        (make("c", client_only=True).pem, b"", b"", b"", "error while validating Root CA Certificate: .*key usage"),
        (make("c", critical=True).pem, b"", b"", b"", "error while validating Root CA Certificate: .*critical"),
        (ROOT.pem, ROOT.key_pem, b"", b"", "must provide both a signing key and a signing cert, or neither"),
        (ROOT.pem, b"", ROOT.pem, b"", "must provide both a signing key and a signing cert, or neither"),
        (ROOT.pem, ROOT.key_pem, b"junk", b"", "invalid signing CA cert: .*Failed to decode"),
        (ROOT.pem, ROOT.key_pem, b" ", b"", "no valid signing CA certificates found"),
        (ROOT.pem, OTHER.key_pem, ROOT.pem, b"", "certificate key mismatch"),
        (ROOT.pem, b"junk", ROOT.pem, b"", "malformed private key"),
        (ROOT.pem, ROOT.pem, ROOT.pem, b"", "malformed private key"),
        (ROOT.pem, OTHER.key_pem, OTHER.pem, b"",
         "error while validating signing CA certificate against roots and intermediates: .*unknown authority"),
        (ROOT.pem, b"", b"", b"junk", "invalid intermediate chain: .*Failed to decode"),
        (ROOT.pem, b"", b"", OTHER.issue("x").pem, "invalid intermediate chain: .*unknown authority"),
        (ROOT.pem, b"", b"", ROOT.issue("x", end=NOW - 1).pem, "invalid intermediate chain: .*not valid after"),
        (ROOT.pem, b"", b"", ROOT.issue("x", start=NOW + 60).pem, "invalid intermediate chain: .*not valid before"),
        (ROOT.pem, b"", b"", MIDDLE.pem + OTHER.pem, "invalid intermediate chain: certificates do not form a chain"),
        (ROOT.pem, ROOT.key_pem, ROOT.pem, MIDDLE.pem, NAME_FIRST),
        (ROOT.pem, ROOT.key_pem, ROOT.pem, ROOT.issue("swarm-ca").pem, NAME_FIRST),
        (DSA.pem, b"", b"", b"", "unsupported signature algorithm: DSA-SHA256"),
    ],
)  # fmt: skip
def test_what_is_no_root_is_refused(certs: bytes, key: bytes, signer: bytes, middle: bytes, text: str) -> None:
    with pytest.raises(BadInput) as raised:
        RootCA.from_pem(certs, key, signer, middle, now=NOW)
    assert re.match(text, raised.value.message), raised.value.message


def test_weak_signers_are_refused() -> None:
    for key, text in ((SMALL, "unsupported RSA key parameters"), (P224, "unsupported ECDSA key parameters")):
        weak = make("weak", key=key)
        with pytest.raises(BadInput, match=f"^{text}$"):
            RootCA.from_pem(weak.pem, weak.key_pem, weak.pem, now=NOW)


@pytest.mark.parametrize(
    ("algorithm", "name"), [("06092a864886f70d010105", "SHA1-RSA"), ("06072a8648ce3d0401", "ECDSA-SHA1")]
)
def test_weak_signatures_are_refused_by_name(algorithm: str, name: str) -> None:
    """The library signs with SHA-1 no more, so the algorithm is written into both places of a finished certificate."""
    party = make("weak", key=rsa.generate_private_key(65537, 2048)) if "RSA" in name.split("-")[1] else make("weak")
    strong = bytes.fromhex("06092a864886f70d01010b" if "RSA" in name.split("-")[1] else "06082a8648ce3d040302")
    data = party.certificate.public_bytes(serialization.Encoding.DER)
    weak = bytes.fromhex(algorithm)
    if len(weak) == len(strong):
        patched = data.replace(strong, weak)
    else:  # one byte shorter: re-encode the two algorithm identifiers and what holds them
        from swarm.pki import der

        tbs, _, signature = der.children(data)
        identifier = der.encode(der.SEQUENCE, weak)
        inner = b"".join(identifier if body == strong else whole for _, body, whole in der.children(tbs[2]))
        patched = der.encode(der.SEQUENCE, der.encode(der.SEQUENCE, inner), identifier, signature[2])
    with pytest.raises(BadInput, match=f"^unsupported signature algorithm: {name}$"):
        RootCA.from_pem(Block("CERTIFICATE", patched).encode(), now=NOW)


def request_with_bad_signature() -> bytes:
    request = x509.load_pem_x509_csr(new_request()[1])
    data = request.public_bytes(serialization.Encoding.DER)
    tail = data.rindex(request.signature)
    length = len(request.signature)
    # within the last integer, so that it stays a well-formed signature
    return Block("CERTIFICATE REQUEST", data[: tail + length - 8] + os.urandom(8) + data[tail + length :]).encode()


def test_undecodable_requests_get_cfssls_text() -> None:
    ca = RootCA.create()
    for junk in (b"", b"junk", ca.certs, Block("X", b"").encode()):
        with pytest.raises(RequestRejected) as raised:
            ca.sign(junk, "n", "swarm-worker", "o", 0)
        assert raised.value.message == ('failed to sign node certificate: {"code":9002,"message":"CSR Decode failed"}')
    with pytest.raises(RequestRejected, match='"code":9003'):
        ca.sign(Block("CERTIFICATE REQUEST", b"junk").encode(), "n", "swarm-worker", "o", 0)
    with pytest.raises(RequestRejected, match='"code":9300'):
        ca.sign(request_with_bad_signature(), "n", "swarm-worker", "o", 0)


def test_old_title_and_first_block_only() -> None:
    _, csr = new_request()
    ca = RootCA.create()
    old = csr.replace(b"CERTIFICATE REQUEST", b"NEW CERTIFICATE REQUEST")
    assert parse_bundle(ca.sign(old + b"trailing", "n", "swarm-worker", "o", 0))
    with pytest.raises(RequestRejected):
        ca.sign(ca.certs + csr, "n", "swarm-worker", "o", 0)


def test_without_a_key_signing_can_be_tried_again() -> None:
    ca = RootCA.from_pem(ROOT.pem, now=NOW)
    assert not ca.can_sign
    with pytest.raises(NoValidSigner, match="^no valid signer found$"):
        ca.sign(new_request()[1], "n", "swarm-worker", "o", 0, now=NOW)


def test_p521_requests_are_signed_too() -> None:
    key = ec.generate_private_key(ec.SECP521R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA512())
    chain = RootCA.create().sign(csr.public_bytes(serialization.Encoding.PEM), "n", "swarm-worker", "o", 0)
    assert isinstance(parse_bundle(chain)[0].parsed.public_key(), ec.EllipticCurvePublicKey)
