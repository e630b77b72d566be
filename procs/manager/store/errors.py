"""How the store refuses. The texts are SwarmKit's (reference manager §2.2, §2.3, §2.8): clients match them by text.

SwarmvisorError
└── StoreError           an RPC that meets one ends with code UNKNOWN and this text
    ├── AlreadyExists    the id is taken
    ├── NotExist
    ├── NameConflict     the name (any case) is taken
    ├── OutOfSequence    the caller's version is not the stored one
    ├── InvalidFind      this kind of object has no such selector
    ├── TooLarge         one transaction changes more than an engine takes
    ├── StoreFull        no room on the disk; nothing was written, nothing acknowledged is lost
    ├── NotWritten       the engine could not write, and surely did not
    ├── OutcomeUnknown   the engine cannot say whether it wrote (the store finds out by reading the clock)
    ├── FenceLost        somebody else wrote since: this process does not lead any more
    ├── WatchOverflow    a watcher read too slowly; it must look at everything again
    └── StoreClosed
"""

from __future__ import annotations

from swarm.errors import SwarmvisorError


class StoreError(SwarmvisorError):
    """Base of what the store raises on purpose."""


class AlreadyExists(StoreError):
    """An object with this id is there."""

    def __init__(self) -> None:
        super().__init__("object already exists")


class NotExist(StoreError):
    """No object with this id is there."""

    def __init__(self) -> None:
        super().__init__("object does not exist")


class NameConflict(StoreError):
    """Another object of the kind has this name, in any case of letters."""

    def __init__(self) -> None:
        super().__init__("name conflicts with an existing object")


class OutOfSequence(StoreError):
    """The object was changed since the caller read it."""

    def __init__(self) -> None:
        super().__init__("update out of sequence")


class InvalidFind(StoreError):
    """The kind has no such index."""

    def __init__(self) -> None:
        super().__init__("invalid find argument type")


class TooLarge(StoreError):
    """One transaction is larger than what an engine writes at once."""

    def __init__(self) -> None:
        super().__init__("raft: raft message is too large and can't be sent")


class StoreFull(StoreError):
    """No room left on the disk of the store. Nothing of the write is there; the store stays usable."""


class NotWritten(StoreError):
    """The engine refused or failed before anything was durable."""


class OutcomeUnknown(StoreError):
    """The engine failed in the middle of a commit: read the clock to learn whether the write is there."""


class FenceLost(StoreError):
    """The clock is not what this process left: another process leads."""

    def __init__(self, why: str = "") -> None:
        super().__init__("raft: failed to process the request: node lost leader status", remedy=why)


class WatchOverflow(StoreError):
    """More events waited for a watcher than its limit."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"watcher fell more than {limit} events behind and was cut off",
            remedy="read everything again and watch from there",
        )


class StoreClosed(StoreError):
    """The store does not take writes any more."""

    def __init__(self) -> None:
        super().__init__("the store is closed")
