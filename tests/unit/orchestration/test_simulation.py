"""The whole leader over a real store in a file, agents that obey, and time turned by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path

from procs.manager.orchestration.leader import lead
from procs.manager.orchestration.view import timestamp
from procs.manager.store import Store
from swarm.api.objects_pb2 import Node, Service, Task
from swarm.api.specs_pb2 import NodeSpec
from swarm.api.types_pb2 import (
    ASSIGNED,
    COMPLETE,
    FAILED,
    PENDING,
    READY,
    REMOVE,
    RUNNING,
    SHUTDOWN,
    NodeStatus,
    RestartPolicy,
)
from tests.unit.orchestration.hand_loop import LoopClock, by_hand, opened, quiet, running, turn, until
from tests.unit.orchestration.world import cluster, node, service


async def agents(store: Store) -> None:
    """Every agent whose node is READY does what its tasks shall do, and reports it."""

    def act(tx) -> None:
        for task in tx.find(Task):
            if not ASSIGNED <= task.status.state <= RUNNING:
                continue
            place = tx.get(Node, task.node_id)
            if place is None or place.status.state != NodeStatus.READY:
                continue
            state = SHUTDOWN if task.desired_state > RUNNING else min(task.desired_state, RUNNING)
            if state > task.status.state:
                report(tx, task, state)

    async with store.watch() as watch:
        while True:
            await store.update(act)
            await anext(watch)
            watch.drain()


def report(tx, task: Task, state) -> None:
    copy = Task()
    copy.CopyFrom(task)
    copy.status.state = state
    copy.status.applied_at.CopyFrom(timestamp(LoopClock().wall_ns()))
    tx.update(copy)


class Swarm:
    """What a user and the nodes do."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def tasks(self) -> list[Task]:
        return sorted(self.store.find(Task), key=lambda t: (t.slot, t.meta.created_at.ToNanoseconds()))

    def up(self) -> list[Task]:
        return [t for t in self.tasks() if t.status.state == RUNNING and t.desired_state == RUNNING]

    async def create(self, *objects) -> None:
        await self.store.update(lambda tx: [tx.create(obj) for obj in objects] and None)

    async def change(self, kind, id_: str, edit: Callable) -> None:
        def write(tx) -> None:
            copy = kind()
            copy.CopyFrom(tx.get(kind, id_))
            edit(copy)
            tx.update(copy)

        await self.store.update(write)

    async def scale(self, replicas: int) -> None:
        def edit(s) -> None:
            s.spec_version.index = s.meta.version.index
            s.spec.replicated.replicas = replicas

        await self.change(Service, "s", edit)

    async def end(self, task: Task, state=FAILED) -> None:
        await self.store.update(lambda tx: report(tx, tx.get(Task, task.id), state))

    async def settled(self, replicas: int) -> None:
        """As many run, and nothing else is left that is not history."""
        await until(
            self.store,
            lambda: (
                len(self.up()) == replicas
                and not [t for t in self.tasks() if t.desired_state == REMOVE]
                and not [t for t in self.tasks() if t.desired_state <= RUNNING and t.status.state != RUNNING]
            ),
        )


@asynccontextmanager
async def swarm(path: Path, *objects):
    async with opened(path) as store:
        made = Swarm(store)
        await made.create(cluster(), *objects)
        async with running(lead(store, LoopClock())), running(agents(store)):
            yield made


def test_create_scale_to_twenty_and_to_zero(tmp_path: Path) -> None:
    async def main() -> None:
        async with swarm(tmp_path, node("a"), node("b")) as s:
            await s.create(service("s", 3))
            await s.settled(3)
            first = {t.id for t in s.up()}
            await s.scale(20)
            await s.settled(20)
            assert first <= {t.id for t in s.up()}
            assert Counter(t.node_id for t in s.up()) == {"a": 10, "b": 10}
            await s.scale(0)
            await s.settled(0)
            assert s.tasks() == []

    by_hand(main)


def test_drain_and_activate(tmp_path: Path) -> None:
    async def main() -> None:
        async with swarm(tmp_path, node("a"), node("b"), service("s", 6, delay=5)) as s:
            await s.settled(6)
            await s.change(Node, "a", lambda n: setattr(n.spec, "availability", NodeSpec.DRAIN))
            await until(s.store, lambda: {t.node_id for t in s.up()} == {"b"} and len(s.up()) == 6)
            await s.change(Node, "a", lambda n: setattr(n.spec, "availability", NodeSpec.ACTIVE))
            await s.scale(12)
            await s.settled(12)
            assert Counter(t.node_id for t in s.up()) == {"a": 6, "b": 6}

    by_hand(main)


