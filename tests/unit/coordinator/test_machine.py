"""The coordinator's machine: every row, every pair of events in both orders, and the stories that matter."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ipc import topics
from procs.coordinator import document, machine
from procs.coordinator.effects import (
    DeleteErasedData,
    Heard,
    Publish,
    SavePeers,
    SetManagerDataAside,
    StartManager,
    StopManager,
    Tick,
)
from procs.coordinator.machine import Machine
from procs.coordinator.states import Action, Happening, Replacement, Supervision, Wish
from procs.coordinator.tables import REPLACEMENT, SUPERVISION, IllegalTransition
from swarm.exits import ExitCode
from swarm.remotes import Peer
from tests.unit.coordinator.world import MANAGER_CERT, NODE, WORKER_CERT, World, changes

REPOSITORY = Path(__file__).parents[3]

Deed = Callable[[World], object]

# -- ways into every state -------------------------------------------------------------------------------------------


def manager_runs() -> World:
    world = World()
    world.not_started()
    world.hear("certificate", MANAGER_CERT)
    return world


def worker() -> World:
    world = World()
    world.not_started()
    world.hear("certificate", WORKER_CERT)
    return world


def ended(code: ExitCode) -> World:
    world = manager_runs()
    world.exits(code)
    return world


def forced() -> World:
    world = ended(ExitCode.REMOVED)
    world.time_out()
    return world


def held() -> World:
    world = manager_runs()
    world.operator_stops()
    return world


def withdrawn() -> World:
    """A manager that takes its time to stop: supervisord has not told of its end yet."""
    world = manager_runs()
    slow, world.pid = world.pid, 0
    world.operator_stops = lambda: None  # type: ignore[method-assign]
    world.machine.facts.processes["manager"] = topics.Process("manager", "STOPPING", slow)
    world.pid = slow
    world.hear("certificate", WORKER_CERT)
    del world.operator_stops
    return world


def returning() -> World:
    world = withdrawn()
    world.hear("certificate", replace(MANAGER_CERT, fingerprint="m2"))
    return world


def deciding() -> World:
    world = World()
    world.machine.supervision = Supervision.DECIDING
    return world


ENTRANCES: dict[Supervision, Callable[[], World]] = {
    Supervision.BOOTING: World,
    Supervision.DECIDING: deciding,
    Supervision.PARKED: worker,
    Supervision.RUNNING: manager_runs,
    Supervision.HELD: held,
    Supervision.ENDED: lambda: ended(ExitCode.DONE),
    Supervision.REMOVED: lambda: ended(ExitCode.REMOVED),
    Supervision.FORCED: forced,
    Supervision.WITHDRAWN: withdrawn,
    Supervision.RETURNING: returning,
}


@pytest.mark.parametrize("state", Supervision)
def test_every_state_can_be_reached(state: Supervision) -> None:
    assert ENTRANCES[state]().machine.supervision is state


# -- the tables ------------------------------------------------------------------------------------------------------


def test_tables_are_complete() -> None:
    assert set(SUPERVISION) == set(itertools.product(Supervision, Happening))
    assert set(REPLACEMENT) == set(itertools.product(Replacement, Wish))


@pytest.mark.parametrize(("state", "happening"), SUPERVISION)
def test_every_supervision_row_is_obeyed(state: Supervision, happening: Happening) -> None:
    world = ENTRANCES[state]()
    brain = world.machine
    step = SUPERVISION[state, happening]
    brain._supervise(happening, world.now)
    orders = [type(effect) for effect in brain._out if isinstance(effect, StartManager | StopManager)]
    assert brain.supervision == step.state
    assert orders == [
        StartManager if a is Action.START else StopManager for a in step.actions if a in (Action.START, Action.STOP)
    ]
    if Action.WAIT in step.actions:
        assert brain.deadline() == world.now + 16
    elif step.state != state:
        assert brain.deadline() is None


@pytest.mark.parametrize(("state", "wish"), REPLACEMENT)
def test_every_replacement_row_is_obeyed(state: Replacement, wish: Wish) -> None:
    world = worker()
    world.machine.replacement = state
    step = REPLACEMENT[state, wish]
    world.machine._replace(wish, world.now)
    assert world.machine.replacement == step.state
    assert (world.machine.deadline() == world.now + 16) == (Action.WAIT in step.actions)
    role = world.machine._role_body()
    assert bool(role.replace_fingerprint) == (step.state in (Replacement.ASKING, Replacement.ROTATING))


def test_an_unknown_pair_raises_with_the_story(monkeypatch: pytest.MonkeyPatch) -> None:
    world = manager_runs()
    rest = {pair: step for pair, step in SUPERVISION.items() if pair != (Supervision.RUNNING, Happening.ROLE_WORKER)}
    monkeypatch.setattr(machine, "SUPERVISION", rest)
    with pytest.raises(IllegalTransition, match="deciding -> running"):
        world.hear("certificate", WORKER_CERT)


def test_the_document_is_current() -> None:
    assert (REPOSITORY / "docs" / "coordinator.md").read_text() == document.document()


# -- both orders -----------------------------------------------------------------------------------------------------

DEEDS: dict[str, tuple[str, Deed]] = {
    # name: (who says it, what happens); what one process says keeps its order, so only different ones are swapped
    "worker certificate": ("renewer", lambda w: w.hear("certificate", replace(WORKER_CERT, fingerprint="w9"))),
    "manager certificate": ("renewer", lambda w: w.hear("certificate", replace(MANAGER_CERT, fingerprint="m9"))),
    "certificate locked": ("renewer", lambda w: w.hear("certificate", topics.Certificate("locked"))),
    "desired manager": ("agent", lambda w: w.hear("node.changes", changes("manager", "worker"))),
    "observed manager": ("agent", lambda w: w.hear("node.changes", changes("manager"))),
    "desired worker": ("agent", lambda w: w.hear("node.changes", changes("worker", "manager"))),
    "observed worker": ("agent", lambda w: w.hear("node.changes", changes("worker"))),
    "rotation of m1": ("agent", lambda w: w.hear("node.changes", changes("manager", rotate=True, under="m1"))),
    "rotation of w9": ("agent", lambda w: w.hear("node.changes", changes("worker", rotate=True, under="w9"))),
    "exit DONE": ("supervisord", lambda w: w.exits(ExitCode.DONE)),
    "exit REMOVED": ("supervisord", lambda w: w.exits(ExitCode.REMOVED)),
    "exit CONFIG": ("supervisord", lambda w: w.exits(ExitCode.CONFIG)),
    "crash": ("supervisord", lambda w: w.crashes()),
    "stop": ("supervisord", lambda w: w.operator_stops()),
    "start": ("supervisord", lambda w: w.operator_starts()),
    "time": ("clock", lambda w: w.time_out()),
}


def outcome(entrance: Callable[[], World], *names: str) -> tuple[object, ...]:
    """Where the node ends up once everything that was ordered was done and all waiting is over."""
    world = entrance()
    for name in names:
        DEEDS[name][1](world)
    world.settle()
    brain = world.machine
    return (brain.supervision, brain.replacement, bool(world.pid), world.published("role"))


PAIRS = [(a, b) for a, b in itertools.combinations(DEEDS, 2) if DEEDS[a][0] != DEEDS[b][0]]


@pytest.mark.parametrize("state", [s for s in Supervision if s is not Supervision.DECIDING])
def test_any_two_events_end_in_the_same_place_in_either_order(state: Supervision) -> None:
    entrance = ENTRANCES[state]
    nothing_to_stop = not entrance().pid
    for first, second in PAIRS:
        if "stop" in (first, second) and nothing_to_stop:
            continue  # not the same two events: the other one may start what is then stopped
        assert outcome(entrance, first, second) == outcome(entrance, second, first), f"{first}, {second}"


@pytest.mark.parametrize(
    "deeds", list(itertools.permutations(["observed manager", "manager certificate", "exit DONE"]))
)
def test_a_promoted_node_runs_its_manager_whatever_comes_first(deeds: tuple[str, ...]) -> None:
    assert outcome(worker, *deeds)[:3] == (Supervision.RUNNING, Replacement.AGREED, True)


# -- stories ---------------------------------------------------------------------------------------------------------


def test_promotion_asks_for_the_certificate_and_then_starts_the_manager() -> None:
    world = worker()
    world.hear("node.changes", changes("manager", "worker"))
    assert world.published("role") == topics.Role("worker", soon=True)
    world.hear("node.changes", changes("manager"))
    role = world.published("role")
    assert isinstance(role, topics.Role)
    assert (role.expected, role.replace_fingerprint) == ("manager", "w1")
    assert not world.pid
    world.hear("certificate", MANAGER_CERT)
    assert world.pid
    assert world.published("role") == topics.Role("manager")


def test_an_observed_role_alone_asks_for_nothing() -> None:
    world = worker()
    world.hear("node.changes", changes("worker", "manager"))
    assert world.published("role") == topics.Role("worker")
    assert world.machine.deadline() is None


def test_an_old_ca_that_reports_no_observed_role_is_asked_after_16_seconds() -> None:
    world = worker()
    world.hear("node.changes", changes("manager", "worker"))
    assert world.machine.deadline() == world.now + 16
    world.time_out()
    role = world.published("role")
    assert isinstance(role, topics.Role)
    assert role.replace_fingerprint == "w1"


def test_a_confirmation_that_comes_late_is_passed_on() -> None:
    world = worker()
    world.hear("node.changes", changes("manager", "worker"))
    world.time_out()
    asked = world.published("role")
    world.hear("node.changes", changes("manager"))
    confirmed = world.published("role")
    assert isinstance(asked, topics.Role)
    assert confirmed == replace(asked, confirmed=True)


def test_another_wish_than_the_one_asked_for_waits_for_its_own_confirmation() -> None:
    world = worker()
    world.hear("node.changes", changes("manager"))
    world.hear("certificate", MANAGER_CERT)
    world.hear("node.changes", changes("worker"))
    assert world.machine.replacement is Replacement.ASKING
    # The worker's certificate comes, and the next promotion is heard before it.
    world.hear("node.changes", changes("manager", "worker"))
    world.hear("certificate", replace(WORKER_CERT, fingerprint="w2"))
    assert world.published("role") == topics.Role("worker", soon=True)
    world.hear("node.changes", changes("manager"))
    role = world.published("role")
    assert isinstance(role, topics.Role)
    assert (role.replace_fingerprint, role.expected, role.confirmed) == ("w2", "manager", True)


@pytest.mark.parametrize("waited", [False, True])
def test_a_demotion_taken_back_after_the_removal_starts_the_manager_at_once(waited: bool) -> None:
    world = manager_runs()
    world.hear("node.changes", changes("worker", "manager"))
    world.exits(ExitCode.REMOVED)
    if waited:
        world.now += 16
        world.feed(Tick())
    assert not world.pid
    world.hear("node.changes", changes("manager"))
    assert world.pid
    assert world.published("role") == topics.Role("manager")
    # Once: the next removal is another one.
    world.exits(ExitCode.REMOVED)
    assert not world.pid


def test_a_demotion_taken_back_before_the_removal_is_heard_starts_the_manager_at_once_too() -> None:
    world = manager_runs()
    world.hear("node.changes", changes("worker", "manager"))
    world.hear("node.changes", changes("manager"))
    world.exits(ExitCode.REMOVED)
    assert world.pid


def test_a_manager_removed_without_a_demotion_is_not_started_by_old_news() -> None:
    world = manager_runs()
    world.hear("node.changes", changes("manager"))
    world.exits(ExitCode.REMOVED)
    world.hear("node.changes", changes("manager", rotate=True))
    assert not world.pid


def test_a_second_end_counts_though_nobody_heard_of_the_run_before_it() -> None:
    world = ended(ExitCode.REMOVED)
    world.operator_starts = lambda: None  # type: ignore[method-assign]
    world.time_out()
    world.time_out()
    assert world.machine.supervision == "running"
    world.process("EXITED", ExitCode.REMOVED)
    assert world.machine.supervision is Supervision.REMOVED
    assert world.machine.deadline() == world.now + 16


def test_rotation_is_obeyed_once_and_not_for_a_certificate_replaced_since() -> None:
    world = worker()
    world.hear("node.changes", changes("worker", rotate=True, under="w1"))
    asked = world.published("role")
    assert isinstance(asked, topics.Role)
    assert asked.replace_fingerprint == "w1"
    world.hear("certificate", replace(WORKER_CERT, fingerprint="w2"))
    assert world.published("role") == topics.Role("worker")


def test_removed_manager_waits_16_seconds_then_renews_and_only_then_starts_again() -> None:
    world = ended(ExitCode.REMOVED)
    before = world.now
    world.time_out()
    assert world.now == before + 16
    role = world.published("role")
    assert isinstance(role, topics.Role)
    assert role.replace_fingerprint == "m1"
    assert not world.pid
    world.time_out()
    assert world.now == before + 32
    assert world.pid


def test_manager_that_ended_without_a_role_change_is_started_again_after_16_seconds() -> None:
    world = ended(ExitCode.DONE)
    assert not world.pid
    world.time_out()
    assert world.pid


def test_crash_is_left_to_supervisord() -> None:
    world = manager_runs()
    before = len(world.done)
    world.crashes()
    assert not [e for e in world.done[before:] if isinstance(e, StartManager)]
    assert world.machine.supervision is Supervision.RUNNING


def test_demotion_stops_a_manager_that_does_not_end_by_itself() -> None:
    world = manager_runs()
    effects = world.hear("certificate", WORKER_CERT)
    assert any(isinstance(e, StopManager) for e in effects)
    assert not world.pid
    assert world.machine.supervision is Supervision.PARKED


@pytest.mark.parametrize("state", [s for s in Supervision if s not in (Supervision.BOOTING, Supervision.DECIDING)])
def test_killed_in_any_state_the_next_coordinator_ends_in_the_same_place(state: Supervision) -> None:
    old = ENTRANCES[state]()
    held_by_operator = state is Supervision.HELD
    new = World()
    new.pid, new.pids = old.pid, old.pids
    values = [
        Heard("certificate", old.machine.facts.certificate, 77),
        Heard("process.manager", old.machine.facts.processes["manager"], 77),
    ]
    for order in itertools.permutations(values):
        for value in order:
            new.feed(value)
    for world in (old, new):
        if world.machine.supervision in (Supervision.WITHDRAWN, Supervision.RETURNING):
            world.operator_stops()
        world.settle()
    if not held_by_operator:
        # A stop by hand is not remembered over a restart of the coordinator: the manager's lock is what protects it.
        assert (new.machine.supervision, bool(new.pid)) == (old.machine.supervision, bool(old.pid))


# -- manager data ----------------------------------------------------------------------------------------------------


def demoted(world: World) -> World:
    world.hear("node.changes", changes("worker"))
    return world


def test_manager_data_is_set_aside_and_deleted_once_another_manager_is_heard() -> None:
    world = demoted(worker())
    assert SetManagerDataAside("w1") in world.data(present=True)
    local = topics.Agent("ready", "s", NODE, "local")
    assert DeleteErasedData() not in world.hear("agent", local)
    other = topics.Agent("ready", "s", "another", "192.0.2.1:2377")
    assert DeleteErasedData() not in world.hear("agent", other)
    # A session of before the certificate proves nothing.
    assert DeleteErasedData() not in world.hear("node.changes", changes("worker", under="m1"))
    assert DeleteErasedData() in world.hear("node.changes", changes("worker", under="w1"))


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda w: w.hear("node.changes", changes("manager", "worker")), id="desired role is manager"),
        pytest.param(lambda w: w.machine.facts.__setattr__("changes", None), id="desired role is unknown"),
        pytest.param(lambda w: w.hear("certificate", MANAGER_CERT), id="certificate is a manager's"),
        pytest.param(lambda w: w.hear("process.etcd", topics.Process("etcd", "RUNNING", 9)), id="etcd runs"),
    ],
)
def test_manager_data_is_kept_unless_every_condition_holds(spoil: Deed) -> None:
    world = demoted(worker())
    spoil(world)
    assert not [e for e in world.data(present=True) if isinstance(e, SetManagerDataAside)]


def test_manager_data_is_kept_while_the_manager_has_not_ended() -> None:
    world = demoted(withdrawn())
    assert not [e for e in world.data(present=True) if isinstance(e, SetManagerDataAside)]
    world.operator_stops()
    assert SetManagerDataAside("w1") in world.done


# -- remotes ---------------------------------------------------------------------------------------------------------


def listed(*addresses: str) -> topics.Managers:
    return topics.Managers(tuple(topics.ManagerAddress(f"id-{a}", a, 10) for a in addresses))


def test_managers_are_saved_only_when_the_set_changed() -> None:
    world = World()
    first = world.hear("managers", listed("a:1", "b:1"))
    assert SavePeers((Peer("id-a:1", "a:1"), Peer("id-b:1", "b:1"))) in first
    assert not [e for e in world.hear("managers", listed("b:1", "a:1")) if isinstance(e, SavePeers)]
    assert SavePeers((Peer("id-b:1", "b:1"),)) in world.hear("managers", listed("b:1"))


def test_an_empty_list_of_managers_forgets_nobody() -> None:
    world = World()
    world.hear("managers", listed("a:1"))
    assert not [e for e in world.hear("managers", listed()) if isinstance(e, SavePeers | Publish)]


def test_the_join_address_is_known_but_not_saved() -> None:
    effects = Machine(join_addr="m:2377").start()
    remotes = next(e.body for e in effects if isinstance(e, Publish) and e.topic == "remotes")
    assert remotes == topics.Remotes((topics.ManagerAddress("", "m:2377", 5),))
    assert not [e for e in effects if isinstance(e, SavePeers)]


def test_a_saved_list_beats_the_join_address() -> None:
    effects = Machine([Peer("x", "x:1")], join_addr="m:2377").start()
    remotes = next(e.body for e in effects if isinstance(e, Publish) and e.topic == "remotes")
    assert isinstance(remotes, topics.Remotes)
    assert [m.addr for m in remotes.managers] == ["x:1"]
