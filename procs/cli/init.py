"""`swarmvisor init`: make this host a node with a swarm of its own."""

from __future__ import annotations

import errno
import os
import socket

import click

from procs.cli import lifecycle
from procs.cli.footprint import foreign_entries
from procs.cli.observed import supervisor_pid
from procs.cli.progress import Progress
from procs.cli.summary import next_steps, print_running, typed
from swarm.errors import BadInput, Refused
from swarm.nodeconfig import AVAILABILITIES, DEFAULT_LISTEN, NodeConfig, save_node_config, split_host_port, validate
from swarm.paths import Paths
from swarm.process import make_directories


def _labels(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for text in values:
        key, separator, value = text.partition("=")
        if not key or not separator:
            raise click.BadParameter(f"{text!r} is not KEY=VALUE")
        labels[key] = value
    return labels


@click.command("init")
@click.option("--listen-addr", metavar="HOST:PORT", default=DEFAULT_LISTEN, show_default=True, help="Remote API.")
@click.option("--advertise-addr", metavar="HOST:PORT", default="", help="Address told to peers, if another.")
@click.option("--hostname", metavar="NAME", default="", help="Name in listings; else the machine's.")
@click.option("--label", "labels", metavar="K=V", multiple=True, callback=_labels, help="Engine label; repeatable.")
@click.option("--availability", type=click.Choice(AVAILABILITIES), default="active", show_default=True)
@click.option("--no-start", is_flag=True, help="Create the node only; start it with `up`.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=lifecycle.READY_TIMEOUT,
    show_default=True,
    metavar="S",
    help="Seconds to wait until the node is ready.",
)
@click.pass_obj
def command(
    paths: Paths,
    listen_addr: str,
    advertise_addr: str,
    hostname: str,
    labels: dict[str, str],
    availability: str,
    no_start: bool,
    timeout: float,
) -> None:
    """Create a node with a swarm of its own, of which it is the manager, and start it."""
    config = validate(
        NodeConfig(
            hostname=hostname,
            listen_addr=listen_addr,
            advertise_addr=advertise_addr,
            labels=labels,
            availability=availability,
        )
    )
    waiting = supervisor_pid(paths.supervisor_socket)
    create(paths, config)
    if no_start:
        click.echo(f"Node created in {paths.state}. Start it with `{typed(paths)} up`.")
        return
    with Progress() as tell:
        if waiting:
            lifecycle.begin_anew(paths)
        else:
            lifecycle.start(paths, tell)
        node = lifecycle.ready(paths, timeout, tell)
    click.echo(f"Swarm initialized: this node ({node.node_id}) is now its manager.\n")
    print_running(paths)
    click.echo(next_steps(paths))


def create(paths: Paths, config: NodeConfig) -> None:
    """Check all that can be checked, then write node.toml. Raises Refused, BadInput; nothing was written then."""
    paths.check_lengths()
    if paths.node_toml.exists():
        raise Refused(
            f"{paths.state} holds a node already",
            remedy="start it with `swarmvisor up`, or wipe it with `swarmvisor leave --force`",
        )
    foreign = foreign_entries(paths)
    if foreign:
        raise Refused(
            f"{paths.state} is not empty: {foreign[0]} is in it", remedy="choose another directory with --state-dir"
        )
    check_bindable(config.listen_addr)
    os.umask(0o077)
    make_directories(paths)
    with lifecycle.own_only(paths):
        save_node_config(paths.node_toml, config)


def check_bindable(listen_addr: str) -> None:
    """Raise Refused if somebody else listens there, BadInput if this host has no such address."""
    host, port = split_host_port(listen_addr, "listen_addr")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except socket.gaierror as error:
            raise BadInput(f"listen_addr: {host!r} is not an address: {error.strerror}") from error
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise Refused(f"{listen_addr} is in use", remedy="choose another with --listen-addr") from error
            raise BadInput(f"listen_addr: cannot listen on {listen_addr}: {error.strerror}") from error
