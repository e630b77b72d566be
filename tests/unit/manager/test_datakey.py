"""The store's data key: made once, replaced when the managers are locked, and never lost in between."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from procs.manager import datakey
from procs.manager.datakey import KeyRing, Rotation
from procs.manager.store import Store, Tx
from procs.manager.store.errors import StoreFull
from procs.manager.store.sealing import SealedEngine, Sealer, key_id
from procs.manager.store.sqlite import SqliteEngine
from swarm.api import objects_pb2 as objects
from swarm.clock import SystemClock
from swarm.errors import CorruptFile
from swarm.paths import Paths
from swarm.pki.dek import CURRENT, NEEDS_ROTATION, PENDING, seal
from swarm.pki.keyfile import Kek, KeyFile
from swarm.pki.locking import change_unlock_key
from swarm.unlock import forget_unlock_keys
from tests.tools.authority import Authority

LOCK = b"1" * 32


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[Paths]:
    found = Paths(tmp_path / "s", tmp_path / "r")
    yield found
    forget_unlock_keys(found)


# -- in the key file ------------------------------------------------------------------------------------


def test_a_data_key_is_made_once_and_survives_a_renewal(paths: Paths) -> None:
    authority = Authority()
    own = authority.bootstrap(paths)
    ring = KeyRing(paths)
    keys = ring.read(store_exists=False)
    assert (len(keys.current), keys.pending) == (32, None)
    assert ring.read(store_exists=False) == keys
    renewed = authority.issue("manager", node_id=own.node_id)
    KeyFile.of(paths).write(renewed.certificate_pem, renewed.key_pem)
    assert ring.read(store_exists=True) == keys
    assert ring.begin() is None, "nobody asked for another one"


def test_a_missing_data_key_of_an_existing_store_is_a_refusal_and_nothing_is_made(paths: Paths) -> None:
    authority = Authority()
    own = authority.bootstrap(paths)
    ring = KeyRing(paths)
    ring.read(store_exists=False)
    for role in ("worker", "manager"):  # demoted, and promoted before anybody erased its store
        issued = authority.issue(role, node_id=own.node_id)
        KeyFile.of(paths).write(issued.certificate_pem, issued.key_pem)
    before = paths.node_key.read_bytes()
    with pytest.raises(CorruptFile, match=r"has no raft-dek header.* was a worker since"):
        ring.read(store_exists=True)
    assert paths.node_key.read_bytes() == before


@pytest.mark.parametrize("value", ["not base64!", "CAES", "EgNhYmM="])
def test_a_data_key_that_cannot_be_read_is_a_refusal(paths: Paths, value: str) -> None:
    Authority().bootstrap(paths)
    KeyFile.of(paths).view_and_update_headers(lambda present: {**present, CURRENT: value})
    with pytest.raises(CorruptFile, match=r"swarm-node\.key.*raft-dek"):
        KeyRing(paths).read(store_exists=True)


def test_a_pending_key_without_a_current_one_is_a_refusal(paths: Paths) -> None:
    Authority().bootstrap(paths)
    KeyFile.of(paths).view_and_update_headers(lambda _: {PENDING: seal(bytes(32), b"")})
    with pytest.raises(CorruptFile, match="pending DEK, but no current DEK"):
        KeyRing(paths).read(store_exists=False)


def test_a_rotation_asked_for_meanwhile_stays_asked_for(paths: Paths) -> None:
    Authority().bootstrap(paths)
    ring = KeyRing(paths)
    first = ring.read(store_exists=False).current
    assert change_unlock_key(paths, Kek(LOCK, 1)) == (True, True)
    pending = ring.begin()
    assert pending not in (None, first)
    assert ring.begin() == pending, "it is not made twice"
    assert change_unlock_key(paths, Kek(b"", 2)) == (True, False)
    assert change_unlock_key(paths, Kek(LOCK, 3)) == (True, True)
    assert ring.begin() == pending
    ring.finish()
    assert ring.read(store_exists=True).current == pending
    assert ring.begin() not in (None, first, pending)


# -- in the store ---------------------------------------------------------------------------------------


class Opened:
    """A sealed store with its rotation, as the manager opens it."""

    def __init__(self, engine: SealedEngine, store: Store, ring: KeyRing) -> None:
        self.engine, self.store, self.ring = engine, store, ring
        self.rotation = Rotation(ring, engine, store)


@asynccontextmanager
async def opened(paths: Paths, engine: Callable[[Path], Any] = SqliteEngine) -> AsyncIterator[Opened]:
    path = paths.manager / "store.db"
    ring = KeyRing(paths)
    keys = ring.read(store_exists=path.exists())
    sealer = Sealer("cluster", keys.current, [keys.pending] if keys.pending else [])
    sealed = SealedEngine(engine(path), sealer)
    store = await Store.open(sealed, clock=SystemClock())
    try:
        yield Opened(sealed, store, ring)
    finally:
        await store.close()


def task(id_: str, words: str = "") -> objects.Task:
    made = objects.Task(id=id_)
    made.spec.container.args.append(words or "x" * 300)
    return made


def content(store: Store) -> dict[str, bytes]:
    return {task.id: task.SerializeToString() for task in store.find(objects.Task)}


async def filled_and_locked(paths: Paths, tasks: int = 250, *, lock: bool = True) -> tuple[bytes, dict[str, bytes]]:
    """A store of some size whose managers were just locked; its first data key, and what it holds. Without `lock` the
    key file only asks for another data key: opening a locked one takes time."""
    Authority().bootstrap(paths)
    async with opened(paths) as node:

        def fill(tx: Tx) -> None:
            for number in range(tasks):
                tx.create(task(f"t{number:04}"))

        await node.store.update(fill)
        await node.store.update(lambda tx: tx.delete(objects.Task, "t0000"))  # leaves a free place in the file
        await node.store.update(lambda tx: tx.put_side("raft-id", b"7"))
        first, held = node.ring.read(store_exists=True).current, content(node.store)
    if lock:
        change_unlock_key(paths, Kek(LOCK, 1))
    else:
        KeyFile.of(paths).view_and_update_headers(lambda present: {**present, NEEDS_ROTATION: "true"})
    return first, held


def on_disk(paths: Paths) -> bytes:
    return b"".join(path.read_bytes() for path in paths.manager.iterdir() if path.name.startswith("store.db"))


async def check_replaced(paths: Paths, first: bytes, held: dict[str, bytes]) -> None:
    """One key, another than the first, which nothing on the disk is sealed with; all that was there is there."""
    headers, _, _ = KeyFile.of(paths).read_headers()
    assert {CURRENT} == set(headers)
    assert key_id(first) not in on_disk(paths)
    async with opened(paths) as node:
        assert node.ring.read(store_exists=True).current != first
        assert content(node.store) == held
        assert node.store.side("raft-id") == b"7"


async def test_after_the_lock_nothing_on_the_disk_is_sealed_with_the_old_key(paths: Paths) -> None:
    first, held = await filled_and_locked(paths)
    async with opened(paths) as node:
        assert key_id(first) in on_disk(paths)
        async with node.store.watch() as watch:
            await node.rotation.rotate()
            assert watch.drain() == [], "nothing has changed"
        assert key_id(first) not in on_disk(paths), "also while the store is open, and in its log"
    await check_replaced(paths, first, held)


async def test_writes_go_on_meanwhile_and_none_is_lost(paths: Paths) -> None:
    first, held = await filled_and_locked(paths, lock=False)
    done = asyncio.Event()
    async with opened(paths) as node:

        async def write_on(lane: str) -> int:
            count = 0
            while not done.is_set():
                count += 1
                await node.store.update(functools.partial(write, name=f"{lane}{count}", old=f"t{count:04}"))
            return count

        def write(tx: Tx, name: str, old: str) -> None:
            tx.create(task(name))
            if tx.get(objects.Task, old) is not None:
                tx.delete(objects.Task, old)

        writer = asyncio.create_task(write_on("a"))
        await node.rotation.rotate()
        done.set()
        assert await writer > 3
        held = content(node.store)
    await check_replaced(paths, first, held)


class Killed(BaseException):
    """As SIGKILL: nothing of the process runs any more."""


def steps(node: Opened, monkeypatch: pytest.MonkeyPatch, die_at: int) -> list[str]:
    """Have the process die at the `die_at`-th moment, each being before or after a step. The steps come back."""
    seen: list[str] = []

    def moment(name: str) -> None:
        seen.append(name)
        if len(seen) == die_at:
            raise Killed

    def around(owner: Any, name: str) -> None:
        whole = getattr(owner, name)

        def step(*args: Any, **kwargs: Any) -> Any:
            moment(f"before {name}")
            result = whole(*args, **kwargs)
            if asyncio.iscoroutine(result):
                return _then(result, lambda: moment(f"after {name}"))
            moment(f"after {name}")
            return result

        monkeypatch.setattr(owner, name, step)

    async def _then(work: Awaitable[Any], after: Callable[[], None]) -> Any:
        result = await work
        after()
        return result

    around(node.ring, "begin")
    around(node.engine, "turn")
    around(node.store, "update")
    around(node.engine, "scrub")
    around(node.ring, "finish")
    around(node.engine, "forget_old")
    return seen


async def test_killed_at_any_step_it_goes_on_with_the_next_start(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datakey, "BATCH", 5)
    first, held = await filled_and_locked(paths, 12, lock=False)
    before = {path: path.read_bytes() for path in (paths.node_key, paths.manager / "store.db")}
    for die_at in range(1, 100):
        for path, data in before.items():
            path.write_bytes(data)
        async with opened(paths) as node:
            with monkeypatch.context() as patched:
                seen = steps(node, patched, die_at)
                try:
                    await node.rotation.rotate()
                except Killed:
                    pass
                else:
                    break
        async with opened(paths) as node:
            assert content(node.store) == held, seen
            await node.rotation.rotate()
            assert {CURRENT} == set(KeyFile.of(paths).read_headers()[0]), seen
            assert key_id(first) not in on_disk(paths), seen
    await check_replaced(paths, first, held)
    assert len(seen) > 15, seen
    assert len(seen) < die_at <= len(seen) + 1


async def test_a_full_disk_keeps_both_keys_until_there_is_room(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    first, held = await filled_and_locked(paths, lock=False)
    async with opened(paths) as node:

        async def full() -> None:
            raise StoreFull("no room left to write")

        with monkeypatch.context() as patched:
            patched.setattr(node.engine, "scrub", full)
            with pytest.raises(StoreFull):
                await node.rotation.rotate()
        headers, _, _ = KeyFile.of(paths).read_headers()
        assert {CURRENT, PENDING} == set(headers)
        assert NEEDS_ROTATION not in headers
        await node.rotation.rotate()
    await check_replaced(paths, first, held)
