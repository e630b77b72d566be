"""The RPCs of the dispatcher (reference agent-and-dispatcher §5.3 to §5.10)."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.duration_pb2 import Duration

from procs.manager.authorization import Caller, caller_of
from procs.manager.ca.reenrol import note_leaf, read_trace, side_key
from procs.manager.dispatcher import reports
from procs.manager.dispatcher.assignments import AssignmentSet, Numbering
from procs.manager.dispatcher.dispatcher import Dispatcher, Term
from procs.manager.dispatcher.feeds import Shows
from procs.manager.members import Members
from procs.manager.status import invalid_argument, permission_denied, unknown
from procs.manager.store import Store, by
from swarm.api import dispatcher_pb2, dispatcher_pb2_grpc, objects_pb2, types_pb2
from swarm.identity import new_id

# ruff: noqa: N802  (gRPC's method names)

log = logging.getLogger(__name__)

MANAGER_WEIGHT = 10

_READY = types_pb2.NodeStatus.READY
_UNSPECIFIED = ("0.0.0.0", "::", "")


class DispatcherService(dispatcher_pb2_grpc.DispatcherServicer):
    """Speaks with agents. All state is the dispatcher's term."""

    def __init__(self, store: Store, dispatcher: Dispatcher, members: Members) -> None:
        self._store = store
        self._dispatcher = dispatcher
        self._members = members

    # -- sessions -----------------------------------------------------------------------------------

    async def Session(
        self, request: dispatcher_pb2.SessionRequest, context: Any
    ) -> AsyncIterator[dispatcher_pb2.SessionMessage]:
        """Register or resume, then show the node whatever of itself, the managers, keys and root changes."""
        term, caller = self._dispatcher.term(), caller_of(context)
        session_id = await self._establish(term, caller, request)
        with term.feeds.open(Shows.NODE, caller.node_id, session_id) as feed:
            shown: dispatcher_pb2.SessionMessage | None = None
            while True:
                message = self._message(term, caller, session_id)
                if message is not None and message != shown:
                    yield message
                    shown = message
                if feed.ended is not None:
                    raise feed.ended
                term.table.check(caller.node_id, session_id)
                await feed.wait()

    async def _establish(self, term: Term, caller: Caller, request: dispatcher_pb2.SessionRequest) -> str:
        """The session's id, once the node is READY in the committed store."""
        node_id = caller.node_id
        resumed = term.table.resumable(node_id, request.session_id)
        if not resumed:
            term.table.admit(node_id, term.clock.monotonic())
        if self._store.get(objects_pb2.Node, node_id) is None:
            raise unknown("node not found")
        description = request.description if request.HasField("description") else None
        await term.write_node(node_id, _READY, "", _host(caller.remote_addr), description)
        self._dispatcher.check_running(term)
        if self._store.get(objects_pb2.Node, node_id) is None:
            raise unknown("node not found")
        known = read_trace(self._store.side(side_key(node_id))).leaf
        if caller.leaf_hash not in ("", known):
            # What an older certificate of this node could prove ends here (see procs.manager.ca.reenrol).
            await self._store.update(lambda tx: note_leaf(tx, node_id, caller.leaf_hash), cause="certificate in use")
        if resumed and term.table.resumable(node_id, request.session_id):
            return request.session_id
        session_id = new_id()
        term.table.enter(node_id, session_id, term.clock.monotonic())
        term.timers_changed()
        # An older session ends now, not at its next wake-up: one node, one session (§10.3).
        term.feeds.end(node_id, invalid_argument("session invalid"), but=session_id)
        log.info("node %s registered from %s", node_id, caller.remote_addr or "the control socket")
        return session_id

    def _message(self, term: Term, caller: Caller, session_id: str) -> dispatcher_pb2.SessionMessage | None:
        """Everything a session shows, as it is now; None if the node is gone."""
        node = self._store.get(objects_pb2.Node, caller.node_id)
        if node is None:
            return None
        message = dispatcher_pb2.SessionMessage(session_id=session_id, node=node, RootCA=term.root_ca)
        message.network_bootstrap_keys.extend(term.keys)
        for member in self._members.members():
            # All managers, each with id and address: an agent forgets those it does not find here (§10.1).
            peer = message.managers.add(weight=MANAGER_WEIGHT).peer
            peer.node_id = member.node_id
            peer.addr = _reachable(member.addr, caller) if member.node_id == term.node_id else member.addr
        return message

    async def Heartbeat(
        self, request: dispatcher_pb2.HeartbeatRequest, context: Any
    ) -> dispatcher_pb2.HeartbeatResponse:
        """The node lives; says when to say so again."""
        term, caller = self._dispatcher.term(), caller_of(context)
        period = term.table.beat(caller.node_id, request.session_id, term.clock.monotonic())
        nanos = int(period * 1e9)
        return dispatcher_pb2.HeartbeatResponse(
            period=Duration(seconds=nanos // 1_000_000_000, nanos=nanos % 1_000_000_000)
        )

    # -- reports ------------------------------------------------------------------------------------

    async def UpdateTaskStatus(
        self, request: dispatcher_pb2.UpdateTaskStatusRequest, context: Any
    ) -> dispatcher_pb2.UpdateTaskStatusResponse:
        """Take reports of the node's own tasks; answered when they are durable."""
        term, caller = self._dispatcher.term(), caller_of(context)
        term.table.check(caller.node_id, request.session_id)
        news: list[tuple[str, types_pb2.TaskStatus]] = []
        for update in request.updates:
            if not update.HasField("status"):
                continue
            task = self._store.get(objects_pb2.Task, update.task_id)
            if task is None:
                continue
            if task.node_id != caller.node_id:
                raise permission_denied("cannot update a task not assigned this node")
            # Agents report everything again at each session; what the store has already costs no write (§10.1).
            if reports.task_status(task, update.status, "", 0) is not None:
                news.append((update.task_id, update.status))
        if news:
            await term.write_statuses(news)
        return dispatcher_pb2.UpdateTaskStatusResponse()

    async def UpdateVolumeStatus(
        self, request: dispatcher_pb2.UpdateVolumeStatusRequest, context: Any
    ) -> dispatcher_pb2.UpdateVolumeStatusResponse:
        """Take reports of cluster volumes that the node let go; answered when they are durable."""
        term, caller = self._dispatcher.term(), caller_of(context)
        term.table.check(caller.node_id, request.session_id)
        volumes = [update.id for update in request.updates if update.unpublished]
        if volumes:
            await term.write_unpublished(caller.node_id, volumes)
        return dispatcher_pb2.UpdateVolumeStatusResponse()

    # -- assignments --------------------------------------------------------------------------------

    async def Assignments(
        self, request: dispatcher_pb2.AssignmentsRequest, context: Any
    ) -> AsyncIterator[dispatcher_pb2.AssignmentsMessage]:
        """Everything the node must have, then each change: at once when quiet, coalesced while one is being sent."""
        term, caller = self._dispatcher.term(), caller_of(context)
        term.table.check(caller.node_id, request.session_id)
        with term.feeds.open(Shows.TASKS, caller.node_id, request.session_id) as feed:
            wanted = AssignmentSet(caller.node_id, self._store.get)
            numbering = Numbering()
            tasks = self._store.find(objects_pb2.Task, by.node(caller.node_id))
            yield numbering.complete(wanted.complete(tasks, self._store.find(objects_pb2.Volume)))
            while True:
                await feed.wait()
                if feed.ended is not None:
                    raise feed.ended
                term.table.check(caller.node_id, request.session_id)
                task_ids, volume_ids = feed.take()
                changes = [
                    change
                    for task_id in task_ids
                    for change in wanted.task(task_id, self._store.get(objects_pb2.Task, task_id))
                ]
                for volume_id in volume_ids:
                    changes += wanted.volume(volume_id, self._store.get(objects_pb2.Volume, volume_id))
                for message in numbering.incremental(changes):
                    yield message

    async def Tasks(
        self, request: dispatcher_pb2.TasksRequest, context: Any
    ) -> AsyncIterator[dispatcher_pb2.TasksMessage]:
        """The older form: all tasks of the node each time one changes."""
        term, caller = self._dispatcher.term(), caller_of(context)
        term.table.check(caller.node_id, request.session_id)
        with term.feeds.open(Shows.TASKS, caller.node_id, request.session_id) as feed:
            wanted = AssignmentSet(caller.node_id, self._store.get)
            tasks = self._store.find(objects_pb2.Task, by.node(caller.node_id))
            wanted.complete(tasks, ())
            yield _tasks(tasks)
            while True:
                await feed.wait()
                if feed.ended is not None:
                    raise feed.ended
                term.table.check(caller.node_id, request.session_id)
                task_ids, _ = feed.take()
                changes = [c for t in task_ids for c in wanted.task(t, self._store.get(objects_pb2.Task, t))]
                if any(change.assignment.WhichOneof("item") == "task" for change in changes):
                    yield _tasks(self._store.find(objects_pb2.Task, by.node(caller.node_id)))


def _tasks(tasks: list[objects_pb2.Task]) -> dispatcher_pb2.TasksMessage:
    return dispatcher_pb2.TasksMessage(tasks=[t for t in tasks if t.status.state >= types_pb2.TaskState.ASSIGNED])


def _host(address: str) -> str:
    """The host of `HOST:PORT`, without brackets."""
    return address.rpartition(":")[0].strip("[]")


def _reachable(addr: str, caller: Caller) -> str:
    """Our own address as this agent can use it: where we announce none, the one it dialled."""
    if _host(addr) not in _UNSPECIFIED:
        return addr
    port = addr.rpartition(":")[2]
    host = _host(caller.local_addr) or "127.0.0.1"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
