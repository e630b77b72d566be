"""Workers whose certificates expired while they were off come back: by themselves, or with `swarmvisor rejoin`."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from procs.cli.exits import Exit
from swarm.api import ca_pb2, ca_pb2_grpc
from swarm.pki.certificate import MANAGER_OU, parse_bundle
from swarm.pki.credentials import load_credentials
from swarm.pki.request import new_request
from swarm.pki.rootca import RootCA
from swarm.pki.tokens import generate_join_token
from tests.conftest import SHARED
from tests.e2e.host import Host, Result, eventually, new_host
from tests.tools.aged import believe, expire, lay_root, old_root, reissue

# ruff: noqa: N802  (gRPC's method names)


class Swarm:
    """A manager, and two workers that are down with expired certificates."""

    def __init__(self, manager: Host, late: Host, slept: Host) -> None:
        self.manager, self.late, self.slept = manager, late, slept
        first, root = old_root(), old_root()
        for host in (manager, late, slept):
            host.environment[SHARED] = "1"
        manager.init("--no-start")
        lay_root(manager.paths, first)
        manager.ok("up")
        for host, name in ((late, "late"), (slept, "slept")):
            host.ok("join", "--token", self.token(), "--hostname", name, self.address)
        (manager.root / "ca.pem").write_bytes(root.certs)
        (manager.root / "ca.key").write_bytes(root.key_pem)
        files = ("--ca-cert", str(manager.root / "ca.pem"), "--ca-key", str(manager.root / "ca.key"))
        manager.ok("swarm", "ca", "--rotate", *files)
        where = ("--constraint", "node.hostname==late", "--restart-delay", "100ms")
        manager.service("web", "/bin/sleep", "1000", options=where)
        eventually(lambda: late.paths.root_cert.read_bytes() == root.certs, what="the new root at the first worker")
        bridge = parse_bundle(slept.paths.node_cert.read_bytes())[1].pem
        for host in (late, slept):
            host.ok("down")
        # This one went off before the rotation was over: the root of before, and a chain that leads there.
        slept.paths.root_cert.write_bytes(first.certs)
        crossed = RootCA.from_pem(first.certs, root.key_pem, bridge, bridge)
        manager.ok("down", "--keep-tasks")
        asyncio.run(believe(manager.paths, [expire(late.paths, root, 40), expire(slept.paths, crossed, 20)]))
        # The manager has renewed since: its own chain does not lead to the first root any more.
        reissue(manager.paths, root)
        manager.ok("up")
        self.root = root

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.manager.port}"

    def token(self) -> str:
        return self.manager.ok("join-token", "worker", "-q").strip()

    def rejoin(self, host: Host, token: str = "", at: str = "") -> Result:
        result = host.run("rejoin", "--token", token or self.token(), at or self.address)
        assert "Traceback" not in result.err
        return result


@pytest.fixture(scope="module")
def lost() -> Iterator[Swarm]:
    with contextmanager(new_host)() as manager, contextmanager(new_host)() as late, contextmanager(new_host)() as slept:
        yield Swarm(manager, late, slept)


@contextmanager
def of_go(root: RootCA) -> Iterator[str]:
    """The address of a manager of the same swarm that knows nothing of proofs."""

    class NodeCA(ca_pb2_grpc.NodeCAServicer):
        def IssueNodeCertificate(self, request: ca_pb2.IssueNodeCertificateRequest, context: Any) -> Any:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "A valid join token is necessary to join this cluster")

        def NodeCertificateStatus(self, request: ca_pb2.NodeCertificateStatusRequest, context: Any) -> Any:
            context.abort(grpc.StatusCode.NOT_FOUND, "NotFound")

    key, csr = new_request()
    chain = root.sign(csr, "of-go", MANAGER_OU, "any", 7200)
    server = grpc.server(ThreadPoolExecutor(2))
    ca_pb2_grpc.add_NodeCAServicer_to_server(NodeCA(), server)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, chain)]))
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_beyond_the_grace_a_node_comes_back_with_a_token_and_every_refusal_says_why(lost: Swarm) -> None:
    late, manager = lost.late, lost.manager
    identity = load_credentials(late.paths, allow_expired=True).node_id
    manager.ok("swarm", "update", "--cert-grace", "30d")
    known = late.paths.state_json.read_bytes()
    late.paths.state_json.unlink()  # else the other manager is asked too
    with of_go(lost.root) as address:
        go = lost.rejoin(late, at=address)
    assert go.code == Exit.REFUSED
    assert "it takes no expired certificate, as Docker's and swarmd's managers do" in go.err
    assert "`swarmvisor leave --force`, then join again with a token" in go.err
    late.paths.state_json.write_bytes(known)

    wrong = lost.rejoin(late, generate_join_token(lost.root.certs))
    assert wrong.code == Exit.REFUSED
    assert "this is not a join token of the swarm at present" in wrong.err
    report = late.json("status")
    assert (report["certificate"]["state"], report["node"]["state"]) == ("expired", "starting")
    assert "not a join token of the swarm at present" in report["node"]["cause"]

    back = lost.rejoin(late)
    assert (back.code, f"This node ({identity}) is back in swarm" in back.out) == (Exit.DONE, True), back.err
    assert (late.identity()[0], late.state()) == (identity, "ready")
    assert not late.paths.join_token.exists()
    [row] = manager.expect_running("web", 1)
    assert row["node"] == "late"
    assert row["pid"] in late.own_processes()

    again = lost.rejoin(late)
    assert (again.code, "this node's certificate has not expired" in again.err) == (Exit.REFUSED, True)


def test_within_the_grace_a_node_comes_back_alone_also_over_a_rotation_that_it_missed(lost: Swarm) -> None:
    slept, manager = lost.slept, lost.manager
    identity = load_credentials(slept.paths, allow_expired=True).node_id
    for copy in new_host():
        shutil.copytree(slept.paths.state, copy.paths.state)
        manager.ok("swarm", "update", "--cert-grace", "0")
        slept.ok("up", "--no-wait")

        def cause() -> str:
            return str(slept.json("status")["node"]["cause"])

        eventually(lambda: "longer ago than the swarm allows" in cause(), what="without a grace it is refused")
        manager.ok("swarm", "update", "--cert-grace", "30d")
        slept.kill("renewer")
        slept.expect_ready()
        assert slept.identity()[0] == identity
        eventually(lambda: slept.paths.root_cert.read_bytes() == lost.root.certs, what="the new root alone")

        old = lost.rejoin(copy)
        assert (old.code, "has had a newer certificate than the one it holds" in old.err) == (Exit.REFUSED, True)
        slept.ok("down")
        manager.ok("node", "rm", "--force", "slept")
        gone = lost.rejoin(copy)
        assert (gone.code, "this node was removed from the swarm: `swarmvisor leave --force`" in gone.err) == (
            Exit.REFUSED,
            True,
        )


def test_a_host_that_is_no_node_has_nothing_to_come_back_with(lost: Swarm, host: Host) -> None:
    refused = lost.rejoin(host)
    assert refused.code == Exit.REFUSED
    assert "this host has no identity to come back with; use `swarmvisor join`" in refused.err
    assert not host.paths.state.exists()
