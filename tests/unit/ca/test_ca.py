from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from procs.manager.authorization import Caller
from procs.manager.ca import issuance
from procs.manager.ca.server import RETRY_SECONDS, CAServer
from procs.manager.ca.service import TELL_BEFORE, CAService, NodeCAService
from procs.manager.status import Status
from procs.manager.store import Store, Tx
from swarm.api import ca_pb2, objects_pb2, specs_pb2, types_pb2
from swarm.errors import Refused
from swarm.pki.chain import validate_chain
from swarm.pki.credentials import make_credentials
from swarm.pki.request import new_request
from tests.tools.authority import Authority

Code = grpc.StatusCode
State = types_pb2.IssuanceStatus
Role = types_pb2.NodeRole
WORKER_TOKEN, MANAGER_TOKEN = "worker-token", "manager-token"


class Context:
    patience: float | None = None
    """Seconds that the caller still has."""

    def __init__(self, node_id: str = "") -> None:
        self.caller = Caller(node_id, ("swarm-worker",) if node_id else (), "", False, "192.0.2.9:999")

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    def time_remaining(self) -> float | None:
        return self.patience


def cluster(authority: Authority, *, signs: bool = True) -> objects_pb2.Cluster:
    made = objects_pb2.Cluster(id=authority.cluster_id, VXLANUDPPort=4790)
    made.spec.annotations.name = "default"
    made.root_ca.ca_cert = authority.root.certs
    made.root_ca.ca_key = authority.root.key_pem if signs else b""
    made.root_ca.join_tokens.worker = WORKER_TOKEN
    made.root_ca.join_tokens.manager = MANAGER_TOKEN
    return made


async def put(store: Store, *objects: Any) -> None:
    def write(tx: Tx) -> None:
        for found in objects:
            tx.create(found)

    await store.update(write)


async def change(store: Store, kind: type[Any], id_: str, how: Any) -> None:
    def write(tx: Tx) -> None:
        copy = kind()
        copy.CopyFrom(tx.get(kind, id_))
        how(copy)
        tx.update(copy)

    await store.update(write)


@asynccontextmanager
async def signing(store: Store, authority: Authority) -> AsyncIterator[tuple[CAServer, NodeCAService]]:
    server = CAServer(store, authority.cluster_id)
    running = asyncio.create_task(server.run())
    await asyncio.sleep(0)
    try:
        yield server, NodeCAService(store, server, authority.cluster_id)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def issue(service: NodeCAService, csr: bytes, token: str = "", caller: str = "", **more: Any) -> Any:
    request = ca_pb2.IssueNodeCertificateRequest(csr=csr, token=token, **more)
    return await service.IssueNodeCertificate(request, Context(caller))


async def status(service: NodeCAService, node_id: str) -> Any:
    request = ca_pb2.NodeCertificateStatusRequest(node_id=node_id)
    return await asyncio.wait_for(service.NodeCertificateStatus(request, Context()), 5)


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.mark.parametrize(
    ("token", "role", "unit"), [(WORKER_TOKEN, Role.WORKER, "worker"), (MANAGER_TOKEN, Role.MANAGER, "manager")]
)
async def test_token_decides_the_role_whatever_is_asked(
    store: Store, authority: Authority, token: str, role: Any, unit: str
) -> None:
    await put(store, cluster(authority))
    async with signing(store, authority) as (_, service):
        key, csr = new_request()
        asked = Role.MANAGER if role == Role.WORKER else Role.WORKER
        answer = await issue(service, csr, token, role=asked, availability=specs_pb2.NodeSpec.DRAIN)
        assert answer.node_membership == specs_pb2.NodeSpec.ACCEPTED
        node = store.get(objects_pb2.Node, answer.node_id)
        assert node is not None
        assert (node.role, node.spec.desired_role, node.certificate.role) == (role, role, role)
        assert (node.spec.availability, node.VXLANUDPPort) == (specs_pb2.NodeSpec.DRAIN, 4790)
        found = await status(service, answer.node_id)
        assert (found.status.state, found.certificate.csr, found.certificate.cn) == (State.ISSUED, csr, answer.node_id)
        chain = found.certificate.certificate
        made = make_credentials(validate_chain(authority.root.pool, chain), chain, key, authority.root.certs)
        assert (made.node_id, made.role, made.cluster_id) == (answer.node_id, unit, authority.cluster_id)


