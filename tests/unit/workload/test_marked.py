"""Without cgroups: processes found by their mark."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from procs.workload.containment import Limits
from procs.workload.marked import VARIABLE, MarkedProcesses
from swarm.errors import Refused
from swarm.identity import new_id


def marked(*known: str, proc: Path = Path("/proc")) -> MarkedProcesses:
    return MarkedProcesses("no right to cgroups", lambda: known, proc=proc)


def test_only_processes_with_our_mark_are_found(tmp_path: Path) -> None:
    ours, other = new_id(), new_id()
    environments = {
        "10": f"A=1\0{VARIABLE}={ours}\0",
        "11": f"{VARIABLE}={other}\0",
        "12": f"X{VARIABLE}={ours}\0",
        "13": "",
        "14": f"{VARIABLE}={ours}x\0",
        "self": f"{VARIABLE}={ours}\0",
        str(os.getpid()): f"{VARIABLE}={ours}\0",
    }
    for pid, environ in environments.items():
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "environ").write_text(environ)
    (tmp_path / "15").mkdir()  # gone between the listing and the look
    assert marked(proc=tmp_path).find({ours}) == [10]


def test_a_task_gets_its_mark_and_no_limit() -> None:
    task = new_id()
    assert marked().prepare(task, Limits()).env == {VARIABLE: task}
    with pytest.raises(Refused, match="cannot be enforced on this node: no right to cgroups"):
        marked().prepare(task, Limits(memory=1))


def test_everything_with_the_mark_is_ended() -> None:
    task, other = new_id(), new_id()
    script = "import os, time; os.fork() and os.wait(); print('up', flush=True); time.sleep(1000)"
    processes = {
        name: subprocess.Popen(
            [sys.executable, "-S", "-c", script if name == task else script.replace("os.fork()", "0")],
            env={VARIABLE: name},
            stdout=subprocess.PIPE,
        )
        for name in (task, other)
    }
    for process in processes.values():
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
    try:
        assert len(marked().find({task})) == 2
        marked().end(task)
        assert processes[task].wait(20) == -signal.SIGKILL
        assert marked().find({task}) == []
        assert processes[other].poll() is None
        marked(other).end_all()
        assert processes[other].wait(20) == -signal.SIGKILL
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()
