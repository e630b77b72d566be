"""How a task ends: by itself, by its stop signal, by force, with its supervisord; and what is kept of it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarm.exits import ExitCode
from swarm.workload import EXIT
from tests.integration.workload_node import NOBODY, WorkloadNode, alive, eventually, running_workload

needs_cgroups = pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to cgroups")


@pytest.fixture
def workload() -> Iterator[WorkloadNode]:
    with running_workload() as running:
        yield running


DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open(sys.argv[1], "w").write(str(os.getpid()))
        os.close(1); os.close(2)
        time.sleep(1000)
    os._exit(0)
os.wait()
"""


def daemon_of(workload: WorkloadNode, task: str) -> int:
    """The pid of the double-forked process that the task has started in its work directory."""
    path = workload.paths.task(task) / "work" / "daemon"
    return int(eventually(lambda: path.exists() and path.read_text(), "the daemon runs"))


def run_with_daemon(workload: WorkloadNode, then: str) -> str:
    """A task that leaves a double-forked daemon (setsid, re-parented) and goes on with the shell command `then`."""
    return workload.shell(f"python3 -c '{DAEMON}' daemon; {then}")


@pytest.mark.parametrize("code", [0, 1, 3, 127, 255])
def test_an_exit_code_is_kept(workload: WorkloadNode, code: int) -> None:
    task = workload.shell(f"exit {code}")
    said = workload.wait(task, "exited")
    assert os.waitstatus_to_exitcode(said.wait_status) == code
    kept = workload.exit(task)
    assert (kept.wait_status, kept.pid, kept.start_ticks) == (said.wait_status, said.pid, said.start_ticks)
    assert (kept.started_at, kept.exited_at, kept.why) == (said.started_at, said.exited_at, "")
    assert kept.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert said.exited_at > said.started_at


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGRTMIN + 3])
def test_the_signal_that_ended_a_task_is_kept(workload: WorkloadNode, number: int) -> None:
    task = workload.run(["/bin/sleep", "1000"])
    os.kill(workload.wait(task, "running").pid, number)
    said = workload.wait(task, "exited")
    assert os.WIFSIGNALED(said.wait_status)
    assert os.WTERMSIG(said.wait_status) == number


def test_stop_sends_the_tasks_own_signal(workload: WorkloadNode) -> None:
    task = workload.shell(
        "trap 'echo got it; exit 7' QUIT; echo ready; while :; do sleep 0.05; done", stop_signal=signal.SIGQUIT
    )
    eventually(lambda: workload.stdout(task) == "ready\n", "the trap is set")
    assert workload.call("stop", [task]) == {task: ""}
    said = workload.wait(task, "exited")
    assert os.waitstatus_to_exitcode(said.wait_status) == 7
    assert workload.stdout(task) == "ready\ngot it\n"


def test_a_task_that_ignores_its_stop_signal_is_killed_after_its_own_grace(workload: WorkloadNode) -> None:
    deaf = "trap '' TERM; echo ready; while :; do sleep 0.05; done"
    graces = {workload.shell(deaf, stop_grace=grace): grace for grace in (0.3, 1.5)}
    for task in graces:
        eventually(lambda task=task: workload.stdout(task) == "ready\n", "the trap is set")
    asked = time.time()
    workload.call("stop", list(graces))
    workload.wait_all(graces, "stopping", "exited")
    for task, grace in graces.items():
        said = workload.wait(task, "exited")
        assert os.WTERMSIG(said.wait_status) == signal.SIGKILL
        assert grace <= said.exited_at / 1e9 - asked < grace + 0.8


def test_stop_again_does_not_prolong_the_grace(workload: WorkloadNode) -> None:
    task = workload.shell("trap 'echo again' TERM; echo ready; while :; do sleep 0.05; done", stop_grace=1.0)
    eventually(lambda: workload.stdout(task) == "ready\n", "the trap is set")
    asked = time.time()
    workload.call("stop", [task])
    eventually(lambda: "again" in workload.stdout(task), "the signal arrived")
    assert workload.call("stop", [task]) == {task: ""}
    said = workload.wait(task, "exited")
    assert said.exited_at / 1e9 - asked < 1.8
    assert workload.stdout(task).count("again") == 1
    assert workload.call("stop", [task]) == {task: ""}


