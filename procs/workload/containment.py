"""What keeps the processes of a task together, so that all of them can be ended: a cgroup, else a mark.

The port of `procs.workload.task`; `procs.workload.cgroup` and `procs.workload.marked` are the two ways.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Limits:
    """What a task may use at most; 0: no limit."""

    memory: int = 0
    """Bytes."""
    nano_cpus: int = 0
    """10^9 a core."""
    pids: int = 0

    def __bool__(self) -> bool:
        return bool(self.memory or self.nano_cpus or self.pids)


@dataclass(frozen=True)
class Entry:
    """How the forked child enters its containment."""

    cgroups: list[str] = field(default_factory=list)
    """`cgroup.procs` files, into each of which the child writes itself."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables added to the task's own."""


class Containment(Protocol):
    """One way of holding on to all processes of a task, double-forked daemons included."""

    name: str
    """`cgroup` or `marked`, for the log."""

    def end_all(self) -> None:
        """End every task's processes of an earlier life of this workload, and wait until they are gone."""
        ...

    def prepare(self, task_id: str, limits: Limits) -> Entry:
        """Make room for a task. Raises Refused if a limit cannot be enforced, OSError if the system refuses."""
        ...

    def end(self, task_id: str) -> None:
        """SIGKILL everything of the task that still runs. Does not wait."""
        ...

    def forget(self, task_id: str) -> None:
        """The task is over: free what `prepare` made as soon as its last process is gone."""
        ...

    def sweep(self) -> bool:
        """Free what could not be freed before. Returns whether something is left for later."""
        ...

    def close(self, deadline: float) -> None:
        """Free everything; wait at most `deadline` seconds for processes that are being killed."""
        ...
