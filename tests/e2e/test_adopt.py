"""A worker's directory, in SwarmKit's layout, continued by another node: the same one for the swarm (issue 3 §3)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from procs.cli.exits import Exit
from tests.e2e.host import Host, new_host


@pytest.fixture
def owner() -> Iterator[Host]:
    """The worker whose directory is taken."""
    yield from new_host()


@pytest.fixture
def heir() -> Iterator[Host]:
    """The host that takes it."""
    yield from new_host()


def test_a_stopped_workers_identity_goes_on_and_gets_its_tasks_again(node: Host, owner: Host, heir: Host) -> None:
    token = node.ok("join-token", "worker", "-q").strip()
    owner.ok("join", "--token", token, "--hostname", "node2", f"127.0.0.1:{node.port}")
    identity = owner.identity()
    node.ok("node", "update", "--label-add", "kept=yes", "node2")
    here = ("--constraint", "node.labels.kept==yes", "--restart-delay", "100ms", "--stop-grace-period", "2s")
    node.service("web", "sleep", "1000", options=here)
    swarm_dir = heir.root / "swarm"
    shutil.copytree(owner.paths.certificates, swarm_dir / "certificates")
    shutil.copy(owner.paths.state_json, swarm_dir)

    busy = heir.run("adopt", "--swarm-dir", str(owner.paths.state))
    assert (busy.code, ".lock.coordinator is in use by process " in busy.err) == (Exit.REFUSED, True), busy.err
    twin = heir.run("adopt", "--swarm-dir", str(swarm_dir))
    assert twin.code == Exit.REFUSED
    assert f"process {owner.pid('agent')} (" in twin.err
    assert f"runs as this node ({identity[0]}), on {owner.paths.state};" in twin.err
    assert not heir.paths.state.exists()

    owner.ok("down")
    said = heir.ok("adopt", "--swarm-dir", str(swarm_dir), "--hostname", "node2")
    assert f"This node continues as {identity[0]}, a worker of swarm {identity[1]}." in said
    assert (heir.identity(), heir.state()) == (identity, "ready")
    (row,) = node.expect_running("web", 1)
    assert row["node"] == "node2"
    assert row["pid"] in heir.own_processes()
    assert {listed["hostname"]: listed["status"] for listed in node.json("node", "ls")} == {
        "node1": "ready",
        "node2": "ready",
    }
