"""The engine of a swarm with one manager: one SQLite file (DESIGN §6).

WAL with `synchronous=FULL`: a commit is an append and one fsync. All calls run in one thread of their own. The file is
born under another name and renamed when it is whole, so an empty or cut file is damage, never a beginning; it is
checked through a read-only connection before it is opened for writing, since even closing a writing one would change
it. `locking_mode=EXCLUSIVE` keeps the WAL's index in our memory: no mapped file that a full disk turns into SIGBUS.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from procs.manager.store.engine import Clock, Compacted, Delete, EngineMember, Operation, Put, Revision
from procs.manager.store.errors import FenceLost, NotWritten, OutcomeUnknown, StoreClosed, StoreError, StoreFull
from swarm.errors import CorruptFile, Refused, Twin
from swarm.files import fsync_directory

R = TypeVar("R")

APPLICATION_ID = 0x5357_5653
"""`SWVS`, in the file's header."""
SCHEMA = 1
"""`user_version` of the file."""
WATCH_LIMIT = 10_000
"""Writes that may wait for a watcher."""

_REMEDY = (
    "nothing was changed; restore the file from a backup, or move the manager's directory away"
    " and let this node join the swarm again or start a new one"
)
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT})
_PRIMARY = 0xFF
"""Mask of SQLite's primary result code in an extended one."""


