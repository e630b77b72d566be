"""Publisher and subscribers are killed at random, 500 times: each time all come to hold the newest value."""

from __future__ import annotations

import os
import random
import select
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

KILLS = 500
SUBSCRIBERS = 3
DEADLINE = 10.0
"""Seconds in which a round must converge; it takes a fraction of one."""


class Nursery:
    """The processes under test, and what they said."""

    def __init__(self, directory: Path) -> None:
        command = [sys.executable, "-m", "tests.faults.bus_nursery", str(directory / "bus")]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, cwd=Path(__file__).parents[2]
        )
        self.born: list[int] = []
        self.holds: dict[int, int] = {}
        self.publisher = 0
        self.subscribers = [0] * SUBSCRIBERS
        self._rest = b""

    def start(self, what: str, number: int) -> int:
        """Fork a child; its pid once it runs (a publisher: once it has published `number`)."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what} {number}\n".encode())
        self.born.clear()
        deadline = time.monotonic() + DEADLINE
        while not self.born:
            self.listen(deadline - time.monotonic())
        return self.born[0]

    def start_publisher(self, number: int) -> None:
        self.publisher = self.start("publisher", number)

    def start_subscriber(self, index: int) -> None:
        self.subscribers[index] = self.start("subscriber", index)

    def listen(self, timeout: float) -> None:
        """Take in what the children say next, or fail after `timeout` seconds."""
        assert self.process.stdout is not None
        assert timeout > 0, "a child said nothing"
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            return
        said = os.read(self.process.stdout.fileno(), 65536)
        assert said, "the nursery died"
        *lines, self._rest = (self._rest + said).split(b"\n")
        for line in lines:
            kind, *words = line.decode().split()
            if kind == "born":
                self.born.append(int(words[1]))
                continue
            pid, value = int(words[0]), int(words[2])
            assert value > self.holds.get(pid, -1), "a subscriber went back to an older value"
            self.holds[pid] = value

    def all_hold(self, newest: int) -> float:
        """Wait until every subscriber holds `newest`; the seconds it took."""
        began = time.monotonic()
        while any(self.holds.get(pid) != newest for pid in self.subscribers):
            held = [self.holds.get(pid) for pid in self.subscribers]
            left = began + DEADLINE - time.monotonic()
            assert left > 0, f"newest is {newest}, subscribers hold {held}"
            self.listen(left)
        return time.monotonic() - began

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(DEADLINE)
        self.process.stdout.close()


@pytest.fixture
def nursery(short_dir: Path) -> Iterator[Nursery]:
    nursery = Nursery(short_dir)
    yield nursery
    nursery.close()


@pytest.mark.timeout(180)
def test_500_random_kills_end_with_everybody_holding_the_newest_value(nursery: Nursery) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    newest = 0
    nursery.start_publisher(newest)
    for index in range(SUBSCRIBERS):
        nursery.start_subscriber(index)
    nursery.all_hold(newest)
    kills = {"publisher": 0, "subscriber": 0}
    took: list[float] = []
    while sum(kills.values()) < KILLS:
        publisher_dies = chance.random() < 0.5
        victims = [index for index in range(SUBSCRIBERS) if chance.random() < 0.4]
        stalled = [index for index in range(SUBSCRIBERS) if index not in victims and chance.random() < 0.2]
        steps = [("kill", index) for index in victims] + [("stall", index) for index in stalled] + [("say", 0)]
        if publisher_dies:
            steps.append(("kill-publisher", 0))
        chance.shuffle(steps)
        for step, index in steps:
            if step == "kill":
                os.kill(nursery.subscribers[index], signal.SIGKILL)
                kills["subscriber"] += 1
            elif step == "stall":
                os.kill(nursery.subscribers[index], signal.SIGSTOP)
            elif step == "kill-publisher":
                os.kill(nursery.publisher, signal.SIGKILL)
                kills["publisher"] += 1
                nursery.publisher = 0
            elif nursery.publisher:
                os.kill(nursery.publisher, signal.SIGUSR1)
                newest += 1
            if chance.random() < 0.5:
                # Connections are met in every state: broken, half made, made and not yet subscribed.
                nursery.listen(0.001 + 0.02 * chance.random())
        restarts = [("subscriber", index) for index in victims] + [("publisher", 0)] * publisher_dies
        chance.shuffle(restarts)
        for what, index in restarts:
            if what == "publisher":
                newest += 1
                nursery.start_publisher(newest)
            else:
                nursery.start_subscriber(index)
        for index in stalled:
            os.kill(nursery.subscribers[index], signal.SIGCONT)
        took.append(nursery.all_hold(newest))
    print(f"{kills}, {len(took)} rounds, convergence p50 {statistics.median(took):.3f} s, max {max(took):.3f} s")
    assert kills["publisher"] > KILLS / 5
