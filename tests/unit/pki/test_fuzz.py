"""Whatever bytes a peer sends or an operator types: a clear error or a right result, in a time that grows with their
number alone (issue 3 §5.3)."""

from __future__ import annotations

import contextlib
import json

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from procs.manager.ca.external import SignerRefused, SignerUnavailable, read_answer
from swarm.errors import BadInput, Refused
from swarm.pki import pem, privatekey
from swarm.pki.certificate import Certificate, parse_bundle
from swarm.pki.chain import ChainError, validate_chain, verify
from swarm.pki.credentials import make_credentials
from swarm.pki.crosssign import cross_sign
from swarm.pki.reenrol import make_proof, parse_proof
from swarm.pki.request import new_request
from swarm.pki.rootca import RequestRejected, RootCA
from swarm.pki.tokens import JoinToken, generate_join_token
from tests.unit.pki.authority import NOW, make
from tests.unit.pki.spoiled import FUZZ, json_values, spoiled

# What the library warns of (odd serial numbers, old algorithms) is no news about noise.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

ROOT = RootCA.create(now=NOW)
KEY, CSR = new_request()
LEAF = ROOT.sign(CSR, "node1", "swarm-manager", "org1", 7200, now=NOW)
CERTIFICATE = parse_bundle(LEAF)[0]
CSR_DER = next(pem.blocks(CSR)).data
RSA_KEY = rsa.generate_private_key(65537, 2048)
RSA_LEAF = make("node1", signer=None, key=RSA_KEY, ca=False).certificate.public_bytes(serialization.Encoding.DER)
RSA_CSR = (
    x509.CertificateSigningRequestBuilder()
    .subject_name(x509.Name([]))
    .sign(RSA_KEY, hashes.SHA256())
    .public_bytes(serialization.Encoding.DER)
)
TOKEN = generate_join_token(ROOT.certs)
PROOF = make_proof("org1", "node1", CERTIFICATE, KEY, CSR, 1)


# -- certificates and chains ------------------------------------------------------------------------------------------


@FUZZ
@given(spoiled(CERTIFICATE.data, ROOT.pool[0].data, RSA_LEAF))
def test_a_spoiled_certificate_is_refused_or_used_without_falling_over(data: bytes) -> None:
    try:
        found = Certificate.load(data)
    except BadInput:
        return
    assert isinstance(found.common_name, str)
    found.is_signed_by(ROOT.pool[0])
    ROOT.pool[0].is_signed_by(found)
    assert found.may_serve in (True, False)
    assert found.unknown_critical is not None
    for use in (
        found.check_signature_algorithm,
        lambda: verify(found, ROOT.pool, (), NOW),
        lambda: RootCA.from_pem(found.pem, ROOT.key_pem, found.pem, now=NOW),
        lambda: cross_sign(ROOT, found.pem),
    ):
        with contextlib.suppress(BadInput, Refused):
            use()


@FUZZ
@given(spoiled(LEAF, LEAF + ROOT.certs, ROOT.certs), st.booleans())
def test_a_spoiled_chain_gives_no_credentials_but_those_of_a_leaf_that_was_signed(data: bytes, expired: bool) -> None:
    try:
        chain = validate_chain(ROOT.pool, data, now=NOW, allow_expired=expired)
        found = make_credentials(chain, data, KEY, ROOT.certs)
    except BadInput:
        return
    assert chain.leaf == CERTIFICATE
    assert (found.node_id, found.role, found.cluster_id) == ("node1", "manager", "org1")


