"""The store: all objects in memory, written through an engine, followed by watchers (DESIGN §6).

One task commits. While one engine write is in flight, `update` calls queue; then all that wait run one after another
on the committed state plus each other's changes, and go to the engine as one batch (group commit). A callback that
raises is rolled back alone. Only after the engine has made the batch durable do the changes become the committed
state, are the watchers told, and do the `update` calls return.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from google.protobuf.message import DecodeError

from procs.manager.store.by import Selector
from procs.manager.store.engine import Clock as EngineClock
from procs.manager.store.engine import Engine, Operation
from procs.manager.store.errors import FenceLost, NotWritten, OutcomeUnknown, StoreClosed, StoreError, StoreFull
from procs.manager.store.tables import KINDS, KINDS_BY_NAME, M, Table, check_selectors
from procs.manager.store.transaction import SIDE, Layers, Tables, Tx, find_in, object_key
from procs.manager.store.watch import Commit, Watch
from swarm.clock import Clock
from swarm.errors import CorruptFile
from swarm.identity import new_id

T = TypeVar("T")

GROUP_OPERATIONS = 1000
"""A group takes no further transaction beyond this: it bounds how long the event loop is held."""
GROUP_BYTES = 1024 * 1024
"""The same for the bytes written. A single larger transaction is a group of its own."""

_log = logging.getLogger(__name__)


class _Waiting(Generic[T]):
    """An `update` call."""

    __slots__ = ("cause", "done", "error", "result", "write")

    def __init__(self, write: Callable[[Tx], T], cause: str, done: asyncio.Future[T]) -> None:
        self.write = write
        self.cause = cause
        self.done = done
        self.result: T | None = None
        self.error: Exception | None = None

    def run(self, tx: Tx) -> None:
        """Call the callback; what it raises is its caller's, and its changes are taken back."""
        try:
            self.result = self.write(tx)
            if asyncio.iscoroutine(self.result):
                self.result.close()
                raise TypeError("the callback of Store.update must not be a coroutine function")
        except Exception as error:  # noqa: BLE001 — delivered to whoever called update()
            self.error = error
            tx.rollback()

    def deliver(self, failure: BaseException | None) -> None:
        """Answer the caller, who may have gone meanwhile."""
        if self.done.done():
            return
        outcome = failure or self.error
        if outcome is not None:
            self.done.set_exception(outcome)
        else:
            self.done.set_result(self.result)  # type: ignore[arg-type]  # T itself may be None


