"""What every engine must do (procs/manager/store/engine.py), on each engine there is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from procs.manager.store.engine import UNBORN, Clock, Compacted, Delete, Engine, EngineMember, Put
from procs.manager.store.errors import FenceLost, StoreClosed
from procs.manager.store.sealing import SealedEngine, Sealer
from procs.manager.store.sqlite import SqliteEngine
from swarm.errors import Refused, Twin

ENGINES: dict[str, Callable[[Path], Engine]] = {
    "sqlite": lambda directory: SqliteEngine(directory / "store.db", node_id="me"),
    "sealed sqlite": lambda directory: SealedEngine(
        SqliteEngine(directory / "store.db", node_id="me"), Sealer("cluster", bytes(32))
    ),
}


@pytest.fixture(params=ENGINES, ids=lambda name: name.replace(" ", "-"))
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Engine]:
    return lambda: ENGINES[request.param](tmp_path)


@pytest.fixture
async def engine(make: Callable[[], Engine]) -> AsyncIterator[Engine]:
    opened = make()
    await opened.open()
    yield opened
    await opened.close()


FIRST = Clock(5, 1, "first")
SECOND = Clock(6, 1, "second")


async def test_a_new_store_is_empty_at_the_unborn_clock(engine: Engine) -> None:
    assert await engine.read_all() == (UNBORN, {})
    assert await engine.read_clock() == UNBORN


async def test_a_write_sets_values_and_clock_together(engine: Engine) -> None:
    await engine.write([Put("/task/a", b"one", 5), Put("/task/b", b"", 5)], UNBORN, FIRST)
    assert await engine.read_all() == (FIRST, {"/task/a": b"one", "/task/b": b""})


async def test_puts_replace_and_deletes_remove_also_what_is_not_there(engine: Engine) -> None:
    await engine.write([Put("/a", b"1", 5), Put("/b", b"2", 5)], UNBORN, FIRST)
    await engine.write([Put("/a", b"3", 6), Delete("/b"), Delete("/never")], FIRST, SECOND)
    assert await engine.read_all() == (SECOND, {"/a": b"3"})


async def test_an_empty_batch_moves_the_clock(engine: Engine) -> None:
    await engine.write([], UNBORN, FIRST)
    assert await engine.read_clock() == FIRST


@pytest.mark.parametrize(
    "stale",
    [UNBORN, Clock(5, 1, "another"), Clock(5, 2, "first"), Clock(4, 1, "first")],
    ids=["behind", "other-transaction", "other-term", "other-index"],
)
async def test_a_write_on_a_clock_that_moved_changes_nothing(engine: Engine, stale: Clock) -> None:
    await engine.write([Put("/a", b"1", 5)], UNBORN, FIRST)
    with pytest.raises(FenceLost, match=r"^raft: failed to process the request: node lost leader status$"):
        await engine.write([Put("/a", b"2", 6), Put("/b", b"2", 6)], stale, SECOND)
    assert await engine.read_all() == (FIRST, {"/a": b"1"})


async def test_everything_is_there_after_reopening(make: Callable[[], Engine]) -> None:
    engine = make()
    await engine.open()
    await engine.write([Put("/a", bytes(range(256)) * 1000, 5)], UNBORN, FIRST)
    await engine.close()
    again = make()
    await again.open()
    assert await again.read_all() == (FIRST, {"/a": bytes(range(256)) * 1000})
    await again.close()


async def test_a_watcher_sees_each_later_write_once_whole_and_in_order(engine: Engine) -> None:
    await engine.write([Put("/a", b"1", 5)], UNBORN, FIRST)
    revisions = engine.watch(5)
    await engine.write([Put("/a", b"2", 6), Delete("/b")], FIRST, SECOND)
    await engine.write([], SECOND, Clock(7, 1, "third"))
    seen = [await anext(revisions), await anext(revisions)]
    assert [(revision.clock, revision.operations) for revision in seen] == [
        (SECOND, (Put("/a", b"2", 6), Delete("/b"))),
        (Clock(7, 1, "third"), ()),
    ]
    await revisions.aclose()  # type: ignore[attr-defined]


async def test_a_watcher_that_asks_for_what_is_forgotten_is_told(make: Callable[[], Engine]) -> None:
    engine = make()
    await engine.open()
    await engine.write([], UNBORN, FIRST)
    await engine.close()
    again = make()
    await again.open()
    with pytest.raises(Compacted, match=r"^requested index is unavailable due to compaction$"):
        await anext(again.watch(1))
    await again.close()


async def test_a_watch_ends_when_the_engine_closes(make: Callable[[], Engine]) -> None:
    engine = make()
    await engine.open()
    waiting = asyncio.ensure_future(anext(engine.watch(0)))
    await asyncio.sleep(0)
    await engine.close()
    with pytest.raises(StoreClosed):
        await waiting


async def test_two_cannot_hold_one_store(engine: Engine, make: Callable[[], Engine]) -> None:
    twin = make()
    with pytest.raises(Twin, match="another process holds this store"):
        await twin.open()
    await twin.close()
    await engine.write([], UNBORN, FIRST)


async def test_closing_twice_and_using_a_closed_engine(make: Callable[[], Engine]) -> None:
    engine = make()
    await engine.open()
    await engine.close()
    await engine.close()
    with pytest.raises(StoreClosed):
        await engine.read_clock()


async def test_the_holder_leads_until_it_is_closed(engine: Engine) -> None:
    await engine.campaign()
    lost = asyncio.ensure_future(engine.lost())
    await engine.write([], UNBORN, FIRST)
    assert not lost.done()
    lost.cancel()


async def test_one_member_which_cannot_be_joined_or_removed(engine: Engine) -> None:
    assert await engine.members() == [EngineMember("me", "")]
    with pytest.raises(Refused, match="has one manager"):
        await engine.add_member(EngineMember("other", "192.0.2.1:2379"))
    with pytest.raises(Refused, match="exactly one manager"):
        await engine.remove_member("me")
