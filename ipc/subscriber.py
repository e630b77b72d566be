"""What one process hears: the newest value of each topic that it asked for, and the SUB socket that brings it.

`Held` is the brain (no socket, no clock): ordering, gaps, restarts, topics that are gone. `Subscriber` performs it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq

from ipc.arrivals import Arrivals
from ipc.envelope import MAX_FRAME, Alive, Value, decode, topic_frame
from ipc.errors import BadFrame, Reason, Refused
from ipc.publisher import PERIOD, incoming
from ipc.topics import ALIVE, FAMILIES, TOPICS, lookup

__all__ = ["SILENT_AFTER", "Digest", "Held", "Interest", "Subscriber", "Value"]

SILENT_AFTER = 3 * PERIOD
"""Seconds without a word after which an owner counts as silent."""

DRAIN_LIMIT = 1000
"""Messages read in one go."""

FAMILY_AT_ONCE = 50
"""A reader that misses more topics of one family than this subscribes to the whole family again."""

RECONNECT_MS = 20
RECONNECT_MAX_MS = 200
"""Bounds of the wait before a publisher that is not there is tried again; five absent ones cost 0.5 % of a core at
100 ms (DESIGN §10)."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Interest:
    """What a reader wants: topics by name, families by prefix."""

    topics: frozenset[str]
    prefixes: tuple[str, ...]

    @classmethod
    def parse(cls, patterns: Iterable[str]) -> Interest:
        """From `certificate`, `process.*` (a family), `*` (everything). Raises Refused for an unknown one."""
        topics: set[str] = set()
        prefixes: set[str] = set()
        for pattern in patterns:
            if pattern == "*":
                topics.update(TOPICS)
                prefixes.update(FAMILIES)
            elif pattern.endswith("*") and pattern[:-1] in FAMILIES:
                prefixes.add(pattern[:-1])
            elif lookup(pattern) is not None and not pattern.endswith("*"):
                topics.add(pattern)
            else:
                raise Refused(f"no topic or family {pattern!r}: ipc.topics lists them all")
        return cls(frozenset(topics), tuple(sorted(prefixes)))

    def wants(self, topic: str) -> bool:
        return topic in self.topics or topic.startswith(self.prefixes)

    def wants_of(self, owner: str, topic: str) -> bool:
        """Whether the topic is wanted, exists, and is that owner's."""
        entry = lookup(topic)
        return entry is not None and entry[0] == owner and self.wants(topic)

    def owners(self) -> list[str]:
        """Whose publishers have it."""
        entries = [lookup(topic) for topic in self.topics] + [FAMILIES[prefix] for prefix in self.prefixes]
        return sorted({entry[0] for entry in entries if entry is not None})

    def subscriptions(self) -> list[bytes]:
        """The prefixes to subscribe to."""
        return [topic_frame(topic) for topic in sorted(self.topics)] + [prefix.encode() for prefix in self.prefixes]


@dataclass(frozen=True)
class Digest:
    """What follows from an `_alive`."""

    behind: tuple[str, ...] = ()
    """Topics whose newest value did not arrive: subscribe again to get them."""
    gone: tuple[str, ...] = ()
    """Topics that their owner no longer has."""
    stale: bool = False
    """It is of an epoch that is over."""


