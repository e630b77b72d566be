"""The renewer's brain: when it asks for which certificate, and what it does with the answer."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.topics import Certificate, ManagerAddress, NodeChanges, Role, Under
from procs.renewer.events import (
    Due,
    Effect,
    Event,
    Held,
    Install,
    Installed,
    InstallFailed,
    InstallRoot,
    Join,
    Joined,
    JoinRefused,
    Loaded,
    ManagerSaid,
    Moment,
    MustJoin,
    NodeChanged,
    Obtained,
    Prepare,
    Publish,
    RemotesSaid,
    RemoveBootstrapKey,
    Request,
    RequestFailed,
    RoleSaid,
    RootInstalled,
    RootRefused,
    Unusable,
    WakeAt,
)
from procs.renewer.machine import (
    ANSWERS,
    EXPIRED_CAP,
    JOIN_CAP,
    JOIN_PAUSE,
    JOIN_TRIES,
    LONGEST_SLEEP,
    InvalidTransition,
    Phase,
    Renewer,
    backoff_bound,
    renewal_time,
)
from swarm.joining import Trouble

START = 1_700_000_000
DAYS = 90 * 86400
HELD = Held("me", "swarm", "worker", START - 3600, START + DAYS, "one", "root1", b"issuer", b"key")
NEXT = Held("me", "swarm", "worker", START - 3600, START + 2 * DAYS, "two", "root1")
PEER = ManagerAddress("peer", "192.0.2.1:2377", 10)
READY = ManagerSaid(ready=True, epoch=1)


class Bench:
    """A brain with a clock that is turned by hand."""

    def __init__(self) -> None:
        self.brain = Renewer(random.Random(4))
        self.wall = float(START)
        self.effects: list[Effect] = []

    def tell(self, *told: Event, after: float = 0.0) -> list[Effect]:
        """What the last of these events leads to, without the timer."""
        self.wall += after
        for event in told:
            self.effects = self.brain.handle(event, Moment(self.wall, self.wall - 1_000_000))
        return [effect for effect in self.effects if not isinstance(effect, WakeAt)]

    @property
    def wake(self) -> float:
        """Seconds until the brain wants to be woken."""
        (found,) = [e.monotonic for e in self.effects if isinstance(e, WakeAt)]
        return found - (self.wall - 1_000_000)

    @property
    def said(self) -> Certificate:
        published = self.brain._published
        assert published is not None
        return published


def kinds(effects: Sequence[Effect]) -> list[type]:
    return [type(effect) for effect in effects]


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.tell(Loaded(HELD))
    return made


def replace(fingerprint: str = "one", expected: str = "manager", why: str = "promotion") -> RoleSaid:
    return RoleSaid(Role("worker", expected, fingerprint, why))


def test_what_is_loaded_is_published() -> None:
    effects = Bench().tell(Loaded(HELD))
    assert effects == [
        Publish(
            Certificate("valid", "me", "swarm", "worker", START - 3600, START + DAYS, b"issuer", b"key", "one", "root1")
        )
    ]


@pytest.mark.parametrize("state", ["locked", "failed"])
def test_unusable_files_are_said_and_then_it_only_waits(state: str) -> None:
    bench = Bench()
    assert bench.tell(Unusable(state, "the file, the remedy")) == [
        Publish(Certificate(state, why="the file, the remedy"))
    ]
    assert bench.tell(READY, RemotesSaid((PEER,)), replace(), Due()) == []


def test_sleeps_at_most_an_hour_so_that_a_set_clock_is_noticed(bench: Bench) -> None:
    assert bench.wake == LONGEST_SLEEP
    bench.tell(READY)
    assert bench.tell(Due(), after=0.85 * DAYS)[0] == Prepare()
    assert bench.brain.phase is Phase.REQUESTING


def test_renewal_window_opens_between_50_and_80_percent_on_a_whole_minute() -> None:
    times = [renewal_time(0, 90 * 60, random.Random(n).randrange) for n in range(200)]
    assert (min(times), max(times)) == (45 * 60, 71 * 60)
    assert all(t % 60 == 0 for t in times)
    assert renewal_time(0, 119, random.Random(1).randrange) == 0.0  # less than a minute to choose from: its start
    assert renewal_time(60, 240, random.Random(1).randrange) == 120.0


def test_backoff_doubles_to_an_hour() -> None:
    assert [backoff_bound(n) for n in (1, 2, 3, 4, 10, 11, 5000)] == [10, 15, 25, 45, 2565, 3600, 3600]


def test_replacement_is_asked_for_once_and_obeyed_once(bench: Bench) -> None:
    assert bench.tell(READY, replace()) == [Prepare(), Request(local=True, why="promotion")]
    assert bench.tell(replace()) == []
    assert bench.tell(Obtained("manager")) == [Install()]
    assert kinds(bench.tell(Installed(NEXT))) == [Publish]
    assert bench.tell(replace()) == []  # said again after any restart: the fingerprint is another one
    assert bench.brain.phase is Phase.RESTING


def test_request_carries_the_cause_of_what_asked_for_it_whatever_made_it_possible(bench: Bench) -> None:
    bench.tell(RoleSaid(Role("worker", "manager", "one", "promotion"), cause="c1"))
    assert Request(local=True, why="promotion", cause="c1") in bench.tell(READY)
    bench.tell(Obtained("manager"), Installed(NEXT), RoleSaid(Role("manager"), cause="c2"))
    (request,) = [e for e in bench.tell(Due(), after=1.7 * DAYS) if isinstance(e, Request)]
    assert request.cause == ""


def test_replacement_known_before_the_certificate_is_loaded() -> None:
    bench = Bench()
    assert bench.tell(READY, replace()) == []
    assert kinds(bench.tell(Loaded(HELD))) == [Prepare, Request, Publish]


def test_certificate_of_another_role_is_not_installed_and_tried_again(bench: Bench) -> None:
    bench.tell(READY, replace())
    effects = bench.tell(Obtained("worker"))
    assert kinds(effects) == [Publish]
    assert bench.said.attempt == 1
    assert bench.said.why == "the swarm still issues worker certificates, manager is expected"
    assert START <= bench.said.next_try_at <= START + 10
    assert 0 <= bench.wake <= 10
    assert bench.tell(Due(), after=bench.wake)[0] == Request(local=True, why="promotion")


def test_role_that_changed_while_the_request_ran_decides(bench: Bench) -> None:
    bench.tell(READY, replace(), replace(expected="worker", why="demotion"))
    assert bench.tell(Obtained("worker")) == [Install()]


def test_role_change_taken_back_while_the_request_ran_installs_nothing(bench: Bench) -> None:
    bench.tell(READY, replace(), RoleSaid(Role("worker")))
    assert bench.tell(Obtained("manager")) == []
    assert (bench.brain.phase, bench.said.attempt) == (Phase.RESTING, 0)
    bench.tell(replace(), RoleSaid(Role("worker")))
    assert bench.tell(Obtained("worker")) == [Install()]  # it is fresh, and changes nothing


def test_confirmation_by_the_managers_ends_the_backoff(bench: Bench) -> None:
    bench.tell(READY, replace(), Obtained("worker"))
    assert bench.brain.phase is Phase.RETRYING
    confirmed = RoleSaid(Role("worker", "manager", "one", "promotion", confirmed=True))
    assert Request(local=True, why="promotion") in bench.tell(confirmed)


def test_failures_wait_longer_and_say_why(bench: Bench) -> None:
    bench.tell(READY, replace())
    for failures in range(1, 6):
        bench.tell(RequestFailed("no answer"))
        assert (bench.said.attempt, bench.said.why, bench.said.state) == (failures, "no answer", "valid")
        assert bench.wake <= backoff_bound(failures)
        if bench.wake > 0.5:
            assert bench.tell(Due(), after=bench.wake / 2) == []
        bench.tell(Due(), after=max(bench.wake, 0.0) + 0.001)
        assert bench.brain.phase is Phase.REQUESTING
    bench.tell(Obtained("manager"), InstallFailed("disk full"))
    assert (bench.said.attempt, bench.said.why) == (6, "disk full")
    bench.tell(Due(), after=3600)
    bench.tell(Obtained("manager"), Installed(NEXT))
    assert (bench.said.attempt, bench.said.why, bench.said.next_try_at, bench.said.fingerprint) == (0, "", 0, "two")


def test_manager_that_comes_up_ends_the_waiting(bench: Bench) -> None:
    bench.tell(READY, replace(), RequestFailed("refused"))
    assert bench.tell(READY) == []
    assert Request(local=True, why="promotion") in bench.tell(ManagerSaid(ready=True, epoch=2))


def test_withdrawn_replacement_ends_the_retries(bench: Bench) -> None:
    bench.tell(READY, replace(), RequestFailed("refused"))
    bench.tell(RoleSaid(Role("worker")))
    assert (bench.brain.phase, bench.said.attempt, bench.said.why) == (Phase.RESTING, 0, "")


def test_another_replacement_does_not_wait_for_the_old_ones_backoff(bench: Bench) -> None:
    bench.tell(READY, replace(), RequestFailed("refused"))
    assert bench.brain.phase is Phase.RETRYING
    assert Request(local=True, why="demotion") in bench.tell(replace(expected="worker", why="demotion"))


def test_nobody_to_ask_is_said_and_waits_without_counting(bench: Bench) -> None:
    bench.tell(replace())
    assert bench.brain.phase is Phase.WAITING
    assert (
        bench.said.why == "promotion; nobody to ask: this node's manager does not answer, and no other manager is known"
    )
    assert bench.tell(RemotesSaid((ManagerAddress("me", "192.0.2.9:2377"),))) == []
    assert Request(local=False, why="promotion") in bench.tell(RemotesSaid((PEER,)))
    assert bench.said.attempt == 0


def test_a_key_that_lay_on_the_disk_unlocked_is_replaced_once(bench: Bench) -> None:
    said = ManagerSaid(ready=True, epoch=1, replace="one")
    (asked,) = [e for e in bench.tell(said) if isinstance(e, Request)]
    assert (asked.local, asked.why) == (True, "its key lay on the disk unlocked")
    bench.tell(Obtained("worker"), Installed(NEXT))
    assert not [e for e in bench.tell(said) if isinstance(e, Request)], "the state is told again, and obeyed once"


def test_expired_certificate_is_said_and_whoever_is_there_is_asked() -> None:
    bench = Bench()
    bench.wall = START + DAYS + 1
    bench.tell(Loaded(HELD))
    assert (bench.said.state, bench.brain.phase) == ("expired", Phase.WAITING)
    assert "no other manager is known" in bench.said.why
    (asked,) = [e for e in bench.tell(RemotesSaid((PEER,))) if isinstance(e, Request)]
    assert not asked.local, "others take the proof of an expired node"
    assert kinds(bench.tell(RequestFailed("they do not"), READY)) == [Request, Publish]
    bench.tell(Obtained("worker"), Installed(Held("me", "swarm", "worker", START, START + 9 * DAYS, "two", "root1")))
    assert bench.said.state == "valid"


def test_an_expired_node_asks_at_least_every_minute_and_says_what_kind_of_no_it_got() -> None:
    bench = Bench()
    bench.wall = HELD.not_after + 10.0
    bench.tell(Loaded(HELD), RemotesSaid((PEER,)))
    for _ in range(12):
        bench.tell(RequestFailed("no", Trouble.REFUSED))
        assert (bench.said.state, bench.said.problem) == ("expired", "refused")
        assert bench.wake <= EXPIRED_CAP
        assert kinds(bench.tell(Due(), after=bench.wake))[0] is Request


def test_once_the_ca_signs_again_what_it_could_not_the_backoff_ends(bench: Bench) -> None:
    bench.tell(RemotesSaid((PEER,)), replace(expected=""))
    signed = NodeChanged(NodeChanges("worker", "worker", 3), "")
    bench.tell(RequestFailed("no signer", Trouble.UNSIGNED), NodeChanged(NodeChanges("worker", "worker", 1), ""))
    assert bench.brain.phase is Phase.RETRYING
    assert Request in kinds(bench.tell(signed))
    bench.tell(RequestFailed("no manager", Trouble.UNREACHABLE))
    assert Request not in kinds(bench.tell(signed)), "no news, and another reason: no loop"


def test_end_of_the_certificate_is_published_when_it_comes(bench: Bench) -> None:
    bench.tell(Due(), after=DAYS - 10)
    assert (bench.brain.phase, bench.said.state) == (Phase.WAITING, "valid")
    assert 10 <= bench.wake <= 12
    bench.tell(Due(), after=bench.wake)
    assert bench.said.state == "expired"


def test_bootstrap_key_goes_when_the_store_holds_this_very_root() -> None:
    bench = Bench()
    bench.tell(Loaded(HELD, bootstrap_key=True))
    for digest in ("", "other"):
        assert bench.tell(ManagerSaid(ready=True, root_digest_held=digest)) == []
    assert bench.tell(ManagerSaid(ready=True, root_digest_held="root1")) == [RemoveBootstrapKey()]
    assert bench.tell(ManagerSaid(ready=True, root_digest_held="root1")) == []


def test_bootstrap_key_goes_even_if_the_manager_spoke_first() -> None:
    bench = Bench()
    bench.tell(ManagerSaid(ready=True, root_digest_held="root1"))
    assert RemoveBootstrapKey() in bench.tell(Loaded(HELD, bootstrap_key=True))


def changed(root: bytes = b"bundle", digest: str = "root2", under: str = "root1") -> NodeChanged:
    return NodeChanged(NodeChanges("worker", "worker", root_ca=root, under=Under("one", under)), digest)


def test_new_root_is_installed_if_the_agent_held_ours(bench: Bench) -> None:
    assert bench.tell(changed(under="older")) == []
    assert bench.tell(changed(digest="root1")) == []
    assert bench.tell(changed(b"", "")) == []
    assert bench.tell(changed()) == [InstallRoot(b"bundle", "root2")]
    assert bench.tell(changed()) == []
    bench.tell(RootInstalled(Held("me", "swarm", "worker", START - 3600, START + DAYS, "one", "root2")))
    assert bench.said.root_digest == "root2"
    assert bench.tell(changed()) == []  # the agent's message was under the root before


def test_refused_root_is_not_tried_again(bench: Bench) -> None:
    bench.tell(changed())
    assert kinds(bench.tell(RootRefused("root2", "does not match"))) == [Publish]
    assert bench.said.why == "does not match"
    assert bench.tell(changed()) == []
    assert bench.tell(changed(digest="root3")) == [InstallRoot(b"bundle", "root3")]


def test_new_root_waits_for_a_request_under_way(bench: Bench) -> None:
    bench.tell(READY, replace())
    assert bench.tell(changed()) == []
    assert bench.tell(Obtained("manager")) == [Install()]
    assert InstallRoot(b"bundle", "root2") in bench.tell(Installed(NEXT))


def test_imports_begin_when_a_replacement_may_come(bench: Bench) -> None:
    assert bench.tell(RoleSaid(Role("worker", soon=True))) == [Prepare()]
    assert bench.tell(RoleSaid(Role("worker", soon=True))) == []


def test_a_node_without_a_certificate_joins() -> None:
    bench = Bench()
    assert bench.tell(MustJoin()) == [Publish(Certificate("joining")), Join()]
    assert bench.tell(READY, RemotesSaid((PEER,)), replace(), Due()) == []  # one try at a time
    assert kinds(bench.tell(Joined(HELD)))[-1] is Publish
    assert (bench.said.state, bench.said.fingerprint, bench.said.attempt) == ("valid", "one", 0)


def test_tries_to_join_are_two_seconds_apart_then_longer_and_each_says_why() -> None:
    bench = Bench()
    bench.tell(MustJoin())
    for failures in range(1, 12):
        (said,) = bench.tell(JoinRefused("nobody there", Trouble.UNREACHABLE))
        assert isinstance(said, Publish)
        shown = said.certificate
        assert (shown.state, shown.attempt, shown.why) == ("joining", failures, "nobody there")
        assert shown.problem == "unreachable"
        assert shown.next_try_at == int(bench.wall + bench.wake)
        if failures < JOIN_TRIES:
            assert bench.wake == JOIN_PAUSE
            assert bench.tell(Due(), after=JOIN_PAUSE - 0.5) == []
            assert bench.wake == 0.5
        else:
            assert 0 <= bench.wake <= JOIN_CAP
        assert bench.tell(Due(), after=JOIN_CAP) == [Join()]
    bench.tell(Joined(HELD))
    assert bench.said.attempt == 0


@pytest.mark.parametrize(
    "refused",
    [JoinRefused("no", trouble) for trouble in Trouble if trouble.hopeless] + [JoinRefused("no", hopeless=True)],
)
def test_what_only_the_operator_can_change_ends_the_tries(refused: JoinRefused) -> None:
    bench = Bench()
    bench.tell(MustJoin())
    assert bench.tell(refused) == [Publish(Certificate("failed", attempt=1, why="no", problem=refused.trouble))]
    assert bench.tell(Due(), after=4000) == []
    assert bench.brain.phase is Phase.STUCK


def test_a_clock_that_is_wrong_is_looked_at_again() -> None:
    bench = Bench()
    bench.tell(MustJoin(), JoinRefused("not valid yet", Trouble.CLOCK))
    assert bench.tell(Due(), after=JOIN_CAP) == [Join()]


ANSWER_SAMPLES: list[Event] = [
    Loaded(HELD),
    Unusable("failed", ""),
    MustJoin(),
    Joined(HELD),
    JoinRefused(""),
    Obtained("worker"),
    RequestFailed(""),
    Installed(NEXT),
    InstallFailed(""),
    RootInstalled(HELD),
    RootRefused("", ""),
]


@pytest.mark.parametrize("answer", ANSWER_SAMPLES, ids=lambda e: type(e).__name__)
def test_answers_nobody_asked_for_are_mistakes(bench: Bench, answer: Event) -> None:
    with pytest.raises(InvalidTransition, match="while resting"):
        bench.tell(answer)
    assert set(ANSWERS) == {type(event) for event in ANSWER_SAMPLES}


FACTS = st.sampled_from(
    [
        READY, ManagerSaid(ready=False), ManagerSaid(ready=True, root_digest_held="root1", epoch=2),
        RemotesSaid(()), RemotesSaid((PEER,)), replace(), replace(expected="worker"), RoleSaid(Role("worker")),
        changed(), changed(digest="root1"), Due(),
    ]
)  # fmt: skip
REPLIES: dict[Phase, list[Event]] = {
    Phase.LOADING: [Loaded(HELD), Loaded(HELD, bootstrap_key=True), MustJoin()],
    Phase.JOINING: [Joined(HELD), JoinRefused("x"), JoinRefused("x", Trouble.UNREACHABLE)],
    Phase.REQUESTING: [Obtained("worker"), Obtained("manager"), RequestFailed("x")],
    Phase.INSTALLING: [Installed(NEXT), InstallFailed("x")],
    Phase.ROOTING: [RootInstalled(HELD), RootRefused("root2", "x")],
}


@given(st.data())
def test_any_interleaving_asks_one_thing_at_a_time_and_never_sleeps_for_ever(data: st.DataObject) -> None:
    bench = Bench()
    asked: type | None = Loaded
    for _ in range(data.draw(st.integers(1, 30))):
        replies = REPLIES.get(bench.brain.phase, [])
        event = data.draw(st.one_of(FACTS, st.sampled_from(replies)) if replies else FACTS)
        if type(event) in ANSWERS:
            assert asked is not None
            asked = None
        for effect in bench.tell(event, after=data.draw(st.sampled_from([0.0, 1.0, 4000.0, DAYS / 3]))):
            if isinstance(effect, Join | Request | Install | InstallRoot):
                assert asked is None
                asked = type(effect)
        assert (asked is not None) == (bench.brain.phase in REPLIES)
        if bench.brain.held is not None:
            assert 0 <= bench.wake <= LONGEST_SLEEP
            assert bench.said.fingerprint == bench.brain.held.fingerprint
