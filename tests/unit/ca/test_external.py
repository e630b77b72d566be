"""Signers outside the swarm: a real HTTPS server that speaks cfssl's protocol and wants a manager's certificate."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from procs.manager.ca import external
from procs.manager.ca.external import ExternalCAs, SignerRefused, SignerUnavailable, read_answer, urls_for
from procs.manager.ca.server import CAServer
from procs.manager.ca.service import NodeCAService
from procs.manager.gateway.tls import load_chain
from procs.manager.store import Store
from swarm.api import objects_pb2, types_pb2
from swarm.pki.certificate import parse_bundle
from swarm.pki.chain import validate_chain
from swarm.pki.credentials import Credentials
from swarm.pki.crosssign import cross_sign
from swarm.pki.request import new_request
from swarm.pki.rootca import RootCA
from tests.tools.authority import Authority
from tests.unit.ca.test_ca import WORKER_TOKEN, State, cluster, issue, put, status
from tests.unit.ca.test_rotation import until


@dataclass
class Signer:
    """What the server does with a request; tests change it while it runs."""

    root: RootCA
    answer: Callable[[dict[str, Any]], tuple[int, bytes]] | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    callers: list[str] = field(default_factory=list)
    url: str = ""

    def sign(self, request: dict[str, Any]) -> tuple[int, bytes]:
        self.asked.append(request)
        if self.answer is not None:
            return self.answer(request)
        if request["profile"] == "CA":
            # a real signer builds it from the CSR; the test has the new root itself at hand
            return 200, b'{"success": false, "result": null, "errors": [{"code": 1, "message": "no CA profile"}]}'
        names = request["subject"]["names"][0]
        leaf = self.root.sign(
            request["certificate_request"].encode(), request["subject"]["CN"], names["OU"], names["O"], 7200
        )
        return 200, json.dumps({"success": True, "result": {"certificate": leaf.decode()}, "errors": []}).encode()


@contextmanager
def serving(authority: Authority) -> Iterator[Signer]:
    signer = Signer(authority.root)
    own = authority.issue("manager", node_id="localhost")  # its name is among the certificate's DNS names
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_verify_locations(cadata=authority.root.certs.decode())
    context.verify_mode = ssl.CERT_REQUIRED
    load_chain(context, own.certificate_pem, own.key_pem)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            connection = self.connection
            assert isinstance(connection, ssl.SSLSocket)
            peer: Any = connection.getpeercert()
            signer.callers.append(dict(pair[0] for pair in peer["subject"])["commonName"])
            code, body = signer.sign(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def get_request(self) -> tuple[Any, Any]:
            sock, address = super().get_request()
            # the handshake comes with the first read, in the handler's thread, which closes the socket if it fails
            return context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False), address

        def handle_error(self, *args: object) -> None:
            pass  # a probe hangs up after the handshake

    server = Server(("localhost", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    signer.url = f"https://localhost:{server.server_address[1]}/sign"
    try:
        yield signer
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def signer(authority: Authority) -> Iterator[Signer]:
    with serving(authority) as found:
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
    with pytest.raises(SignerRefused, match="no CA profile"):
        await asks.cross_sign([signer.url], authority.root.certs, new.certs, new.key_pem)
    crossed = cross_sign(authority.root, new.certs)
    signer.answer = lambda _: (200, json.dumps({"success": True, "result": {"certificate": crossed.decode()}}).encode())
    assert await asks.cross_sign([signer.url], authority.root.certs, new.certs, new.key_pem) == crossed
    asked = signer.asked[-1]
    assert (asked["profile"], asked["subject"]["CN"]) == ("CA", "swarm-ca")
    assert asked["extensions"] == [{"id": "2.5.29.19", "critical": True, "value": "30030101ff"}]


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