class Store:
    """See the module. All calls come from one event loop."""

    def __init__(self, engine: Engine, clock: Clock, found: EngineClock, values: dict[str, bytes]) -> None:
        """Use `Store.open`."""
        self._engine = engine
        self._clock = clock
        self._found = found
        self._tables: Tables = {type_: Table() for type_ in KINDS}
        self._side: dict[str, bytes] = {}
        self._queue: deque[_Waiting[Any]] = deque()
        self._wake = asyncio.Event()
        self._watches: set[Watch] = set()
        self._failure: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self._committer: asyncio.Task[None] | None = None
        self._closed = False
        for key, value in values.items():
            self._load(key, value)

    @classmethod
    async def open(cls, engine: Engine, *, clock: Clock, leap: int = 0) -> Store:
        """Open the engine, win its leadership, read everything, and write the new term: from then on no other
        process that led before can write. `leap` is added to index and term (`engine.LEAP`).

        Raises what the engine raises (CorruptFile, Twin, StoreFull), the engine closed again.
        """
        try:
            await engine.open()
            await engine.campaign()
            found, values = await engine.read_all()
            store = cls(engine, clock, found, values)
            await store._persist([], EngineClock(found.index + 1 + leap, found.term + 1 + leap, new_id()))
        except BaseException:
            await engine.close()
            raise
        store._committer = asyncio.create_task(store._commit_forever(), name="store-commit")
        return store

    @property
    def index(self) -> int:
        """Index of the newest committed transaction."""
        return self._found.index

    @property
    def term(self) -> int:
        """The leadership under which this store writes."""
        return self._found.term

    # -- reading: the committed state --------------------------------------------------------------

    def get(self, kind: type[M], id: str) -> M | None:  # noqa: A002 — the contract's name
        """The object, which is shared and must not be changed: copy it first."""
        entry = self._tables[kind].entries.get(id)
        return None if entry is None else entry.object

    def find(self, kind: type[M], *selectors: Selector) -> list[M]:
        """Objects that all `selectors` select, in id order; shared, as in `get`. InvalidFind."""
        check_selectors(KINDS[kind], selectors)
        return find_in(self._tables[kind], None, set(), selectors)

    def count(self, kind: type[M]) -> int:
        """How many objects of a kind there are."""
        return len(self._tables[kind].entries)

    def side(self, name: str) -> bytes | None:
        """A side record (`Tx.put_side`)."""
        return self._side.get(name)

    def keys(self) -> Iterator[str]:
        """The engine's key of everything that is committed."""
        for type_, table in self._tables.items():
            yield from (object_key(KINDS[type_], id_) for id_ in table.entries)
        yield from (SIDE + name for name in self._side)

    def watch(self, *, limit: int = 100_000) -> Watch:
        """Commits from `async with` on; more than `limit` unread events end the stream with WatchOverflow."""
        return Watch(self._watches, limit)

    # -- writing -----------------------------------------------------------------------------------

    async def update(self, write: Callable[[Tx], T], *, cause: str = "") -> T:
        """Run `write` on the newest state and commit its changes; return what it returned, once that is durable and
        the watchers have it.

        `write` runs once, synchronously, after earlier queued ones, whose changes it sees. If it raises, its changes
        are dropped and the exception comes out here. One that changes nothing commits nothing. Engine failures:
        StoreFull and NotWritten (surely not committed, the store goes on), FenceLost (this process leads no more).
        """
        if self._failure.done():
            raise self._failure.result()
        if self._closed:
            raise StoreClosed
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(write, cause, done))
        self._wake.set()
        return await done

    async def failed(self) -> Exception:
        """Wait until the store cannot write any more, for whatever reason but `close`; returns that reason."""
        return await asyncio.shield(self._failure)

    async def close(self) -> None:
        """Finish the write in flight, refuse what waits with StoreClosed, end all watches, close the engine."""
        if not self._closed:
            self._closed = True
            self._wake.set()
            if self._committer is not None:
                await self._committer
            self._end(StoreClosed())
            await self._engine.close()

    # -- committing --------------------------------------------------------------------------------

    async def _commit_forever(self) -> None:
        """The only one who writes. Ends when the store is closed or cannot write any more."""
        try:
            while not self._closed:
                await self._wake.wait()
                self._wake.clear()
                while self._queue and not self._closed:
                    await self._commit_group()
        except Exception as error:  # noqa: BLE001 — kept, and given to every caller from now on
            _log.error("the store cannot write any more: %s", error, exc_info=not isinstance(error, FenceLost))
            self._failure.set_result(error)
            self._end(error if isinstance(error, StoreError) else StoreClosed())

    async def _commit_group(self) -> None:
        """Run what waits, up to a bound, and commit it."""
        layers = Layers(self._tables, self._side)
        group: list[tuple[_Waiting[Any], Tx]] = []
        index, operations, size = self._found.index, 0, 0
        while self._queue and operations < GROUP_OPERATIONS and size < GROUP_BYTES:
            waiting = self._queue.popleft()
            if waiting.done.done():
                continue
            tx = Tx(layers, index + 1, self._clock.wall_ns())
            waiting.run(tx)
            group.append((waiting, tx))
            if tx.operations:
                index += 1
                operations += len(tx.operations)
                size += tx.size
        failure: BaseException | None = None
        try:
            await self._write_group(group)
        except (StoreFull, NotWritten) as error:
            failure = error
        except BaseException as error:
            failure = error
            raise
        finally:
            # What changed nothing may have read what others before it in the group wrote: it shares their fate.
            for waiting, tx in group:
                needs = tx.index if tx.operations else tx.index - 1
                waiting.deliver(failure if needs > self._found.index else None)

    async def _write_group(self, group: list[tuple[_Waiting[Any], Tx]]) -> None:
        """Make the group durable, then visible: in one write, or, if there is no room for that, one by one, so that
        a large transaction does not take smaller ones before it along."""
        writers = [(waiting, tx) for waiting, tx in group if tx.operations]
        if not writers:
            return
        try:
            await self._write(writers)
        except StoreFull:
            if len(writers) == 1:
                raise
            for writer in writers:
                await self._write([writer])

    async def _write(self, writers: list[tuple[_Waiting[Any], Tx]]) -> None:
        operations: dict[str, Operation] = {}
        for _, tx in writers:
            operations.update(tx.operations)
        await self._persist(list(operations.values()), EngineClock(writers[-1][1].index, self._found.term, new_id()))
        for waiting, tx in writers:
            self._apply(tx, waiting.cause)

    async def _persist(self, operations: list[Operation], new: EngineClock) -> None:
        """One engine write; returns when it is durable, and raises when it surely is not there."""
        try:
            await self._engine.write(operations, self._found, new)
        except OutcomeUnknown as unknown:
            found = await self._engine.read_clock()
            if found == self._found:
                raise NotWritten(f"nothing was written: {unknown.message}", remedy=unknown.remedy) from unknown
            if found != new:
                raise FenceLost(f"the store's clock is {found}") from unknown
        self._found = new

    def _apply(self, tx: Tx, cause: str) -> None:
        """Take a durable transaction into the committed state and tell the watchers."""
        for type_, id_, entry in tx.changes:
            if entry is None:
                self._tables[type_].remove(id_)
            else:
                self._tables[type_].put(id_, entry)
        for key, value in tx.sides():
            if value is None:
                self._side.pop(key, None)
            else:
                self._side[key] = value
        if tx.events:
            commit = Commit(tx.index, tuple(tx.events), cause)
            for watch in tuple(self._watches):
                watch.push(commit)

    def _end(self, error: StoreError) -> None:
        for watch in tuple(self._watches):
            watch.end(error)
        while self._queue:
            self._queue.popleft().deliver(error)

    def _load(self, key: str, value: bytes) -> None:
        """Take one stored value into memory."""
        if key.startswith(SIDE):
            self._side[key[len(SIDE) :]] = value
            return
        _, _, rest = key.partition("/")
        name, _, id_ = rest.partition("/")
        kind = KINDS_BY_NAME.get(name)
        if kind is None or not id_:
            raise CorruptFile(
                key, "the store holds a key of no known kind", remedy="was it written by a newer version?"
            )
        try:
            obj = kind.type.FromString(value)
        except DecodeError as error:
            raise CorruptFile(key, f"not a {name}: {error}", remedy="restore the manager's directory") from error
        if obj.id != id_:
            raise CorruptFile(key, f"holds the {name} {obj.id!r}", remedy="restore the manager's directory")
        self._tables[kind.type].put(id_, kind.entry(obj))
