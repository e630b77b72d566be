"""Publisher and readers without sockets, interleaved by hypothesis: whatever happens, the newest value arrives."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ipc.envelope import Alive, Value, decode, topic_frame
from ipc.errors import Refused
from ipc.publisher import MAX_TOPICS, Frames, Outbox
from ipc.subscriber import Held, Interest
from ipc.topics import AGENT, ALIVE, COORDINATOR, SUPERVISOR, Agent, Node, NodeChanges, Process, Role

SAID: dict[str, tuple[str, Any]] = {
    "process.a": (SUPERVISOR, lambda n: Process("a", str(n))),
    "process.b": (SUPERVISOR, lambda n: Process("b", str(n))),
    "agent": (AGENT, lambda n: Agent(str(n))),
    "node.changes": (AGENT, lambda n: NodeChanges(str(n), "")),
}
TOPICS = st.sampled_from(sorted(SAID))
OWNERS = st.sampled_from([SUPERVISOR, AGENT])
READERS = st.integers(0, 1)
PATTERNS = (("process.*", "agent", "node.changes"), ("process.b", "node.changes"))


class Network(RuleBasedStateMachine):
    """Two publishers, two readers, and between each life of one and each life of the other a pipe that is in order but
    may lose anything at any time. Pipes of the dead still deliver what is in them."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = 0
        self.outboxes: dict[str, Outbox] = {}
        self.readers = [Held(Interest.parse(PATTERNS[i])) for i in range(2)]
        self.pipes: dict[tuple[str, int, int], list[Frames]] = {}
        self.newest: dict[tuple[int, str], tuple[int, int]] = {}
        for owner in (SUPERVISOR, AGENT):
            self.restart_publisher(owner)

    # -- what may happen --------------------------------------------------------------------------------

    @rule(topic=TOPICS, n=st.integers(0, 3))
    def publish(self, topic: str, n: int) -> None:
        owner, make = SAID[topic]
        frames = self.outboxes[owner].put(topic, make(n), "", 0)
        if frames is not None:
            self.send(owner, frames)

    @rule(topic=TOPICS)
    def retire(self, topic: str) -> None:
        self.outboxes[SAID[topic][0]].retire(topic)

    @rule(owner=OWNERS)
    def restart_publisher(self, owner: str) -> None:
        self.clock += 1
        self.outboxes[owner] = Outbox(owner, self.clock)
        for reader in range(2):
            self.pipes[owner, self.clock, reader] = []
            self.connect(owner, reader)

    @rule(reader=READERS)
    def restart_reader(self, reader: int) -> None:
        self.readers[reader] = Held(Interest.parse(PATTERNS[reader]))
        self.newest = {key: order for key, order in self.newest.items() if key[0] != reader}
        for owner, epoch, at in self.pipes:
            if at == reader:
                self.pipes[owner, epoch, at].clear()
        for owner in self.outboxes:
            self.connect(owner, reader)

    @rule(owner=OWNERS)
    def period(self, owner: str) -> None:
        self.outboxes[owner].periods += 1
        self.send(owner, self.outboxes[owner].alive(0))

    @rule(data=st.data(), lost=st.booleans())
    def one_arrives(self, data: st.DataObject, lost: bool) -> None:
        if full := [key for key, pipe in self.pipes.items() if pipe]:
            key = data.draw(st.sampled_from(full))
            frames = self.pipes[key].pop(0)
            if not lost:
                self.take(key[2], frames)

    @rule(reader=READERS, keep=st.integers(0, 2))
    def a_stalled_reader_loses_the_newest(self, reader: int, keep: int) -> None:
        for (_, _, at), pipe in self.pipes.items():
            if at == reader:
                del pipe[keep:]

    @rule()
    def settle(self) -> None:
        """From here on nothing is lost: one digest after the readers caught up, everybody holds the newest."""
        for _ in range(3):
            self.deliver_all()
            for owner in self.outboxes:
                self.period(owner)
        self.deliver_all()
        for at, reader in enumerate(self.readers):
            interest = Interest.parse(PATTERNS[at])
            expected = {
                topic: outbox._bodies[topic]
                for outbox in self.outboxes.values()
                for topic in outbox._bodies
                if interest.wants(topic)
            }
            assert {topic: value.body for topic, value in reader.values.items()} == expected
            assert all(reader.complete(owner) for owner in self.outboxes)

    def teardown(self) -> None:
        self.settle()

    @invariant()
    def a_reader_holds_only_what_it_asked_for(self) -> None:
        for at, reader in enumerate(self.readers):
            assert all(Interest.parse(PATTERNS[at]).wants(topic) for topic in reader.values)

    # -- the network ------------------------------------------------------------------------------------

    def connect(self, owner: str, reader: int) -> None:
        """A new pipe: the reader's subscriptions reach the publisher, which sends its last values and a digest."""
        self.resend(owner, reader, Interest.parse(PATTERNS[reader]).subscriptions())
        self.pipes[owner, self.outboxes[owner].epoch, reader].append(self.outboxes[owner].alive(0))

    def resend(self, owner: str, reader: int, prefixes: list[bytes]) -> None:
        outbox = self.outboxes[owner]
        self.pipes[owner, outbox.epoch, reader] += outbox.matching(prefixes)

    def send(self, owner: str, frames: Frames) -> None:
        for reader in range(2):
            prefixes = [*Interest.parse(PATTERNS[reader]).subscriptions(), topic_frame(ALIVE)]
            if frames[0].startswith(tuple(prefixes)):
                self.pipes[owner, self.outboxes[owner].epoch, reader].append(frames)

    def deliver_all(self) -> None:
        while full := [key for key, pipe in self.pipes.items() if pipe]:
            for key in full:
                self.take(key[2], self.pipes[key].pop(0))

    def take(self, at: int, frames: Frames) -> None:
        reader = self.readers[at]
        message = decode(frames)
        if isinstance(message, Value):
            if reader.offer(message):
                order = (message.epoch, message.seq)
                assert order > self.newest.get((at, message.topic), (0, 0)), "a reader went back"
                self.newest[at, message.topic] = order
            return
        assert isinstance(message, Alive)
        digest = reader.digest(message)
        assert not set(digest.gone) & set(reader.values)
        for topic in digest.gone:
            self.newest.pop((at, topic), None)
        for topic in digest.behind:
            self.resend(message.proc, at, [topic_frame(topic)])


