"""Figures of the bus between real processes: `python -m tests.bench.bus`, from the root of the checkout.

Latency and rate of one publisher and one reader, the time until a new reader holds all last values, and convergence
after the publisher was killed. Times are CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ipc.bus import Bus
from ipc.topics import Agent, Node, Process

ROUNDS = 2000
BURST = 50_000
TOPICS = 20
STARTS = 30
KILLS = 50


@dataclass(frozen=True)
class Figure:
    """One measured number."""

    name: str
    value: float
    unit: str


def forked(body: Callable[[], None]) -> int:
    """Run `body` in a child that holds no ZeroMQ context yet."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            body()
        finally:
            os._exit(0)
    return child


def end(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def percentile(samples: list[float], share: float) -> float:
    return sorted(samples)[min(len(samples) - 1, int(len(samples) * share))]


def round_trips(directory: Path) -> list[Figure]:
    """coordinator says a node state, agent answers with its own; half of that is one message."""

    def answer() -> None:
        with Bus(directory, "agent", ["node"]) as bus:
            while True:
                for value in bus.poll(None):
                    bus.publish("agent", Agent("ready", value.body.step))

    child = forked(answer)
    samples = []
    with Bus(directory, "coordinator", ["agent"]) as bus:
        for n in range(ROUNDS + 100):
            step = str(n)
            began = time.monotonic()
            bus.publish("node", Node("ready", step=step))
            while (held := bus.last("agent")) is None or held.body.session_id != step:
                bus.poll(None)
            if n >= 100:
                samples.append((time.monotonic() - began) / 2 * 1e6)
    end(child)
    return [
        Figure("message between two processes, p50", percentile(samples, 0.5), "µs"),
        Figure("message between two processes, p99", percentile(samples, 0.99), "µs"),
    ]


def rate(directory: Path) -> list[Figure]:
    """One publisher as fast as it can, one reader that decodes and checks everything."""
    reading, writing = os.pipe()

    def read() -> None:
        with Bus(directory, None, ["node"]) as bus:
            while (held := bus.last("node")) is None or held.body.step != str(BURST - 1):
                bus.poll(None)
                if held is None:
                    os.write(writing, b"!")
            os.write(writing, str(bus.counters["values"]).encode())

    child = forked(read)
    with Bus(directory, "coordinator") as bus:
        bus.publish("node", Node("ready"))
        bus.poll(10, [reading])
        os.read(reading, 1)
        began = time.monotonic()
        for n in range(BURST):
            bus.publish("node", Node("ready", step=str(n)))
        sent = time.monotonic() - began
        bus.poll(60, [reading])
        received = time.monotonic() - began
        values = int(os.read(reading, 20))
    end(child)
    os.close(reading)
    os.close(writing)
    return [
        Figure("published", BURST / sent, "messages/s"),
        Figure("received, decoded, checked", values / received, "messages/s"),
    ]


def starts(directory: Path) -> list[Figure]:
    """A new reader of a family of TOPICS, from before its context to holding every last value."""

    def publish() -> None:
        with Bus(directory, "supervisor") as bus:
            for n in range(TOPICS):
                bus.publish(f"process.{n}", Process(str(n), "RUNNING"))
            while True:
                bus.poll(None)

    child = forked(publish)
    samples = []
    for _ in range(STARTS):
        began = time.monotonic()
        with Bus(directory, None, ["process.*"]) as bus:
            while not bus.complete("supervisor") or len(bus.values()) < TOPICS:
                bus.poll(0.05)
        samples.append((time.monotonic() - began) * 1e3)
    end(child)
    return [
        Figure(f"reader started → all {TOPICS} last values held, p50", statistics.median(samples), "ms"),
        Figure(f"reader started → all {TOPICS} last values held, max", max(samples), "ms"),
    ]


def kills(directory: Path) -> list[Figure]:
    """SIGKILL of the publisher, a new one forked at once: until a reader holds what the new one says."""

    def publish(number: int) -> Callable[[], None]:
        def run() -> None:
            with Bus(directory, "coordinator") as bus:
                bus.publish("node", Node("ready", step=str(number)))
                while True:
                    bus.poll(None)

        return run

    samples = []
    reading, writing = os.pipe()

    def read() -> None:
        with Bus(directory, None, ["node"]) as bus:
            while True:
                for value in bus.poll(None):
                    os.write(writing, value.body.step.encode() + b"\n")

    reader = forked(read)
    child = forked(publish(0))
    os.read(reading, 100)
    for number in range(1, KILLS + 1):
        began = time.monotonic()
        end(child)
        child = forked(publish(number))
        while os.read(reading, 100).split()[-1] != str(number).encode():
            continue
        samples.append((time.monotonic() - began) * 1e3)
    end(child)
    end(reader)
    os.close(reading)
    os.close(writing)
    return [
        Figure("publisher killed and restarted → newest value held, p50", statistics.median(samples), "ms"),
        Figure("publisher killed and restarted → newest value held, max", max(samples), "ms"),
    ]


def measure() -> list[Figure]:
    """All figures, in the order in which they are printed."""
    figures: list[Figure] = []
    for part in (round_trips, rate, starts, kills):
        directory = Path(tempfile.mkdtemp(prefix="sv", dir="/tmp"))
        try:
            figures += part(directory)
        finally:
            shutil.rmtree(directory)
    return figures


def main() -> None:
    for figure in measure():
        print(f"{figure.name:<60} {figure.value:>12,.1f} {figure.unit}")


if __name__ == "__main__":
    main()
