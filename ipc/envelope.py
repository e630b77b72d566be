"""One message of the bus as bytes, and back: two frames, the second a versioned msgpack map, everything checked.

    frame 0   topic + NUL          the terminator keeps a subscription to `node` from matching `node.changes`
    frame 1   {v, topic, proc, pid, epoch, seq, at, cause, body}

`_alive` has the same envelope; its body is `{"seqs": {topic: seq}}` and its seq counts the publisher's periods, from 0.
Unknown extra fields of the map are ignored. A change that an older reader would misread gets another `v`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack

from ipc.body import Misfit, from_plain, to_plain
from ipc.errors import BadFrame, Reason, Refused
from ipc.topics import ALIVE, FAMILIES, TOPICS, lookup

VERSION = 1

MAX_FRAME = 1 << 20
"""Bytes of one frame. The largest body is a root bundle of some kB; the largest digest lists every task of a node."""

OWNERS = frozenset(owner for owner, _ in (*TOPICS.values(), *FAMILIES.values()))
"""Every process that publishes something."""

_UNSIGNED = 1 << 63


@dataclass(frozen=True)
class Value:
    """The newest whole value of one topic, as its owner said it."""

    topic: str
    proc: str
    """The owner's name."""
    pid: int
    """Of the owner when it said this; `process.<proc>` tells whether that process still runs."""
    epoch: int
    """CLOCK_BOOTTIME, ns, when the publisher started: a restarted publisher has a greater one."""
    seq: int
    """Counts the topic's values within the epoch."""
    at: int
    """Wall clock, ns; for people, never for ordering."""
    cause: str
    body: Any
    """An instance of the topic's type in `ipc.topics`."""


@dataclass(frozen=True)
class Alive:
    """A publisher's digest: what it is, and the newest seq of each topic that it has."""

    proc: str
    pid: int
    epoch: int
    periods: int
    """Whole periods that it has been running; 0: it may not have said yet all that it knows."""
    seqs: Mapping[str, int]


def topic_frame(topic: str) -> bytes:
    return topic.encode() + b"\0"


def owned_type(topic: str, proc: str) -> type:
    """The body type of `topic`, which `proc` must own. Raises Refused."""
    entry = lookup(topic)
    if entry is None or "\0" in topic:
        raise Refused(f"no topic {topic!r}: ipc.topics lists them all")
    owner, kind = entry
    if owner != proc:
        raise Refused(f"topic {topic!r} belongs to {owner}, {proc} may not publish it")
    return kind


def encode(value: Value) -> tuple[bytes, bytes]:
    """The two frames of a value. Raises Refused for a topic or body that no reader would take."""
    kind = owned_type(value.topic, value.proc)
    if type(value.body) is not kind:
        raise Refused(f"topic {value.topic!r} carries {kind.__name__}, not {type(value.body).__name__}")
    plain = to_plain(value.body)
    try:
        from_plain(kind, plain)
    except Misfit as error:
        raise Refused(f"topic {value.topic!r}: {error}") from error
    return _pack(value.topic, value.proc, value.pid, value.epoch, value.seq, value.at, value.cause, plain)


def encode_alive(alive: Alive, at: int) -> tuple[bytes, bytes]:
    """The two frames of a digest."""
    body = {"seqs": dict(alive.seqs)}
    return _pack(ALIVE, alive.proc, alive.pid, alive.epoch, alive.periods, at, "", body)


def _pack(
    topic: str, proc: str, pid: int, epoch: int, seq: int, at: int, cause: str, plain: object
) -> tuple[bytes, bytes]:
    envelope = {
        "v": VERSION,
        "topic": topic,
        "proc": proc,
        "pid": pid,
        "epoch": epoch,
        "seq": seq,
        "at": at,
        "cause": cause,
        "body": plain,
    }
    try:
        head, packed = topic_frame(topic), msgpack.packb(envelope)
    except (ValueError, OverflowError) as error:  # a lone surrogate in a string, an integer beyond 64 bits
        raise Refused(f"topic {topic!r}: cannot be packed: {error}") from error
    if len(packed) > MAX_FRAME:
        raise Refused(f"topic {topic!r}: {len(packed)} bytes, no reader takes more than {MAX_FRAME}")
    return head, packed


