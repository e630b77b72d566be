"""What the parts of the Control API work with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from procs.manager.ca.external import Externals
from procs.manager.members import Members
from procs.manager.store import Store
from swarm.clock import Clock
from swarm.errors import Unreachable

P = TypeVar("P", bound=Message)


class NoExternals:
    """No external CA can be reached."""

    async def reachable(self, urls: Sequence[str], root_pem: bytes) -> bool:  # noqa: ARG002  (Externals' signature)
        return False

    async def cross_sign(self, urls: Sequence[str], root_pem: bytes, new_root: bytes, new_key: bytes) -> bytes:  # noqa: ARG002
        raise Unreachable("no external CA can be reached")


class Ports:
    """Base of the parts: the store, who the managers are, and the time."""

    def __init__(
        self,
        store: Store,
        members: Members,
        clock: Clock,
        *,
        may_grow: bool = False,
        may_lock: bool = False,
        externals: Externals | None = None,
    ) -> None:
        """`may_grow`: the store's engine takes more than one manager. `may_lock`: the managers encrypt their keys
        when the cluster says autolock. `externals`: how external CAs are reached; None: nobody is."""
        self._store = store
        self._members = members
        self._clock = clock
        self._may_grow = may_grow
        self._may_lock = may_lock
        self._externals: Externals = externals or NoExternals()

    def _now(self) -> Timestamp:
        seconds, nanos = divmod(self._clock.wall_ns(), 1_000_000_000)
        return Timestamp(seconds=seconds, nanos=nanos)


def copied(message: P) -> P:
    """A copy that may be changed: what the store gives is shared."""
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
