"""Which nodes have a session, until when, and what follows when they fall silent. Pure: `now` in, effects out.

A node is in one of four places (reference agent-and-dispatcher §5.2, §5.4):

    place       enters                                   leaves
    absent      (start), node removed                    register → registered
    unknown     it was not DOWN when the term began      register → registered; 6 periods of silence → down
    registered  register                                 3 periods of silence → down; register again → registered
    down        it fell silent, or was DOWN already      register → registered; 24 h → its tasks are orphaned, absent
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from procs.manager.status import Status, invalid_argument, not_found, unavailable

NOT_REGISTERED = "node not registered"
SESSION_INVALID = "session invalid"
HEARTBEAT_FAILURE = "heartbeat failure"
UNKNOWN_FAILURE = 'heartbeat failure for node in "unknown" state'


@dataclass(frozen=True)
class Timing:
    """Seconds and counts; the defaults are SwarmKit's (reference agent-and-dispatcher §C)."""

    period: float = 5.0
    epsilon: float = 0.5
    grace: int = 3
    unknown_factor: int = 6
    rate_window: float = 8.0
    rate_count: int = 3
    orphan_after: float = 24 * 3600.0


@dataclass(frozen=True)
class MarkDown:
    """Write status DOWN with this message, then end the node's streams."""

    node_id: str
    message: str


@dataclass(frozen=True)
class OrphanTasks:
    """The node was down for so long that its tasks count as lost."""

    node_id: str


Effect = MarkDown | OrphanTasks


@dataclass
class _Entry:
    session_id: str
    """Empty: unknown, no session is valid."""
    deadline: float
    registered_at: float | None = None
    attempts: int = 0


class NodeTable:
    """One term's nodes. `uniform` chooses within a range; tests pin it."""

    def __init__(self, timing: Timing | None = None, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self.timing = timing or Timing()
        self._uniform = uniform
        self._nodes: dict[str, _Entry] = {}
        self._orphans: dict[str, float] = {}

    def start(self, nodes: Iterable[tuple[str, bool]], now: float) -> list[str]:
        """Begin a term with (node id, is DOWN) of every node; return those to be marked UNKNOWN."""
        unknown: list[str] = []
        for node_id, down in nodes:
            if down:
                self._orphans[node_id] = now + self.timing.orphan_after
            else:
                unknown.append(node_id)
                self._nodes[node_id] = _Entry("", now + self.timing.unknown_factor * self._period())
        return unknown

    def admit(self, node_id: str, now: float) -> None:
        """May the node register now? Raises Status if it did so too often."""
        entry = self._nodes.get(node_id)
        if entry is None:
            return
        if entry.registered_at is None or now - entry.registered_at > self.timing.rate_window:
            entry.attempts = 0
        entry.attempts += 1
        if entry.attempts > self.timing.rate_count:
            raise unavailable(f"node {node_id} exceeded rate limit count of registrations")
        entry.registered_at = now

    def enter(self, node_id: str, session_id: str, now: float) -> None:
        """The node is registered, under a new session; an older session is void from now on."""
        old = self._nodes.get(node_id)
        self._orphans.pop(node_id, None)
        self._nodes[node_id] = _Entry(
            session_id,
            now + self.timing.grace * self._period(),
            now if old is None or old.registered_at is None else old.registered_at,
            0 if old is None else old.attempts,
        )

    def check(self, node_id: str, session_id: str) -> None:
        """Raises Status unless `session_id` is the node's session."""
        entry = self._nodes.get(node_id)
        if entry is None:
            raise not_found(NOT_REGISTERED)
        if not entry.session_id or entry.session_id != session_id:
            raise invalid_argument(SESSION_INVALID)

    def known(self, node_id: str) -> bool:
        """Whether the node is registered or unknown: not absent, not down."""
        return node_id in self._nodes

    def resumable(self, node_id: str, session_id: str) -> bool:
        """Whether `session_id` is the node's valid session."""
        try:
            self.check(node_id, session_id)
        except Status:
            return False
        return True

    def beat(self, node_id: str, session_id: str, now: float) -> float:
        """A heartbeat; return the seconds until the next one is due. Raises Status as `check`."""
        self.check(node_id, session_id)
        period = self._period()
        self._nodes[node_id].deadline = now + self.timing.grace * period
        return period

    def remove(self, node_id: str) -> None:
        """The node object is gone."""
        self._nodes.pop(node_id, None)
        self._orphans.pop(node_id, None)

    def retime(self, timing: Timing) -> None:
        """Other timings, from each node's next heartbeat on."""
        self.timing = timing

    def expire(self, now: float) -> list[Effect]:
        """What follows from the silence up to `now`."""
        effects: list[Effect] = []
        for node_id, entry in [(n, e) for n, e in self._nodes.items() if e.deadline <= now]:
            del self._nodes[node_id]
            self._orphans[node_id] = now + self.timing.orphan_after
            effects.append(MarkDown(node_id, HEARTBEAT_FAILURE if entry.session_id else UNKNOWN_FAILURE))
        for node_id in [n for n, deadline in self._orphans.items() if deadline <= now]:
            del self._orphans[node_id]
            effects.append(OrphanTasks(node_id))
        return effects

    def next_deadline(self) -> float | None:
        """When `expire` may next have something to say; heartbeats only move it later."""
        return min((*(e.deadline for e in self._nodes.values()), *self._orphans.values()), default=None)

    def _period(self) -> float:
        """The reference picks anew from [P - ε, P + ε) each time, so that nodes do not beat in step."""
        timing = self.timing
        epsilon = min(timing.epsilon, timing.period / 2)
        return self._uniform(timing.period - epsilon, timing.period + epsilon)