class Held:
    """The newest value of each topic. Pure: told what arrived, says what it means."""

    def __init__(self, interest: Interest) -> None:
        self.values: dict[str, Value] = {}
        self.restarts = 0
        """Publishers that were replaced by a newer life of theirs."""
        self._interest = interest
        self._epochs: dict[str, int] = {}
        self._promised: dict[str, dict[str, int]] = {}

    def offer(self, value: Value) -> bool:
        """Keep `value` if it is newer than what is held; False: it is stale."""
        if value.epoch < self._epochs.get(value.proc, 0):
            return False
        held = self.values.get(value.topic)
        if held is not None and (value.epoch, value.seq) <= (held.epoch, held.seq):
            return False
        self._enter(value.proc, value.epoch)
        self.values[value.topic] = value
        return True

    def digest(self, alive: Alive) -> Digest:
        """Compare what is held with what the owner has."""
        if alive.epoch < self._epochs.get(alive.proc, 0):
            return Digest(stale=True)
        self._enter(alive.proc, alive.epoch)
        behind = [
            topic
            for topic, seq in alive.seqs.items()
            if self._interest.wants_of(alive.proc, topic) and not self._has(topic, alive.epoch, seq)
        ]
        gone = [
            topic
            for topic, value in self.values.items()
            if value.proc == alive.proc
            and topic not in alive.seqs
            # A publisher in its first period has perhaps not yet said what it knows: the words of the one before it
            # stay as "last known" that long, so that a restart does not make every value blink.
            and (value.epoch == alive.epoch or alive.periods > 0)
        ]
        for topic in gone:
            del self.values[topic]
        self._promised[alive.proc] = {topic: alive.seqs[topic] for topic in behind}
        return Digest(behind=tuple(behind), gone=tuple(gone))

    def complete(self, owner: str) -> bool:
        """Whether everything that `owner` had at its newest digest is here; False before the first one."""
        return owner in self._promised and not self.missing(owner)

    def missing(self, owner: str) -> list[str]:
        """What `owner` had at its newest digest and is still not here."""
        promised = self._promised.get(owner, {})
        return [topic for topic, seq in promised.items() if not self._has(topic, self._epochs[owner], seq)]

    def _enter(self, proc: str, epoch: int) -> None:
        known = self._epochs.get(proc)
        if known is not None and known != epoch:
            self.restarts += 1
            self._promised.pop(proc, None)
        self._epochs[proc] = epoch

    def _has(self, topic: str, epoch: int, seq: int) -> bool:
        held = self.values.get(topic)
        return held is not None and (held.epoch, held.seq) >= (epoch, seq)


