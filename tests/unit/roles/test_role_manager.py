"""The role manager: its rule as a table, and the rule at work on a store (reference manager §4.1, §10.5)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Self

import pytest

from procs.manager.members import quorum_without
from procs.manager.roles import Decision, HandOver, Hold, RemoveMember, RoleManager, SetRole, decide
from procs.manager.store import Store, Tx
from procs.manager.store.sqlite import SqliteEngine
from swarm.api import raft_pb2
from swarm.api.objects_pb2 import Node
from swarm.api.types_pb2 import MANAGER, WORKER, NodeRole, RaftMemberStatus
from swarm.clock import SystemClock
from swarm.errors import Refused

OWN = "m0"


def member(node_id: str, *, reachable: bool = True) -> raft_pb2.RaftMember:
    made = raft_pb2.RaftMember(raft_id=int(node_id[1:]) + 1, node_id=node_id)
    made.status.reachability = RaftMemberStatus.REACHABLE if reachable else RaftMemberStatus.UNREACHABLE
    return made


def node(node_id: str, observed: NodeRole.ValueType, desired: NodeRole.ValueType) -> Node:
    made = Node(id=node_id, role=observed)
    made.spec.desired_role = desired
    return made


class Managers:
    """Members in a test's hand; remembers what was asked of it."""

    def __init__(self, *ids: str) -> None:
        self.reachable = dict.fromkeys(ids, True)
        self.asked: list[str] = []
        self.refuses: set[str] = set()
        self._moved = asyncio.Event()

    def members(self) -> list[raft_pb2.RaftMember]:
        return [member(node_id, reachable=reachable) for node_id, reachable in self.reachable.items()]

    def move(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    async def changed(self) -> None:
        await self._moved.wait()

    async def remove(self, raft_id: int) -> None:
        node_id = f"m{raft_id - 1}"
        self.asked.append(f"remove {node_id}")
        if "remove" in self.refuses:
            raise Refused("no quorum")
        self.reachable.pop(node_id, None)
        self.move()

    async def hand_over(self) -> None:
        self.asked.append("hand over")
        if "hand over" in self.refuses:
            raise Refused("nobody takes it")

    async def removed(self) -> str:
        never: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        return await never


THREE = [member(OWN), member("m1"), member("m2")]
ONE_AWAY = [member(OWN), member("m1"), member("m2", reachable=False)]


@pytest.mark.parametrize(
    ("about", "members", "expected"),
    [
        (node("m1", MANAGER, MANAGER), THREE, None),
        (node("w1", WORKER, WORKER), THREE, None),
        (node("w1", WORKER, MANAGER), THREE, SetRole("w1", MANAGER)),
        (node("m1", MANAGER, WORKER), THREE, RemoveMember("m1", 2)),
        (node("m1", MANAGER, WORKER), [member(OWN)], SetRole("m1", WORKER)),
        (node("m2", MANAGER, WORKER), ONE_AWAY, RemoveMember("m2", 3)),
        (node(OWN, MANAGER, WORKER), THREE, HandOver(OWN, 1)),
    ],
)
def test_the_next_step_for_a_node(about: Node, members: list[raft_pb2.RaftMember], expected: Decision | None) -> None:
    assert decide(about.id, about, members, OWN) == expected


def test_a_member_without_a_node_object_is_removed_and_a_stranger_is_none_of_our_business() -> None:
    assert decide("m1", None, THREE, OWN) == RemoveMember("m1", 2)
    assert decide("m7", None, THREE, OWN) is None


def test_what_would_cost_the_quorum_waits_and_says_the_numbers() -> None:
    held = decide("m1", node("m1", MANAGER, WORKER), ONE_AWAY, OWN)
    assert isinstance(held, Hold)
    assert "of the 2 managers that would stay 1 can be reached, and 2 are needed" in held.why
    alone = decide(OWN, node(OWN, MANAGER, WORKER), [member(OWN)], OWN)
    assert isinstance(alone, Hold)
    assert "it is the only manager; promote another node first" in alone.why


@pytest.mark.parametrize("count", range(8))
def test_those_that_stay_keep_a_majority_of_themselves(count: int) -> None:
    for reachable in range(count + 1):
        listed = [member(f"m{n}", reachable=n < reachable) for n in range(count)]
        assert quorum_without("m9", [*listed, member("m9")]).kept == (2 * reachable > count)


# -- at work ---------------------------------------------------------------------------------------------------------


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await Store.open(SqliteEngine(tmp_path / "store.db"), clock=SystemClock())
    yield opened
    await opened.close()


def three_nodes() -> list[Node]:
    """The node objects of three managers."""
    return [node(name, MANAGER, MANAGER) for name in (OWN, "m1", "m2")]


class Scene:
    """A role manager that runs over a store."""

    def __init__(self, store: Store, managers: Managers) -> None:
        self.store, self.managers = store, managers
        self.role_manager = RoleManager(store, managers, OWN)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self.role_manager.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})
        assert self._task.cancelled(), self._task.exception()

    async def put(self, *nodes: Node) -> None:
        def write(tx: Tx) -> None:
            for made in nodes:
                tx.create(made)

        await self.store.update(write)

    async def desire(self, node_id: str, role: NodeRole.ValueType) -> None:
        def write(tx: Tx) -> None:
            stored = tx.get(Node, node_id)
            assert stored is not None
            changed = Node()
            changed.CopyFrom(stored)
            changed.spec.desired_role = role
            tx.update(changed)

        await self.store.update(write)

    async def until(self, found: Callable[[], bool]) -> None:
        async with asyncio.timeout(3), self.store.watch() as watch:
            while not found():
                await anext(watch)

    def role(self, node_id: str) -> NodeRole.ValueType | None:
        stored = self.store.get(Node, node_id)
        return stored.role if stored is not None else None


