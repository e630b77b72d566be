"""`docker service logs` of tasks on a node of ours: the agent's side of the log broker, with Docker's leader."""

from __future__ import annotations

import time

import pytest

from tests.e2e.host import eventually
from tests.interop.dockerd import Dockerd, moment
from tests.interop.follower import following

pytestmark = pytest.mark.usefixtures("member")

COUNT = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.2; done"


def test_what_an_ended_task_wrote_to_both_streams_is_there(dockerd: Dockerd, service: str) -> None:
    before = time.time()
    dockerd.service(service, "sh", "-c", "echo out; echo err >&2; printf half", options=("--restart-condition", "none"))
    task = dockerd.ended(service)
    done = dockerd.run("service", "logs", "--raw", service)
    assert (done.stdout, done.stderr) == ("out\nhalf\n", "err\n")
    line = dockerd.docker("service", "logs", "--timestamps", "--no-trunc", "--tail", "1", service).splitlines()[0]
    at, source, text = line.split(maxsplit=2)
    assert (source.split("@")[0], text) == (f"{service}.1.{task['ID']}", "| half")
    assert before <= moment(at) <= time.time()


def test_tail_and_since_leave_out_what_is_older(dockerd: Dockerd, service: str) -> None:
    dockerd.service(service, "sh", "-c", "seq 100", options=("--restart-condition", "none"))
    dockerd.ended(service)
    assert dockerd.docker("service", "logs", "--raw", "--tail", "3", service).split() == ["98", "99", "100"]
    assert dockerd.docker("service", "logs", "--raw", service).split() == [str(n) for n in range(1, 101)]
    written = time.time()
    # Docker reckons `--since` in whole seconds
    eventually(lambda: time.time() > written + 2.5, what="some time to pass")
    assert dockerd.docker("service", "logs", "--raw", "--since", "1s", service) == ""


def test_a_big_log_arrives_whole(dockerd: Dockerd, service: str) -> None:
    dockerd.service(service, "seq", "200000", options=("--restart-condition", "none"))
    dockerd.ended(service)
    lines = dockerd.docker("service", "logs", "--raw", service).split()
    assert lines == [str(n) for n in range(1, 200_001)]


def test_following_shows_new_lines_and_tasks_that_start_later(dockerd: Dockerd, service: str) -> None:
    dockerd.service(service, "sh", "-c", f"echo I am $SWARMVISOR_TASK_SLOT; {COUNT}")
    dockerd.running(service, 1)
    with following(dockerd, service) as follower:
        follower.expect("I am 1", "line 1")
        seen = len(follower.lines)
        follower.expect(f"line {seen + 5}")
        dockerd.docker("service", "scale", "--detach", f"{service}=2")
        follower.expect("I am 2")
        assert follower.lines.count("I am 2") == 1


def test_following_a_removed_service_loses_nothing_of_the_others(dockerd: Dockerd, service: str) -> None:
    other = f"{service[:50]}-other"
    dockerd.service(other, "sh", "-c", COUNT)
    dockerd.service(service, "sh", "-c", COUNT)
    dockerd.running(service, 1)
    with following(dockerd, service) as follower:
        follower.expect("line 2")
        dockerd.docker("service", "rm", other)
        last = len(follower.lines)
        follower.expect(f"line {last + 5}")
