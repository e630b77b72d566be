"""Values at rest."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from procs.manager.store.engine import UNBORN, Clock, Put
from procs.manager.store.sealing import CannotUnseal, SealedEngine, Sealer, Unsealed, key_id, new_data_key
from procs.manager.store.sqlite import SqliteEngine

OLD, NEW = bytes(range(32)), bytes(range(32, 64))
SEALER = Sealer("cluster", OLD)
SEALED = SEALER.seal("/secret/a", b"the payload", 7)


def test_the_layout_is_version_key_id_index_nonce_ciphertext() -> None:
    assert SEALED[0] == 1
    assert SEALED[1:9] == key_id(OLD)
    assert int.from_bytes(SEALED[9:17], "big") == 7
    assert len(SEALED) == 1 + 8 + 8 + 12 + len(b"the payload") + 16
    assert b"payload" not in SEALED


def test_what_was_sealed_opens_with_its_index() -> None:
    assert SEALER.unseal("/secret/a", SEALED) == Unsealed(b"the payload", 7)


def test_equal_values_do_not_look_equal() -> None:
    assert SEALER.seal("/secret/a", b"x", 7) != SEALER.seal("/secret/a", b"x", 7)


def test_both_data_keys_open_and_only_the_current_seals() -> None:
    turning = Sealer("cluster", NEW, [OLD])
    assert turning.unseal("/secret/a", SEALED).value == b"the payload"
    assert turning.seal("/a", b"", 1)[1:9] == key_id(NEW)


def test_after_a_turn_the_old_key_opens_until_it_is_forgotten() -> None:
    sealer = Sealer("cluster", OLD)
    sealer.turn(NEW)
    assert sealer.seal("/a", b"", 1)[1:9] == key_id(NEW)
    assert sealer.unseal("/secret/a", SEALED).value == b"the payload"
    sealer.forget_others()
    with pytest.raises(CannotUnseal, match=key_id(OLD).hex()):
        sealer.unseal("/secret/a", SEALED)


async def test_a_write_that_was_sealed_before_the_turn_is_not_forgotten(tmp_path: Path) -> None:
    engine = SealedEngine(SqliteEngine(tmp_path / "store.db"), Sealer("cluster", OLD))
    await engine.open()
    try:
        writing = asyncio.create_task(engine.write([Put("/task/a", b"1", 1)], UNBORN, Clock(1, 1, "a")))
        await asyncio.sleep(0)  # under way
        engine.turn(NEW, [])
        await writing
        assert engine.stale(10) == ["/task/a"]
        with pytest.raises(ValueError, match="1 values may be sealed with the old data key"):
            engine.forget_old()
        await engine.write([Put("/task/a", b"1", 2)], Clock(1, 1, "a"), Clock(2, 1, "b"))
        assert engine.stale(10) == []
        engine.forget_old()
        assert (await engine.read_all())[1] == {"/task/a": b"1"}
    finally:
        await engine.close()


@pytest.mark.parametrize(
    ("sealer", "key"),
    [(SEALER, "/secret/b"), (Sealer("other cluster", OLD), "/secret/a")],
    ids=["moved-to-another-key", "from-another-swarm"],
)
def test_a_value_cannot_be_moved(sealer: Sealer, key: str) -> None:
    with pytest.raises(CannotUnseal, match="taken from another swarm or place"):
        sealer.unseal(key, SEALED)


@pytest.mark.parametrize("position", [9, 16, 17, 28, 29, -1], ids=str)
def test_no_byte_can_be_changed(position: int) -> None:
    changed = bytearray(SEALED)
    changed[position] ^= 1
    with pytest.raises(CannotUnseal, match="changed since it was sealed"):
        SEALER.unseal("/secret/a", bytes(changed))


def test_an_unknown_data_key_is_named_with_the_remedy() -> None:
    with pytest.raises(CannotUnseal, match=key_id(OLD).hex()) as refusal:
        Sealer("cluster", NEW).unseal("/secret/a", SEALED)
    assert "swarm-node.key" in refusal.value.describe()


@pytest.mark.parametrize("sealed", [b"", b"\x01", SEALED[:44]], ids=["empty", "one-byte", "cut"])
def test_a_value_that_is_too_short_is_refused(sealed: bytes) -> None:
    with pytest.raises(CannotUnseal, match="not a sealed value"):
        SEALER.unseal("/secret/a", sealed)


def test_another_format_is_refused() -> None:
    with pytest.raises(CannotUnseal, match="sealed in format 2"):
        SEALER.unseal("/secret/a", b"\x02" + SEALED[1:])


def test_data_keys_are_random_and_of_the_right_length() -> None:
    assert new_data_key() != new_data_key()
    with pytest.raises(ValueError, match="has 32 bytes, got 16"):
        Sealer("cluster", bytes(16))
