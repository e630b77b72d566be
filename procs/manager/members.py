"""Who the managers of the swarm are."""

from __future__ import annotations

import secrets
from typing import Protocol

from procs.manager.store import Store, Tx
from swarm.api import raft_pb2, types_pb2

_SIDE = "raft-id"


class Members(Protocol):
    """The managers, as the listings and the sessions of agents show them."""

    def members(self) -> list[raft_pb2.RaftMember]:
        """All managers, with status; fresh messages, the caller's own."""
        ...


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
