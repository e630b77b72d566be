"""The agent of a manager that starts anew and hears everything at once (found by killing it during role flips)."""

from __future__ import annotations

from ipc import topics
from ipc.aio import AsyncBus
from tests.integration.agent_node import ScriptedDispatcher, agent_node, serving
from tests.tools.authority import Authority

STARTS = 8
"""The values of three publishers arrive in any order, and often in one go."""


async def test_an_agent_that_hears_of_managers_and_the_local_one_in_one_go_opens_a_session() -> None:
    authority = Authority()
    dispatcher = ScriptedDispatcher()  # type: ignore[abstract]
    async with (
        serving(authority, dispatcher) as addr,
        agent_node(authority, addr, supervisord=False) as node,
        AsyncBus(node.paths.bus, topics.MANAGER) as manager,
    ):
        manager.publish("manager", topics.Manager("ready"))
        for _ in range(STARTS):
            await node.start_agent()
            # The local socket does not answer: it falls back to the other manager.
            await node.agent_says("ready", 8)
            await node.kill_agent()
