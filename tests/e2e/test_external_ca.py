"""A running swarm whose CA moves outside: to one signer, back to a key of its own, to another signer."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from procs.cli.exits import Exit
from swarm.pki.certificate import Certificate, parse_bundle
from swarm.pki.pem import normalize_pems
from swarm.pki.rootca import RootCA
from tests.e2e.host import Host, eventually, new_host
from tests.tools.aged import expire, old_root
from tests.tools.signer import Signer, serving

LONG = ("--timeout", "90")


@pytest.fixture
def worker() -> Iterator[Host]:
    yield from new_host()


@pytest.fixture
def late() -> Iterator[Host]:
    yield from new_host()


def join(node: Host, host: Host, *options: str) -> tuple[str, ...]:
    token = node.ok("join-token", "worker", "-q").strip()
    return ("join", "--token", token, *options, f"127.0.0.1:{node.port}")


def leaf(host: Host) -> Certificate:
    return parse_bundle(host.paths.node_cert.read_bytes())[0]


def rotate_to(node: Host, signer: Signer, *beside: Signer) -> tuple[str, ...]:
    words = ["swarm", "ca", "--rotate", "--ca-cert", str(node.root / f"{signer.port}.pem"), *LONG]
    for each in (signer, *beside):
        file = node.root / f"{each.port}.pem"
        file.write_bytes(each.root.certs)
        words += ["--external-ca", f"protocol=cfssl,url={each.url},cacert={file}"]
    return tuple(words)


def expect_root(root: bytes, *hosts: Host) -> None:
    def there() -> bool:
        return all(normalize_pems(host.paths.root_cert.read_bytes()) == normalize_pems(root) for host in hosts)

    eventually(there, what="the new root everywhere")
    for host in hosts:
        assert leaf(host).is_signed_by(parse_bundle(root)[0])
        host.expect_ready()


@pytest.mark.timeout(300)
def test_the_ca_moves_to_a_signer_and_to_another_and_everybody_follows(node: Host, worker: Host, late: Host) -> None:
    worker.ok(*join(node, worker, "--hostname", "node2"))
    node.service("web", "/bin/sleep", "1000", replicas=2)
    tasks, me = node.pids("web"), node.identity()[0]
    before = node.paths.root_cert.read_bytes()
    one, other = RootCA.create("one corp"), RootCA.create("other corp")

    with serving(one, before) as first:
        node.ok(*rotate_to(node, first), timeout=120)
        expect_root(one.certs, node, worker)
        assert set(first.callers) == {me}, "it is asked with the manager's own certificate"
        assert sorted({asked["subject"]["names"][0]["OU"] for asked in first.asked}) == [
            "swarm-manager",
            "swarm-worker",
        ]
        assert node.json("swarm", "ca")["external_cas"] == [first.url]

        first.stop()
        late.ok(*join(node, late, "--hostname", "node3", "--no-start"))
        late.ok("up", "--no-wait")
        words = f"the swarm's CA cannot sign now: {first.url}: unable to perform certificate signing request: "
        eventually(lambda: words in late.json("status")["node"]["cause"], what="it says what it waits for")
        first.start()
        late.expect_ready()
        assert leaf(late).is_signed_by(one.pool[0])

        with serving(other, before + one.certs) as second:
            for beside, said in (
                ((), "name the signer of the present root too"),
                ((first,), "own key can sign the next"),
            ):
                direct = node.run(*rotate_to(node, second, *beside))
                assert (direct.code, said in direct.err) == (Exit.REFUSED, True)
            own = node.ok("swarm", "ca", "--rotate", *LONG, timeout=120).encode()
            expect_root(own, node, worker, late)
            second.takes += own
            second.stop()
            second.start()
            node.ok(*rotate_to(node, second), timeout=120)
            expect_root(other.certs, node, worker, late)
    assert node.pids("web") == tasks


def test_a_sole_manager_that_expired_under_an_outside_root_says_what_it_needs_and_recovers(node: Host) -> None:
    root = RootCA.create("one corp", now=old_root().pool[0].not_before)
    node.service("web", "/bin/sleep", "1000")
    tasks, identity = node.pids("web"), node.identity()
    with serving(root, node.paths.root_cert.read_bytes()) as signer:
        node.ok(*rotate_to(node, signer), timeout=120)
        expect_root(root.certs, node)
        node.ok("down", "--keep-tasks")
        expire(node.paths, root, 30)
        signer.stop()
        node.ok("up", "--no-wait")

        def said() -> str:
            cause = str(node.json("status")["node"]["cause"])
            assert "the swarm's CA cannot sign now" in cause, (cause, node.logs())
            return cause

        cause = eventually(said, what="it says what it waits for")
        assert "Connection refused" in cause
        assert "have the signer take it this once, or give the swarm the key of its root" in cause
        assert [row["hostname"] for row in node.json("node", "ls")] == ["node1"], "the operator can act"
        signer.takes_expired = True
        signer.start()
        node.kill("renewer")
        node.expect_ready()
    assert (node.identity(), node.pids("web")) == (identity, tasks)
    assert leaf(node).not_after > time.time()
    eventually(lambda: not node.paths.control_certificate.exists(), what="the stopgap is gone")
