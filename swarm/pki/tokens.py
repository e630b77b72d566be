"""Join tokens and unlock keys in printable form (reference/node-and-ca §2.2, §2.3)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from dataclasses import dataclass, field
from typing import Self

from swarm.errors import BadInput
from swarm.identity import base36

_PREFIX = "SWMTKN"
_DIGEST_LENGTH = 50
_SECRET_LENGTH = 25
_SECRET_BYTES = 16
_KEY_PREFIX = "SWMKEY-1-"
UNLOCK_KEY_BYTES = 32


@dataclass(frozen=True)
class JoinToken:
    """`SWMTKN-1-<digest>-<secret>`, or `SWMTKN-2-<fips>-<digest>-<secret>`. The secret is a bearer secret."""

    digest: str
    """SHA-256 of the root bundle in base 36, 50 characters."""
    secret: str = field(repr=False)
    """25 characters."""
    version: int = 1
    fips: bool = False
    """Whether the swarm admits FIPS nodes only (version 2)."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises BadInput `invalid join token`, or says that the digest cannot be one."""
        parts = text.split("-")
        match parts:
            case ["SWMTKN", "1", digest, secret]:
                token = cls(digest, secret)
            case ["SWMTKN", "2", "0" | "1" as fips, digest, secret]:
                token = cls(digest, secret, version=2, fips=fips == "1")
            case _:
                raise _invalid()
        if len(token.digest) != _DIGEST_LENGTH or len(token.secret) != _SECRET_LENGTH:
            raise _invalid()
        return token

    def __str__(self) -> str:
        middle = "" if self.version == 1 else f"{int(self.fips)}-"
        return f"{_PREFIX}-{self.version}-{middle}{self.digest}-{self.secret}"

    def root_digest(self) -> str:
        """SHA-256 (hex) that the root bundle must have. Raises BadInput for what no digest can be."""
        try:
            if "_" in self.digest:
                raise ValueError("underscore")
            return int(self.digest, 36).to_bytes(32, "big").hex()
        except (ValueError, OverflowError) as error:
            raise BadInput(
                "join token: its digest part is not a digest", remedy="copy the whole token from `join-token`"
            ) from error


def generate_join_token(root_pem: bytes, fips: bool = False) -> str:
    """A fresh token that pins exactly these bytes of root bundle."""
    digest = base36(int.from_bytes(hashlib.sha256(root_pem).digest(), "big")).rjust(_DIGEST_LENGTH, "0")
    secret = base36(int.from_bytes(secrets.token_bytes(_SECRET_BYTES), "big")).rjust(_SECRET_LENGTH, "0")
    return str(JoinToken(digest, secret, version=2 if fips else 1, fips=fips))


def generate_unlock_key() -> bytes:
    """A fresh raw unlock key."""
    return secrets.token_bytes(UNLOCK_KEY_BYTES)


def format_unlock_key(key: bytes) -> str:
    """The printable form; of no key, just the prefix."""
    return _KEY_PREFIX + base64.b64encode(key).decode().rstrip("=")


def parse_unlock_key(text: str) -> bytes:
    """The raw key. Raises BadInput `invalid key string`."""
    encoded = text.removeprefix(_KEY_PREFIX)
    try:
        if encoded == text or "=" in encoded:
            raise ValueError(text)
        return base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (ValueError, binascii.Error) as error:
        raise BadInput("invalid key string", remedy=f"an unlock key starts with {_KEY_PREFIX}") from error


def _invalid() -> BadInput:
    return BadInput("invalid join token", remedy="copy the whole token, from SWMTKN to its last character")
