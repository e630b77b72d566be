"""One try to join, over real TLS, against a scripted CA: what it asks, resumes and accepts, how it tells failures."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from procs.agent.verdict import refusal
from procs.renewer import files
from procs.renewer.joiner import Joiner
from swarm.api import ca_pb2, ca_pb2_grpc, specs_pb2, types_pb2
from swarm.clock import SystemClock
from swarm.errors import CorruptFile
from swarm.joining import JoinFailed, Trouble, load_joining
from swarm.nodeconfig import NodeConfig, save_node_config
from swarm.paths import Paths
from swarm.pki.certificate import parse_bundle
from swarm.pki.chain import validate_chain
from swarm.pki.credentials import Credentials, load_credentials
from swarm.pki.keyfile import Kek
from swarm.pki.rootca import RootCA
from swarm.pki.tokens import generate_join_token
from swarm.probe import Problem, probe
from tests.tools.authority import HOUR, Authority

LOG = logging.getLogger("test")
State = types_pb2.IssuanceStatus


@dataclass
class Shifted(SystemClock):
    """The machine's clock, set wrong by so many seconds."""

    seconds: float = 0.0

    def wall_ns(self) -> int:
        return super().wall_ns() + int(self.seconds * 1e9)


@dataclass
class Script(ca_pb2_grpc.NodeCAServicer, ca_pb2_grpc.CAServicer):
    """A CA that makes a new node of every request, as Go's does, and answers as the test wants."""

    authority: Authority
    token: str
    unit: str = "swarm-worker"
    organization: str = ""
    state: int = State.ISSUED
    why: str = "no such key"
    wrong_echoes: int = 0
    unlock_key: bytes = b""
    fails: list[grpc.StatusCode] = field(default_factory=list)
    """Codes that the next calls for the status end with."""
    nodes: dict[str, bytes] = field(default_factory=dict)
    availabilities: list[int] = field(default_factory=list)
    callers: list[bool] = field(default_factory=list)
    bundle: bytes = b""
    polled: asyncio.Event = field(default_factory=asyncio.Event)

    async def GetRootCACertificate(self, request: Any, context: Any) -> Any:  # noqa: N802
        return ca_pb2.GetRootCACertificateResponse(certificate=self.bundle or self.authority.root.certs)

    async def IssueNodeCertificate(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.token != self.token:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, "A valid join token is necessary to join this cluster"
            )
        self.availabilities.append(request.availability)
        node_id = f"node{len(self.nodes)}"
        self.nodes[node_id] = request.csr
        return ca_pb2.IssueNodeCertificateResponse(node_id=node_id)

    async def NodeCertificateStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.polled.set()
        if self.fails:
            await context.abort(self.fails.pop(0), "scripted")
        csr = self.nodes[request.node_id]
        answer = ca_pb2.NodeCertificateStatusResponse()
        answer.status.state = self.state  # type: ignore[assignment]
        answer.status.err = self.why
        if self.wrong_echoes:
            self.wrong_echoes -= 1
            answer.certificate.csr = b"another"
            return answer
        answer.certificate.csr = csr
        answer.certificate.certificate = self.authority.root.sign(
            csr, request.node_id, self.unit, self.organization or self.authority.cluster_id, 24 * HOUR
        )
        return answer

    async def GetUnlockKey(self, request: Any, context: Any) -> Any:  # noqa: N802
        answer = ca_pb2.GetUnlockKeyResponse(unlock_key=self.unlock_key)
        answer.version.index = 12
        return answer


@dataclass
class Bench:
    """A host that joins, and the manager that it asks."""

    paths: Paths
    script: Script
    addr: str
    fips: bool = False
    clock: Shifted = field(default_factory=Shifted)
    patience: float = 20.0

    async def join(self) -> tuple[Credentials, Kek]:
        joiner = Joiner(self.paths, self.addr, "pause", self.fips, self.clock, LOG, issue_timeout=self.patience)
        return await joiner.join()

    async def fails(self, trouble: Trouble, words: str) -> JoinFailed:
        with pytest.raises(JoinFailed) as raised:
            await self.join()
        assert raised.value.trouble is trouble, raised.value.describe()
        assert words in raised.value.describe()
        return raised.value


