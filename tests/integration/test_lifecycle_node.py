"""A whole node under real supervisord: init, up, down, leave, and what survives which kill (DESIGN §8)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from procs.cli.exits import Exit
from swarm.supervisor_rpc import SupervisorClient
from tests.integration.lifecycle_node import REPOSITORY, Node, free_address, kill_and_wait, node_in, wait_gone

READY = ("coordinator", "renewer", "agent", "manager")


@pytest.fixture
def node(short_dir: Path) -> Iterator[Node]:
    with node_in(short_dir) as made:
        yield made


def up(node: Node) -> dict[str, int]:
    """A ready node, and the pids of its processes."""
    node.ok("init", "--listen-addr", free_address(), "--hostname", "host-1")
    return node.pids()


def test_init_starts_everything_and_up_again_says_so(node: Node) -> None:
    said = node.ok("init", "--listen-addr", free_address(), "--hostname", "host-1")
    assert "What next" in said
    pids = node.pids()
    assert set(pids) == {"supervisord", *READY}
    again = node.ok("up")
    assert "already up" in again
    assert node.pids() == pids
    status = node.status()
    assert status["node"]["state"] == "ready"
    assert status["certificate"]["role"] == "manager"
    assert status["manager"]["leader"]
    assert [p["name"] for p in status["processes"] if p["state"] == "FATAL"] == []
    assert node.ok("wait", "ready") == "The node is ready.\n"
    refused = node.command("init")
    assert refused.returncode == Exit.REFUSED


def test_down_leaves_nothing_and_up_brings_the_same_node_back(node: Node) -> None:
    up(node)
    before = node.status()["certificate"]
    node.ok("down")
    assert not node.paths.runtime.exists()
    report = node.status()
    assert report["node"]["state"] == "down"
    assert report["certificate"]["node_id"] == before["node_id"]
    assert node.ok("down") == "The node is already down.\n"
    node.ok("up")
    after = node.status()["certificate"]
    assert (after["node_id"], after["cluster_id"]) == (before["node_id"], before["cluster_id"])


def test_leave_of_the_sole_manager_needs_force_and_wipes(node: Node) -> None:
    up(node)
    refused = node.command("leave")
    assert refused.returncode == Exit.REFUSED
    assert "Removing the last manager erases all current state of the swarm" in refused.stderr
    node.ok("wait", "ready")
    node.ok("leave", "--force")
    assert not node.paths.state.exists()
    assert not node.paths.runtime.exists()


def test_a_second_node_on_the_same_state_directory_is_refused(node: Node, short_dir: Path) -> None:
    pids = up(node)
    twin = Node(short_dir)
    object.__setattr__(twin.paths, "runtime", short_dir / "other")
    refused = twin.command("up")
    assert refused.returncode == Exit.REFUSED
    assert "another node runs on" in refused.stderr
    assert node.pids() == pids


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_comes_back_alone(node: Node, number: int) -> None:
    pids = up(node)
    for name in ("coordinator", "renewer", "agent"):
        with kill_and_wait(pids[name], number):
            pass
        node.wait_for(f"process.{name}", 10, lambda p, old=pids[name]: p.state == "RUNNING" and p.pid not in (0, old))
        node.ok("wait", "ready", "--timeout", "20")
        after = node.pids()
        assert {k: v for k, v in after.items() if k != name} == {k: v for k, v in pids.items() if k != name}
        pids = after


def test_a_coordinator_killed_again_and_again_comes_back_right(node: Node) -> None:
    pids = up(node)
    pid = pids["coordinator"]
    for _ in range(5):
        with kill_and_wait(pid):
            pass
        value = node.wait_for("process.coordinator", 15, lambda p, old=pid: p.pid not in (0, old))
        pid = value.body.pid
    node.ok("wait", "ready", "--timeout", "20")
    assert node.pids()["manager"] == pids["manager"]


def test_all_processes_die_with_the_main_supervisord_and_up_starts_them(node: Node) -> None:
    pids = up(node)
    handles = {name: os.pidfd_open(pid) for name, pid in pids.items()}
    os.kill(pids["supervisord"], signal.SIGKILL)
    for handle in handles.values():
        wait_gone(handle)
        os.close(handle)
    assert node.status()["node"]["state"] == "down"
    assert node.command("wait", "ready", "--timeout", "0.2").returncode == Exit.TIMED_OUT
    node.ok("up")
    assert not set(node.pids().values()) & set(pids.values())


def test_a_manager_that_an_operator_stops_stays_stopped_until_started(node: Node) -> None:
    up(node)
    node.supervisor().call("supervisor.stopProcess", "manager", True)
    value = node.wait_for("node", 10, lambda n: "operator" in n.step)
    assert value.body.state == "starting"
    node.supervisor().call("supervisor.startProcess", "manager", False)
    node.ok("wait", "ready", "--timeout", "20")


def test_a_corrupt_state_json_fails_the_node_by_name_and_mending_it_and_up_brings_it_back(node: Node) -> None:
    up(node)
    node.ok("down")
    good = node.paths.state_json.read_bytes() if node.paths.state_json.exists() else b"[]"
    node.paths.state_json.write_bytes(b"{")
    failed = node.command("up", "--timeout", "20")
    assert failed.returncode == Exit.FAILED
    assert "state.json" in failed.stderr
    report = node.status()
    assert report["node"]["state"] == "failed"
    assert any("state.json" in text for text in report["trouble"])
    assert node.paths.state_json.read_bytes() == b"{"
    node.paths.state_json.write_bytes(good)
    node.ok("up")
    assert node.status()["node"]["state"] == "ready"


def test_up_in_the_foreground_is_supervisord_and_ends_with_sigterm(node: Node) -> None:
    node.ok("init", "--no-start", "--listen-addr", free_address())
    child = subprocess.Popen(
        [sys.executable, "-m", "procs.cli", "up", "--foreground"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**node.environment(), "SUPERVISOR_ENABLED": "1"},  # as under an operator's own supervisord
    )
    try:
        node.ok("wait", "ready")
        assert node.pids()["supervisord"] == child.pid
        child.terminate()
        assert child.wait(20) == 0
    finally:
        child.kill()
        child.wait()


def test_processes_without_a_node_wait_and_init_has_them_start_over(node: Node) -> None:
    """`supervisord -c supervisord.conf` first, `swarmvisor init` later."""
    from procs.cli.supervisord_conf import fit, render

    for directory in (node.paths.logs, node.paths.runtime):
        directory.mkdir(parents=True)
    conf = node.paths.runtime / "as-checked-in.conf"
    conf.write_text(render(node.paths, fit(sys.executable), root=os.geteuid() == 0))
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "supervisor.supervisord", "-c", str(conf)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        value = node.wait_for("node", 15, lambda n: n.state == "uninitialized")
        assert "init" in value.body.cause
        node.ok("init", "--listen-addr", free_address())
        assert node.pids()["supervisord"] == child.pid
        node.ok("down")
        assert child.wait(20) == 0
    finally:
        child.kill()
        child.wait()


def test_status_is_json_with_all_of_its_parts(node: Node) -> None:
    up(node)
    report = node.status()
    assert set(report) == {
        "node",
        "supervisord",
        "workload",
        "certificate",
        "manager",
        "agent",
        "managers",
        "processes",
        "paths",
        "isolated_tasks",
        "trouble",
        "roles",
        "vxlan_port",
    }
    assert report["trouble"] == []
    shown = node.ok("status")
    assert report["certificate"]["node_id"] in shown
    json.dumps(report)


def test_down_keeps_the_tasks_when_asked_and_up_takes_the_very_processes_over(node: Node) -> None:
    up(node)
    node.ok("service", "create", "web", "--replicas", "2", "--", "sleep", "1000")
    before = task_pids(node)
    assert len(before) == 2
    node.ok("down", "--keep-tasks")
    assert "keep running" in node.ok("status")
    assert task_pids(node) == before
    node.ok("up")
    assert task_pids(node) == before
    node.wait_for("agent", 10, lambda a: a.state == "ready" and a.tasks == 2)
    handles = [os.pidfd_open(pid) for pid in before.values()]
    node.ok("down")
    for handle in handles:
        wait_gone(handle)
        os.close(handle)
    assert not node.paths.runtime.exists()


def test_down_ends_the_tasks_of_a_workload_whose_supervisord_was_killed(node: Node) -> None:
    pids = up(node)
    node.ok("service", "create", "web", "--", "sleep", "1000")
    (task,) = task_pids(node).values()
    with kill_and_wait(pids["supervisord"]):
        pass
    handle = os.pidfd_open(task)
    node.ok("down")
    wait_gone(handle)
    os.close(handle)
    assert not node.paths.runtime.exists()


def task_pids(node: Node) -> dict[str, int]:
    rows = json.loads(SupervisorClient(node.paths.workload_socket).call("workload.snapshot"))
    return {row["task_id"]: row["pid"] for row in rows if row["pid"]}


def test_a_corrupt_certificate_fails_the_node_by_name_and_mending_it_and_up_brings_it_back(node: Node) -> None:
    up(node)
    node.ok("down")
    good = node.paths.node_cert.read_bytes()
    node.paths.node_cert.write_text("junk")
    failed = node.command("up", "--timeout", "20")
    assert failed.returncode == Exit.FAILED
    assert node.paths.node_cert.name in failed.stderr
    assert node.status()["node"]["state"] == "failed"
    assert node.paths.node_cert.read_text() == "junk"
    node.paths.node_cert.write_bytes(good)
    node.ok("up")
    assert node.status()["node"]["state"] == "ready"


def test_a_node_nested_under_an_operators_supervisord_starts_and_stops_with_it(node: Node, short_dir: Path) -> None:
    node.ok("init", "--no-start", "--listen-addr", free_address())
    conf = short_dir / "operator.conf"
    conf.write_text(
        f"[supervisord]\nnodaemon=true\nsilent=true\nlogfile={short_dir}/operator.log\npidfile={short_dir}/operator.pid\n"
        f"childlogdir={short_dir}\n[include]\nfiles={REPOSITORY / 'swarmvisor.include.conf'}\n"
    )
    command = Path(sys.executable).parent
    operator = subprocess.Popen(
        [command / "supervisord", "-c", str(conf)],
        stderr=subprocess.DEVNULL,
        env={**node.environment(), "PATH": f"{command}:{os.environ['PATH']}"},
    )
    try:
        node.ok("wait", "ready")
        assert node.pids()["supervisord"] != operator.pid
        inner = os.pidfd_open(node.pids()["supervisord"])
        operator.terminate()
        assert operator.wait(30) == 0
        wait_gone(inner)
        os.close(inner)
        assert "not expected" not in (short_dir / "operator.log").read_text()
    finally:
        operator.kill()
        operator.wait()
