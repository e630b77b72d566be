"""Certificates of one hour, a clock that is stepped, and a CA that fails at times: a week without a gap in service."""

from __future__ import annotations

import random

import pytest

from ipc.topics import ManagerAddress
from procs.renewer.events import (
    Due,
    Effect,
    Event,
    Held,
    Install,
    Installed,
    Loaded,
    ManagerSaid,
    Moment,
    Obtained,
    RemotesSaid,
    Request,
    RequestFailed,
    WakeAt,
)
from procs.renewer.machine import Renewer

HOUR = 3600.0
WEEK = 7 * 24 * HOUR
START = 1_800_000_000.0


class Node:
    """A renewer's brain, its two clocks, and a CA that issues certificates of one hour, backdated by another."""

    def __init__(self, seed: int, *, worker: bool) -> None:
        self.rng = random.Random(seed)
        self.brain = Renewer(random.Random(seed + 1))
        self.wall, self.monotonic = START, 0.0
        self.wake = 0.0
        self.asked = self.failed = self.expired = 0
        self.ca_down_until = 0.0
        self.current = self.issue()
        self.todo: list[Event] = [Loaded(self.current)]
        if worker:
            self.todo.append(RemotesSaid((ManagerAddress("m", "192.0.2.1:2377"),)))
        else:
            self.todo.append(ManagerSaid(ready=True, epoch=1))

    def issue(self) -> Held:
        start = int(self.wall // 60 * 60 - HOUR)
        return Held("n", "swarm", "worker", start, int(start + 2 * HOUR), f"f{self.rng.random()}", "root")

    def settle(self) -> None:
        """Feed what waits, and perform what it leads to."""
        while self.todo:
            for effect in self.brain.handle(self.todo.pop(0), Moment(self.wall, self.monotonic)):
                self.perform(effect)
        if self.wall > self.current.not_after:
            self.expired += 1

    def perform(self, effect: Effect) -> None:
        match effect:
            case Request():
                self.asked += 1
                if self.monotonic < self.ca_down_until or self.rng.random() < 0.2:
                    self.failed += 1
                    self.todo.append(RequestFailed("the CA does not answer"))
                else:
                    self.next = self.issue()
                    self.todo.append(Obtained("worker"))
            case Install():
                self.current = self.next
                self.todo.append(Installed(self.current))
            case WakeAt(monotonic):
                self.wake = monotonic

    def sleep(self) -> None:
        """Until the brain wants to be woken."""
        seconds = max(0.001, self.wake - self.monotonic)
        self.wall += seconds
        self.monotonic += seconds
        self.todo.append(Due())


@pytest.mark.parametrize("worker", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_a_week_passes_without_a_moment_without_a_valid_certificate(seed: int, worker: bool) -> None:
    node = Node(seed, worker=worker)
    node.settle()
    names = {node.current.fingerprint}
    while node.monotonic < WEEK:
        node.sleep()
        node.settle()
        names.add(node.current.fingerprint)
    assert node.expired == 0
    assert len(names) >= WEEK / HOUR, "no certificate is used to its end"
    assert node.asked < 12 * WEEK / HOUR, "and it asks a bounded number of times"
    assert node.failed > 0


@pytest.mark.parametrize("seed", range(4))
def test_a_stepped_clock_costs_at_most_the_time_until_it_is_noticed(seed: int) -> None:
    node = Node(seed, worker=True)
    node.settle()
    steps = random.Random(seed)
    while node.monotonic < WEEK:
        node.sleep()
        if steps.random() < 0.05:
            node.wall += steps.choice((-1800.0, 1800.0, 90 * 60.0, 30 * 24 * HOUR))
        node.settle()
        assert node.wall <= node.current.not_after or node.brain.failures, "expired, and nobody is asked"
    assert node.asked < 12 * WEEK / HOUR


@pytest.mark.parametrize("down", [600.0, 1200.0])
def test_a_ca_that_is_away_for_a_while_is_asked_again_in_time(down: float) -> None:
    node = Node(7, worker=True)
    node.settle()
    node.ca_down_until = down
    while node.monotonic < 6 * HOUR:
        node.sleep()
        node.settle()
    assert node.expired == 0
    assert node.asked < 200
