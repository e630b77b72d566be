"""ValidateCertChain by Go's rules (node-and-ca §3.6)."""

from __future__ import annotations

import pytest

from swarm.errors import BadInput
from swarm.pki.certificate import parse_bundle
from swarm.pki.chain import CertificateInvalid, ChainError, UnknownAuthority, validate_chain
from tests.unit.pki.authority import DAY, NOW, Party, make

ROOT = make("swarm-ca")
OTHER = make("swarm-ca")
MIDDLE = ROOT.issue("middle")
LOWER = MIDDLE.issue("lower")
LEAF = LOWER.issue("leaf", ca=False)
DIRECT = ROOT.issue("direct", ca=False)


def check(*chain: Party, roots: tuple[Party, ...] = (ROOT,), allow_expired: bool = False, now: float = NOW):
    pool = [parse_bundle(root.pem)[0] for root in roots]
    return validate_chain(pool, b"".join(p.pem for p in chain), allow_expired=allow_expired, now=now)


@pytest.mark.parametrize(
    ("chain", "roots", "issuer"),
    [
        ((DIRECT,), (ROOT,), ROOT),
        ((DIRECT, ROOT), (ROOT,), ROOT),
        ((DIRECT,), (OTHER, ROOT), ROOT),
        ((LEAF, LOWER, MIDDLE), (ROOT,), LOWER),
        ((LEAF, LOWER, MIDDLE, ROOT), (ROOT,), LOWER),
        ((LEAF, LOWER), (MIDDLE,), LOWER),  # an intermediate may be an anchor
        ((LEAF,), (LOWER,), LOWER),
        ((LEAF,), (LEAF,), LEAF),  # a member of the pool verifies trivially
    ],
)
def test_valid_chains(chain: tuple[Party, ...], roots: tuple[Party, ...], issuer: Party) -> None:
    valid = check(*chain, roots=roots)
    assert valid.leaf.pem == chain[0].pem
    assert valid.issuer.pem == issuer.pem
    assert len(valid.certificates) == len(chain)


ORPHAN = OTHER.issue("orphan", ca=False)


@pytest.mark.parametrize(
    ("chain", "error", "text"),
    [
        ((), ChainError, "no certificates to validate"),
        ((LEAF, MIDDLE), ChainError,
         "certificates do not form a chain: (1 - leaf) is not signed by (2 - middle)"),
        ((LEAF, LOWER, DIRECT), ChainError,
         "certificates do not form a chain: (2 - lower) is not signed by (3 - direct)"),
        ((ORPHAN,), UnknownAuthority, "x509: certificate signed by unknown authority"),
        ((ORPHAN, OTHER), UnknownAuthority, "x509: certificate signed by unknown authority"),
        ((LEAF,), UnknownAuthority, "x509: certificate signed by unknown authority"),
        ((ROOT.issue("old", ca=False, end=NOW - 60),), CertificateInvalid,
         ("certificate (1 - old) not valid after Tue, 14 Nov 2023 22:12:20 UTC, "
         "and it is currently Tue, 14 Nov 2023 22:13:20 UTC")),
        ((ROOT.issue("early", ca=False, start=NOW + 60),), CertificateInvalid,
         ("certificate (1 - early) not valid before Tue, 14 Nov 2023 22:14:20 UTC, "
         "and it is currently Tue, 14 Nov 2023 22:13:20 UTC")),
        ((ROOT.issue("c", ca=False, client_only=True),), ChainError,
         "x509: certificate specifies an incompatible key usage"),
        ((ROOT.issue("c", ca=False, critical=True),), ChainError, "x509: unhandled critical extension"),
        ((make("flat", signer=ROOT, ca=False).issue("under", ca=False),), UnknownAuthority,
         "x509: certificate signed by unknown authority"),
        ((ROOT.issue("narrow", path_length=0).issue("below").issue("x", ca=False),), UnknownAuthority,
         "x509: certificate signed by unknown authority"),
    ],
)  # fmt: skip
def test_invalid_chains(chain: tuple[Party, ...], error: type[ChainError], text: str) -> None:
    with pytest.raises(ChainError) as raised:
        check(*chain)
    assert (type(raised.value), raised.value.message) == (error, text)