TestNetwork = Network.TestCase
TestNetwork.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def value(topic: str, epoch: int, seq: int, body: object, proc: str = COORDINATOR) -> Value:
    return Value(topic, proc, 1, epoch, seq, 0, "", body)


def test_an_older_epoch_is_stale_whatever_its_seq_and_topic() -> None:
    held = Held(Interest.parse(["*"]))
    assert held.offer(value("role", 5, 1, Role("worker")))
    assert not held.offer(value("role", 4, 9, Role("manager")))
    assert not held.offer(value("node", 4, 9, Node("ready")))
    assert not held.offer(value("role", 5, 1, Role("manager")))
    assert held.offer(value("role", 5, 2, Role("manager")))
    assert held.offer(value("role", 6, 1, Role("worker")))
    assert held.restarts == 1
    assert held.digest(Alive(COORDINATOR, 1, 5, 9, {})).stale


def test_the_last_word_of_a_process_outlives_the_first_period_of_the_next() -> None:
    held = Held(Interest.parse(["node.changes"]))
    held.offer(value("node.changes", 1, 1, NodeChanges("worker", "worker"), AGENT))
    assert held.digest(Alive(AGENT, 1, 2, 0, {})).gone == ()
    assert "node.changes" in held.values
    assert held.digest(Alive(AGENT, 1, 2, 1, {})).gone == ("node.changes",)
    assert held.values == {}


def test_a_digest_that_lists_what_belongs_to_another_asks_for_nothing() -> None:
    held = Held(Interest.parse(["*"]))
    assert held.digest(Alive(AGENT, 1, 1, 1, {"role": 5, "no.such": 1, "agent": 1, "process.": 1})).behind == ("agent",)


