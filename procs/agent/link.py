"""One session with one manager over one connection: all its streams, until the first of them ends.

Session (registers), then heartbeats, Assignments, ListenSubscriptions and the sender of statuses, in parallel. What
ends one ends all (reference agent-and-dispatcher §2.3, B); the two tolerated answers are `Unimplemented` to Assignments
(then Tasks) and to ListenSubscriptions (then there are no logs).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar, cast

import grpc
import grpc.aio

from procs.agent.logs import LogPublisher
from procs.agent.reporter import Report, ReportQueue
from swarm import dial
from swarm.api import dispatcher_pb2, dispatcher_pb2_grpc, logbroker_pb2, logbroker_pb2_grpc, types_pb2
from swarm.errors import Unreachable

RPC_TIMEOUT = 5.0
"""Seconds for the first answer of a session and for each heartbeat (SwarmKit's)."""
UPDATE_TIMEOUT = 20.0
"""Seconds for one batch of statuses."""
DEFAULT_PERIOD = 5.0
"""Seconds between heartbeats where a manager names none."""
NOT_REGISTERED = "node not registered"
M = TypeVar("M")
_COMPLETE = dispatcher_pb2.AssignmentsMessage.COMPLETE


class SessionEnded(Unreachable):
    """The session is over; the message says why."""


class Ports(Protocol):
    """Whom a session tells."""

    def session_message(self, message: dispatcher_pb2.SessionMessage, *, foreign: bool) -> None:
        """Node, managers, root: the newest. `foreign`: from a manager that is not ours."""

    def registered(self, session_id: str, *, resumed: bool) -> None:
        """The manager has answered. Not `resumed`: it knows nothing of earlier reports."""

    async def assignments(self, message: dispatcher_pb2.AssignmentsMessage) -> None:
        """A change set, in sequence."""

    def acknowledged(self, reports: list[Report]) -> None:
        """These statuses arrived."""


class Sequence:
    """The order of one Assignments stream: a message applies to the result of the one before it, or not at all."""

    def __init__(self) -> None:
        self._ref = ""

    def accept(self, message: dispatcher_pb2.AssignmentsMessage) -> bool:
        """Whether `message` follows; then it is the new reference. A stream begins with a COMPLETE that applies to
        nothing."""
        if message.applies_to != self._ref or (not self._ref and message.type != _COMPLETE):
            return False
        self._ref = message.results_in
        return True


class Link:
    """A session. `run` holds it and raises SessionEnded."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        description: types_pb2.NodeDescription,
        session_id: str,
        reports: ReportQueue,
        reports_waiting: asyncio.Event,
        ports: Ports,
        logs: LogPublisher,
        log: logging.Logger,
    ) -> None:
        self._channel = channel
        self._dispatcher: dispatcher_pb2_grpc.DispatcherAsyncStub = dispatcher_pb2_grpc.DispatcherStub(channel)
        self._broker: logbroker_pb2_grpc.LogBrokerAsyncStub = logbroker_pb2_grpc.LogBrokerStub(channel)
        self._description = description
        self._offered = session_id
        self._session_id = ""
        self._foreign = False
        self._reports = reports
        self._reports_waiting = reports_waiting
        self._ports = ports
        self._logs = logs
        self._log = log

    async def run(self) -> None:
        """Hold the session until something ends it. Always raises SessionEnded (or is cancelled)."""
        request = dispatcher_pb2.SessionRequest(description=self._description, session_id=self._offered)
        stream = self._dispatcher.Session(request)
        try:
            try:
                async with asyncio.timeout(RPC_TIMEOUT):
                    first = await _read(stream)
            except TimeoutError as error:
                raise SessionEnded("session initiation timed out") from error
            if first is None:
                raise SessionEnded("the manager ended the session at once")
            self._session_id = first.session_id
            self._foreign = dial.OURS not in dict(await stream.initial_metadata())
            self._ports.session_message(first, foreign=self._foreign)
            self._ports.registered(self._session_id, resumed=self._session_id == self._offered)
            await self._hold(lambda: self._listen(stream))
        except grpc.aio.AioRpcError as error:
            raise SessionEnded(_text(error)) from error
        finally:
            stream.cancel()

    async def _hold(self, listen: Callable[[], Awaitable[None]]) -> None:
        """Run all parts; the first that ends, however it ends, ends the session."""
        parts = {
            asyncio.ensure_future(part): name
            for name, part in {
                "session": listen(),
                "heartbeat": self._heartbeat(),
                "assignments": self._assignments(),
                "subscriptions": self._subscriptions(),
                "reports": self._report(),
            }.items()
        }
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
        for part in done:
            part.result()  # raises what ended it
        raise SessionEnded(f"the manager ended {', '.join(parts[part] for part in done)}")

    async def _listen(self, stream: grpc.aio.UnaryStreamCall[Any, dispatcher_pb2.SessionMessage]) -> None:
        while (message := await _read(stream)) is not None:
            self._ports.session_message(message, foreign=self._foreign)

    async def _heartbeat(self) -> None:
        while True:
            request = dispatcher_pb2.HeartbeatRequest(session_id=self._session_id)
            response = await self._dispatcher.Heartbeat(request, timeout=RPC_TIMEOUT)
            period = response.period.seconds + response.period.nanos / 1e9
            await asyncio.sleep(period if period > 0 else DEFAULT_PERIOD)

    async def _assignments(self) -> None:
        """Open the stream, and open it again after a gap; a gap at its very beginning ends the session."""
        while True:
            sequence = Sequence()
            stream = self._dispatcher.Assignments(dispatcher_pb2.AssignmentsRequest(session_id=self._session_id))
            applied = 0
            try:
                while True:
                    message = await _read(stream)
                    if message is None:
                        return
                    if not sequence.accept(message):
                        break
                    await self._ports.assignments(message)
                    applied += 1
            except grpc.aio.AioRpcError as error:
                if applied or error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                    raise
                await self._tasks()
                return
            finally:
                stream.cancel()
            if not applied:
                raise SessionEnded("the manager's assignments do not begin with a complete set")
            self._log.warning("assignments out of sequence after %d messages; asking for all of them anew", applied)

    async def _tasks(self) -> None:
        """The older way to be told of tasks: all of them each time."""
        stream = self._dispatcher.Tasks(dispatcher_pb2.TasksRequest(session_id=self._session_id))
        try:
            while (message := await _read(stream)) is not None:
                complete = dispatcher_pb2.AssignmentsMessage(type=_COMPLETE)
                for task in message.tasks:
                    complete.changes.add().assignment.task.CopyFrom(task)
                await self._ports.assignments(complete)
        finally:
            stream.cancel()

    async def _subscriptions(self) -> None:
        stream = self._broker.ListenSubscriptions(logbroker_pb2.ListenSubscriptionsRequest())
        try:
            async with self._logs.session(self._channel) as subscriptions:
                while (message := await _read(stream)) is not None:
                    subscriptions.hear(message)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                raise
            await asyncio.get_running_loop().create_future()  # no logs, for as long as the session lasts
        finally:
            stream.cancel()

    async def _report(self) -> None:
        """One batch at a time: what changes meanwhile makes the next one."""
        while True:
            await self._reports_waiting.wait()
            self._reports_waiting.clear()
            while self._reports.ready:
                await self._send(self._reports.take())

    async def _send(self, batch: list[Report]) -> None:
        request = dispatcher_pb2.UpdateTaskStatusRequest(session_id=self._session_id)
        for report in batch:
            request.updates.add(task_id=report.task_id, status=report.status)
        try:
            await self._dispatcher.UpdateTaskStatus(request, timeout=UPDATE_TIMEOUT)
        except grpc.aio.AioRpcError as error:
            # Go managers say NotFound also for a session that is over; then the statuses are still wanted (§10.1).
            if error.code() is not grpc.StatusCode.NOT_FOUND or error.details() == NOT_REGISTERED:
                self._reports.failed()
                raise
            self._log.info("the manager no longer knows %d reported tasks", len(batch))
        except BaseException:
            self._reports.failed()
            raise
        self._ports.acknowledged(self._reports.arrived())


async def _read(stream: grpc.aio.UnaryStreamCall[Any, M]) -> M | None:
    """The next message, None at the end of the stream."""
    message = await stream.read()
    return None if message is grpc.aio.EOF else cast("M", message)


def _text(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name}: {error.details()}"