def test_path_length_bounds_what_may_stand_below() -> None:
    narrow = ROOT.issue("narrow", path_length=0)
    below = narrow.issue("below")
    leaf = below.issue("leaf", ca=False)
    with pytest.raises(UnknownAuthority):
        check(leaf, below, narrow)
    fine = narrow.issue("fine", ca=False)
    assert check(fine, narrow).issuer.pem == narrow.pem


def test_root_that_has_expired_is_named_as_such() -> None:
    stale = make("swarm-ca", end=NOW - 1)
    with pytest.raises(
        CertificateInvalid, match="x509: certificate has expired or is not yet valid: current time 2023-11"
    ):
        check(stale.issue("n", ca=False), roots=(stale,))


def test_cross_signed_new_root_leads_to_the_old_one() -> None:
    """Root rotation: subject and issuer are both swarm-ca, OpenSSL takes it for self-signed (§12.4)."""
    new = make("swarm-ca")
    crossed = ROOT.issue("swarm-ca", key=new.key)
    leaf = new.issue("leaf", ca=False)
    assert check(leaf, crossed, roots=(ROOT,)).issuer.pem == crossed.pem
    assert check(leaf, crossed, roots=(new,)).issuer.pem == new.pem
    assert [c.common_name for c in check(leaf, crossed, roots=(ROOT, new)).certificates] == ["leaf", "swarm-ca"]


OLD_ROOT = make("swarm-ca", end=NOW - DAY)


@pytest.mark.parametrize(
    ("chain", "roots"),
    [
        ((ROOT.issue("old", ca=False, end=NOW - 60),), (ROOT,)),
        ((OLD_ROOT.issue("old", ca=False, end=NOW - 2 * DAY, start=NOW - 3 * DAY),), (make("x"), OLD_ROOT)),
    ],
)  # fmt: skip
def test_expired_chains_load_where_that_is_allowed(chain: tuple[Party, ...], roots: tuple[Party, ...]) -> None:
    if OLD_ROOT in roots:  # the old root was not valid that early
        with pytest.raises(CertificateInvalid, match="there is no time span for which all of the certificates"):
            check(*chain, roots=roots, allow_expired=True)
    else:
        assert check(*chain, roots=roots, allow_expired=True).leaf.common_name == "old"
    with pytest.raises(CertificateInvalid):
        check(*chain, roots=roots)


def test_middle_that_ends_before_the_leaf_still_gives_a_common_time() -> None:
    middle = ROOT.issue("middle", end=NOW - 2 * DAY, start=NOW - 9 * DAY)
    leaf = middle.issue("leaf", ca=False, start=NOW - 5 * DAY, end=NOW - DAY)
    root = make("swarm-ca", key=ROOT.key, start=NOW - 20 * DAY)
    assert check(leaf, middle, roots=(root,), allow_expired=True).issuer.pem == middle.pem


def test_not_yet_valid_is_refused_even_where_expired_is_allowed() -> None:
    with pytest.raises(CertificateInvalid, match="not valid before"):
        check(ROOT.issue("early", ca=False, start=NOW + 60), allow_expired=True)


def test_unknown_authority_wins_over_dates_when_expired_is_allowed() -> None:
    with pytest.raises(UnknownAuthority):
        check(OTHER.issue("n", ca=False, end=NOW - 60), allow_expired=True)


@pytest.mark.parametrize(
    ("bundle", "text"),
    [
        (b"garbage", "Failed to decode certificate"),
        (ROOT.pem + b"tail", "Failed to decode certificate"),
        (ROOT.key_pem, "Failed to parse certificate"),
    ],
)
def test_what_is_no_bundle_is_refused(bundle: bytes, text: str) -> None:
    with pytest.raises(BadInput, match=text):
        parse_bundle(bundle)


def test_blanks_between_and_around_do_not_matter() -> None:
    assert len(parse_bundle(b"\n \n" + ROOT.pem + b"\n\n  " + OTHER.pem + b"  \n")) == 2
    assert parse_bundle(b" \n ") == ()
