"""The certificate that lets holders of the old root trust the new one."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from swarm.errors import BadInput
from swarm.pki.certificate import parse_bundle
from swarm.pki.chain import UnknownAuthority, validate_chain
from swarm.pki.crosssign import cross_sign
from swarm.pki.request import new_request
from swarm.pki.rootca import NoValidSigner, RootCA
from tests.unit.pki.authority import NOW, Party, make


@pytest.fixture(scope="module")
def old() -> RootCA:
    return RootCA.create(now=NOW)


@pytest.fixture(scope="module")
def new() -> RootCA:
    return RootCA.create(now=NOW)


def test_it_is_the_new_root_but_for_its_signer_which_it_always_names(old: RootCA, new: RootCA) -> None:
    crossed = parse_bundle(cross_sign(old, new.certs))[0]
    root = new.pool[0]
    assert (crossed.subject, crossed.public_key, crossed.subject_key_id) == (
        root.subject,
        root.public_key,
        root.subject_key_id,
    )
    assert (crossed.not_before, crossed.not_after) == (root.not_before, root.not_after)
    assert crossed.parsed.serial_number == root.parsed.serial_number
    assert crossed.subject == crossed.issuer, "both are swarm-ca: without the identifier OpenSSL takes it for a root"
    identifier = crossed.parsed.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert identifier.key_identifier == old.pool[0].subject_key_id
    assert crossed.is_signed_by(old.pool[0])


def test_what_the_new_key_signs_verifies_under_either_root_alone(old: RootCA, new: RootCA) -> None:
    crossed = cross_sign(old, new.certs)
    between = RootCA.from_pem(old.certs, new.key_pem, crossed, crossed, now=NOW)
    _, csr = new_request()
    chain = between.sign(csr, "node", "swarm-worker", "swarm", 7200, now=NOW)
    for pool in (old.pool, new.pool):
        found = validate_chain(pool, chain, now=NOW)
        assert found.issuer.public_key == new.pool[0].public_key
    with pytest.raises(UnknownAuthority):
        validate_chain(RootCA.create(now=NOW).pool, chain, now=NOW)


RSA = [make("swarm-ca", key=rsa.generate_private_key(65537, 2048)) for _ in range(2)]


@pytest.mark.parametrize(("signer", "signed"), [(RSA[0], RSA[1]), (RSA[0], make("swarm-ca")), (make("other"), RSA[1])])
def test_kinds_of_keys_may_differ(signer: Party, signed: Party) -> None:
    old = RootCA.from_pem(signer.pem, signer.key_pem, signer.pem, now=NOW)
    crossed = cross_sign(old, signed.pem)
    leaf = RootCA.from_pem(signer.pem, signed.key_pem, crossed, crossed, now=NOW).sign(
        new_request()[1], "node", "swarm-worker", "swarm", 7200, now=NOW
    )
    for pool in (signer.pem, signed.pem):
        found = validate_chain(parse_bundle(pool), leaf, now=NOW)
        assert found.issuer.public_key == parse_bundle(signed.pem)[0].public_key


def test_only_a_ca_is_signed_and_only_with_a_key(old: RootCA, new: RootCA) -> None:
    with pytest.raises(BadInput, match="certificate not a CA"):
        cross_sign(old, make("leaf", ca=False).pem)
    with pytest.raises(BadInput, match="could not parse new CA certificate"):
        cross_sign(old, new.key_pem)
    with pytest.raises(NoValidSigner):
        cross_sign(RootCA.from_pem(old.certs, now=NOW), new.certs)