async def test_promotion_is_observed_at_once_and_touches_no_member(store: Store) -> None:
    async with Scene(store, Managers(OWN)) as scene:
        await scene.put(node("w1", WORKER, WORKER))
        await scene.desire("w1", MANAGER)
        await scene.until(lambda: scene.role("w1") == MANAGER)
        assert scene.managers.asked == []


async def test_demotion_removes_the_member_before_the_role(store: Store) -> None:
    scene = Scene(store, Managers(OWN, "m1", "m2"))
    roles: list[NodeRole.ValueType | None] = []
    remove = scene.managers.remove

    async def note_role(raft_id: int) -> None:
        roles.append(scene.role("m1"))
        await remove(raft_id)

    scene.managers.remove = note_role  # type: ignore[method-assign]
    await scene.put(*three_nodes())
    async with scene:
        await scene.desire("m1", WORKER)
        await scene.until(lambda: scene.role("m1") == WORKER)
    assert roles == [MANAGER]
    assert sorted(scene.managers.reachable) == [OWN, "m2"]


async def test_what_was_wished_before_the_start_is_done_at_the_start(store: Store) -> None:
    scene = Scene(store, Managers(OWN, "m1", "m2", "m3"))
    await scene.put(
        node(OWN, MANAGER, MANAGER),
        node("m1", MANAGER, WORKER),
        node("m2", MANAGER, MANAGER),
        node("w1", WORKER, MANAGER),
    )
    async with scene:
        await scene.until(lambda: scene.role("m1") == WORKER and scene.role("w1") == MANAGER)
        await asyncio.sleep(0)
    assert sorted(scene.managers.reachable) == [OWN, "m2"]  # m3 had no node object any more


async def test_a_manager_whose_node_is_deleted_is_removed(store: Store) -> None:
    scene = Scene(store, Managers(OWN, "m1", "m2"))
    await scene.put(*three_nodes())
    async with scene:
        moved = asyncio.ensure_future(scene.managers.changed())
        await asyncio.sleep(0)
        await store.update(lambda tx: tx.delete(Node, "m1"))
        await asyncio.wait_for(moved, 3)
        assert scene.managers.asked == ["remove m1"]


async def test_a_demotion_that_waits_for_the_quorum_goes_on_when_it_is_there(store: Store) -> None:
    scene = Scene(store, Managers(OWN, "m1", "m2"))
    scene.managers.reachable["m2"] = False
    await scene.put(*three_nodes())
    async with scene:
        await scene.desire("m1", WORKER)
        await scene.put(node("w1", WORKER, MANAGER))
        await scene.until(lambda: scene.role("w1") == MANAGER)  # so m1 was looked at too
        assert scene.role("m1") == MANAGER
        assert "1 can be reached, and 2 are needed" in scene.role_manager.held["m1"]
        assert scene.managers.asked == []
        scene.managers.reachable["m2"] = True
        scene.managers.move()
        await scene.until(lambda: scene.role("m1") == WORKER)
        assert scene.role_manager.held == {}


async def test_the_leader_hands_over_and_leaves_its_removal_to_the_next_one(store: Store) -> None:
    scene = Scene(store, Managers(OWN, "m1", "m2"))
    await scene.put(*three_nodes())
    async with scene:
        await scene.desire(OWN, WORKER)
        await scene.put(node("w1", WORKER, MANAGER))
        await scene.until(lambda: scene.role("w1") == MANAGER)
        assert set(scene.managers.asked) == {"hand over"}
        assert scene.role(OWN) == MANAGER


async def test_a_leader_that_nobody_relieves_removes_itself(store: Store) -> None:
    scene = Scene(store, Managers(OWN, "m1", "m2"))
    scene.managers.refuses = {"hand over"}
    await scene.put(*three_nodes())
    async with scene:
        await scene.desire(OWN, WORKER)
        await scene.until(lambda: scene.role(OWN) == WORKER)
        assert scene.managers.asked == ["hand over", f"remove {OWN}"]


async def test_a_wish_taken_back_before_the_write_is_not_written(store: Store) -> None:
    scene = Scene(store, Managers(OWN))
    await scene.put(node("w1", WORKER, WORKER))
    await store.update(scene.role_manager._write(SetRole("w1", MANAGER)))
    assert scene.role("w1") == WORKER
