"""A real node (supervisord, coordinator, renewer, agent) in a swarm whose managers the test plays: one peer that serves
CA and dispatcher over mutual TLS, and a manager program that manages nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from ipc import topics
from ipc.aio import AsyncBus
from procs.cli.supervisord_conf import render
from swarm import dial
from swarm.api import ca_pb2, ca_pb2_grpc, dispatcher_pb2, dispatcher_pb2_grpc, specs_pb2, types_pb2
from swarm.nodeconfig import NodeConfig, save_node_config
from swarm.paths import Paths
from swarm.pki.certificate import MANAGER_OU, WORKER_OU
from swarm.pki.credentials import Credentials, load_credentials
from swarm.pki.keyfile import KeyFile
from swarm.process import make_directories
from swarm.remotes import Peer as KnownPeer
from swarm.remotes import save_peers
from tests.integration.agent_node import ScriptedDispatcher, alive
from tests.tools.authority import Authority

DEADLINE = 30.0
TOPICS = ("node", "certificate", "role", "manager", "agent", "node.changes", "process.*")
_ROLES = {"worker": types_pb2.WORKER, "manager": types_pb2.MANAGER}


class Peer(ScriptedDispatcher, ca_pb2_grpc.NodeCAServicer, ca_pb2_grpc.CAServicer):
    """The other managers: a dispatcher that shows the node its object, and a CA that signs its observed role."""

    def __init__(self, authority: Authority, node_id: str) -> None:
        super().__init__()
        self.authority = authority
        self.identity = authority.issue("manager")
        self.node.id = node_id
        self.node.spec.membership = specs_pb2.NodeSpec.ACCEPTED
        self.root_ca = authority.root.certs
        self.address = ""
        self.asked = 0
        self.failures = 0
        self.wishes = 0
        self.session_roles: list[str] = []
        """Organizational unit of the certificate of each session's caller."""
        self._csr = b""
        self._signed = b""

    def wish(self, role: str, *, observe: bool = True) -> None:
        """As the control API and, with `observe`, the role manager do it."""
        self.wishes += 1
        self.node.VXLANUDPPort = 10_000 + self.wishes  # tells this node object from the ones before
        self.node.spec.desired_role = _ROLES[role]
        if observe:
            self.node.role = _ROLES[role]
        self.say()

    async def Session(  # noqa: N802
        self, request: dispatcher_pb2.SessionRequest, context: Any
    ) -> AsyncIterator[dispatcher_pb2.SessionMessage]:
        await context.send_initial_metadata(((dial.OURS, "1"),))
        (leaf,) = context.auth_context()["x509_pem_cert"]
        subject = ssl.PEM_cert_to_DER_cert(leaf.decode())
        self.session_roles.append(MANAGER_OU if MANAGER_OU.encode() in subject else WORKER_OU)
        async for message in super().Session(request, context):
            yield message

    async def IssueNodeCertificate(self, request: ca_pb2.IssueNodeCertificateRequest, context: Any) -> Any:  # noqa: N802
        self.asked += 1
        await self._notify()
        if self.failures:
            self.failures -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the CA has the hiccups")
        self._csr = request.csr
        unit = MANAGER_OU if self.node.role == types_pb2.MANAGER else WORKER_OU
        self._signed = self.authority.root.sign(request.csr, self.node.id, unit, self.authority.cluster_id, 86400)
        return ca_pb2.IssueNodeCertificateResponse(node_id=self.node.id, node_membership=specs_pb2.NodeSpec.ACCEPTED)

    async def NodeCertificateStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        answer = ca_pb2.NodeCertificateStatusResponse()
        answer.status.state = types_pb2.IssuanceStatus.ISSUED
        answer.certificate.csr = self._csr
        answer.certificate.certificate = self._signed
        return answer

    async def GetUnlockKey(self, request: Any, context: Any) -> Any:  # noqa: N802
        return ca_pb2.GetUnlockKeyResponse()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        held = self.identity
        server = grpc.aio.server()
        for add in (
            dispatcher_pb2_grpc.add_DispatcherServicer_to_server,
            ca_pb2_grpc.add_NodeCAServicer_to_server,
            ca_pb2_grpc.add_CAServicer_to_server,
        ):
            add(self, server)
        tls = grpc.ssl_server_credentials(
            [(held.key_pem, held.certificate_pem)], self.authority.root.certs, require_client_auth=True
        )
        port = server.add_secure_port("127.0.0.1:0", tls)
        self.address = f"127.0.0.1:{port}"
        self.managers = [(held.node_id, self.address)]
        await server.start()
        try:
            yield
        finally:
            await server.stop(None)


