"""Publishing what tasks write, against a real gRPC broker: which lines, to whom, and what a new session changes."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from procs.agent.logs import LINES, LogPublisher, Subscriptions
from swarm.api import logbroker_pb2, logbroker_pb2_grpc, objects_pb2
from swarm.workload import EXIT

DEADLINE = 10.0
OUT, ERR = logbroker_pb2.LOG_STREAM_STDOUT, logbroker_pb2.LOG_STREAM_STDERR
Options = logbroker_pb2.LogSubscriptionOptions


class Broker(logbroker_pb2_grpc.LogBrokerServicer):
    """Keeps what it is sent, and ends a call as Go managers do: without an answer."""

    def __init__(self) -> None:
        self.messages: list[logbroker_pb2.PublishLogsMessage] = []
        self.changed = asyncio.Condition()

    async def publish(self, requests: AsyncIterator[logbroker_pb2.PublishLogsMessage], _context: Any) -> Any:
        async for message in requests:
            async with self.changed:
                self.messages.append(message)
                self.changed.notify_all()
            if message.close:
                break
        for nothing in ():
            yield nothing

    def lines(self, subscription_id: str = "sub") -> list[str]:
        return [
            line.data.decode().removesuffix("\n")
            for message in self.messages
            if message.subscription_id == subscription_id
            for line in message.messages
        ]

    def closed(self) -> bool:
        return any(message.close for message in self.messages)

    async def until(self, predicate: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(DEADLINE), self.changed:
                await self.changed.wait_for(predicate)
        except TimeoutError:
            raise AssertionError(f"not within {DEADLINE:g} s; lines: {self.lines()[-20:]}") from None


class World:
    def __init__(self, directory: Path, broker: Broker, channel: grpc.aio.Channel) -> None:
        self.directory = directory
        self.broker = broker
        self.channel = channel
        self.tasks: list[objects_pb2.Task] = []
        self.publisher = LogPublisher(
            directory=lambda task_id: directory / task_id, node_id=lambda: "node", log=logging.getLogger("test")
        )
        self.publisher.of(lambda: self.tasks)

    def task(
        self, task_id: str = "t", service_id: str = "s", *, out: str = "", err: str = "", over: bool = False
    ) -> Path:
        place = self.directory / task_id
        place.mkdir()
        (place / "stdout").write_text(out)
        (place / "stderr").write_text(err)
        if over:
            (place / EXIT).write_text("{}")
        self.tasks.append(objects_pb2.Task(id=task_id, service_id=service_id))
        return place


@asynccontextmanager
async def working(directory: Path) -> AsyncIterator[World]:
    broker = Broker()
    server = grpc.aio.server()
    handler = grpc.stream_stream_rpc_method_handler(
        broker.publish,
        logbroker_pb2.PublishLogsMessage.FromString,
        logbroker_pb2.PublishLogsResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("docker.swarmkit.v1.LogBroker", {"PublishLogs": handler}),)
    )
    server.add_insecure_port(f"unix:{directory}/broker")
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{directory}/broker") as channel:
        world = World(directory, broker, channel)
        try:
            yield world
        finally:
            await world.publisher.close()
            await server.stop(0)


def subscription(
    *, subscription_id: str = "sub", services: tuple[str, ...] = ("s",), close: bool = False, **options: Any
) -> logbroker_pb2.SubscriptionMessage:
    return logbroker_pb2.SubscriptionMessage(
        id=subscription_id,
        selector=logbroker_pb2.LogSelector(service_ids=services),
        options=Options(**options),
        close=close,
    )


async def answer(world: World, message: logbroker_pb2.SubscriptionMessage) -> list[str]:
    """The lines that a subscription without `follow` brings."""
    async with world.publisher.session(world.channel) as subscriptions:
        subscriptions.hear(message)
        await world.broker.until(world.broker.closed)
    return world.broker.lines(message.id)


def append(path: Path, text: str) -> None:
    with path.open("a") as out:
        out.write(text)


async def test_both_streams_arrive_with_context_stream_and_time(short_dir: Path) -> None:
    async with working(short_dir) as world:
        place = world.task(out="a\nb\n", err="half", over=True)
        os.utime(place / "stdout", ns=(10**18, 10**18 + 5))
        await answer(world, subscription())
        lines = [line for message in world.broker.messages for line in message.messages]
        assert [(line.stream, line.data) for line in lines] == [(OUT, b"a\n"), (OUT, b"b\n"), (ERR, b"half\n")]
        assert {(c.service_id, c.node_id, c.task_id) for c in (line.context for line in lines)} == {("s", "node", "t")}
        assert (lines[0].timestamp.seconds, lines[0].timestamp.nanos) == (10**9, 5), "not written later than that"
        assert abs(lines[2].timestamp.seconds - time.time()) < 5


async def test_only_tasks_that_the_selector_names_are_read(short_dir: Path) -> None:
    async with working(short_dir) as world:
        world.task("a", "s", out="mine\n")
        world.task("b", "other", out="not mine\n")
        assert await answer(world, subscription()) == ["mine"]
    async with working(short_dir) as world:
        world.tasks = [objects_pb2.Task(id="a", service_id="s"), objects_pb2.Task(id="b", service_id="other")]
        message = subscription(services=())
        message.selector.task_ids.append("b")
        assert await answer(world, message) == ["not mine"]
    async with working(short_dir) as world:
        world.tasks = [objects_pb2.Task(id="a", service_id="s"), objects_pb2.Task(id="b", service_id="other")]
        message = subscription(services=())
        message.selector.node_ids.append("node")
        assert await answer(world, message) == ["mine", "not mine"]


async def test_without_a_match_or_output_the_stream_is_closed_at_once(short_dir: Path) -> None:
    async with working(short_dir) as world:
        world.tasks.append(objects_pb2.Task(id="never-started", service_id="s"))
        assert await answer(world, subscription()) == []


async def test_options_choose_streams_and_the_tail(short_dir: Path) -> None:
    for options, expected in (
        ({"streams": [ERR]}, ["e1", "e2"]),
        ({"streams": [OUT, ERR], "tail": -2}, ["o3", "e2"]),
        ({"tail": -1}, []),
        ({"tail": 0}, ["o1", "o2", "o3", "e1", "e2"]),
    ):
        async with working(short_dir) as world:
            if not (short_dir / "t").exists():
                world.task(out="o1\no2\no3\n", err="e1\ne2\n", over=True)
            world.tasks = [objects_pb2.Task(id="t", service_id="s")]
            assert await answer(world, subscription(**options)) == expected, options


async def test_since_leaves_out_files_that_have_not_changed_since(short_dir: Path) -> None:
    async with working(short_dir) as world:
        place = world.task(out="old\n", err="new\n", over=True)
        os.utime(place / "stdout", (1000, 1000))
        message = subscription()
        message.options.since.FromSeconds(2000)
        assert await answer(world, message) == ["new"]


async def test_a_task_that_never_stops_writing_does_not_keep_a_reader_for_ever(short_dir: Path) -> None:
    async with working(short_dir) as world:
        place = world.task(out="first\n")
        original = world.publisher.in_thread

        async def busy(work: Callable[[], Any]) -> Any:
            done = await original(work)
            append(place / "stdout", "more\n")
            return done

        world.publisher.in_thread = busy  # type: ignore[method-assign]
        assert (await answer(world, subscription()))[0] == "first"


async def test_many_short_lines_come_in_messages_that_managers_take(short_dir: Path) -> None:
    async with working(short_dir) as world:
        world.task(out="\n" * 60_000, over=True)
        assert await answer(world, subscription()) == [""] * 60_000
        assert max(len(message.messages) for message in world.broker.messages) == LINES
        assert max(message.ByteSize() for message in world.broker.messages) < 4 << 20


async def test_following_brings_what_comes_until_it_is_closed(short_dir: Path) -> None:
    async with working(short_dir) as world, world.publisher.session(world.channel) as subscriptions:
        place = world.task(out="before\n")
        subscriptions.hear(subscription(follow=True))
        await world.broker.until(lambda: world.broker.lines() == ["before"])
        subscriptions.hear(subscription(follow=True))  # said twice
        append(place / "stdout", "now\n")
        append(place / "stderr", "and here\n")
        await world.broker.until(lambda: world.broker.lines() == ["before", "now", "and here"])
        subscriptions.hear(subscription(follow=True, close=True))
        assert not world.broker.closed(), "whoever closes it wants nothing more"


async def test_following_brings_tasks_that_start_later_once_and_whole(short_dir: Path) -> None:
    async with working(short_dir) as world, world.publisher.session(world.channel) as subscriptions:
        subscriptions.hear(subscription(follow=True, tail=-1))
        world.task("other", "else", out="no\n")
        world.task("later", out="first words\n")
        for task in world.tasks * 2:
            world.publisher.started(task)
        await world.broker.until(lambda: world.broker.lines() == ["first words"])
        append(world.directory / "later" / "stdout", "more\n")
        await world.broker.until(lambda: world.broker.lines() == ["first words", "more"])


async def test_the_last_words_of_a_followed_task_arrive(short_dir: Path) -> None:
    async with working(short_dir) as world, world.publisher.session(world.channel) as subscriptions:
        place = world.task()
        subscriptions.hear(subscription(follow=True))
        append(place / "stdout", "no newline")
        (place / EXIT).write_text("{}")
        await world.broker.until(lambda: world.broker.lines() == ["no newline"])


async def test_a_new_session_goes_on_where_the_last_one_stood(short_dir: Path) -> None:
    async with working(short_dir) as world:
        place = world.task(out="1\n")
        async with world.publisher.session(world.channel) as subscriptions:
            subscriptions.hear(subscription(follow=True))
            await world.broker.until(lambda: world.broker.lines() == ["1"])
        append(place / "stdout", "2\n")
        world.task("later", out="3\n")
        async with world.publisher.session(world.channel) as subscriptions:
            subscriptions.hear(subscription(follow=True))
            await world.broker.until(lambda: sorted(world.broker.lines()) == ["1", "2", "3"])


async def test_what_nobody_asks_for_again_is_let_go(short_dir: Path) -> None:
    async with working(short_dir) as world:
        world.task(out="1\n")

        async def session(*messages: logbroker_pb2.SubscriptionMessage) -> Subscriptions:
            async with world.publisher.session(world.channel) as subscriptions:
                for message in messages:
                    subscriptions.hear(message)
                await world.broker.until(lambda: len(world.broker.messages) >= 1)
                return subscriptions

        held = await session(subscription(follow=True))
        (followed,) = held.followed.values()
        assert followed.readings
        await session()
        assert not followed.readings


async def test_a_broker_that_refuses_costs_only_that_subscription(short_dir: Path) -> None:
    async with working(short_dir) as world:
        world.task(out="1\n")
        async with (
            grpc.aio.insecure_channel(f"unix:{short_dir}/nobody") as nowhere,
            world.publisher.session(nowhere) as subscriptions,
        ):
            subscriptions.hear(subscription(follow=True))
            subscriptions.hear(subscription(subscription_id="other"))
        assert world.broker.messages == []