def test_a_node_goes_down_and_its_tasks_move_after_the_delay(tmp_path: Path) -> None:
    async def main() -> None:
        async with swarm(tmp_path, node("a"), node("b"), service("s", 4, delay=5)) as s:
            await s.settled(4)
            await s.change(Node, "a", lambda n: setattr(n.status, "state", NodeStatus.DOWN))
            await quiet(s.store)
            turn(4.9)
            await quiet(s.store)
            assert len([t for t in s.up() if t.node_id == "b"]) == 2
            turn(0.2)
            await until(s.store, lambda: len([t for t in s.up() if t.node_id == "b"]) == 4)

    by_hand(main)


def test_restart_conditions_and_attempts(tmp_path: Path) -> None:
    async def main() -> None:
        policy = {"condition": RestartPolicy.ON_FAILURE, "delay": 2, "attempts": 2}
        async with swarm(tmp_path, node("a"), service("s", 2, **policy)) as s:
            await s.settled(2)
            await s.end(s.up()[1], COMPLETE)
            for _ in range(2):
                first = s.up()[0]
                await s.end(first)
                await until(s.store, lambda: any(t.status.state == READY for t in s.tasks()))
                assert not s.up()
                turn(2)
                await s.settled(1)
                assert s.up()[0].slot == first.slot
            await s.end(s.up()[0])
            await quiet(s.store)
            turn(60)
            await quiet(s.store)
            assert s.up() == []
            assert Counter(t.slot for t in s.tasks()) == {1: 3, 2: 1}
            assert all(t.desired_state == SHUTDOWN for t in s.tasks())

    by_hand(main)


def test_the_history_limit(tmp_path: Path) -> None:
    async def main() -> None:
        async with swarm(tmp_path, node("a"), service("s", 1)) as s:
            for _ in range(9):
                await s.settled(1)
                await s.end(s.up()[0])
                await until(s.store, lambda: len(s.up()) == 1 or not s.up())
            await s.settled(1)
            await quiet(s.store)
            assert [t.status.state for t in s.tasks()] == [FAILED] * 4 + [RUNNING]

    by_hand(main)


def test_what_does_not_fit_says_why_and_comes_when_there_is_room(tmp_path: Path) -> None:
    async def main() -> None:
        async with swarm(tmp_path, node("a", cpu=2), service("s", 3, cpu=1)) as s:
            reason = "no suitable node (insufficient resources on 1 node)"
            await until(s.store, lambda: len(s.up()) == 2 and any(t.status.err == reason for t in s.tasks()))
            await s.create(node("b", cpu=1))
            await s.settled(3)
            assert not any(t.status.err for t in s.tasks())

    by_hand(main)


def test_the_next_leader_goes_on_where_the_last_one_was_killed(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as store:
            s = Swarm(store)
            await s.create(cluster(), node("a"), node("b"), service("s", 40, delay=5))
            for kill_after in (1, 3, 5, 8, 13):
                async with running(lead(store, LoopClock())), running(agents(store)), store.watch() as watch:
                    for _ in range(kill_after):
                        if sum(t.status.state == RUNNING for t in s.tasks()) == 40:
                            break
                        await anext(watch)
            async with running(lead(store, LoopClock())), running(agents(store)):
                await s.settled(40)
                assert sorted(t.slot for t in s.tasks()) == list(range(1, 41))
                await s.end(s.up()[0])
                await until(store, lambda: any(t.status.state == READY for t in s.tasks()))
            turn(3)
            async with running(lead(store, LoopClock())), running(agents(store)):
                await quiet(store)
                assert len(s.up()) == 39
                turn(2)
                await s.settled(40)

    by_hand(main)


def test_removing_a_service_leaves_nothing_even_if_the_leader_dies_in_between(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as store:
            s = Swarm(store)
            await s.create(cluster(), node("a"), service("s", 5))
            async with running(lead(store, LoopClock())), running(agents(store)):
                await s.settled(5)
            await store.update(lambda tx: tx.delete(Service, "s"))
            async with running(lead(store, LoopClock())), running(agents(store)):
                await until(store, lambda: store.count(Task) == 0)

    by_hand(main)


def test_a_thousand_tasks_are_a_few_transactions(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as store:
            s = Swarm(store)
            await s.create(cluster(), *(node(f"n{n:02}", cpu=100) for n in range(10)))
            async with running(lead(store, LoopClock())):
                await quiet(store)
                before = store.index
                await s.create(service("s", 1000))
                await until(store, lambda: sum(t.status.state == ASSIGNED for t in s.tasks()) == 1000)
                assert store.index - before < 40
                assert not [t for t in s.tasks() if t.status.state == PENDING]

    by_hand(main)
