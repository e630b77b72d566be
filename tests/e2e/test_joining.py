"""A second host joins a real one-node swarm on loopback: what it gets, is told, and survives (issue 3 §1)."""

from __future__ import annotations

import json
import os
import random
import signal
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from procs.cli.exits import Exit
from swarm.pki.rootca import RootCA
from swarm.pki.tokens import JoinToken, generate_join_token
from tests.e2e.host import Host, Result, alive, eventually, free_port, new_host

SLEEP = ("/bin/sleep", "1000")
FAST = ("--restart-delay", "100ms", "--stop-grace-period", "2s")


@pytest.fixture
def other() -> Iterator[Host]:
    """The host that joins."""
    yield from new_host()


def token(swarm: Host, role: str = "worker") -> str:
    return swarm.ok("join-token", role, "-q").strip()


def address(swarm: Host) -> str:
    return f"127.0.0.1:{swarm.port}"


def join(swarm: Host, other: Host, *options: str) -> None:
    other.ok("join", "--token", token(swarm), "--hostname", "node2", *options, address(swarm))


def listed(swarm: Host) -> dict[str, dict[str, Any]]:
    """The swarm's nodes by id."""
    return {row["id"]: row for row in swarm.json("node", "ls")}


def nothing_left(other: Host) -> bool:
    return not other.paths.state.exists() and not other.own_processes()


@pytest.fixture(autouse=True)
def alone_again(swarm: Host, other: Host) -> Iterator[None]:
    yield
    for service in swarm.json("service", "ls"):
        swarm.ok("service", "rm", service["name"])
    mine, _ = swarm.identity()
    for node_id in set(listed(swarm)) - {mine}:
        swarm.ok("node", "rm", "--force", node_id)


def test_a_second_host_joins_and_runs_tasks(swarm: Host, other: Host) -> None:
    join(swarm, other, "--label", "zone=b", "--generic-resource", "gpu=a,gpu=b,ssd=2", "--availability", "active")
    (mine, cluster_id), (theirs, same) = swarm.identity(), other.identity()
    assert (cluster_id, other.state()) == (same, "ready")
    assert {row["hostname"]: row["status"] for row in listed(swarm).values()} == {"node1": "ready", "node2": "ready"}

    [shown] = json.loads(swarm.ok("node", "inspect", theirs))
    told = shown["description"]
    assert told["hostname"] == "node2"
    assert told["platform"] == {"os": "linux", "architecture": os.uname().machine}
    assert int(told["resources"]["nano_cpus"]) == len(os.sched_getaffinity(0)) * 10**9
    assert told["resources"]["generic"] == [
        {"named_resource_spec": {"kind": "gpu", "value": "a"}},
        {"named_resource_spec": {"kind": "gpu", "value": "b"}},
        {"discrete_resource_spec": {"kind": "ssd", "value": "2"}},
    ]
    assert told["engine"]["labels"] == {"zone": "b", "runtime": "process"}
    assert told["engine"]["engine_version"]
    assert set(told["tls_info"]) == {"trust_root", "cert_issuer_subject", "cert_issuer_public_key"}

    assert not other.paths.join_token.exists()
    assert not other.paths.joining.exists()
    assert other.paths.root_cert.read_bytes() == swarm.paths.root_cert.read_bytes()
    assert json.loads(other.paths.state_json.read_bytes()) == [{"node_id": mine, "addr": address(swarm)}]
    assert json.loads(other.paths.node_state.read_bytes())["state"] == "ready"

    swarm.service("web", *SLEEP, replicas=4, options=FAST)
    rows = swarm.expect_running("web", 4)
    assert sorted(row["node"] for row in rows) == ["node1", "node1", "node2", "node2"]
    assert {row["pid"] for row in rows if row["node"] == "node2"} <= set(other.own_processes())

    again = other.run("join", "--token", token(swarm), address(swarm))
    assert (again.code, "This node is already part of a swarm" in again.err) == (Exit.REFUSED, True)

    # The address to join at is forgotten: the node comes back by what the swarm told it.
    other.ok("down")
    text = other.paths.node_toml.read_text()
    other.paths.node_toml.write_text(text.replace(address(swarm), "127.0.0.1:1"))
    other.ok("up")
    assert other.identity() == (theirs, cluster_id)


