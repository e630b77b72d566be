"""The door of a real manager process: who gets in, and that nobody can keep others out."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from swarm.api import (
    ca_pb2,
    ca_pb2_grpc,
    control_pb2,
    control_pb2_grpc,
    dispatcher_pb2,
    dispatcher_pb2_grpc,
    health_pb2,
    health_pb2_grpc,
    raft_pb2,
    raft_pb2_grpc,
)
from swarm.pki.credentials import Credentials
from swarm.pki.request import new_request
from tests.integration.manager_node import ManagerNode, code_and_text, running
from tests.tools.authority import Authority

WIRE = json.loads((Path(__file__).parents[1] / "fixtures/wire/docker.swarmkit.v1.json").read_text())
METHODS: dict[str, dict[str, Any]] = {
    f"/docker.swarmkit.v1.{service}/{method}": about
    for file in WIRE.values()
    for service, methods in file.get("services", {}).items()
    for method, about in methods.items()
}
WRAP = "Permission denied: unauthorized peer role: rpc error: code = PermissionDenied desc = "
FORWARDER = "Permission denied: unauthorized forwarder role: rpc error: code = PermissionDenied desc = "
WORKER, MANAGER = "swarm-worker", "swarm-manager"


@pytest.fixture
async def node(short_dir: Path) -> AsyncIterator[ManagerNode]:
    async with running(short_dir) as started:
        yield started


async def refusal(
    channel: grpc.aio.Channel, method: str, metadata: tuple[tuple[str, str], ...] = (), patience: float = 0.3
) -> str:
    """Why the guard refuses `method` with an empty request; empty where it lets the call through to the service."""
    about = METHODS[method]
    kind = ("stream" if about["client_stream"] else "unary") + "_" + ("stream" if about["server_stream"] else "unary")
    call = getattr(channel, kind)(method, request_serializer=lambda b: b, response_deserializer=lambda b: b)
    request = iter([b""]) if about["client_stream"] else b""
    try:
        running = call(request, metadata=metadata, timeout=patience)
        await (running.read() if about["server_stream"] else running)
    except grpc.aio.AioRpcError as error:
        code, text = code_and_text(error)
        if code is grpc.StatusCode.PERMISSION_DENIED and text.startswith("Permission denied: "):
            return text
        assert code not in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE), (method, code, text)
        assert text != "internal error", method
    return ""


def forwarded(cn: str, ou: str, org: str) -> tuple[tuple[str, str], ...]:
    return (
        ("forwarded_cert", "true"),
        ("forwarded_cert_cn", cn),
        ("forwarded_cert_org", org),
        ("forwarded_cert_ou", ou),
        ("remote_addr", "198.51.100.7:7"),
    )


async def test_every_method_for_every_kind_of_caller(node: ManagerNode) -> None:
    own, authority = node.own, node.authority
    assert own is not None
    org = own.cluster_id
    worker, other = await node.join(), await node.join()
    demoted = authority.issue("manager", node_id=other.node_id)
    foreign = authority.issue("worker", node_id=worker.node_id, organization="x" * 25)
    gone = authority.issue("worker")
    lost_manager = authority.issue("manager")

    def ous(roles: list[str]) -> str:
        return WRAP + f"Permission denied: remote certificate not part of OUs: [{' '.join(roles)}]"

    def as_worker(otherwise: str) -> Any:
        return lambda roles: otherwise if WORKER in roles else ous(roles)

    cases: dict[str, tuple[Credentials | None, tuple[tuple[str, str], ...], Any]] = {
        "no certificate": (None, (), lambda roles: WRAP + "no client certificates in request"),
        "worker": (worker, (), as_worker("")),
        "manager": (own, (), lambda roles: ""),
        "demoted manager": (demoted, (), as_worker("")),
        "other organization": (
            foreign,
            (),
            as_worker(WRAP + f"Permission denied: remote certificate not part of organization: {org}"),
        ),
        "removed node": (
            gone,
            (),
            as_worker(WRAP + f"Permission denied: node {gone.node_id} was removed from swarm"),
        ),
        "removed manager": (
            lost_manager,
            (),
            lambda roles: WRAP + f"Permission denied: node {lost_manager.node_id} was removed from swarm",
        ),
        "worker forwarded by manager": (
            own,
            forwarded(worker.node_id, WORKER, org),
            lambda roles: (
                ""
                if WORKER in roles
                else f"Permission denied: unauthorized forwarded role, expecting: [{' '.join(roles)}]"
            ),
        ),
        "removed node forwarded by manager": (
            own,
            forwarded(lost_manager.node_id, MANAGER, org),
            lambda roles: f"Permission denied: node {lost_manager.node_id} was removed from swarm",
        ),
        "nobody forwarded by manager": (
            own,
            forwarded("", "", ""),
            lambda roles: "Permission denied: missing information in forwarded request",
        ),
        "manager forwarded by worker": (
            worker,
            forwarded(own.node_id, MANAGER, org),
            lambda roles: FORWARDER + "Permission denied: remote certificate not part of OUs: [swarm-manager]",
        ),
    }
    for name, (credentials, metadata, wanted) in cases.items():
        async with node.remote(credentials) as channel:
            await channel.channel_ready()
            due = {
                method: wanted(about["roles"]) if isinstance(about["roles"], list) else ""
                for method, about in METHODS.items()
            }
            # What is let through may well stay silent; a refusal is waited for, however busy the machine is.
            answers = await asyncio.gather(
                *(refusal(channel, method, metadata, 10 if text else 0.3) for method, text in due.items())
            )
            for (method, text), answer in zip(due.items(), answers, strict=True):
                assert answer == text, (name, method)
    async with node.control() as channel:
        for metadata in ((), forwarded("nobody", WORKER, "nowhere")):
            answers = await asyncio.gather(*(refusal(channel, method, metadata) for method in METHODS))
            assert not any(answers), [m for m, a in zip(METHODS, answers, strict=True) if a]


async def test_certificate_that_expires_while_connected_is_refused_from_then_on(node: ManagerNode) -> None:
    worker = await node.join()
    start = (int(time.time()) // 60 - 300) * 60
    short = node.authority.issue("worker", node_id=worker.node_id, issued_at=start, expiry=int(time.time()) + 3 - start)
    async with node.remote(short) as channel:
        method = "/docker.swarmkit.v1.Dispatcher/Heartbeat"
        assert await refusal(channel, method) == ""
        async with asyncio.timeout(10):
            while not (text := await refusal(channel, method)):  # noqa: ASYNC110  (time alone makes it so)
                await asyncio.sleep(0.05)
        assert text == WRAP + f"Permission denied: certificate of node {worker.node_id} has expired"
        assert time.time() >= short.not_after


async def test_expired_and_foreign_certificates_fail_the_handshake(node: ManagerNode) -> None:
    expired = node.authority.issue("manager", issued_at=time.time() - 9000 * 3600, expiry=3600)
    foreign = Authority(cluster_id=node.authority.cluster_id).issue("manager")
    for credentials in (expired, foreign):
        async with node.remote(credentials) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
            assert error.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_removed_node_is_cut_off_at_once(node: ManagerNode) -> None:
    worker = await node.join()
    async with node.remote(worker) as channel, node.control() as control:
        stub = dispatcher_pb2_grpc.DispatcherStub(channel)
        session = stub.Session(dispatcher_pb2.SessionRequest())
        held = await session.read()
        removal = control_pb2.RemoveNodeRequest(node_id=worker.node_id, force=True)
        await control_pb2_grpc.ControlStub(control).RemoveNode(removal, timeout=5)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await asyncio.wait_for(session.read(), 5)
        assert code_and_text(error.value) == (
            grpc.StatusCode.PERMISSION_DENIED,
            f"Permission denied: node {worker.node_id} was removed from swarm",
        )
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.Heartbeat(dispatcher_pb2.HeartbeatRequest(session_id=held.session_id), timeout=5)
        assert code_and_text(error.value) == (
            grpc.StatusCode.PERMISSION_DENIED,
            WRAP + f"Permission denied: node {worker.node_id} was removed from swarm",
        )


async def test_junk_half_handshakes_and_100_idle_connections_keep_nobody_out(node: ManagerNode) -> None:
    host, _, port = node.address.rpartition(":")
    worker = await node.join()
    context = ssl.create_default_context(cadata=node.authority.root.certs.decode())
    context.set_alpn_protocols(["h2"])
    plague: list[socket.socket] = []

    def spread() -> None:
        for number in range(300):
            sock = socket.create_connection((host, int(port)), timeout=5)
            plague.append(sock)
            if number % 3 == 1:
                sock.sendall(bytes(range(256)) * 8)
            elif number % 3 == 2:
                sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 32)
        for _ in range(100):  # handshake done, and then nothing
            sock = socket.create_connection((host, int(port)), timeout=5)
            plague.append(context.wrap_socket(sock, server_hostname="swarm-manager"))

    try:
        await asyncio.to_thread(spread)
        async with node.remote(worker) as channel:
            stub = dispatcher_pb2_grpc.DispatcherStub(channel)
            started = time.monotonic()
            session = stub.Session(dispatcher_pb2.SessionRequest(), timeout=10)
            held = await session.read()
            for _ in range(20):
                await stub.Heartbeat(dispatcher_pb2.HeartbeatRequest(session_id=held.session_id), timeout=5)
            assert time.monotonic() - started < 3
            session.cancel()
        assert (await node.join()).role == "worker"
    finally:
        for sock in plague:
            sock.close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
async def test_openssl_sees_an_empty_list_of_cas_and_the_whole_chain(node: ManagerNode) -> None:
    command = ["openssl", "s_client", "-connect", node.address, "-alpn", "h2", "-showcerts", "-tls1_2"]
    done = await asyncio.to_thread(
        subprocess.run, command, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False
    )
    said = done.stdout.decode(errors="replace")
    assert "No client certificate CA names sent" in said
    assert "ALPN protocol: h2" in said
    # OpenSSL adds the root to a chain of one by itself.
    assert said.count("-----BEGIN CERTIFICATE-----") in (node.own_chain_length(), node.own_chain_length() + 1)


async def test_health_by_name(node: ManagerNode) -> None:
    async with node.remote(node.own) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", "Raft", "ControlAPI"):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.Check(health_pb2.HealthCheckRequest(service="x"), timeout=5)
        assert code_and_text(error.value) == (grpc.StatusCode.NOT_FOUND, "unknown service")


async def test_joining_the_managers_is_refused_in_words(node: ManagerNode) -> None:
    async with node.remote(node.own) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await raft_pb2_grpc.RaftMembershipStub(channel).Join(raft_pb2.JoinRequest(addr="a:1"), timeout=5)
        code, text = code_and_text(error.value)
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "one manager" in text


async def test_certificate_requests(node: ManagerNode) -> None:
    _, csr = new_request()
    token = await node.token()
    async with node.remote() as channel:
        stub = ca_pb2_grpc.NodeCAStub(channel)

        async def issue(**request: Any) -> Any:
            return await stub.IssueNodeCertificate(ca_pb2.IssueNodeCertificateRequest(**request), timeout=5)

        async def refused(**request: Any) -> tuple[Any, str]:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await issue(**request)
            return code_and_text(error.value)

        no_token = "A valid join token is necessary to join this cluster"
        assert await refused(token=token) == (grpc.StatusCode.INVALID_ARGUMENT, "InvalidArgument")
        for wrong in ("", "x", token[:-1], token.replace("SWMTKN", "swmtkn")):
            assert await refused(csr=csr, token=wrong) == (grpc.StatusCode.INVALID_ARGUMENT, no_token)
        first, again = await issue(csr=csr, token=token), await issue(csr=csr, token=token)
        assert first.node_id == again.node_id  # the answer was lost: the same node, not an orphan
        root = await ca_pb2_grpc.CAStub(channel).GetRootCACertificate(ca_pb2.GetRootCACertificateRequest(), timeout=5)
        assert root.certificate == node.authority.root.certs
        junk = await issue(csr=b"junk", token=token)
        status = await stub.NodeCertificateStatus(ca_pb2.NodeCertificateStatusRequest(node_id=junk.node_id), timeout=5)
        assert status.status.err == 'failed to sign node certificate: {"code":9002,"message":"CSR Decode failed"}'
        for node_id, code, text in (
            ("", grpc.StatusCode.INVALID_ARGUMENT, "InvalidArgument"),
            ("nobody", grpc.StatusCode.NOT_FOUND, "NotFound"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await stub.NodeCertificateStatus(ca_pb2.NodeCertificateStatusRequest(node_id=node_id), timeout=5)
            assert code_and_text(error.value) == (code, text)
    with pytest.raises(grpc.aio.AioRpcError, match="exactly one manager") as refusal:
        await node.join("manager")
    assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION
