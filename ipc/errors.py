"""Every error that the bus raises on purpose, as one tree.

    BusError
    ├── Refused          a publisher asked for what it may not do (wrong owner, unknown topic, body that does not fit)
    ├── BadFrame         what arrived cannot be used; never leaves the bus: it is counted, logged and dropped
    └── Closed           the bus was closed while somebody waited on it

`ipc` imports nothing of `swarm`, hence a tree of its own.
"""

from __future__ import annotations

from enum import StrEnum


class BusError(Exception):
    """Base of the tree."""


class Refused(BusError):
    """A publisher or subscriber asked for what it may not have; a mistake in the calling code."""


class Closed(BusError):
    """The bus was closed meanwhile."""


class Reason(StrEnum):
    """Why a message was dropped; `dropped_<reason>` is the name of its counter."""

    FRAMES = "frames"
    """Not the two frames that a message has."""
    OVERSIZED = "oversized"
    UNDECODABLE = "undecodable"
    """Not msgpack, or not a map."""
    VERSION = "version"
    """An envelope of another schema version."""
    ENVELOPE = "envelope"
    """A field of the envelope is missing or of a wrong type."""
    TOPIC = "topic"
    """No such topic, or not the one that its topic frame names."""
    OWNER = "owner"
    """Published by a process that does not own the topic."""
    BODY = "body"
    """The body does not fit the topic's type."""
    STALE = "stale"
    """Not newer than what is held: an older epoch, or the same epoch and no greater seq. Harmless, never logged
    above debug level: each resend for one subscriber reaches the others too."""


class BadFrame(BusError):
    """A message that cannot be used."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason
