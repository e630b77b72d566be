from __future__ import annotations

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from procs.manager.dispatcher.nodes import HEARTBEAT_FAILURE, UNKNOWN_FAILURE, MarkDown, NodeTable, OrphanTasks, Timing
from procs.manager.status import Status

DAY = 24 * 3600.0


def table(timing: Timing | None = None) -> NodeTable:
    """Always the middle of a range: heartbeats every 5 s exactly."""
    return NodeTable(timing, uniform=lambda low, high: (low + high) / 2)


def refusal(call: object, *arguments: object) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(Status) as caught:
        call(*arguments)  # type: ignore[operator]
    return caught.value.code, caught.value.message


def test_session_checks_have_swarmkits_codes_and_texts() -> None:
    nodes = table()
    assert refusal(nodes.check, "n", "s") == (grpc.StatusCode.NOT_FOUND, "node not registered")
    nodes.enter("n", "s", 0.0)
    nodes.check("n", "s")
    for wrong in ("", "t"):
        assert refusal(nodes.check, "n", wrong) == (grpc.StatusCode.INVALID_ARGUMENT, "session invalid")


def test_unknown_node_has_no_valid_session() -> None:
    nodes = table()
    assert nodes.start([("n", False)], 0.0) == ["n"]
    assert refusal(nodes.check, "n", "") == (grpc.StatusCode.INVALID_ARGUMENT, "session invalid")


def test_node_goes_down_after_three_periods_of_silence() -> None:
    nodes = table()
    nodes.enter("n", "s", 0.0)
    assert nodes.beat("n", "s", 10.0) == 5.0
    assert nodes.next_deadline() == 25.0
    assert nodes.expire(24.9) == []
    assert nodes.expire(25.0) == [MarkDown("n", HEARTBEAT_FAILURE)]
    assert refusal(nodes.beat, "n", "s", 25.0) == (grpc.StatusCode.NOT_FOUND, "node not registered")


def test_node_of_an_earlier_term_gets_six_periods() -> None:
    nodes = table()
    nodes.start([("n", False)], 0.0)
    assert nodes.expire(29.9) == []
    assert nodes.expire(30.0) == [MarkDown("n", UNKNOWN_FAILURE)]


def test_tasks_are_orphaned_a_day_after_the_node_went_down() -> None:
    nodes = table()
    nodes.start([("down", True)], 0.0)
    nodes.enter("n", "s", 0.0)
    assert nodes.expire(15.0) == [MarkDown("n", HEARTBEAT_FAILURE)]
    assert nodes.expire(DAY) == [OrphanTasks("down")]
    assert nodes.expire(15.0 + DAY) == [OrphanTasks("n")]
    assert nodes.next_deadline() is None


def test_node_that_comes_back_keeps_its_tasks() -> None:
    nodes = table()
    nodes.start([("n", True)], 0.0)
    nodes.enter("n", "s", 10.0)
    assert nodes.expire(24.0) == []
    assert OrphanTasks("n") not in nodes.expire(DAY + 5)


def test_registrations_are_limited_to_three_in_eight_seconds_beyond_the_first() -> None:
    nodes = table()
    moment = 0.0
    for _ in range(4):  # the first one finds no entry, and is not counted
        nodes.admit("n", moment)
        nodes.enter("n", "s", moment)
        moment += 1.0
    code, text = refusal(nodes.admit, "n", moment)
    assert (code, text) == (grpc.StatusCode.UNAVAILABLE, "node n exceeded rate limit count of registrations")
    refusal(nodes.admit, "n", moment + 7.0)  # a refusal does not begin the window anew
    nodes.admit("n", 3.0 + 8.1)


def test_registrations_seven_seconds_apart_are_refused_at_the_fourth() -> None:
    nodes = table()
    nodes.enter("n", "s", 0.0)
    for moment in (7.0, 14.0, 21.0):
        nodes.admit("n", moment)
    refusal(nodes.admit, "n", 28.0)


def test_removed_node_is_forgotten() -> None:
    nodes = table()
    nodes.enter("n", "s", 0.0)
    nodes.remove("n")
    assert nodes.expire(1e9) == []
    assert not nodes.known("n")


def test_other_period_counts_from_the_next_heartbeat() -> None:
    nodes = table()
    nodes.enter("n", "s", 0.0)
    nodes.retime(Timing(period=1.0))
    assert nodes.next_deadline() == 15.0
    assert nodes.beat("n", "s", 1.0) == 1.0
    assert nodes.next_deadline() == 4.0


@given(st.floats(0.01, 100.0), st.floats(0.0, 0.999999))
def test_period_is_positive_and_never_far_from_what_was_asked(period: float, where: float) -> None:
    nodes = NodeTable(Timing(period=period), uniform=lambda low, high: low + where * (high - low))
    nodes.enter("n", "s", 0.0)
    given_period = nodes.beat("n", "s", 0.0)
    assert given_period > 0
    assert abs(given_period - period) <= 0.5 + 1e-9


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["enter", "beat", "expire", "remove", "admit"]), st.sampled_from("ab"), st.floats(0, 40)
        )
    )
)
def test_whatever_happens_a_node_is_down_at_most_once_per_registration(story: list[tuple[str, str, float]]) -> None:
    nodes, now, entered = table(), 0.0, {"a": 0, "b": 0}
    downs = {"a": 0, "b": 0}
    for verb, node, step in story:
        now += step
        for effect in nodes.expire(now):
            if isinstance(effect, MarkDown):
                downs[effect.node_id] += 1
        match verb:
            case "enter":
                nodes.enter(node, f"s{now}", now)
                entered[node] += 1
            case "beat" if nodes.known(node):
                for session in [f"s{now}", ""]:
                    assert not nodes.resumable(node, session) or nodes.beat(node, session, now) > 0
            case "remove":
                nodes.remove(node)
        assert all(downs[n] <= entered[n] for n in "ab")
        deadline = nodes.next_deadline()
        assert deadline is None or deadline >= now
