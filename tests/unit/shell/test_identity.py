"""Ids as SwarmKit makes them."""

from __future__ import annotations

import re

import pytest

from swarm.identity import id_from_bytes, new_id


def test_a_thousand_ids_are_25_characters_each_and_none_is_the_same() -> None:
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(re.fullmatch("[0-9a-z]{25}", found) for found in ids)


@pytest.mark.parametrize("raw", [bytes(17), b"\xff" * 17, b"\x80" + bytes(16), b"\x7f" + b"\xff" * 16])
def test_the_extremes_are_as_long_as_the_others(raw: bytes) -> None:
    assert re.fullmatch("[0-9a-z]{25}", id_from_bytes(raw))


@pytest.mark.parametrize("length", [0, 16, 18])
def test_an_id_is_made_of_17_bytes(length: int) -> None:
    with pytest.raises(ValueError, match="made of 17 bytes"):
        id_from_bytes(bytes(length))
