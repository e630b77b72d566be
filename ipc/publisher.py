"""What one process publishes: the last value of each of its topics, and the XPUB socket that says it.

`Outbox` is the brain (no socket, no clock of its own): what to send and when to send it again. `Publisher` performs it.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import zmq

from ipc.envelope import MAX_FRAME, Alive, Value, encode, encode_alive, owned_type, topic_frame
from ipc.errors import BusError, Refused
from ipc.topics import ALIVE

PERIOD = 2.0
"""Seconds between two `_alive`."""

RETIRE_DELAY = 0.1
"""Seconds after which a digest says that topics were retired: one for many, since it lists all that remain."""

DRAIN_LIMIT = 1000
"""Subscriptions read in one go (DESIGN §7: an unbounded drain live-locked supervisord)."""

MAX_TOPICS = 10_000
MAX_TOPIC = 80
"""Topics of one publisher, and characters of one: the digest must fit a frame."""

_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)

Frames = tuple[bytes, bytes]

_ALIVE_FRAME = topic_frame(ALIVE)


class Outbox:
    """The last value of each topic of one publisher. Pure: frames come out, nothing is sent."""

    def __init__(self, proc: str, epoch: int) -> None:
        self.proc = proc
        self.epoch = epoch
        self.periods = 0
        self._bodies: dict[str, Any] = {}
        self._seqs: dict[str, int] = {}
        self._frames: dict[bytes, Frames] = {}
        # A topic that comes back after it was retired must not count from 1 again: a reader that still holds the
        # old value would take the new one for stale.
        self._floor = 0

    def put(self, topic: str, body: object, cause: str, at: int) -> Frames | None:
        """Remember `body` as the newest value; the frames to send, None if it says nothing new. Raises Refused."""
        if topic in self._bodies and self._bodies[topic] == body:
            return None
        if len(topic) > MAX_TOPIC or (topic not in self._bodies and len(self._bodies) >= MAX_TOPICS):
            raise Refused(
                f"topic {topic!r:.100}: a publisher has at most {MAX_TOPICS} of at most {MAX_TOPIC} characters"
            )
        seq = self._seqs.get(topic, self._floor) + 1
        frames = encode(Value(topic, self.proc, os.getpid(), self.epoch, seq, at, cause, body))
        self._bodies[topic], self._seqs[topic], self._frames[frames[0]] = body, seq, frames
        return frames

    def retire(self, topic: str) -> bool:
        """Forget the topic: the next digest lacks it. False if it had no value. Raises Refused."""
        owned_type(topic, self.proc)
        if topic not in self._bodies:
            return False
        del self._bodies[topic], self._frames[topic_frame(topic)]
        self._floor = max(self._floor, self._seqs.pop(topic))
        return True

    def seq(self, topic: str) -> int:
        """Of the newest value, 0 if there is none."""
        return self._seqs.get(topic, 0)

    def matching(self, prefixes: Iterable[bytes]) -> list[Frames]:
        """The last values that subscriptions to `prefixes` ask for, each once."""
        wanted: dict[bytes, Frames] = {}
        for prefix in set(prefixes):
            if prefix in self._frames:
                wanted[prefix] = self._frames[prefix]
            elif not prefix.endswith(b"\0"):
                wanted.update((head, frames) for head, frames in self._frames.items() if head.startswith(prefix))
        return list(wanted.values())

    def alive(self, at: int) -> Frames:
        """The digest as it stands now."""
        return encode_alive(Alive(self.proc, os.getpid(), self.epoch, self.periods, self._seqs), at)


class Publisher:
    """One bound XPUB socket at `<directory>/<proc>.sock` (mode 0600 in a 0700 directory)."""

    def __init__(self, context: zmq.Context[Any], directory: Path, proc: str) -> None:
        """Raises BusError if the socket cannot be made. The caller holds the process's lock: binding a live path
        would steal it silently (DESIGN §10)."""
        self.counters = {"published": 0, "unchanged": 0, "resent": 0, "alive_sent": 0, "subscriptions": 0}
        self._outbox = Outbox(proc, time.clock_gettime_ns(time.CLOCK_BOOTTIME))
        self._path = directory / f"{proc}.sock"
        self._next_alive = time.monotonic() + PERIOD
        self._next_period = self._next_alive
        _make_room(self._path)
        self._socket: zmq.Socket[Any] = context.socket(zmq.XPUB)
        try:
            self._socket.linger = 0
            self._socket.sndhwm = 0
            self._socket.rcvhwm = 0
            self._socket.maxmsgsize = MAX_FRAME
            # Without it only the first of several subscribers of a topic would be served.
            self._socket.xpub_verbose = 1
            self._socket.bind(f"ipc://{self._path}")
            os.chmod(self._path, 0o600)
            self._inode = self._path.stat().st_ino
        except (zmq.ZMQError, OSError) as error:
            self._socket.close(linger=0)
            raise BusError(f"cannot publish at {self._path}: {error}") from error

    @property
    def epoch(self) -> int:
        return self._outbox.epoch

    def seq(self, topic: str) -> int:
        return self._outbox.seq(topic)

    def publish(self, topic: str, body: object, cause: str = "") -> None:
        """Say the newest value of a topic; nothing happens if it equals the last one. Raises Refused."""
        frames = self._outbox.put(topic, body, cause, time.time_ns())
        if frames is None:
            self.counters["unchanged"] += 1
            return
        self.counters["published"] += 1
        self._send(frames)

    def retire(self, topic: str) -> None:
        """Say that the topic is gone; readers learn it from the next digest. Raises Refused."""
        if self._outbox.retire(topic):
            self._next_alive = min(self._next_alive, time.monotonic() + RETIRE_DELAY)

    def fileno(self) -> int:
        """Edge-triggered: readable says "call service", and service must be called after each publish too."""
        return self._socket.fileno()

    def next_timer(self) -> float:
        """Monotonic time at which the next digest is due."""
        return self._next_alive

    def pending(self) -> bool:
        """Whether there is anything to do for service now."""
        return incoming(self._socket) or time.monotonic() >= self._next_alive

    def service(self) -> bool:
        """Answer the subscriptions that arrived, and send the digest if it is time; False: there was nothing to do."""
        if not self.pending():
            return False
        prefixes = self._arrived()
        for frames in self._outbox.matching(prefixes):
            self.counters["resent"] += 1
            self._send(frames)
        now = time.monotonic()
        if now >= self._next_period:
            self._outbox.periods += 1
            self._next_period = now + PERIOD
        if now >= self._next_alive or _ALIVE_FRAME in prefixes:
            # After the values that were asked for with it, so that it tells a new reader that it now has all.
            self._send(self._outbox.alive(time.time_ns()))
            self.counters["alive_sent"] += 1
            self._next_alive = now + PERIOD
        return True

    def close(self) -> None:
        """Close, and remove the socket's file if it is still ours."""
        if self._socket.closed:
            return
        self._socket.close(linger=0)
        try:
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
        except FileNotFoundError:
            return

    def _arrived(self) -> set[bytes]:
        """Prefixes of the subscriptions that arrived, at most DRAIN_LIMIT."""
        prefixes: set[bytes] = set()
        for _ in range(DRAIN_LIMIT):
            try:
                message = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            # 1: subscribe, 0: cancel; anything else is not from a SUB socket and means nothing to us.
            if message[:1] == b"\x01":
                self.counters["subscriptions"] += 1
                prefixes.add(message[1:])
        return prefixes

    def _send(self, frames: Frames) -> None:
        # Never blocks: at HWM 0 an XPUB socket takes everything, and one without subscribers drops it.
        self._socket.send_multipart(frames, zmq.NOBLOCK)


def incoming(socket: zmq.Socket[Any]) -> bool:
    """Whether a message waits. Asked before each wait: plain numbers, since pyzmq's enums double the cost."""
    return int(socket.getsockopt(_EVENTS)) & _POLLIN != 0


def _make_room(path: Path) -> None:
    """See to the 0700 directory, and refuse to replace what is not a socket: bind would do so silently."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chmod(path.parent, 0o700)
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise BusError(f"cannot publish at {path}: {error}") from error
    if not stat.S_ISSOCK(mode):
        raise BusError(f"cannot publish at {path}: there is something that is not a socket; remove it")
