"""SIGKILL of the agent at any moment, while tasks come, run, end and go."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from tests.integration.agent_node import ScriptedDispatcher, State, agent_node, alive, eventually, serving, task
from tests.tools.authority import Authority

KILLS = 12


@pytest.mark.timeout(180)
async def test_no_task_is_started_twice_lost_or_ended_by_the_death_of_its_agent(tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    os.chmod(tmp_path, 0o777)
    authority, dispatcher = Authority(), ScriptedDispatcher()

    def sleeper() -> str:
        one = task("/bin/sh", "-c", f"echo started >> {tmp_path}/$SWARMVISOR_TASK_ID; exec sleep 1000", user="root")
        dispatcher.assign(one)
        return one.id

    def short() -> str:
        one = task("/bin/sh", "-c", f"echo started >> {tmp_path}/$SWARMVISOR_TASK_ID; exit 3", user="root")
        dispatcher.assign(one)
        return one.id

    if os.geteuid() != 0:
        pytest.skip("tasks write as root here")
    staying: list[str] = []
    ending: list[str] = []
    stopped: list[str] = []
    async with serving(authority, dispatcher) as addr, agent_node(authority, addr) as node:
        await node.start_agent()
        await node.agent_says("ready")
        for _ in range(KILLS):
            staying += [sleeper() for _ in range(chance.randrange(1, 6))]
            ending += [short() for _ in range(chance.randrange(3))]
            if len(staying) > 6 and chance.random() < 0.5:
                victim = staying.pop(chance.randrange(len(staying)))
                dispatcher.desire(victim, State.SHUTDOWN)
                stopped.append(victim)
            await asyncio.sleep(chance.uniform(0, 0.3))
            await node.kill_agent()
            await node.start_agent()
            if chance.random() < 0.5:
                await node.agent_says("ready")
        await node.agent_says("ready")
        pids = {}
        for one in staying:
            status = await dispatcher.reached(one, State.RUNNING)
            assert status.state == State.RUNNING, f"seed {seed}: {one} {status}"
            pids[one] = status.container.pid
        for one in ending:
            status = await dispatcher.reached(one, State.COMPLETE)
            assert (status.state, status.err) == (State.FAILED, "task: non-zero exit (3)"), f"seed {seed}: {one}"
        for one in stopped:
            status = await dispatcher.reached(one, State.COMPLETE)
            assert status.state == State.SHUTDOWN, f"seed {seed}: {one} {status}"
        for one in staying + ending:
            assert (tmp_path / one).read_text() == "started\n", f"seed {seed}: {one} was started more than once"
        for one, pid in pids.items():
            assert alive(pid), f"seed {seed}: {one}"
        for one, statuses in dispatcher.statuses.items():
            states = [s.state for s in statuses]
            assert states == sorted(states), f"seed {seed}: {one} went back: {states}"

        dispatcher.remove(*staying, *ending, *stopped)
        await eventually(lambda: not os.listdir(node.paths.tasks), "all directories of tasks are gone")
        for pid in pids.values():
            assert not alive(pid)
