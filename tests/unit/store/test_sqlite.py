"""The SQLite engine's own failures: damage, a full disk, unknown outcomes. Real files, real file systems."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from procs.manager.store import Store
from procs.manager.store.engine import UNBORN, Clock, Delete, Operation, Put
from procs.manager.store.errors import FenceLost, NotWritten, OutcomeUnknown, StoreError, StoreFull
from procs.manager.store.sqlite import SqliteEngine
from swarm.api import objects_pb2 as objects
from swarm.errors import CorruptFile
from tests.unit.store.conftest import HandClock


async def fill(path: Path, count: int = 200) -> None:
    engine = SqliteEngine(path)
    await engine.open()
    await engine.write([Put(f"/task/{n}", bytes(1000), 1) for n in range(count)], UNBORN, Clock(1, 1, "x"))
    await engine.close()


def contents(directory: Path) -> dict[str, bytes]:
    """Files of the store; what SQLite's read-only look leaves beside them is none."""
    return {
        path.name: path.read_bytes()
        for path in directory.iterdir()
        if not path.name.endswith((".lock", "-shm", "-wal"))
    }


def zeroed(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(bytes(40960))


def foreign(path: Path) -> None:
    path.unlink()
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE mine (a)")
    database.close()


def newer(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version=99")
    database.close()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(b"not a database at all" * 100), "damaged"),
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: os.truncate(path, 20480), "damaged"),
        (lambda path: os.truncate(path, 100), "damaged"),
        (zeroed, "damaged"),
        (foreign, "not a store of a manager"),
        (newer, "schema is 99"),
    ],
    ids=["junk", "empty", "cut", "cut-header", "zeroed-pages", "another-database", "newer-schema"],
)
async def test_a_damaged_file_is_refused_by_name_and_left_as_it_is(
    database: Path, clock: HandClock, damage: Callable[[Path], None], words: str
) -> None:
    await fill(database)
    damage(database)
    before = contents(database.parent)
    for _ in range(2):
        with pytest.raises(CorruptFile, match=words) as refusal:
            await Store.open(SqliteEngine(database), clock=clock)
        assert str(database) in str(refusal.value)
        assert refusal.value.remedy
        assert contents(database.parent) == before


async def test_a_key_whose_letters_were_damaged_is_refused_as_damage_by_the_files_name(
    database: Path, clock: HandClock
) -> None:
    await fill(database, 3)
    raw = database.read_bytes()
    database.write_bytes(raw.replace(b"/task/1", b"/task\xff1"))
    engine = SqliteEngine(database)
    with pytest.raises(CorruptFile, match=r"store\.db: the file is damaged: .*UTF-8") as refusal:
        await Store.open(engine, clock=clock)
    await engine.close()
    assert refusal.value.remedy


async def test_a_value_that_is_no_object_is_refused_by_key(database: Path, clock: HandClock) -> None:
    engine = SqliteEngine(database)
    await engine.open()
    await engine.write([Put("/task/a", b"\xff\xff", 1)], UNBORN, Clock(1, 1, "x"))
    await engine.close()
    with pytest.raises(CorruptFile, match="/task/a: not a task"):
        await Store.open(SqliteEngine(database), clock=clock)


@pytest.mark.parametrize("key", ["/gadget/a", "/task/", "x"])
async def test_a_key_of_no_known_kind_is_refused(database: Path, clock: HandClock, key: str) -> None:
    engine = SqliteEngine(database)
    await engine.open()
    await engine.write([Put(key, b"", 1)], UNBORN, Clock(1, 1, "x"))
    await engine.close()
    with pytest.raises(CorruptFile, match="no known kind"):
        await Store.open(SqliteEngine(database), clock=clock)


async def test_a_value_stored_under_another_id_is_refused(database: Path, clock: HandClock) -> None:
    engine = SqliteEngine(database)
    await engine.open()
    await engine.write([Put("/task/a", objects.Task(id="b").SerializeToString(), 1)], UNBORN, Clock(1, 1, "x"))
    await engine.close()
    with pytest.raises(CorruptFile, match="/task/a: holds the task 'b'"):
        await Store.open(SqliteEngine(database), clock=clock)


