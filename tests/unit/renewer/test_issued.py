"""What a CA's answer must be to be installed."""

from __future__ import annotations

import time

import pytest

from procs.renewer.signed import check_issued
from swarm.errors import BadInput
from swarm.pki.chain import CertificateInvalid, ChainError, UnknownAuthority
from swarm.pki.credentials import Credentials
from tests.tools.authority import HOUR, Authority

AUTHORITY = Authority()
HELD = AUTHORITY.issue("worker", node_id="me")


def issued(**other: object) -> Credentials:
    return AUTHORITY.issue(**{"role": "manager", "node_id": "me", **other})  # type: ignore[arg-type]


def test_a_certificate_for_our_key_and_name_is_taken_whatever_its_role() -> None:
    new = issued()
    taken = check_issued(HELD, new.certificate_pem, new.key_pem)
    assert (taken.role, taken.fingerprint, taken.root_pem) == ("manager", new.fingerprint, HELD.root_pem)
    assert taken.issuer_subject == AUTHORITY.root.pool[0].subject


@pytest.mark.parametrize(
    ("new", "error", "words"),
    [
        (issued(issued_at=time.time() - 9 * HOUR, expiry=HOUR), CertificateInvalid, "not valid after"),
        (Authority(AUTHORITY.cluster_id).issue(node_id="me"), UnknownAuthority, "signed by unknown authority"),
        (issued(node_id="another"), BadInput, "is for node another of swarm"),
        (issued(organization="another"), BadInput, "is for node me of swarm another"),
    ],
    ids=["expired", "foreign", "other node", "other swarm"],
)
def test_any_other_certificate_is_refused_with_its_reason(new: Credentials, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        check_issued(HELD, new.certificate_pem, new.key_pem)


def test_a_certificate_for_another_key_or_none_at_all_is_refused() -> None:
    with pytest.raises(BadInput, match="not for the key that asked"):
        check_issued(HELD, issued().certificate_pem, issued().key_pem)
    with pytest.raises(ChainError, match="no certificates to validate"):
        check_issued(HELD, b"", issued().key_pem)
