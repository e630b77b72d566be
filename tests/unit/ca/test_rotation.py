"""A root rotation from its start to its end, over a real store with a clock that is turned by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from procs.manager.ca import rotation
from procs.manager.ca.issuance import State
from procs.manager.ca.reconciler import Reconciler
from procs.manager.store import Store
from swarm.api import objects_pb2, specs_pb2
from swarm.errors import BadInput
from swarm.pki.crosssign import cross_sign
from swarm.pki.request import new_request
from swarm.pki.rootca import RootCA
from swarm.pki.tokens import JoinToken
from tests.tools.authority import Authority
from tests.unit.ca.test_ca import change, cluster, put


class HandClock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def monotonic(self) -> float:
        return self.seconds

    def wall_ns(self) -> int:
        return int((1_800_000_000 + self.seconds) * 1e9)


def node(id_: str, issuer: RootCA | None, state: int = State.ISSUED) -> objects_pb2.Node:
    made = objects_pb2.Node(id=id_)
    made.certificate.status.state = state  # type: ignore[assignment]
    if issuer is not None:
        follow(made, issuer)
    return made


def follow(node: objects_pb2.Node, issuer: RootCA) -> None:
    tls = node.description.tls_info
    tls.cert_issuer_subject, tls.cert_issuer_public_key = issuer.pool[0].subject, issuer.pool[0].public_key


def begin(old: RootCA, new: RootCA) -> Callable[[objects_pb2.Cluster], None]:
    def change(cluster: objects_pb2.Cluster) -> None:
        rotating = cluster.root_ca.root_rotation
        rotating.ca_cert, rotating.ca_key = new.certs, new.key_pem
        rotating.cross_signed_ca_cert = cross_sign(old, new.certs)

    return change


@asynccontextmanager
async def reconciling(store: Store, authority: Authority, clock: HandClock) -> AsyncIterator[None]:
    running = asyncio.create_task(Reconciler(store, authority.cluster_id, clock, interval=0.01).run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def until(store: Store, condition: Callable[[], Any]) -> None:
    """Until the committed store fulfils `condition`."""
    async with asyncio.timeout(5), store.watch() as watch:
        if condition():
            return
        async for _ in watch:
            if condition():
                return


def states(store: Store) -> dict[str, int]:
    return {found.id: found.certificate.status.state for found in store.find(objects_pb2.Node)}


def the_cluster(store: Store) -> objects_pb2.Cluster:
    (found,) = store.find(objects_pb2.Cluster)
    return found


@pytest.fixture
def authority() -> Authority:
    return Authority()


async def test_nodes_are_told_and_the_root_changes_when_the_last_has_followed(
    store: Store, authority: Authority
) -> None:
    old, new, clock = authority.root, RootCA.create(), HandClock()
    pending = node("unaccepted", new, State.PENDING)
    await put(store, cluster(authority), node("a", old), node("b", None), node("done", new), pending)
    async with reconciling(store, authority, clock):
        await change(store, objects_pb2.Cluster, authority.cluster_id, begin(old, new))
        await until(store, lambda: states(store)["a"] == states(store)["b"] == State.ROTATE)
        assert (states(store)["done"], states(store)["unaccepted"]) == (State.ISSUED, State.PENDING)
        await change(store, objects_pb2.Node, "a", lambda n: follow(n, new))
        assert the_cluster(store).root_ca.ca_cert == old.certs
        await change(store, objects_pb2.Node, "b", lambda n: follow(n, new))
        await until(store, lambda: the_cluster(store).root_ca.ca_cert == new.certs)
    root = the_cluster(store).root_ca
    assert (root.ca_key, root.HasField("root_rotation")) == (new.key_pem, False)
    assert root.ca_cert_hash == f"sha256:{new.digest}"
    for token in (root.join_tokens.worker, root.join_tokens.manager):
        assert JoinToken.parse(token).root_digest() == new.digest
    (bridge,) = rotation.read_bridges(store.side(rotation.BRIDGES))
    assert bridge.cross_signed == cross_signed_subject(bridge.cross_signed, new)


def cross_signed_subject(pem: bytes, new: RootCA) -> bytes:
    from swarm.pki.certificate import parse_bundle

    assert parse_bundle(pem)[0].public_key == new.pool[0].public_key
    return pem


async def test_a_rotation_from_before_the_start_goes_on_with_nodes_that_come_meanwhile(
    store: Store, authority: Authority
) -> None:
    """A node counts by its certificate alone: whether it was accepted, is up, or came during the rotation."""
    old, new, clock = authority.root, RootCA.create(), HandClock()
    there = cluster(authority)
    begin(old, new)(there)
    unaccepted = node("unaccepted", old)
    unaccepted.spec.membership = specs_pb2.NodeSpec.PENDING
    await put(store, there, unaccepted)
    async with reconciling(store, authority, clock):
        await until(store, lambda: states(store)["unaccepted"] == State.ROTATE)
        clock.seconds += 60.0
        await put(store, node("late", old), node("follower", new))
        await until(store, lambda: states(store)["late"] == State.ROTATE)
        await change(store, objects_pb2.Node, "unaccepted", lambda n: follow(n, new))
        assert the_cluster(store).root_ca.ca_cert == old.certs, "the late one holds it up"
        await change(store, objects_pb2.Node, "late", lambda n: follow(n, new))
        await until(store, lambda: the_cluster(store).root_ca.ca_cert == new.certs)
    assert states(store)["follower"] == State.ISSUED


async def test_where_everybody_has_followed_or_been_told_nothing_is_written(store: Store, authority: Authority) -> None:
    old, new, clock = authority.root, RootCA.create(), HandClock()
    there = cluster(authority)
    await put(store, there, node("a", old), node("b", new, State.ROTATE))
    async with reconciling(store, authority, clock):
        index = store.index
        await change(store, objects_pb2.Node, "a", lambda n: setattr(n.description, "hostname", "x"))
        assert store.index == index + 1, "no rotation runs"
        await change(store, objects_pb2.Node, "a", lambda n: setattr(n.certificate.status, "state", State.ROTATE))
        await change(store, objects_pb2.Cluster, authority.cluster_id, begin(old, new))
        clock.seconds += 60.0
        await change(store, objects_pb2.Node, "a", lambda n: setattr(n.description, "hostname", "y"))
        assert store.index == index + 4, "who was told is not told again"
        assert the_cluster(store).root_ca.ca_cert == old.certs


async def test_it_ends_even_if_something_changes_in_the_moment_of_its_end(store: Store, authority: Authority) -> None:
    """`asyncio.wait_for` lost the cancellation then, and the manager never came to its end."""
    there = cluster(authority)
    begin(authority.root, RootCA.create())(there)
    await put(store, there, node("a", authority.root))
    running = asyncio.create_task(Reconciler(store, authority.cluster_id, HandClock()).run())
    await until(store, lambda: states(store)["a"] == State.ROTATE)
    await change(store, objects_pb2.Node, "a", lambda n: setattr(n.description, "hostname", "x"))
    running.cancel()
    done, _ = await asyncio.wait({running}, timeout=5)
    assert done


async def test_ten_rotations_one_after_the_other_end_on_the_last_root(store: Store, authority: Authority) -> None:
    roots, clock = [RootCA.create() for _ in range(10)], HandClock()
    await put(store, cluster(authority), node("a", authority.root), node("b", authority.root))
    async with reconciling(store, authority, clock):
        for new in roots:
            await change(store, objects_pb2.Cluster, authority.cluster_id, begin(authority.root, new))
        for name in ("a", "b"):
            await change(store, objects_pb2.Node, name, lambda n: follow(n, roots[-1]))
        await until(store, lambda: the_cluster(store).root_ca.ca_cert == roots[-1].certs)
    assert not the_cluster(store).root_ca.HasField("root_rotation")


async def test_a_removed_node_holds_nothing_up(store: Store, authority: Authority) -> None:
    new = RootCA.create()
    await put(store, cluster(authority), node("dead", authority.root))
    async with reconciling(store, authority, HandClock()):
        await change(store, objects_pb2.Cluster, authority.cluster_id, begin(authority.root, new))
        await until(store, lambda: states(store)["dead"] == State.ROTATE)
        await store.update(lambda tx: tx.delete(objects_pb2.Node, "dead"))
        await until(store, lambda: the_cluster(store).root_ca.ca_cert == new.certs)


async def test_another_rotation_in_the_middle_ends_on_the_last_root(store: Store, authority: Authority) -> None:
    old, second, third, clock = authority.root, RootCA.create(), RootCA.create(), HandClock()
    await put(store, cluster(authority), node("a", old), node("b", old))
    async with reconciling(store, authority, clock):
        await change(store, objects_pb2.Cluster, authority.cluster_id, begin(old, second))
        await until(store, lambda: set(states(store).values()) == {State.ROTATE})

        def renewed(found: objects_pb2.Node) -> None:
            found.certificate.status.state = State.ISSUED
            follow(found, second)

        await change(store, objects_pb2.Node, "a", renewed)
        await change(store, objects_pb2.Cluster, authority.cluster_id, begin(old, third))
        await until(store, lambda: states(store)["a"] == State.ROTATE)
        for name in ("a", "b"):
            await change(store, objects_pb2.Node, name, lambda n: follow(n, third))
        await until(store, lambda: the_cluster(store).root_ca.ca_cert == third.certs)
    assert second.certs not in the_cluster(store).SerializeToString()


async def test_a_rotation_that_was_given_up_changes_nothing(store: Store, authority: Authority) -> None:
    new = RootCA.create()
    await put(store, cluster(authority), node("a", authority.root))
    async with reconciling(store, authority, HandClock()):
        await change(store, objects_pb2.Cluster, authority.cluster_id, begin(authority.root, new))
        await until(store, lambda: states(store)["a"] == State.ROTATE)
        await change(store, objects_pb2.Cluster, authority.cluster_id, lambda c: c.root_ca.ClearField("root_rotation"))
        await change(store, objects_pb2.Node, "a", lambda n: follow(n, new))
        await put(store, node("b", authority.root))
        await change(store, objects_pb2.Node, "b", lambda n: setattr(n.description, "hostname", "x"))
    assert states(store) == {"a": State.ROTATE, "b": State.ISSUED}
    assert the_cluster(store).root_ca.ca_cert == authority.root.certs


def test_at_most_a_batch_is_told_and_busy_ones_are_left_alone() -> None:
    old, new = RootCA.create(), RootCA.create()
    nodes = [node(f"n{i:02}", old) for i in range(60)]
    for number, state in enumerate((State.RENEW, State.PENDING, State.ROTATE)):
        nodes[number].certificate.status.state = state
    behind, told = rotation.Follow(new.pool[0]).batch(nodes, 0.0)
    assert (len(behind), told) == (60, [f"n{i:02}" for i in range(3, 33)])


def test_who_has_the_new_certificate_but_did_not_say_so_gets_time_and_then_another_word() -> None:
    new = RootCA.create()
    _, csr = new_request()
    waiting = node("a", RootCA.create())
    waiting.certificate.certificate = new.sign(csr, "a", "swarm-worker", "swarm", 7200)
    follow = rotation.Follow(new.pool[0])
    assert follow.batch([waiting], 10.0) == (["a"], [])
    assert follow.batch([waiting], 10.0 + rotation.INSTALL_SECONDS - 0.1) == (["a"], [])
    assert follow.batch([waiting], 10.0 + rotation.INSTALL_SECONDS) == (["a"], ["a"])


def test_bridges_are_kept_for_the_grace_only() -> None:
    kept = [rotation.Bridge(b"one", 1000), rotation.Bridge(b"two", 2000)]
    assert rotation.read_bridges(rotation.write_bridges(kept)) == kept
    assert rotation.read_bridges(None) == []
    assert rotation.young(kept, 500, 1499) == kept
    assert rotation.young(kept, 500, 1500) == kept[1:]
    with pytest.raises(BadInput):
        rotation.read_bridges(b'{"x": 1}')
