"""What an engine of the store must do: the whole contract. One conformance suite for all: tests/unit/store/conformance.

An engine keeps a flat map of keys to byte values beside one *clock*, and changes both together or not at all.

Promises asked of every engine:

1. `write` compares the clock with `expected` and, if equal, applies the whole batch and sets the clock to `new`,
   atomically and durably (it survives SIGKILL and a power cut once `write` has returned). Else FenceLost, nothing done.
2. A failed write says which of three it was: surely not there (StoreFull, NotWritten, FenceLost), or OutcomeUnknown;
   then `read_clock` decides: `new` is there ⇒ committed.
3. `read_all` is one consistent state with the clock that belongs to it.
4. `watch(after)` yields every write with a clock index above `after` exactly once, whole and in order; Compacted if
   the engine no longer knows them all.
5. Nothing is overwritten or repaired when what lies on disk cannot be read: CorruptFile, naming file and remedy.

Errors: `procs.manager.store.errors` and `swarm.errors.CorruptFile`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from procs.manager.store.errors import StoreError


@dataclass(frozen=True, slots=True)
class Clock:
    """The one key `/clock`: fences a deposed leader, orders everything, decides unknown outcomes (DESIGN §6)."""

    index: int
    """Grows with every transaction, never back; becomes `meta.version.index`."""
    term: int
    """Grows by one with each leadership."""
    transaction: str
    """Id of the write that set this clock; a random one for each write."""


UNBORN = Clock(index=0, term=0, transaction="")
"""The clock of a store nobody has written to."""


@dataclass(frozen=True, slots=True)
class Put:
    """Set `key`. `index` is the transaction's own (a write may group several transactions)."""

    key: str
    value: bytes
    index: int


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove `key`; removing what is not there is no error."""

    key: str


Operation = Put | Delete


@dataclass(frozen=True, slots=True)
class Revision:
    """One write, as a watcher sees it. At most one operation a key."""

    clock: Clock
    operations: tuple[Operation, ...]


@dataclass(frozen=True, slots=True)
class EngineMember:
    """A member of the engine's own cluster."""

    name: str
    """The node id of the manager that runs it."""
    addr: str
    learner: bool = False


LEAP = 2**32
"""By how much index and term grow when a store becomes another future of the same swarm (restored, or made the only one
by force): nothing that the past's other managers wrote meanwhile can pass for newer (DESIGN §6)."""


class Compacted(StoreError):
    """The engine does not know all writes since the index asked for; read everything instead."""

    def __init__(self) -> None:
        super().__init__("requested index is unavailable due to compaction")


class Engine(Protocol):
    """See the module's promises. Calls of one engine come from one event loop; one write is in flight at a time."""

    async def open(self) -> None:
        """Open what is on disk, or make it if there is nothing. CorruptFile, Twin (another process holds it)."""
        ...

    async def close(self) -> None:
        """Give up leadership and let go of everything. May be called after a failed `open`, and twice."""
        ...

    async def read_all(self) -> tuple[Clock, dict[str, bytes]]:
        """Everything, at one clock."""
        ...

    async def read_clock(self) -> Clock:
        """The newest clock, linearizable."""
        ...

    async def write(self, batch: Sequence[Operation], expected: Clock, new: Clock) -> None:
        """Promises 1 and 2. At most one operation a key."""
        ...

    def watch(self, after: int) -> AsyncIterator[Revision]:
        """Promise 4. Registered by the time this returns; ends with StoreClosed when the engine is closed."""
        ...

    async def campaign(self) -> None:
        """Return when this process holds the leadership. Taking over is always safe: the fence protects the data."""
        ...

    async def lost(self) -> str:
        """Return, saying why, when the leadership is no longer held."""
        ...

    async def members(self) -> list[EngineMember]:
        """Who takes part."""
        ...

    async def add_member(self, member: EngineMember) -> None:
        """Refused where the engine has one member only."""
        ...

    async def remove_member(self, name: str) -> None:
        """Refused where the engine has one member only."""
        ...


@runtime_checkable
class Scrubbing(Protocol):
    """What an engine can do besides whose disk keeps values that were replaced."""

    async def scrub(self) -> None:
        """Rewrite what lies on disk, so that no replaced or deleted value is in it any more. Waits for the write in
        flight, and the next one for it. StoreFull, NotWritten: nothing is lost, it may be tried again."""
        ...