async def test_the_same_request_is_the_same_node_until_that_node_has_come(store: Store, authority: Authority) -> None:
    await put(store, cluster(authority))
    async with signing(store, authority) as (_, service):
        _, csr = new_request()
        first = (await issue(service, csr, WORKER_TOKEN)).node_id
        assert (await issue(service, csr, WORKER_TOKEN)).node_id == first
        await status(service, first)
        assert (await issue(service, csr, WORKER_TOKEN)).node_id == first, "signed, but nobody has seen it"
        as_manager = (await issue(service, csr, MANAGER_TOKEN)).node_id
        assert as_manager != first
        await change(store, objects_pb2.Node, first, lambda n: setattr(n.description, "hostname", "host"))
        assert (await issue(service, csr, WORKER_TOKEN)).node_id not in (first, as_manager)


async def test_a_store_for_one_manager_admits_workers_only(store: Store, authority: Authority) -> None:
    await put(store, cluster(authority))
    async with signing(store, authority) as (server, _):
        service = NodeCAService(store, server, authority.cluster_id, may_grow=False)
        with pytest.raises(Status) as refusal:
            await issue(service, new_request()[1], MANAGER_TOKEN)
        assert refusal.value.code is Code.FAILED_PRECONDITION
        assert "exactly one manager; join with the worker's token" in refusal.value.message
        assert store.find(objects_pb2.Node) == []
        assert (await issue(service, new_request()[1], WORKER_TOKEN)).node_id


async def test_stopped_and_missing_cluster(store: Store, authority: Authority) -> None:
    server = CAServer(store, authority.cluster_id)
    service = NodeCAService(store, server, authority.cluster_id)
    for call in (issue(service, b"csr", WORKER_TOKEN), status(service, "n")):
        with pytest.raises(Status) as refusal:
            await call
        assert (refusal.value.code, refusal.value.message) == (Code.ABORTED, "CA signer is stopped")
    with pytest.raises(Refused, match="could not find cluster object"):
        await server.run()


async def test_second_run_is_refused(store: Store, authority: Authority) -> None:
    await put(store, cluster(authority))
    async with signing(store, authority) as (server, _):
        with pytest.raises(Refused, match="CA signer is already running"):
            await server.run()


async def test_stop_unblocks_who_waits(store: Store, authority: Authority) -> None:
    waiting = objects_pb2.Node(id="n")
    waiting.certificate.status.state = State.PENDING
    waiting.spec.membership = specs_pb2.NodeSpec.PENDING
    await put(store, cluster(authority), waiting)
    async with signing(store, authority) as (_, service):
        asked = asyncio.ensure_future(status(service, "n"))
        await asyncio.sleep(0)
    with pytest.raises(Status) as refusal:
        await asked
    assert refusal.value.code is Code.CANCELLED


async def test_pending_waits_for_acceptance_and_is_then_signed(store: Store, authority: Authority) -> None:
    node = issuance.joining("n", Role.WORKER, new_request()[1], specs_pb2.NodeSpec.ACTIVE, 0)
    node.spec.membership = specs_pb2.NodeSpec.PENDING
    await put(store, cluster(authority), node)
    async with signing(store, authority) as (_, service):
        asked = asyncio.ensure_future(status(service, "n"))
        await change(store, objects_pb2.Node, "n", lambda n: n.spec.annotations.labels.update(x="y"))
        assert not asked.done()
        accepted = specs_pb2.NodeSpec.ACCEPTED
        await change(store, objects_pb2.Node, "n", lambda n: setattr(n.spec, "membership", accepted))
        assert (await asked).status.state == State.ISSUED


async def test_removal_ends_the_waiting(store: Store, authority: Authority) -> None:
    node = issuance.joining("n", Role.WORKER, b"csr", specs_pb2.NodeSpec.ACTIVE, 0)
    node.spec.membership = specs_pb2.NodeSpec.PENDING
    await put(store, cluster(authority), node)
    async with signing(store, authority) as (_, service):
        asked = asyncio.ensure_future(status(service, "n"))
        await asyncio.sleep(0)
        await store.update(lambda tx: tx.delete(objects_pb2.Node, "n"))
        with pytest.raises(Status, match="NotFound"):
            await asked


async def test_renewal_is_for_the_observed_role_and_the_node_itself(store: Store, authority: Authority) -> None:
    node = objects_pb2.Node(id="n", role=Role.WORKER)
    node.spec.desired_role = Role.MANAGER
    node.certificate.certificate = b"old"
    node.certificate.status.state = State.ISSUED
    await put(store, cluster(authority), node)
    async with signing(store, authority) as (_, service):
        _, csr = new_request()
        answer = await issue(service, csr, caller="n")
        assert answer.node_id == "n"
        found = await status(service, "n")
        assert found.status.state == State.ISSUED
        chain = validate_chain(authority.root.pool, found.certificate.certificate)
        assert found.certificate.role == Role.WORKER
        assert chain.leaf.common_name == "n"
        with pytest.raises(Status) as refusal:
            await issue(service, csr, caller="nobody")
        assert (refusal.value.code, refusal.value.message) == (
            Code.NOT_FOUND,
            "node nobody not found when attempting to renew certificate",
        )


