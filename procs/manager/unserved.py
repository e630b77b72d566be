"""Services of the wire protocol that this manager answers with a plain sentence, and the log broker's quiet half.

Every one is registered, so that the guard authorizes its callers first: a stranger learns nothing from the sentence.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from procs.manager.status import failed_precondition, unavailable, unimplemented
from swarm.api import logbroker_pb2, logbroker_pb2_grpc, raft_pb2_grpc, resource_pb2_grpc, watch_pb2_grpc

# ruff: noqa: N802, ARG002  (gRPC's method names; a refusal looks at nothing)

_JOIN = (
    "this swarm keeps its state in a SQLite file, which has one manager: another one cannot join. "
    "Let the node be a worker: `swarmvisor node demote`"
)


class LogBrokerService(logbroker_pb2_grpc.LogBrokerServicer):
    """Agents must be able to listen for subscriptions, or they give up their session; there are none to hear of."""

    def __init__(self) -> None:
        self._closing = asyncio.Event()

    def close(self) -> None:
        """End every parked call: the process stops."""
        self._closing.set()

    async def ListenSubscriptions(
        self, request: logbroker_pb2.ListenSubscriptionsRequest, context: Any
    ) -> AsyncIterator[logbroker_pb2.SubscriptionMessage]:
        await self._closing.wait()  # or until the agent hangs up and grpcio cancels this
        raise unavailable("the manager stops")
        yield  # makes this an async generator, as streams are

    async def PublishLogs(self, request_iterator: Any, context: Any) -> Any:
        raise unimplemented("no log subscription is open on this manager; logs are read on the node that runs the task")


class LogsService(logbroker_pb2_grpc.LogsServicer):
    """Logs are read from the files of the node that runs the task."""

    async def SubscribeLogs(self, request: Any, context: Any) -> AsyncIterator[Any]:
        raise unimplemented("this manager does not collect logs; read them on the node: `swarmvisor task logs`")
        yield  # as above


class WatchService(watch_pb2_grpc.WatchServicer):
    """The watch API."""

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        raise unimplemented("this manager does not serve the watch API; list the objects instead")
        yield  # as above


class ResourceAllocatorService(resource_pb2_grpc.ResourceAllocatorServicer):
    """Attachments of single containers to networks."""

    async def AttachNetwork(self, request: Any, context: Any) -> Any:
        raise unimplemented("this swarm has no networks that a container could be attached to")

    async def DetachNetwork(self, request: Any, context: Any) -> Any:
        raise unimplemented("this swarm has no networks that a container could be attached to")


class RaftService(raft_pb2_grpc.RaftServicer):
    """SwarmKit's replication, which Swarmvisor does without."""

    async def ProcessRaftMessage(self, request: Any, context: Any) -> Any:
        raise unimplemented("managers of this swarm do not replicate by raft")

    async def StreamRaftMessage(self, request_iterator: Any, context: Any) -> Any:
        raise unimplemented("managers of this swarm do not replicate by raft")

    async def ResolveAddress(self, request: Any, context: Any) -> Any:
        raise unimplemented("managers of this swarm do not replicate by raft")


class RaftMembershipService(raft_pb2_grpc.RaftMembershipServicer):
    """Joining and leaving the managers."""

    async def Join(self, request: Any, context: Any) -> Any:
        raise failed_precondition(_JOIN)

    async def Leave(self, request: Any, context: Any) -> Any:
        raise failed_precondition("the only manager of a swarm cannot leave it")
