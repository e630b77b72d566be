"""A real workload supervisord for the tests, in directories of its own."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ipc.bus import Bus
from ipc.topics import TaskProcess
from procs.workload.cgroup import subtree_name
from swarm.errors import Unreachable
from swarm.identity import new_id
from swarm.paths import Paths
from swarm.supervisor_rpc import SupervisorClient
from swarm.workload import EXIT, SPEC, STDERR, STDOUT, TaskExit, TaskSpec
from tests.tools.scratch import scratch

DEADLINE = 20.0
NOBODY = 65534


def eventually(found: Callable[[], Any], what: str, deadline: float = DEADLINE) -> Any:
    """The first true answer of `found`: for things that nobody announces (a process of another program is gone)."""
    end = time.monotonic() + deadline
    while not (answer := found()):
        assert time.monotonic() < end, f"not within {deadline} s: {what}"
        select.select([], [], [], 0.005)
    return answer


def alive(pid: int) -> bool:
    """Whether `pid` runs (a zombie does not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(b")")[2].split()[0] not in (b"Z", b"X")


class WorkloadNode:
    """`python -m procs.workload` as a child of the test, and what the agent would do with it."""

    def __init__(self, base: Path, *, prefix: Iterable[str] = ()) -> None:
        """`prefix`: a command that runs the supervisord as its last arguments say."""
        self.paths = Paths(state=base / "state", runtime=base / "run")
        for directory in (self.paths.state, self.paths.tasks, self.paths.runtime, self.paths.bus):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.rpc = SupervisorClient(self.paths.workload_socket, timeout=DEADLINE)
        self.bus: Bus | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self._prefix = list(prefix)
        self.output = base / "output"

    def start(self) -> WorkloadNode:
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(self.command(), stdout=output, stderr=output)
        eventually(self._answers, "the workload supervisord answers")
        self.bus = Bus(self.paths.bus, None, ["task.*"])
        return self

    def command(self) -> list[str]:
        """What runs the supervisord in the foreground."""
        directories = ["--state-dir", str(self.paths.state), "--runtime-dir", str(self.paths.runtime)]
        return [*self._prefix, sys.executable, "-m", "procs.workload", "--node", "test", *directories]

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.output.read_text()
        try:
            return bool(self.rpc.call("supervisor.getState"))
        except Unreachable:
            return False

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.terminate()
        return self._gone()

    def kill(self) -> None:
        """SIGKILL of the supervisord alone."""
        assert self.process is not None
        self.process.kill()
        self._gone()

    def _gone(self) -> int:
        assert self.process is not None
        code = self.process.wait(DEADLINE)
        self.process = None
        self.close_bus()
        return code

    def close_bus(self) -> None:
        if self.bus is not None:
            self.bus.close()
            self.bus = None

    def close(self) -> None:
        """End everything, whatever a test left."""
        if self.process is not None:
            self.process.kill()
            self._gone()
        for root in self.cgroups():
            if (root / "cgroup.kill").exists():
                (root / "cgroup.kill").write_text("1")
        eventually(self.remove_cgroups, "the test's cgroups are empty")

    def remove_cgroups(self) -> bool:
        for root in self.cgroups():
            for at, _, _ in os.walk(root, topdown=False):
                try:
                    os.rmdir(at)
                except OSError:
                    return False
        return True

    def cgroups(self) -> list[Path]:
        """Every cgroup subtree of this node on this host."""
        name = subtree_name(self.paths.state)
        return [Path(at) / name for at, names, _ in os.walk("/sys/fs/cgroup") if name in names]

    # -- tasks -------------------------------------------------------------------------------------

    def spec(self, argv: list[str], **fields: Any) -> str:
        """Write a spec as the agent does; the task's id."""
        task_id = new_id()
        self.paths.task(task_id).mkdir(mode=0o700)
        TaskSpec(task_id=task_id, argv=argv, **{"env": {"PATH": os.environ["PATH"]}, **fields}).save(
            self.paths.task(task_id) / SPEC
        )
        return task_id

    def run(self, argv: list[str], **fields: Any) -> str:
        """Write a spec and add it; the task's id."""
        task_id = self.spec(argv, **fields)
        assert self.call("add", [task_id]) == {task_id: ""}
        return task_id

    def shell(self, script: str, **fields: Any) -> str:
        return self.run(["/bin/sh", "-c", script], **fields)

    def call(self, method: str, *args: Any) -> Any:
        return self.rpc.call(f"workload.{method}", *args)

    def snapshot(self) -> dict[str, dict[str, Any]]:
        return {entry["task_id"]: entry for entry in json.loads(self.call("snapshot"))}

    def wait(self, task_id: str, *states: str, deadline: float = DEADLINE) -> TaskProcess:
        """Wait on the bus until the task is in one of `states`."""
        return self.wait_all([task_id], *states, deadline=deadline)[task_id]

    def wait_all(self, ids: Iterable[str], *states: str, deadline: float = DEADLINE) -> dict[str, TaskProcess]:
        assert self.bus is not None
        end = time.monotonic() + deadline
        wanted = set(ids)
        while True:
            found = {}
            for task_id in wanted:
                value = self.bus.last(f"task.{task_id}")
                if value is not None and value.body.state in states:
                    found[task_id] = value.body
            if len(found) == len(wanted):
                return found
            left = end - time.monotonic()
            assert left > 0, f"not {states}: {[v.body for v in self.bus.values().values() if v.body.task_id in wanted]}"
            self.bus.poll(left)

    def stdout(self, task_id: str) -> str:
        path = self.paths.task(task_id) / STDOUT
        return path.read_text(errors="replace") if path.exists() else ""

    def stderr(self, task_id: str) -> str:
        return (self.paths.task(task_id) / STDERR).read_text(errors="replace")

    def exit(self, task_id: str) -> TaskExit:
        """The exit file, as soon as it is there."""
        path = self.paths.task(task_id) / EXIT
        eventually(path.exists, f"{path} is written")
        return TaskExit.load(path)

    def finished(self, task_id: str) -> str:
        """Wait for the end; what it printed."""
        self.wait(task_id, "exited", "failed")
        return self.stdout(task_id)


@contextmanager
def running_workload(*, prefix: Iterable[str] = ()) -> Iterator[WorkloadNode]:
    """A running workload supervisord; nothing of it is left afterwards."""
    with scratch() as base:
        node = WorkloadNode(base, prefix=prefix)
        try:
            yield node.start()
        finally:
            node.close()
