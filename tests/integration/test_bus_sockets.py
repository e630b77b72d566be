"""The bus over its real sockets, inside one process: late publishers, bad frames, silence, closing, asyncio."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipc import publisher, subscriber
from ipc.aio import AsyncBus
from ipc.bus import Bus
from ipc.envelope import Value, encode
from ipc.errors import BusError, Closed, Refused
from ipc.topics import Agent, Certificate, Node, NodeChanges, Process, Role

DEADLINE = 10.0


def until(what: Callable[[], Any], *buses: Bus, timeout: float = DEADLINE) -> Any:
    """Serve `buses` until `what()` is true; its result."""
    deadline = time.monotonic() + timeout
    while not (result := what()):
        assert time.monotonic() < deadline, [bus.counters for bus in buses]
        for bus in buses:
            bus.poll(0.002)
    return result


@pytest.fixture
def bus_directory(short_dir: Path) -> Path:
    return short_dir / "bus"


def test_a_reader_that_started_first_gets_all_last_values(bus_directory: Path) -> None:
    with Bus(bus_directory, None, ["node", "role"]) as reader:
        assert reader.poll(0.05) == []
        with Bus(bus_directory, "coordinator") as writer:
            writer.publish("node", Node("starting"))
            writer.publish("node", Node("ready"), cause="because")
            writer.publish("role", Role("worker"))
            writer.publish("role", Role("worker"))
            until(lambda: len(reader.values()) == 2, writer, reader)
            held = reader.last("node")
            assert held is not None
            assert (held.body, held.seq, held.cause, held.pid, held.epoch) == (
                Node("ready"),
                2,
                "because",
                os.getpid(),
                writer.epoch,
            )
            assert writer.counters["unchanged"] == 1
            until(lambda: reader.complete("coordinator"), writer, reader)


@pytest.mark.timeout(20)  # a reader that hangs hangs for ever
def test_a_reader_that_waits_until_it_has_all_does_not_sleep_through_a_digest_that_comes_alone(
    bus_directory: Path,
) -> None:
    # `swarmvisor join` held all values of supervisord, and waited a second for the next one before it looked.
    bus_directory.mkdir(mode=0o700)
    outbox = publisher.Outbox("supervisor", 1)
    value = outbox.put("process.a", Process("a", "RUNNING"), "", 0)
    assert value is not None
    with zmq.Context() as context, context.socket(zmq.PUB) as raw:
        raw.bind(f"ipc://{bus_directory / 'supervisor.sock'}")
        with Bus(bus_directory, None, ["process.*"]) as reader:
            while not reader.values():
                raw.send_multipart(value)
                reader.poll(0.01)
            assert not reader.complete("supervisor")
            raw.send_multipart(outbox.alive(0))
            assert reader.poll(None) == []
            assert reader.complete("supervisor")


def test_a_reader_does_not_wait_for_its_next_try_when_a_publisher_comes(
    bus_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RECONNECT_MS", "RECONNECT_MAX_MS"):
        monkeypatch.setattr(subscriber, name, 600_000)
    bus_directory.mkdir(mode=0o700)
    with Bus(bus_directory, None, ["node"]) as reader:
        assert reader.poll(0.05) == []
        for life in ("first", "second"):
            with Bus(bus_directory, "coordinator") as writer:
                writer.publish("node", Node(life))
                until(lambda life=life: (v := reader.last("node")) and v.body.state == life, writer, reader)


def test_a_reader_finds_a_late_publisher_where_the_kernel_does_not_tell(
    bus_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(subscriber, "Arrivals", none_left)
    with Bus(bus_directory, None, ["node"]) as reader:
        assert reader.poll(0.05) == []
        with Bus(bus_directory, "coordinator") as writer:
            writer.publish("node", Node("ready"))
            until(lambda: reader.last("node"), writer, reader)


def test_each_of_several_readers_is_served_however_late(bus_directory: Path) -> None:
    with Bus(bus_directory, "coordinator") as writer:
        writer.publish("node", Node("ready"))
        for _ in range(3):
            with Bus(bus_directory, None, ["node"]) as reader:
                until(lambda reader=reader: reader.last("node"), writer, reader)


def test_a_subscription_to_node_does_not_bring_node_changes(bus_directory: Path) -> None:
    with Bus(bus_directory, "agent") as agent, Bus(bus_directory, None, ["node", "agent"]) as reader:
        agent.publish("agent", Agent("waiting"))
        until(lambda: reader.complete("agent"), agent, reader)
        before = reader.counters["received"]
        for n in range(100):
            agent.publish("node.changes", NodeChanges(str(n), "worker"))
        agent.publish("agent", Agent("ready"))
        until(lambda: reader.values()["agent"].body.state == "ready", agent, reader)
        assert set(reader.values()) == {"agent"}
        # Not merely dropped on arrival: a resend or a digest may have come beside the one message, not a hundred.
        assert reader.counters["received"] - before < 10


def test_two_processes_hear_each_other_and_themselves(bus_directory: Path) -> None:
    with Bus(bus_directory, "agent", ["*"]) as agent, Bus(bus_directory, "coordinator", ["agent"]) as coordinator:
        agent.publish("agent", Agent("ready"))
        coordinator.publish("node", Node("ready"))
        until(lambda: len(agent.values()) == 2 and coordinator.last("agent"), agent, coordinator)


def test_a_retired_topic_is_gone_within_a_moment(bus_directory: Path) -> None:
    with Bus(bus_directory, "supervisor") as writer, Bus(bus_directory, None, ["process.*"]) as reader:
        writer.publish("process.a", Process("a", "RUNNING"))
        writer.publish("process.b", Process("b", "RUNNING"))
        until(lambda: len(reader.values()) == 2, writer, reader)
        writer.retire("process.a")
        until(lambda: set(reader.values()) == {"process.b"}, writer, reader, timeout=1.0)
        assert reader.counters["gone"] == 1


def test_a_new_publisher_replaces_the_values_of_the_old_one(bus_directory: Path) -> None:
    with Bus(bus_directory, None, ["node", "role"]) as reader:
        with Bus(bus_directory, "coordinator") as old:
            for n in range(5):
                old.publish("node", Node(str(n)))
            until(lambda: (v := reader.last("node")) and v.body.state == "4", old, reader)
        with Bus(bus_directory, "coordinator") as new:
            new.publish("node", Node("new"))
            until(lambda: (v := reader.last("node")) and v.body.state == "new", new, reader)
        assert reader.counters["restarts"] == 1


def test_values_that_were_lost_are_fetched_after_the_next_digest(
    bus_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "PERIOD", 0.05)
    with Bus(bus_directory, "supervisor") as writer, Bus(bus_directory, None, ["process.*", "process.0"]) as reader:
        until(lambda: reader.complete("supervisor"), writer, reader)
        send = publisher.Publisher._send
        # What ZeroMQ does at a high-water mark: the newest messages never leave.
        monkeypatch.setattr(publisher.Publisher, "_send", lambda self, frames: None)
        for n in range(subscriber.FAMILY_AT_ONCE + 10):
            writer.publish(f"process.{n}", Process(str(n), "RUNNING"))
        monkeypatch.setattr(publisher.Publisher, "_send", send)
        until(lambda: len(reader.values()) == subscriber.FAMILY_AT_ONCE + 10, writer, reader)
        monkeypatch.setattr(publisher.Publisher, "_send", lambda self, frames: None)
        for n in range(3):
            writer.publish(f"process.{n}", Process(str(n), "EXITED"))
        monkeypatch.setattr(publisher.Publisher, "_send", send)
        until(lambda: all(reader.values()[f"process.{n}"].body.state == "EXITED" for n in range(3)), writer, reader)


def test_silence_is_noticed_and_ends(bus_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "PERIOD", 0.05)
    monkeypatch.setattr(subscriber, "SILENT_AFTER", 0.2)
    with Bus(bus_directory, None, ["node"]) as reader:
        assert not reader.silent("coordinator")
        until(lambda: reader.silent("coordinator"), reader)
        with Bus(bus_directory, "coordinator") as writer:
            until(lambda: not reader.silent("coordinator"), writer, reader)
            heard_until = time.monotonic() + 0.5
            while time.monotonic() < heard_until:
                writer.poll(0.01)
                reader.poll(0)
                assert not reader.silent("coordinator")
            # The reader itself stalls, the writer does not: no silence once it has read what waits.
            stalled_until = time.monotonic() + 0.4
            while time.monotonic() < stalled_until:
                writer.poll(0.05)
            assert not reader.silent("coordinator")
            reader.service()
            assert not reader.silent("coordinator")
        until(lambda: reader.silent("coordinator"), reader)
        with pytest.raises(Refused):
            reader.silent("agent")


class Mouth:
    """A publisher without manners: sends whatever it is told."""

    def __init__(self, directory: Path, proc: str) -> None:
        directory.mkdir(mode=0o700, exist_ok=True)
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.XPUB)
        self.socket.bind(f"ipc://{directory / proc}.sock")
        self.seq = 0

    def say(self, state: str) -> None:
        self.seq += 1
        self.socket.send_multipart(encode(Value("node", "coordinator", 1, 1, self.seq, 1, "", Node(state))))

    def close(self) -> None:
        self.socket.close(linger=0)
        self.context.term()


@pytest.fixture
def mouth(bus_directory: Path) -> Iterator[Mouth]:
    mouth = Mouth(bus_directory.parent, "coordinator")
    yield mouth
    mouth.close()


def test_any_frames_are_survived_and_every_drop_is_counted(mouth: Mouth, bus_directory: Path) -> None:
    with Bus(bus_directory.parent, None, ["node"]) as reader:
        # Until the subscriptions have arrived nothing would come.
        assert mouth.socket.poll(5000)
        for _ in range(2):
            mouth.socket.recv()
        sent = 0

        @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(st.lists(st.binary(max_size=50), max_size=3), min_size=1, max_size=5))
        def survive(messages: list[list[bytes]]) -> None:
            nonlocal sent
            before = reader.counters
            for rest in messages:
                mouth.socket.send_multipart([b"node\0", *rest])
            mouth.say(str(mouth.seq))
            sent += len(messages) + 1
            until(lambda: reader.counters["received"] >= sent, reader)
            after = reader.counters
            dropped = sum(after[name] - before[name] for name in after if name.startswith("dropped_"))
            assert dropped == len(messages)
            held = reader.last("node")
            assert held is not None
            assert held.seq == mouth.seq

        survive()


def test_what_a_process_may_not_say_is_dropped_by_readers_too(mouth: Mouth, bus_directory: Path) -> None:
    with Bus(bus_directory.parent, None, ["node"]) as reader:
        assert mouth.socket.poll(5000)
        for _ in range(2):
            mouth.socket.recv()
        packed = msgpack.unpackb(encode(Value("node", "coordinator", 1, 9, 9, 1, "", Node("forged")))[1])
        mouth.socket.send_multipart([b"node\0", msgpack.packb({**packed, "proc": "agent"})])
        mouth.socket.send_multipart([b"node\0", b"\0" * (subscriber.MAX_FRAME + 1)])
        mouth.say("true")
        until(lambda: reader.last("node"), reader)
        assert (reader.counters["dropped_owner"], reader.counters["dropped_oversized"]) == (1, 1)
        held = reader.last("node")
        assert held is not None
        assert held.body == Node("true")


def test_a_peer_that_sends_junk_to_a_publisher_does_no_harm(bus_directory: Path) -> None:
    with Bus(bus_directory, "coordinator") as writer, Bus(bus_directory, None, ["node"]) as reader:
        with socket.socket(socket.AF_UNIX) as junk, zmq.Context() as context:
            junk.connect(str(bus_directory / "coordinator.sock"))
            junk.send(b"GET / HTTP/1.1\r\n\r\n")
            with context.socket(zmq.XSUB) as peer:
                peer.linger = 0
                peer.connect(f"ipc://{bus_directory}/coordinator.sock")
                for message in (b"", b"\x07junk", b"\x01" + b"\xff" * 100, b"\x00node\0"):
                    peer.send(message)
                writer.publish("node", Node("ready"))
                until(lambda: writer.counters["subscriptions"] >= 3, writer, reader)
        until(lambda: reader.last("node"), writer, reader)


def test_directory_and_socket_are_private_and_the_socket_goes_with_the_bus(bus_directory: Path) -> None:
    bus_directory.mkdir(mode=0o755)
    before = os.umask(0)
    try:
        bus = Bus(bus_directory, "agent")
    finally:
        os.umask(before)
    path = bus_directory / "agent.sock"
    assert (bus_directory.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o600)
    bus.close()
    bus.close()
    assert not path.exists()
    with pytest.raises(Closed):
        bus.publish("agent", Agent("ready"))


def test_closing_leaves_the_socket_of_a_successor_alone(bus_directory: Path) -> None:
    first = Bus(bus_directory, "agent")
    with Bus(bus_directory, "agent"):
        first.close()
        assert (bus_directory / "agent.sock").exists()


def test_a_stale_socket_is_replaced_and_a_file_is_not(bus_directory: Path) -> None:
    bus_directory.mkdir()
    path = bus_directory / "agent.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    Bus(bus_directory, "agent").close()
    path.write_text("precious")
    with pytest.raises(BusError, match="not a socket"):
        Bus(bus_directory, "agent")
    assert path.read_text() == "precious"


def test_a_path_that_is_too_long_is_an_error_that_names_it(short_dir: Path) -> None:
    with pytest.raises(BusError, match="cannot publish at .*agent.sock"):
        Bus(short_dir / ("x" * 100), "agent")


def test_only_the_owner_publishes_and_a_reader_nothing(bus_directory: Path) -> None:
    with Bus(bus_directory, "agent") as agent, Bus(bus_directory, None, ["*"]) as reader:
        with pytest.raises(Refused, match="belongs to coordinator"):
            agent.publish("node", Node("ready"))
        with pytest.raises(Refused, match="carries Agent"):
            agent.publish("agent", Node("ready"))
        with pytest.raises(Refused, match="only reads"):
            reader.publish("agent", Agent("ready"))
    with pytest.raises(Refused, match="no topic or family"):
        Bus(bus_directory, "agent", ["nodes"])
    assert not (bus_directory / "agent.sock").exists()


def test_poll_ends_when_a_descriptor_of_the_caller_is_readable(bus_directory: Path) -> None:
    reading, writing = socket.socketpair()
    with reading, writing, Bus(bus_directory, "coordinator", ["agent"]) as bus:
        previous = signal.signal(signal.SIGUSR2, lambda *_: None)
        writing.setblocking(False)
        signal.set_wakeup_fd(writing.fileno())
        try:
            os.kill(os.getpid(), signal.SIGUSR2)
            before = time.monotonic()
            assert bus.poll(DEADLINE, [reading.fileno()]) == []
            assert time.monotonic() - before < DEADLINE / 2
        finally:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGUSR2, previous)


def test_poll_without_news_takes_its_time_and_no_longer(bus_directory: Path) -> None:
    with Bus(bus_directory, "coordinator", ["agent"]) as bus:
        before = time.monotonic()
        assert bus.poll(0.1) == []
        assert 0.1 <= time.monotonic() - before < 1.0
        assert time.monotonic() < bus.next_timer() <= time.monotonic() + publisher.PERIOD
        assert len(bus.filenos()) == 2


def test_a_bus_that_was_closed_leaves_no_descriptor(bus_directory: Path) -> None:
    Bus(bus_directory, "agent", ["*"]).close()
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        Bus(bus_directory, "agent", ["*"]).close()
    # fewer: something that an earlier test left to a thread of grpc's has been closed meanwhile
    assert len(os.listdir("/proc/self/fd")) <= before


# -- asyncio --------------------------------------------------------------------------------------------


async def test_updates_begin_with_what_is_held_and_each_consumer_gets_all(bus_directory: Path) -> None:
    async with (
        asyncio.timeout(DEADLINE),
        AsyncBus(bus_directory, "renewer") as writer,
        AsyncBus(bus_directory, None, ["certificate", "process.*"]) as reader,
    ):
        writer.publish("certificate", Certificate("joining"))
        first = await reader.wait("certificate", lambda value: True, DEADLINE)
        assert first.body.state == "joining"
        updates = [reader.updates(), reader.updates()]
        assert [await anext(each) for each in updates] == [first, first]
        writer.publish("certificate", Certificate("valid"))
        assert [(await anext(each)).body.state for each in updates] == ["valid", "valid"]
        assert reader.last("certificate") == reader.values()["certificate"]
        assert not reader.silent("renewer")
        assert reader.counters["values"] == 2


async def test_a_slow_consumer_gets_the_newest_of_each_topic(bus_directory: Path) -> None:
    async with (
        asyncio.timeout(DEADLINE),
        AsyncBus(bus_directory, "supervisor") as writer,
        AsyncBus(bus_directory, None, ["process.*"]) as reader,
    ):
        slow = reader.updates()
        for n in range(100):
            writer.publish("process.a", Process("a", str(n)))
            writer.publish("process.b", Process("b", str(n)))
            await asyncio.sleep(0)
        await reader.wait("process.b", lambda value: value.body.state == "99", DEADLINE)
        assert sorted([(await anext(slow)).body.name, (await anext(slow)).body.name]) == ["a", "b"]
        assert {value.body.state for value in reader.values().values()} == {"99"}


async def test_waiting_ends_with_the_value_the_deadline_or_the_bus(bus_directory: Path) -> None:
    async with AsyncBus(bus_directory, None, ["node"]) as reader:
        with pytest.raises(TimeoutError):
            await reader.wait("node", lambda value: True, 0.05)
        waiting = asyncio.create_task(reader.wait("node", lambda value: True, DEADLINE))
        listening = asyncio.create_task(anext(reader.updates(), None))
        await asyncio.sleep(0)
    with pytest.raises(Closed):
        await waiting
    assert await listening is None
    with pytest.raises(Closed):
        reader.last("node")
    reader.close()
    assert reader.counters["received"] == 0


async def test_a_publisher_in_asyncio_serves_readers_that_come_while_it_publishes(bus_directory: Path) -> None:
    async def read(wanted: str) -> None:
        async with AsyncBus(bus_directory, None, ["node"]) as reader:
            await reader.wait("node", lambda value: value.body.state >= wanted, DEADLINE)

    async with AsyncBus(bus_directory, "coordinator") as writer:
        readers = []
        for n in range(200):
            if n % 20 == 0:
                readers.append(asyncio.create_task(read(f"{n:03}")))
            writer.publish("node", Node(f"{n:03}"))
            await asyncio.sleep(0)
        await asyncio.gather(*readers)
