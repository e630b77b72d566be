"""Random role flips of real nodes, with random processes killed in a third of them: they always converge (issue 3
§5.2; the complaint of moby#24065, #33580, #34384)."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ipc.topics import Process
from tests.integration.agent_node import alive, eventually
from tests.integration.roles_node import RolesNode, roles_node

NODES = 4
"""At once, since a node waits more than it works."""
FLIPS = int(os.environ.get("SWARMVISOR_FLIPS", "200"))
"""Of all nodes together. More of them for a longer look: `SWARMVISOR_FLIPS=2000 pytest tests/faults/…`."""
SECONDS = 60.0
"""For one burst to converge: the two waits of 16 s, one back-off, a restart, on a busy machine."""
PROCESSES = ("coordinator", "renewer", "agent", "manager")
BURSTS = (1, 1, 1, 2, 3)
"""Flips before the node is left to converge: a role may be taken back, and wished again, at any moment of the way."""


def other(role: str) -> str:
    return "manager" if role == "worker" else "worker"


def another(pid: int) -> Callable[[Process], bool]:
    """Accepts a process that runs, and is not the one of before."""
    return lambda process: process.pid not in (0, pid)


@dataclass
class Flipping:
    """One node, and what is done to it."""

    node: RolesNode
    chance: random.Random
    role: str = "worker"
    flips: int = 0
    kills: int = 0
    killed: dict[str, int] = field(default_factory=dict)
    """Pids of this burst's victims by name."""

    async def burst(self, length: int) -> None:
        """Flips without a wait for what they lead to; the node is left to itself after the last."""
        self.killed.clear()
        end = self.role if length % 2 == 0 else other(self.role)
        for left in reversed(range(length)):
            self.role = other(self.role)
            self.flips += 1
            # Whoever is removed from the managers gets the worker's role in the end.
            if self.role == end == "worker" and self.chance.random() < 0.8:
                self.node.remove_from_managers()
            self.node.peer.wish(self.role)
            if self.chance.random() < 1 / 3:
                await asyncio.sleep(self.chance.random() * 0.4)
                for name in self.chance.sample(PROCESSES, self.chance.choice((1, 1, 1, 2))):
                    self.kill(name)
            if left:
                await asyncio.sleep(self.chance.random() * 0.3)

    def kill(self, name: str) -> None:
        self.kills += 1
        self.killed[name] = self.node.pid(name)
        self.node.kill(name)

    async def converged(self) -> None:
        """All agree on the last wish, everybody is back, and the right number of manager programs runs."""
        node, runs = self.node, self.role == "manager"
        for name, pid in self.killed.items():
            if name != "manager" or runs:
                await node.says(f"process.{name}", another(pid), f"{name} is back", SECONDS)
        await node.settled(self.role, SECONDS)
        await node.says(
            "process.manager", lambda p: bool(p.pid) == runs and not p.next_restart_at, f"a manager: {runs}", SECONDS
        )
        names = [name for name in PROCESSES if name != "manager" or runs]
        await eventually(lambda: self.running() == sorted(node.pid(name) for name in names), f"only {names}")
        assert node.peer.asked <= 2 * (self.flips + self.kills), "certificates are asked for again and again"

    def running(self) -> list[int]:
        """Every process that the node's supervisord started, whatever it says of them."""
        supervisord = self.node.supervisord
        assert supervisord is not None
        children = Path(f"/proc/{supervisord.pid}/task/{supervisord.pid}/children").read_text().split()
        return sorted(int(pid) for pid in children if alive(int(pid)))


async def flip(seed: int) -> None:
    chance = random.Random(seed)
    async with roles_node() as node:
        flipping = Flipping(node, chance)
        while flipping.flips < FLIPS // NODES:
            try:
                await flipping.burst(chance.choice(BURSTS))
                await flipping.converged()
            except AssertionError as error:
                story = f"after {flipping.flips} flips to {flipping.role}, killed {list(flipping.killed)}"
                raise AssertionError(f"{story}: {error}\n{node.report()}") from None
        if flipping.role == "worker":
            await eventually(lambda: not node.paths.manager.exists() and not node.erased(), "the data is gone")
        else:
            await eventually((node.paths.manager / "store.db").exists, "the manager has its data")
        print(f"seed {seed}: {flipping.flips} flips, {flipping.kills} kills, {node.peer.asked} requests")


@pytest.mark.timeout(60 + FLIPS * 4)
async def test_flips_with_random_kills_always_converge() -> None:
    seed = int(os.environ.get("SWARMVISOR_SEED", random.SystemRandom().randrange(10_000)))
    print(f"again with SWARMVISOR_SEED={seed}")
    async with asyncio.TaskGroup() as group:
        for number in range(NODES):
            group.create_task(flip(seed + number), name=f"node {number}")
