"""A real renewer process on a real bus, with this test process in the roles of its neighbours and of a CA."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Self

import grpc
import grpc.aio

from ipc import topics
from ipc.aio import AsyncBus
from swarm.api import ca_pb2, ca_pb2_grpc, types_pb2
from swarm.nodeconfig import NodeConfig, save_node_config
from swarm.paths import Paths
from swarm.pki.credentials import OU_OF_ROLE, Credentials, load_credentials
from swarm.pki.rootca import RootCA
from tests.tools.scratch import scratch

DEADLINE = 20.0


async def seen(condition: Callable[[], bool]) -> None:
    """Wait for what a file shows: nothing tells of it, so look until the deadline."""
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110  see above
            await asyncio.sleep(0.01)


class Node:
    """State and runtime directory, bus sockets of coordinator, manager and agent, and one renewer at a time."""

    def __init__(self, directory: Path, *, be_manager: bool) -> None:
        self._be_manager = be_manager
        self.paths = Paths(directory / "s", directory / "r")
        self.paths.state.mkdir()
        self.paths.bus.mkdir(parents=True)
        save_node_config(self.paths.node_toml, NodeConfig())
        self.log = directory / "renewer.log"
        self.process: asyncio.subprocess.Process | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.__aenter__()
        self.coordinator = await self._bus("coordinator")
        if self._be_manager:
            self.manager = await self._bus("manager")
        self.agent = await self._bus("agent")
        self.reader = await self._bus(None, "certificate")
        self._stack.push_async_callback(self.kill)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def _bus(self, name: str | None, *subscribe: str) -> AsyncBus:
        return await self._stack.enter_async_context(AsyncBus(self.paths.bus, name, subscribe))

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "procs.renewer",
                "--state-dir", str(self.paths.state), "--runtime-dir", str(self.paths.runtime),
                stderr=log, cwd=Path(__file__).parents[2],
            )  # fmt: skip

    async def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.terminate()
        return await asyncio.wait_for(self.process.wait(), DEADLINE)

    async def kill(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    async def certificate(self, accept: Callable[[topics.Certificate], bool] = lambda _: True) -> topics.Certificate:
        """The first value that `accept` takes, of the renewer that runs now."""
        assert self.process is not None
        pid = self.process.pid
        try:
            value = await self.reader.wait("certificate", lambda v: v.pid == pid and accept(v.body), DEADLINE)
        except TimeoutError:
            last = self.reader.last("certificate")
            raise AssertionError(f"last said: {last and last.body}\n{self.log.read_text()}") from None
        found = value.body
        assert isinstance(found, topics.Certificate)
        return found

    def credentials(self) -> Credentials:
        return load_credentials(self.paths)

    def root(self) -> RootCA:
        """The new swarm's root with its key."""
        certs = self.paths.root_cert.read_bytes()
        return RootCA.from_pem(certs, self.paths.bootstrap_root_key.read_bytes(), certs)

    def ask(self, fingerprint: str, expected: str = "manager", why: str = "the test asks") -> None:
        """Be the coordinator that wants the certificate replaced."""
        self.coordinator.publish("role", topics.Role("manager", expected, fingerprint, why), cause="test-cause")


@asynccontextmanager
async def a_node(*, be_manager: bool = True) -> AsyncIterator[Node]:
    """A node without processes yet; `be_manager` False leaves the manager's place on the bus to a real one."""
    with scratch() as directory:
        async with Node(directory, be_manager=be_manager) as node:
            yield node


class Authority(ca_pb2_grpc.NodeCAServicer, ca_pb2_grpc.CAServicer):
    """A CA as managers have it, with the roles of its answers in the test's hand."""

    def __init__(self, root: RootCA, held: Credentials, roles: list[str]) -> None:
        self.root, self.held, self.roles = root, held, roles
        self.asked = 0
        self.callers: list[str] = []
        self.refuse = ""
        self.unlock_key = b""
        self.unlock_version = 0
        self.early = 0
        """How many times to answer before it is signed: with the record of another request, already issued."""
        self._csr = b""

    async def IssueNodeCertificate(self, request, context):  # noqa: N802  the wire's name
        self.asked += 1
        self._csr = request.csr
        names = context.auth_context().get("x509_common_name", [b""])
        self.callers.append(names[0].decode())
        return ca_pb2.IssueNodeCertificateResponse(node_id=self.held.node_id, node_membership=1)

    async def NodeCertificateStatus(self, request, context):  # noqa: N802  the wire's name
        assert request.node_id == self.held.node_id
        answer = ca_pb2.NodeCertificateStatusResponse()
        if self.early:
            self.early -= 1
            answer.status.state = types_pb2.IssuanceStatus.ISSUED
            answer.certificate.csr = b"another"
            answer.certificate.certificate = self.held.certificate_pem
            return answer
        answer.certificate.csr = self._csr
        if self.refuse:
            answer.status.state = types_pb2.IssuanceStatus.FAILED
            answer.status.err = self.refuse
            return answer
        role = self.roles.pop(0) if len(self.roles) > 1 else self.roles[0]
        answer.status.state = types_pb2.IssuanceStatus.ISSUED
        answer.certificate.certificate = self.root.sign(
            self._csr, self.held.node_id, OU_OF_ROLE[role], self.held.cluster_id, 7200
        )
        return answer

    async def GetUnlockKey(self, request, context):  # noqa: N802  the wire's name
        answer = ca_pb2.GetUnlockKeyResponse(unlock_key=self.unlock_key)
        answer.version.index = self.unlock_version
        return answer


@asynccontextmanager
async def serving(authority: Authority, address: str, *, clients: bool) -> AsyncIterator[int]:
    """Serve with the node's own manager certificate; `clients`: ask callers for theirs."""
    held = authority.held
    server = grpc.aio.server()
    ca_pb2_grpc.add_NodeCAServicer_to_server(authority, server)
    ca_pb2_grpc.add_CAServicer_to_server(authority, server)
    tls = grpc.ssl_server_credentials([(held.key_pem, held.certificate_pem)], held.root_pem, clients)
    port = server.add_secure_port(address, tls)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)
