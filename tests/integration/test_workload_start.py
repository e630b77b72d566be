"""How a task begins: its surroundings are exactly what its spec says, and a step that fails is named."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarm.identity import new_id
from swarm.supervisor_rpc import SupervisorFault
from swarm.workload import SPEC
from tests.integration.workload_node import NOBODY, WorkloadNode, alive, running_workload

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def workload() -> Iterator[WorkloadNode]:
    with running_workload() as running:
        yield running


as_nobody = {"uid": NOBODY, "gid": NOBODY}


def test_a_task_runs_and_says_so(workload: WorkloadNode) -> None:
    task = workload.run(["/bin/sleep", "1000"])
    said = workload.wait(task, "running")
    assert alive(said.pid)
    assert Path(f"/proc/{said.pid}/cmdline").read_bytes() == b"/bin/sleep\x001000\x00"
    assert said.started_at > 0
    assert said.exited_at == 0


def test_percent_signs_quotes_and_newlines_reach_the_command_unchanged(workload: WorkloadNode) -> None:
    argv = [sys.executable, "-c", "import json, sys; print(json.dumps(sys.argv[1:]))"]
    odd = ["100%", "%(ENV_HOME)s", "%%", "; rm", "a\nb", "'\"\\", "", "ü €", "$HOME"]
    task = workload.run(argv + odd)
    assert json.loads(workload.finished(task)) == odd


def test_the_environment_is_exactly_the_given_one(workload: WorkloadNode) -> None:
    env = {"PLAIN": "1", "PERCENT": "%(x)s", "EMPTY": "", "UTF": "ü"}
    task = workload.run(["/usr/bin/env", "-0"], env=env)
    said = dict(entry.split("=", 1) for entry in workload.finished(task).split("\0") if entry)
    assert said == env


def test_a_task_inherits_no_descriptor(workload: WorkloadNode) -> None:
    script = (
        "import os; print(sorted((int(f), os.readlink('/proc/self/fd/' + f)) for f in os.listdir('/proc/self/fd')[:3]))"
    )
    listing = workload.run([sys.executable, "-c", script])
    count = workload.run([sys.executable, "-c", "import os; print(len(os.listdir('/proc/self/fd')))"])
    directory = workload.paths.task(listing)
    assert eval(workload.finished(listing)) == [
        (0, "/dev/null"),
        (1, str(directory / "stdout")),
        (2, str(directory / "stderr")),
    ]
    # the three, and the one that lists the directory
    assert workload.finished(count) == "4\n"


def test_signals_are_as_in_a_fresh_process(workload: WorkloadNode) -> None:
    task = workload.run(["/bin/cat", "/proc/self/status"])
    masks = dict(line.split(":\t") for line in workload.finished(task).splitlines() if line.startswith("Sig"))
    # 32 and 33 are the C library's own: nobody can set them, and whoever was started by posix_spawn (make does) and all
    # its children have them ignored.
    own = 1 << 31 | 1 << 32
    assert {name: int(masks[name], 16) & ~own for name in ("SigBlk", "SigIgn", "SigCgt")} == dict.fromkeys(
        ("SigBlk", "SigIgn", "SigCgt"), 0
    )


def test_a_task_is_a_session_of_its_own_and_dies_with_its_supervisor_by_signal(workload: WorkloadNode) -> None:
    script = (
        "import ctypes, os; signal = ctypes.c_int(); ctypes.CDLL(None).prctl(2, ctypes.byref(signal));"
        "print(os.getsid(0) == os.getpid(), signal.value)"
    )
    task = workload.run([sys.executable, "-c", script])
    assert workload.finished(task) == f"True {int(signal.SIGKILL)}\n"


@needs_root
def test_a_task_runs_as_its_user_with_its_groups_and_umask(workload: WorkloadNode) -> None:
    task = workload.shell(
        "id -u; id -g; id -G; umask; grep Cap /proc/self/status", **as_nobody, groups=[7, 9], umask=0o027
    )
    lines = workload.finished(task).split("\n")
    assert lines[:4] == [str(NOBODY), str(NOBODY), f"{NOBODY} 7 9", "0027"]
    capabilities = dict(line.split(":\t") for line in lines[4:] if line)
    assert capabilities["CapEff"] == capabilities["CapPrm"] == "0" * 16


@needs_root
def test_a_task_of_another_user_reaches_nothing_of_the_node(workload: WorkloadNode) -> None:
    secret = workload.paths.certificates / "swarm-workload.key"
    secret.parent.mkdir()
    secret.write_text("secret")
    secret.chmod(0o644)  # the closed directories must suffice
    other = workload.spec(["/bin/true"], env={"PASSWORD": "hidden"})
    pid = workload.process.pid if workload.process else 0
    attempts = [
        f"cat {secret}",
        f"cat {workload.paths.task(other) / SPEC}",
        f"ls {workload.paths.state}",
        f"ls {workload.paths.runtime}",
        f"cat /proc/{pid}/environ",
        f"kill -9 {pid}",
        "ls ..",
        "cat ../spec",
        "ls ../../..",
    ]
    task = workload.shell(
        "; ".join(f"({attempt}) && echo REACHED {number}" for number, attempt in enumerate(attempts)), **as_nobody
    )
    assert workload.finished(task) == ""
    assert workload.stderr(task).count("ermission denied") + workload.stderr(task).count("not permitted") == len(
        attempts
    )
    assert "hidden" not in workload.stderr(task)


@needs_root
def test_a_task_may_write_its_work_directory_and_reopen_its_output(workload: WorkloadNode) -> None:
    task = workload.shell(
        "echo x > here && cat here && echo again >> /dev/stdout && echo wrong >> /dev/stderr; pwd", **as_nobody
    )
    work = workload.paths.task(task) / "work"
    assert workload.finished(task) == f"x\nagain\n{work}\n"
    assert workload.stderr(task) == "wrong\n"
    assert (work / "here").stat().st_uid == NOBODY


def test_directory_rlimits_and_oom_score_are_set(workload: WorkloadNode) -> None:
    task = workload.shell(
        "pwd; ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj",
        cwd="/usr",
        rlimits={"nofile": [333, 444]},
        oom_score_adj=777,
    )
    assert workload.finished(task) == "/usr\n333\n444\n777\n"


def test_limits_of_the_supervisor_are_inherited_unchanged(workload: WorkloadNode) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    task = workload.run([sys.executable, "-c", "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE))"])
    assert workload.finished(task) == f"({soft}, {hard})\n"


def test_a_wrapper_stands_before_the_command(workload: WorkloadNode) -> None:
    task = workload.run(["/bin/echo", "a b"], wrapper=["env", "A=1"])
    assert workload.finished(task) == "a b\n"


def test_a_command_is_found_in_the_path_of_the_task(workload: WorkloadNode, short_dir: Path) -> None:
    program = short_dir / "program"
    program.write_text("#!/bin/sh\necho found\n")
    program.chmod(0o755)
    task = workload.run(["program"], env={"PATH": f"/nonexistent:{short_dir}:/bin"})
    assert workload.finished(task) == "found\n"


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"argv": ["no-such-command"]}, "command no-such-command: not found in PATH"),
        ({"argv": ["/no/such/command"]}, "command /no/such/command: No such file or directory"),
        ({"argv": ["/etc"]}, "command /etc: Permission denied"),
        ({"argv": ["/etc/passwd"]}, "command /etc/passwd: Permission denied"),
        ({"argv": ["/bin/true"], "cwd": "/no/such/directory"}, "working directory /no/such/directory: No such file"),
        ({"argv": ["/bin/true"], "cwd": "/etc/passwd"}, "working directory /etc/passwd: Not a directory"),
        ({"argv": ["/bin/true"], "rlimits": {"nofile": [5, 4]}}, "rlimit RLIMIT_NOFILE: "),
        ({"argv": ["/bin/true"], "rlimits": {"nofile": [0, 1 << 40]}}, "rlimit RLIMIT_NOFILE: "),
        ({"argv": ["/bin/true", "a\0b"]}, "command /bin/true: embedded null byte"),
        ({"argv": ["/bin/true"], "env": {"A=B": "c"}}, "command /bin/true: illegal environment variable name"),
        ({"argv": ["/bin/echo"], "env": {"A": "x" * 4_000_000}}, "command /bin/echo: Argument list too long"),
    ],
)
def test_a_step_that_fails_is_named(workload: WorkloadNode, fields: dict[str, object], why: str) -> None:
    task = workload.run(**fields)  # type: ignore[arg-type]
    said = workload.wait(task, "failed")
    assert said.why.startswith(why)
    assert workload.exit(task).why == said.why
    assert said.exited_at >= said.started_at > 0


@needs_root
@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({**as_nobody, "groups": list(range(70_000))}, "groups: "),
        ({**as_nobody, "cwd": "/root"}, "working directory /root: Permission denied"),
    ],
)
def test_a_user_that_cannot_be_is_named(workload: WorkloadNode, fields: dict[str, object], why: str) -> None:
    task = workload.run(["/bin/true"], **fields)
    assert workload.wait(task, "failed").why.startswith(why)


def test_a_failed_start_leaves_no_process_and_no_cgroup(workload: WorkloadNode) -> None:
    task = workload.run(["no-such-command"])
    said = workload.wait(task, "failed")
    assert not alive(said.pid)
    assert workload.call("remove", [task]) == {task: ""}
    assert [path for root in workload.cgroups() for path in root.glob(f"{task}*")] == []


def test_a_second_start_is_refused(workload: WorkloadNode) -> None:
    task = workload.run(["/bin/sleep", "1000"])
    pid = workload.wait(task, "running").pid
    assert "has been started already" in workload.call("add", [task])[task]
    ended = workload.run(["/bin/true"])
    workload.wait(ended, "exited")
    assert "has been started already" in workload.call("add", [ended])[ended]
    with pytest.raises(SupervisorFault):
        workload.rpc.call("supervisor.startProcess", f"tasks:{ended}", True)
    assert workload.snapshot()[task]["pid"] == pid
    assert workload.snapshot()[ended]["state"] == "exited"


def test_a_task_that_ended_under_an_earlier_supervisor_is_not_started_again(workload: WorkloadNode) -> None:
    task = workload.run(["/bin/true"])
    workload.exit(task)
    workload.stop()
    workload.start()
    assert "has ended already" in workload.call("add", [task])[task]
    assert workload.snapshot() == {}


def test_bad_ids_and_specs_are_answered_and_start_nothing(workload: WorkloadNode) -> None:
    unknown = new_id()
    broken = workload.spec(["/bin/true"])
    (workload.paths.task(broken) / SPEC).write_text("{")
    foreign = workload.spec(["/bin/true"])
    (workload.paths.task(foreign) / SPEC).write_bytes(
        (workload.paths.task(workload.spec(["/bin/true"])) / SPEC).read_bytes()
    )
    good = workload.spec(["/bin/true"])
    bad = ["", "..", "../../etc/passwd", "A" * 25, "a" * 24, "a" * 26, "a" * 25 + "/", "\x01"]
    answers = workload.call("add", [*bad[:-1], unknown, broken, foreign, good])
    assert {i: answers[i] for i in (good,)} == {good: ""}
    assert all("is not a task id" in answers[i] for i in bad[:-1])
    assert "No such file" in answers[unknown]
    assert "not a TaskSpec" in answers[broken]
    assert "lies in the directory of" in answers[foreign]
    assert set(workload.snapshot()) == {good}
    for method in ("add", "stop", "remove"):
        for senseless in (None, "abc", 7, [1], [["x"]], {"a": "b"}):
            with pytest.raises(SupervisorFault):
                workload.call(method, senseless)
    with pytest.raises(SupervisorFault):
        workload.call("signal", [good], "TERM")
    with pytest.raises(SupervisorFault):
        workload.call("add")


def test_what_failed_is_told_in_printable_words(workload: WorkloadNode) -> None:
    task = workload.run(["/no/\x1b[31mred\x07\udc80"])
    assert workload.wait(task, "failed").why == "command /no/\\x1b[31mred\\x07\\udc80: No such file or directory"
    assert workload.snapshot()[task]["state"] == "failed"
