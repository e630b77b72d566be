"""Any process of the node may be killed at any moment and no task notices (issue 2 §5.3, DESIGN §8)."""

from __future__ import annotations

import os
import signal

import pytest

from tests.e2e.host import PROCESSES, Host, alive, eventually

SLEEP = ("/bin/sleep", "1000")
FAST = ("--restart-delay", "100ms", "--stop-grace-period", "2s")


def untouched(node: Host, before: list[dict[str, object]]) -> None:
    """The very tasks of before run on, nothing was added."""
    after = node.tasks("web")
    assert {(r["id"], r["pid"]) for r in after} == {(r["id"], r["pid"]) for r in before}
    assert {r["state"] for r in after} == {"running"}


def no_fatal(node: Host) -> None:
    states = {name: info["statename"] for name, info in node.processes().items()}
    assert "FATAL" not in states.values(), states


@pytest.mark.parametrize("process", PROCESSES)
def test_killing_one_process_touches_no_task(swarm: Host, process: str) -> None:
    if not swarm.json("service", "ls"):
        swarm.service("web", *SLEEP, replicas=2, options=FAST)
    before = swarm.expect_running("web", 2)
    others = {name: swarm.pid(name) for name in PROCESSES if name != process}
    old = swarm.kill(process)
    eventually(lambda: swarm.pid(process) not in (0, old), what=f"{process} runs again")
    swarm.expect_ready()
    assert {name: swarm.pid(name) for name in others} == others
    eventually(lambda: untouched(swarm, before) is None, what="the same tasks")
    no_fatal(swarm)


def test_killing_all_four_at_once_touches_no_task(node: Host) -> None:
    node.service("web", *SLEEP, replicas=3, options=FAST)
    before = node.expect_running("web", 3)
    pids = [node.pid(name) for name in PROCESSES]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    node.expect_ready()
    eventually(lambda: untouched(node, before) is None, what="the same tasks")
    node.ok("service", "scale", "web=4")
    no_fatal(node)


def test_a_killed_workload_supervisord_takes_its_tasks_along_and_they_are_replaced(node: Host) -> None:
    # the second command leaves a daemon behind that left its session and parent
    script = "setsid sh -c 'sleep 999 & exec sleep 998' & exec sleep 1000"
    node.service("web", "/bin/sh", "-c", script, replicas=2, options=FAST)
    before = node.expect_running("web", 2)
    node.kill("workload")

    def replaced() -> bool:
        rows = node.running("web")
        return len(rows) == 2 and not {r["id"] for r in rows} & {r["id"] for r in before}

    eventually(replaced, what="both tasks replaced")
    ended = [row for row in node.tasks("web") if row["id"] in {r["id"] for r in before}]
    assert {row["state"] for row in ended} == {"failed"}
    assert all("workload supervisor ended" in row["error"] for row in ended)
    assert not [row for row in before if alive(row["pid"])]
    tails = [line for line in node.own_processes().values() if "sleep 999" in line]
    assert len(tails) == 2, "no daemon of the killed tasks is left, one of each new task runs"


def test_a_killed_main_supervisord_leaves_tasks_running_for_the_next_up(node: Host) -> None:
    node.service("web", *SLEEP, replicas=2, options=FAST)
    before = node.expect_running("web", 2)
    workload = node.pid("workload")
    pids = {name: node.pid(name) for name in PROCESSES}
    node.kill("supervisord")
    for name, pid in pids.items():
        eventually(lambda p=pid: not alive(p), what=f"{name} died with its supervisord")  # type: ignore[misc]
    assert node.pid("workload") == workload
    node.ok("up")
    node.expect_ready()
    eventually(lambda: untouched(node, before) is None, what="the same tasks, adopted")
    assert node.pid("workload") == workload


def test_restart_keeps_identity_and_services_and_reports_ended_tasks_once(node: Host) -> None:
    node.service("web", *SLEEP, replicas=2, options=FAST)
    before = node.expect_running("web", 2)
    identity = node.identity()
    node.ok("down")
    assert node.own_processes() == {}
    for row in before:
        assert not alive(row["pid"])
    node.ok("up")
    after = node.expect_running("web", 2)
    assert not {r["id"] for r in after} & {r["id"] for r in before}
    assert node.identity() == identity


def test_down_keeping_tasks_and_up_keeps_the_very_processes(node: Host) -> None:
    node.service("web", *SLEEP, replicas=2, options=FAST)
    before = node.expect_running("web", 2)
    node.ok("down", "--keep-tasks")
    for row in before:
        assert alive(row["pid"])
    node.ok("up")
    node.expect_ready()
    eventually(lambda: untouched(node, before) is None, what="the same tasks")
