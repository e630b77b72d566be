"""`swarmvisor wait`: for scripts that must not go on too early."""

from __future__ import annotations

import click

from procs.cli import lifecycle
from procs.cli.observed import wait_ready
from procs.cli.progress import Progress
from swarm.errors import Refused
from swarm.paths import Paths


@click.command("wait")
@click.argument("what", type=click.Choice(["ready"]))
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=lifecycle.READY_TIMEOUT,
    show_default=True,
    metavar="S",
    help="Seconds to wait until the node is ready.",
)
@click.pass_obj
def command(paths: Paths, what: str, timeout: float) -> None:
    """Wait until this node is ready: the agent has a session and, on a manager, the manager serves.

    Ends with 7 if that takes longer than the timeout, with 1 if the node has failed, with 6 if it is locked.
    """
    lifecycle.need_node(paths)
    with Progress() as tell:
        node = wait_ready(paths, timeout, tell)
    if node.state != what:
        raise Refused(f"the node is {node.state}: {node.cause}", remedy="unlock it with `swarmvisor unlock`")
    click.echo(f"The node is {what}.")
