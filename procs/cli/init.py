"""`swarmvisor init`: make this host a node with a swarm of its own."""

from __future__ import annotations

import errno
import os
import socket
import sys

import click
from click.core import ParameterSource

from procs.cli import lifecycle
from procs.cli.footprint import discard_unfinished, foreign_entries
from procs.cli.observed import supervisor_pid
from procs.cli.options import node_options
from procs.cli.progress import Progress
from procs.cli.summary import next_steps, print_running, typed
from swarm.errors import BadInput, Refused
from swarm.files import write_atomic
from swarm.nodeconfig import NodeConfig, save_node_config, split_host_port, validate
from swarm.paths import Paths
from swarm.process import make_directories
from swarm.unlock import forget_unlock_keys, write_unlock_keys

_FORCED = {"--force-new-cluster", "--listen-addr", "--advertise-addr", "--no-start", "--timeout"}
"""Options that go with --force-new-cluster."""


@click.command("init")
@node_options
@click.option(
    "--autolock", is_flag=True, help="Lock the managers' keys: after a reboot they need `unlock`. Prints the key."
)
@click.option("--fips", is_flag=True, help="Keep to FIPS; the swarm admits FIPS nodes only.")
@click.option(
    "--force-new-cluster",
    is_flag=True,
    help="Go on as the only manager of this node's swarm, with all that its store holds.",
)
@click.option("--no-start", is_flag=True, help="Create the node only; start it with `up`.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=lifecycle.READY_TIMEOUT,
    show_default=True,
    metavar="S",
    help="Seconds to wait until the node is ready.",
)
@click.pass_context
def command(
    context: click.Context,
    listen_addr: str,
    advertise_addr: str,
    hostname: str,
    labels: dict[str, str],
    generic_resources: dict[str, str],
    availability: str,
    autolock: bool,
    fips: bool,
    force_new_cluster: bool,
    no_start: bool,
    timeout: float,
) -> None:
    """Create a node with a swarm of its own, of which it is the manager, and start it."""
    paths: Paths = context.obj
    if force_new_cluster:
        from procs.cli.forcing import force  # late: seldom needed

        given = _given(context)
        if superfluous := sorted(given - _FORCED):
            raise BadInput(
                f"{superfluous[0]} is for a new node; with --force-new-cluster this one stays as it is",
                remedy="change it afterwards (`swarmvisor node update`, `swarmvisor swarm update`, node.toml)",
            )
        force(
            paths,
            listen_addr if "--listen-addr" in given else None,
            advertise_addr if "--advertise-addr" in given else None,
            no_start=no_start,
            timeout=timeout,
        )
        return
    config = validate(
        NodeConfig(
            hostname=hostname,
            listen_addr=listen_addr,
            advertise_addr=advertise_addr,
            labels=labels,
            generic_resources=generic_resources,
            availability=availability,
            fips=fips,
        )
    )
    waiting = supervisor_pid(paths.supervisor_socket)
    create(paths, config, unlock_key=_unlock_key() if autolock else b"")
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


def _given(context: click.Context) -> set[str]:
    """The options that were typed."""
    parameters = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    typed_ = (name for name in context.params if context.get_parameter_source(name) is not ParameterSource.DEFAULT)
    return {parameters[name] for name in typed_}


def _unlock_key() -> bytes:
    """A new one, printed before anything is locked with it: whoever kills us now has it, or nothing is locked."""
    from swarm.pki.tokens import format_unlock_key, generate_unlock_key  # late: few ask for it

    key = generate_unlock_key()
    click.echo("To unlock a manager after it restarts, run `swarmvisor unlock` and give it this key:\n")
    click.echo(f"    {format_unlock_key(key)}\n")
    sys.stdout.flush()
    return key


def create(paths: Paths, config: NodeConfig, *, token: str = "", unlock_key: bytes = b"") -> None:
    """Check all that can be checked, then write node.toml, and before it the `token` of a node that joins.

    Raises Refused, BadInput; nothing was written then.
    """
    check_vacant(paths)
    if not config.join_addr:  # a worker listens nowhere
        check_bindable(config.listen_addr)
    os.umask(0o077)
    make_directories(paths)
    with lifecycle.own_only(paths):
        check_vacant(paths)  # again: another command may have made a node while this one waited for the lock
        discard_unfinished(paths)
        if unlock_key:
            from swarm.pki.keyfile import Kek  # late: imports cryptography

            write_unlock_keys(paths, Kek(unlock_key))
        else:
            forget_unlock_keys(paths)  # what an earlier node of this directory may have left in memory
        if token:
            write_atomic(paths.join_token, f"{token}\n".encode(), mode=0o600)
        save_node_config(paths.node_toml, config)


def check_vacant(paths: Paths) -> None:
    """Raise Refused where no node can be created, BadInput for directories that will not do."""
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
