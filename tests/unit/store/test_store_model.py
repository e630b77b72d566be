"""The store against a plain dictionary: whatever is done in whatever order, both hold the same."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from procs.manager.store import Action, Store, Tx, Watch, by
from procs.manager.store.errors import AlreadyExists, NameConflict, NotExist, OutOfSequence, StoreError
from procs.manager.store.sqlite import SqliteEngine
from swarm.api import objects_pb2 as objects
from tests.unit.store.conftest import HandClock

IDS = st.sampled_from("abcdef")
NAMES = st.sampled_from(["web", "Web", "db", "cache"])
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("create"), IDS, NAMES),
        st.tuples(st.just("rename"), IDS, NAMES),
        st.tuples(st.just("stale"), IDS, NAMES),
        st.tuples(st.just("delete"), IDS, st.just("")),
        st.tuples(st.just("fail"), st.just(""), st.just("")),
    ),
    max_size=5,
)
Model = dict[str, str]
"""Id to name."""


class Dropped(Exception):
    """A transaction changed its mind."""


def expected(model: Model, changes: list[tuple[str, str, str]]) -> tuple[Model, type[Exception] | None]:
    """What a transaction of `changes` must leave, and what it must raise."""
    new = dict(model)
    for verb, id_, name in changes:
        owner = next((other for other, taken in new.items() if taken.lower() == name.lower()), None)
        if verb == "fail":
            return model, Dropped
        if verb == "create":
            if owner is not None:
                return model, NameConflict
            if id_ in new:
                return model, AlreadyExists
            new[id_] = name
        elif verb == "delete":
            if id_ not in new:
                return model, NotExist
            del new[id_]
        else:
            if owner not in (None, id_):
                return model, NameConflict
            if id_ not in new:
                return model, NotExist
            if verb == "stale":
                return model, OutOfSequence
            new[id_] = name
    return new, None


def perform(tx: Tx, changes: list[tuple[str, str, str]]) -> None:
    for verb, id_, name in changes:
        if verb == "fail":
            raise Dropped
        if verb == "delete":
            tx.delete(objects.Service, id_)
            continue
        service = objects.Service(id=id_)
        stored = tx.get(objects.Service, id_)
        if verb == "rename" and stored is not None:
            service.CopyFrom(stored)
        service.spec.annotations.name = name
        if verb == "stale":
            service.meta.version.index = 10**9
        if verb == "create":
            tx.create(service)
        else:
            tx.update(service)


class StoreMachine(RuleBasedStateMachine):
    """Transactions, alone and in groups, and restarts."""

    @initialize()
    def start(self) -> None:
        self.directory = tempfile.TemporaryDirectory(prefix="sv")
        self.runner = asyncio.Runner()
        self.model: Model = {}
        self.followed: Model = {}
        self.index = 0
        self.open()

    def open(self) -> None:
        engine = SqliteEngine(Path(self.directory.name) / "store.db")
        self.store: Store = self.runner.run(Store.open(engine, clock=HandClock()))
        self.watch: Watch = self.store.watch()
        self.runner.run(self.watch.__aenter__())

    @rule(group=st.lists(CHANGES, min_size=1, max_size=4))
    def transactions(self, group: list[list[tuple[str, str, str]]]) -> None:
        async def run() -> list[object]:
            writes = (self.store.update(lambda tx, changes=changes: perform(tx, changes)) for changes in group)
            return await asyncio.gather(*writes, return_exceptions=True)

        outcomes = self.runner.run(run())
        for changes, outcome in zip(group, outcomes, strict=True):
            self.model, error = expected(self.model, changes)
            assert (type(outcome) if isinstance(outcome, (StoreError, Dropped)) else outcome) == error

    @precondition(lambda self: self.model)
    @rule()
    def restart(self) -> None:
        self.runner.run(self.store.close())
        self.open()

    @invariant()
    def the_store_holds_what_the_model_holds(self) -> None:
        if not hasattr(self, "store"):
            return
        assert {s.id: s.spec.annotations.name for s in self.store.find(objects.Service)} == self.model
        for name in ("web", "db", "cache"):
            found = {s.id for s in self.store.find(objects.Service, by.name(name))}
            assert found == {id_ for id_, taken in self.model.items() if taken.lower() == name}

    @invariant()
    def the_watch_tells_the_same_story(self) -> None:
        if not hasattr(self, "store"):
            return
        for commit in self.watch.drain():
            assert commit.index > self.index
            self.index = commit.index
            for event in commit.events:
                if event.action is Action.DELETE:
                    del self.followed[event.object.id]
                else:
                    assert (event.object.id in self.followed) is (event.action is Action.UPDATE)
                    self.followed[event.object.id] = event.object.spec.annotations.name
        assert self.followed == self.model

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.runner.run(self.store.close())
            self.runner.close()
            self.directory.cleanup()


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)
