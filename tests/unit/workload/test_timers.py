"""Timers in supervisord's loop."""

from __future__ import annotations

from procs.workload.timers import LoopTimers


class Hand:
    """A clock that is turned by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Poller:
    def __init__(self) -> None:
        self.slept: list[float] = []

    def poll(self, timeout: float) -> tuple[list[int], list[int]]:
        self.slept.append(timeout)
        return [], []


def test_timers_run_in_order_of_their_time_and_once() -> None:
    clock, ran, reports = Hand(), list[str](), list[str]()
    timers = LoopTimers(reports.append, monotonic=clock)
    for delay, name in ((3.0, "c"), (1.0, "a"), (2.0, "b"), (1.0, "a2"), (9.0, "later")):
        timers.call_later(delay, lambda name=name: ran.append(name))  # type: ignore[misc]
    timers.run_due()
    assert ran == []
    clock.now += 3.0
    timers.run_due()
    timers.run_due()
    assert ran == ["a", "a2", "b", "c"]
    assert reports == []


def test_a_cancelled_timer_neither_runs_nor_shortens_the_sleep() -> None:
    clock, ran = Hand(), list[int]()
    timers = LoopTimers(lambda _: None, monotonic=clock)
    timers.call_later(0.5, lambda: ran.append(1)).cancel()
    timers.run_due()
    assert timers.timeout(1.0) == 1.0
    clock.now += 1
    timers.run_due()
    assert ran == []


def test_a_timer_that_sets_itself_again_does_not_hold_the_loop() -> None:
    clock, ran = Hand(), list[int]()
    timers = LoopTimers(lambda _: None, monotonic=clock)

    def again() -> None:
        ran.append(1)
        timers.call_later(0.0, again)

    again()
    timers.run_due()
    assert len(ran) == 2


def test_a_failing_timer_is_reported_and_the_others_run() -> None:
    clock, ran, reports = Hand(), list[int](), list[str]()
    timers = LoopTimers(reports.append, monotonic=clock)
    timers.call_later(0.0, lambda: 1 / 0 and None)
    timers.call_later(0.0, lambda: ran.append(1))
    timers.run_due()
    assert ran == [1]
    assert "ZeroDivisionError" in reports[0]


def test_a_timer_cancelled_by_an_earlier_one_of_the_same_pass_does_not_run() -> None:
    clock, ran = Hand(), list[int]()
    timers = LoopTimers(lambda _: None, monotonic=clock)
    doomed = timers.call_later(1.0, lambda: ran.append(1))
    timers.call_later(0.5, doomed.cancel)
    clock.now += 2
    timers.run_due()
    assert ran == []


def test_the_poller_sleeps_until_the_next_timer_and_no_longer_than_it_would() -> None:
    clock, poller, ran = Hand(), Poller(), list[int]()
    timers = LoopTimers(lambda _: None, monotonic=clock)
    timers.install(poller)
    poller.poll(1)
    timers.call_later(0.25, lambda: ran.append(1))
    poller.poll(1)
    clock.now += 0.25
    poller.poll(1)
    assert poller.slept == [1, 0.25, 1]
    assert ran == [1]


def test_timers_with_slack_share_one_wake_up_and_are_never_early() -> None:
    clock, ran = Hand(), list[float]()
    clock.now = 100.3
    timers = LoopTimers(lambda _: None, monotonic=clock)
    for delay in (0.1, 0.2, 0.5, 0.69):
        timers.call_later(delay, lambda delay=delay: ran.append(delay), slack=1.0)  # type: ignore[misc]
    assert abs(timers.timeout(10) - 0.7) < 1e-9
    clock.now = 100.99
    timers.run_due()
    assert ran == []
    clock.now = 101.0
    timers.run_due()
    assert ran == [0.1, 0.2, 0.5, 0.69]
