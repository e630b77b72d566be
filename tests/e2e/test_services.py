"""Services on a real one-node swarm: started, replaced, scaled, drained, held back, removed (issue 2 §5.2)."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.e2e.host import Host, alive, eventually

SLEEP = ("/bin/sleep", "1000")
FAST = ("--restart-delay", "100ms", "--stop-grace-period", "2s")


@pytest.fixture(autouse=True)
def no_services_left(swarm: Host):  # type: ignore[no-untyped-def]
    yield
    swarm.run("node", "activate", "self")
    for service in swarm.json("service", "ls"):
        swarm.ok("service", "rm", service["name"])


def test_three_replicas_are_three_real_processes_of_nobody(swarm: Host) -> None:
    swarm.service("web", *SLEEP, replicas=3, options=FAST)
    rows = swarm.expect_running("web", 3)
    assert sorted(row["slot"] for row in rows) == [1, 2, 3]
    for row in rows:
        assert Path(f"/proc/{row['pid']}/cmdline").read_bytes() == b"/bin/sleep\x001000\x00"
        assert os.stat(f"/proc/{row['pid']}").st_uid == (65534 if os.geteuid() == 0 else os.geteuid())


def test_a_killed_task_is_replaced_in_its_slot_and_the_others_stay(swarm: Host) -> None:
    swarm.service("web", *SLEEP, replicas=3, options=FAST)
    before = {row["slot"]: row for row in swarm.expect_running("web", 3)}
    os.kill(before[2]["pid"], signal.SIGKILL)

    def replaced() -> bool:
        now = {row["slot"]: row for row in swarm.running("web")}
        return set(now) == {1, 2, 3} and now[2]["id"] != before[2]["id"]

    eventually(replaced, what="slot 2 has a new task")
    now = {row["slot"]: row for row in swarm.running("web")}
    assert (now[1]["pid"], now[3]["pid"]) == (before[1]["pid"], before[3]["pid"])
    [ended] = [row for row in swarm.tasks("web") if row["id"] == before[2]["id"]]
    assert ended["state"] == "failed"
    assert ended["exit_code"] == 128 + signal.SIGKILL


def test_scale_up_to_twenty_and_down_to_none(swarm: Host) -> None:
    swarm.service("web", *SLEEP, replicas=2, options=FAST)
    first = swarm.pids("web")
    swarm.ok("service", "scale", "web=20")
    assert first < swarm.pids("web")
    assert len(swarm.pids("web")) == 20
    swarm.ok("service", "scale", "web=3")
    assert sorted(row["slot"] for row in swarm.running("web")) == [1, 2, 3]
    last = swarm.pids("web")
    swarm.ok("service", "scale", "web=0")
    assert swarm.running("web") == []
    assert not [pid for pid in last if alive(pid)]


def test_a_task_that_ends_well_is_not_replaced_under_on_failure(swarm: Host) -> None:
    swarm.ok("service", "create", "job", "--detach", "--restart-condition", "on-failure", "--", "/bin/true")

    def complete() -> bool:
        return [row["state"] for row in swarm.tasks("job")] == ["complete"]

    eventually(complete, what="one completed task")
    assert [row["exit_code"] for row in swarm.tasks("job")] == [0]


def test_attempts_are_limited_and_the_command_says_why_it_gave_up(swarm: Host) -> None:
    options = ("--restart-max-attempts", "2", "--restart-delay", "50ms", "--restart-condition", "on-failure")
    result = swarm.run("service", "create", "bad", *options, "--", "/bin/sh", "-c", "exit 7")
    assert result.code == 1
    assert "task: non-zero exit (7)" in result.err
    rows = swarm.tasks("bad")
    assert [row["state"] for row in rows] == ["failed"] * 3
    assert {row["exit_code"] for row in rows} == {7}


def test_a_command_that_does_not_exist_is_said_in_words(swarm: Host) -> None:
    result = swarm.run("service", "create", "bad", "--restart-condition", "none", "--", "/no/such/command")
    assert result.code == 1
    assert "/no/such/command" in result.err


def test_drain_moves_tasks_off_and_activate_brings_them_back(swarm: Host) -> None:
    swarm.service("web", *SLEEP, replicas=2, options=FAST)
    swarm.ok("node", "drain", "self")
    assert swarm.running("web") == []
    [reason] = eventually(
        lambda: {row["reason"] for row in swarm.tasks("web") if row["state"] == "pending"}, what="tasks wait"
    )
    assert reason == "no suitable node (1 node not available for new tasks)"
    swarm.ok("node", "activate", "self")
    swarm.expect_running("web", 2)


@pytest.mark.parametrize(
    ("options", "explanation"),
    [
        (("--constraint", "node.labels.disk==ssd"), "scheduling constraints not satisfied on 1 node"),
        (("--reserve-cpu", "512"), "insufficient resources on 1 node"),
        (("--reserve-memory", "900g"), "insufficient resources on 1 node"),
    ],
)
def test_what_cannot_be_placed_says_why(swarm: Host, options: tuple[str, ...], explanation: str) -> None:
    result = swarm.run("service", "create", "held", "--timeout", "1.5", *options, "--", *SLEEP)
    assert result.code == 7
    assert f"no suitable node ({explanation})" in result.err
    [row] = swarm.tasks("held")
    assert (row["state"], row["reason"]) == ("pending", f"no suitable node ({explanation})")


def test_a_label_lets_a_held_task_go(swarm: Host) -> None:
    swarm.ok("service", "create", "held", "--detach", "--constraint", "node.labels.disk==ssd", "--", *SLEEP)
    eventually(lambda: swarm.tasks("held")[0]["reason"], what="held back")
    swarm.ok("node", "update", "self", "--label-add", "disk=ssd")
    swarm.expect_running("held", 1)
    swarm.ok("node", "update", "self", "--label-rm", "disk")


def test_environment_directory_and_output_reach_the_task(swarm: Host) -> None:
    script = 'echo "$GREETING from $PWD slot $SWARMVISOR_TASK_SLOT"; exec sleep 1000'
    swarm.service("talk", "/bin/sh", "-c", script, options=("-e", "GREETING=100% hello", "-w", "/tmp", *FAST))
    [row] = swarm.expect_running("talk", 1)
    eventually(lambda: swarm.ok("task", "logs", row["id"]), what="a line of output")
    assert swarm.ok("task", "logs", "talk.1").strip() == "100% hello from /tmp slot 1"