@asynccontextmanager
async def serving(script: Script, shown: Credentials) -> AsyncIterator[str]:
    server = grpc.aio.server()
    ca_pb2_grpc.add_NodeCAServicer_to_server(script, server)
    ca_pb2_grpc.add_CAServicer_to_server(script, server)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(shown.key_pem, shown.certificate_pem)]))
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    authority = Authority()
    paths = Paths(tmp_path / "state", tmp_path / "run")
    paths.state.mkdir()
    script = Script(authority, generate_join_token(authority.root.certs))
    async with serving(script, authority.issue("manager")) as addr:
        paths.join_token.write_text(script.token + "\n")
        save_node_config(paths.node_toml, NodeConfig(join_addr=addr))
        yield Bench(paths, script, addr)


async def test_a_join_ends_with_a_certificate_for_its_own_key(bench: Bench) -> None:
    joined, kek = await bench.join()
    assert (joined.node_id, joined.role, joined.cluster_id) == ("node0", "worker", bench.script.authority.cluster_id)
    assert (kek, bench.script.availabilities) == (Kek(), [specs_pb2.NodeSpec.PAUSE])
    assert bench.paths.root_cert.read_bytes() == bench.script.authority.root.certs
    assert files.install_first(bench.paths, joined, kek) == load_credentials(bench.paths)
    assert sorted(p.name for p in bench.paths.certificates.iterdir() if p.name != ".lock") == [
        "swarm-node.crt",
        "swarm-node.key",
        "swarm-root-ca.crt",
    ]


async def test_killed_after_the_answer_it_goes_on_as_the_same_node(bench: Bench) -> None:
    bench.script.fails = [grpc.StatusCode.UNAVAILABLE]
    await bench.fails(Trouble.UNREACHABLE, "scripted")
    record = load_joining(bench.paths.joining)
    assert record is not None
    assert record.node_id == "node0"
    bench.paths.join_token.write_text("SWMTKN-1-" + "0" * 50 + "-" + "0" * 25)  # rotated since: not needed any more
    joined, _ = await bench.join()
    assert joined.node_id == "node0"
    assert list(bench.script.nodes) == ["node0"], "nobody was asked for a second node"
    assert joined.key_pem.decode() == record.key_pem


async def test_killed_before_the_answer_it_asks_again_with_the_same_request(bench: Bench) -> None:
    paused = asyncio.Event()

    async def never(request: Any, context: Any) -> Any:
        paused.set()
        await asyncio.Event().wait()

    bench.script.IssueNodeCertificate = never  # type: ignore[method-assign]
    # a server of its own: gRPC binds methods when the service is added
    async with serving(bench.script, bench.script.authority.issue("manager")) as addr:
        attempt = asyncio.create_task(replace(bench, addr=addr).join())
        await asyncio.wait_for(paused.wait(), 20)
        attempt.cancel()
        await asyncio.gather(attempt, return_exceptions=True)
    record = load_joining(bench.paths.joining)
    assert record is not None
    assert record.node_id == ""
    await bench.join()
    assert bench.script.nodes["node0"] == record.csr_pem.encode()


async def test_a_node_removed_while_it_joined_starts_over_as_another(bench: Bench) -> None:
    bench.script.fails = [grpc.StatusCode.NOT_FOUND]
    await bench.fails(Trouble.OTHER, "was removed from the swarm while it joined")
    joined, _ = await bench.join()
    assert joined.node_id == "node1"


async def test_only_the_record_with_our_own_request_counts(bench: Bench) -> None:
    bench.script.wrong_echoes = 1
    joined, _ = await bench.join()
    assert joined.node_id == "node0"


async def test_a_request_that_the_ca_refuses_is_not_polled_for_ever(bench: Bench) -> None:
    bench.script.state = State.FAILED
    await bench.fails(Trouble.REFUSED, "the swarm's CA refused the request: no such key")


async def test_a_manager_learns_the_unlock_key_before_its_key_is_written(bench: Bench) -> None:
    bench.script.unit, bench.script.unlock_key = "swarm-manager", b"u" * 32
    joined, kek = await bench.join()
    assert (joined.role, kek) == ("manager", Kek(b"u" * 32, 12))


