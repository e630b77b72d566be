"""`certificates/.joining`: how far a join has come, so that a killed one goes on as the same node (DESIGN §5).

Written before the first request, with key and CSR; again when the swarm has said the node's id; removed when the
certificate is on disk. Our managers answer the same CSR with the same node; with any manager a known node id needs no
second request. Read by the renewer only.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from swarm.errors import CorruptFile, SwarmvisorError
from swarm.files import write_atomic

VERSION = 1
LONGEST = 64 * 1024
"""Bytes; a real one has 800."""
_REMEDY = (
    "remove it to join as a new node (the swarm may keep the old one: `swarmvisor node rm`), "
    "or `swarmvisor leave --force`"
)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NODE_ID = re.compile(r"[0-9a-z]{0,64}")


class Trouble(StrEnum):
    """The kinds of errors of a join: what the command line's exit code, and its advice, go by."""

    OTHER = ""
    TOKEN = "token"
    """The token is no token."""
    DIGEST = "digest"
    """The swarm's root is not the one that the token names."""
    REFUSED = "refused"
    """The swarm does not take this token, or this node."""
    UNREACHABLE = "unreachable"
    """No manager answers at the address."""
    OTHER_SWARM = "other swarm"
    """Who answers there does not belong to the swarm of the token (or of the root on disk)."""
    CLOCK = "clock"
    """By this machine's clock a certificate is not valid."""
    UNSIGNED = "unsigned"
    """The managers took the request, and the swarm's CA cannot sign it now."""
    FIPS = "fips"
    """The swarm takes FIPS nodes only, or the other way round."""

    @property
    def hopeless(self) -> bool:
        """Whether only the operator can change it: trying again as it is will not do."""
        return self in (Trouble.TOKEN, Trouble.DIGEST, Trouble.REFUSED, Trouble.OTHER_SWARM, Trouble.FIPS)


class NoCertificate(SwarmvisorError):
    """A node that is a member asked for a new certificate, and got none."""

    def __init__(self, trouble: Trouble, message: str, *, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.trouble = trouble


class JoinFailed(SwarmvisorError):
    """One try to join did not work."""

    def __init__(self, trouble: Trouble, message: str, *, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.trouble = trouble


@dataclass(frozen=True)
class Joining:
    """A join under way."""

    key_pem: str = field(repr=False)
    """Plain PKCS#8."""
    csr_pem: str
    root_digest: str
    """SHA-256 (hex) of the root bundle: a join to another swarm does not use this."""
    node_id: str = ""
    """What the swarm answered; empty: nothing yet."""


def load_joining(path: Path) -> Joining | None:
    """What `path` says; None if there is none. Raises CorruptFile, and changes nothing."""
    try:
        with path.open("rb") as source:
            raw = source.read(LONGEST + 1)
    except FileNotFoundError:
        return None
    if len(raw) > LONGEST:
        raise CorruptFile(path, "is too long", remedy=_REMEDY)
    try:
        said: Any = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CorruptFile(path, f"not JSON: {error}", remedy=_REMEDY) from error
    if not isinstance(said, dict) or said.get("version") != VERSION:
        raise CorruptFile(path, f"is not version {VERSION} of the record of a join", remedy=_REMEDY)
    names = [f.name for f in fields(Joining)]
    if not all(isinstance(said.get(name), str) for name in names):
        raise CorruptFile(path, f"lacks one of {', '.join(names)}", remedy=_REMEDY)
    found = Joining(**{name: said[name] for name in names})
    if not _DIGEST.fullmatch(found.root_digest) or not _NODE_ID.fullmatch(found.node_id):
        raise CorruptFile(path, "names no digest, or a node id that is none", remedy=_REMEDY)
    return found


def save_joining(path: Path, joining: Joining) -> None:
    """Write it durably, 0600: it holds a key."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    write_atomic(path, json.dumps({"version": VERSION, **asdict(joining)}).encode(), mode=0o600)