def foreign_token() -> str:
    return generate_join_token(RootCA.create().certs)


def refused(swarm: Host, other: Host, text: str, *options: str, at: str = "") -> Result:
    result = other.run("join", "--token", text, *options, at or address(swarm))
    assert "Traceback" not in result.err
    assert nothing_left(other), other.own_processes()
    return result


def test_a_token_that_is_none_is_said_before_anything_happens(swarm: Host, other: Host) -> None:
    for text in ("SWMTKN", token(swarm)[:-1], token(swarm).replace("SWMTKN-1", "SWMTKN-9")):
        result = refused(swarm, other, text)
        assert (result.code, result.err[:31]) == (Exit.USAGE, "swarmvisor: invalid join token;")
    parsed = JoinToken.parse(token(swarm))
    fips = refused(swarm, other, str(JoinToken(parsed.digest, parsed.secret, version=2, fips=True)))
    assert (fips.code, "node is not FIPS-enabled but cluster requires FIPS" in fips.err) == (Exit.REFUSED, True)


def test_a_token_of_another_swarm_or_from_before_its_rotation_is_refused(swarm: Host, other: Host) -> None:
    wrong = refused(swarm, other, foreign_token())
    assert (wrong.code, "remote CA does not match fingerprint. Expected: " in wrong.err) == (Exit.REFUSED, True)
    old = token(swarm)
    assert "Successfully rotated worker join token." in swarm.ok("join-token", "--rotate", "worker")
    assert token(swarm) != old
    late = refused(swarm, other, old)
    assert late.code == Exit.REFUSED
    assert "does not take this token: A valid join token is necessary to join this cluster" in late.err
    assert "it may have been rotated" in late.err
    join(swarm, other)


def test_a_second_manager_of_a_sqlite_swarm_is_refused_with_reason_and_remedy(swarm: Host, other: Host) -> None:
    before = set(listed(swarm))
    result = refused(swarm, other, token(swarm, "manager"))
    assert result.code == Exit.REFUSED
    assert "keeps its state in a SQLite file, which has exactly one manager" in result.err
    assert "join with the worker's token" in result.err
    assert set(listed(swarm)) == before


def given_up_after_five_tries(swarm: Host, other: Host) -> None:
    began = time.monotonic()
    result = refused(swarm, other, token(swarm), at=f"127.0.0.1:{free_port()}")
    assert result.code == Exit.UNREACHABLE
    assert "Connection refused" in result.err
    assert time.monotonic() - began >= 8.0, "five tries are two seconds apart"


def test_a_node_that_holds_another_swarms_root_says_so_at_once(swarm: Host, other: Host) -> None:
    other.ok("join", "--token", token(swarm), "--no-start", address(swarm))
    assert stat.S_IMODE(other.paths.join_token.stat().st_mode) == 0o600
    other.paths.certificates.mkdir()
    other.paths.root_cert.write_bytes(RootCA.create().certs)
    result = other.run("up")
    assert result.code == Exit.FAILED
    assert f"{address(swarm)} belongs to another swarm" in result.err
    other.ok("down")
    report = other.json("status")["node"]
    assert (report["state"], "belongs to another swarm" in report["cause"]) == ("down", True)


def test_a_join_killed_at_random_moments_goes_on_as_one_node(swarm: Host, other: Host) -> None:
    before = set(listed(swarm))
    other.ok("join", "--token", token(swarm), "--hostname", "node2", "--no-start", address(swarm))
    other.ok("up", "--no-wait")
    chance, pause = random.Random(), threading.Event()
    killed = 0
    while killed < 4 and not other.paths.node_cert.exists():
        pid = other.pid("renewer")
        # The interesting part begins 0.2 s after its start and lasts 0.1 s.
        pause.wait(chance.uniform(0.15, 0.5))
        if pid and alive(pid):
            os.kill(pid, signal.SIGKILL)
            killed += 1
    other.expect_ready()
    theirs, _ = other.identity()
    assert set(listed(swarm)) - before == {theirs}
    assert not other.paths.joining.exists()
    assert not other.paths.join_token.exists()
    assert not list(other.paths.certificates.glob(".tmp-*"))


