"""The renewer as it runs: its process, its bus, its files, gRPC to a CA."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import time
from pathlib import Path

import pytest

from ipc import topics
from swarm import dial
from swarm.api import ca_pb2, ca_pb2_grpc
from swarm.nodeconfig import NodeConfig, save_node_config
from swarm.paths import Paths
from swarm.pki.keyfile import Kek, KeyFile
from swarm.pki.request import new_request
from swarm.pki.rootca import RootCA
from swarm.pki.tokens import generate_join_token
from swarm.unlock import forget_unlock_keys, write_unlock_keys
from tests.integration.renewer_node import Authority, Node, a_node, seen, serving

READY = topics.Manager("ready", leader=True)


@pytest.fixture
async def node():
    async with a_node() as made:
        yield made


@pytest.fixture
async def founded(node: Node) -> Node:
    """A node that bootstrapped and runs."""
    await node.start()
    await node.certificate()
    return node


async def test_new_swarm_is_published_and_survives_a_restart(founded: Node) -> None:
    said = await founded.certificate()
    held = founded.credentials()
    assert said == topics.Certificate(
        state="valid",
        node_id=held.node_id,
        cluster_id=held.cluster_id,
        role="manager",
        not_before=held.not_before,
        not_after=held.not_after,
        issuer_subject=held.issuer_subject,
        issuer_public_key=held.issuer_public_key,
        fingerprint=held.fingerprint,
        root_digest=hashlib.sha256(held.root_pem).hexdigest(),
    )
    assert await founded.stop() == 0
    await founded.start()
    assert await founded.certificate() == said
    log = founded.log.read_text()
    assert f"node={held.node_id}" in log
    assert "PRIVATE KEY" not in log


async def test_killed_renewer_comes_back_with_the_same_identity(founded: Node) -> None:
    said = await founded.certificate()
    for _ in range(3):
        await founded.kill()
        await founded.start()
        assert await founded.certificate() == said


async def test_bootstrap_key_is_removed_once_the_store_holds_this_root(founded: Node) -> None:
    key = founded.paths.bootstrap_root_key
    digest = founded.credentials().root_digest
    founded.manager.publish("manager", topics.Manager("ready", root_digest_held="0" * 64))
    founded.manager.publish("manager", topics.Manager("ready", root_digest_held=digest))
    await seen(lambda: not key.exists())
    founded.paths.manager.mkdir()
    assert await founded.stop() == 0
    await founded.start()
    assert (await founded.certificate()).state == "valid"
    assert not key.exists()


async def test_certificate_is_replaced_through_the_local_manager(founded: Node) -> None:
    before = founded.credentials()
    KeyFile.of(founded.paths).view_and_update_headers(lambda _: {"raft-dek": "x"})
    authority = Authority(founded.root(), before, ["manager"])
    async with serving(authority, f"unix:{founded.paths.control_socket}", clients=False):
        founded.manager.publish("manager", READY)
        founded.ask(before.fingerprint)
        said = await founded.certificate(lambda c: c.fingerprint != before.fingerprint)
        founded.ask(before.fingerprint, why="asked again")  # obeyed once
        founded.ask("0" * 64)
    after = founded.credentials()
    assert (said.fingerprint, said.role, said.attempt, said.why) == (after.fingerprint, "manager", 0, "")
    assert (after.node_id, after.cluster_id) == (before.node_id, before.cluster_id)
    assert after.key_pem != before.key_pem
    assert KeyFile.of(founded.paths).read().headers == {"raft-dek": "x"}
    assert authority.asked == 1
    assert "cause=test-cause" in founded.log.read_text()


async def test_wrong_role_is_not_installed_and_the_next_try_gets_it(founded: Node) -> None:
    """Demotion: the CA still issues for the observed role until the leader has changed it."""
    before = founded.credentials()
    authority = Authority(founded.root(), before, ["manager", "worker"])
    async with serving(authority, f"unix:{founded.paths.control_socket}", clients=False):
        founded.manager.publish("manager", READY)
        founded.ask(before.fingerprint, expected="worker")
        said = await founded.certificate(lambda c: c.attempt == 1)
        assert said.why == "the swarm still issues manager certificates, worker is expected"
        assert (said.fingerprint, founded.credentials()) == (before.fingerprint, before)
        founded.manager.publish("manager", topics.Manager("starting"))
        founded.manager.publish("manager", READY)  # what changed ends the back-off
        said = await founded.certificate(lambda c: c.role == "worker")
    assert founded.credentials().role == "worker"
    assert authority.asked == 2


async def test_remote_manager_is_asked_with_the_own_certificate_when_the_local_one_fails(founded: Node) -> None:
    before = founded.credentials()
    authority = Authority(founded.root(), before, ["manager"])
    async with serving(authority, "127.0.0.1:0", clients=True) as port:
        founded.manager.publish("manager", READY)  # says so, but nobody listens on the control socket
        founded.coordinator.publish(
            "remotes",
            topics.Remotes(
                (
                    topics.ManagerAddress(before.node_id, "127.0.0.1:1", 10),  # itself: never asked over the network
                    topics.ManagerAddress("other", f"127.0.0.1:{port}", 10),
                )
            ),
        )
        founded.ask(before.fingerprint)
        await founded.certificate(lambda c: c.fingerprint != before.fingerprint)
    assert authority.callers == [before.node_id]


async def test_refused_request_says_why_and_keeps_the_old_pair(founded: Node) -> None:
    before = founded.credentials()
    authority = Authority(founded.root(), before, ["manager"])
    authority.refuse = "no such luck"
    async with serving(authority, f"unix:{founded.paths.control_socket}", clients=False):
        founded.manager.publish("manager", READY)
        founded.ask(before.fingerprint)
        said = await founded.certificate(lambda c: c.attempt > 0)
    assert said.state == "valid"
    assert "this node's manager: the swarm's CA refused the request: no such luck" in said.why
    assert founded.credentials() == before


@pytest.mark.parametrize("flaw", ["foreign root", "other node"])
async def test_unusable_answers_are_not_installed(founded: Node, flaw: str) -> None:
    before = founded.credentials()
    authority = Authority(founded.root(), before, ["manager"])
    words = {
        "foreign root": "x509: certificate signed by unknown authority",
        "other node": "the certificate that was issued is for node another",
    }
    async with serving(authority, f"unix:{founded.paths.control_socket}", clients=False):
        if flaw == "foreign root":
            authority.root = RootCA.create()
        else:
            sign = authority.root.sign

            class Confused:
                def sign(self, csr, _cn, *rest):
                    return sign(csr, "another", *rest)

            authority.root = Confused()  # type: ignore[assignment]
        founded.manager.publish("manager", READY)
        founded.ask(before.fingerprint)
        said = await founded.certificate(lambda c: c.attempt > 0)
    assert words[flaw] in said.why
    assert founded.credentials() == before


async def test_a_swarm_that_locks_its_managers_gets_the_next_key_locked(founded: Node) -> None:
    before = founded.credentials()
    authority = Authority(founded.root(), before, ["manager"])
    authority.unlock_key, authority.unlock_version = b"k" * 32, 9
    try:
        async with serving(authority, f"unix:{founded.paths.control_socket}", clients=False):
            founded.manager.publish("manager", READY)
            founded.ask(before.fingerprint)
            await founded.certificate(lambda c: c.fingerprint not in ("", before.fingerprint))
        file = KeyFile.of(founded.paths)
        assert file.read(b"k" * 32).kek == Kek(b"k" * 32, 9)
        assert founded.credentials().fingerprint != before.fingerprint, "the key is at hand in memory"
        await founded.stop()
        forget_unlock_keys(founded.paths)
        await founded.start()
        assert (await founded.certificate(lambda c: c.state != "none")).state == "locked"
        write_unlock_keys(founded.paths, Kek(b"k" * 32, 9))
        assert founded.process is not None
        founded.process.send_signal(signal.SIGHUP)
        await founded.certificate(lambda c: c.state == "valid")
    finally:
        forget_unlock_keys(founded.paths)


async def test_answer_to_another_request_is_not_taken_for_ours(founded: Node) -> None:
    before = founded.credentials()
    authority = Authority(founded.root(), before, ["manager"])
    authority.early = 2
    async with serving(authority, f"unix:{founded.paths.control_socket}", clients=False):
        founded.manager.publish("manager", READY)
        founded.ask(before.fingerprint)
        said = await founded.certificate(lambda c: c.fingerprint != before.fingerprint)
    assert (said.attempt, authority.asked, authority.early) == (0, 1, 0)


async def test_control_channel_without_asyncio_reaches_the_manager(founded: Node) -> None:
    """What the command line uses: `swarm.dial.control_channel_sync`."""
    held = founded.credentials()

    def unlock_key() -> bytes:
        with dial.control_channel_sync(founded.paths, held.root_pem) as channel:
            answer = ca_pb2_grpc.CAStub(channel).GetUnlockKey(ca_pb2.GetUnlockKeyRequest(), timeout=10)
            return answer.unlock_key

    authority = Authority(founded.root(), held, ["manager"])
    authority.unlock_key = b"heard"
    async with serving(authority, f"unix:{founded.paths.control_socket}", clients=False):
        assert await asyncio.to_thread(unlock_key) == b"heard"


async def test_nobody_to_ask_is_said(founded: Node) -> None:
    founded.ask(founded.credentials().fingerprint, why="promotion")
    said = await founded.certificate(lambda c: bool(c.why))
    assert (said.state, said.attempt) == ("valid", 0)
    assert said.why.startswith("promotion; nobody to ask")


async def test_new_root_is_installed_on_the_agents_word(founded: Node) -> None:
    held = founded.credentials()
    bundle = held.root_pem + RootCA.create().certs
    under = topics.Under(held.fingerprint, held.root_digest)
    foreign = topics.NodeChanges("manager", "manager", root_ca=RootCA.create().certs, under=under)
    founded.agent.publish("node.changes", foreign)
    said = await founded.certificate(lambda c: bool(c.why))
    assert said.why.startswith("new root CA does not match existing TLS credentials")
    founded.agent.publish("node.changes", topics.NodeChanges("manager", "manager", root_ca=bundle, under=under))
    said = await founded.certificate(lambda c: c.root_digest != held.root_digest)
    assert founded.paths.root_cert.read_bytes() == bundle
    assert (said.root_digest, said.fingerprint, said.why) == (
        hashlib.sha256(bundle).hexdigest(), held.fingerprint, "",
    )  # fmt: skip


async def test_locked_key_is_said_and_waited_for(founded: Node) -> None:
    await founded.stop()
    KeyFile.of(founded.paths).rotate(lambda _kek, headers: (Kek(b"k" * 32, 1), headers))
    await founded.start()
    said = await founded.certificate()
    assert (said.state, said.node_id) == ("locked", "")
    assert "swarmvisor unlock" in said.why
    assert founded.process is not None
    assert founded.process.returncode is None


@pytest.mark.parametrize("name", ["node_key", "node_cert", "root_cert", "state_json"])
async def test_corrupt_file_is_named_with_a_remedy_and_left(founded: Node, name: str) -> None:
    await founded.stop()
    broken: Path = getattr(founded.paths, name)
    broken.write_bytes(b"junk")
    await founded.start()
    said = await founded.certificate()
    assert said.state == "failed"
    assert str(broken) in said.why
    assert "restore" in said.why
    assert broken.read_bytes() == b"junk"
    assert await founded.stop() == 0


async def test_node_that_joins_says_how_often_it_tried_and_why_it_did_not_work(node: Node) -> None:
    save_node_config(node.paths.node_toml, NodeConfig(join_addr="127.0.0.1:1"))
    node.paths.join_token.write_text(generate_join_token(RootCA.create().certs))
    await node.start()
    said = await node.certificate(lambda c: c.attempt > 1)
    assert (said.state, said.problem) == ("joining", "unreachable")
    assert "cannot connect to 127.0.0.1:1: Connection refused" in said.why
    assert said.next_try_at >= time.time() - 1
    node.paths.join_token.write_text("SWMTKN-1-x")
    said = await node.certificate(lambda c: c.state == "failed")
    assert (said.problem, said.why.partition(";")[0]) == ("token", "invalid join token")
    assert not node.paths.root_cert.exists()


async def test_expired_certificate_is_said_and_the_own_manager_can_still_renew_it(node: Node) -> None:
    long_ago = time.time() - 4 * 3600
    root = RootCA.create(now=long_ago)
    node.paths.certificates.mkdir()
    node.paths.root_cert.write_bytes(root.certs)
    node.paths.root_key.write_bytes(root.key_pem)
    await node.start()
    await node.certificate()
    await node.stop()
    held = node.credentials()
    key, csr = new_request()
    expired = root.sign(csr, held.node_id, "swarm-manager", held.cluster_id, 3600, now=long_ago)
    KeyFile.of(node.paths).write(expired, key)
    await node.start()
    said = await node.certificate()
    assert (said.state, said.node_id) == ("expired", held.node_id)
    authority = Authority(root, held, ["manager"])
    async with serving(authority, f"unix:{node.paths.control_socket}", clients=False):
        node.manager.publish("manager", READY)
        said = await node.certificate(lambda c: c.state == "valid")
    assert node.credentials().fingerprint == said.fingerprint


async def test_without_node_toml_it_waits_and_touches_nothing(node: Node) -> None:
    node.paths.node_toml.unlink()
    await node.start()
    await seen(lambda: "nothing to do" in node.log.read_text())
    assert await node.stop() == 0
    assert not Paths(node.paths.state, node.paths.runtime).certificates.exists()
