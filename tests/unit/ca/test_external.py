"""Signers outside the swarm: a real HTTPS server that speaks cfssl's protocol and wants a manager's certificate."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from procs.manager.ca import external
from procs.manager.ca.external import ExternalCAs, SignerRefused, SignerUnavailable, read_answer, urls_for
from procs.manager.ca.server import CAServer
from procs.manager.ca.service import NodeCAService
from procs.manager.store import Store
from swarm.api import objects_pb2, types_pb2
from swarm.pki.certificate import parse_bundle
from swarm.pki.chain import validate_chain
from swarm.pki.credentials import Credentials
from swarm.pki.request import new_request
from swarm.pki.rootca import RootCA
from tests.tools.authority import HOUR, Authority
from tests.tools.signer import Signer, serving
from tests.unit.ca.test_ca import WORKER_TOKEN, State, cluster, issue, put, status
from tests.unit.ca.test_rotation import until


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def signer(authority: Authority) -> Iterator[Signer]:
    with serving(authority.root) as found:
        yield found


@pytest.fixture
def manager(authority: Authority) -> Credentials:
    return authority.issue("manager")


def outside(authority: Authority, url: str) -> objects_pb2.Cluster:
    made = cluster(authority, signs=False)
    made.spec.ca_config.external_cas.add(url=url)
    return made


async def test_it_signs_for_the_swarm_and_sees_the_managers_certificate(
    store: Store, authority: Authority, signer: Signer, manager: Credentials
) -> None:
    await put(store, outside(authority, signer.url))
    server = CAServer(store, authority.cluster_id, ExternalCAs(lambda: manager))
    running = asyncio.create_task(server.run())
    await asyncio.sleep(0)
    try:
        service = NodeCAService(store, server, authority.cluster_id)
        _, csr = new_request()
        joined = await issue(service, csr, WORKER_TOKEN)
        found = await status(service, joined.node_id)
        assert found.status.state == State.ISSUED
        leaf = validate_chain(authority.root.pool, found.certificate.certificate).leaf
        assert leaf.common_name == joined.node_id
        (asked,) = signer.asked
        assert asked["hosts"] == ["swarm-worker", joined.node_id]
        assert asked["subject"]["names"] == [{"O": authority.cluster_id, "OU": "swarm-worker"}]
        assert signer.callers == [manager.node_id]
        bad = await issue(service, b"junk", WORKER_TOKEN)
        refused = await status(service, bad.node_id)
        assert (refused.status.state, "CSR Decode failed" in refused.status.err) == (State.FAILED, True)
        assert len(signer.asked) == 1, "what nobody can sign is not sent"
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_broken_signer_costs_a_node_only_time(
    store: Store, authority: Authority, signer: Signer, manager: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("procs.manager.ca.server.RETRY_SECONDS", 0.01)
    replies = iter([(500, b"sick"), (200, b"not json"), (200, b"[]")])
    signer.answer = lambda _: next(replies, None) or well(signer)
    await put(store, outside(authority, signer.url))
    server = CAServer(store, authority.cluster_id, ExternalCAs(lambda: manager))
    running = asyncio.create_task(server.run())
    await asyncio.sleep(0)

    def well(signer: Signer) -> tuple[int, bytes]:
        signer.answer = None
        return 500, b"once more"

    try:
        service = NodeCAService(store, server, authority.cluster_id)
        _, csr = new_request()
        joined = await issue(service, csr, WORKER_TOKEN)
        await until(store, lambda: state_of(store, joined.node_id) == State.ISSUED)
        assert len(signer.asked) == 5
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def state_of(store: Store, node_id: str) -> int:
    found = store.get(objects_pb2.Node, node_id)
    assert found is not None
    return found.certificate.status.state


async def test_while_the_signer_is_away_a_key_that_the_swarm_has_too_signs(
    store: Store, authority: Authority, signer: Signer, manager: Credentials
) -> None:
    made = cluster(authority)
    made.spec.ca_config.external_cas.add(url=signer.url)
    await put(store, made)
    signer.stop()
    server = CAServer(store, authority.cluster_id, ExternalCAs(lambda: manager))
    running = asyncio.create_task(server.run())
    await asyncio.sleep(0)
    try:
        service = NodeCAService(store, server, authority.cluster_id)
        found = await status(service, (await issue(service, new_request()[1], WORKER_TOKEN)).node_id)
        assert (found.status.state, found.status.err) == (State.ISSUED, "")
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_certificate_for_another_key_is_not_passed_on(
    store: Store, authority: Authority, signer: Signer, manager: Credentials
) -> None:
    stolen = authority.issue("manager").certificate_pem.decode()
    signer.answer = lambda _: (200, json.dumps({"success": True, "result": {"certificate": stolen}}).encode())
    await put(store, outside(authority, signer.url))
    server = CAServer(store, authority.cluster_id, ExternalCAs(lambda: manager))
    running = asyncio.create_task(server.run())
    await asyncio.sleep(0)
    try:
        service = NodeCAService(store, server, authority.cluster_id)
        _, csr = new_request()
        found = await status(service, (await issue(service, csr, WORKER_TOKEN)).node_id)
        assert (found.status.state, found.certificate.certificate) == (State.FAILED, b"")
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_reachable_means_https_and_a_certificate_under_that_root(
    authority: Authority, signer: Signer, manager: Credentials
) -> None:
    asks = ExternalCAs(lambda: manager)
    assert await asks.reachable(["https://localhost:1/", signer.url], authority.root.certs)
    assert not await asks.reachable([signer.url], RootCA.create().certs)
    assert not await asks.reachable([signer.url.replace("https", "http")], authority.root.certs)
    assert not await asks.reachable(["https://[::bad", "nonsense"], authority.root.certs)
    assert not await asks.reachable([], authority.root.certs)


async def test_a_cross_signed_root_is_asked_for_with_the_ca_profile(
    authority: Authority, signer: Signer, manager: Credentials
) -> None:
    new, asks = RootCA.create(), ExternalCAs(lambda: manager)
    crossed = parse_bundle(await asks.cross_sign([signer.url], authority.root.certs, new.certs, new.key_pem))[0]
    assert crossed.is_signed_by(authority.root.pool[0])
    assert (crossed.subject, crossed.public_key) == (new.pool[0].subject, new.pool[0].public_key)
    asked = signer.asked[-1]
    assert (asked["profile"], asked["subject"]["CN"]) == ("CA", "swarm-ca")
    assert asked["extensions"] == [{"id": "2.5.29.19", "critical": True, "value": "30030101ff"}]


async def test_each_request_shows_the_certificate_that_the_manager_has_then(
    authority: Authority, signer: Signer, manager: Credentials
) -> None:
    held = [authority.issue("manager", issued_at=time.time() - 9 * HOUR, expiry=HOUR)]
    asks, csr = ExternalCAs(lambda: held[0]), new_request()[1]
    arguments = ([signer.url], authority.root.certs, csr, "node", "swarm-worker", authority.cluster_id)
    with pytest.raises(SignerUnavailable, match="unable to perform certificate signing request") as refused:
        await asks.sign(*arguments)
    assert "have the signer take it this once, or give the swarm the key of its root" in refused.value.remedy
    held[0] = manager
    assert parse_bundle(await asks.sign(*arguments))[0].common_name == "node"


async def test_a_signer_that_hangs_is_given_up_at_the_deadline(
    authority: Authority, signer: Signer, manager: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external, "TIMEOUT", 0.2)
    given_up = threading.Event()

    def hang(_: dict[str, Any]) -> tuple[int, bytes]:
        given_up.wait(20)
        return 500, b""

    signer.answer = hang
    try:
        with pytest.raises(SignerUnavailable, match="timed out"):
            await ExternalCAs(lambda: manager).ask([signer.url], authority.root.certs, {"profile": ""})
    finally:
        given_up.set()


@pytest.mark.parametrize(
    ("body", "error", "said"),
    [
        (b"", SignerUnavailable, "unable to parse JSON response"),
        (b"{" * 100, SignerUnavailable, "unable to parse JSON response"),
        (b'{"success": false}', SignerRefused, "certificate signing request failed"),
        (b'{"success": true, "errors": [{"code": 7, "message": "m"}]}', SignerRefused, "response errors: 7 m"),
        (b'{"success": true, "result": []}', SignerRefused, "invalid result type"),
        (b'{"success": true, "result": {"certificate": 1}}', SignerRefused, "invalid result certificate field type"),
    ],
)
def test_answers_that_are_none(body: bytes, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        read_answer(body)


def test_only_signers_of_the_wanted_root_are_asked() -> None:
    old, new = RootCA.create().certs, RootCA.create().certs
    entries = [
        types_pb2.ExternalCA(url="untagged"),
        types_pb2.ExternalCA(url="old", ca_cert=old + b"\n"),
        types_pb2.ExternalCA(url="new", ca_cert=new),
    ]
    assert urls_for(entries, old, old) == ["untagged", "old"]
    assert urls_for(entries, new, old) == ["new"]


def test_the_size_of_an_answer_is_bounded(authority: Authority, signer: Signer, manager: Credentials) -> None:
    signer.answer = lambda _: (200, b" " * (external.MAX_RESPONSE + 10))
    with pytest.raises(SignerUnavailable, match="unable to parse JSON response"):
        asyncio.run(ExternalCAs(lambda: manager).ask([signer.url], authority.root.certs, {"profile": ""}))
    assert parse_bundle(authority.root.certs)
