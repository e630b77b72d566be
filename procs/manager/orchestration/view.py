"""What a brain may know: the objects of the store at one moment, and the time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from procs.manager.store.by import Selector
from procs.manager.store.tables import M

NS = 1_000_000_000
"""Nanoseconds a second."""


class View(Protocol):
    """The reading half of a store or of a transaction. Objects are shared: never change one."""

    def get(self, kind: type[M], id_: str, /) -> M | None:
        """The object, or None."""
        ...

    def find(self, kind: type[M], *selectors: Selector) -> list[M]:
        """Objects that all selectors select, in id order."""
        ...


@dataclass(frozen=True, slots=True)
class Now:
    """One moment on both clocks."""

    monotonic: float
    """Seconds; for delays."""
    wall_ns: int
    """Since the epoch; for what is stored."""


def timestamp(wall_ns: int) -> Timestamp:
    """Nanoseconds since the epoch as the wire has them."""
    return Timestamp(seconds=wall_ns // NS, nanos=wall_ns % NS)


def nanoseconds(time: Timestamp | Duration) -> int:
    """The reverse of `timestamp`; an absent message counts as 0."""
    return time.seconds * NS + time.nanos
