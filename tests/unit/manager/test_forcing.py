"""Making one manager the only one: what changes, what stays, and a kill at each step."""

from __future__ import annotations

from pathlib import Path

import pytest

from procs.manager import forcing
from procs.manager.store import Store, Tx
from procs.manager.store.engine import LEAP, Clock
from procs.manager.store.sqlite import SqliteEngine
from swarm.api import objects_pb2, specs_pb2, types_pb2
from swarm.clock import SystemClock
from swarm.paths import Paths

ME, GONE, WORKER = "me", "gone", "worker"
MANAGERS = {ME: types_pb2.MANAGER, GONE: types_pb2.MANAGER, WORKER: types_pb2.WORKER}
AFTER = {ME: types_pb2.MANAGER, GONE: types_pb2.WORKER, WORKER: types_pb2.WORKER}


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "s", tmp_path / "r")


async def begin(paths: Paths) -> Store:
    """As the manager opens its store."""
    leap = LEAP if forcing.is_ordered(paths) else 0
    return await Store.open(SqliteEngine(paths.manager / "store.db"), clock=SystemClock(), leap=leap)


async def founded(paths: Paths, roles: dict[str, types_pb2.NodeRole.ValueType]) -> Clock:
    store = await begin(paths)

    def write(tx: Tx) -> None:
        for id_, role in roles.items():
            node = objects_pb2.Node(id=id_, role=role)
            node.spec.desired_role = role
            node.spec.membership = specs_pb2.NodeSpec.ACCEPTED
            tx.create(node)
        service = objects_pb2.Service(id="web")
        service.spec.annotations.name = "web"
        tx.create(service)

    await store.update(write)
    clock = Clock(store.index, store.term, "")
    await store.close()
    return clock


def roles(store: Store) -> dict[str, types_pb2.NodeRole.ValueType]:
    found = store.find(objects_pb2.Node)
    assert all(node.role == node.spec.desired_role for node in found)
    return {node.id: node.role for node in found}


async def test_without_an_order_nothing_happens(paths: Paths) -> None:
    before = await founded(paths, MANAGERS)
    store = await begin(paths)
    await forcing.carry_out(store, paths, ME)
    assert roles(store) == MANAGERS
    assert (store.index, store.term) == (before.index + 1, before.term + 1)
    await store.close()


async def test_the_order_is_carried_out_once_and_everything_else_stays(paths: Paths) -> None:
    before = await founded(paths, MANAGERS)
    paths.forced.touch()
    store = await begin(paths)
    await forcing.carry_out(store, paths, ME)
    assert roles(store) == AFTER
    assert [service.id for service in store.find(objects_pb2.Service)] == ["web"]
    after = (store.index, store.term)
    assert after == (before.index + LEAP + 2, before.term + LEAP + 1)
    await store.close()
    assert not forcing.is_ordered(paths)
    store = await begin(paths)
    assert (store.index, store.term) == (after[0] + 1, after[1] + 1)
    await store.close()


@pytest.mark.parametrize("membership", [specs_pb2.NodeSpec.PENDING, specs_pb2.NodeSpec.ACCEPTED])
async def test_one_that_was_being_demoted_is_the_manager_again(
    paths: Paths, membership: specs_pb2.NodeSpec.Membership.ValueType
) -> None:
    await founded(paths, {**MANAGERS, ME: types_pb2.WORKER})
    paths.forced.touch()
    store = await begin(paths)

    def leave(tx: Tx) -> None:
        found = tx.get(objects_pb2.Node, ME)
        changed = objects_pb2.Node()
        assert found is not None
        changed.CopyFrom(found)
        changed.spec.membership = membership
        tx.update(changed)

    await store.update(leave)
    await forcing.carry_out(store, paths, ME)
    assert roles(store) == AFTER
    mine = store.get(objects_pb2.Node, ME)
    assert mine is not None
    assert mine.spec.membership == specs_pb2.NodeSpec.ACCEPTED
    await store.close()


class Killed(BaseException):
    pass


@pytest.mark.parametrize("step", ["before the transaction", "after the transaction"])
async def test_killed_at_any_step_the_next_start_does_the_rest(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    before = await founded(paths, MANAGERS)
    paths.forced.touch()
    store = await begin(paths)

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        if step == "before the transaction":
            patched.setattr(store, "update", die)
        else:
            patched.setattr(forcing, "remove_durably", die)
        with pytest.raises(Killed):
            await forcing.carry_out(store, paths, ME)
    await store.close()
    assert forcing.is_ordered(paths), "or nobody would go on with it"
    store = await begin(paths)
    await forcing.carry_out(store, paths, ME)
    assert roles(store) == AFTER
    assert store.index > before.index + 2 * LEAP
    assert not forcing.is_ordered(paths)
    await store.close()