async def test_a_birth_that_was_interrupted_is_started_over(database: Path, clock: HandClock) -> None:
    database.parent.mkdir()
    Path(f"{database}.new").write_bytes(b"half")
    store = await Store.open(SqliteEngine(database), clock=clock)
    await store.close()
    assert sorted(path.name for path in database.parent.iterdir()) == ["store.db", "store.db.lock"]


async def test_a_log_without_its_file_is_refused_and_kept(database: Path, clock: HandClock) -> None:
    store = await Store.open(SqliteEngine(database), clock=clock)
    log = Path(f"{database}-wal")
    kept = log.read_bytes()
    await store.close()
    database.unlink()
    log.write_bytes(kept)
    with pytest.raises(CorruptFile, match="is missing, but its log store.db-wal is there"):
        await Store.open(SqliteEngine(database), clock=clock)
    assert log.read_bytes() == kept


async def test_after_a_scrub_nothing_that_was_replaced_or_deleted_is_on_the_disk(database: Path) -> None:
    engine = SqliteEngine(database)
    await engine.open()

    def on_disk() -> bytes:
        return b"".join(path.read_bytes() for path in database.parent.iterdir())

    one, two, three = Clock(1, 1, "a"), Clock(2, 1, "b"), Clock(3, 1, "c")
    await engine.write([Put("/task/a", b"replaced" * 50, 1), Put("/task/b", b"deleted" * 50, 1)], UNBORN, one)
    await engine.write([Put("/task/a", b"kept" * 50, 2), Delete("/task/b")], one, two)
    assert b"replaced" in on_disk()
    await engine.scrub()
    assert b"replaced" not in on_disk()
    assert b"deleted" not in on_disk()
    await engine.write([Put("/task/c", b"later", 3)], two, three)
    await engine.close()
    again = SqliteEngine(database)
    await again.open()
    assert await again.read_all() == (three, {"/task/a": b"kept" * 50, "/task/c": b"later"})
    await again.close()


async def test_files_are_private(database: Path, clock: HandClock) -> None:
    store = await Store.open(SqliteEngine(database), clock=clock)
    assert {path.name: path.stat().st_mode & 0o777 for path in database.parent.iterdir()} == {
        "store.db": 0o600,
        "store.db-wal": 0o600,
        "store.db.lock": 0o600,
    }
    assert database.parent.stat().st_mode & 0o777 == 0o700
    await store.close()


# -- a full disk ---------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB (SQLite writes its WAL back from 4 MiB on)."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    mount = tmp_path / "disk"
    mount.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", mount], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr}")
    yield mount
    subprocess.run(["umount", mount], check=True)


def big(id_: str) -> objects.Task:
    task = objects.Task(id=id_)
    task.spec.container.args.append("x" * 60_000)
    return task


async def test_a_full_disk_refuses_clearly_loses_nothing_and_recovers(small_disk: Path, clock: HandClock) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(6_000_000))
    path = small_disk / "manager" / "store.db"
    store = await Store.open(SqliteEngine(path), clock=clock)
    acknowledged: list[str] = []

    async def write_on() -> None:
        for number in range(1000):
            await store.update(lambda tx, name=f"t{number:04}": tx.create(big(name)))
            acknowledged.append(f"t{number:04}")

    with pytest.raises(StoreFull, match="no room left to write") as refusal:
        await write_on()
    assert "free space" in refusal.value.remedy
    assert acknowledged
    assert [task.id for task in store.find(objects.Task)] == acknowledged

    ballast.unlink()
    await store.update(lambda tx: tx.create(big("u0")))
    await store.close()
    again = await Store.open(SqliteEngine(path), clock=clock)
    assert [task.id for task in again.find(objects.Task)] == [*acknowledged, "u0"]
    await again.close()


