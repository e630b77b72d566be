"""A swarm whose managers are Docker's wants this node as a manager: it stays a worker, says so, and does not loop."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from ipc import topics
from procs.coordinator.effects import Effect, Say, StartManager
from procs.coordinator.machine import Machine
from procs.coordinator.states import Replacement, Supervision
from swarm.remotes import Peer
from tests.unit.coordinator.world import MANAGER_CERT, WORKER_CERT, World, changes


def foreign(desired: str, **kwargs: bool) -> topics.NodeChanges:
    return replace(changes(desired, **kwargs), foreign=True)


def worker() -> World:
    world = World()
    world.not_started()
    world.hear("certificate", WORKER_CERT)
    world.hear("node.changes", foreign("worker"))
    return world


def said(effects: list[Effect]) -> list[str]:
    return [effect.text for effect in effects if isinstance(effect, Say)]


def test_a_promotion_by_docker_asks_for_nothing_and_is_told_once() -> None:
    world = worker()
    told = said(world.hear("node.changes", foreign("manager")))
    assert any("cannot join their raft: it goes on as a worker" in text for text in told)
    assert not said(world.hear("node.changes", replace(foreign("manager"), availability="drain")))
    assert world.machine.replacement is Replacement.AGREED
    assert world.published("role") == topics.Role("worker")
    assert world.machine.deadline() is None, "nothing is waited for"
    node = world.published("node")
    assert isinstance(node, topics.Node)
    assert "its managers are Docker's" in node.step


def test_the_demotion_ends_it() -> None:
    world = worker()
    world.hear("node.changes", foreign("manager"))
    told = said(world.hear("node.changes", foreign("worker")))
    assert "the swarm no longer wants this node as a manager" in told
    assert world.machine.replacement is Replacement.AGREED
    node = world.published("node")
    assert isinstance(node, topics.Node)
    assert node.step == ""


def test_a_managers_certificate_that_a_renewal_brought_starts_no_manager_and_goes_with_the_demotion() -> None:
    world = worker()
    world.hear("node.changes", foreign("manager"))
    world.hear("certificate", MANAGER_CERT)
    assert world.machine.supervision is Supervision.PARKED
    assert world.machine.replacement is Replacement.AGREED
    world.hear("node.changes", foreign("worker"))
    role = world.published("role")
    assert isinstance(role, topics.Role)
    assert (role.expected, role.replace_fingerprint) == ("worker", "m1")
    world.hear("certificate", replace(WORKER_CERT, fingerprint="w2"))
    assert world.machine.replacement is Replacement.AGREED
    assert not any(isinstance(effect, StartManager) for effect in world.done)


def test_a_promoted_node_that_was_rebooted_starts_no_manager_until_a_session_says_that_the_swarm_is_ours() -> None:
    world = World(Machine([Peer("docker", "192.0.2.1:2377")], foreseen_role="manager", foreign=True))
    world.not_started()
    world.hear("certificate", MANAGER_CERT)
    assert world.machine.supervision is Supervision.PARKED
    node = world.published("node")
    assert isinstance(node, topics.Node)
    assert node.cause == "waiting for the agent", "not for a manager"
    assert not any(isinstance(effect, StartManager) for effect in world.done)
    world.hear("node.changes", changes("manager"))
    assert any(isinstance(effect, StartManager) for effect in world.done)


def test_docker_rotating_its_root_is_followed_while_promoted() -> None:
    world = worker()
    world.hear("node.changes", foreign("manager"))
    world.hear("node.changes", replace(foreign("manager", rotate=True), under=topics.Under("w1")))
    role = world.published("role")
    assert isinstance(role, topics.Role)
    assert (role.expected, role.replace_fingerprint) == ("", "w1")


@given(st.lists(st.sampled_from(["promote", "demote", "renew", "time"]), max_size=30))
def test_whatever_docker_wants_no_manager_starts_and_the_end_is_at_rest(events: list[str]) -> None:
    world = worker()
    wanted = "worker"
    for number, event in enumerate(events):
        match event:
            case "promote" | "demote":
                wanted = "manager" if event == "promote" else "worker"
                world.hear("node.changes", foreign(wanted))
            case "renew":
                issued = MANAGER_CERT if wanted == "manager" else WORKER_CERT
                world.hear("certificate", replace(issued, fingerprint=f"f{number}"))
            case "time":
                world.time_out()
    world.hear("node.changes", foreign("worker"))
    world.hear("certificate", replace(WORKER_CERT, fingerprint="last"))
    assert not any(isinstance(effect, StartManager) for effect in world.done)
    assert world.machine.replacement is Replacement.AGREED
    assert world.machine.supervision is Supervision.PARKED
