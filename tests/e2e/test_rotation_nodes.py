"""The swarm's root is replaced where one of two nodes is away at first."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from swarm.pki.certificate import parse_bundle
from tests.e2e.host import Host, eventually, new_host


@pytest.fixture
def worker(node: Host) -> Iterator[Host]:
    for host in new_host():
        token = node.ok("join-token", "worker", "-q").strip()
        host.ok("join", "--token", token, "--hostname", "node2", f"127.0.0.1:{node.port}")
        yield host


def test_a_rotation_names_whom_it_waits_for_and_goes_on_when_that_one_is_back(node: Host, worker: Host) -> None:
    node.service("web", "sleep", "600", replicas=2)
    before = node.pids("web")
    old = worker.paths.root_cert.read_bytes()
    worker.ok("down", "--keep-tasks", timeout=90)
    waited = node.run("swarm", "ca", "--rotate", "--timeout", "8")
    assert waited.code != 0
    assert "1 of 2 nodes" in waited.err
    assert "node2" in waited.err
    stand = node.json("swarm", "ca")["rotation"]
    assert (stand["followed"], stand["total"]) == (1, 2)
    assert "node2" in stand["blocking"][0]
    worker.ok("up")
    eventually(lambda: node.json("swarm", "ca")["rotation"] is None, what="the rotation is over")
    eventually(lambda: worker.paths.root_cert.read_bytes() == node.paths.root_cert.read_bytes() != old, what="the root")
    new = parse_bundle(worker.paths.root_cert.read_bytes())[0]
    leaf, bridge = parse_bundle(worker.paths.node_cert.read_bytes())
    assert leaf.is_signed_by(new)
    assert bridge.public_key == new.public_key
    node.expect_running("web", 2)
    assert node.pids("web") == before
