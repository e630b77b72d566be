"""Identifiers of swarm objects (reference node-and-ca §2.1)."""

from __future__ import annotations

import secrets

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
ID_LENGTH = 25
_ID_BYTES = 17

FIPS_PREFIX = "FIPS."
"""Of the id of a swarm that admits FIPS nodes only (reference node-and-ca §1.12)."""


def base36(number: int) -> str:
    """`number` (not negative) in base 36, lower case, without leading zeros ("0" for zero)."""
    digits: list[str] = []
    while number:
        number, digit = divmod(number, 36)
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits)) or "0"


def id_from_bytes(raw: bytes) -> str:
    """The 25-character id that SwarmKit makes of 17 random bytes: top bit forced, base 36, first and last digit cut."""
    if len(raw) != _ID_BYTES:
        raise ValueError(f"an id is made of {_ID_BYTES} bytes, got {len(raw)}")
    return base36(int.from_bytes(bytes([raw[0] | 0x80]) + raw[1:], "big"))[1 : 1 + ID_LENGTH]


def new_id() -> str:
    """A fresh random id, 25 characters of `[0-9a-z]`."""
    return id_from_bytes(secrets.token_bytes(_ID_BYTES))
