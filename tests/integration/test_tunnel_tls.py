"""Speaking with managers whose TLS grpc refuses: real TLS servers as Docker's managers are, with grpc behind them."""

from __future__ import annotations

import asyncio
import ssl
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from procs.manager.gateway.tls import load_chain
from swarm import detours
from swarm.api import health_pb2, health_pb2_grpc
from swarm.dial import MANAGER_NAME, remote_channel
from swarm.pki.credentials import Credentials
from swarm.probe import Problem, probe
from swarm.tunnel import learn
from tests.tools.authority import HOUR, Authority

Check = health_pb2.HealthCheckRequest
Code = grpc.StatusCode


@pytest.fixture(autouse=True)
def nothing_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detours, "_odd", set())


class Health(health_pb2_grpc.HealthServicer):
    async def Check(self, request: Check, context: Any) -> health_pb2.HealthCheckResponse:  # noqa: N802
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


@dataclass
class Manager:
    """Where it answers, and what it saw of its clients."""

    addr: str = ""
    clients: list[bytes | None] = field(default_factory=list)
    """The certificate of each client, DER."""
    received: int = 0
    """Bytes of all clients."""
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    work: list[asyncio.Task[None] | None] = field(default_factory=list)


@asynccontextmanager
async def manager(
    directory: Path, shown: Credentials, *, more: bytes = b"", alpn: bool = False
) -> AsyncIterator[Manager]:
    """A server that shows `shown` and then `more` certificates, and selects an ALPN protocol only if `alpn`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if alpn:
        context.set_alpn_protocols(["h2"])
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations(cadata=shown.root_pem.decode())
    load_chain(context, shown.certificate_pem.rstrip() + b"\n" + more, shown.key_pem)
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(Health(), server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(f"unix:{directory}/inner")
    await server.start()
    seen = Manager()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.clients.append(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
        seen.writers.append(writer)
        seen.work.append(asyncio.current_task())
        inner_reader, inner_writer = await asyncio.open_unix_connection(f"{directory}/inner")

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                seen.received += len(data) if source is reader else 0
                sink.write(data)

        try:
            await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer), return_exceptions=True)
        finally:
            inner_writer.transport.abort()
            writer.transport.abort()

    front = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    seen.addr = f"127.0.0.1:{front.sockets[0].getsockname()[1]}"
    try:
        yield seen
    finally:
        front.close()
        for task in seen.work:
            assert task is not None
            task.cancel()
            await asyncio.wait({task})
        await server.stop(0)


async def ask(addr: str, root_pem: bytes, credentials: Credentials | None = None, name: str = MANAGER_NAME) -> None:
    async with remote_channel(addr, credentials, root_pem, name) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(Check(), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def refused(addr: str, root_pem: bytes, name: str = MANAGER_NAME) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await ask(addr, root_pem, name=name)
    assert error.value.code() is Code.UNAVAILABLE


def bare_cross_signed(old: Authority, new: Authority) -> bytes:
    """The new root signed by the old one as Go does it: equal names, no AKI."""
    key = serialization.load_pem_private_key(old.root.key_pem, None)
    root = x509.load_pem_x509_certificate(new.root.certs)
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(root.subject)
        .issuer_name(x509.load_pem_x509_certificate(old.root.certs).subject)
        .public_key(root.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=365))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())  # type: ignore[arg-type]
    )
    return made.public_bytes(serialization.Encoding.PEM)


async def test_a_manager_that_selects_no_protocol_is_reached_with_our_certificate(short_dir: Path) -> None:
    swarm = Authority()
    worker = swarm.issue()
    async with manager(short_dir, swarm.issue("manager")) as seen:
        await refused(seen.addr, swarm.root.certs)
        assert await learn(seen.addr, swarm.root.certs, MANAGER_NAME)
        await ask(seen.addr, swarm.root.certs, worker)
        leaf = x509.load_pem_x509_certificates(worker.certificate_pem)[0]
        assert seen.clients[-1] == leaf.public_bytes(serialization.Encoding.DER)
        assert not await learn(seen.addr, swarm.root.certs, MANAGER_NAME), "known already"


@pytest.mark.parametrize("alpn", [True, False])
async def test_a_manager_is_believed_through_a_cross_signed_root_as_go_makes_it(short_dir: Path, alpn: bool) -> None:
    old = Authority()
    new = Authority(cluster_id=old.cluster_id)
    async with manager(short_dir, new.issue("manager"), more=bare_cross_signed(old, new), alpn=alpn) as seen:
        await refused(seen.addr, old.root.certs)
        assert await learn(seen.addr, old.root.certs, MANAGER_NAME)
        await ask(seen.addr, old.root.certs)
        await ask(seen.addr, new.root.certs)


async def test_grpc_dials_a_manager_that_it_accepts_itself(short_dir: Path) -> None:
    swarm = Authority()
    async with manager(short_dir, swarm.issue("manager"), alpn=True) as seen:
        await ask(seen.addr, swarm.root.certs)
        assert not await learn(seen.addr, swarm.root.certs, MANAGER_NAME)
        assert not detours.is_needed(seen.addr)


@pytest.mark.parametrize("fault", ["other swarm", "name", "expired", "a worker's cross-signature"])
async def test_nobody_else_is_believed_and_not_a_byte_is_sent(short_dir: Path, fault: str) -> None:
    swarm, other = Authority(), Authority()
    more = b""
    name = MANAGER_NAME
    match fault:
        case "other swarm":
            shown = other.issue("manager")
        case "name":
            shown, name = swarm.issue("worker"), MANAGER_NAME
        case "expired":
            shown = swarm.issue("manager", issued_at=time.time() - 100 * HOUR, expiry=HOUR)
        case _:
            # a worker's certificate signs nothing, whatever it claims
            shown, more = other.issue("manager"), swarm.issue("worker").certificate_pem
    async with manager(short_dir, shown, more=more) as seen:
        assert not await learn(seen.addr, swarm.root.certs, name)
        detours.note(seen.addr)
        await refused(seen.addr, swarm.root.certs, name)
        assert seen.received == 0


async def test_nobody_there_is_nothing_to_learn(short_dir: Path) -> None:
    swarm = Authority()
    async with manager(short_dir, swarm.issue("manager")) as seen:
        addr = seen.addr
    assert not await learn(addr, swarm.root.certs, MANAGER_NAME)
    detours.note(addr)
    await refused(addr, swarm.root.certs)


async def test_a_channel_ends_with_its_connection_and_leaves_nothing(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = short_dir / "tmp"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    swarm = Authority()
    async with manager(short_dir, swarm.issue("manager")) as seen:
        detours.note(seen.addr)
        async with remote_channel(seen.addr, None, swarm.root.certs):
            pass  # closed before anybody spoke
        async with remote_channel(seen.addr, None, swarm.root.certs) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            await stub.Check(Check(), timeout=5)
            assert list(place.iterdir()) == [], "nobody else can come through"
            seen.writers[-1].transport.abort()
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await stub.Check(Check(), timeout=5)
            assert error.value.code() is Code.UNAVAILABLE
    assert list(place.iterdir()) == []


async def test_a_probe_takes_such_managers_for_what_they_are(short_dir: Path) -> None:
    old = Authority()
    new = Authority(cluster_id=old.cluster_id)
    cross = bare_cross_signed(old, new)
    async with manager(short_dir, new.issue("manager"), more=cross) as seen:
        for root in (b"", old.root.certs, new.root.certs):
            found = await probe(seen.addr, MANAGER_NAME, root_pem=root, now=time.time())
            assert found.problem is Problem.NONE, found
        assert detours.is_needed(seen.addr)
        found = await probe(seen.addr, MANAGER_NAME, root_pem=Authority().root.certs, now=time.time())
        assert found.problem is Problem.OTHER_SWARM