def test_a_removed_node_is_refused_and_says_so(swarm: Host, other: Host) -> None:
    join(swarm, other)
    theirs, _ = other.identity()
    up = swarm.run("node", "rm", "node2")
    assert up.code == Exit.REFUSED
    assert f"node {theirs} is not down and can't be removed" in up.err
    assert swarm.ok("node", "rm", "--force", "node2").strip() == theirs
    assert theirs not in listed(swarm)

    def said() -> str:
        node = other.json("status")["node"]
        assert node["state"] == "failed", node
        return str(node["cause"])

    words = f"node {theirs} was removed from the swarm"
    assert words in eventually(said, what="the removed node says so")
    other.kill("agent")
    eventually(lambda: words in said(), what="and says so again after a restart of its agent")
    other.ok("down")
    assert words in other.json("status")["node"]["cause"]
    other.ok("leave", "--force")
    join(swarm, other)
    assert other.identity()[0] != theirs


def test_after_leave_the_node_can_be_removed_once_it_is_down_and_nobody_at_an_address_is_said(
    swarm: Host, other: Host
) -> None:
    join(swarm, other)
    theirs, _ = other.identity()
    where = ("--constraint", "node.hostname==node2")
    trap = "trap 'echo ended > /tmp/%s; exit 0' TERM; while :; do sleep 0.1; done" % (mark := f"sv-left-{other.port}")
    swarm.service("web", "/bin/sh", "-c", trap, options=(*FAST, *where))
    [pid] = swarm.pids("web")
    other.ok("leave")
    assert not alive(pid)
    assert Path("/tmp", mark).read_text() == "ended\n", "the task got its stop signal, and its grace"
    Path("/tmp", mark).unlink()
    assert nothing_left(other)
    given_up_after_five_tries(swarm, other)  # while the manager waits for heartbeats
    eventually(lambda: listed(swarm)[theirs]["status"] == "down", what="the manager misses its heartbeats")
    assert swarm.ok("node", "rm", "node2").strip() == theirs


@pytest.fixture
def mover() -> Iterator[Host]:
    """A manager that a test may move about."""
    yield from new_host()


def test_a_manager_moves_and_its_nodes_follow_without_a_new_join(mover: Host, other: Host) -> None:
    mover.init()
    join(mover, other)
    identity = other.identity()
    session = other.json("status")["agent"]["session_id"]
    taken = mover.run("update", "--listen-addr", "192.0.2.1:2377")
    assert (taken.code, "cannot listen on 192.0.2.1:2377" in taken.err) == (Exit.USAGE, True)
    assert f"127.0.0.1:{mover.port}" in mover.paths.node_toml.read_text()

    manager = mover.pid("manager")
    moved = f"127.0.0.1:{free_port()}"
    assert f"other nodes reach it at {moved}" in mover.ok("update", "--listen-addr", moved)
    assert mover.pid("manager") == manager, "nothing was restarted"
    eventually(
        lambda: [peer["addr"] for peer in json.loads(other.paths.state_json.read_bytes())] == [moved],
        what="the worker was told",
    )
    agent = other.json("status")["agent"]
    assert (agent["session_id"], agent["state"]) == (session, "ready"), "the session was kept"

    other.kill("agent")

    def follows() -> bool:
        agent = other.json("status")["agent"]
        return (agent["manager_addr"], agent["state"]) == (moved, "ready")

    eventually(follows, what="the next session is at the new address")
    assert other.json("status")["agent"]["session_id"] == session, "and resumes the old one"
    # Also after both were down, with the old address gone for good.
    other.ok("down")
    mover.ok("down")
    mover.ok("up")
    other.ok("up")
    assert other.identity() == identity
