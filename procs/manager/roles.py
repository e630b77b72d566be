"""The role manager, on the leader: makes a node's observed role follow the desired one (reference manager §4.1).

A promotion is one write: from then on the CA issues the node a manager's certificate, and the node joins the managers
by itself. A demotion first removes the node from the managers and only then writes the role, so nobody is a worker
whose vote still counts. The leader itself is never removed by its own hand while another can lead: it hands over, and
the next leader's role manager does it. Members whose node object is gone are removed the same way.

`decide` is the whole rule and pure. What cannot be done now (it would cost the quorum) is looked at again when the
store or the members change, and every 5 s as long as something is left.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from procs.manager.members import Membership, quorum_without
from procs.manager.store import Action, Event, Store, Tx
from procs.manager.store.errors import NotWritten, StoreFull, WatchOverflow
from swarm.api import raft_pb2
from swarm.api.objects_pb2 import Node
from swarm.api.types_pb2 import MANAGER, WORKER, NodeRole
from swarm.errors import SwarmvisorError

RETRY_SECONDS = 5.0
REMOVAL_SECONDS = 5.0
"""That a removal from the managers may take."""
HAND_OVER_SECONDS = 25.0
"""That another manager gets to take the lead."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SetRole:
    """Write the observed role."""

    node_id: str
    role: NodeRole.ValueType


@dataclass(frozen=True, slots=True)
class RemoveMember:
    """Take the node out of the managers."""

    node_id: str
    raft_id: int


@dataclass(frozen=True, slots=True)
class HandOver:
    """Let another manager lead; that one removes this one."""

    node_id: str
    raft_id: int


@dataclass(frozen=True, slots=True)
class Hold:
    """Nothing can be done now."""

    node_id: str
    why: str


Decision = SetRole | RemoveMember | HandOver | Hold


def decide(node_id: str, node: Node | None, members: Sequence[raft_pb2.RaftMember], leader_id: str) -> Decision | None:
    """The next step for one node, None if there is none. `node` None: its object is gone; `leader_id`: this node."""
    member = next((member for member in members if member.node_id == node_id), None)
    if node is not None:
        if node.role == node.spec.desired_role:
            return None
        if node.spec.desired_role == MANAGER:
            return SetRole(node_id, MANAGER)
    if member is None:
        return None if node is None else SetRole(node_id, WORKER)
    quorum = quorum_without(node_id, members)
    if not quorum.kept:
        return Hold(node_id, f"it stays among the managers for now: {quorum.words}")
    if node_id == leader_id:
        return HandOver(node_id, member.raft_id)
    return RemoveMember(node_id, member.raft_id)


class Worklist:
    """The nodes that a step is left for. Fed with everything once, then with each commit."""

    def __init__(self) -> None:
        self._left: dict[str, None] = {}

    def __bool__(self) -> bool:
        return bool(self._left)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._left))

    def resync(self, nodes: Iterable[Node], members: Iterable[raft_pb2.RaftMember]) -> None:
        """Look at all: nodes with two roles, and members (`decide` drops those that are as they should be)."""
        self._left = {node.id: None for node in nodes if node.role != node.spec.desired_role}
        self._left.update({member.node_id: None for member in members})

    def observe(self, event: Event) -> None:
        """Take note of a committed change."""
        if isinstance(event.object, Node):
            gone = event.action is Action.DELETE
            if gone or event.object.role != event.object.spec.desired_role:
                self._left[event.object.id] = None

    def done(self, node_id: str) -> None:
        self._left.pop(node_id, None)


class RoleManager:
    """Runs on the leader of one term."""

    def __init__(self, store: Store, members: Membership, node_id: str) -> None:
        self._store = store
        self._members = members
        self._node_id = node_id
        self._left = Worklist()
        self.held: dict[str, str] = {}
        """Node id to why its role cannot follow yet."""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self._follow()
            except (StoreFull, NotWritten, WatchOverflow) as error:
                _log.warning("roles: %s; looking at all nodes again in %g s", error.describe(), RETRY_SECONDS)
                await asyncio.sleep(RETRY_SECONDS)

    async def _follow(self) -> None:
        async with self._store.watch() as watch:
            self._left.resync(self._store.find(Node), self._members.members())
            news = asyncio.ensure_future(anext(watch))
            moved = asyncio.ensure_future(self._members.changed())
            try:
                while True:
                    await self._work()
                    patience = RETRY_SECONDS if self._left else None
                    await asyncio.wait({news, moved}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                    if news.done():
                        for commit in [news.result(), *watch.drain()]:
                            for event in commit.events:
                                self._left.observe(event)
                        news = asyncio.ensure_future(anext(watch))
                    if moved.done():
                        moved.result()
                        moved = asyncio.ensure_future(self._members.changed())
            finally:
                for waiting in (news, moved):
                    waiting.cancel()
                await asyncio.gather(news, moved, return_exceptions=True)

    async def _work(self) -> None:
        """One step for each node on the list, and the next one at once where a step succeeded."""
        for node_id in self._left:
            while True:
                decision = decide(node_id, self._store.get(Node, node_id), self._members.members(), self._node_id)
                if not isinstance(decision, Hold):
                    self.held.pop(node_id, None)
                if decision is None:
                    self._left.done(node_id)
                    break
                if not await self._perform(decision):
                    break

    async def _perform(self, decision: Decision) -> bool:
        """Whether it was done, so that the next step may be looked at."""
        match decision:
            case SetRole(node_id, role):
                name = NodeRole.Name(role).lower()
                await self._store.update(self._write(decision), cause=f"role {name} {node_id}")
                _log.info("node %s: observed role %s now", node_id, name)
                return True
            case RemoveMember(node_id, raft_id):
                return await self._remove(node_id, raft_id)
            case HandOver(node_id, raft_id):
                try:
                    async with asyncio.timeout(HAND_OVER_SECONDS):
                        await self._members.hand_over()
                except (SwarmvisorError, TimeoutError) as error:
                    _log.warning("the lead could not be handed over (%s); removing this manager by itself", error)
                    return await self._remove(node_id, raft_id)
                _log.info("handed the lead over: the next leader takes this node out of the managers")
                return False
            case Hold(node_id, why):
                if self.held.get(node_id) != why:
                    self.held[node_id] = why
                    _log.warning("node %s is to be no manager any more, but %s", node_id, why)
        return False

    async def _remove(self, node_id: str, raft_id: int) -> bool:
        try:
            async with asyncio.timeout(REMOVAL_SECONDS):
                await self._members.remove(raft_id)
        except (SwarmvisorError, TimeoutError) as error:
            words = error.describe() if isinstance(error, SwarmvisorError) else f"no answer in {REMOVAL_SECONDS:g} s"
            self.held[node_id] = words
            _log.warning("node %s could not be taken out of the managers: %s", node_id, words)
            return False
        _log.info("node %s was taken out of the managers", node_id)
        # An engine may need a moment to show it; the role is not written before it does.
        return all(member.raft_id != raft_id for member in self._members.members())

    def _write(self, decision: SetRole) -> Callable[[Tx], None]:
        def write(tx: Tx) -> None:
            stored = tx.get(Node, decision.node_id)
            # Somebody may have changed the wish since; then the next look decides anew.
            if decide(decision.node_id, stored, self._members.members(), self._node_id) != decision or stored is None:
                return
            node = Node()
            node.CopyFrom(stored)
            node.role = decision.role
            tx.update(node)

        return write
