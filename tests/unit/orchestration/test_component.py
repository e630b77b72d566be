"""The shell around the brains, over a real store: it acts at once, takes together what came meanwhile, decides anew
what could not be written, and dies of anything else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from procs.manager.orchestration import component as shell
from procs.manager.orchestration import leader
from procs.manager.orchestration.component import BATCH, CONFLICTS, run
from procs.manager.orchestration.writes import Create, Desire, Remove, Unit
from procs.manager.store.errors import NotExist, StoreFull
from procs.manager.store.sqlite import SqliteEngine
from swarm.api.objects_pb2 import Node, Service, Task
from swarm.api.types_pb2 import RUNNING, SHUTDOWN
from tests.unit.orchestration.hand_loop import LoopClock, by_hand, opened, quiet, running, turn, until
from tests.unit.orchestration.world import node, service


class Doubler:
    """For every node, a task named after it."""

    name = "doubler"

    def __init__(self) -> None:
        self.nodes: list[str] = []
        self.decisions: list[list[str]] = []
        self.resyncs = 0

    def resync(self, view) -> None:
        self.resyncs += 1
        self.nodes = [n.id for n in view.find(Node) if view.get(Task, n.id) is None]

    def observe(self, event) -> None:
        if isinstance(event.object, Node):
            self.nodes.append(event.object.id)

    def wake_at(self) -> float | None:
        return 0.0 if self.nodes else None

    def decide(self, view, now) -> Iterator[Unit]:
        self.decisions.append(list(self.nodes))
        for id_ in list(self.nodes):
            if view.get(Task, id_) is None:
                yield (Create(Task(id=id_)),)
            self.nodes.remove(id_)


class Faulty(SqliteEngine):
    """Fails as many writes as it is told to, or holds them."""

    full = 0
    gate: asyncio.Event | None = None

    async def write(self, batch, expected, new) -> None:
        if Faulty.gate is not None:
            await Faulty.gate.wait()
        if batch and Faulty.full:
            Faulty.full -= 1
            raise StoreFull("no room")
        await super().write(batch, expected, new)


@pytest.fixture(autouse=True)
def healthy() -> Iterator[None]:
    yield
    Faulty.full, Faulty.gate = 0, None


def test_it_finds_what_is_there_and_acts_on_what_comes_without_time_passing(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as store:
            await store.update(lambda tx: tx.create(node("a")))
            async with running(run(Doubler(), store, LoopClock())):
                await until(store, lambda: store.get(Task, "a") is not None)
                await store.update(lambda tx: tx.create(node("b")))
                await until(store, lambda: store.get(Task, "b") is not None)

    by_hand(main)


def test_what_comes_while_a_write_is_in_flight_is_taken_together(tmp_path: Path) -> None:
    async def main() -> None:
        brain = Doubler()
        async with opened(tmp_path, Faulty) as store, running(run(brain, store, LoopClock())):
            await store.update(lambda tx: tx.create(node("a")))
            Faulty.gate = asyncio.Event()
            for _ in range(20):
                await asyncio.sleep(0)  # the brain's write is in the engine now
            later = [asyncio.ensure_future(store.update(lambda tx, n=n: tx.create(node(n)))) for n in "bcdef"]
            await asyncio.sleep(0)
            Faulty.gate.set()
            await asyncio.gather(*later)
            await until(store, lambda: store.count(Task) == 6)
            assert brain.decisions == [["a"], ["b", "c", "d", "e", "f"]]

    by_hand(main)


def test_a_full_disk_is_survived_and_everything_decided_anew(tmp_path: Path) -> None:
    async def main() -> None:
        brain = Doubler()
        async with opened(tmp_path, Faulty) as store, running(run(brain, store, LoopClock())) as component:
            await store.update(lambda tx: tx.create(node("a")))
            Faulty.full = 3
            while store.get(Task, "a") is None:
                turn(shell.RETRY.cap)
                await asyncio.sleep(0)
            assert not component.done()
            assert brain.resyncs == 4

    by_hand(main)


@pytest.mark.parametrize("error", [ValueError("defect"), NotExist()])
def test_a_defective_brain_ends_its_component_and_with_it_the_others(tmp_path: Path, monkeypatch, error) -> None:
    class Defective(Doubler):
        tries = 0

        def wake_at(self):
            return 0.0

        def decide(self, view, now):
            Defective.tries += 1
            raise error
            yield

    async def main() -> None:
        monkeypatch.setattr(leader, "components", lambda: [Doubler(), Defective()])
        async with opened(tmp_path) as store:
            await store.update(lambda tx: tx.create(node("a")))
            lead = asyncio.ensure_future(leader.lead(store, LoopClock()))
            while not lead.done():
                turn(shell.RETRY.cap)
                await quiet(store, 2)
            with pytest.raises(ExceptionGroup) as caught:
                await lead
            assert caught.value.exceptions == (error,)
            assert Defective.tries == (CONFLICTS + 1 if isinstance(error, NotExist) else 1)

    by_hand(main)


def test_a_timer_fires_when_its_time_has_come(tmp_path: Path) -> None:
    class Alarm(Doubler):
        def wake_at(self):
            return 1010.0 if self.nodes else None

    async def main() -> None:
        async with opened(tmp_path) as store, running(run(Alarm(), store, LoopClock())):
            await store.update(lambda tx: tx.create(node("a")))
            await quiet(store)
            turn(9.5)
            await quiet(store)
            assert store.get(Task, "a") is None
            turn(0.5)
            await until(store, lambda: store.get(Task, "a") is not None)

    by_hand(main)


def test_many_writes_are_cut_into_transactions_of_bounded_size_but_no_unit_is_cut(tmp_path: Path) -> None:
    class Pairs(Doubler):
        def decide(self, view, now):
            while len(view.find(Task)) < 2 * BATCH:
                number = len(view.find(Task))
                yield tuple(Create(Task(id=f"{number + n:05}")) for n in range(3))
            self.nodes.clear()

    async def main() -> None:
        async with opened(tmp_path) as store, store.watch() as watch, running(run(Pairs(), store, LoopClock())):
            await store.update(lambda tx: tx.create(node("a")), cause="the user")
            sizes = []
            while store.count(Task) < 2 * BATCH or not sizes:
                commit = await anext(watch)
                if isinstance(commit.events[0].object, Task):
                    sizes.append(len(commit.events))
            sizes += [len(commit.events) for commit in watch.drain()]
            assert len(sizes) == 2
            assert all(BATCH <= size < BATCH + 3 and size % 3 == 0 for size in sizes[:-1])

    by_hand(main)


def test_the_cause_is_handed_on(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as store, store.watch() as watch, running(run(Doubler(), store, LoopClock())):
            await store.update(lambda tx: tx.create(node("a")), cause="request 7")
            await store.update(lambda tx: tx.create(service("s")), cause="request 8")
            await quiet(store)
            await store.update(lambda tx: tx.create(node("b")))
            causes = {}
            while len(causes) < 2:
                commit = await anext(watch)
                causes |= {e.object.id: commit.cause for e in commit.events if isinstance(e.object, Task)}
            assert causes == {"a": "request 7", "b": "doubler"}

    by_hand(main)


def test_units_see_those_before_them(tmp_path: Path) -> None:
    class Chain(Doubler):
        def decide(self, view, now):
            for id_ in self.nodes:
                yield (Create(Task(id=id_, desired_state=RUNNING)),)
                yield (Desire(id_, SHUTDOWN),)
                assert view.get(Task, id_).desired_state == SHUTDOWN
                yield (Remove(id_),)
            self.nodes = []
            yield (Create(Task(id="end")),)

    async def main() -> None:
        async with opened(tmp_path) as store, running(run(Chain(), store, LoopClock())):
            await store.update(lambda tx: tx.create(node("a")))
            await until(store, lambda: store.get(Task, "end") is not None)
            assert store.get(Task, "a") is None

    by_hand(main)


def test_every_component_can_be_started_on_any_store(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as store:
            await store.update(lambda tx: (tx.create(node("a")), tx.create(service("s", 3))))
            for made in leader.components():
                async with running(run(made, store, LoopClock())) as task:
                    await quiet(store)
                    assert not task.done()
            assert [t.node_id for t in store.find(Task)] == ["a"] * 3
            assert store.get(Service, "s") is not None

    by_hand(main)
