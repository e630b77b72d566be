"""Who gets a new certificate for an expired one, check by check, at the real service over a real store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from procs.manager.ca import reenrol
from procs.manager.ca.grace import DEFAULT, LABEL, grace_of, parse_grace
from procs.manager.ca.server import CAServer
from procs.manager.ca.service import NO_TOKEN, NodeCAService
from procs.manager.status import Status
from procs.manager.store import Store
from swarm.api import ca_pb2, objects_pb2, raft_pb2, types_pb2
from swarm.api.reenrol_pb2 import ReenrolProof
from swarm.errors import BadInput
from swarm.pki.certificate import Certificate, parse_bundle
from swarm.pki.chain import validate_chain
from swarm.pki.credentials import Credentials, make_credentials
from swarm.pki.reenrol import GRACE_OVER, METADATA, REFUSED, REMOVED, TOO_SOON, make_proof, parse_proof, words
from swarm.pki.request import new_request
from tests.tools.authority import Authority
from tests.unit.ca.test_ca import MANAGER_TOKEN, WORKER_TOKEN, Context, change, cluster, put

DAY = 24 * 3600.0


@dataclass
class FarClock:
    """The manager's clock, `days` ahead of the one under which certificates were issued."""

    days: float = 0.0
    seconds: float = 0.0

    def monotonic(self) -> float:
        self.seconds += 1.0  # every look at it is a second later
        return self.seconds

    def wall_ns(self) -> int:
        return int((time.time() + self.days * DAY) * 1e9)


@dataclass
class Caller(Context):
    """A stranger with a proof, and what the manager tells beside the status."""

    proof: bytes = b""
    trailing: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        Context.__init__(self)

    def invocation_metadata(self) -> Any:
        return ((METADATA, self.proof),) if self.proof else ()

    def set_trailing_metadata(self, pairs: Any) -> None:
        self.trailing = dict(pairs)


class Members:
    def __init__(self) -> None:
        self.ids: list[str] = []

    def members(self) -> list[raft_pb2.RaftMember]:
        return [raft_pb2.RaftMember(node_id=node_id) for node_id in self.ids]


@dataclass
class World:
    store: Store
    authority: Authority
    service: NodeCAService
    clock: FarClock
    members: Members

    async def join(self, token: str = WORKER_TOKEN) -> Credentials:
        key, csr = new_request()
        request = ca_pb2.IssueNodeCertificateRequest(csr=csr, token=token)
        joined = await self.service.IssueNodeCertificate(request, Context())
        return await self.fetch(joined.node_id, key)

    async def fetch(self, node_id: str, key: bytes) -> Credentials:
        question = ca_pb2.NodeCertificateStatusRequest(node_id=node_id)
        status = await asyncio.wait_for(self.service.NodeCertificateStatus(question, Context()), 5)
        assert status.status.state == types_pb2.IssuanceStatus.ISSUED, status.status.err
        chain = status.certificate.certificate
        return make_credentials(validate_chain(self.authority.root.pool, chain), chain, key, self.authority.root.certs)

    def proof(self, held: Credentials, csr: bytes, **other: Any) -> bytes:
        said = {"cluster_id": held.cluster_id, "node_id": held.node_id, "issued_at": self.clock.wall_ns(), **other}
        leaf = parse_bundle(held.certificate_pem)[0]
        return make_proof(said["cluster_id"], said["node_id"], leaf, held.key_pem, csr, said["issued_at"])

    async def send(self, csr: bytes, proof: bytes, token: str = "") -> str:
        """Node id of the answer; else `!` and the marker of the refusal."""
        caller = Caller(proof=proof)
        request = ca_pb2.IssueNodeCertificateRequest(csr=csr, token=token)
        try:
            return str((await self.service.IssueNodeCertificate(request, caller)).node_id)
        except Status as refusal:
            assert (refusal.code, refusal.message) == (grpc.StatusCode.INVALID_ARGUMENT, NO_TOKEN)
            return "!" + caller.trailing.get(REFUSED, "")

    async def ask(self, held: Credentials, token: str = "", **other: Any) -> str:
        _, csr = new_request()
        return await self.send(csr, self.proof(held, csr, **other), token)


