from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procs.agent.reporter import Report, ReportQueue
from swarm.api import types_pb2

S = types_pb2.TaskState
STATES = [S.ACCEPTED, S.PREPARING, S.READY, S.STARTING, S.RUNNING, S.COMPLETE]


def report(task_id: str, state: int, version: int = 1) -> Report:
    return Report(task_id, types_pb2.TaskStatus(state=state), version)  # type: ignore[arg-type]


def test_the_newest_status_of_a_task_replaces_the_waiting_one_and_a_lower_one_is_dropped() -> None:
    queue = ReportQueue()
    queue.put(report("a", S.STARTING))
    queue.put(report("a", S.RUNNING, 2))
    queue.put(report("a", S.READY, 3))
    assert [(r.task_id, r.status.state, r.version) for r in queue.take()] == [("a", S.RUNNING, 2)]


def test_only_one_batch_is_on_its_way() -> None:
    queue = ReportQueue()
    queue.put(report("a", S.RUNNING))
    queue.take()
    queue.put(report("b", S.RUNNING))
    assert not queue.ready
    with pytest.raises(ValueError, match="on its way"):
        queue.take()
    assert [r.task_id for r in queue.arrived()] == ["a"]
    assert queue.ready


def test_what_did_not_arrive_goes_first_again_unless_something_newer_waits() -> None:
    queue = ReportQueue()
    for name in "abc":
        queue.put(report(name, S.STARTING))
    queue.take(2)
    queue.put(report("a", S.RUNNING, 2))
    queue.failed()
    assert [(r.task_id, r.status.state) for r in queue.take()] == [
        ("a", S.RUNNING),
        ("b", S.STARTING),
        ("c", S.STARTING),
    ]


def test_a_removed_task_is_not_reported_not_even_again() -> None:
    queue = ReportQueue()
    queue.put(report("a", S.RUNNING))
    queue.put(report("b", S.RUNNING))
    queue.take(1)
    queue.forget("a")
    queue.forget("b")
    queue.failed()
    assert len(queue) == 0


def test_a_batch_stays_below_what_a_manager_takes() -> None:
    queue = ReportQueue()
    for number in range(5):
        status = types_pb2.TaskStatus(state=S.FAILED, err="x" * 1_000_000)
        queue.put(Report(str(number), status, 1))
    sizes = []
    while queue.ready:
        batch = queue.take()
        sizes.append(len(batch))
        queue.arrived()
    assert sizes == [3, 2]


@given(
    st.permutations([(task, state) for task in range(10) for state in STATES]),
    st.lists(st.booleans(), min_size=400, max_size=400),
    st.randoms(use_true_random=False),
)
def test_all_finals_arrive_in_order_with_failures_in_between(
    order: list[tuple[int, int]], breaks: list[bool], random: object
) -> None:
    """The reference's reporter scenario: each task's states in order, tasks interleaved, one send in ten fails."""
    progress = dict.fromkeys(range(10), 0)
    queue = ReportQueue()
    received: dict[str, list[int]] = {}
    failures = iter(number % 10 == 0 and fails for number, fails in enumerate(breaks))

    def send() -> None:
        batch = queue.take()
        if next(failures, False):
            queue.failed()
            return
        for one in batch:
            received.setdefault(one.task_id, []).append(one.status.state)
        queue.arrived()

    for number, (task, _) in enumerate(order):
        progress[task] += 1
        queue.put(report(str(task), STATES[progress[task] - 1], progress[task]))
        if number % 3 == 0 and queue.ready:
            send()
    while queue.ready:
        send()
    assert len(received) == 10
    for states in received.values():
        assert states[-1] == S.COMPLETE
        assert states == sorted(set(states)), "went back, or arrived twice"


def test_a_new_session_reports_again_without_losing_what_waits() -> None:
    queue = ReportQueue()
    queue.put(report("a", S.COMPLETE, 5))
    queue.put(report("b", S.RUNNING, 2))
    queue.take(1)
    queue.restart([report("a", S.RUNNING, 4), report("c", S.RUNNING)])
    assert {(r.task_id, r.status.state) for r in queue.take()} == {
        ("a", S.COMPLETE),
        ("b", S.RUNNING),
        ("c", S.RUNNING),
    }
