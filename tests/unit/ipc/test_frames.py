"""Bytes in and out: whatever arrives is either a message or a counted refusal, and old frames stay readable."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc import topics
from ipc.body import Misfit, from_plain, reader_of, to_plain
from ipc.envelope import MAX_FRAME, VERSION, Alive, Value, decode, encode, encode_alive, topic_frame
from ipc.errors import BadFrame, Reason, Refused

GOLDEN = Path(__file__).parents[2] / "fixtures" / "bus"

ADDRESSES = (topics.ManagerAddress("9fxbvbgkjmv7n4ls9pmmhgmkq", "10.0.0.1:2377", 7), topics.ManagerAddress("x", "y:1"))

BODIES: dict[str, Any] = {
    "certificate": topics.Certificate(
        state="valid",
        node_id="9fxbvbgkjmv7n4ls9pmmhgmkq",
        cluster_id="3k0zl2ub9cqrn1v4jvb5q5fds",
        role="manager",
        not_before=1_700_000_000,
        not_after=1_707_776_000,
        issuer_subject=b"\x30\x13\xff\x00",
        issuer_public_key=b"\x30\x59\x00\xfe",
        fingerprint="ab" * 32,
        root_digest="cd" * 32,
        attempt=3,
        next_try_at=1_700_000_060,
        why="manager 10.0.0.1:2377 unreachable: connection refused",
    ),
    "node.changes": topics.NodeChanges(
        desired_role="manager",
        observed_role="worker",
        issuance_state=5,
        vxlan_port=4789,
        root_ca=b"-----BEGIN CERTIFICATE-----\n",
        under=topics.Under("ab" * 32, "cd" * 32),
        availability="active",
    ),
    "managers": topics.Managers(ADDRESSES),
    "role": topics.Role("worker", "manager", "ab" * 32, "desired role is manager", soon=True),
    "remotes": topics.Remotes(ADDRESSES),
    "node": topics.Node("ready", "9fxbvbgkjmv7n4ls9pmmhgmkq", "", "waiting for a manager certificate"),
    "manager": topics.Manager("ready", True, "", "/run/s/control.sock", "0.0.0.0:2377", "10.0.0.1:2377", "cd" * 32),
    "agent": topics.Agent("connected", "session1", "9fxbvbgkjmv7n4ls9pmmhgmkq", "local", "", 12),
    "process.manager": topics.Process("manager", "BACKOFF", 0, -1, 9, False, 1_700_000_004),
    "task.4ekvkrfxgjkvh4rd8h0n3s2od": topics.TaskProcess(
        "4ekvkrfxgjkvh4rd8h0n3s2od",
        "exited",
        4711,
        123456,
        1_700_000_000_000_000_000,
        1_700_000_001_000_000_000,
        256,
        "",
    ),
}
"""One sample of each topic and of each family."""

ALIVE = Alive("agent", 4711, 1_234_567_890, 3, {"agent": 4, "node.changes": 1})


def sample(topic: str) -> Value:
    entry = topics.lookup(topic)
    assert entry is not None
    return Value(topic, entry[0], 4711, 1_234_567_890, 2, 1_700_000_000_000_000_000, "test:golden", BODIES[topic])


def envelope(of: str = "node", /, **changes: Any) -> dict[str, Any]:
    unpacked = msgpack.unpackb(encode(sample(of))[1])
    return {**unpacked, **changes}


def refusal(frames: list[bytes]) -> Reason:
    with pytest.raises(BadFrame) as caught:
        decode(frames)
    return caught.value.reason


def golden(topic: str) -> Path:
    return GOLDEN / f"{topic}.v{VERSION}.msgpack"


def test_there_is_a_golden_frame_for_each_topic_and_family() -> None:
    assert set(BODIES) >= set(topics.TOPICS)
    for prefix in topics.FAMILIES:
        assert [topic for topic in BODIES if topic.startswith(prefix)]
    assert {path.name for path in GOLDEN.iterdir()} == {golden(topic).name for topic in (*BODIES, topics.ALIVE)}


@pytest.mark.parametrize("topic", BODIES)
def test_a_golden_frame_still_says_the_same(topic: str) -> None:
    packed = golden(topic).read_bytes()
    assert decode([topic_frame(topic), packed]) == sample(topic)
    # What we write now still has every field that the golden frame has; new ones may have come.
    old, new = msgpack.unpackb(packed), msgpack.unpackb(encode(sample(topic))[1])
    assert {name: value for name, value in new.items() if name in old and name != "body"} == {
        name: value for name, value in old.items() if name != "body"
    }
    assert {name: value for name, value in new["body"].items() if name in old["body"]} == old["body"]


def test_the_golden_digest_still_says_the_same() -> None:
    head, packed = encode_alive(ALIVE, 1_700_000_000_000_000_000)
    assert packed == golden(topics.ALIVE).read_bytes()
    assert decode([head, packed]) == ALIVE


@pytest.mark.parametrize("topic", BODIES)
def test_samples_differ_from_the_defaults_in_most_fields(topic: str) -> None:
    # A golden frame made of defaults would prove nothing about them. (Fields that came later are not in it.)
    body, kept = BODIES[topic], msgpack.unpackb(golden(topic).read_bytes())["body"]
    fields = [field for field in dataclasses.fields(body) if field.default is not dataclasses.MISSING]
    fields = [field for field in fields if field.name in kept]
    assert len([f for f in fields if getattr(body, f.name) == f.default]) <= 2


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_any_bytes_are_a_message_or_a_refusal(frames: list[bytes]) -> None:
    try:
        decode(frames)
    except BadFrame as error:
        assert error.reason in Reason


packable = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=10)
    | st.binary(max_size=10)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=4))
    | st.datetimes().map(lambda when: msgpack.Timestamp(int(when.year), 0)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


@given(st.sampled_from(sorted(BODIES)), st.data())
def test_a_message_with_anything_in_any_field_is_a_message_or_a_refusal(topic: str, data: st.DataObject) -> None:
    message = envelope(topic)
    target = message if data.draw(st.booleans()) else message["body"]
    field = data.draw(st.sampled_from(sorted(target)))
    target[field] = data.draw(packable)
    try:
        value = decode([topic_frame(topic), msgpack.packb(message)])
    except BadFrame as error:
        assert error.reason in Reason
        return
    assert isinstance(value, Value)
    assert encode(value)[0] == topic_frame(topic)


@given(st.sampled_from(sorted(BODIES)), st.data())
def test_a_message_cut_or_flipped_anywhere_is_a_message_or_a_refusal(topic: str, data: st.DataObject) -> None:
    head, packed = encode(sample(topic))
    at = data.draw(st.integers(0, len(packed) - 1))
    assert refusal([head, packed[:at]]) is Reason.UNDECODABLE
    flipped = packed[:at] + bytes([packed[at] ^ data.draw(st.integers(1, 255))]) + packed[at + 1 :]
    try:
        decode([head, flipped])
    except BadFrame as error:
        assert error.reason in Reason


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([], Reason.FRAMES),
        ([b"node\0"], Reason.FRAMES),
        ([b"node\0", b"", b""], Reason.FRAMES),
        ([b"node\0", b"\xc0" * (MAX_FRAME + 1)], Reason.OVERSIZED),
        ([b"node\0", b""], Reason.UNDECODABLE),
        ([b"node\0", b"\xc1"], Reason.UNDECODABLE),
        ([b"node\0", b"\x91" * 5000], Reason.UNDECODABLE),
        ([b"node\0", msgpack.packb([1])], Reason.UNDECODABLE),
        ([b"node\0", b"\x81\x90\x01"], Reason.UNDECODABLE),
        ([b"node\0", msgpack.packb({})], Reason.VERSION),
        ([b"node\0", msgpack.packb(envelope(v=VERSION + 1))], Reason.VERSION),
        ([b"node\0", msgpack.packb(envelope(v=True))], Reason.VERSION),
        ([b"node\0", msgpack.packb(envelope(pid="1"))], Reason.ENVELOPE),
        ([b"node\0", msgpack.packb(envelope(epoch=-1))], Reason.ENVELOPE),
        ([b"node\0", msgpack.packb(envelope(seq=0))], Reason.ENVELOPE),
        ([b"node\0", msgpack.packb(envelope(seq=2**63))], Reason.ENVELOPE),
        ([b"node\0", msgpack.packb(envelope(cause=None))], Reason.ENVELOPE),
        ([b"node", msgpack.packb(envelope())], Reason.TOPIC),
        ([b"agent\0", msgpack.packb(envelope())], Reason.TOPIC),
        ([b"nodes\0", msgpack.packb(envelope(topic="nodes"))], Reason.TOPIC),
        ([b"process.\0", msgpack.packb(envelope("process.manager", topic="process."))], Reason.TOPIC),
        ([b"node\0", msgpack.packb(envelope(proc="agent"))], Reason.OWNER),
        ([b"_alive\0", msgpack.packb(envelope(topic="_alive", proc="mallory", body={"seqs": {}}))], Reason.OWNER),
        ([b"_alive\0", msgpack.packb(envelope(topic="_alive", body={"seqs": [1]}))], Reason.BODY),
        ([b"_alive\0", msgpack.packb(envelope(topic="_alive", body={"seqs": {"node": "1"}}))], Reason.BODY),
        ([b"node\0", msgpack.packb(envelope(body=None))], Reason.BODY),
        ([b"node\0", msgpack.packb(envelope(body={}))], Reason.BODY),
        ([b"node\0", msgpack.packb(envelope(body={"state": 1}))], Reason.BODY),
        ([b"role\0", msgpack.packb(envelope("role", body={"current": "worker", "soon": 1}))], Reason.BODY),
        ([b"remotes\0", msgpack.packb(envelope("remotes", body={"managers": "abc"}))], Reason.BODY),
        ([b"remotes\0", msgpack.packb(envelope("remotes", body={"managers": [{"node_id": "x"}]}))], Reason.BODY),
    ],
)
def test_what_does_not_fit_is_refused_with_its_reason(frames: list[bytes], reason: Reason) -> None:
    assert refusal(frames) is reason


def test_a_refusal_names_the_field() -> None:
    body = {"managers": [{"node_id": "x", "addr": "y"}, {"node_id": "x", "addr": 5}]}
    with pytest.raises(BadFrame, match=r"Remotes\.managers\[1\]\.addr: expected str, got int"):
        decode([b"remotes\0", msgpack.packb(envelope("remotes", body=body))])


def test_fields_of_a_newer_release_are_ignored_and_absent_ones_take_their_default() -> None:
    body = {"state": "ready", "colour": "blue"}
    value = decode([b"node\0", msgpack.packb(envelope(body=body, shape="round"))])
    assert isinstance(value, Value)
    assert value.body == topics.Node("ready")


@pytest.mark.parametrize(
    ("topic", "proc", "body"),
    [
        ("node", "agent", topics.Node("ready")),
        ("nodes", "coordinator", topics.Node("ready")),
        ("_alive", "coordinator", topics.Node("ready")),
        ("process.", "supervisor", topics.Process("x", "RUNNING")),
        ("process.a\0b", "supervisor", topics.Process("x", "RUNNING")),
        ("node", "coordinator", topics.Agent("ready")),
        ("node", "coordinator", {"state": "ready"}),
        ("node", "coordinator", topics.Node(5)),  # type: ignore[arg-type]
        ("remotes", "coordinator", topics.Remotes([ADDRESSES])),  # type: ignore[arg-type]
        ("node", "coordinator", topics.Node("\udc80")),
        ("process.x", "supervisor", topics.Process("x", "RUNNING", 2**70)),
        ("node", "coordinator", topics.Node("x" * MAX_FRAME)),
    ],
)
def test_a_publisher_is_refused_what_no_reader_would_take(topic: str, proc: str, body: object) -> None:
    with pytest.raises(Refused):
        encode(Value(topic, proc, 1, 1, 1, 1, "", body))


@dataclasses.dataclass(frozen=True)
class Mixed:
    ratio: float
    flags: tuple[bool, ...] = ()


def test_floats_take_whole_numbers_and_tuples_come_back_as_tuples() -> None:
    assert from_plain(Mixed, {"ratio": 2, "flags": [True, False]}) == Mixed(2.0, (True, False))
    assert to_plain(Mixed(0.5, (True,))) == {"ratio": 0.5, "flags": [True]}
    with pytest.raises(Misfit):
        from_plain(Mixed, {"ratio": True})


def test_a_type_that_cannot_travel_is_a_mistake_of_the_topic() -> None:
    with pytest.raises(TypeError):
        reader_of(dict[str, str])


def write_missing_golden_frames() -> None:
    """`PYTHONPATH=. python tests/unit/ipc/test_frames.py`, after adding a topic. Existing ones are never rewritten."""
    frames = {topic: encode(sample(topic))[1] for topic in BODIES}
    frames[topics.ALIVE] = encode_alive(ALIVE, 1_700_000_000_000_000_000)[1]
    for topic, packed in frames.items():
        if not golden(topic).exists():
            golden(topic).write_bytes(packed)


if __name__ == "__main__":
    write_missing_golden_frames()
