"""Many tasks, their output, their limits, and what others may do to this supervisord."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipc.bus import Bus
from swarm.tasklog import follow_task_log, read_task_log
from tests.integration.workload_node import WorkloadNode, alive, eventually, running_workload

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def workload() -> Iterator[WorkloadNode]:
    with running_workload() as running:
        yield running


def test_two_hundred_tasks_at_once(workload: WorkloadNode) -> None:
    tasks = [workload.spec(["/bin/sleep", "1000"]) for _ in range(200)]
    assert set(workload.call("add", tasks).values()) == {""}
    said = workload.wait_all(tasks, "running")
    assert len({entry.pid for entry in said.values()}) == 200
    snapshot = workload.snapshot()
    assert set(snapshot) == set(tasks)
    assert workload.bus is not None
    for task in tasks:
        value = workload.bus.last(f"task.{task}")
        assert value is not None
        assert (snapshot[task]["epoch"], snapshot[task]["seq"]) == (value.epoch, value.seq)
        assert snapshot[task]["pid"] == value.body.pid
    for entry in said.values():
        os.kill(entry.pid, 9)
    ended = workload.wait_all(tasks, "exited")
    assert {entry.wait_status for entry in ended.values()} == {9}
    assert {workload.exit(task).wait_status for task in tasks} == {9}
    assert set(workload.call("remove", tasks).values()) == {""}
    eventually(lambda: not [p for root in workload.cgroups() for p in root.glob("?" * 25)], "no cgroup is left")


def test_a_late_reader_gets_every_task_from_bus_and_snapshot(workload: WorkloadNode) -> None:
    running = workload.run(["/bin/sleep", "1000"])
    ended = workload.shell("exit 3")
    workload.wait(running, "running")
    workload.wait(ended, "exited")
    workload.close_bus()
    workload.bus = Bus(workload.paths.bus, None, ["task.*"])
    workload.wait(running, "running")
    assert workload.wait(ended, "exited").wait_status == 3 << 8
    snapshot = workload.snapshot()
    assert (snapshot[running]["state"], snapshot[ended]["state"]) == ("running", "exited")
    assert snapshot[ended]["exited_at"] > snapshot[ended]["started_at"] > 1 << 60


def test_a_flood_of_output_stays_bounded_and_the_newest_lines_are_kept(workload: WorkloadNode) -> None:
    bound = 1 << 20
    flood = "i=0; while [ $i -lt 400000 ]; do i=$((i+1)); echo line $i of a flood that nobody asked for; done"
    task = workload.shell(f"{flood}; sleep 1000", log_max_bytes=bound)
    path = workload.paths.task(task) / "stdout"
    eventually(lambda: path.exists() and path.stat().st_size > 15 * bound, "it floods")
    eventually(lambda: path.stat().st_blocks * 512 <= bound * 5 // 4 + 8192, "the file is bounded")
    eventually(
        lambda: read_task_log(workload.paths.task(task), tail=1)[-1].data.startswith(b"line 400000 "), "it is done", 60
    )
    # once more: a reader that is overtaken by the hole misses lines
    eventually(lambda: path.stat().st_blocks * 512 <= bound * 5 // 4 + 8192, "the file is bounded")
    lines = read_task_log(workload.paths.task(task))
    numbers = [int(line.data.split()[1]) for line in lines]
    assert numbers == list(range(numbers[0], 400001))


def test_output_can_be_followed_until_the_task_ends(workload: WorkloadNode) -> None:
    task = workload.shell("echo one; echo err >&2; while [ ! -e go ]; do sleep 0.02; done; echo two; printf three")
    workload.wait(task, "running")
    got: list[tuple[str, bytes]] = []
    reader = threading.Thread(
        target=lambda: got.extend((line.stream, line.data) for line in follow_task_log(workload.paths.task(task)))
    )
    reader.start()
    eventually(lambda: len(got) == 2, "what is there is read")
    (workload.paths.task(task) / "work" / "go").touch()
    reader.join(20)
    assert not reader.is_alive()
    assert sorted(got[:2]) == [("stderr", b"err"), ("stdout", b"one")]
    assert got[2:] == [("stdout", b"two"), ("stdout", b"three")]


def test_supervisorctl_update_and_its_other_verbs_leave_the_tasks_alone(workload: WorkloadNode) -> None:
    task = workload.run(["/bin/sleep", "1000"])
    ended = workload.run(["/bin/true"])
    pid = workload.wait(task, "running").pid
    workload.wait(ended, "exited")

    def supervisorctl(*arguments: str) -> str:
        command = [
            sys.executable,
            "-m",
            "supervisor.supervisorctl",
            "-c",
            str(workload.paths.workload_conf),
            *arguments,
        ]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    assert supervisorctl("update") == ""
    status = supervisorctl("status")
    assert f"tasks:{task}" in status
    assert "RUNNING" in status
    assert "EXITED" in status
    supervisorctl("start", "all")
    supervisorctl("remove", "tasks")
    assert alive(pid)
    assert workload.snapshot()[task]["pid"] == pid
    assert workload.snapshot()[ended]["state"] == "exited"
    assert "stopped" in supervisorctl("stop", f"tasks:{task}")
    assert workload.wait(task, "exited").wait_status == 15
    # with every task ended, the group can be taken away; the next task brings it back
    supervisorctl("remove", "tasks")
    again = workload.run(["/bin/sleep", "1000"])
    workload.wait(again, "running")
    assert set(workload.snapshot()) == {task, ended, again}
    assert workload.call("remove", [task, ended]) == {task: "", ended: ""}
    assert supervisorctl("status").count("tasks:") == 1


def test_the_log_of_the_supervisord_holds_no_spec(workload: WorkloadNode) -> None:
    task = workload.spec(["/bin/echo", "hidden-argument"], env={"SECRET": "hidden-value"})
    workload.call("add", [task])
    workload.wait(task, "exited")
    logs = "".join(path.read_text() for path in workload.paths.logs.iterdir())
    assert task in logs
    assert "hidden" not in logs


@needs_root
def test_a_memory_limit_ends_what_exceeds_it(workload: WorkloadNode) -> None:
    hog = "import sys; x = bytearray(200 << 20); print(len(x))"
    task = workload.run([sys.executable, "-c", hog], memory_limit=64 << 20)
    said = workload.wait(task, "exited", "failed")
    if said.why:
        assert "memory limit: cannot be enforced on this node" in said.why
        pytest.skip(said.why)
    assert os.WTERMSIG(said.wait_status) == 9
    modest = workload.run([sys.executable, "-c", hog], memory_limit=400 << 20)
    assert workload.finished(modest) == f"{200 << 20}\n"


@needs_root
def test_a_pids_limit_holds_a_fork_loop(workload: WorkloadNode) -> None:
    script = """
