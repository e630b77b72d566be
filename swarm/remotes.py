"""Which managers this node knows, and how much it trusts each to answer (reference node-and-ca §8, §1.11).

The coordinator keeps the list (`state.json`, SwarmKit's own format); agent and renewer keep weights of their own over
the list that the bus tells them.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from swarm.errors import CorruptFile, Unreachable
from swarm.files import write_atomic

DEFAULT_WEIGHT = 10
"""Of one good observation, and of what a dispatcher lists; a bad one is its negative."""
_SMOOTHING = 0.5
_CLIP = 1 << 8
_SURROGATE = re.compile(r"[\ud800-\udfff]")
"""Half a character: JSON can say it, UTF-8 (the bus, gRPC) cannot."""
_FLOOR = 0.001
"""Added to every weight so that a manager with weight 0 is still tried now and then."""


class Peer(NamedTuple):
    """A manager. The same address with and without a node id are two peers."""

    node_id: str
    addr: str


class NoRemotes(Unreachable):
    """No manager is known, or all known ones are excluded. The text is SwarmKit's."""

    def __init__(self) -> None:
        super().__init__("no remote hosts provided", remedy="give a manager's address with --join-addr")


class Remotes:
    """Known managers with their weights."""

    def __init__(self, peers: Iterable[Peer] = ()) -> None:
        self._weights: dict[Peer, int] = {}
        for peer in peers:
            self.observe(peer, DEFAULT_WEIGHT)

    def observe(self, peer: Peer, weight: int) -> None:
        """Learn of `peer`, or move its weight half the way towards `weight`."""
        moved = _SMOOTHING * max(-_CLIP, min(_CLIP, weight)) + (1 - _SMOOTHING) * self._weights.get(peer, 0)
        self._weights[peer] = max(-_CLIP, min(_CLIP, math.ceil(moved)))

    def observe_if_exists(self, peer: Peer, weight: int) -> None:
        """As `observe`, but an unknown peer stays unknown."""
        if peer in self._weights:
            self.observe(peer, weight)

    def remove(self, peers: Iterable[Peer]) -> None:
        for peer in peers:
            self._weights.pop(peer, None)

    def replace(self, listed: Iterable[tuple[Peer, int]]) -> None:
        """Take over a dispatcher's list: observe each, forget the others. An empty list changes nothing (DESIGN §3);
        entries without an address are skipped."""
        useful = [(peer, weight) for peer, weight in listed if peer.addr]
        if not useful:
            return
        for peer, weight in useful:
            self.observe(peer, weight)
        self.remove(set(self._weights) - {peer for peer, _ in useful})

    def weights(self) -> dict[Peer, int]:
        return dict(self._weights)

    def peers(self) -> list[Peer]:
        """Known managers, in a stable order."""
        return sorted(self._weights)

    def select(self, exclude: Iterable[str] = (), *, uniform: Callable[[float, float], float] = random.uniform) -> Peer:
        """One manager at random, in proportion to its weight; `exclude` names node ids or addresses.

        Raises NoRemotes if none is left.
        """
        excluded = set(exclude)
        choice = [
            (peer, max(weight, 0) + _FLOOR)
            for peer, weight in sorted(self._weights.items())
            if peer.node_id not in excluded and peer.addr not in excluded
        ]
        if not choice:
            raise NoRemotes
        point = uniform(0.0, sum(weight for _, weight in choice))
        for peer, weight in choice:
            point -= weight
            if point <= 0:
                return peer
        return choice[-1][0]


def load_peers(path: Path) -> list[Peer]:
    """The managers in `state.json`; none if it is absent. Raises CorruptFile, and never repairs."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return []
    remedy = f"restore {path.name}, or remove it if the swarm's managers can be told otherwise"
    try:
        listed: Any = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CorruptFile(path, f"not JSON: {error}", remedy=remedy) from error
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise CorruptFile(path, "not a list of managers", remedy=remedy)
    peers = [Peer(entry.get("node_id", ""), entry.get("addr", "")) for entry in listed]
    if not all(isinstance(text, str) and not _SURROGATE.search(text) for peer in peers for text in peer):
        raise CorruptFile(path, "node_id and addr of a manager must be texts", remedy=remedy)
    return peers


def save_peers(path: Path, peers: Iterable[Peer]) -> None:
    """Write `state.json` as SwarmKit does: sorted by node id, empty fields left out, 0600."""
    listed = [{key: text for key, text in peer._asdict().items() if text} for peer in sorted(set(peers))]
    write_atomic(path, json.dumps(listed, separators=(",", ":")).encode(), mode=0o600)
