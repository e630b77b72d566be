"""The agent's side of the log broker: what tasks write, sent to whom subscribed (reference agent-and-dispatcher §2.13).

A subscription comes over the session and is answered by one stream of lines. Without `follow` it is what was written by
now; with it, what is written from then on as well, also by tasks that start later. A session that is rebuilt brings its
subscriptions again: they continue where the last one stood, so that nothing comes twice and nothing is missing.

Lines carry the time at which they were read, or the file's last change where that is earlier (nobody sits between a
task and its file to stamp them). So `since` cannot divide one file: it leaves out files that have not changed since,
and `tail` counts in each of stdout and stderr.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import grpc.aio
from google.protobuf import timestamp_pb2

from swarm.api import logbroker_pb2, objects_pb2
from swarm.inotify import Inotify
from swarm.tasklog import LogFile, LogLine
from swarm.workload import EXIT, STDERR, STDOUT

PUBLISH_LOGS = "/docker.swarmkit.v1.LogBroker/PublishLogs"
LINES = 1000
"""Lines in one message: managers take 4 MiB, and each line brings its context."""
_NANOS = 10**9
_STREAMS = {STDOUT: logbroker_pb2.LOG_STREAM_STDOUT, STDERR: logbroker_pb2.LOG_STREAM_STDERR}

T = TypeVar("T")
Send = Callable[[list[logbroker_pb2.LogMessage]], Awaitable[None]]


@dataclass
class Reading:
    """One task's output for one subscription. All but `news` and `done` is for the reading thread."""

    context: logbroker_pb2.LogContext
    directory: Path
    files: list[LogFile]
    ends: list[int] = field(default_factory=list)
    """Where to stop in each file; empty: never, the task is followed."""
    unsent: list[logbroker_pb2.LogMessage] = field(default_factory=list)
    """Read, and not yet with the broker for sure."""
    over: bool = False
    """Nothing more comes: the task has ended, and all of it is read."""
    done: bool = False
    watch: int = -1
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def begin(self, options: logbroker_pb2.LogSubscriptionOptions, *, whole: bool) -> None:
        """Go to where the subscription begins; `whole`: with the first line, since the task starts only now."""
        if not whole and options.tail < 0:
            for log in self.files:
                log.seek_tail(-options.tail - 1)
        if options.HasField("since"):
            since = options.since.seconds * _NANOS + options.since.nanos
            self.files = [log for log in self.files if options.follow or log.look()[1] > since]
            for log in self.files:
                if not whole and log.look()[1] <= since:
                    log.seek_tail(0)
        if not options.follow:
            self.ends = [log.look()[0] for log in self.files]

    def step(self) -> list[logbroker_pb2.LogMessage]:
        """The next messages; none: all that there is by now was read (then look at `over`). Call `sent` in between."""
        if self.unsent:
            return self.unsent
        # before reading: what was written before the end is then read for certain
        ended = not self.directory.exists() or (self.directory / EXIT).exists()
        for number, log in enumerate(self.files):
            while not self._at_end(number, log) and (lines := log.read_some()) is not None:
                if lines:
                    self.unsent = self._messages(log, lines)
                    return self.unsent
        if ended or self.ends:
            self.over = True
            for log in self.files:
                self.unsent += self._messages(log, log.rest())
        return self.unsent

    def sent(self) -> None:
        """What `step` said last is with the broker."""
        self.unsent = []

    def close(self) -> None:
        for log in self.files:
            log.close()

    def _at_end(self, number: int, log: LogFile) -> bool:
        return bool(self.ends) and log.position >= self.ends[number]

    def _messages(self, log: LogFile, lines: Iterable[LogLine]) -> list[logbroker_pb2.LogMessage]:
        changed = log.look()[1]
        return [self._message(line, min(line.at, changed)) for line in lines]

    def _message(self, line: LogLine, at: int) -> logbroker_pb2.LogMessage:
        return logbroker_pb2.LogMessage(
            context=self.context,
            timestamp=timestamp_pb2.Timestamp(seconds=at // _NANOS, nanos=at % _NANOS),
            stream=_STREAMS[line.stream],
            data=line.data + b"\n",
        )


class LogPublisher:
    """Serves the subscriptions of one session after another. Lives as long as the agent."""

    def __init__(
        self,
        *,
        directory: Callable[[str], Path],
        node_id: Callable[[], str],
        log: logging.Logger,
    ) -> None:
        self._tasks: Callable[[], Iterable[objects_pb2.Task]] = list
        self._directory = directory
        self._node_id = node_id
        self._log = log
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="agent-logs")
        self._inotify: Inotify | None = None
        self._watched: dict[int, list[Reading]] = {}
        self._followed: dict[str, Subscription] = {}
        """By id: of this session, or of the last one and not yet asked for again."""

    def of(self, tasks: Callable[[], Iterable[objects_pb2.Task]]) -> None:
        """Whose output this is: `tasks` lists those of the node."""
        self._tasks = tasks

    @asynccontextmanager
    async def session(self, channel: grpc.aio.Channel) -> AsyncIterator[Subscriptions]:
        """Serve one session's subscriptions until its end."""
        subscriptions = Subscriptions(self, channel, self._followed)
        self._followed = subscriptions.followed
        try:
            yield subscriptions
        finally:
            await subscriptions.end()

    def started(self, task: objects_pb2.Task) -> None:
        """A task has a process, or had one: those who follow it want what it writes."""
        for subscription in self._followed.values():
            subscription.offer(task)

    async def close(self) -> None:
        """Forget everything."""
        for subscription in self._followed.values():
            await self.release(subscription)
        self._followed = {}
        self._thread.shutdown(wait=True)

    # -- for the subscriptions -----------------------------------------------------------------------

    def matching(self, selector: logbroker_pb2.LogSelector) -> list[objects_pb2.Task]:
        return [task for task in self._tasks() if self.matches(selector, task)]

    def matches(self, selector: logbroker_pb2.LogSelector, task: objects_pb2.Task) -> bool:
        return (
            task.id in selector.task_ids
            or task.service_id in selector.service_ids
            or self._node_id() in selector.node_ids
        )

    async def open(
        self, task: objects_pb2.Task, options: logbroker_pb2.LogSubscriptionOptions, *, whole: bool
    ) -> Reading | None:
        """The task's output, from where the subscription begins; None if the task never had any."""
        directory = self._directory(task.id)
        context = logbroker_pb2.LogContext(service_id=task.service_id, node_id=self._node_id(), task_id=task.id)
        wanted = [name for name, number in _STREAMS.items() if not options.streams or number in options.streams]
        reading = Reading(context, directory, [LogFile(directory / name) for name in wanted])
        try:
            if options.follow:
                self._watch(reading)
            await self.in_thread(functools.partial(reading.begin, options, whole=whole))
        except FileNotFoundError:
            return None
        except OSError as error:
            self._log.warning("the output of task %s cannot be followed: %s", task.id, error)
            return None
        return reading

    async def release(self, subscription: Subscription) -> None:
        """Let go of everything that a subscription holds."""
        readings, subscription.readings = subscription.readings, {}
        for reading in readings.values():
            if reading is not None:
                self._unwatch(reading)
                await self.in_thread(reading.close)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """All reading is done in one thread, one piece at a time."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    @property
    def log(self) -> logging.Logger:
        return self._log

    def _watch(self, reading: Reading) -> None:
        if self._inotify is None:
            self._inotify = Inotify()
            asyncio.get_running_loop().add_reader(self._inotify.fileno(), self._changed, self._inotify)
        reading.watch = self._inotify.add(reading.directory)
        self._watched.setdefault(reading.watch, []).append(reading)

    def _unwatch(self, reading: Reading) -> None:
        sharing = self._watched.get(reading.watch, [])
        if self._inotify is None or reading not in sharing:
            return
        sharing.remove(reading)
        if not sharing:
            del self._watched[reading.watch]
            self._inotify.remove(reading.watch)
        if not self._watched:
            asyncio.get_running_loop().remove_reader(self._inotify.fileno())
            self._inotify.close()
            self._inotify = None

    def _changed(self, inotify: Inotify) -> None:
        numbers = inotify.changed()
        for number in self._watched if numbers is None else numbers:
            for reading in self._watched.get(number, ()):
                reading.news.set()


class Subscription:
    """What somebody wants to read. Of a followed one the place in each task's output outlives the session."""

    def __init__(self, message: logbroker_pb2.SubscriptionMessage, publisher: LogPublisher) -> None:
        self.message = message
        self.readings: dict[str, Reading | None] = {}
        """By task; None: it never wrote anything that can be read."""
        self._publisher = publisher
        self._new: asyncio.Queue[objects_pb2.Task] = asyncio.Queue()

    def offer(self, task: objects_pb2.Task) -> None:
        """A task that has started, perhaps one that is followed already."""
        if task.id not in self.readings and self._publisher.matches(self.message.selector, task):
            self.readings[task.id] = None
            self._new.put_nowait(task)

    async def publish(self, channel: grpc.aio.Channel) -> None:
        """Send what is asked for; returns when all of it is sent, which for a followed subscription is never."""
        # As a stream in both directions, which is the same on the wire: Go managers end the call without the one
        # answer that they owe (§6.4), and grpc would call that an error.
        call = channel.stream_stream(
            PUBLISH_LOGS,
            request_serializer=logbroker_pb2.PublishLogsMessage.SerializeToString,
            response_deserializer=logbroker_pb2.PublishLogsResponse.FromString,
        )()
        one_at_a_time = asyncio.Lock()
        subscription_id = self.message.id

        async def send(messages: list[logbroker_pb2.LogMessage]) -> None:
            for first in range(0, len(messages), LINES):
                part = logbroker_pb2.PublishLogsMessage(subscription_id=subscription_id)
                part.messages.extend(messages[first : first + LINES])
                async with one_at_a_time:
                    await call.write(part)

        try:
            if self.message.options.follow:
                await self._follow(send)
            else:
                await self._history(send)
            await call.write(logbroker_pb2.PublishLogsMessage(subscription_id=subscription_id, close=True))
            await call.done_writing()
            while await call.read() is not grpc.aio.EOF:
                pass
        except* (grpc.aio.AioRpcError, asyncio.InvalidStateError) as errors:
            # Whoever asked is gone, or the session is.
            self._publisher.log.debug("log subscription %s: %s", subscription_id, errors.exceptions)
        finally:
            call.cancel()

    async def _history(self, send: Send) -> None:
        for task in self._publisher.matching(self.message.selector):
            reading = await self._publisher.open(task, self.message.options, whole=False)
            if reading is not None:
                self.readings[task.id] = reading
                await self._read(reading, send)

    async def _follow(self, send: Send) -> None:
        async with asyncio.TaskGroup() as group:
            for task_id, reading in self.readings.items():
                if reading is not None and not reading.done:  # of the session before
                    group.create_task(self._read(reading, send), name=f"log of {task_id}")
            for task in self._publisher.matching(self.message.selector):
                if task.id not in self.readings:
                    await self._begin(task, send, group, whole=False)
            while True:
                await self._begin(await self._new.get(), send, group, whole=True)

    async def _begin(self, task: objects_pb2.Task, send: Send, group: asyncio.TaskGroup, *, whole: bool) -> None:
        reading = await self._publisher.open(task, self.message.options, whole=whole)
        if reading is None:
            self.readings.pop(task.id, None)  # it will be offered again when it has started
            return
        self.readings[task.id] = reading
        group.create_task(self._read(reading, send), name=f"log of {task.id}")

    async def _read(self, reading: Reading, send: Send) -> None:
        try:
            while not reading.done:
                reading.news.clear()
                while messages := await self._publisher.in_thread(reading.step):
                    await send(messages)
                    reading.sent()
                    if reading.over:
                        break
                if reading.over:
                    reading.done = True
                else:
                    await reading.news.wait()
        except OSError as error:
            reading.done = True
            self._publisher.log.warning("the output of task %s cannot be read: %s", reading.context.task_id, error)