import os, signal
n = 0
try:
    while os.fork():
        n += 1
    signal.pause()
except OSError:
    print(n)
"""
    task = workload.run([sys.executable, "-c", script], pids_limit=8)
    said = workload.wait(task, "exited", "failed")
    if said.why:
        assert "pids limit: cannot be enforced on this node" in said.why
        pytest.skip(said.why)
    assert workload.stdout(task) == "7\n"


@needs_root
def test_a_cpu_limit_slows_a_loop(workload: WorkloadNode) -> None:
    task = workload.shell("while :; do :; done", nano_cpus_limit=100_000_000)
    said = workload.wait(task, "running", "failed")
    if said.why:
        assert "CPU limit: cannot be enforced on this node" in said.why
        pytest.skip(said.why)

    def used() -> float:
        fields = Path(f"/proc/{said.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    begun, before = time.monotonic(), used()
    eventually(lambda: time.monotonic() - begun > 1.5, "time passes")
    assert used() - before < 0.5 * (time.monotonic() - begun)


@pytest.fixture
def bare_node() -> Iterator[WorkloadNode]:
    """A workload supervisord that sees no cgroup mount at all."""
    with running_workload(
        prefix=["unshare", "--mount", "sh", "-c", 'umount -R /sys/fs/cgroup && exec "$@"', "sh"]
    ) as running:
        yield running


@needs_root
def test_without_cgroups_limits_are_refused_in_words(bare_node: WorkloadNode) -> None:
    task = bare_node.run(["/bin/true"], memory_limit=64 << 20)
    assert bare_node.wait(task, "failed").why.startswith("limits: cannot be enforced on this node: no right to cgroups")


@needs_root
def test_without_cgroups_daemons_end_with_their_task_and_its_supervisor(bare_node: WorkloadNode) -> None:
    script = "(setsid sleep 1000 & echo $! > {0}.new; mv {0}.new {0}) & sleep 0.01; while [ ! -e {0} ]; do :; done; {1}"

    def daemon_of(task: str) -> int:
        path = bare_node.paths.task(task) / "work" / "pid"
        eventually(path.exists, "the daemon runs")
        return int(path.read_text())

    task = bare_node.shell(script.format("pid", "exit 5"))
    daemon = daemon_of(task)
    assert os.waitstatus_to_exitcode(bare_node.wait(task, "exited").wait_status) == 5
    eventually(lambda: not alive(daemon), "the daemon has ended")
    task = bare_node.shell(script.format("pid", "sleep 1000"))
    daemon = daemon_of(task)
    bare_node.kill()
    bare_node.start()
    assert not alive(daemon)
    task = bare_node.shell(script.format("pid", "sleep 1000"))
    daemon = daemon_of(task)
    assert bare_node.stop() == 0
    assert not alive(daemon)