async def test_a_transaction_too_big_for_the_disk_does_not_take_smaller_ones_before_it_along(
    small_disk: Path, clock: HandClock
) -> None:
    (small_disk / "ballast").write_bytes(bytes(12_000_000))
    store = await Store.open(SqliteEngine(small_disk / "store.db"), clock=clock)
    huge = objects.Task(id="huge")
    huge.spec.container.args.append("x" * 5_500_000)
    outcomes = await asyncio.gather(
        store.update(lambda tx: tx.create(objects.Task(id="a"))),
        store.update(lambda tx: tx.create(huge)),
        return_exceptions=True,
    )
    assert outcomes[0] is None
    assert isinstance(outcomes[1], StoreFull)
    await store.update(lambda tx: tx.create(objects.Task(id="b")))
    assert [task.id for task in store.find(objects.Task)] == ["a", "b"]
    await store.close()


# -- fences and unknown outcomes -----------------------------------------------------------------------


class Unsure(SqliteEngine):
    """Writes or does not, and says that it does not know."""

    lose: bool | None = None
    """None: honest; True: the write is lost; False: it is there."""
    usurper: Clock | None = None
    """The clock that somebody else has written meanwhile."""

    async def write(self, batch: Sequence[Operation], expected: Clock, new: Clock) -> None:
        if self.usurper is not None:
            await super().write([], expected, self.usurper)
            self.usurper = None
            await super().write(batch, expected, new)
        if self.lose is not True:
            await super().write(batch, expected, new)
        if self.lose is not None:
            raise OutcomeUnknown("the disk did not answer")


async def test_an_unknown_outcome_that_was_a_success_is_acknowledged(database: Path, clock: HandClock) -> None:
    engine = Unsure(database)
    store = await Store.open(engine, clock=clock)
    engine.lose = False
    await store.update(lambda tx: tx.create(objects.Task(id="a")))
    engine.lose = None
    await store.update(lambda tx: tx.create(objects.Task(id="b")))
    assert [task.id for task in store.find(objects.Task)] == ["a", "b"]
    await store.close()


async def test_an_unknown_outcome_that_was_a_failure_is_reported_and_the_store_goes_on(
    database: Path, clock: HandClock
) -> None:
    engine = Unsure(database)
    store = await Store.open(engine, clock=clock)
    engine.lose = True
    with pytest.raises(NotWritten, match="nothing was written: the disk did not answer"):
        await store.update(lambda tx: tx.create(objects.Task(id="a")))
    engine.lose = None
    await store.update(lambda tx: tx.create(objects.Task(id="b")))
    assert [task.id for task in store.find(objects.Task)] == ["b"]
    await store.close()


async def test_who_lost_the_fence_never_writes_again_and_says_so(database: Path, clock: HandClock) -> None:
    engine = Unsure(database)
    store = await Store.open(engine, clock=clock)
    engine.usurper = Clock(100, 9, "usurper")
    failed = asyncio.ensure_future(store.failed())
    async with store.watch() as watch:
        for _ in range(2):
            with pytest.raises(FenceLost, match="node lost leader status"):
                await store.update(lambda tx: tx.create(objects.Task(id="a")))
        assert isinstance(await failed, FenceLost)
        with pytest.raises(FenceLost):
            await anext(watch)
    assert store.get(objects.Task, "a") is None
    await store.close()


async def test_an_engine_that_breaks_in_an_unforeseen_way_ends_the_store(database: Path, clock: HandClock) -> None:
    class Broken(SqliteEngine):
        broken = False

        async def write(self, batch: Sequence[Operation], expected: Clock, new: Clock) -> None:
            if self.broken:
                raise OSError("unforeseen")
            await super().write(batch, expected, new)

    engine = Broken(database)
    store = await Store.open(engine, clock=clock)
    engine.broken = True
    queued = [asyncio.ensure_future(store.update(lambda tx: tx.create(objects.Task(id="a")))) for _ in range(2)]
    for update in queued:
        with pytest.raises((OSError, StoreError)):
            await update
    assert isinstance(await store.failed(), OSError)
    with pytest.raises(OSError, match="unforeseen"):
        await store.update(lambda tx: tx.create(objects.Task(id="a")))
    await store.close()
