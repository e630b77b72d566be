"""Every row of reference agent-and-dispatcher §3.2 and §3.3."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procs.agent.task import (
    Advance,
    Done,
    Failed,
    Machine,
    Operation,
    Outcome,
    Process,
    conclude,
    decide,
    resolve,
)
from swarm.api import objects_pb2, types_pb2

S = types_pb2.TaskState
NOW = 1_700_000_000_123_456_789
EARLY = [S.NEW, S.PENDING, S.ASSIGNED]
LIVE = [*EARLY, S.ACCEPTED, S.PREPARING, S.READY, S.STARTING, S.RUNNING]
TERMINAL = [S.COMPLETE, S.SHUTDOWN, S.FAILED, S.REJECTED, S.REMOVE, S.ORPHANED]


def status(state: int, message: str = "", err: str = "") -> types_pb2.TaskStatus:
    return types_pb2.TaskStatus(state=state, message=message, err=err)  # type: ignore[arg-type]


def make(state: int, desired: int) -> Machine:
    task = objects_pb2.Task(id="t", desired_state=desired)  # type: ignore[arg-type]
    return Machine(task, status(state))


@pytest.mark.parametrize("state", LIVE)
@pytest.mark.parametrize("desired", [S.SHUTDOWN, S.REMOVE])
def test_a_live_task_that_should_end_is_shut_down(state: int, desired: int) -> None:
    assert decide(state, desired) is Operation.SHUTDOWN


@pytest.mark.parametrize("state", TERMINAL)
@pytest.mark.parametrize("desired", [S.RUNNING, S.COMPLETE, S.SHUTDOWN, S.REMOVE])
def test_a_terminal_task_is_left_alone(state: int, desired: int) -> None:
    assert decide(state, desired) is None


@pytest.mark.parametrize(
    ("state", "step"),
    [
        (S.NEW, Advance(S.ACCEPTED, "accepted")),
        (S.PENDING, Advance(S.ACCEPTED, "accepted")),
        (S.ASSIGNED, Advance(S.ACCEPTED, "accepted")),
        (S.ACCEPTED, Advance(S.PREPARING, "preparing")),
        (S.PREPARING, Operation.PREPARE),
        (S.READY, Advance(S.STARTING, "starting")),
        (S.STARTING, Operation.START),
        (S.RUNNING, Operation.WAIT),
    ],
)
@pytest.mark.parametrize("desired", [S.RUNNING, S.COMPLETE])
def test_each_step_on_the_way_to_running(state: int, step: object, desired: int) -> None:
    assert decide(state, desired) == step


def test_operations_run_even_where_the_state_is_the_desired_one_and_pause_points_hold() -> None:
    assert decide(S.RUNNING, S.RUNNING) is Operation.WAIT
    assert decide(S.PREPARING, S.PREPARING) is Operation.PREPARE
    assert decide(S.READY, S.READY) is None
    assert decide(S.ACCEPTED, S.ACCEPTED) is None
    assert decide(S.RUNNING, S.READY) is None


def test_a_state_of_the_future_is_taken_by_its_magnitude() -> None:
    assert decide(S.RUNNING + 1, S.SHUTDOWN) is Operation.SHUTDOWN
    assert decide(S.FAILED + 1, S.SHUTDOWN) is None
    assert decide(S.ACCEPTED + 1, S.RUNNING) is None


@pytest.mark.parametrize(
    ("state", "operation", "then", "message"),
    [
        (S.PREPARING, Operation.PREPARE, S.READY, "prepared"),
        (S.STARTING, Operation.START, S.RUNNING, "started"),
        (S.RUNNING, Operation.WAIT, S.COMPLETE, "finished"),
        (S.NEW, Operation.SHUTDOWN, S.SHUTDOWN, "shutdown"),
        (S.RUNNING, Operation.SHUTDOWN, S.SHUTDOWN, "shutdown"),
    ],
)
def test_success_moves_on_clears_the_error_and_stamps_the_time(
    state: int, operation: Operation, then: int, message: str
) -> None:
    new, outcome = conclude(status(state, "before", "an error"), operation, Done(), NOW)
    assert (new.state, new.message, new.err, outcome) == (then, message, "", Outcome.OK)
    assert new.timestamp.seconds * 10**9 + new.timestamp.nanos == NOW


@pytest.mark.parametrize(
    ("state", "operation", "then"),
    [
        (S.PREPARING, Operation.PREPARE, S.REJECTED),
        (S.STARTING, Operation.START, S.FAILED),
        (S.RUNNING, Operation.WAIT, S.FAILED),
        (S.ACCEPTED, Operation.SHUTDOWN, S.REJECTED),
        (S.RUNNING, Operation.SHUTDOWN, S.FAILED),
    ],
)
def test_failure_before_starting_rejects_and_after_it_fails_and_keeps_the_message(
    state: int, operation: Operation, then: int
) -> None:
    new, outcome = conclude(status(state, "before"), operation, Failed("why"), NOW)
    assert (new.state, new.message, new.err, outcome) == (then, "before", "why", Outcome.OK)


def test_a_failure_that_may_pass_keeps_the_state_and_shows_the_error() -> None:
    new, outcome = conclude(status(S.STARTING, "starting"), Operation.START, Failed("busy", temporary=True), NOW)
    assert (new.state, new.message, new.err, outcome) == (S.STARTING, "starting", "busy", Outcome.RETRY)


def test_the_process_shows_from_starting_on_with_its_exit_code() -> None:
    process = Process("t", pid=42)
    new, _ = conclude(status(S.STARTING), Operation.START, Done(process), NOW)
    assert (new.container.container_id, new.container.pid, new.container.exit_code) == ("t", 42, 0)
    ended, _ = conclude(new, Operation.WAIT, Failed("task: non-zero exit (1)", exit_code=1), NOW)
    assert (ended.state, ended.container.pid, ended.container.exit_code) == (S.FAILED, 42, 1)
    early, _ = conclude(status(S.PREPARING), Operation.PREPARE, Done(process), NOW)
    assert not early.HasField("container")


def test_a_status_that_says_the_same_keeps_its_time() -> None:
    before, _ = conclude(status(S.STARTING), Operation.START, Failed("busy", temporary=True), NOW)
    after, _ = conclude(before, Operation.START, Failed("busy", temporary=True), NOW + 5)
    assert after == before


@pytest.mark.parametrize("state", EARLY)
def test_resolving_accepts_and_leaves_the_time_alone(state: int) -> None:
    new = resolve(status(state, err="x"))
    assert (new.state, new.message, new.err) == (S.ACCEPTED, "accepted", "")
    assert not new.HasField("timestamp")
    assert resolve(new) == new


@pytest.mark.parametrize(
    ("state", "then"),
    [(S.ASSIGNED, S.REJECTED), (S.READY, S.REJECTED), (S.STARTING, S.FAILED), (S.RUNNING, S.FAILED)]
    + [(s, s) for s in TERMINAL],
)
def test_resolving_fails_by_state(state: int, then: int) -> None:
    new = resolve(status(state), "no such bundle")
    assert (new.state, new.message, new.err) == (then, "resolving controller failed", "no such bundle")


def test_the_machine_runs_one_operation_at_a_time_and_counts_each_once() -> None:
    machine = make(S.ASSIGNED, S.ACCEPTED)
    assert machine.advance(NOW) is None
    assert machine.status.state == S.ACCEPTED
    ready = objects_pb2.Task(id="t", desired_state=S.READY)
    assert machine.update(ready)
    assert machine.advance(NOW) is Operation.PREPARE
    assert machine.advance(NOW) is None
    machine.finish(Operation.PREPARE, Done(), NOW)
    assert machine.advance(NOW) is None
    assert machine.status.message == "prepared"
    assert machine.update(objects_pb2.Task(id="t", desired_state=S.RUNNING))
    assert machine.advance(NOW) is Operation.START
    machine.finish(Operation.START, Done(), NOW)
    assert machine.advance(NOW) is Operation.WAIT


def test_a_wait_ends_at_once_when_the_task_should_end_but_a_start_is_finished_first() -> None:
    waiting = make(S.RUNNING, S.RUNNING)
    assert waiting.advance(NOW) is Operation.WAIT
    assert waiting.update(objects_pb2.Task(id="t", desired_state=S.SHUTDOWN))
    assert waiting.advance(NOW) is Operation.SHUTDOWN
    starting = make(S.STARTING, S.RUNNING)
    assert starting.advance(NOW) is Operation.START
    assert starting.update(objects_pb2.Task(id="t", desired_state=S.SHUTDOWN))
    assert starting.advance(NOW) is None
    starting.finish(Operation.START, Done(), NOW)
    assert starting.advance(NOW) is Operation.SHUTDOWN


def test_updates_that_change_nothing_or_lower_the_desired_state_are_ignored() -> None:
    machine = make(S.RUNNING, S.RUNNING)
    machine.advance(NOW)
    same = objects_pb2.Task(id="t", desired_state=S.RUNNING)
    same.status.state = S.FAILED
    same.meta.version.index = 7
    assert not machine.update(same)
    assert not machine.update(objects_pb2.Task(id="t", desired_state=S.READY))
    assert machine.operation is Operation.WAIT
    assert machine.status.state == S.RUNNING


def test_the_end_of_an_operation_that_is_not_under_way_is_refused() -> None:
    machine = make(S.RUNNING, S.RUNNING)
    machine.advance(NOW)
    with pytest.raises(ValueError, match="START ended while Operation.WAIT was under way"):
        machine.finish(Operation.START, Done(), NOW)


RESULTS = st.one_of(
    st.builds(Done, st.one_of(st.none(), st.builds(Process, st.just("t"), st.integers(1, 99), st.integers(0, 255)))),
    st.builds(Failed, st.text(min_size=1), st.booleans(), st.integers(0, 255)),
)
STEPS = st.lists(st.one_of(RESULTS, st.sampled_from([S.READY, S.RUNNING, S.COMPLETE, S.SHUTDOWN, S.REMOVE])))


@given(STEPS, st.sampled_from(LIVE))
def test_no_order_of_updates_and_results_moves_a_status_back_or_writes_what_is_not_the_agents(
    steps: list[Done | Failed | int], state: int
) -> None:
    machine = make(state, S.READY)
    before = machine.status.state
    for number, step in enumerate(steps):
        if isinstance(step, int):
            machine.update(objects_pb2.Task(id="t", slot=number, desired_state=step))  # type: ignore[arg-type]
        elif machine.operation is not None:
            machine.finish(machine.operation, step, NOW + number)
        machine.advance(NOW + number)
        assert machine.status.state >= before
        assert machine.status.state <= S.REJECTED
        before = machine.status.state
    if machine.terminal:
        assert machine.operation is None