async def test_tokens_are_told_apart(bench: Bench) -> None:
    own = bench.script.token
    for text, trouble, words in (
        ("SWMTKN-1-x-y", Trouble.TOKEN, "invalid join token"),
        (own.replace(own[9:59], "z" * 50), Trouble.TOKEN, "not a digest"),
        (
            generate_join_token(RootCA.create().certs),
            Trouble.DIGEST,
            "remote CA does not match fingerprint. Expected: ",
        ),
        (generate_join_token(bench.script.authority.root.certs, fips=True), Trouble.FIPS, "requires FIPS"),
    ):
        bench.paths.join_token.write_text(text)
        await bench.fails(trouble, words)
        assert not bench.paths.root_cert.exists()
    assert bench.script.nodes == {}
    bench.paths.join_token.write_text(generate_join_token(bench.script.authority.root.certs))
    failed = await bench.fails(Trouble.REFUSED, "A valid join token is necessary to join this cluster")
    assert "rotated" in failed.remedy
    bench.paths.join_token.unlink()
    await bench.fails(Trouble.TOKEN, "join-token is missing")


async def test_the_digest_is_over_the_exact_bytes_of_the_bundle(bench: Bench) -> None:
    bench.script.bundle = bench.script.authority.root.certs + b"\n"
    await bench.fails(Trouble.DIGEST, "does not match fingerprint")


async def test_the_root_may_be_a_bundle_and_one_that_is_there_already_is_kept_as_it_is(bench: Bench) -> None:
    other = Authority(bench.script.authority.cluster_id)
    bundle = bench.script.bundle = other.root.certs + b"# kept\n" + bench.script.authority.root.certs
    await bench.fails(Trouble.DIGEST, "does not match fingerprint")
    bench.script.token = generate_join_token(bundle)
    bench.paths.join_token.write_text(bench.script.token)
    joined, _ = await bench.join()
    assert bench.paths.root_cert.read_bytes() == joined.root_pem == bundle
    for issued in (joined, other.issue("worker")):
        assert validate_chain(parse_bundle(bundle), issued.certificate_pem).leaf.fingerprint == issued.fingerprint
    marked = bench.script.authority.root.certs + b"\n\n"
    bench.paths.root_cert.write_bytes(marked)
    again, _ = await bench.join()
    assert bench.paths.root_cert.read_bytes() == again.root_pem == marked
    assert (again.node_id, joined.node_id) == ("node1", "node0")


async def test_a_request_that_is_not_signed_yet_is_asked_after_until_the_time_is_up(bench: Bench) -> None:
    bench.script.state, bench.script.why, bench.patience = State.PENDING, "", 0.3
    await bench.fails(Trouble.OTHER, "the swarm did not sign the certificate within 0.3 s")
    bench.patience = 20.0
    bench.script.polled.clear()
    trying = asyncio.create_task(bench.join())
    await asyncio.wait_for(bench.script.polled.wait(), 20)
    bench.script.fails, bench.script.state = [grpc.StatusCode.DEADLINE_EXCEEDED], State.ISSUED
    joined, _ = await trying
    assert (joined.node_id, list(bench.script.nodes)) == ("node0", ["node0"])
    assert bench.script.fails == []


async def test_a_fips_node_may_join_any_swarm(bench: Bench) -> None:
    bench.fips = True
    bench.paths.join_token.write_text(generate_join_token(RootCA.create().certs, fips=True))
    await bench.fails(Trouble.DIGEST, "does not match fingerprint")
    bench.paths.join_token.write_text(bench.script.token)
    joined, _ = await bench.join()
    assert joined.cluster_id == bench.script.authority.cluster_id


async def test_a_fips_swarm_refuses_a_node_that_is_not_and_takes_one_that_is(bench: Bench) -> None:
    bench.script.organization = "FIPS.swarm"
    await bench.fails(Trouble.FIPS, "node is not FIPS-enabled but cluster requires FIPS")
    bench.fips = True
    joined, _ = await bench.join()
    assert joined.cluster_id == "FIPS.swarm"


