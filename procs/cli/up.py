"""`swarmvisor up`: start a node that exists."""

from __future__ import annotations

import click

from procs.cli import lifecycle
from procs.cli.observed import supervisor_pid
from procs.cli.progress import Progress
from procs.cli.summary import next_steps, print_running
from swarm.errors import BadInput
from swarm.paths import Paths


@click.command("up")
@click.option("--foreground", is_flag=True, help="Become the node's supervisord (for systemd, or under another one).")
@click.option("--no-wait", is_flag=True, help="Do not wait until the node is ready.")
@click.option(
    "--timeout", type=click.FloatRange(min=0), default=lifecycle.READY_TIMEOUT, show_default=True, metavar="S"
)
@click.pass_obj
def command(paths: Paths, foreground: bool, no_wait: bool, timeout: float) -> None:
    """Start this node's processes: supervisord, and under it coordinator, renewer, agent and, on a manager, manager.

    A node that is up already is left as it is; of its processes those that ended are started again.
    """
    if foreground and no_wait:
        raise BadInput("--foreground waits for nothing", remedy="leave out --no-wait")
    lifecycle.need_node(paths)
    if foreground:
        lifecycle.run_in_foreground(paths)
    with Progress() as tell:
        started = lifecycle.start(paths, tell)
        if not no_wait:
            lifecycle.ready(paths, timeout, tell)
    pid = supervisor_pid(paths.supervisor_socket)
    click.echo(f"The node is up (supervisord is process {pid})." if started else f"The node is already up ({pid}).")
    if not no_wait:
        print_running(paths)
        click.echo(next_steps(paths))
