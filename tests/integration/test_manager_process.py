"""The manager as a process: how it starts, what it refuses, what it says, how it ends."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import grpc.aio
import pytest

from ipc.aio import AsyncBus
from ipc.topics import Certificate, Manager
from procs.manager.manager import STORE
from swarm.api import control_pb2, control_pb2_grpc
from swarm.exits import ExitCode
from swarm.pki.credentials import Credentials
from swarm.pki.keyfile import KeyFile
from tests.integration.manager_node import ManagerNode, running


def certificate(credentials: Credentials) -> Certificate:
    return Certificate(
        state="valid",
        node_id=credentials.node_id,
        cluster_id=credentials.cluster_id,
        role=credentials.role,
        not_before=credentials.not_before,
        not_after=credentials.not_after,
        fingerprint=credentials.fingerprint,
        root_digest=credentials.root_digest,
    )


def scrape(path: Path) -> str:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(path))
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        parts = []
        while part := client.recv(65536):
            parts.append(part)
    return b"".join(parts).decode()


def served(address: str) -> bytes:
    host, _, port = address.rpartition(":")
    return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((host, int(port))))


async def cluster_of(node: ManagerNode) -> str:
    async with node.control() as channel:
        answer = await control_pb2_grpc.ControlStub(channel).ListClusters(control_pb2.ListClustersRequest(), timeout=10)
        return str(answer.clusters[0].id)


async def test_ready_says_addresses_and_the_root_it_holds_and_a_restart_keeps_the_swarm(short_dir: Path) -> None:
    node = ManagerNode.new(short_dir, advertise_addr="192.0.2.1:2377")
    assert node.own is not None
    try:
        for _ in range(2):
            await node.start()
            said = await node.ready()
            assert said == Manager(
                state="ready",
                leader=True,
                control_socket=str(node.paths.control_socket),
                remote_addr=node.address,
                advertise_addr="192.0.2.1:2377",
                root_digest_held=node.own.root_digest,
                configured="127.0.0.1:0 192.0.2.1:2377",
            )
            assert await cluster_of(node) == node.own.cluster_id
            assert await node.stop() == ExitCode.DONE
            assert not node.paths.control_socket.exists()
            node.paths.bootstrap_root_key.unlink(missing_ok=True)  # what the renewer does, now that it is held
    finally:
        await node.stop(signal.SIGKILL)


async def test_root_key_is_not_in_the_clear_in_the_store(short_dir: Path) -> None:
    async with running(short_dir) as node:
        token = await node.token()
        for file in node.paths.manager.iterdir():
            content = file.read_bytes()
            assert b"PRIVATE KEY" not in content
            assert node.authority.root.key_pem not in content
            assert token.encode() not in content


async def test_sigkill_leaves_nothing_that_keeps_the_next_one_from_starting(short_dir: Path) -> None:
    node = ManagerNode.new(short_dir)
    try:
        for _ in range(3):
            await node.start()
            await node.ready()
            await node.stop(signal.SIGKILL)
            assert node.paths.control_socket.exists()
    finally:
        await node.stop(signal.SIGKILL)


async def test_metrics_have_swarmkits_names(short_dir: Path) -> None:
    async with running(short_dir) as node:
        assert node.own is not None
        await node.join()
        text = await asyncio.to_thread(scrape, node.paths.metrics_socket("manager"))
        lines = text.splitlines()
        info = f'swarm_node_info{{swarm_id="{node.own.cluster_id}",node_id="{node.own.node_id}"}} 1'
        swapped = f'swarm_node_info{{node_id="{node.own.node_id}",swarm_id="{node.own.cluster_id}"}} 1'
        assert any(line.startswith((info, swapped)) for line in lines)
        for start in (
            "swarm_node_manager 1",
            "swarm_manager_leader 1",
            'swarm_manager_nodes{state="unknown"} 2',
            'swarm_manager_nodes{state="ready"} 0',
            "swarm_store_write_tx_latency_seconds_count",
            "swarmvisor_gateway_connections_total",
        ):
            assert any(line.startswith(start) for line in lines), (start, text)
        assert 'grpc_method="IssueNodeCertificate"' in text
        for name in ("tasks", "services", "networks", "secrets", "configs"):
            assert re.search(rf"^swarm_manager_{name}(_total)?[ {{]", text, re.MULTILINE), name


async def test_new_certificate_is_served_without_a_restart_and_connections_stay(short_dir: Path) -> None:
    async with running(short_dir) as node, node.control() as channel:
        own = node.own
        assert own is not None
        stub = control_pb2_grpc.ControlStub(channel)
        await stub.ListClusters(control_pb2.ListClustersRequest(), timeout=10)
        fresh = node.authority.issue("manager", node_id=own.node_id)
        KeyFile.of(node.paths).write(fresh.certificate_pem, fresh.key_pem)
        wanted = ssl.PEM_cert_to_DER_cert(fresh.certificate_pem.decode())
        assert await asyncio.to_thread(served, node.address) != wanted
        async with AsyncBus(node.paths.bus, "renewer") as renewer:
            renewer.publish("certificate", certificate(fresh))
            async with asyncio.timeout(10):
                while await asyncio.to_thread(served, node.address) != wanted:  # noqa: ASYNC110  (nobody tells a test)
                    await asyncio.sleep(0.02)
        await stub.ListClusters(control_pb2.ListClustersRequest(), timeout=10)
        assert channel.get_state() is grpc.ChannelConnectivity.READY


async def test_worker_certificate_ends_the_manager(short_dir: Path) -> None:
    async with running(short_dir) as node:
        assert node.own is not None
        assert node.process is not None
        demoted = node.authority.issue("worker", node_id=node.own.node_id)
        KeyFile.of(node.paths).write(demoted.certificate_pem, demoted.key_pem)
        async with AsyncBus(node.paths.bus, "renewer") as renewer:
            renewer.publish("certificate", certificate(demoted))
            assert await asyncio.wait_for(node.process.wait(), 10) == ExitCode.ROLE_LOST
        await node.start()  # and one that is started with it ends at once
        assert await asyncio.wait_for(node.process.wait(), 10) == ExitCode.ROLE_LOST


async def test_manager_without_a_certificate_waits_and_says_so(short_dir: Path) -> None:
    node = ManagerNode.new(short_dir)
    kept = node.paths.node_cert.read_bytes()
    node.paths.node_cert.unlink()
    await node.start()
    try:
        async with AsyncBus(node.paths.bus, None, ("manager",)) as bus:
            value = await bus.wait("manager", lambda v: bool(v.body.why), 10)
            assert value.body.state == "starting"
            assert "swarm-node.crt is missing" in value.body.why
        node.paths.node_cert.write_bytes(kept)
        assert node.own is not None
        async with AsyncBus(node.paths.bus, "renewer") as renewer:
            renewer.publish("certificate", certificate(node.own))
            await node.ready()
    finally:
        assert await node.stop() == ExitCode.DONE


async def test_second_manager_on_the_same_directories_is_a_twin(short_dir: Path) -> None:
    async with running(short_dir) as node:
        twin = ManagerNode(node.paths, node.authority, log=short_dir / "twin")
        await twin.start()
        assert twin.process is not None
        assert await asyncio.wait_for(twin.process.wait(), 20) == ExitCode.TWIN
        assert await cluster_of(node)


def junk(path: Callable[[ManagerNode], Path], content: bytes = b"junk") -> Callable[[ManagerNode], Path]:
    def spoil(node: ManagerNode) -> Path:
        found = path(node)
        found.write_bytes(content)
        return found

    return spoil


def cut(path: Callable[[ManagerNode], Path]) -> Callable[[ManagerNode], Path]:
    def spoil(node: ManagerNode) -> Path:
        found = path(node)
        found.write_bytes(found.read_bytes()[: found.stat().st_size // 2])
        return found

    return spoil


def flip(path: Callable[[ManagerNode], Path]) -> Callable[[ManagerNode], Path]:
    def spoil(node: ManagerNode) -> Path:
        found = path(node)
        content = bytearray(found.read_bytes())
        for position in range(len(content) // 3, len(content), 97):
            content[position] ^= 0xFF
        found.write_bytes(content)
        return found

    return spoil


def other_data_key(node: ManagerNode) -> Path:
    KeyFile.of(node.paths).view_and_update_headers(lambda _: {})
    return node.paths.node_key


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("node.toml", junk(lambda n: n.paths.node_toml, b"listen_addr = [")),
        ("swarm-node.crt", junk(lambda n: n.paths.node_cert)),
        ("swarm-node.crt cut", cut(lambda n: n.paths.node_cert)),
        ("swarm-node.key", junk(lambda n: n.paths.node_key)),
        ("swarm-root-ca.crt", junk(lambda n: n.paths.root_cert)),
        ("store.db", junk(lambda n: n.paths.manager / STORE)),
        ("store.db empty", junk(lambda n: n.paths.manager / STORE, b"")),
        ("store.db cut", cut(lambda n: n.paths.manager / STORE)),
        ("store.db flipped", flip(lambda n: n.paths.manager / STORE)),
        ("ENGINE", junk(lambda n: n.paths.manager / "ENGINE", b"oracle\n")),
        ("data key gone", other_data_key),
    ],
)
async def test_spoiled_file_is_refused_by_name_with_a_remedy_and_left_alone(
    short_dir: Path, name: str, spoil: Callable[[ManagerNode], Path]
) -> None:
    node = ManagerNode.new(short_dir)
    try:
        await node.start()
        await node.ready()
        assert await node.stop() == ExitCode.DONE
        spoiled = spoil(node)
        content = spoiled.read_bytes()
        async with AsyncBus(node.paths.bus, "renewer") as renewer:
            # Before the renewer's word the manager would wait for it: files may be mended yet.
            assert node.own is not None
            renewer.publish("certificate", certificate(node.own))
            await node.start()
            assert node.process is not None
            assert await asyncio.wait_for(node.process.wait(), 20) == ExitCode.CONFIG, (name, node.said())
        last = [line for line in node.said().splitlines() if "level=error" in line][-1]
        assert str(spoiled) in last, (name, last)
        assert ";" in last, f"no remedy: {last}"
        assert spoiled.read_bytes() == content
    finally:
        if node.process is not None and node.process.returncode is None:
            await node.stop(signal.SIGKILL)