def test_a_stop_right_after_the_start_is_not_lost(workload: WorkloadNode) -> None:
    tasks = [workload.spec(["/bin/sleep", "1000"], stop_grace=30.0) for _ in range(30)]
    workload.call("add", tasks)
    assert workload.call("stop", tasks) == dict.fromkeys(tasks, "")
    for said in workload.wait_all(tasks, "exited", deadline=10.0).values():
        assert os.WTERMSIG(said.wait_status) == signal.SIGTERM


def test_signal_reaches_the_main_process_and_nothing_else_happens(workload: WorkloadNode) -> None:
    task = workload.shell("trap 'echo usr1' USR1; echo ready; while :; do sleep 0.05; done")
    eventually(lambda: workload.stdout(task) == "ready\n", "the trap is set")
    assert workload.call("signal", [task], int(signal.SIGUSR1)) == {task: ""}
    eventually(lambda: "usr1" in workload.stdout(task), "the signal arrived")
    assert workload.snapshot()[task]["state"] == "running"
    ended = workload.run(["/bin/true"])
    workload.wait(ended, "exited")
    assert "does not run" in workload.call("signal", [ended], int(signal.SIGUSR1))[ended]


def test_a_running_task_is_not_removed(workload: WorkloadNode) -> None:
    task = workload.run(["/bin/sleep", "1000"])
    workload.wait(task, "running")
    assert "still runs" in workload.call("remove", [task])[task]
    assert task in workload.snapshot()


def test_remove_forgets_task_topic_and_cgroup_but_not_the_directory(workload: WorkloadNode) -> None:
    task = workload.run(["/bin/true"])
    workload.wait(task, "exited")
    assert workload.call("remove", [task]) == {task: ""}
    assert workload.snapshot() == {}
    assert workload.bus is not None
    eventually(lambda: workload.bus.poll(0.05) or workload.bus.last(f"task.{task}") is None, "the topic is retired")
    assert [path for root in workload.cgroups() for path in root.glob("?" * 25)] == []
    assert workload.paths.task(task).is_dir()
    assert workload.call("remove", [task]) == {task: ""}


@needs_cgroups
def test_a_double_forked_daemon_ends_with_its_task(workload: WorkloadNode) -> None:
    task = run_with_daemon(workload, "exit 4")
    daemon = daemon_of(workload, task)
    said = workload.wait(task, "exited")
    assert os.waitstatus_to_exitcode(said.wait_status) == 4
    eventually(lambda: not alive(daemon), "the daemon has ended")


@needs_cgroups
def test_a_double_forked_daemon_ends_when_the_grace_is_over(workload: WorkloadNode) -> None:
    deaf = f"trap '' TERM; python3 -c '{DAEMON}' daemon; while :; do sleep 0.05; done"
    task = workload.shell(deaf, stop_grace=0.5)
    daemon = daemon_of(workload, task)
    workload.call("stop", [task])
    workload.wait(task, "stopping")
    assert alive(daemon)
    assert workload.wait(task, "exited").wait_status == signal.SIGKILL
    eventually(lambda: not alive(daemon), "the daemon has ended")


@needs_cgroups
def test_a_fork_loop_ends_with_its_task(workload: WorkloadNode) -> None:
    task = workload.shell("while :; do sleep 77.125 & sleep 0.01; done", stop_grace=0.0)

    def sleepers() -> list[str]:
        return [pid for pid in os.listdir("/proc") if pid.isdigit() and b"77.125" in command_line(pid)]

    eventually(lambda: len(sleepers()) > 10, "it forks")
    workload.call("stop", [task])
    workload.wait(task, "exited")
    eventually(lambda: not sleepers(), "all have ended")