UNKNOWN_SIGNATURE = ROOT.pool[0].data.replace(bytes.fromhex("2a8648ce3d040302"), bytes.fromhex("2b8648ce3d040302"))
UNKNOWN_CURVE = ROOT.pool[0].data.replace(bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2b8648ce3d030107"))
NO_POINT = ROOT.pool[0].data.replace(bytes.fromhex("03420004"), bytes.fromhex("03420005"))
NO_UTF8 = make("Wärter").certificate.public_bytes(serialization.Encoding.DER).replace("ä".encode(), b"\xff\xfe")


@pytest.mark.parametrize("data", [UNKNOWN_SIGNATURE, UNKNOWN_CURVE, NO_POINT, NO_UTF8])
def test_a_certificate_with_what_nobody_knows_is_refused_as_a_root(data: bytes) -> None:
    text = pem.Block("CERTIFICATE", data).encode()
    for use in (
        lambda: RootCA.from_pem(text, ROOT.key_pem, text, now=NOW),
        lambda: validate_chain(ROOT.pool, text + ROOT.certs, now=NOW),
    ):
        with pytest.raises(BadInput):
            use()


def test_certificates_that_all_sign_each_other_do_not_keep_the_search_busy_for_ever() -> None:
    parties = [make("x") for _ in range(8)]
    crossed = [by.issue("x", key=of.key).certificate for by in parties for of in parties if by is not of]
    bundle = [Certificate.load(one.public_bytes(serialization.Encoding.DER)) for one in crossed]
    leaf = parse_bundle(parties[0].issue("leaf", ca=False).pem)[0]
    with pytest.raises(ChainError, match="^x509: signature check attempts limit reached while verifying"):
        verify(leaf, ROOT.pool, bundle, NOW)
    assert verify(leaf, parse_bundle(parties[0].pem), bundle, NOW)[-1].pem == parties[0].pem


# -- requests ---------------------------------------------------------------------------------------------------------


@FUZZ
@given(spoiled(CSR_DER, RSA_CSR))
def test_a_spoiled_request_is_refused_in_cfssls_words_or_signed_for_its_own_key(data: bytes) -> None:
    try:
        signed = ROOT.sign(pem.Block("CERTIFICATE REQUEST", data).encode(), "n", "swarm-worker", "o", 0, now=NOW)
    except RequestRejected as error:
        assert '"code":9' in error.message
        return
    leaf = parse_bundle(signed)[0]
    assert leaf.is_signed_by(ROOT.pool[0])
    assert leaf.basic_constraints == x509.BasicConstraints(ca=False, path_length=None)


@FUZZ
@given(spoiled(CSR, LEAF + CSR))
def test_a_spoiled_text_of_a_request_is_refused_or_signed(data: bytes) -> None:
    with contextlib.suppress(RequestRejected):
        assert parse_bundle(ROOT.sign(data, "n", "swarm-worker", "o", 0, now=NOW))[0].common_name == "n"


# -- PEM --------------------------------------------------------------------------------------------------------------

MEGABYTE = 1 << 20
SIZE = 400_000
"""Bytes. Those that cost a time that grows with their square took half a minute at this size."""
BEGIN, END = b"-----BEGIN CERTIFICATE REQUEST-----\n", b"-----END CERTIFICATE REQUEST-----\n"
HUGE = {
    "beginnings": BEGIN,
    "beginnings and one end": BEGIN,
    "headers": b"a: b\n",
    "blocks": BEGIN + b"QUJD\n" + END,
    "blocks that are none": BEGIN + b"*\n-----END X-----\n",
    "blocks with headers": BEGIN + b"a: b\n\nQUJD\n" + END,
    "one line": b"A",
    "zeros": b"\0",
    "colons": b":\n",
}


@pytest.mark.parametrize("kind", HUGE)
@pytest.mark.timeout(20)
def test_a_long_text_of_pem_is_read_in_no_time(kind: str) -> None:
    """A request may have 4 MiB and come from anybody with a token."""
    data = HUGE[kind] * (SIZE // len(HUGE[kind]))
    data += {"beginnings and one end": b"\n-----END X-----\n"}.get(kind, b"")
    pem.normalize_pems(data)
    for use in (
        lambda: ROOT.sign(data, "n", "swarm-worker", "o", 0, now=NOW),
        lambda: ROOT.sign(BEGIN + data + END, "n", "swarm-worker", "o", 0, now=NOW),
        lambda: parse_bundle(data),
        lambda: privatekey.load_pem(data),
    ):
        with pytest.raises(BadInput):
            use()


# -- tokens -----------------------------------------------------------------------------------------------------------


@FUZZ
@given(spoiled(TOKEN.encode(), generate_join_token(ROOT.certs, fips=True).encode()))
def test_a_spoiled_token_is_none_or_names_some_digest(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    try:
        token = JoinToken.parse(text)
        digest = token.root_digest()
    except BadInput as error:
        assert error.remedy
        return
    assert str(token) == text
    assert len(digest) == 64


@pytest.mark.timeout(20)
@pytest.mark.parametrize("text", ["SWMTKN-1-" + "0" * MEGABYTE, "-" * MEGABYTE, "SWMTKN" * MEGABYTE, TOKEN * 10_000])
def test_a_huge_token_is_none(text: str) -> None:
    with pytest.raises(BadInput, match="^invalid join token$"):
        JoinToken.parse(text)


# -- proofs of a node whose certificate has expired -------------------------------------------------------------------


@FUZZ
@given(spoiled(PROOF), spoiled(CSR) | st.just(CSR))
def test_a_spoiled_proof_is_not_taken(data: bytes, csr: bytes) -> None:
    try:
        proof = parse_proof(data)
    except BadInput:
        return
    node_id = proof.leaf.common_name
    if proof.leaf.is_signed_by(ROOT.pool[0]) and proof.is_signed("org1", node_id, csr):
        assert (node_id, proof.leaf, proof.issued_at, csr) == ("node1", CERTIFICATE, 1, CSR)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("data", [PROOF * 10_000, b"\0" * MEGABYTE, b"\x0a\xff\xff\xff\x7f", b"\x0b" * 8192])
def test_a_huge_proof_is_not_taken(data: bytes) -> None:
    with pytest.raises(BadInput):
        parse_proof(data)


# -- answers of an external CA ----------------------------------------------------------------------------------------


@FUZZ
@given(
    json_values.map(lambda found: json.dumps(found).encode())
    | json_values.map(lambda found: json.dumps({"success": True, "result": {"certificate": found}}).encode())
    | spoiled(json.dumps({"success": True, "result": {"certificate": LEAF.decode()}, "errors": []}).encode())
)
def test_any_answer_of_a_signer_is_bytes_or_an_error(data: bytes) -> None:
    with contextlib.suppress(SignerUnavailable, SignerRefused):
        assert isinstance(read_answer(data), bytes)