class Subscriptions:
    """Those of one session."""

    def __init__(
        self,
        publisher: LogPublisher,
        channel: grpc.aio.Channel,
        earlier: dict[str, Subscription],
    ) -> None:
        self.followed: dict[str, Subscription] = {}
        self._publisher = publisher
        self._channel = channel
        self._earlier = earlier
        self._running: dict[str, asyncio.Task[None]] = {}
        self._closed: set[str] = set()

    def hear(self, message: logbroker_pb2.SubscriptionMessage) -> None:
        """Begin or end a subscription. One that is known is said twice, which means nothing."""
        running = self._running.get(message.id)
        if message.close:
            self._closed.add(message.id)
            if running is not None:
                running.cancel()
            return
        if running is not None:
            return
        subscription = self._earlier.pop(message.id, None) or Subscription(message, self._publisher)
        if message.options.follow:
            self.followed[message.id] = subscription
        task = asyncio.create_task(self._serve(subscription), name=f"log subscription {message.id}")
        self._running[message.id] = task

    async def end(self) -> None:
        """The session is over. What is followed keeps its place until the end of the next one."""
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        for subscription in self._earlier.values():
            await self._publisher.release(subscription)
        self._earlier.clear()

    async def _serve(self, subscription: Subscription) -> None:
        subscription_id = subscription.message.id
        try:
            await subscription.publish(self._channel)
        except Exception:
            # Nobody waits for this one: a fault here must not cost the node its session.
            self._publisher.log.exception("log subscription %s ended", subscription_id)
        finally:
            if subscription_id in self._closed or not subscription.message.options.follow:
                self.followed.pop(subscription_id, None)
                await self._publisher.release(subscription)
