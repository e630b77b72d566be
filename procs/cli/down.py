"""`swarmvisor down`: stop a node."""

from __future__ import annotations

import click

from procs.cli import lifecycle
from procs.cli.observed import supervisor_pid
from procs.cli.progress import Progress
from swarm.paths import Paths


@click.command("down")
@click.option("--keep-tasks", is_flag=True, help="Leave the tasks running, for the next `up` to take over.")
@click.pass_obj
def command(paths: Paths, keep_tasks: bool) -> None:
    """Stop this node's processes.

    Its tasks are ended within their grace periods and replaced, per policy, after the next `up`; with --keep-tasks they
    keep running. Nothing of the node's state is lost; `swarmvisor leave` wipes it.
    """
    if not paths.state.is_dir():
        click.echo("The node is already down.")
        return
    with Progress() as tell:
        ran = lifecycle.stop(paths, tell, keep_tasks=keep_tasks)
    if not ran:
        click.echo("The node is already down.")
    elif supervisor_pid(paths.workload_socket):
        click.echo("The node is down; its tasks keep running. Take them over again with `swarmvisor up`.")
    else:
        click.echo("The node is down. Start it again with `swarmvisor up`.")
