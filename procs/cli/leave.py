"""`swarmvisor leave`: the end of a node."""

from __future__ import annotations

import click

from procs.cli import certificate, footprint, lifecycle
from procs.cli.observed import look
from procs.cli.progress import Progress
from swarm.errors import CorruptFile, Refused
from swarm.paths import Paths


@click.command("leave")
@click.option("--force", is_flag=True, help="Also where that ends the swarm, or where the state cannot be read.")
@click.pass_obj
def command(paths: Paths, force: bool) -> None:
    """Stop this node, end its tasks, and wipe its state: identity, certificates, and a manager's store."""
    if not paths.node_toml.exists() and not (force and footprint.left_overs(paths)):
        raise Refused("this node is not part of a swarm", remedy="`swarmvisor init` makes it one")
    if not force:
        _refuse_where_much_is_lost(paths)
    with Progress() as tell:
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
        f"{words} Removing the last manager erases all current state of the swarm",
        remedy="use `--force` to ignore this message",
    )


def _managers(paths: Paths) -> list[str]:
    """Node ids of the managers that this node knows."""
    # late: needs the bus only while something runs
    from ipc import topics
    from swarm.remotes import load_peers

    remotes = look(paths).body("remotes", topics.Remotes)
    if remotes is not None:
        return [manager.node_id for manager in remotes.managers]
    return [peer.node_id for peer in load_peers(paths.state_json)]
