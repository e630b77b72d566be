"""coordinator: decides the node's role and whether the manager runs.

Owns   `state.json`; of `manager/` only its erasure; starts and stops the program `manager` through supervisord.
Never  writes a key or a certificate, never talks to another node.
Says   `role`, `remotes`, `node`.
Hears  `certificate`, `node.changes`, `managers`, `manager`, `agent`, `process.*`.

No asyncio, no grpc, no cryptography: this process is small, and stays so.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ipc import topics
from ipc.bus import Bus
from procs.coordinator.foresight import foreseen_role
from procs.coordinator.machine import Machine
from procs.coordinator.shell import SUBSCRIPTIONS, Shell
from swarm import process
from swarm.errors import CorruptFile
from swarm.exits import ExitCode
from swarm.metrics import Metrics, MetricsServer
from swarm.nodeconfig import load_node_config
from swarm.nodestate import load_node_state
from swarm.process import Context
from swarm.remotes import load_peers


def body(context: Context) -> ExitCode:
    """Until SIGTERM. Raises CorruptFile for node.toml and state.json."""
    paths = context.paths
    if not paths.node_toml.exists():
        return _wait_for_init(context)
    config = load_node_config(paths.node_toml)
    peers = load_peers(paths.state_json)
    foreign = bool(peers) and _was_foreign(context)  # if it is not so any more, one of the peers says so
    machine = Machine(peers, config.join_addr, foreseen_role(paths, config, peers), foreign=foreign)
    metrics = Metrics()
    with Bus(paths.bus, topics.COORDINATOR, SUBSCRIPTIONS) as bus:
        shell = Shell(context, bus, machine, metrics)
        with MetricsServer(paths.metrics_socket(context.name), metrics):
            shell.run()
    return ExitCode.DONE


def _was_foreign(context: Context) -> bool:
    """Whether the managers were Docker's when the node was last well."""
    try:
        last = load_node_state(context.paths.node_state)
    except CorruptFile as error:  # `status` shows it too; the session will tell
        context.log.warning("%s", error.describe())
        return False
    return last is not None and last.foreign


def _wait_for_init(context: Context) -> ExitCode:
    cause = f"{context.paths.node_toml} is absent; create the node with `swarmvisor init` or `swarmvisor join`"
    context.log.info("%s", cause)
    with Bus(context.paths.bus, topics.COORDINATOR) as bus:
        bus.publish("node", topics.Node("uninitialized", cause=cause), cause="start")
        while not context.stop.is_set():
            bus.poll(None, fds=(context.stop.fileno(),))
    return ExitCode.DONE


def main(argv: Sequence[str] | None = None) -> int:
    return process.run("coordinator", "Decides the node's role and whether its manager runs.", body, argv)


if __name__ == "__main__":
    sys.exit(main())