def test_complete_means_that_every_value_of_the_digest_came() -> None:
    held = Held(Interest.parse(["role", "node"]))
    assert not held.complete(COORDINATOR)
    held.offer(value("role", 1, 1, Role("worker")))
    assert held.digest(Alive(COORDINATOR, 1, 1, 0, {"role": 2, "node": 1, "remotes": 3})).behind == ("role", "node")
    assert not held.complete(COORDINATOR)
    held.offer(value("node", 1, 1, Node("ready")))
    assert not held.complete(COORDINATOR)
    held.offer(value("role", 1, 2, Role("manager")))
    assert held.complete(COORDINATOR)
    held.offer(value("role", 2, 1, Role("worker")))
    assert not held.complete(COORDINATOR), "a new life of the publisher has not said what it has"


def test_a_topic_that_comes_back_counts_on_so_that_no_reader_takes_it_for_stale() -> None:
    outbox = Outbox(SUPERVISOR, 1)
    for state in ("STOPPED", "STARTING", "RUNNING"):
        assert outbox.put("process.a", Process("a", state), "", 0)
    assert outbox.put("process.a", Process("a", "RUNNING"), "", 0) is None
    assert outbox.seq("process.a") == 3
    assert outbox.retire("process.a")
    assert not outbox.retire("process.a")
    assert outbox.seq("process.a") == 0
    assert outbox.put("process.a", Process("a", "RUNNING"), "", 0)
    assert outbox.seq("process.a") == 4


def test_a_subscription_gets_exactly_what_it_matches_and_each_once() -> None:
    outbox = Outbox(COORDINATOR, 1)
    outbox.put("node", Node("ready"), "", 0)
    outbox.put("role", Role("worker"), "", 0)
    assert [head for head, _ in outbox.matching([b"node\0", b"node\0", b"no"])] == [b"node\0"]
    assert outbox.matching([b"node.changes\0", b"nod\0", b"x"]) == []
    assert {head for head, _ in outbox.matching([b""])} == {b"node\0", b"role\0"}


def test_what_was_refused_is_not_remembered() -> None:
    outbox = Outbox(COORDINATOR, 1)
    with pytest.raises(Refused):
        outbox.put("node", Node(5), "", 0)  # type: ignore[arg-type]
    assert outbox.seq("node") == 0
    assert outbox.matching([b""]) == []
    with pytest.raises(Refused):
        outbox.put("agent", Agent("ready"), "", 0)
    with pytest.raises(Refused):
        outbox.retire("agent")


def test_a_publisher_with_the_most_topics_still_has_a_digest() -> None:
    outbox = Outbox(SUPERVISOR, 1)
    for n in range(MAX_TOPICS):
        outbox.put(f"process.{n:072}", Process("x", "RUNNING"), "", 0)
    message = decode(outbox.alive(0))
    assert isinstance(message, Alive)
    assert len(message.seqs) == MAX_TOPICS
    for topic in ("process.one-more", "process." + "x" * 73):
        with pytest.raises(Refused):
            outbox.put(topic, Process("x", "RUNNING"), "", 0)
    assert outbox.put(f"process.{0:072}", Process("x", "EXITED"), "", 0)


@pytest.mark.parametrize("pattern", ["nodes", "process.", "proc*", "node*", "", "task", "_alive"])
def test_a_subscription_to_what_does_not_exist_is_refused(pattern: str) -> None:
    with pytest.raises(Refused):
        Interest.parse([pattern])


def test_an_interest_knows_whom_to_listen_to() -> None:
    interest = Interest.parse(["role", "process.*", "task.x"])
    assert interest.owners() == ["coordinator", "supervisor", "workload"]
    assert interest.subscriptions() == [b"role\0", b"task.x\0", b"process."]
    assert interest.wants("process.agent")
    assert not interest.wants("task.y")
    assert not Interest.parse(["role"]).wants("node")
