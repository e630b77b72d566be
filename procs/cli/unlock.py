"""`swarmvisor unlock`: give a locked manager its key back after a restart."""

from __future__ import annotations

import sys
import time

import click

from ipc import topics
from ipc.bus import Bus
from procs.cli import lifecycle
from swarm.errors import Refused, SwarmvisorError, TimedOut
from swarm.paths import Paths
from swarm.supervisor_rpc import SupervisorClient

OPENING = 15.0
"""Seconds that the renewer gets to open the key and the coordinator to hear of it."""


@click.command("unlock")
@click.option(
    "--timeout", type=click.FloatRange(min=0), default=lifecycle.READY_TIMEOUT, show_default=True, metavar="S"
)
@click.pass_obj
def command(paths: Paths, timeout: float) -> None:
    """Unlock this node. The key is asked for, or read from standard input; it is not kept on a disk."""
    from swarm.pki.keyfile import Kek, KeyFile  # late: imports cryptography, as do the next
    from swarm.pki.tokens import parse_unlock_key
    from swarm.unlock import write_unlock_keys

    if not paths.node_key.exists():
        raise Refused("this host is no node of a swarm yet", remedy="run `swarmvisor init` or `swarmvisor join`")
    file = KeyFile.of(paths)
    _, version, encrypted = file.read_headers()
    if not encrypted:
        raise Refused("this node is not locked")
    text = click.prompt("Unlock key", hide_input=True) if sys.stdin.isatty() else sys.stdin.readline()
    key = parse_unlock_key(text.strip())
    file.read(key)  # Locked, if it is another one: nothing is written then
    write_unlock_keys(paths, Kek(key, version))
    try:
        SupervisorClient(paths.supervisor_socket).call("supervisor.signalProcess", "renewer", "HUP")
    except SwarmvisorError as error:
        raise Refused(
            f"the key is right, but the node does not run: {error.message}", remedy="start it with `swarmvisor up`"
        ) from error
    _wait_opened(paths, min(timeout, OPENING))
    lifecycle.ready(paths, timeout, lambda _: None)
    click.echo("This node is unlocked.")


def _wait_opened(paths: Paths, timeout: float) -> None:
    """Until the node does not call itself locked any more. Raises TimedOut."""
    deadline = time.monotonic() + timeout
    with Bus(paths.bus, None, ["node"]) as bus:
        while (left := deadline - time.monotonic()) > 0:
            bus.poll(left)
            said = bus.last("node")
            if said is not None and isinstance(said.body, topics.Node) and said.body.state != "locked":
                return
    raise TimedOut("the node still calls itself locked", remedy="see `swarmvisor status`")
