"""Random role flips of a real node, with a random process killed in a third of them: it always converges (issue 3
§5.2; the complaint of moby#24065, #33580, #34384)."""

from __future__ import annotations

import asyncio
import os
import random
import time

import pytest

from tests.integration.agent_node import eventually
from tests.integration.roles_node import roles_node

FLIPS = int(os.environ.get("SWARMVISOR_FLIPS", "12"))
"""More of them for a longer look: `SWARMVISOR_FLIPS=200 pytest tests/faults/test_roles_kill.py`."""
SECONDS = 60.0
"""For one flip. The two waits of 16 s, one back-off, a restart, on a busy machine."""
PROCESSES = ("coordinator", "renewer", "agent", "manager")


@pytest.mark.timeout(60 + FLIPS * SECONDS)
async def test_flips_with_random_kills_always_converge() -> None:
    seed = int(os.environ.get("SWARMVISOR_SEED", random.randrange(10_000)))
    chance = random.Random(seed)
    longest, kills, role = 0.0, 0, "worker"
    async with roles_node() as node:
        for flip in range(FLIPS):
            role = "manager" if role == "worker" else "worker"
            started = time.monotonic()
            if role == "worker" and chance.random() < 0.8:
                node.remove_from_managers()
            node.peer.wish(role)
            if chance.random() < 0.3:
                # Taken back, and wished again, at any moment of the way there.
                other = "manager" if role == "worker" else "worker"
                for wish in (other, role):
                    await asyncio.sleep(chance.random() * 0.3)
                    node.peer.wish(wish)
            if chance.random() < 1 / 3:
                kills += 1
                await asyncio.sleep(chance.random() * 0.4)
                node.kill(chance.choice(PROCESSES))
            try:
                await node.settled(role, SECONDS)
            except AssertionError as error:
                raise AssertionError(f"flip {flip} to {role}, seed {seed}: {error}") from None
            longest = max(longest, time.monotonic() - started)
        if role == "worker":
            await eventually(lambda: not node.paths.manager.exists() and not node.erased(), "the data is gone")
        else:
            assert (node.paths.manager / "store.db").read_text() == "precious"
        print(f"seed {seed}: {FLIPS} flips, {kills} kills, {node.peer.asked} requests, longest {longest:.1f} s")
        assert node.peer.asked <= 4 * (FLIPS + kills)
