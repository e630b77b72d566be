"""Who the managers of the swarm are."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from procs.manager.store import Store, Tx
from swarm.api import raft_pb2, types_pb2
from swarm.errors import Refused

_SIDE = "raft-id"


class Members(Protocol):
    """The managers, as the listings and the sessions of agents show them."""

    def members(self) -> list[raft_pb2.RaftMember]:
        """All managers, with status; fresh messages, the caller's own."""
        ...


class Membership(Members, Protocol):
    """What the leader does with the managers, and what each of them hears of itself. An engine brings its own."""

    async def remove(self, raft_id: int) -> None:
        """Take a manager out, for good; returns once that is committed. One that is gone already is no error.

        Raises SwarmvisorError if it cannot be done now.
        """

    def move_to(self, addr: str) -> None:
        """Peers are told that this manager is found at `addr` from now on."""

    async def hand_over(self) -> None:
        """Let another manager lead; returns once one does, and this term ends. Raises SwarmvisorError."""

    async def changed(self) -> None:
        """Returns when a manager came, went, or became reachable or unreachable since the call."""

    async def removed(self) -> str:
        """Returns when this manager was taken out: who or what did it, in words."""
        ...


@dataclass(frozen=True, slots=True)
class Quorum:
    """What would be left of the managers without one of them."""

    rest: int
    reachable: int

    @property
    def needed(self) -> int:
        return self.rest // 2 + 1

    @property
    def kept(self) -> bool:
        """Whether those that stay can go on deciding."""
        return self.reachable >= self.needed

    @property
    def words(self) -> str:
        """The numbers, and what would help."""
        if not self.rest:
            return "it is the only manager; promote another node first"
        return (
            f"of the {self.rest} managers that would stay {self.reachable} can be reached, and {self.needed} are "
            "needed; bring unreachable ones back (`swarmvisor node ls` names them), or promote another node first"
        )


def quorum_without(node_id: str, members: Sequence[raft_pb2.RaftMember]) -> Quorum:
    """The managers without `node_id`."""
    rest = [member for member in members if member.node_id != node_id]
    reachable = sum(member.status.reachability == types_pb2.RaftMemberStatus.REACHABLE for member in rest)
    return Quorum(len(rest), reachable)


class SoleMember:
    """The one manager of a swarm whose store is a SQLite file: leader, always reachable."""

    def __init__(self, raft_id: int, node_id: str, addr: str) -> None:
        self._raft_id = raft_id
        self._node_id = node_id
        self._addr = addr

    @classmethod
    async def load(cls, store: Store, node_id: str, addr: str) -> SoleMember:
        """With the raft id kept in the store, made at the first start: random, 64 bits, not zero."""

        def keep(tx: Tx) -> int:
            found = tx.side(_SIDE)
            if found is not None:
                return int.from_bytes(found, "big")
            made = secrets.randbits(63) | 1
            tx.put_side(_SIDE, made.to_bytes(8, "big"))
            return made

        return cls(await store.update(keep, cause="raft id"), node_id, addr)

    def members(self) -> list[raft_pb2.RaftMember]:
        member = raft_pb2.RaftMember(raft_id=self._raft_id, node_id=self._node_id, addr=self._addr)
        member.status.leader = True
        member.status.reachability = types_pb2.RaftMemberStatus.REACHABLE
        return [member]

    def move_to(self, addr: str) -> None:
        """Peers are told another address from now on."""
        self._addr = addr

    async def remove(self, raft_id: int) -> None:
        """Refused for the only one there is; others are gone already."""
        if raft_id == self._raft_id:
            raise Refused("the only manager of a swarm cannot be removed", remedy="a SQLite store has one manager")

    async def hand_over(self) -> None:
        """Nobody could take it."""
        raise Refused("there is no other manager that could lead", remedy="a SQLite store has one manager")

    async def changed(self) -> None:
        """Never happens."""
        await asyncio.get_running_loop().create_future()

    async def removed(self) -> str:
        """Never happens."""
        never: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        return await never
