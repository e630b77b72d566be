"""Join tokens and unlock keys (node-and-ca §2.2, §2.3)."""

from __future__ import annotations

import contextlib
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import BadInput
from swarm.pki.tokens import (
    JoinToken,
    format_unlock_key,
    generate_join_token,
    generate_unlock_key,
    parse_unlock_key,
)

EMPTY_DIGEST = "5oaq0bjhj6un82wg98mgigso5q7qlhc63je4gw7ivixqqhkd3p"
SECRET = "0" * 25


def test_digest_is_swarmkits_vector() -> None:
    token = generate_join_token(b"")
    assert token.startswith(f"SWMTKN-1-{EMPTY_DIGEST}-")
    assert JoinToken.parse(token).root_digest() == hashlib.sha256(b"").hexdigest()


def test_fips_tokens_are_version_2() -> None:
    token = JoinToken.parse(generate_join_token(b"", fips=True))
    assert str(token).startswith(f"SWMTKN-2-1-{EMPTY_DIGEST}-")
    assert (token.version, token.fips) == (2, True)
    assert not JoinToken.parse(f"SWMTKN-2-0-{EMPTY_DIGEST}-{SECRET}").fips


def test_tokens_differ_only_in_the_secret_which_is_never_shown() -> None:
    one, other = (JoinToken.parse(generate_join_token(b"root")) for _ in range(2))
    assert one.digest == other.digest
    assert one.secret != other.secret
    assert one.secret not in repr(one)


@pytest.mark.parametrize(
    "text",
    [
        "", "SWMTKN", "SWMTKN-1", f"SWMTKN-1-{EMPTY_DIGEST}", f"SWMTKN-1-{EMPTY_DIGEST}-{SECRET}-x",
        f"SWMTKN-3-{EMPTY_DIGEST}-{SECRET}", f"SWMTKN-2-{EMPTY_DIGEST}-{SECRET}",
        f"SWMTKN-2-2-{EMPTY_DIGEST}-{SECRET}", f"swmtkn-1-{EMPTY_DIGEST}-{SECRET}",
        f"SWMTKN-1-{EMPTY_DIGEST}-{SECRET}0", f"SWMTKN-1-{EMPTY_DIGEST[1:]}-{SECRET}",
    ],
)  # fmt: skip
def test_malformed_tokens_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match="^invalid join token$"):
        JoinToken.parse(text)


@given(st.text(alphabet="SWMTKN-12abz09_ ", max_size=120))
def test_any_text_parses_to_itself_or_is_refused(text: str) -> None:
    try:
        token = JoinToken.parse(text)
    except BadInput:
        return
    assert str(token) == text


@given(st.text(min_size=50, max_size=50).filter(lambda t: "-" not in t))
def test_any_digest_part_gives_a_digest_or_a_refusal(digest: str) -> None:
    try:
        found = JoinToken.parse(f"SWMTKN-1-{digest}-{SECRET}").root_digest()
    except BadInput:
        return
    assert len(found) == 64


def test_digest_beyond_256_bits_is_refused() -> None:
    with pytest.raises(BadInput, match="not a digest"):
        JoinToken.parse(f"SWMTKN-1-{'z' * 50}-{SECRET}").root_digest()


def test_unlock_keys_round_trip() -> None:
    key = generate_unlock_key()
    text = format_unlock_key(key)
    assert (len(key), len(text)) == (32, len("SWMKEY-1-") + 43)
    assert parse_unlock_key(text) == key
    assert format_unlock_key(b"") == "SWMKEY-1-"


@pytest.mark.parametrize("text", ["", "SWMKEY-2-AAAA", "SWMKEY-1-AA==", "SWMKEY-1-*", "SWMKEY-1-A"])
def test_malformed_unlock_keys_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match="^invalid key string$"):
        parse_unlock_key(text)


@given(st.text(max_size=60))
def test_any_unlock_text_is_a_key_or_refused(text: str) -> None:
    with contextlib.suppress(BadInput):
        assert isinstance(parse_unlock_key("SWMKEY-1-" + text), bytes)
