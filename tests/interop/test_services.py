"""`docker service` on a node of ours: processes come, change and go as a Docker user expects."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.host import alive, eventually
from tests.interop.conftest import Member
from tests.interop.dockerd import Dockerd, moment

pytestmark = pytest.mark.usefixtures("member")


def pid(task: dict[str, Any]) -> int:
    return int(task["Status"]["ContainerStatus"]["PID"])


def argv(process: int) -> list[str]:
    return Path(f"/proc/{process}/cmdline").read_bytes().decode().split("\0")[:-1]


def test_docker_node_ls_shows_the_node_as_it_is(dockerd: Dockerd, member: Member) -> None:
    found = dockerd.expect_node(member.node_id, "ready")
    described = found["Description"]
    assert found["Spec"]["Role"] == "worker"
    assert found["Status"]["Addr"] == "127.0.0.1"
    assert described["Hostname"] == "processes"
    assert described["Platform"] == {"Architecture": os.uname().machine, "OS": "linux"}
    resources = described["Resources"]
    assert resources["NanoCPUs"] == len(os.sched_getaffinity(0)) * 10**9
    assert resources["MemoryBytes"] == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert resources["GenericResources"] == [{"DiscreteResourceSpec": {"Kind": "ssd", "Value": 2}}]
    assert described["Engine"]["EngineVersion"] == member.host.ok("version").split()[1]
    assert described["Engine"]["Labels"] == {"runtime": "process", "zone": "a"}
    listed = dockerd.docker("node", "ls", "--format", "{{.Hostname}} {{.Status}} {{.Availability}} {{.TLSStatus}}")
    assert "processes Ready Active Ready" in listed.splitlines()


def test_a_service_runs_as_processes_and_follows_scale_update_rollback_and_rm(dockerd: Dockerd, service: str) -> None:
    before = time.time()
    dockerd.service(service, "sleep", "1000", options=("--replicas", "2", "--update-delay", "0s"))
    first = dockerd.running(service, 2)
    assert {tuple(argv(pid(task))) for task in first} == {("sleep", "1000")}
    assert len({pid(task) for task in first}) == 2
    for task in first:
        assert task["Status"]["Message"] == "started"
        assert before - 1 < moment(task["Status"]["Timestamp"]) < time.time() + 1

    dockerd.docker("service", "scale", "--detach", f"{service}=3")
    scaled = dockerd.running(service, 3)
    assert {task["ID"] for task in first} < {task["ID"] for task in scaled}

    dockerd.docker("service", "scale", "--detach", f"{service}=1")
    (kept,) = dockerd.running(service, 1)
    eventually(lambda: not any(alive(pid(t)) for t in scaled if t["ID"] != kept["ID"]), what="scaled down")

    dockerd.docker("service", "update", "--detach", "--args", "sleep 2000", service)
    (updated,) = eventually(
        lambda: [t for t in dockerd.running(service, 1) if t["ID"] != kept["ID"]], what="the updated task"
    )
    assert argv(pid(updated)) == ["sleep", "2000"]
    assert not alive(pid(kept))
    eventually(
        lambda: "completed" in dockerd.docker("service", "inspect", "--format", "{{.UpdateStatus.State}}", service),
        what="the update is complete",
    )

    dockerd.docker("service", "rollback", "--detach", service)
    (back,) = eventually(
        lambda: [t for t in dockerd.running(service, 1) if t["ID"] != updated["ID"]], what="the task of before"
    )
    assert argv(pid(back)) == ["sleep", "1000"]

    dockerd.docker("service", "rm", service)
    eventually(lambda: not alive(pid(back)), what="the process ends with its service")


@pytest.mark.parametrize(
    ("command", "state", "code", "error"),
    [
        ("exit 0", "complete", 0, None),
        ("exit 7", "failed", 7, "task: non-zero exit (7)"),
        ("kill -KILL $$", "failed", 137, "task: non-zero exit (137): ended by SIGKILL"),
    ],
)
def test_how_a_task_ended_is_told_with_its_time_pid_and_exit_code(
    dockerd: Dockerd, service: str, command: str, state: str, code: int, error: str | None
) -> None:
    dockerd.service(service, "sh", "-c", f"echo $$; {command}", options=("--restart-condition", "none"))
    status = dockerd.ended(service)["Status"]
    assert (status["State"], status["ContainerStatus"]["ExitCode"], status.get("Err")) == (state, code, error)
    assert abs(moment(status["Timestamp"]) - time.time()) < 10
    written = dockerd.docker("service", "logs", "--raw", service)
    assert int(written) == status["ContainerStatus"]["PID"]


def test_a_task_that_ends_while_the_agent_is_away_has_the_time_at_which_it_ended(
    dockerd: Dockerd, member: Member, service: str
) -> None:
    dockerd.service(service, "sleep", "1000", options=("--restart-condition", "none"))
    (task,) = dockerd.running(service, 1)
    agent = member.host.pid("agent")
    os.kill(agent, signal.SIGSTOP)
    os.kill(pid(task), signal.SIGTERM)
    ended = time.time()
    eventually(lambda: not alive(pid(task)), what="the process ends")
    eventually(lambda: time.time() > ended + 2, what="some time in which nobody could tell")
    os.kill(agent, signal.SIGKILL)
    status = dockerd.ended(service)["Status"]
    assert status["ContainerStatus"]["ExitCode"] == 143
    assert abs(moment(status["Timestamp"]) - ended) < 1


def test_a_failing_task_is_replaced_and_listed(dockerd: Dockerd, service: str) -> None:
    dockerd.service(service, "sh", "-c", "exit 3", options=("--restart-delay", "100ms", "--restart-max-attempts", "1"))
    tasks = eventually(
        lambda: [t for t in dockerd.tasks(service) if t["Status"]["State"] == "failed"][1:] and dockerd.tasks(service),
        what="two tries",
    )
    assert [task["Status"]["ContainerStatus"]["ExitCode"] for task in tasks] == [3, 3]


def test_the_killed_agent_finds_its_tasks_again_and_docker_sees_no_change(
    dockerd: Dockerd, member: Member, service: str
) -> None:
    dockerd.service(service, "sleep", "1000")
    (before,) = dockerd.running(service, 1)
    killed = member.host.kill("agent")
    eventually(lambda: member.host.pid("agent") not in (0, killed), what="another agent")
    dockerd.docker("service", "scale", "--detach", f"{service}=2")
    after = dockerd.running(service, 2)
    assert pid(before) in {pid(task) for task in after}


def test_a_drained_node_ends_its_tasks_and_an_active_one_takes_them_again(
    dockerd: Dockerd, member: Member, service: str
) -> None:
    dockerd.service(service, "sleep", "1000")
    (task,) = dockerd.running(service, 1)
    try:
        dockerd.docker("node", "update", "--availability", "drain", member.node_id)
        eventually(lambda: not alive(pid(task)), what="the drained node's process ends")
        (drained,) = [t for t in dockerd.tasks(service) if t["ID"] == task["ID"]]
        assert drained["DesiredState"] == "shutdown"
        eventually(
            lambda: next(t for t in dockerd.tasks(service) if t["ID"] == task["ID"])["Status"]["State"] == "shutdown",
            what="the end is told",
        )
    finally:
        dockerd.docker("node", "update", "--availability", "active", member.node_id)
    (again,) = dockerd.running(service, 1)
    assert again["ID"] != task["ID"]
    assert alive(pid(again))
