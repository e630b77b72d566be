"""The session brain: events in, effects out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procs.agent.session import LOCAL, Close, Effect, Open, Phase, Rest, Say, SessionBrain, Target
from swarm.remotes import Peer

ME = "me"
LOCAL_TARGET = Target(ME, LOCAL)


def top(_low: float, high: float) -> float:
    return high


def brain(*, session_id: str = "") -> SessionBrain:
    return SessionBrain(session_id=session_id, uniform=top)


def opened(effects: list[Effect]) -> Open:
    (found,) = [e for e in effects if isinstance(e, Open)]
    return found


def remote(one: SessionBrain, *addrs: str) -> list[Effect]:
    return one.managers([(Peer(f"id-{addr}", addr), 10) for addr in addrs])


def connected(one: SessionBrain, addr: str = "m1:1") -> SessionBrain:
    one.certificate(ME, "f", "r")
    remote(one, addr)
    one.registered("s1")
    return one


def test_nothing_is_opened_before_there_is_a_certificate_and_a_manager_in_either_order() -> None:
    one = brain()
    assert remote(one, "m1:1") == [Say("waiting", why="waiting for a certificate")]
    assert opened(one.certificate(ME, "f", "r")) == Open(Target("id-m1:1", "m1:1"), "")
    other = brain()
    assert other.certificate(ME, "f", "r") == [Say("waiting", why="no manager is known or ready")]
    assert opened(other.local_manager(ready=True, epoch=1)) == Open(LOCAL_TARGET, "")


def test_the_reason_for_having_no_certificate_is_told() -> None:
    one = brain()
    assert one.no_certificate("the key is locked") == [Say("waiting", why="the key is locked")]
    assert remote(one, "m1:1") == [Say("waiting", why="the key is locked")]


def test_the_remembered_session_is_offered_first_and_the_last_one_after_that_whoever_the_manager_is() -> None:
    one = brain(session_id="old")
    one.certificate(ME, "f", "r")
    assert opened(remote(one, "m1:1")).session_id == "old"
    assert one.registered("new") == [Say("connected", Target("id-m1:1", "m1:1"), "new")]
    one.ended("gone")
    remote(one, "m2:1")
    assert opened(one.rested()) == Open(Target("id-m2:1", "m2:1"), "new")


def test_waits_grow_to_eight_seconds_and_are_forgotten_at_registration() -> None:
    one = brain()
    one.certificate(ME, "f", "r")
    remote(one, "m1:1")
    waits = []
    for _ in range(8):
        effects = one.ended("refused")
        assert effects[0] == Say("waiting", why="refused")
        waits += [e.seconds for e in effects if isinstance(e, Rest)]
        opened(one.rested())
    assert waits == pytest.approx([0.1, 0.3, 0.7, 1.5, 3.1, 6.3, 8.0, 8.0])
    one.registered("s")
    assert one.ended("broke")[-1] == Rest(pytest.approx(0.1))  # type: ignore[arg-type]


def test_the_local_manager_is_preferred_and_a_failure_of_it_leads_elsewhere() -> None:
    one = brain()
    one.certificate(ME, "f", "r")
    remote(one, "m1:1", "m2:1")
    one.ended("refused")
    assert opened(one.local_manager(ready=True, epoch=1)).target == LOCAL_TARGET
    one.ended("refused")
    target = opened(one.rested()).target
    assert target.addr in ("m1:1", "m2:1")
    one.ended("refused")
    assert opened(one.rested()).target == LOCAL_TARGET, "and back again"


def test_the_only_manager_is_tried_again_even_after_it_failed() -> None:
    one = brain()
    one.certificate(ME, "f", "r")
    opened(one.local_manager(ready=True, epoch=1))
    one.ended("refused")
    assert opened(one.rested()).target == LOCAL_TARGET


def test_a_node_does_not_dial_itself() -> None:
    one = brain()
    one.certificate(ME, "f", "r")
    assert one.managers([(Peer(ME, "self:1"), 10)]) == [Say("waiting", why="no manager is known or ready")]


def test_a_local_manager_that_comes_up_again_is_used_at_once() -> None:
    one = brain()
    one.certificate(ME, "f", "r")
    one.local_manager(ready=True, epoch=1)
    one.registered("s")
    for _ in range(5):
        one.ended("manager died")
        one.rested()
    one.ended("manager died")
    assert one.phase is Phase.RESTING
    assert opened(one.local_manager(ready=True, epoch=2)) == Open(LOCAL_TARGET, "s")
    assert one.ended("again")[-1] == Rest(pytest.approx(0.1))  # type: ignore[arg-type]


def test_a_session_elsewhere_moves_to_the_local_manager_with_its_id_and_without_a_wait() -> None:
    one = connected(brain())
    assert one.local_manager(ready=True, epoch=1) == [Close("the local manager is ready")]
    assert one.ended("closed") == [Open(LOCAL_TARGET, "s1")]


def test_saying_ready_twice_changes_nothing() -> None:
    one = connected(brain())
    one.local_manager(ready=True, epoch=1)
    one.ended("closed")
    one.registered("s1")
    assert one.local_manager(ready=True, epoch=1) == []


def test_a_new_certificate_or_root_or_description_rebuilds_with_the_same_session() -> None:
    causes: list[Callable[[SessionBrain], list[Effect]]] = [
        lambda one: one.certificate(ME, "f2", "r"),
        lambda one: one.certificate(ME, "f", "r2"),
        lambda one: one.description_changed(),
    ]
    for cause in causes:
        one = connected(brain())
        (close,) = cause(one)
        assert isinstance(close, Close)
        assert cause(one) == [], "a second one while closing"
        assert opened(one.ended("closed")) == Open(Target("id-m1:1", "m1:1"), "s1")


def test_the_same_certificate_again_changes_nothing() -> None:
    one = connected(brain())
    assert one.certificate(ME, "f", "r") == []


def test_an_answer_that_arrives_while_closing_is_remembered() -> None:
    one = brain()
    one.certificate(ME, "f", "r")
    remote(one, "m1:1")
    one.description_changed()
    assert one.registered("s9") == []
    assert opened(one.ended("closed")).session_id == "s9"


def test_a_list_without_managers_forgets_none() -> None:
    one = connected(brain())
    one.managers([])
    one.ended("broke")
    assert opened(one.rested()).target.addr == "m1:1"


def test_a_node_that_the_swarm_refuses_says_so_and_goes_on_trying() -> None:
    one = connected(brain())
    said, rest = one.ended("removed from the swarm", refused=True)
    assert said == Say("refused", why="removed from the swarm")
    assert isinstance(rest, Rest)
    assert opened(one.rested()).session_id == "s1"
    assert one.registered("s2") == [Say("connected", Target("id-m1:1", "m1:1"), "s2")]


def test_when_a_manager_fails_the_session_is_offered_to_another_one() -> None:
    one = connected(brain())
    remote(one, "m1:1", "m2:1")
    assert one.target is not None
    first = one.target.addr
    one.ended("UNAVAILABLE: connection reset")
    after = opened(one.rested())
    assert after.session_id == "s1"
    assert {first, after.target.addr} == {"m1:1", "m2:1"}


def test_a_manager_that_failed_once_is_tried_again_when_others_list_it() -> None:
    one = connected(brain())
    for _ in range(4):
        one.ended("refused")
        one.rested()
    low = one._remotes.weights()[Peer("id-m1:1", "m1:1")]
    for _ in range(4):
        remote(one, "m1:1", "m2:1")  # each message of the next session
    assert low < 0 < one._remotes.weights()[Peer("id-m1:1", "m1:1")]


def test_a_node_that_left_opens_no_session() -> None:
    one = connected(brain())
    assert one.left() == [Close("the node leaves")]
    assert one.ended("closed") == []
    assert remote(one, "m3:1") == []
    assert one.certificate(ME, "f9", "r") == []


EVENTS = st.sampled_from(
    ["certificate", "same", "ready", "again", "stopped", "remotes", "description", "rested", "end"]
)


@given(st.lists(st.tuples(EVENTS, st.booleans()), max_size=60))
def test_in_any_order_there_is_one_session_at_most_and_each_wait_has_an_end(script: list[tuple[str, bool]]) -> None:
    one = brain()
    running = closing = resting = False
    epoch = fingerprint = 1
    for name, registers in script:
        effects: list[Effect] = []
        match name:
            case "certificate":
                fingerprint += 1
                effects = one.certificate(ME, f"f{fingerprint}", "r")
            case "same":
                effects = one.certificate(ME, f"f{fingerprint}", "r")
            case "ready":
                epoch += 1
                effects = one.local_manager(ready=True, epoch=epoch)
            case "again":
                effects = one.local_manager(ready=True, epoch=epoch)
            case "stopped":
                effects = one.local_manager(ready=False, epoch=epoch)
            case "remotes":
                effects = remote(one, "m1:1", "m2:1")
            case "description":
                effects = one.description_changed()
            case "rested" if resting:
                resting = False
                effects = one.rested()
            case "end" if running:
                running = closing = False
                effects = one.ended("end")
        for effect in effects:
            if isinstance(effect, Open):
                assert not running
                running = True
            elif isinstance(effect, Close):
                assert running
                assert not closing
                closing = True
            elif isinstance(effect, Rest):
                resting = True
        if running and registers and one.phase is Phase.OPENING:
            one.registered("s")
        if one.phase is Phase.RESTING:
            assert resting
        assert running == (one.phase in (Phase.OPENING, Phase.CONNECTED, Phase.CLOSING))


def test_an_expired_certificate_is_not_shown_to_others_but_the_local_manager_is_asked() -> None:
    brain = SessionBrain()
    brain.managers([(Peer("other", "192.0.2.1:2377"), 10)])
    assert brain.dates(expired=True, known=False) == []
    (said,) = brain.certificate("me", "one", "root")
    assert isinstance(said, Say)
    assert "has expired" in said.why
    assert brain.dates(expired=True, known=True) == []
    opened = brain.dates(expired=False, known=True)
    assert [type(effect) for effect in opened] == [Open], "the clock was set right"
    local = SessionBrain()
    local.dates(expired=True, known=False)
    local.certificate("me", "one", "root")
    assert [type(effect) for effect in local.local_manager(ready=True, epoch=1)] == [Open]
