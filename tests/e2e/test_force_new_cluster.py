"""A manager that goes on alone: after the others were lost, or with a store that was restored from a copy."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator

import pytest

from procs.manager.datakey import KeyRing
from procs.manager.store import Store, Tx
from procs.manager.store.engine import LEAP, Clock
from procs.manager.store.sealing import SealedEngine, Sealer
from procs.manager.store.sqlite import SqliteEngine
from swarm.api import objects_pb2, specs_pb2, types_pb2
from swarm.clock import SystemClock
from tests.e2e.host import Host, eventually, free_port, new_host

LOST = "lostmanagerlostmanagerlos"


@pytest.fixture
def worker() -> Iterator[Host]:
    yield from new_host()


async def with_a_lost_manager(host: Host, cluster_id: str) -> Clock:
    """Have the stopped manager's store tell of another manager; its clock."""
    sealer = Sealer(cluster_id, KeyRing(host.paths).read(store_exists=True).current)
    engine = SqliteEngine(host.paths.manager / "store.db")
    store = await Store.open(SealedEngine(engine, sealer), clock=SystemClock())

    def write(tx: Tx) -> None:
        lost = objects_pb2.Node(id=LOST, role=types_pb2.MANAGER)
        lost.spec.desired_role = types_pb2.MANAGER
        lost.spec.membership = specs_pb2.NodeSpec.ACCEPTED
        tx.create(lost)

    await store.update(write)
    clock = await engine.read_clock()
    await store.close()
    return clock


async def clock_of(host: Host) -> Clock:
    engine = SqliteEngine(host.paths.manager / "store.db")
    await engine.open()
    try:
        return await engine.read_clock()
    finally:
        await engine.close()


def roles(host: Host) -> dict[str, str]:
    return {row["id"]: row["role"] for row in host.json("node", "ls")}


def test_a_manager_goes_on_alone_with_all_that_its_store_holds(host: Host, worker: Host) -> None:
    for node in (host, worker):
        plain = node.run("init", "--force-new-cluster")
        assert plain.code == 6, plain
        assert "leave out --force-new-cluster to make a new swarm" in plain.err
    host.init()
    token = host.ok("join-token", "worker", "-q").strip()
    address = f"127.0.0.1:{host.port}"
    worker.ok("join", "--token", token, "--listen-addr", f"127.0.0.1:{worker.port}", "--hostname", "node2", address)
    refused = worker.run("init", "--force-new-cluster")
    assert refused.code == 6
    assert "this node is a worker: it holds nothing of its swarm" in refused.err
    host.service("web", "sleep", "600", replicas=2)
    pids, identity = host.pids("web"), host.identity()
    far = worker.identity()[0]
    assert {row["node_id"] for row in host.running("web")} == {identity[0], far}

    host.ok("down", "--keep-tasks", timeout=90)
    before = asyncio.run(with_a_lost_manager(host, identity[1]))
    peers = [{"node_id": LOST, "addr": f"127.0.0.1:{free_port()}"}, {"node_id": identity[0], "addr": address}]
    host.paths.state_json.write_text(json.dumps(peers))
    superfluous = host.run("init", "--force-new-cluster", "--label", "a=b")
    assert superfluous.code == 2
    assert "--label is for a new node" in superfluous.err
    assert not host.paths.forced.exists()
    waiting = host.ok("init", "--force-new-cluster", "--no-start")
    assert re.search(r"with the next start of this node: `\S*swarmvisor up`", waiting)
    assert host.paths.forced.exists()
    said = host.ok("init", "--force-new-cluster", "--advertise-addr", address)
    assert f"This node ({identity[0]}) is now the only manager of swarm {identity[1]}." in said
    assert not host.paths.forced.exists()
    assert host.identity() == identity
    assert roles(host) == {identity[0]: "manager", LOST: "worker", far: "worker"}
    assert LOST not in host.paths.state_json.read_text()
    host.expect_running("web", 2)
    eventually(lambda: worker.state() == "ready", what="the worker has its session again")
    host.ok("service", "scale", "web=3")
    host.expect_running("web", 3)
    assert pids < host.pids("web"), "no task was restarted"

    # and while the node runs
    stays = host.run("init", "--force-new-cluster", "--no-start")
    assert (stays.code, "leave out --no-start" in stays.err) == (6, True)
    pids = host.pids("web")
    host.ok("init", "--force-new-cluster")
    assert host.identity() == identity
    eventually(lambda: host.pids("web") == pids, what="no task was restarted")
    host.ok("down", "--keep-tasks", timeout=90)
    after = asyncio.run(clock_of(host))
    assert after.index > before.index + 2 * LEAP
    assert after.term > before.term + 2 * LEAP
