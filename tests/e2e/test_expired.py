"""A sole manager that was off for so long that its certificate expired recovers alone; its tasks run meanwhile."""

from __future__ import annotations

import time

from swarm.pki.certificate import MANAGER_OU, parse_bundle
from swarm.pki.keyfile import KeyFile
from swarm.pki.request import new_request
from swarm.pki.rootca import RootCA
from tests.e2e.host import Host, eventually

DAY = 24 * 3600.0


def test_a_sole_manager_with_an_expired_certificate_is_back_by_itself(node: Host) -> None:
    root = RootCA.create(now=time.time() - 500 * DAY)  # ours, so that the test can issue what is long over
    (node.root / "ca.pem").write_bytes(root.certs)
    (node.root / "ca.key").write_bytes(root.key_pem)
    node.ok("swarm", "ca", "--rotate", "--ca-cert", str(node.root / "ca.pem"), "--ca-key", str(node.root / "ca.key"))
    eventually(lambda: node.paths.root_cert.read_bytes() == root.certs, what="our root on disk")
    node.service("web", "sleep", "600")
    tasks, (node_id, cluster_id) = node.pids("web"), node.identity()
    node.ok("down", "--keep-tasks", timeout=90)
    key, csr = new_request()
    expired = root.sign(csr, node_id, MANAGER_OU, cluster_id, 7200, now=time.time() - 400 * DAY)
    KeyFile.of(node.paths).write(expired, key)
    assert parse_bundle(node.paths.node_cert.read_bytes())[0].not_after < time.time()
    node.ok("up")
    node.expect_ready()
    assert parse_bundle(node.paths.node_cert.read_bytes())[0].not_after > time.time()
    assert node.identity() == (node_id, cluster_id)
    assert node.pids("web") == tasks
    eventually(lambda: node.run("join-token", "worker").code == 0, what="it manages again")
