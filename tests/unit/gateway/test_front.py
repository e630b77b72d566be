from __future__ import annotations

import asyncio
import os
import shutil
import socket
import ssl
import stat
import subprocess
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from procs.manager.authorization import caller_of
from procs.manager.gateway.front import Limits
from procs.manager.gateway.listeners import listen_control, listen_remote
from procs.manager.gateway.server import MAX_RECEIVE
from procs.manager.gateway.tls import server_context
from procs.manager.status import not_found
from swarm.api import dispatcher_pb2, dispatcher_pb2_grpc, health_pb2, health_pb2_grpc, types_pb2
from swarm.errors import BadInput, Refused, Twin
from swarm.pki.credentials import Credentials
from tests.tools.authority import HOUR, Authority, open_channel

# ruff: noqa: N802  (gRPC's method names)

OK = health_pb2.HealthCheckResponse.SERVING


class Health(health_pb2_grpc.HealthServicer):
    async def Check(self, request: Any, context: Any) -> Any:
        if request.service == "unknown":
            raise not_found("unknown service")
        if request.service == "broken":
            raise ZeroDivisionError
        return health_pb2.HealthCheckResponse(status=OK)


class Dispatcher(dispatcher_pb2_grpc.DispatcherServicer):
    """Tells the caller who it is, and streams what it sent."""

    async def Session(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for number in range(3):
            message = dispatcher_pb2.SessionMessage(session_id=str(number))
            message.node.id = caller_of(context).node_id
            yield message
        raise not_found("node not registered")

    async def UpdateTaskStatus(self, request: Any, context: Any) -> Any:
        return dispatcher_pb2.UpdateTaskStatusResponse()

    async def Assignments(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for _ in range(64):
            message = dispatcher_pb2.AssignmentsMessage(results_in="x" * (1 << 20))
            yield message


def register(server: grpc.aio.Server) -> None:
    health_pb2_grpc.add_HealthServicer_to_server(Health(), server)
    dispatcher_pb2_grpc.add_DispatcherServicer_to_server(Dispatcher(), server)


async def check(channel: grpc.aio.Channel, service: str = "") -> Any:
    return await health_pb2_grpc.HealthStub(channel).Check(
        health_pb2.HealthCheckRequest(service=service), timeout=10, wait_for_ready=False
    )


async def test_manager_certificate_is_served(opened: Any) -> None:
    async with opened(register) as door, door.channel(door.own) as channel:
        assert (await check(channel)).status == OK


async def test_stream_knows_its_caller_and_ends_with_the_status_that_was_raised(opened: Any) -> None:
    async with opened(register) as door:
        worker = door.member()
        async with door.channel(worker) as channel:
            seen: list[tuple[str, str]] = []

            async def read() -> None:
                stream = dispatcher_pb2_grpc.DispatcherStub(channel).Session(
                    dispatcher_pb2.SessionRequest(), timeout=10
                )
                async for message in stream:
                    seen.append((message.session_id, message.node.id))  # noqa: PERF401  (what came before the end)

            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await read()
            assert seen == [("0", worker.node_id), ("1", worker.node_id), ("2", worker.node_id)]
            assert (refusal.value.code(), refusal.value.details()) == (
                grpc.StatusCode.NOT_FOUND,
                "node not registered",
            )


@pytest.mark.parametrize(
    ("service", "code", "text"),
    [("unknown", grpc.StatusCode.NOT_FOUND, "unknown service"), ("broken", grpc.StatusCode.UNKNOWN, "internal error")],
)
async def test_what_a_service_raises_becomes_a_status(opened: Any, service: str, code: Any, text: str) -> None:
    async with opened(register) as door, door.channel(door.own) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await check(channel, service)
        assert (refusal.value.code(), refusal.value.details()) == (code, text)


async def test_no_certificate_reaches_the_guard_and_is_named(opened: Any) -> None:
    async with opened(register) as door, door.channel(None) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await check(channel)
        assert refusal.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert refusal.value.details() == (
            "Permission denied: unauthorized peer role: rpc error: code = PermissionDenied desc = "
            "no client certificates in request"
        )


@pytest.mark.parametrize("kind", ["another CA", "expired"])
async def test_certificate_that_does_not_verify_fails_the_handshake(opened: Any, kind: str) -> None:
    async with opened(register) as door:
        if kind == "expired":
            bad = door.authority.issue("manager", issued_at=time.time() - 1000 * HOUR, expiry=HOUR)
        else:
            foreign = Authority(cluster_id=door.authority.cluster_id).issue("manager")
            bad = foreign
        async with door.channel(bad) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await check(channel)
            assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
        assert door.front.counters["handshake_failed"] >= 1
        assert not door.records


async def test_record_leaves_with_its_connection(opened: Any) -> None:
    async with opened(register) as door:
        async with door.channel(door.own) as channel:
            await check(channel)
            (name,) = door.records
            assert len(name) == 32
            assert int(name, 16) >= 0
            record = door.records[name]
            assert (record.cn, record.ou, record.org) == (door.own.node_id, ("swarm-manager",), door.own.cluster_id)
            assert (record.not_after, record.leaf_hash) == (door.own.not_after, door.own.fingerprint)
            assert record.local_addr == door.address
        await _until(lambda: not door.records)


async def test_call_that_bypasses_the_front_is_unauthenticated(opened: Any) -> None:
    async with opened(register) as door:
        inner = door.control.with_name("inner.sock")
        assert stat.S_IMODE(inner.stat().st_mode) & 0o077 == 0 or stat.S_IMODE(inner.parent.stat().st_mode) == 0o700
        async with grpc.aio.insecure_channel(f"unix:{inner}") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await check(channel)
        assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_control_socket_needs_no_certificate_and_gives_the_local_identity(opened: Any) -> None:
    async with opened(register) as door:
        assert stat.S_IMODE(door.control.stat().st_mode) == 0o600
        tls = grpc.ssl_channel_credentials(door.authority.root.certs)
        options = [("grpc.ssl_target_name_override", "swarm-manager")]
        async with grpc.aio.secure_channel(f"unix:{door.control}", tls, options=options) as channel:
            assert (await check(channel)).status == OK
            stream = dispatcher_pb2_grpc.DispatcherStub(channel).Session(dispatcher_pb2.SessionRequest(), timeout=10)
            # forwarded_* is believed from no one here
            first = await stream.read()
            assert first.node.id == door.own.node_id


async def test_request_beyond_4_mib_is_refused(opened: Any) -> None:
    async with opened(register) as door, door.channel(door.own) as channel:
        request = dispatcher_pb2.UpdateTaskStatusRequest()
        request.updates.add(task_id="t", status=types_pb2.TaskStatus(message="x" * (MAX_RECEIVE + 1)))
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await dispatcher_pb2_grpc.DispatcherStub(channel).UpdateTaskStatus(request, timeout=10)
        assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_large_stream_arrives_whole(opened: Any) -> None:
    async with opened(register) as door, door.channel(door.own) as channel:
        size = 0
        async for message in dispatcher_pb2_grpc.DispatcherStub(channel).Assignments(
            dispatcher_pb2.AssignmentsRequest(), timeout=30
        ):
            size += len(message.results_in)
        assert size == 64 << 20


async def test_new_certificate_is_served_to_new_connections_and_old_ones_stay(opened: Any) -> None:
    async with opened(register) as door, door.channel(door.own) as old:
        await check(old)
        fresh = door.authority.issue("manager", node_id=door.own.node_id)
        door.front.use(server_context(fresh.certificate_pem, fresh.key_pem, fresh.root_pem))
        served = await asyncio.to_thread(ssl.get_server_certificate, door.host_port)
        assert ssl.PEM_cert_to_DER_cert(served) == ssl.PEM_cert_to_DER_cert(fresh.certificate_pem.decode())
        await check(old)


async def test_a_new_root_is_trusted_by_new_connections_from_the_moment_it_is_used(opened: Any) -> None:
    """Its bundle may hold the notes of who made it, in any letters."""
    async with opened(register) as door:
        other = Authority(door.authority.cluster_id)
        stranger = other.issue("manager", node_id=door.own.node_id)
        both = door.own.root_pem + "# Größere Wurzel\n".encode() + other.root.certs
        fresh = other.issue("manager", node_id=door.own.node_id)

        async def served(caller: Credentials, roots: bytes) -> bool:
            async with open_channel(door.address, caller, roots) as channel:
                try:
                    await check(channel)
                except grpc.aio.AioRpcError as error:
                    assert error.code() is grpc.StatusCode.UNAVAILABLE
                    return False
                return True

        assert not await served(stranger, both), "the server does not know the caller's root"
        assert not await served(door.own, other.root.certs), "the caller does not know the server's root"
        door.front.use(server_context(door.own.certificate_pem, door.own.key_pem, both))
        assert await served(stranger, both)
        door.front.use(server_context(fresh.certificate_pem, fresh.key_pem, both))
        assert await served(door.own, other.root.certs)


async def test_junk_and_half_handshakes_and_idle_connections_keep_nobody_out(opened: Any) -> None:
    limits = Limits(pending=40, handshake=30)
    async with opened(register, limits) as door:
        plagues = [door.connect() for _ in range(140)]
        try:
            for number, sock in enumerate(plagues):
                if number % 3 == 0:
                    sock.sendall(b"GET / HTTP/1.1\r\nHost: nobody\r\n\r\n")
                elif number % 3 == 1:
                    sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")  # the head of a ClientHello
            for _ in range(3):
                async with door.channel(door.own) as channel:
                    async with asyncio.timeout(5):
                        assert (await check(channel)).status == OK
            assert door.front.pending <= limits.pending
            assert door.front.counters["dropped_pending"] > 0
        finally:
            for sock in plagues:
                sock.close()


async def test_half_handshake_ends_at_its_deadline(opened: Any) -> None:
    async with opened(register, Limits(handshake=0.2)) as door:
        with door.connect() as sock:
            sock.settimeout(5)
            assert await asyncio.to_thread(sock.recv, 1) == b""
        assert door.front.counters["handshake_failed"] == 1


async def test_silent_stranger_is_closed_and_a_silent_node_is_not(opened: Any) -> None:
    async with opened(register, Limits(anonymous_idle=0.2)) as door:
        node = door.member()
        context = ssl.create_default_context(cadata=door.authority.root.certs.decode())
        context.set_alpn_protocols(["h2"])
        async with door.channel(node) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await check(channel)  # a worker may not ask; the connection is up all the same
            stranger = await asyncio.to_thread(context.wrap_socket, door.connect(), server_hostname="swarm-manager")
            with stranger:
                stranger.settimeout(5)
                await asyncio.to_thread(_read_to_end, stranger)
            assert door.front.counters["dropped_idle"] == 1
            assert door.front.connections == 1


async def test_stranger_beyond_the_bound_takes_the_place_of_the_most_silent_one(opened: Any) -> None:
    async with opened(register, Limits(anonymous=2)) as door:
        context = ssl.create_default_context(cadata=door.authority.root.certs.decode())
        context.set_alpn_protocols(["h2"])
        strangers = []
        try:
            for _ in range(3):
                strangers.append(
                    await asyncio.to_thread(context.wrap_socket, door.connect(), server_hostname="swarm-manager")
                )
                await _until(lambda: door.front.counters["established"] == len(strangers))
            assert door.front.counters["dropped_full"] == 1
            strangers[0].settimeout(5)
            await asyncio.to_thread(_read_to_end, strangers[0])
        finally:
            for stranger in strangers:
                stranger.close()


@pytest.mark.parametrize("alpn", [[], ["http/1.1"]])
async def test_client_that_does_not_speak_h2_is_closed(opened: Any, alpn: list[str]) -> None:
    async with opened(register) as door:
        context = ssl.create_default_context(cadata=door.authority.root.certs.decode())
        context.set_alpn_protocols(alpn) if alpn else None
        raw = door.connect()

        def talk() -> bytes:
            with raw, context.wrap_socket(raw, server_hostname="swarm-manager") as tls:
                return tls.recv(1)

        try:
            assert await asyncio.to_thread(talk) == b""
        except OSError:  # closed without a farewell, or refused in the handshake
            assert door.front.counters["established"] == 0


async def test_tls_1_1_is_refused(opened: Any) -> None:
    async with opened(register) as door:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.minimum_version = ssl.TLSVersion.TLSv1_1
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        raw = door.connect()
        with raw, pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.to_thread(context.wrap_socket, raw)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
async def test_certificate_request_names_no_ca_and_no_ticket_is_given(opened: Any, version: str) -> None:
    async with opened(register) as door:
        command = ["openssl", "s_client", "-connect", door.address, version, "-alpn", "h2", "-showcerts"]
        done = await asyncio.to_thread(
            subprocess.run, command, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False
        )
        said = done.stdout.decode(errors="replace")  # the first HTTP/2 frame is in it
        assert "No client certificate CA names sent" in said, said
        assert "ALPN protocol: h2" in said
        assert "TLS session ticket:" not in said
        if version == "-tls1_2":
            assert "ECDHE-ECDSA-AES256-GCM-SHA384" in said


def test_certificate_and_key_that_do_not_fit_are_refused_in_words() -> None:
    authority = Authority()
    one, other = authority.issue("manager"), authority.issue("manager")
    with pytest.raises(BadInput, match="cannot be served"):
        server_context(one.certificate_pem, other.key_pem, one.root_pem)


def test_control_socket_of_a_live_manager_is_not_taken(short_dir: Any) -> None:
    path = short_dir / "control.sock"
    with listen_control(path), pytest.raises(Twin, match="another manager"):
        listen_control(path)
    assert path.exists()


def test_stale_control_socket_is_replaced(short_dir: Any) -> None:
    path = short_dir / "control.sock"
    listen_control(path).close()
    assert path.exists()
    with listen_control(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_control_socket_path_that_is_a_file_is_left_alone(short_dir: Any) -> None:
    path = short_dir / "control.sock"
    path.write_text("precious")
    with pytest.raises((Refused, Twin)):
        listen_control(path)
    assert path.read_text() == "precious"


def test_taken_port_is_refused_with_a_remedy() -> None:
    sock, bound = listen_remote("127.0.0.1:0")
    with sock, pytest.raises(Refused, match=bound) as refusal:
        listen_remote(bound)
    assert refusal.value.remedy


def _read_to_end(sock: ssl.SSLSocket) -> None:
    """Read whatever the server says until it hangs up."""
    try:
        while sock.recv(4096):
            pass
    except (ssl.SSLError, ConnectionError) as error:
        assert not isinstance(error, TimeoutError), os.strerror(error.errno or 0)


async def _until(holds: Any, seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110  (counters of the front tell nobody)
            await asyncio.sleep(0.005)
