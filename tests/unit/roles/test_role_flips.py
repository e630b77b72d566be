"""Any storm of role changes, crashes, failures and delays ends as last wished (DESIGN §4; issue 3 §2, §5.2)."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ipc import topics
from procs.renewer.machine import backoff_bound
from tests.unit.roles.world import World

ROLES = (topics.WORKER_ROLE, topics.MANAGER_ROLE)
PROCESSES = (topics.COORDINATOR, topics.RENEWER, topics.AGENT, topics.MANAGER)


def bound(disturbances: int) -> int:
    """Requests that so many disturbances may cost: each can void one under way, and wake one that waits."""
    return 4 + 4 * disturbances


class Storm(RuleBasedStateMachine):
    """Hypothesis picks what disturbs; chance (from its seed) picks the order of everything that follows."""

    @initialize(seed=st.integers(0, 2**32), old_ca=st.booleans())
    def begin(self, seed: int, old_ca: bool) -> None:
        self.world = World(random.Random(seed), old_ca=old_ca)

    @rule(role=st.sampled_from(ROLES))
    def desire(self, role: str) -> None:
        self.world.desire(role)

    @rule(name=st.sampled_from(PROCESSES))
    def kill(self, name: str) -> None:
        self.world.kill(name)

    @rule(count=st.integers(1, 4))
    def ca_fails(self, count: int) -> None:
        self.world.disturbances += count
        self.world.swarm.failures += count

    @rule(reachable=st.booleans())
    def quorum(self, reachable: bool) -> None:
        self.world.disturbances += 1
        self.world.swarm.others_reachable = reachable
        self.world.swarm_moves()

    @rule(session=st.booleans())
    def session(self, session: bool) -> None:
        self.world.cut(session=session)

    @rule(acts=st.integers(1, 30))
    def something_happens(self, acts: int) -> None:
        for _ in range(acts):
            self.world.happen()

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 17.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.disturbances += 1
        self.world.pass_time(self.world.now + seconds)

    @invariant()
    def requests_are_bounded(self) -> None:
        assert self.world.requests <= bound(self.world.disturbances), self.world.story[-80:]

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        before = world.requests
        # Failures of before may still be waited for; after that everything is a matter of seconds.
        world.settle(backoff_bound(max(1, world.renewer.failures)) + 120)
        world.check()
        assert world.requests - before <= 3, "\n".join(world.story[-80:])


TestStorm = Storm.TestCase
TestStorm.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize("old_ca", [False, True])
def test_200_flips_with_a_kill_in_a_third_of_them_always_converge(old_ca: bool) -> None:
    chance = random.Random(24065 + old_ca)
    world = World(chance, old_ca=old_ca)
    killed = 0
    for _ in range(200):
        world.desire(chance.choice(ROLES))
        for _ in range(chance.randrange(40)):
            world.happen()
        if chance.random() < 1 / 3:
            killed += 1
            world.kill(chance.choice(PROCESSES))
        if chance.random() < 0.5:
            # Half of them are followed to their end, within the two waits of 16 s that a removal may take.
            world.settle(backoff_bound(max(1, world.renewer.failures)) + 60)
            world.check()
    world.settle(120)
    world.check()
    assert killed >= 40
    assert world.requests <= bound(world.disturbances)


@pytest.mark.parametrize("role", ROLES)
def test_a_flip_taken_back_while_its_request_runs_changes_nothing(role: str) -> None:
    world = World(random.Random(1))
    world.settle(60)
    if role == topics.MANAGER_ROLE:
        world.desire(role)
        world.settle(60)
    held, other = world.disk, next(name for name in ROLES if name != role)
    world.desire(other)
    while not any(words == "CA answers" for words, _ in world.acts):
        world.swarm.node.role = world.swarm.node.spec.desired_role
        assert world.happen()
    (answer,) = [entry for entry in world.acts if entry[0] == "CA answers"]
    world.acts.remove(answer)
    signed = world.swarm.issues()
    world.desire(role)
    world.quiet()
    world.swarm.issues = lambda: signed  # type: ignore[method-assign]
    answer[1]()
    del world.swarm.issues
    assert not [words for words, _ in world.acts if words == "renewer installs"]
    world.settle(60)
    world.check()
    assert world.disk == held
