"""The node's state in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ipc import topics
from procs.coordinator.states import Replacement, Supervision
from procs.coordinator.words import Facts, node_words
from swarm.exits import ExitCode
from tests.unit.coordinator.world import MANAGER_CERT, NODE, WORKER_CERT, World, changes

AGENT_READY = topics.Agent("ready", "session", "other", "192.0.2.1:2377")


def words(world: World) -> topics.Node:
    node = world.published("node")
    assert isinstance(node, topics.Node)
    return node


def process(world: World, name: str, state: str, pid: int, code: int = -1) -> None:
    world.hear(f"process.{name}", topics.Process(name, state, pid, code))


def ready_worker() -> World:
    world = World()
    world.not_started()
    world.hear("certificate", WORKER_CERT)
    process(world, "agent", "RUNNING", 40)
    world.hear("agent", AGENT_READY, pid=40)
    return world


def test_worker_is_ready_with_its_agent() -> None:
    assert words(ready_worker()) == topics.Node("ready", NODE)


def test_manager_is_ready_only_with_its_manager_too() -> None:
    world = ready_worker()
    world.hear("certificate", MANAGER_CERT)
    assert words(world).state == "starting"
    assert "manager" in words(world).cause
    world.hear("manager", topics.Manager("ready"), pid=world.pid)
    assert words(world).state == "ready"


def test_the_word_of_an_agent_that_was_killed_counts_no_longer() -> None:
    world = ready_worker()
    process(world, "agent", "RUNNING", 41)
    assert words(world).state == "starting"
    world.hear("agent", AGENT_READY, pid=41)
    assert words(world).state == "ready"


def test_an_agent_run_by_hand_counts_until_it_falls_silent() -> None:
    from procs.coordinator.effects import Gone

    world = ready_worker()
    process(world, "agent", "STOPPED", 0, 0)
    assert words(world).state == "starting"
    world.hear("agent", AGENT_READY, pid=99)
    assert words(world).state == "ready"
    world.feed(Gone("agent"))
    assert words(world).state == "starting"
    world.hear("agent", AGENT_READY, pid=99)
    assert words(world).state == "ready"


@pytest.mark.parametrize("code", [ExitCode.CONFIG, ExitCode.USAGE])
@pytest.mark.parametrize("name", ["renewer", "agent", "manager"])
def test_an_end_that_no_restart_mends_fails_the_node_by_name(name: str, code: ExitCode) -> None:
    world = ready_worker()
    process(world, name, "EXITED", 0, code)
    assert words(world).state == "failed"
    assert name in words(world).cause
    assert code.name in words(world).cause


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("none", "starting"),
        ("joining", "starting"),
        ("locked", "locked"),
        ("expired", "starting"),
        ("failed", "failed"),
    ],
)
def test_the_certificate_explains_itself(state: str, expected: str) -> None:
    world = World()
    world.hear("certificate", replace(WORKER_CERT, state=state, why="because of this"))
    assert words(world).state == expected
    assert words(world).cause.endswith("because of this")


def test_a_join_that_does_not_work_yet_says_how_often_and_why() -> None:
    world = World()
    world.hear("certificate", topics.Certificate("joining", attempt=2, why="nobody answers", problem="unreachable"))
    assert words(world).cause == "joining the swarm, attempt 3: nobody answers"


def test_a_node_that_the_swarm_does_not_take_has_failed_until_it_is_taken() -> None:
    world = ready_worker()
    world.hear("agent", topics.Agent("refused", why="removed from the swarm"), pid=40)
    assert (words(world).state, words(world).cause) == ("failed", "removed from the swarm")
    world.hear("agent", AGENT_READY, pid=40)
    assert words(world).state == "ready"


def test_an_agent_that_left_says_so() -> None:
    world = ready_worker()
    world.hear("agent", topics.Agent("left", why="removed from the swarm"), pid=40)
    assert words(world) == topics.Node("leaving", NODE, "removed from the swarm")


@pytest.mark.parametrize("supervision", Supervision)
@pytest.mark.parametrize("replacement", Replacement)
def test_every_step_of_a_role_change_has_words(supervision: Supervision, replacement: Replacement) -> None:
    facts = Facts(certificate=WORKER_CERT, changes=changes("manager"))
    step = node_words(facts, supervision, replacement).step
    quiet = (Supervision.BOOTING, Supervision.DECIDING, Supervision.PARKED, Supervision.RUNNING)
    assert bool(step) == (supervision not in quiet or replacement is not Replacement.AGREED)