async def test_a_clock_before_the_certificates_begin_is_said_so(bench: Bench) -> None:
    bench.clock = Shifted(-400 * 24 * HOUR)
    await bench.fails(Trouble.CLOCK, "set the clock")
    assert bench.script.nodes == {}


async def test_another_swarm_behind_the_address_is_not_merely_unreachable(bench: Bench) -> None:
    bench.paths.certificates.mkdir()
    bench.paths.root_cert.write_bytes(RootCA.create().certs)
    await bench.fails(Trouble.OTHER_SWARM, f"{bench.addr} belongs to another swarm")


async def test_a_corrupt_record_is_named_and_left(bench: Bench) -> None:
    bench.paths.certificates.mkdir()
    bench.paths.joining.write_text("{}")
    with pytest.raises(CorruptFile, match="joining"):
        await bench.join()
    assert bench.paths.joining.read_text() == "{}"


async def test_a_record_of_another_swarm_is_not_used(bench: Bench) -> None:
    await bench.join()
    before = load_joining(bench.paths.joining)
    assert before is not None
    other = Authority()
    script = Script(other, generate_join_token(other.root.certs))
    bench.paths.root_cert.unlink()
    bench.paths.join_token.write_text(script.token)
    async with serving(script, other.issue("manager")) as addr:
        joined, _ = await replace(bench, addr=addr, script=script).join()
    assert joined.key_pem.decode() != before.key_pem


# -- who answers there -----------------------------------------------------------------------------


@asynccontextmanager
async def listening(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any], tls: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 mail\r\n")
    await writer.drain()
    writer.close()


async def test_who_is_no_manager_is_told_from_nobody(bench: Bench) -> None:
    authority, now = bench.script.authority, time.time()
    roots = authority.root.certs
    async with listening(hang_up) as addr:
        assert (await probe(addr, "swarm-ca", now=now)).problem is Problem.NOT_A_MANAGER
    assert (await probe(addr, "swarm-ca", now=now)).problem is Problem.UNREACHABLE  # gone now
    assert (await probe("no-such-host.invalid:1", "swarm-ca", now=now)).problem is Problem.UNREACHABLE
    async with serving(bench.script, authority.issue("worker")) as addr:
        worker = await probe(addr, "swarm-ca", root_pem=roots, now=now)
        assert (worker.problem, "no manager" in worker.why) == (Problem.NOT_A_MANAGER, True)
    fine = await probe(bench.addr, "swarm-manager", root_pem=roots, now=now)
    assert (fine.problem, fine.why) == (Problem.NONE, "")
    async with serving(bench.script, authority.issue("manager", issued_at=now - 9 * HOUR, expiry=HOUR)) as addr:
        old = await probe(addr, "swarm-ca", now=now)
        assert (old.problem, "ended" in old.why) == (Problem.CLOCK, True)


class Denied(grpc.aio.AioRpcError):
    """An answer as a manager gives it."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details)


async def test_a_session_that_fails_tells_whether_the_swarm_will_ever_take_the_node(bench: Bench) -> None:
    held = bench.script.authority.issue("worker")
    foreign = Authority().issue("worker")
    now = time.time()
    removed = Denied(
        grpc.StatusCode.PERMISSION_DENIED,
        "Permission denied: unauthorized peer role: rpc error: code = PermissionDenied desc = "
        f"Permission denied: node {held.node_id} was removed from swarm",
    )
    assert "was removed from the swarm" in await refusal(removed, bench.addr, held, first=False, now=now)
    assert await refusal(removed, bench.addr, foreign, first=False, now=now) == "", "another node was"
    down = Denied(grpc.StatusCode.UNAVAILABLE, "whatever gRPC says today")
    assert await refusal(down, bench.addr, held, first=True, now=now) == ""
    said = await refusal(down, bench.addr, foreign, first=True, now=now)
    assert f"{bench.addr} belongs to another swarm" in said
    assert await refusal(down, bench.addr, foreign, first=False, now=now) == "", (
        "it had sessions: a manager may be mended"
    )
    assert await refusal(TimeoutError(), bench.addr, foreign, first=True, now=now) == ""
