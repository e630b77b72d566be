"""`swarmvisor leave`: the end of a node."""

from __future__ import annotations

import time
from collections.abc import Callable

import click

from ipc import topics
from ipc.bus import Bus
from procs.cli import certificate, footprint, lifecycle
from procs.cli.observed import NO_NODE, look
from procs.cli.progress import Progress
from swarm.errors import CorruptFile, Refused, SwarmvisorError
from swarm.paths import Paths
from swarm.remotes import load_peers
from swarm.supervisor_rpc import SupervisorClient

DRAIN_TIMEOUT = 60.0
"""Seconds that tasks get to end before everything is stopped anyhow (which ends them too)."""


@click.command("leave")
@click.option("--force", is_flag=True, help="Also where that ends the swarm, or where the state cannot be read.")
@click.pass_obj
def command(paths: Paths, force: bool) -> None:
    """Stop this node, end its tasks, and wipe its state: identity, certificates, and a manager's store.

    The managers are told nothing: to them the node is down. `swarmvisor node rm` there removes it from the listing.
    """
    if not paths.node_toml.exists() and not (force and footprint.left_overs(paths)):
        raise Refused("this node is not part of a swarm", remedy=NO_NODE)
    if not force:
        _refuse_where_much_is_lost(paths)
    with Progress() as tell:
        if not force:
            _drain(paths, tell)
        lifecycle.stop(paths, tell, keep_tasks=False)
        tell("wiping the node's state")
        left = footprint.wipe(paths)
    click.echo("Node left the swarm.")
    if left:
        click.echo(f"Left alone in {paths.state}: {', '.join(left)}")


def _refuse_where_much_is_lost(paths: Paths) -> None:
    try:
        identity = certificate.read(paths)
    except CorruptFile as error:
        raise Refused(
            f"cannot tell what would be lost: {error.message}", remedy="use --force to wipe it anyway"
        ) from error
    if identity is None or identity.role != "manager":
        return
    # Docker's own words, for hands that know them
    words = "You are attempting to leave the swarm on a node that is participating as a manager."
    others = [m for m in _managers(paths) if m != identity.node_id]
    if others:
        rest = f"{len(others)} manager{'s' if len(others) > 1 else ''}"
        raise Refused(
            f"{words} Removing this node leaves {rest}; without a quorum "
            "your swarm is inaccessible. The only way to restore a swarm that has lost consensus is to reinitialize it",
            remedy="use `--force` to suppress this message",
        )
    raise Refused(
        f"{words} Removing the last manager erases all current state of the swarm: "
        f"{_contents(paths, identity.node_id)}",
        remedy="use `--force` to ignore this message",
    )


def _contents(paths: Paths, node_id: str) -> str:
    """What the swarm holds beyond this node, in words."""
    # late: they bring grpc, which a worker that leaves does not need
    from procs.cli import contents
    from procs.cli.control import connect

    try:
        with connect(paths) as control:
            return contents.words(contents.count(control, node_id))
    except SwarmvisorError as error:
        return f"what it holds cannot be told, since {error.message}"


def _drain(paths: Paths, tell: Callable[[str], None]) -> None:
    """Have the agent end its tasks, each with its own grace, and take no new ones (SwarmKit's Leave)."""
    view = look(paths)
    agent = view.processes.get(topics.AGENT)
    if agent is None or not agent.pid or view.body("agent", topics.Agent) is None:
        return
    deadline = time.monotonic() + DRAIN_TIMEOUT
    with Bus(paths.bus, None, ("agent", "process.*")) as bus:
        SupervisorClient(paths.supervisor_socket).call("supervisor.signalProcess", topics.AGENT, "HUP")
        while (left := deadline - time.monotonic()) > 0:
            said, process = bus.last("agent"), bus.last(f"process.{topics.AGENT}")
            if said is not None and isinstance(said.body, topics.Agent) and said.pid == agent.pid:
                if said.body.state == "left":
                    return
                tell(f"ending {said.body.tasks} tasks")
            if process is not None and isinstance(process.body, topics.Process) and process.body.pid != agent.pid:
                return  # it died of something; what is left is ended with everything else
            bus.poll(left)


def _managers(paths: Paths) -> list[str]:
    """Node ids of the managers that this node knows."""
    remotes = look(paths).body("remotes", topics.Remotes)
    if remotes is not None:
        return [manager.node_id for manager in remotes.managers]
    return [peer.node_id for peer in load_peers(paths.state_json)]
