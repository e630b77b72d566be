"""agent: holds this node's session with a manager and runs the tasks that come of it.

Owns   `worker/agent.db` (tasks, statuses, session), `tasks/<id>/spec`, the removal of `tasks/<id>/`, and the session:
       heartbeats, assignments, statuses.
Says   `agent`, `node.changes`, `managers`.
Hears  `certificate` (the identity to present), `manager` (is the local one ready), `remotes` (the others), `node` (is
       the node leaving), `task.*` (the tasks' processes).
Never  starts a task's process itself: the workload's supervisord does, and outlives the agent. Ends no task because it
       ends itself, decides no role, writes no certificate.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import ExitStack

from ipc import topics
from ipc.aio import AsyncBus
from procs.agent.agent import HEARD, Agent
from procs.agent.database import Database
from swarm.clock import SystemClock
from swarm.exits import ExitCode
from swarm.metrics import Metrics, MetricsServer
from swarm.nodeconfig import load_node_config
from swarm.process import Context
from swarm.process_async import run_async


async def body(context: Context, stop: asyncio.Event) -> ExitCode:
    """Run until asked to stop. Tasks are left as they are."""
    config = load_node_config(context.paths.node_toml)
    database = Database(context.paths.agent_db)
    metrics = Metrics()
    with ExitStack() as cleanup:
        cleanup.enter_context(MetricsServer(context.paths.metrics_socket(context.name), metrics))
        async with AsyncBus(context.paths.bus, topics.AGENT, HEARD) as bus:
            agent = Agent(
                paths=context.paths,
                config=config,
                database=database,
                bus=bus,
                metrics=metrics,
                clock=SystemClock(),
                log=context.log,
            )
            # `swarmvisor leave`
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, agent.leave)
            work = asyncio.create_task(agent.run(), name="agent")
            stopping = asyncio.create_task(stop.wait(), name="stop")
            await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            agent.stop()
            work.cancel()
            await asyncio.wait({work, stopping})
            if not work.cancelled():
                work.result()
    return ExitCode.DONE


def main() -> int:
    return run_async("agent", "Hold this node's session with a manager and run its tasks.", body)


if __name__ == "__main__":
    sys.exit(main())
