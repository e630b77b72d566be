"""The task reaper: what is deleted, when, and what never (reference manager §6.9, §10.10)."""

from __future__ import annotations

import pytest

from procs.manager.allocator.allocator import Allocator
from procs.manager.orchestration.reaper import Reaper, doomed, outdated, over
from procs.manager.orchestration.replicated import Replicated
from procs.manager.orchestration.supervisor import RestartSupervisor
from procs.manager.scheduler.scheduler import Scheduler
from swarm.api.objects_pb2 import Cluster, Service, Task
from swarm.api.types_pb2 import (
    ACCEPTED,
    ASSIGNED,
    COMPLETE,
    FAILED,
    NEW,
    ORPHANED,
    PENDING,
    PREPARING,
    READY,
    REJECTED,
    REMOVE,
    RUNNING,
    SHUTDOWN,
    STARTING,
)
from tests.unit.orchestration.world import World, global_service, ids, node, service

OBSERVED = [NEW, PENDING, ASSIGNED, ACCEPTED, PREPARING, READY, STARTING, RUNNING]
ENDED = [COMPLETE, SHUTDOWN, FAILED, REJECTED, ORPHANED]


def task(id_, *, desired=SHUTDOWN, state=FAILED, service_id="s", slot=1, created=0):
    made = Task(id=id_, service_id=service_id, slot=slot, desired_state=desired)
    made.status.state = state
    made.meta.created_at.FromSeconds(created)
    return made


def world(*objects) -> World:
    w = World(Reaper(), Replicated(ids()), RestartSupervisor(ids("r")), Allocator(), Scheduler())
    w.put(*objects)
    w.settle()
    return w


@pytest.mark.parametrize("state", [*OBSERVED, *ENDED])
def test_what_counts_as_over(state) -> None:
    assert over(task("x", desired=SHUTDOWN, state=state)) == (state in (NEW, PENDING, *ENDED))
    assert not over(task("x", desired=RUNNING, state=state))


@pytest.mark.parametrize("state", [*OBSERVED, *ENDED])
def test_a_leaving_task_is_deleted_once_it_has_stopped_or_was_never_placed(state) -> None:
    assert doomed(task("x", desired=REMOVE, state=state)) == (state in (NEW, PENDING, *ENDED))


@pytest.mark.parametrize("state", [*OBSERVED, *ENDED])
def test_a_task_without_service_is_deleted_when_orphaned(state) -> None:
    assert doomed(task("x", service_id="", state=state, desired=RUNNING)) == (state == ORPHANED)


@pytest.mark.parametrize(
    ("limit", "left"),
    [(-1, "abcdef"), (0, "df"), (1, "df"), (2, "df"), (3, "def"), (4, "cdef"), (5, "bcdef"), (6, "abcdef")],
)
def test_the_oldest_go_first_but_neither_what_runs_nor_the_newest(limit, left) -> None:
    slot = [task(name, created=n) for n, name in enumerate("abcdef")]
    slot[3].status.state = RUNNING  # told to stop, and has not
    gone = {t.id for t in outdated(slot, limit)}
    assert "".join(t.id for t in slot if t.id not in gone) == left


def test_an_ended_task_that_nobody_has_judged_stays() -> None:
    slot = [task("a", desired=RUNNING), task("b", created=1)]
    assert outdated(slot, 1) == []


def test_the_history_is_kept_up_to_the_limit_of_the_cluster() -> None:
    w = world(node("a"), service("s", 1))
    w.change(Cluster, "c", lambda c: setattr(c.spec.orchestration, "task_history_retention_limit", 3))
    for _ in range(6):
        w.fail(w.running()[0].id)
        w.settle()
    assert [t.status.state for t in w.tasks()] == [FAILED, FAILED, RUNNING]


def test_a_lower_limit_trims_at_once_and_a_negative_one_never() -> None:
    w = world(node("a"), service("s", 2))
    limit = "task_history_retention_limit"
    w.change(Cluster, "c", lambda c: setattr(c.spec.orchestration, limit, -1))
    for _ in range(8):
        for t in w.running():
            w.fail(t.id)
        w.settle()
    assert len(w.tasks()) == 18
    w.change(Cluster, "c", lambda c: setattr(c.spec.orchestration, limit, 2))
    w.settle()
    assert [t.slot for t in w.tasks()] == [1, 1, 2, 2]


def test_max_attempts_keeps_as_many_as_it_needs_to_count() -> None:
    w = world(node("a"), service("s", 1, attempts=9))
    for _ in range(12):
        for t in w.running():
            w.fail(t.id)
        w.settle()
    assert len(w.tasks()) == 10


def test_a_service_that_wants_less_history_is_trimmed() -> None:
    w = world(node("a"), service("s", 1, attempts=4))
    for _ in range(4):
        w.fail(w.running()[0].id)
        w.settle()
    assert len(w.tasks()) == 5
    w.change(Service, "s", lambda s: setattr(s.spec.task.restart, "max_attempts", 1))
    w.settle()
    assert len(w.tasks()) == 2
    assert len(w.running()) == 1


def test_scaled_down_tasks_are_deleted_only_after_they_stopped() -> None:
    w = world(node("a"), service("s", 2))
    kept, leaving = w.running()
    w.stubborn.add(leaving.id)
    w.scale("s", 1)
    w.settle()
    assert [t.id for t in w.tasks()] == [kept.id, leaving.id]
    w.stubborn.clear()
    w.settle()
    assert [t.id for t in w.tasks()] == [kept.id]


def test_nothing_is_left_of_a_removed_service() -> None:
    w = world(node("a"), service("s", 3))
    w.fail(w.running()[0].id)
    w.settle()
    w.delete(Service, "s")
    w.settle()
    assert w.find(Task) == []
    assert not w.components[0]._sizes


def test_what_waits_for_deletion_when_a_leader_starts_is_found() -> None:
    w = world(node("a"), service("s", 1))
    w.agents = False
    w.components = [w.components[0]]
    w.put(
        task("gone", desired=REMOVE),
        task("stopping", desired=REMOVE, state=RUNNING),
        task("orphan", service_id="", state=ORPHANED),
        *(task(f"old{n}", created=n) for n in range(9)),
    )
    w.replace(w.components[0], Reaper())
    w.settle()
    left = {t.id for t in w.find(Task)}
    assert "gone" not in left
    assert "orphan" not in left
    assert "stopping" in left
    assert len(left) == 6  # five of the history, and what still stops


def test_tasks_of_other_modes_are_not_trimmed_here() -> None:
    w = world(node("a"), global_service("g"))
    w.put(*(task(f"x{n}", service_id="g", slot=0) for n in range(9)))
    w.settle()
    assert len(w.tasks("g")) == 9


def test_a_drained_nodes_old_tasks_are_trimmed_when_they_stop() -> None:
    w = world(node("a"), service("s", 1))
    w.change(Cluster, "c", lambda c: setattr(c.spec.orchestration, "task_history_retention_limit", 1))
    old = w.running()[0].id
    w.stubborn.add(old)
    w.availability("a", 2)
    w.put(node("b"))
    w.turn(120)
    assert [t.status.state for t in w.tasks()] == [RUNNING, RUNNING]
    w.stubborn.clear()
    w.settle()
    assert [t.node_id for t in w.tasks()] == ["b"]
