"""A sole manager that was off for so long that its certificate expired recovers alone; its tasks run meanwhile."""

from __future__ import annotations

import time

from swarm.pki.certificate import parse_bundle
from tests.e2e.host import Host, eventually
from tests.tools.aged import expire, lay_root, old_root


def test_a_sole_manager_with_an_expired_certificate_is_back_by_itself(host: Host) -> None:
    root = old_root()  # ours, so that the test can issue what is long over
    host.init("--no-start")
    lay_root(host.paths, root)
    host.ok("up")
    host.service("web", "sleep", "600")
    tasks, (node_id, cluster_id) = host.pids("web"), host.identity()
    host.ok("down", "--keep-tasks", timeout=90)
    expire(host.paths, root, 400)
    host.ok("up")
    host.expect_ready()
    assert parse_bundle(host.paths.node_cert.read_bytes())[0].not_after > time.time()
    assert host.identity() == (node_id, cluster_id)
    assert host.pids("web") == tasks
    eventually(lambda: host.run("join-token", "worker").code == 0, what="it manages again")