class Subscriber:
    """One SUB socket connected to the publishers of everything in `patterns`. They need not exist yet."""

    def __init__(self, context: zmq.Context[Any], directory: Path, patterns: Iterable[str]) -> None:
        self.interest = Interest.parse(patterns)
        self.counters = {"received": 0, "values": 0, "alive": 0, "refetched": 0, "gone": 0, "restarts": 0}
        self.counters.update({f"dropped_{reason}": 0 for reason in Reason})
        self.completions = 0
        """How often an owner became complete by a digest alone, which brings no value that would tell."""
        self._held = Held(self.interest)
        now = time.monotonic()
        self._serviced_at = now
        self._heard: dict[str, float] = dict.fromkeys(self.interest.owners(), now)
        self._socket: zmq.Socket[Any] = context.socket(zmq.SUB)
        self._socket.linger = 0
        self._socket.rcvhwm = 0
        self._socket.sndhwm = 0
        self._socket.maxmsgsize = 4 * MAX_FRAME
        self._socket.reconnect_ivl = RECONNECT_MS
        self._socket.reconnect_ivl_max = RECONNECT_MAX_MS
        for prefix in (*self.interest.subscriptions(), topic_frame(ALIVE)):
            self._socket.subscribe(prefix)
        self._endpoints = {f"{owner}.sock": f"ipc://{directory / owner}.sock" for owner in self._heard}
        self._arrivals = _watch(directory)
        for endpoint in self._endpoints.values():
            self._socket.connect(endpoint)

    @property
    def values(self) -> dict[str, Value]:
        """The live table of what is held; not to be changed."""
        return self._held.values

    def silent(self, owner: str) -> bool:
        """Whether `owner` has not been heard for SILENT_AFTER, as of the last service (a reader that was itself held
        up must first read what is waiting). Raises Refused for an owner that this reader does not listen to."""
        if owner not in self._heard:
            raise Refused(f"not subscribed to anything of {owner!r}")
        return self._serviced_at - self._heard[owner] > SILENT_AFTER

    def complete(self, owner: str) -> bool:
        """Whether everything that `owner` has was received (a new reader holds all last values)."""
        return self._held.complete(owner)

    def filenos(self) -> list[int]:
        """The socket's is edge-triggered, see Publisher.fileno."""
        return [self._socket.fileno(), *([self._arrivals.fileno()] if self._arrivals is not None else [])]

    def next_timer(self) -> float:
        """Monotonic time at which `silent` is to be looked at again."""
        return self._serviced_at + PERIOD

    def service(self, fresh: dict[str, Value]) -> bool:
        """Read what is waiting, at most DRAIN_LIMIT messages, and put the newest new value of each topic into `fresh`;
        False: nothing was waiting."""
        self._meet()
        waiting = incoming(self._socket)
        digested: set[str] = set()
        for _ in range(DRAIN_LIMIT if waiting else 0):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            self._take(frames, fresh, digested)
        self._refetch({topic for owner in digested for topic in self._held.missing(owner)})
        self._serviced_at = time.monotonic()
        return waiting

    def close(self) -> None:
        if self._arrivals is not None:
            self._arrivals.close()
        self._socket.close(linger=0)

    def _meet(self) -> None:
        """Connect now to the publishers that have just come, instead of at libzmq's next try."""
        for name in self._arrivals.take() if self._arrivals is not None else ():
            endpoint = self._endpoints.get(name)
            if endpoint is not None:
                # libzmq may have been quicker: then all last values come once more, and are dropped as known.
                self._socket.disconnect(endpoint)
                self._socket.connect(endpoint)

    def _take(self, frames: Sequence[bytes], fresh: dict[str, Value], digested: set[str]) -> None:
        self.counters["received"] += 1
        try:
            message = decode(frames)
        except BadFrame as error:
            self._drop(error.reason, str(error))
            return
        self._heard[message.proc] = time.monotonic()
        if isinstance(message, Alive):
            self._digest(message, fresh)
            digested.add(message.proc)
        elif self.interest.wants(message.topic) and self._held.offer(message):
            self.counters["values"] += 1
            fresh.pop(message.topic, None)
            fresh[message.topic] = message
        else:
            self._drop(Reason.STALE, f"{message.topic} epoch {message.epoch} seq {message.seq}")
        self.counters["restarts"] = self._held.restarts

    def _digest(self, alive: Alive, fresh: dict[str, Value]) -> None:
        before = self._held.complete(alive.proc)
        digest = self._held.digest(alive)
        self.completions += not before and self._held.complete(alive.proc)
        if digest.stale:
            self._drop(Reason.STALE, f"{ALIVE} of {alive.proc} epoch {alive.epoch}")
            return
        self.counters["alive"] += 1
        self.counters["gone"] += len(digest.gone)
        for topic in digest.gone:
            fresh.pop(topic, None)

    def _refetch(self, behind: set[str]) -> None:
        """Subscribe again, upon which the owners send the last values again."""
        prefixes = {topic_frame(topic) for topic in behind & self.interest.topics}
        self.counters["refetched"] += len(prefixes)
        for family in self.interest.prefixes:
            topics = [topic for topic in behind if topic.startswith(family)]
            self.counters["refetched"] += len(topics)
            if len(topics) > FAMILY_AT_ONCE:
                prefixes.add(family.encode())
                continue
            for topic in topics:
                # The family's own subscription stays, or all of it would come again.
                self._socket.subscribe(topic_frame(topic))
                self._socket.unsubscribe(topic_frame(topic))
        for prefix in prefixes:
            self._socket.unsubscribe(prefix)
            self._socket.subscribe(prefix)

    def _drop(self, reason: Reason, text: str) -> None:
        name = f"dropped_{reason}"
        self.counters[name] += 1
        count = self.counters[name]
        if reason is Reason.STALE:
            _log.debug("dropped a stale message: %s", text)
        elif count & (count - 1) == 0:
            # The 1st, 2nd, 4th, 8th … of a kind: a flood of bad frames must not become a flood of log lines.
            _log.warning("dropped a message of the bus (%s, %d so far): %s", reason, count, text)


def _watch(directory: Path) -> Arrivals | None:
    try:
        return Arrivals(directory)
    except OSError as error:
        _log.debug("late publishers are found by trying: %s", error)
        return None