def command_line(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def test_sigterm_stops_all_tasks_at_once_each_with_its_own_grace(workload: WorkloadNode) -> None:
    deaf = "trap '' TERM; echo ready; while :; do sleep 0.05; done"
    polite = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.05; done"
    tasks = [
        workload.shell(deaf, stop_grace=0.5),
        workload.shell(deaf, stop_grace=1.0),
        workload.shell(polite),
        workload.shell(polite),
    ]
    for task in tasks:
        eventually(lambda task=task: workload.stdout(task) == "ready\n", "the trap is set")
    pids = [said.pid for said in workload.wait_all(tasks, "running").values()]
    begun = time.monotonic()
    assert workload.stop() == 0
    assert time.monotonic() - begun < 4.0
    ends = [workload.exit(task) for task in tasks]
    assert [end.wait_status for end in ends] == [9, 9, 0, 0]
    assert workload.stdout(tasks[2]) == "ready\nbye\n"
    assert not any(alive(pid) for pid in pids)
    assert workload.cgroups() == []
    assert not workload.paths.workload_socket.exists()
    assert not workload.paths.bus_socket("workload").exists()
    assert not workload.paths.workload_pid.exists()


def test_nothing_is_added_to_a_supervisor_that_shuts_down(workload: WorkloadNode) -> None:
    task = workload.shell("trap '' TERM; echo ready; while :; do sleep 0.05; done", stop_grace=2.0)
    eventually(lambda: workload.stdout(task) == "ready\n", "the trap is set")
    assert workload.process is not None
    workload.process.terminate()
    workload.wait(task, "stopping")
    late = workload.spec(["/bin/sleep", "1000"])
    assert "shutting down" in workload.call("add", [late])[late]
    workload.stop()
    assert not (workload.paths.task(late) / EXIT).exists()


@pytest.mark.parametrize("user", [{}, {"uid": NOBODY, "gid": NOBODY}], ids=["own user", "nobody"])
def test_a_sigkill_of_the_supervisor_ends_its_tasks_and_its_successor_the_rest(
    workload: WorkloadNode, user: dict[str, int]
) -> None:
    if user and os.geteuid() != 0:
        pytest.skip("needs root")
    plain = [workload.run(["/bin/sleep", "1000"], **user) for _ in range(5)]
    daemonized = [run_with_daemon(workload, "sleep 1000") for _ in range(3)]
    daemons = [daemon_of(workload, task) for task in daemonized]
    pids = [said.pid for said in workload.wait_all(plain + daemonized, "running").values()]
    workload.kill()
    eventually(lambda: not any(alive(pid) for pid in pids), "the tasks have ended", deadline=2.0)
    assert not any((workload.paths.task(task) / EXIT).exists() for task in plain + daemonized)
    workload.start()
    assert not any(alive(daemon) for daemon in daemons), "the successor ends what was double-forked before it answers"
    assert workload.snapshot() == {}
    assert workload.wait(workload.run(["/bin/true"]), "exited").wait_status == 0


def test_a_twin_is_refused_and_harms_nobody(workload: WorkloadNode) -> None:
    task = workload.run(["/bin/sleep", "1000"])
    pid = workload.wait(task, "running").pid
    twin = subprocess.run(workload.command(), capture_output=True, text=True, check=False, timeout=20)
    assert twin.returncode == ExitCode.TWIN
    assert "held by process" in twin.stderr
    assert alive(pid)
    assert workload.snapshot()[task]["state"] == "running"


def test_a_restart_by_supervisorctl_ends_this_life_as_a_crash_with_every_end_kept(workload: WorkloadNode) -> None:
    task = workload.run(["/bin/sleep", "1000"])
    workload.wait(task, "running")
    epoch = workload.snapshot()[task]["epoch"]
    assert workload.process is not None
    workload.rpc.call("supervisor.restart")
    assert workload.process.wait(20) == ExitCode.FAILED  # the node's supervisord starts another
    assert workload.exit(task).wait_status == signal.SIGTERM
    workload.close_bus()
    workload.start()
    later = workload.run(["/bin/sleep", "1000"])
    workload.wait(later, "running")
    assert workload.snapshot()[later]["epoch"] > epoch
    assert set(workload.snapshot()) == {later}


def test_it_outlives_the_process_that_started_it(workload: WorkloadNode) -> None:
    workload.stop()
    pid_file = workload.paths.workload_pid
    as_its_supervisord = 'SUPERVISOR_ENABLED=1 SWARMVISOR_SUPERVISOR_PID=$$ "$@" & wait'
    parent = subprocess.Popen(["/bin/sh", "-c", as_its_supervisord, "sh", *workload.command()])
    try:
        eventually(pid_file.exists, "it runs")
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait(20)
    pid = int(pid_file.read_text())
    try:
        eventually(workload.paths.workload_socket.exists, "it answers")
        task = workload.spec(["/bin/sleep", "1000"])
        workload.call("add", [task])
        assert alive(workload.snapshot()[task]["pid"])
        assert alive(pid)
    finally:
        os.kill(pid, signal.SIGTERM)
        eventually(lambda: not alive(pid), "it has ended")
    assert workload.exit(task).wait_status == signal.SIGTERM