class SqliteEngine:
    """`Engine` over the SQLite file at `path`, whose directory is made if it is missing."""

    def __init__(self, path: Path, *, node_id: str = "") -> None:
        self._path = path
        self._node_id = node_id
        self._thread: ThreadPoolExecutor | None = None
        self._database: sqlite3.Connection | None = None
        self._lock: int | None = None
        self._watchers: set[asyncio.Queue[Revision | None]] = set()
        self._index = 0

    # -- life --------------------------------------------------------------------------------------

    async def open(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        await self._call(self._open)

    async def close(self) -> None:
        for watcher in tuple(self._watchers):
            watcher.put_nowait(None)
        thread = self._thread
        if thread is not None:
            await self._call(self._close)
            self._thread = None
            thread.shutdown()

    # -- data --------------------------------------------------------------------------------------

    async def read_all(self) -> tuple[Clock, dict[str, bytes]]:
        return await self._call(self._read_all)

    async def read_clock(self) -> Clock:
        return await self._call(self._read_clock)

    async def write(self, batch: Sequence[Operation], expected: Clock, new: Clock) -> None:
        await self._call(lambda: self._write(batch, expected, new))
        self._index = new.index
        if self._watchers:
            revision = Revision(new, tuple(batch))
            for watcher in tuple(self._watchers):
                watcher.put_nowait(revision if watcher.qsize() < WATCH_LIMIT else None)

    def watch(self, after: int) -> AsyncIterator[Revision]:
        """Only from the newest write on: an engine with one reader keeps no history."""
        if after < self._index:
            raise Compacted
        queue: asyncio.Queue[Revision | None] = asyncio.Queue()
        self._watchers.add(queue)
        return self._follow(queue)

    async def _follow(self, queue: asyncio.Queue[Revision | None]) -> AsyncIterator[Revision]:
        try:
            while (revision := await queue.get()) is not None:
                yield revision
            raise StoreClosed
        finally:
            self._watchers.discard(queue)

    async def scrub(self) -> None:
        """See `Scrubbing`."""
        await self._call(self._scrub)

    # -- leadership and members: who holds the file leads, alone -----------------------------------

    async def campaign(self) -> None:
        """Won by `open`, which holds the file's lock."""

    async def lost(self) -> str:
        """The lock lasts as long as this process."""
        never: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        return await never

    async def members(self) -> list[EngineMember]:
        return [EngineMember(name=self._node_id, addr="")]

    async def add_member(self, member: EngineMember) -> None:
        raise Refused(
            f"manager {member.name} cannot join: this swarm's store is a SQLite file, which has one manager",
            remedy="keep it a worker",
        )

    async def remove_member(self, name: str) -> None:
        raise Refused(f"manager {name} cannot be removed: a SQLite store has exactly one manager")

    # -- in the thread -----------------------------------------------------------------------------

    async def _call(self, work: Callable[[], R]) -> R:
        if self._thread is None:
            raise StoreClosed
        # Shielded: a caller that is cancelled must not leave the outcome of a write unobserved half way.
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, work))

    def _open(self) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Twin(f"{self._path}: another process holds this store", remedy="stop that manager first") from error
        try:
            if self._path.exists():
                self._check()
            else:
                self._create()
            self._database = _connect(self._path)
            self._index = self._read_clock().index
        except sqlite3.Error as error:
            raise self._failure(error) from error

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _create(self) -> None:
        """Make the file whole under another name, then rename it."""
        log = Path(f"{self._path}-wal")
        if log.exists():  # SQLite would play it into the new file
            raise CorruptFile(self._path, f"the file is missing, but its log {log.name} is there", remedy=_REMEDY)
        newborn = Path(f"{self._path}.new")
        for leftover in (newborn, Path(f"{newborn}-wal")):
            leftover.unlink(missing_ok=True)
        os.close(os.open(newborn, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        database = _connect(newborn)
        try:
            database.execute(f"PRAGMA application_id={APPLICATION_ID}")
            database.execute(f"PRAGMA user_version={SCHEMA}")
            database.execute("CREATE TABLE entries (key TEXT PRIMARY KEY, value BLOB NOT NULL)")
            database.execute(
                "CREATE TABLE clock (one INTEGER PRIMARY KEY CHECK (one = 1), number INTEGER NOT NULL,"
                " term INTEGER NOT NULL, transaction_id TEXT NOT NULL)"
            )
            database.execute("INSERT INTO clock VALUES (1, 0, 0, '')")
        finally:
            database.close()
        os.rename(newborn, self._path)
        fsync_directory(self._path.parent)

    def _check(self) -> None:
        """CorruptFile unless the file is a sound store of ours. Writes nothing to it."""
        if self._path.stat().st_size == 0:
            raise CorruptFile(self._path, "the file is empty", remedy=_REMEDY)
        uri = f"{self._path.absolute().as_uri()}?mode=ro"
        database = sqlite3.connect(uri, uri=True, isolation_level=None)
        try:
            application = database.execute("PRAGMA application_id").fetchone()[0]
            if application != APPLICATION_ID:
                raise CorruptFile(self._path, "a SQLite file, but not a store of a manager", remedy=_REMEDY)
            schema = database.execute("PRAGMA user_version").fetchone()[0]
            if schema != SCHEMA:
                raise CorruptFile(
                    self._path,
                    f"its schema is {schema}, this version reads {SCHEMA}",
                    remedy="run the version that wrote it",
                )
            verdict = database.execute("PRAGMA quick_check(1)").fetchone()[0]
            if verdict != "ok":
                raise CorruptFile(self._path, f"the file is damaged: {verdict}", remedy=_REMEDY)
        finally:
            database.close()

    def _open_database(self) -> sqlite3.Connection:
        if self._database is None:
            raise StoreClosed
        return self._database

    def _read_clock(self) -> Clock:
        row = self._open_database().execute("SELECT number, term, transaction_id FROM clock").fetchone()
        if row is None:
            raise CorruptFile(self._path, "it has no clock", remedy=_REMEDY)
        return Clock(*row)

    def _read_all(self) -> tuple[Clock, dict[str, bytes]]:
        database = self._open_database()
        try:
            database.execute("BEGIN")
            try:
                clock = self._read_clock()
                return clock, dict(database.execute("SELECT key, value FROM entries").fetchall())
            finally:
                database.execute("COMMIT")
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", None) is None:
                # Not SQLite's error but its Python module's: a key is no text any more, which quick_check lets pass.
                raise CorruptFile(self._path, f"the file is damaged: {error}", remedy=_REMEDY) from error
            raise self._failure(error) from error

    def _write(self, batch: Sequence[Operation], expected: Clock, new: Clock) -> None:
        database = self._open_database()
        committing = False
        try:
            database.execute("BEGIN IMMEDIATE")
            moved = database.execute(
                "UPDATE clock SET number=?, term=?, transaction_id=? WHERE number=? AND term=? AND transaction_id=?",
                (new.index, new.term, new.transaction, expected.index, expected.term, expected.transaction),
            )
            if moved.rowcount != 1:
                raise FenceLost(f"the clock of {self._path} is {self._read_clock()}, not {expected}")
            database.executemany(
                "INSERT INTO entries VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value=excluded.value",
                [(operation.key, operation.value) for operation in batch if isinstance(operation, Put)],
            )
            database.executemany(
                "DELETE FROM entries WHERE key=?",
                [(operation.key,) for operation in batch if isinstance(operation, Delete)],
            )
            committing = True
            database.execute("COMMIT")
        except (sqlite3.Error, FenceLost) as error:
            if database.in_transaction:
                database.execute("ROLLBACK")
            if isinstance(error, FenceLost):
                raise
            raise self._failure(error, committing=committing) from error

    def _scrub(self) -> None:
        """Pages that were freed keep what was on them: the file is written anew, and its log cut to nothing."""
        try:
            database = self._open_database()
            database.execute("VACUUM")
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            raise self._failure(error) from error

    def _failure(self, error: sqlite3.Error, *, committing: bool = False) -> StoreError | CorruptFile:
        """What SQLite's error means to whoever asked for the work."""
        code = getattr(error, "sqlite_errorcode", 0) & _PRIMARY
        if code in _DAMAGE:
            return CorruptFile(self._path, f"the file is damaged: {error}", remedy=_REMEDY)
        if code == sqlite3.SQLITE_FULL or _no_room(self._path):
            return StoreFull(
                f"{self._path}: no room left to write ({error}); nothing that was acknowledged is lost",
                remedy="free space on that disk; the store goes on by itself",
            )
        if committing:
            return OutcomeUnknown(f"{self._path}: {error}", remedy="look at the disk's health")
        return NotWritten(f"{self._path}: {error}", remedy="look at the disk's health")


def _no_room(path: Path) -> bool:
    """Whether the disk of `path` has not even a page left: some failures do not say so themselves."""
    disk = os.statvfs(path.parent)
    return disk.f_bavail == 0


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, timeout=5.0)
    try:
        database.execute("PRAGMA locking_mode=EXCLUSIVE")
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.execute("PRAGMA temp_store=MEMORY")
    except sqlite3.Error:
        database.close()
        raise
    return database