@pytest.mark.parametrize("role", [Role.WORKER, Role.MANAGER])
async def test_a_renewal_needs_no_token_and_a_stranger_of_the_same_name_does(
    store: Store, authority: Authority, role: Any
) -> None:
    await put(store, cluster(authority), objects_pb2.Node(id="n", role=role))
    async with signing(store, authority) as (_, service):
        assert (await issue(service, new_request()[1], caller="n")).node_id == "n"
        found = await status(service, "n")
        assert (found.status.state, found.certificate.role) == (State.ISSUED, role)
        with pytest.raises(Status, match="A valid join token is necessary"):
            await issue(service, new_request()[1])


async def test_a_node_told_to_rotate_keeps_its_certificate_until_it_asks(store: Store, authority: Authority) -> None:
    await put(store, cluster(authority), objects_pb2.Node(id="n", role=Role.WORKER))
    async with signing(store, authority) as (_, service):
        await issue(service, new_request()[1], caller="n")
        before = (await status(service, "n")).certificate
        rotate = State.ROTATE
        await change(store, objects_pb2.Node, "n", lambda n: setattr(n.certificate.status, "state", rotate))
        told = await status(service, "n")
        assert (told.status.state, told.certificate.certificate) == (State.ROTATE, before.certificate)
        await issue(service, new_request()[1], caller="n")
        assert (await status(service, "n")).status.state == State.ISSUED


async def test_nobody_is_known_by_an_unknown_id_before_and_after_a_restart(store: Store, authority: Authority) -> None:
    await put(store, cluster(authority))
    for _ in range(2):
        async with signing(store, authority) as (_, service):
            with pytest.raises(Status) as refusal:
                await status(service, "nobody")
            assert (refusal.value.code, refusal.value.message) == (Code.NOT_FOUND, "NotFound")


async def test_same_request_after_a_change_of_role_is_signed_anew(store: Store, authority: Authority) -> None:
    await put(store, cluster(authority), objects_pb2.Node(id="n", role=Role.WORKER))
    async with signing(store, authority) as (_, service):
        _, csr = new_request()
        await issue(service, csr, caller="n")
        first = await status(service, "n")
        await change(store, objects_pb2.Node, "n", lambda n: setattr(n, "role", Role.MANAGER))
        await issue(service, csr, caller="n")
        second = await status(service, "n")
        assert (first.certificate.role, second.certificate.role) == (Role.WORKER, Role.MANAGER)


async def test_request_that_cannot_be_signed_fails_with_its_reason_and_leaves_the_others(
    store: Store, authority: Authority
) -> None:
    await put(store, cluster(authority))
    async with signing(store, authority) as (_, service):
        bad, good = await asyncio.gather(
            issue(service, b"junk", WORKER_TOKEN), issue(service, new_request()[1], WORKER_TOKEN)
        )
        failed = await status(service, bad.node_id)
        assert failed.status.state == State.FAILED
        assert "CSR Decode failed" in failed.status.err
        assert (await status(service, good.node_id)).status.state == State.ISSUED


async def test_without_a_key_requests_wait_and_are_signed_when_it_comes(store: Store, authority: Authority) -> None:
    await put(store, cluster(authority, signs=False))
    async with signing(store, authority) as (_, service):
        answer = await issue(service, new_request()[1], WORKER_TOKEN)
        asked = asyncio.ensure_future(status(service, answer.node_id))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not asked.done()
        key = authority.root.key_pem
        await change(store, objects_pb2.Cluster, authority.cluster_id, lambda c: setattr(c.root_ca, "ca_key", key))
        assert (await asked).status.state == State.ISSUED


async def test_who_waits_in_vain_is_told_why_before_it_gives_up(store: Store, authority: Authority) -> None:
    await put(store, cluster(authority, signs=False))
    async with signing(store, authority) as (_, service):
        answer = await issue(service, new_request()[1], WORKER_TOKEN)
        context = Context()
        context.patience = TELL_BEFORE
        request = ca_pb2.NodeCertificateStatusRequest(node_id=answer.node_id)
        told = await asyncio.wait_for(service.NodeCertificateStatus(request, context), 5)
        assert (told.status.state, told.status.err) == (State.PENDING, "no valid signer found")
        key = authority.root.key_pem
        await change(store, objects_pb2.Cluster, authority.cluster_id, lambda c: setattr(c.root_ca, "ca_key", key))
        found = await status(service, answer.node_id)
        assert (found.status.state, found.status.err) == (State.ISSUED, "")


