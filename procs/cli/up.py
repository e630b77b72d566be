"""`swarmvisor up`: start a node that exists; with `--init`, create it first where there is none."""

from __future__ import annotations

import click

from procs.cli import lifecycle
from procs.cli.init import create
from procs.cli.observed import supervisor_pid
from procs.cli.progress import Progress
from procs.cli.summary import next_steps, print_running
from swarm.errors import BadInput, Refused
from swarm.nodeconfig import DEFAULT_LISTEN, NodeConfig, load_node_config, validate
from swarm.paths import Paths


@click.command("up")
@click.option("--init", is_flag=True, help="First create a node with a swarm of its own, if this host is none yet.")
@click.option(
    "--listen-addr", metavar="HOST:PORT", help=f"Remote API of a node that --init creates.  [default: {DEFAULT_LISTEN}]"
)
@click.option("--foreground", is_flag=True, help="Become the node's supervisord (for systemd, or under another one).")
@click.option("--no-wait", is_flag=True, help="Do not wait until the node is ready.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=lifecycle.READY_TIMEOUT,
    show_default=True,
    metavar="S",
    help="Seconds to wait until the node is ready.",
)
@click.pass_obj
def command(paths: Paths, init: bool, listen_addr: str | None, foreground: bool, no_wait: bool, timeout: float) -> None:
    """Start this node's processes: supervisord, and under it coordinator, renewer, agent and, on a manager, manager.

    A node that is up already is left as it is; of its processes those that ended are started again.
    """
    if foreground and no_wait:
        raise BadInput("--foreground waits for nothing", remedy="leave out --no-wait")
    if listen_addr is not None and not init:
        raise BadInput("--listen-addr is for a new node", remedy="add --init, or change listen_addr in node.toml")
    created = init and _create_if_none(paths, listen_addr)
    lifecycle.need_node(paths)
    if foreground:
        lifecycle.run_in_foreground(paths)
    with Progress() as tell:
        started = lifecycle.start(paths, tell)
        if created and not started:
            # Its supervisord ran already, on a host that was no node.
            lifecycle.begin_anew(paths)
        if not no_wait:
            lifecycle.ready(paths, timeout, tell)
    where = f"supervisord is process {supervisor_pid(paths.supervisor_socket)}"
    if created:
        click.echo(f"The node is created, with a swarm of its own, and up ({where}).")
    else:
        click.echo(f"The node is up ({where})." if started else f"The node is already up ({where}).")
    if not no_wait:
        click.echo()
        print_running(paths)
        click.echo(next_steps(paths))


def _create_if_none(paths: Paths, listen_addr: str | None) -> bool:
    """Create the node; False if there is one already. Raises Refused if that one listens elsewhere than asked for."""
    try:
        held = load_node_config(paths.node_toml).listen_addr
    except FileNotFoundError:
        create(paths, validate(NodeConfig(listen_addr=listen_addr or DEFAULT_LISTEN)))
        return True
    if listen_addr not in (None, held):
        raise Refused(
            f"the node in {paths.state} listens on {held}, not on {listen_addr}",
            remedy="leave out --listen-addr, or `swarmvisor down` and change listen_addr in node.toml",
        )
    return False
