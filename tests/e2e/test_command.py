"""The `swarmvisor` command as its users and their scripts meet it (issue 2 §4)."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest

from tests.e2e.host import COMMAND, PROCESSES, Host, eventually

SLEEP = ("/bin/sleep", "1000")


def test_a_host_that_is_no_node_says_so(host: Host) -> None:
    for args in (("node", "ls"), ("service", "ls"), ("up",)):
        result = host.run(*args)
        assert result.code in (4, 6)
        assert "swarmvisor init" in result.err
        assert "Traceback" not in result.err
    assert host.state() == "uninitialized"


def test_init_prints_what_runs_and_what_to_type_next(host: Host) -> None:
    out = host.ok("init", "--listen-addr", f"127.0.0.1:{host.port}", "--hostname", "first", "--label", "disk=ssd")
    assert "swarmvisor service create" in out
    [row] = host.json("node", "ls")
    assert (row["hostname"], row["status"], row["availability"]) == ("first", "ready", "active")
    assert (row["role"], row["manager_status"], row["self"]) == ("manager", "Leader", True)
    assert row["engine_labels"]["disk"] == "ssd"
    assert (host.state(), host.identity()[0]) == ("ready", row["id"])


def test_a_second_init_and_a_second_node_on_the_directory_are_refused(node: Host) -> None:
    again = node.run("init")
    assert again.code == 6
    assert "already" in again.err
    other = Host(node.root, environment={"SWARMVISOR_RUNTIME_DIR": str(node.root / "other")})
    second = other.run("up")
    assert second.code != 0
    node.expect_ready()


def test_up_when_up_says_so_and_changes_nothing(swarm: Host) -> None:
    before = {name: swarm.pid(name) for name in PROCESSES}
    assert "already" in swarm.ok("up")
    assert {name: swarm.pid(name) for name in PROCESSES} == before


def test_down_leaves_nothing_and_status_still_answers(node: Host) -> None:
    node.service("web", *SLEEP, options=("--stop-grace-period", "1s"))
    identity = node.identity()
    node.ok("down")
    assert node.own_processes() == {}
    assert not list(node.paths.runtime.rglob("*.sock"))
    assert (node.identity(), node.state()) == (identity, "down")


def test_leave_of_the_last_manager_needs_force_and_wipes_the_node(node: Host) -> None:
    refused = node.run("leave")
    assert refused.code == 6
    assert "--force" in refused.err
    node.ok("leave", "--force")
    assert node.own_processes() == {}
    assert not node.paths.certificates.exists()
    node.init()
    node.expect_ready()


def test_listings_have_json_and_quiet_forms(swarm: Host) -> None:
    service = swarm.service("listed", *SLEEP, replicas=2, options=("--stop-grace-period", "1s", "--label", "tier=web"))
    [row] = [r for r in swarm.json("service", "ls") if r["name"] == "listed"]
    assert (row["id"], row["replicas"], row["labels"]) == (service, "2/2", {"tier": "web"})
    assert row["command"] == list(SLEEP)
    assert service in swarm.ok("service", "ls", "-q").split()
    ids = swarm.ok("service", "ps", "listed", "-q").split()
    assert {r["id"] for r in swarm.json("task", "ls")} >= set(ids)
    inspected = json.loads(swarm.ok("task", "inspect", ids[0]))[0]
    assert inspected["service_id"] == service
    assert json.loads(swarm.ok("service", "inspect", "listed"))[0]["id"] == service
    assert json.loads(swarm.ok("node", "inspect", "self"))[0]["description"]["hostname"] == "node1"
    swarm.ok("service", "rm", "listed")
    assert not [r for r in swarm.json("service", "ls") if r["name"] == "listed"]


def test_join_tokens_are_swarmkits(swarm: Host) -> None:
    worker, manager = (swarm.ok("join-token", role, "-q").strip() for role in ("worker", "manager"))
    assert worker != manager
    for token in (worker, manager):
        head, version, digest, secret = token.split("-")
        assert (head, version, len(digest), len(secret)) == ("SWMTKN", "1", 50, 25)
    assert worker in swarm.ok("join-token", "worker")


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("service", "create", "x"), 2, "write it after --"),
        (("service", "create", "bad_.name", "--", "true"), 6, "name must be valid as a DNS name component"),
        (("service", "create", "x", "--constraint", "nonsense", "--", "true"), 1, "constraint expected one operator"),
        (("service", "create", "x", "--reserve-memory", "1k", "--", "true"), 6, "Must be at least 4MiB"),
        (("service", "scale", "x=-1"), 2, "is not SERVICE=REPLICAS"),
        (("service", "rm", "nothing"), 1, "service nothing not found"),
        (("node", "inspect", "nobody"), 1, "node nobody not found"),
        (("node", "update", "self"), 6, "no change"),
        (("task", "inspect", "nothing"), 1, "task nothing not found"),
        (("nonsense",), 2, "nonsense"),
    ],
)
def test_errors_are_one_line_with_a_stable_exit_code(swarm: Host, args: tuple[str, ...], code: int, said: str) -> None:
    result = swarm.run(*args)
    assert said in result.err
    assert result.code == code, result.err
    assert "Traceback" not in result.err


def test_debug_shows_processes_topics_and_stacks(swarm: Host) -> None:
    shown = swarm.json("debug", "ps")
    assert {row["name"] for row in shown["processes"]} >= set(PROCESSES)
    bodies = {row["topic"]: row["body"] for row in shown["topics"]}
    assert set(bodies) >= {"certificate", "role", "node", "manager", "agent"}
    assert bodies["certificate"]["role"] == "manager"
    for process in PROCESSES:
        stacks = swarm.ok("debug", "stacks", process)
        assert "most recent call first" in stacks, stacks
    assert "asyncio tasks" in swarm.ok("debug", "stacks", "agent")


def test_debug_run_takes_a_process_over_and_gives_it_back_also_after_ctrl_c(swarm: Host) -> None:
    others = {name: swarm.pid(name) for name in PROCESSES if name != "renewer"}
    child = subprocess.Popen(
        [COMMAND, "debug", "run", "renewer"], env=swarm.env, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        eventually(
            lambda: [pid for pid, line in swarm.own_processes().items() if line.endswith("procs.renewer ")],
            what="the renewer runs in the terminal",
        )
        assert swarm.pid("renewer") == 0
        os.killpg(child.pid, signal.SIGINT)
        _, err = child.communicate(timeout=30)
    finally:
        child.kill()
        child.wait()
        if child.stderr:
            child.stderr.close()
    assert "supervisord runs it again" in err
    eventually(lambda: swarm.pid("renewer"), what="the renewer runs under supervisord again")
    assert {name: swarm.pid(name) for name in others} == others
