"""The store: reads, transactions, versions, texts, group commit, events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from procs.manager.store import Action, Store, Tx, by
from procs.manager.store.errors import (
    AlreadyExists,
    InvalidFind,
    NameConflict,
    NotExist,
    OutOfSequence,
    StoreClosed,
    StoreError,
    TooLarge,
    WatchOverflow,
)
from procs.manager.store.sealing import SealedEngine, Sealer
from procs.manager.store.sqlite import SqliteEngine
from swarm.api import objects_pb2 as objects
from tests.unit.store.conftest import HandClock


def service(id_: str, name: str) -> objects.Service:
    made = objects.Service(id=id_)
    made.spec.annotations.name = name
    made.spec.task.container.image = "host"
    return made


def copy(obj: Any) -> Any:
    made = type(obj)()
    made.CopyFrom(obj)
    return made


def creates(*made: Any) -> Callable[[Tx], None]:
    def write(tx: Tx) -> None:
        for obj in made:
            tx.create(obj)

    return write


# -- objects and versions ------------------------------------------------------------------------------


async def test_a_created_object_is_stamped_and_found(store: Store, clock: HandClock) -> None:
    mine = service("s1", "web")
    await store.update(creates(mine))
    found = store.get(objects.Service, "s1")
    assert found == mine
    assert mine.meta.version.index == store.index
    assert mine.meta.created_at.ToNanoseconds() == mine.meta.updated_at.ToNanoseconds() == clock.wall_ns()


async def test_changing_my_object_afterwards_does_not_change_the_store(store: Store) -> None:
    mine = service("s1", "web")
    await store.update(creates(mine))
    mine.spec.annotations.name = "other"
    assert store.get(objects.Service, "s1").spec.annotations.name == "web"  # type: ignore[union-attr]


async def test_an_update_keeps_created_at_and_moves_version_and_updated_at(store: Store, clock: HandClock) -> None:
    mine = service("s1", "web")
    await store.update(creates(mine))
    born, first = clock.wall_ns(), mine.meta.version.index
    clock.turn(5)
    mine.meta.created_at.Clear()
    await store.update(lambda tx: tx.update(mine))
    assert mine.meta.created_at.ToNanoseconds() == born
    assert mine.meta.updated_at.ToNanoseconds() == clock.wall_ns()
    assert mine.meta.version.index > first


async def test_one_transaction_gives_all_its_objects_one_version(store: Store) -> None:
    a, b = service("a", "a"), service("b", "b")
    await store.update(creates(a, b))
    assert a.meta.version == b.meta.version


async def test_an_object_may_be_updated_twice_in_one_transaction(store: Store) -> None:
    mine = service("s1", "web")

    def write(tx: Tx) -> None:
        tx.create(mine)
        mine.spec.annotations.labels["a"] = "1"
        tx.update(mine)
        mine.spec.annotations.labels["b"] = "2"
        tx.update(mine)

    await store.update(write)
    assert dict(store.get(objects.Service, "s1").spec.annotations.labels) == {"a": "1", "b": "2"}  # type: ignore[union-attr]


async def test_a_stored_object_cannot_be_written_back_uncopied(store: Store) -> None:
    await store.update(creates(service("s1", "web")))
    with pytest.raises(ValueError, match="shared, change a copy"):
        await store.update(lambda tx: tx.update(tx.get(objects.Service, "s1")))  # type: ignore[arg-type]


async def test_an_update_that_changes_nothing_commits_nothing(store: Store) -> None:
    before = store.index
    assert await store.update(lambda tx: tx.find(objects.Task)) == []
    assert store.index == before


async def test_an_async_callback_is_refused(store: Store) -> None:
    async def write(tx: Tx) -> None:
        tx.create(service("s1", "web"))

    with pytest.raises(TypeError, match="must not be a coroutine function"):
        await store.update(write)


@pytest.mark.parametrize(
    ("write", "error", "text"),
    [
        (lambda tx: tx.create(service("s1", "new")), AlreadyExists, "object already exists"),
        (lambda tx: tx.create(service("s1", "WEB")), NameConflict, "name conflicts with an existing object"),
        (lambda tx: tx.create(service("s9", "Web")), NameConflict, "name conflicts with an existing object"),
        (lambda tx: tx.update(service("s9", "new")), NotExist, "object does not exist"),
        (lambda tx: tx.update(service("s9", "web")), NameConflict, "name conflicts with an existing object"),
        (lambda tx: tx.update(service("s1", "db")), NameConflict, "name conflicts with an existing object"),
        (lambda tx: tx.update(service("s1", "web")), OutOfSequence, "update out of sequence"),
        (lambda tx: tx.delete(objects.Service, "s9"), NotExist, "object does not exist"),
        (lambda tx: tx.find(objects.Service, by.node("x")), InvalidFind, "invalid find argument type"),
    ],
)
async def test_refusals_have_swarmkits_texts_and_leave_no_trace(
    store: Store, write: Callable[[Tx], None], error: type[StoreError], text: str
) -> None:
    await store.update(creates(service("s1", "web"), service("s2", "db"), service("s4", "spare")))
    before = store.index

    def spoiled(tx: Tx) -> None:
        tx.create(service("s3", "cache"))
        tx.delete(objects.Service, "s4")
        tx.put_side("x", b"1")
        write(tx)

    with pytest.raises(error) as refusal:
        await store.update(spoiled)
    assert str(refusal.value) == text
    assert [found.id for found in store.find(objects.Service)] == ["s1", "s2", "s4"]
    assert store.index == before
    assert store.side("x") is None
    await store.update(creates(service("s3", "cache")))


async def test_a_name_can_be_taken_over_in_the_transaction_that_frees_it(store: Store) -> None:
    await store.update(creates(service("s1", "web")))

    def write(tx: Tx) -> None:
        tx.delete(objects.Service, "s1")
        tx.create(service("s2", "web"))

    await store.update(write)
    assert [found.id for found in store.find(objects.Service, by.name("web"))] == ["s2"]


async def test_task_and_node_names_are_not_unique(store: Store) -> None:
    nodes = [objects.Node(id=id_) for id_ in "ab"]
    for node in nodes:
        node.description.hostname = "same"
    await store.update(creates(*nodes))
    assert [node.id for node in store.find(objects.Node, by.name("SAME"))] == ["a", "b"]


async def test_a_joining_node_is_found_by_its_request_until_it_has_come(store: Store) -> None:
    joining, come, other = (objects.Node(id=id_) for id_ in "abc")
    joining.certificate.csr = come.certificate.csr = b"request"
    other.certificate.csr = b"another"
    come.description.hostname = "host"
    await store.update(creates(joining, come, other))
    assert [node.id for node in store.find(objects.Node, by.joining(b"request"))] == ["a"]


async def test_extensions_and_resources(store: Store) -> None:
    extension = objects.Extension(id="e1")
    extension.annotations.name = "Thing"
    resource = objects.Resource(id="r1", kind="Thing")
    resource.annotations.name = "one"
    with pytest.raises(StoreError, match="^object kind is unregistered$"):
        await store.update(creates(resource))
    await store.update(creates(extension, resource))
    with pytest.raises(StoreError, match="^extensions are immutable$"):
        await store.update(lambda tx: tx.update(copy(extension)))
    with pytest.raises(
        StoreError, match="^cannot delete extension because objects of this type exist in the data store$"
    ):
        await store.update(lambda tx: tx.delete(objects.Extension, "e1"))
    builtin = objects.Extension(id="e2")
    builtin.annotations.name = "node"
    with pytest.raises(NameConflict):
        await store.update(creates(builtin))
    with pytest.raises(InvalidFind):
        store.find(objects.Extension, by.name_prefix("T"))
    assert store.find(objects.Resource, by.kind("Thing")) == [resource]


# -- finding -------------------------------------------------------------------------------------------


async def test_tasks_are_found_by_every_index(store: Store) -> None:
    task = objects.Task(id="t1", service_id="s1", slot=3, node_id="n1", desired_state=512)
    task.service_annotations.name = "Web"
    task.status.state = 64
    task.spec.container.secrets.add(secret_id="sec")
    task.spec.container.configs.add(config_id="cfg")
    task.spec.networks.add(target="net")
    task.volumes.add(id="vol")
    task.annotations.indices.add(key="k", val="value")
    other = objects.Task(id="t2", service_id="s1", slot=4)
    other.spec.generic.kind = "Special"
    await store.update(creates(task, other))
    selectors = [
        *(by.name("web.3.t1"), by.name_prefix("WEB.3"), by.id_prefix("t1"), by.slot("s1", 3), by.node("n1")),
        *(by.desired_state(512), by.observed_state(64), by.runtime("container"), by.network("net")),
        *(by.secret("sec"), by.config("cfg"), by.volume("vol"), by.custom("k", "value"), by.custom_prefix("k", "va")),
    ]
    for selector in selectors:
        assert store.find(objects.Task, selector) == [task], selector
    assert store.find(objects.Task, by.service("s1")) == [task, other]
    assert store.find(objects.Task, by.service("s1"), by.node("")) == [other]
    assert store.find(objects.Task, by.runtime("special")) == [other]
    assert store.find(objects.Task, by.any_of(by.node("n1"), by.runtime("special"))) == [task, other]


async def test_index_entries_follow_updates_and_deletes(store: Store) -> None:
    task = objects.Task(id="t1", service_id="s1", node_id="n1")
    await store.update(creates(task))
    task.node_id = "n2"
    await store.update(lambda tx: tx.update(task))
    assert store.find(objects.Task, by.node("n1")) == []
    assert store.find(objects.Task, by.node("n2")) == [task]
    await store.update(lambda tx: tx.delete(objects.Task, "t1"))
    assert store.find(objects.Task, by.node("n2")) == []
    assert store.find(objects.Task) == []


async def test_a_transaction_finds_its_own_changes(store: Store) -> None:
    await store.update(creates(*(objects.Task(id=f"t{n}", node_id="n1") for n in range(3))))

    def write(tx: Tx) -> list[str]:
        moved = copy(tx.get(objects.Task, "t0"))
        moved.node_id = "n2"
        tx.update(moved)
        tx.delete(objects.Task, "t1")
        tx.create(objects.Task(id="t9", node_id="n1"))
        assert tx.get(objects.Task, "t1") is None
        assert [task.id for task in tx.find(objects.Task, by.id_prefix("t"))] == ["t0", "t2", "t9"]
        assert [task.id for task in store.find(objects.Task)] == ["t0", "t1", "t2"]
        return [task.id for task in tx.find(objects.Task, by.node("n1"))]

    assert await store.update(write) == ["t2", "t9"]


async def test_services_are_found_by_deprecated_networks_only_without_new_ones(store: Store) -> None:
    old, new = service("a", "a"), service("b", "b")
    for made in (old, new):
        made.spec.networks.add(target="old")
    new.spec.task.networks.add(target="new")
    await store.update(creates(old, new))
    assert store.find(objects.Service, by.network("old")) == [old]
    assert store.find(objects.Service, by.network("new")) == [new]


# -- group commit --------------------------------------------------------------------------------------


async def test_queued_updates_see_each_other_and_get_growing_versions(store: Store) -> None:
    async def count() -> int:
        def write(tx: Tx) -> int:
            tx.create(objects.Task(id=f"t{len(tx.find(objects.Task)):03}"))
            return tx.index

        return await store.update(write)

    versions = await asyncio.gather(*(count() for _ in range(50)))
    assert versions == sorted(set(versions))
    assert [task.id for task in store.find(objects.Task)] == [f"t{n:03}" for n in range(50)]
    assert store.index == versions[-1]


async def test_one_failing_update_does_not_spoil_the_others_of_its_group(store: Store) -> None:
    def bad(tx: Tx) -> None:
        tx.create(service("bad", "bad"))
        tx.delete(objects.Service, "one")
        raise RuntimeError("changed my mind")

    outcomes = await asyncio.gather(
        store.update(creates(service("one", "one"))),
        store.update(bad),
        store.update(creates(service("two", "two"))),
        store.update(creates(service("three", "ONE"))),
        store.update(creates(service("bad", "bad"))),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [
        type(None),
        RuntimeError,
        type(None),
        NameConflict,
        type(None),
    ]
    assert [found.id for found in store.find(objects.Service)] == ["bad", "one", "two"]


async def test_a_cancelled_caller_that_was_queued_writes_nothing(store: Store) -> None:
    first = asyncio.ensure_future(store.update(creates(service("a", "a"))))
    second = asyncio.ensure_future(store.update(creates(service("b", "b"))))
    await asyncio.sleep(0)
    second.cancel()
    await first
    await store.update(creates(service("c", "c")))
    assert [found.id for found in store.find(objects.Service)] == ["a", "c"]


async def test_a_transaction_that_is_too_large_fails_alone(store: Store) -> None:
    huge = service("huge", "huge")
    huge.spec.task.container.args.append("x" * (6 * 1024 * 1024))
    outcomes = await asyncio.gather(
        store.update(creates(service("a", "a"))),
        store.update(creates(huge)),
        store.update(creates(service("b", "b"))),
        return_exceptions=True,
    )
    assert isinstance(outcomes[1], TooLarge)
    assert str(outcomes[1]) == "raft: raft message is too large and can't be sent"
    assert [found.id for found in store.find(objects.Service)] == ["a", "b"]


# -- persistence ---------------------------------------------------------------------------------------


async def test_objects_sides_and_clock_survive_reopening(database: Path, clock: HandClock) -> None:
    sealer = Sealer("cluster", bytes(32))
    store = await Store.open(SealedEngine(SqliteEngine(database), sealer), clock=clock)

    def write(tx: Tx) -> None:
        tx.create(service("s1", "web"))
        tx.create(service("s2", "gone"))
        tx.put_side("raft-id", b"\x01\x02")
        tx.put_side("old", b"x")

    await store.update(write)
    await store.update(lambda tx: (tx.delete(objects.Service, "s2"), tx.delete_side("old")))
    kept, index, term = store.find(objects.Service), store.index, store.term
    await store.close()

    again = await Store.open(SealedEngine(SqliteEngine(database), sealer), clock=clock)
    assert again.find(objects.Service) == kept
    assert again.find(objects.Service, by.name("web")) == kept
    assert again.side("raft-id") == b"\x01\x02"
    assert again.side("old") is None
    assert again.index > index
    assert again.term == term + 1
    await again.close()
    assert b"web" not in database.read_bytes()


async def test_side_records_are_read_back_inside_and_outside_a_transaction(store: Store) -> None:
    def write(tx: Tx) -> None:
        assert tx.side("x") is None
        tx.put_side("x", b"1")
        assert tx.side("x") == b"1"
        tx.delete_side("x")
        assert tx.side("x") is None
        tx.put_side("x", b"2")

    await store.update(write)
    assert store.side("x") == b"2"
    assert await store.update(lambda tx: tx.side("x")) == b"2"


async def test_a_closed_store_refuses_and_ends_its_watches(database: Path, clock: HandClock) -> None:
    store = await Store.open(SqliteEngine(database), clock=clock)
    async with store.watch() as watch:
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)
        await store.close()
        with pytest.raises(StoreClosed):
            await waiting
    with pytest.raises(StoreClosed):
        await store.update(creates(service("a", "a")))
    await store.close()


# -- events --------------------------------------------------------------------------------------------


async def test_watchers_get_each_transaction_with_old_objects_and_cause(store: Store) -> None:
    async with store.watch() as watch:
        mine = service("s1", "web")
        await store.update(creates(mine), cause="test")
        born = copy(mine)
        mine.spec.annotations.labels["a"] = "b"
        await store.update(lambda tx: tx.update(mine))
        await store.update(lambda tx: tx.put_side("quiet", b""))
        await store.update(lambda tx: tx.delete(objects.Service, "s1"))
        commits = [await anext(watch) for _ in range(3)]
    assert [[event.action for event in commit.events] for commit in commits] == [
        [Action.CREATE],
        [Action.UPDATE],
        [Action.DELETE],
    ]
    assert commits[0].cause == "test"
    assert commits[1].events[0].old == born
    assert commits[1].events[0].object == mine
    assert commits[2].events[0].object == mine
    indexes = [commit.index for commit in commits]
    assert indexes == sorted(set(indexes))


async def test_an_update_returns_after_its_commit_reached_the_watchers(store: Store) -> None:
    async with store.watch() as watch:
        await store.update(creates(service("s1", "web")))
        assert [event.object.id for commit in watch.drain() for event in commit.events] == ["s1"]
        assert watch.drain() == []


async def test_snapshot_and_watch_have_no_gap_and_no_overlap(store: Store) -> None:
    halfway = asyncio.Event()

    async def write() -> None:
        for number in range(60):
            await store.update(creates(objects.Task(id=f"t{number:03}")))
            if number == 20:
                halfway.set()

    writing = asyncio.ensure_future(write())
    await halfway.wait()
    async with store.watch() as watch:
        seen = [task.id for task in store.find(objects.Task)]
        while len(seen) < 60:
            seen += [event.object.id for event in (await anext(watch)).events]
    await writing
    assert seen == [f"t{number:03}" for number in range(60)]


async def test_a_watcher_that_is_too_slow_is_cut_off_with_a_clear_error(store: Store) -> None:
    async with store.watch(limit=3) as slow, store.watch() as quick:
        for name in "abcd":
            await store.update(creates(service(name, name)))
        with pytest.raises(WatchOverflow, match="more than 3 events behind"):
            await anext(slow)
        assert [commit.events[0].object.id for commit in quick.drain()] == list("abcd")


async def test_a_single_large_commit_is_not_an_overflow(store: Store) -> None:
    async with store.watch(limit=3) as watch:
        await store.update(creates(*(service(name, name) for name in "abcdef")))
        assert len((await anext(watch)).events) == 6