@pytest.fixture
async def world(store: Store) -> AsyncIterator[World]:
    authority, clock, members = Authority(), FarClock(), Members()
    await put(store, cluster(authority))
    server = CAServer(store, authority.cluster_id)
    running = asyncio.create_task(server.run())
    await asyncio.sleep(0)
    service = NodeCAService(store, server, authority.cluster_id, members=members, clock=clock)
    yield World(store, authority, service, clock, members)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_an_expired_node_gets_a_new_certificate_under_its_own_name(world: World) -> None:
    old = await world.join()
    world.clock.days = 100
    key, csr = new_request()
    proof = world.proof(old, csr)
    assert await world.send(csr, proof) == old.node_id
    new = await world.fetch(old.node_id, key)
    assert (new.node_id, new.role) == (old.node_id, "worker")
    index = world.store.index
    assert await world.send(csr, proof) == old.node_id, "its answer was lost: the same again"
    assert world.store.index == index, "and nothing is written"
    assert await world.ask(old) == old.node_id, "it lost the new key before it was on disk: the old one still counts"


async def test_once_the_new_certificate_was_used_the_old_key_proves_nothing(world: World) -> None:
    old = await world.join()
    world.clock.days = 100
    key, csr = new_request()
    assert await world.send(csr, world.proof(old, csr)) == old.node_id
    new = await world.fetch(old.node_id, key)
    await world.store.update(lambda tx: reenrol.note_leaf(tx, old.node_id, new.fingerprint))
    assert await world.ask(old) == "!not-latest"
    world.clock.days = 120
    assert await world.ask(new) == new.node_id


async def test_a_renewal_that_never_arrived_leaves_the_older_certificate_good(world: World) -> None:
    old = await world.join()
    _, csr = new_request()
    await world.service._renew(old.node_id, csr, old.fingerprint)
    world.clock.days = 100
    assert await world.ask(old) == old.node_id


@pytest.mark.parametrize(("days", "answer"), [(80, "!not-expired"), (90.5, ""), (179, ""), (181, "!grace-over")])
async def test_only_between_the_end_and_the_grace(world: World, days: float, answer: str) -> None:
    old = await world.join()
    world.clock.days = days
    assert await world.ask(old) == (answer or old.node_id)


async def test_the_grace_is_a_label_of_the_cluster_and_a_token_stands_above_it(world: World) -> None:
    old = await world.join()
    await change(
        world.store,
        objects_pb2.Cluster,
        world.authority.cluster_id,
        lambda c: c.spec.annotations.labels.update({LABEL: "0"}),
    )
    world.clock.days = 91
    assert await world.ask(old) == "!grace-over"
    assert await world.ask(old, token="wrong") == "!grace-over"
    world.clock.days = 500
    assert await world.ask(old, token=WORKER_TOKEN) == old.node_id


async def test_a_manager_gets_fourteen_days_and_only_while_it_is_one(world: World) -> None:
    old = await world.join(MANAGER_TOKEN)
    world.clock.days = 95
    assert await world.ask(old) == "!removed"
    world.members.ids.append(old.node_id)
    world.clock.days = 105
    assert await world.ask(old) == "!grace-over"
    world.clock.days = 95
    assert await world.ask(old) == old.node_id


async def test_who_was_removed_is_told_so(world: World) -> None:
    old, listed = await world.join(), await world.join()
    world.clock.days = 100
    await world.store.update(lambda tx: tx.delete(objects_pb2.Node, old.node_id))
    assert await world.ask(old) == "!removed"
    await change(
        world.store,
        objects_pb2.Cluster,
        world.authority.cluster_id,
        lambda c: c.blacklisted_certificates[listed.node_id].SetInParent(),
    )
    assert await world.ask(listed) == "!removed"


async def test_a_proof_serves_one_request_of_one_node_of_one_swarm_once(world: World) -> None:
    old, other = await world.join(), await world.join()
    world.clock.days = 100
    assert await world.ask(old, cluster_id="another") == "!"
    assert await world.ask(old, node_id=other.node_id) == "!"
    _, csr = new_request()
    _, mine = new_request()
    proof = world.proof(old, csr)
    assert await world.send(mine, proof) == "!", "overheard, and sent with another key"
    early = world.proof(old, mine, issued_at=world.clock.wall_ns() - 10**9)
    assert await world.send(csr, proof) == old.node_id
    assert await world.send(mine, early) == "!not-latest"
    foreign = Authority(cluster_id=world.authority.cluster_id).issue("worker", node_id=old.node_id)
    assert await world.ask(foreign) == "!"
    elsewhere = world.authority.issue("worker", node_id=old.node_id, organization="another")
    assert await world.ask(elsewhere) == "!"