class RolesNode:
    """The node, and what its processes say."""

    def __init__(self, base: Path, peer: Peer) -> None:
        self.paths = Paths(base / "s", base / "r")
        self.peer = peer
        make_directories(self.paths)
        self.paths.certificates.mkdir(mode=0o700, exist_ok=True)
        save_node_config(self.paths.node_toml, NodeConfig(hostname="worker", listen_addr="127.0.0.1:0"))
        held = peer.authority.issue("worker", node_id=peer.node.id)
        self.paths.root_cert.write_bytes(held.root_pem)
        KeyFile.of(self.paths).write(held.certificate_pem, held.key_pem)
        save_peers(self.paths.state_json, [KnownPeer(peer.identity.node_id, peer.address)])
        os.mkfifo(self.paths.runtime / "membership")
        self.bus = AsyncBus(self.paths.bus, None, TOPICS)
        self.supervisord: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        text = render(self.paths, sys.executable, root=os.geteuid() == 0, node="test")
        scripted = Path(__file__).with_name("scripted_manager.py")
        text = text.replace("-P -m procs.manager", f"-P {scripted}")
        self.paths.supervisor_conf.write_text(text)
        self.supervisord = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "supervisor.supervisord", "-c", str(self.paths.supervisor_conf),
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip

    async def says(self, topic: str, accept: Callable[[Any], bool], what: str, deadline: float = DEADLINE) -> Any:
        """The first value of `topic` that `accept` takes."""
        try:
            return (await self.bus.wait(topic, lambda value: accept(value.body), deadline)).body
        except TimeoutError:
            raise AssertionError(f"not within {deadline:g} s: {what}\n{self.report()}") from None

    async def settled(self, role: str, deadline: float = DEADLINE) -> None:
        """The node has heard of the last wish; certificate, manager program and coordinator agree on `role`."""
        port = self.peer.node.VXLANUDPPort
        await self.says("node.changes", lambda c: c.vxlan_port == port, "the agent hears of the last wish", deadline)
        await self.says("certificate", lambda c: c.role == role, f"certificate: {role}", deadline)
        runs = role == topics.MANAGER_ROLE
        await self.says("process.manager", lambda p: bool(p.pid) == runs, f"manager runs: {runs}", deadline)
        await self.says("role", lambda r: r == topics.Role(role), f"role: {role}", deadline)
        # One that was being written when the last wish came may still arrive, and is replaced again.
        if self.credentials().role != role:
            other = self.credentials().fingerprint
            await self.says("certificate", lambda c: c.fingerprint == other, "the late certificate is told", deadline)
            await self.settled(role, deadline)

    def credentials(self) -> Credentials:
        return load_credentials(self.paths)

    def pid(self, name: str) -> int:
        value = self.bus.last(f"process.{name}")
        return value.body.pid if value is not None else 0

    def kill(self, name: str) -> None:
        """SIGKILL, if it runs."""
        pid = self.pid(name)
        if pid and alive(pid):
            os.kill(pid, signal.SIGKILL)

    def remove_from_managers(self) -> None:
        """What the other managers do before they write the role of a demoted one."""
        pipe = os.open(self.paths.runtime / "membership", os.O_RDWR | os.O_NONBLOCK)
        os.write(pipe, b"removed\n")
        # A manager that is not there reads nothing, and its next life is not meant.
        if not self.pid("manager"):
            os.read(pipe, 4096)
        os.close(pipe)

    def erased(self) -> list[Path]:
        return sorted(self.paths.state.glob("manager.erased-*"))

    def report(self) -> str:
        """Last values and the ends of the logs, for a failed test."""
        said = "\n".join(f"{topic}: {value.body}" for topic, value in sorted(self.bus.values().items()))
        ends = [f"--- {f.name}\n" + "\n".join(f.read_text().splitlines()[-30:]) for f in self.paths.logs.glob("*.log")]
        return "\n".join([said, f"CA asked: {self.peer.asked}", *ends])

    async def close(self) -> None:
        if self.supervisord is not None:
            self.supervisord.terminate()
            await asyncio.wait_for(self.supervisord.wait(), DEADLINE)


@asynccontextmanager
async def roles_node() -> AsyncIterator[RolesNode]:
    """A worker that is ready, with its peer."""
    base = Path(tempfile.mkdtemp(prefix="sv", dir="/tmp"))
    authority = Authority()
    peer = Peer(authority, authority.issue().node_id)  # type: ignore[abstract]
    peer.wish("worker")
    try:
        async with peer.serving():
            node = RolesNode(base, peer)
            async with node.bus:
                try:
                    await node.start()
                    await node.says("node", lambda n: n.state == "ready", "the worker is ready")
                    yield node
                finally:
                    await node.close()
    finally:
        shutil.rmtree(base)
