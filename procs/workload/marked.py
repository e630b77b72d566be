"""Tasks without cgroups: found again by a variable in their environment (DESIGN §7).

For a node without rights to cgroups. This supervisord is the subreaper, so that a daemon's parent is us and nobody
waits for it in vain, and each task carries its id in SWARMVISOR_TASK_ID. A process that empties its environment and
leaves its session escapes this; that is why cgroups come first, and why limits are refused here.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from procs.workload.containment import Entry, Limits
from swarm.errors import Refused

VARIABLE = "SWARMVISOR_TASK_ID"
PR_SET_CHILD_SUBREAPER = 36
ROUNDS = 20
"""Scans of /proc for one kill: what is killed may have forked meanwhile."""


class MarkedProcesses:
    """The processes that carry one of our task ids."""

    name = "marked"

    def __init__(self, why: str, known: Callable[[], Iterable[str]], *, proc: Path = Path("/proc")) -> None:
        """`why` there are no cgroups; `known` names the tasks of this node, from their directories."""
        self._why = why
        self._known = known
        self._proc = proc

    def become_subreaper(self) -> None:
        """Adopt the orphans of our tasks. Raises OSError."""
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def end_all(self) -> None:
        self._kill(set(self._known()))

    def prepare(self, task_id: str, limits: Limits) -> Entry:
        if limits:
            raise Refused(
                f"limits: cannot be enforced on this node: {self._why}",
                remedy="run the node as root or with a delegated cgroup, or drop the limits",
            )
        return Entry(env={VARIABLE: task_id})

    def end(self, task_id: str) -> None:
        self._kill({task_id})

    def forget(self, task_id: str) -> None:
        """Nothing was made."""

    def sweep(self) -> bool:
        return False

    def close(self, deadline: float) -> None:
        end = time.monotonic() + deadline
        while self._kill(set(self._known())) and time.monotonic() < end:
            continue

    def find(self, tasks: set[str]) -> list[int]:
        """Pids of live processes whose environment carries one of these task ids."""
        pids = [int(entry) for entry in os.listdir(self._proc) if entry.isdigit()]
        return [pid for pid in pids if pid != os.getpid() and self._task_of(pid) in tasks]

    def _task_of(self, pid: int) -> str | None:
        try:
            environ = (self._proc / str(pid) / "environ").read_bytes()  # empty for a zombie
        except OSError:
            return None  # gone meanwhile, or of another user: then not ours to kill either
        prefix = f"{VARIABLE}=".encode()
        for variable in environ.split(b"\0"):
            if variable.startswith(prefix):
                return os.fsdecode(variable[len(prefix) :])
        return None

    def _kill(self, tasks: set[str]) -> bool:
        """SIGKILL until none is found any more; False: none was there at the last look."""
        for _ in range(ROUNDS):
            pids = self.find(tasks)
            if not pids:
                return False
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        return True