async def test_a_certificate_of_a_rotation_that_was_replaced_counts_for_the_node_that_was_given_it(
    world: World,
) -> None:
    old, other = await world.join(), await world.join()
    abandoned = Authority(cluster_id=world.authority.cluster_id)
    given = abandoned.issue("worker", node_id=old.node_id)
    world.clock.days = 100
    assert await world.ask(given) == "!", "as a stranger: nobody knows it"
    await change(
        world.store,
        objects_pb2.Node,
        old.node_id,
        lambda n: setattr(n.certificate, "certificate", given.certificate_pem),
    )
    assert await world.ask(given) == old.node_id
    assert await world.ask(abandoned.issue("worker", node_id=other.node_id)) == "!"


@pytest.mark.parametrize(
    ("marker", "with_token", "role", "said"),
    [
        (GRACE_OVER, False, "worker", "`swarmvisor rejoin` with a join token"),
        (GRACE_OVER, True, "worker", "not a join token of the swarm at present"),
        (GRACE_OVER, True, "manager", "`swarmvisor node demote` it on another manager"),
        (REMOVED, True, "worker", "`swarmvisor leave --force`, then join again"),
        (TOO_SOON, False, "worker", "it asks again by itself"),
        ("news" * 20, False, "worker", "refused: 'newsnews"),
    ],
)
def test_a_refusal_says_what_to_do(marker: str, with_token: bool, role: str, said: str) -> None:
    assert said in words(marker, with_token=with_token, role=role)


async def test_at_most_one_proof_a_node_and_second(world: World) -> None:
    old = await world.join()
    world.clock.days = 80
    pace = reenrol.Pace()
    pace.admit(old.node_id, 10.0)
    pace.admit("another", 10.5)
    with pytest.raises(reenrol.NotTaken, match="too many"):
        pace.admit(old.node_id, 10.9)
    pace.admit(old.node_id, 11.0)


ISSUED = Authority().issue("worker")
LEAF = parse_bundle(ISSUED.certificate_pem)[0]
_, CSR = new_request()
PROOF = make_proof(ISSUED.cluster_id, ISSUED.node_id, LEAF, ISSUED.key_pem, CSR, 1)


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | st.tuples(st.integers(0, len(PROOF) - 1), st.integers(1, 255)))
def test_no_bytes_but_the_right_ones_are_a_proof(noise: bytes | tuple[int, int]) -> None:
    if isinstance(noise, bytes):
        data = noise
    else:
        at, flip = noise
        data = PROOF[:at] + bytes([PROOF[at] ^ flip]) + PROOF[at + 1 :]
    try:
        found = parse_proof(data)
    except BadInput:
        return
    assert not found.is_signed(ISSUED.cluster_id, ISSUED.node_id, CSR)


def test_sizes_and_versions_are_bounded() -> None:
    assert parse_proof(PROOF).is_signed(ISSUED.cluster_id, ISSUED.node_id, CSR)
    good = ReenrolProof.FromString(PROOF)
    for wrong in (
        {"version": 2},
        {"leaf": b""},
        {"leaf": good.leaf + b"\0" * 4096},
        {"signature": b""},
        {"issued_at": -1},
        {"signature": b"x" * 9000},
    ):
        changed = ReenrolProof.FromString(PROOF)
        for name, value in wrong.items():
            setattr(changed, name, value)
        with pytest.raises(BadInput):
            parse_proof(changed.SerializeToString())
    assert Certificate.load(good.leaf) == LEAF


@pytest.mark.parametrize(("text", "seconds"), [("90d", 90 * DAY), ("36h", 36 * 3600), ("10m", 600), ("5", 5), ("0", 0)])
def test_grace_in_words(text: str, seconds: float) -> None:
    assert parse_grace(text) == seconds
    assert grace_of({LABEL: text}) == seconds


def test_looking_at_the_grace_leaves_the_cluster_as_it_is() -> None:
    found = objects_pb2.Cluster()
    assert grace_of(found.spec.annotations.labels) == DEFAULT
    assert LABEL not in found.spec.annotations.labels


def test_what_is_no_grace_is_the_default() -> None:
    for text in ("", "soon", "-1d", "1w", "9" * 30):
        with pytest.raises(BadInput):
            parse_grace(text)
        assert grace_of({LABEL: text}) == DEFAULT