def decode(frames: Sequence[bytes]) -> Value | Alive:
    """What the frames say. Raises BadFrame, and nothing else, whatever the bytes are."""
    if len(frames) != 2:
        raise BadFrame(Reason.FRAMES, f"{len(frames)} frames, a message has 2")
    head, packed = frames
    if len(head) > MAX_FRAME or len(packed) > MAX_FRAME:
        raise BadFrame(Reason.OVERSIZED, f"{max(len(head), len(packed))} bytes, at most {MAX_FRAME}")
    envelope = _unpack(packed)
    version = envelope.get("v")
    if type(version) is not int or version != VERSION:
        raise BadFrame(Reason.VERSION, f"envelope version {version!r:.40}, this is {VERSION}")
    topic = _text(envelope, "topic")
    proc = _text(envelope, "proc")
    pid = _number(envelope, "pid")
    epoch = _number(envelope, "epoch")
    seq = _number(envelope, "seq")
    at = _number(envelope, "at")
    cause = _text(envelope, "cause")
    if "body" not in envelope:
        raise BadFrame(Reason.ENVELOPE, "no body")
    if topic_frame(topic) != head:
        raise BadFrame(Reason.TOPIC, f"topic frame {head!r:.80} carries topic {topic!r:.80}")
    if topic == ALIVE:
        if proc not in OWNERS:
            raise BadFrame(Reason.OWNER, f"{ALIVE} of {proc!r:.80}, which owns no topic")
        return Alive(proc, pid, epoch, seq, _seqs(envelope["body"]))
    entry = lookup(topic)
    if entry is None:
        raise BadFrame(Reason.TOPIC, f"unknown topic {topic!r:.80}")
    owner, kind = entry
    if proc != owner:
        raise BadFrame(Reason.OWNER, f"topic {topic!r:.80} belongs to {owner}, published by {proc!r:.80}")
    if seq == 0:
        raise BadFrame(Reason.ENVELOPE, "seq 0, values count from 1")
    try:
        body = from_plain(kind, envelope["body"])
    except Misfit as error:
        raise BadFrame(Reason.BODY, f"topic {topic!r:.80}: {error}") from error
    return Value(topic, proc, pid, epoch, seq, at, cause, body)


def _unpack(packed: bytes) -> dict[str, Any]:
    try:
        envelope = msgpack.unpackb(packed)
    # Every way in which msgpack 1.x says no: ValueError covers its format, stack, extra-data and UTF-8 errors.
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise BadFrame(Reason.UNDECODABLE, f"not msgpack: {error!r:.120}") from error
    if not isinstance(envelope, dict):
        raise BadFrame(Reason.UNDECODABLE, f"a {type(envelope).__name__}, not a map")
    return envelope


def _text(envelope: dict[str, Any], name: str) -> str:
    value = envelope.get(name)
    if type(value) is not str:
        raise BadFrame(Reason.ENVELOPE, f"{name}: expected str, got {type(value).__name__}")
    return value


def _number(envelope: dict[str, Any], name: str) -> int:
    value = envelope.get(name)
    if type(value) is not int or not 0 <= value < _UNSIGNED:
        raise BadFrame(Reason.ENVELOPE, f"{name}: expected a whole number below 2^63, got {value!r:.40}")
    return value


def _seqs(body: Any) -> dict[str, int]:
    seqs = body.get("seqs") if isinstance(body, dict) else None
    if not isinstance(seqs, dict):
        raise BadFrame(Reason.BODY, f"{ALIVE}: no map of seqs")
    for topic, seq in seqs.items():
        if type(topic) is not str or type(seq) is not int:
            raise BadFrame(Reason.BODY, f"{ALIVE}: {topic!r:.80}: {seq!r:.40} is not a topic and its seq")
    return seqs