async def test_however_many_wait_for_a_signer_there_is_one_next_try(
    store: Store, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(store, cluster(authority, signs=False))
    loop, tries = asyncio.get_running_loop(), 0
    call_later = loop.call_later

    def counted(delay: float, *args: Any, **kwargs: Any) -> asyncio.TimerHandle:
        nonlocal tries
        tries += delay == RETRY_SECONDS
        return call_later(delay, *args, **kwargs)

    monkeypatch.setattr(loop, "call_later", counted)
    async with signing(store, authority) as (_, service):
        for _ in range(5):
            answer = await issue(service, new_request()[1], WORKER_TOKEN)
            context = Context()
            context.patience = TELL_BEFORE
            request = ca_pb2.NodeCertificateStatusRequest(node_id=answer.node_id)
            assert (await service.NodeCertificateStatus(request, context)).status.err
    assert tries == 1


async def test_changed_expiry_counts_for_the_next_certificate(store: Store, authority: Authority) -> None:
    await put(store, cluster(authority))
    async with signing(store, authority) as (_, service):

        async def life() -> int:
            answer = await issue(service, new_request()[1], WORKER_TOKEN)
            chain = (await status(service, answer.node_id)).certificate.certificate
            leaf = validate_chain(authority.root.pool, chain).leaf
            return leaf.not_after - leaf.not_before

        assert await life() == 2160 * 3600 + 3600
        await change(
            store,
            objects_pb2.Cluster,
            authority.cluster_id,
            lambda c: setattr(c.spec.ca_config.node_cert_expiry, "seconds", 7200),
        )
        assert await life() == 7200 + 3600


async def test_tokens_are_refreshed_at_once(store: Store, authority: Authority) -> None:
    await put(store, cluster(authority))
    async with signing(store, authority) as (server, service):
        await change(
            store,
            objects_pb2.Cluster,
            authority.cluster_id,
            lambda c: setattr(c.root_ca.join_tokens, "worker", "new-token"),
        )
        async with asyncio.timeout(5):
            while server.tokens().worker != "new-token":  # noqa: ASYNC110  (follows its own watch)
                await asyncio.sleep(0)
        with pytest.raises(Status, match="A valid join token is necessary to join this cluster"):
            await issue(service, new_request()[1], WORKER_TOKEN)
        with pytest.raises(Status, match="A valid join token"):
            await issue(service, new_request()[1], "")
        assert (await issue(service, new_request()[1], "new-token")).node_id


async def test_hundred_joiners_at_once_each_get_their_own(store: Store, authority: Authority) -> None:
    await put(store, cluster(authority))
    async with signing(store, authority) as (_, service):

        async def join() -> str:
            _, csr = new_request()
            answer = await issue(service, csr, WORKER_TOKEN)
            found = await status(service, answer.node_id)
            assert (found.status.state, found.certificate.csr) == (State.ISSUED, csr)
            return str(answer.node_id)

        assert len(set(await asyncio.gather(*(join() for _ in range(100))))) == 100


def test_certificate_of_an_older_request_is_not_stored_beside_a_newer_one() -> None:
    node = issuance.joining("n", Role.WORKER, b"older", specs_pb2.NodeSpec.ACTIVE, 0)
    newer = issuance.renewing(node, b"newer")
    assert issuance.issued(newer, b"older", b"certificate") is None
    assert issuance.failed(newer, b"older", "why") is None
    stored = issuance.issued(newer, b"newer", b"certificate")
    assert stored is not None
    assert issuance.issued(stored, b"newer", b"another") is None


@pytest.mark.parametrize("state", list(State.State.values()))
@pytest.mark.parametrize("accepted", [True, False])
def test_who_is_signed(state: Any, accepted: bool) -> None:
    node = objects_pb2.Node(id="n")
    node.certificate.status.state = state
    node.spec.membership = specs_pb2.NodeSpec.ACCEPTED if accepted else specs_pb2.NodeSpec.PENDING
    assert issuance.wants_signature(node) == (state == State.RENEW or (state == State.PENDING and accepted))


async def test_unlock_key_only_while_the_managers_are_locked(store: Store, authority: Authority) -> None:
    made = cluster(authority)
    made.unlock_keys.add(subsystem="swarm-manager", key=b"secret")
    await put(store, made)
    service = CAService(store, authority.cluster_id)
    answer = await service.GetUnlockKey(ca_pb2.GetUnlockKeyRequest(), Context())
    assert (answer.unlock_key, answer.version.index) == (b"", store.index)
    await change(
        store,
        objects_pb2.Cluster,
        authority.cluster_id,
        lambda c: setattr(c.spec.encryption_config, "auto_lock_managers", True),
    )
    locked = await service.GetUnlockKey(ca_pb2.GetUnlockKeyRequest(), Context())
    assert (locked.unlock_key, locked.version.index) == (b"secret", store.index)
