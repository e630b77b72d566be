"""The restart policy of a task (reference manager §6.7), read off the tasks of its slot.

SwarmKit keeps the history of restarts in the leader's memory and rebuilds it from the stored tasks after a failover.
Here the stored tasks *are* the history, always: every task of the slot with the same spec version, but the first, is
a restart, made at its creation. The reaper keeps `max_attempts + 1` tasks of such a slot, which is all that one needs
to know. So a new leader decides exactly as the old one would have.
"""

from __future__ import annotations

from collections.abc import Sequence

from procs.manager.orchestration.tasks import age, leaving, status_time
from procs.manager.orchestration.view import NS, nanoseconds
from swarm.api.objects_pb2 import Task
from swarm.api.types_pb2 import COMPLETE, RestartPolicy

DEFAULT_DELAY_NS = 5 * NS
"""Where the policy names none (§0.6)."""

STOP_WAIT = 60.0
"""Seconds after the delay that a replacement waits for its predecessor to stop. SwarmKit counts from the beginning of
the delay, so that delays of a minute and more do not wait at all (§11.5-40)."""


def condition(task: Task) -> RestartPolicy.RestartCondition.ValueType:
    """ANY where the spec has no policy."""
    return task.spec.restart.condition if task.spec.HasField("restart") else RestartPolicy.ANY


def delay_ns(task: Task) -> int:
    """Nanoseconds between the end of a task and the start of its replacement."""
    if not task.spec.restart.HasField("delay"):
        return DEFAULT_DELAY_NS
    return max(0, nanoseconds(task.spec.restart.delay))


def history_limit(max_attempts: int, cluster_limit: int) -> int:
    """How many tasks of a slot are kept; negative: all (§6.9)."""
    return max_attempts + 1 if max_attempts > 0 else cluster_limit


def attempts(task: Task, slot: Sequence[Task]) -> int:
    """How many restarts count against `task`, which has ended; `slot` are all tasks of its slot."""
    version = task.spec_version.index
    kin = sorted((t for t in slot if t.spec_version.index == version and not leaving(t)), key=age)
    restarts = [nanoseconds(t.meta.created_at) for t in kin[1:]]
    window = nanoseconds(task.spec.restart.window)
    if window <= 0:
        return len(restarts)
    end = status_time(task)
    return sum(1 for at in restarts if end - window < at < end)


def may_restart(task: Task, slot: Sequence[Task]) -> bool:
    """Whether the policy allows a replacement of `task`; `slot` are all tasks of its slot."""
    match condition(task):
        case RestartPolicy.NONE:
            return False
        case RestartPolicy.ON_FAILURE if task.status.state == COMPLETE:
            return False
    limit = task.spec.restart.max_attempts
    return limit == 0 or attempts(task, slot) < limit
