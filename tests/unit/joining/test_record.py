"""`.joining` and `node-state.json`: what comes back is what was written, or a clear error; never a traceback."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarm.errors import CorruptFile
from swarm.joining import LONGEST, Joining, Trouble, load_joining, save_joining
from swarm.nodestate import NodeState, load_node_state, save_node_state

DIGEST = "0123456789abcdef" * 4
RECORD = Joining("the key", "the request", DIGEST, "node1")
FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

texts = st.text(max_size=200)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)


@given(texts, texts, st.sampled_from(["", "a1", "z" * 25]))
@FUZZ
def test_what_was_saved_is_loaded(tmp_path: Path, key: str, csr: str, node_id: str) -> None:
    path = tmp_path / "certificates" / ".joining"
    made = Joining(key, csr, DIGEST, node_id)
    save_joining(path, made)
    assert load_joining(path) == made
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_no_record_is_no_join_under_way(tmp_path: Path) -> None:
    assert load_joining(tmp_path / ".joining") is None
    assert load_node_state(tmp_path / "node-state.json") is None


def test_the_key_is_not_in_what_is_logged() -> None:
    assert "the key" not in repr(RECORD)


def check(path: Path, raw: bytes) -> None:
    path.write_bytes(raw)
    try:
        found = load_joining(path)
    except CorruptFile as error:
        assert ".joining" in error.describe()
        assert "swarmvisor leave --force" in error.remedy
    else:
        assert isinstance(found, Joining)
    assert path.read_bytes() == raw


@given(st.binary(max_size=300))
@FUZZ
def test_any_bytes_are_a_record_or_a_clear_error(tmp_path: Path, raw: bytes) -> None:
    check(tmp_path / ".joining", raw)


@given(st.dictionaries(st.sampled_from(["version", "key_pem", "csr_pem", "root_digest", "node_id"]), json_values))
@FUZZ
def test_any_json_is_a_record_or_a_clear_error(tmp_path: Path, fields: dict[str, object]) -> None:
    check(tmp_path / ".joining", json.dumps(fields).encode())


@given(st.integers(0, 400), st.integers(0, 255))
@FUZZ
def test_a_record_with_one_byte_changed_is_a_record_or_a_clear_error(tmp_path: Path, where: int, byte: int) -> None:
    save_joining(tmp_path / ".joining", RECORD)
    raw = bytearray((tmp_path / ".joining").read_bytes())
    raw[where % len(raw)] = byte
    check(tmp_path / ".joining", bytes(raw))


@pytest.mark.parametrize("raw", [b"[" * 50_000, b"{" * 50_000, b" " * (LONGEST + 1), b"1" * 5000])
def test_a_record_that_is_made_to_hurt_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / ".joining").write_bytes(raw)
    with pytest.raises(CorruptFile):
        load_joining(tmp_path / ".joining")


def test_troubles_that_time_may_mend_are_tried_again() -> None:
    passing = {Trouble.OTHER, Trouble.UNREACHABLE, Trouble.CLOCK, Trouble.UNSIGNED}
    assert {t for t in Trouble if not t.hopeless} == passing


@given(st.builds(NodeState, texts, texts, texts, st.integers(0, 2**40), st.integers(0, 65535)))
@FUZZ
def test_the_last_words_are_kept(tmp_path: Path, state: NodeState) -> None:
    save_node_state(tmp_path / "node-state.json", state)
    assert load_node_state(tmp_path / "node-state.json") == state


@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
@FUZZ
def test_any_last_words_are_words_or_a_clear_error(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "node-state.json"
    path.write_bytes(raw)
    try:
        assert isinstance(load_node_state(path), NodeState)
    except CorruptFile as error:
        assert error.remedy
