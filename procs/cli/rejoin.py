"""`swarmvisor rejoin`: bring back a node whose certificate expired too long ago, under its own name.

The renewer then sends both the join token and the proof made with the node's old key (swarm/pki/reenrol).
"""

from __future__ import annotations

import dataclasses
import time

import click

from ipc import topics
from ipc.bus import Bus
from procs.cli import lifecycle
from procs.cli.join import check_token, with_port
from procs.cli.observed import order, supervisor_pid
from procs.cli.progress import Progress
from swarm.errors import Refused, SwarmvisorError, TimedOut, Unreachable
from swarm.files import write_atomic
from swarm.joining import Trouble
from swarm.nodeconfig import load_node_config, save_node_config, validate
from swarm.paths import Paths
from swarm.supervisor_rpc import ALREADY_STARTED, NOT_RUNNING, SupervisorClient


@click.command("rejoin")
@click.option("--token", required=True, metavar="SWMTKN-…", help="From `swarmvisor join-token` on a manager.")
@click.option(
    "--timeout", type=click.FloatRange(min=0), default=lifecycle.READY_TIMEOUT, show_default=True, metavar="S"
)
@click.argument("address", metavar="HOST:PORT")
@click.pass_obj
def command(paths: Paths, token: str, timeout: float, address: str) -> None:
    """Come back to the swarm at HOST:PORT with an expired certificate; id, labels and tasks stay this node's."""
    from swarm.pki.credentials import load_credentials  # late: imports cryptography

    if not paths.node_cert.exists() or not paths.node_toml.exists():
        raise Refused("this host has no identity to come back with", remedy="use `swarmvisor join`")
    config = load_node_config(paths.node_toml)
    check_token(token, fips=config.fips)
    held = load_credentials(paths, allow_expired=True)
    if held.not_after >= time.time():
        raise Refused("this node's certificate has not expired", remedy="see `swarmvisor status`")
    changed = validate(dataclasses.replace(config, join_addr=with_port(address)))
    write_atomic(paths.join_token, f"{token.strip()}\n".encode(), mode=0o600)
    save_node_config(paths.node_toml, changed)
    deadline = time.monotonic() + timeout
    with Progress() as tell:
        if supervisor_pid(paths.supervisor_socket):
            supervisor = SupervisorClient(paths.supervisor_socket, timeout=30.0)
            for name in ("coordinator", "renewer"):  # they read node.toml at their start
                tell(f"restarting the {name}")
                order(supervisor, "supervisor.stopProcess", name, NOT_RUNNING)
                order(supervisor, "supervisor.startProcess", name, ALREADY_STARTED)
        else:
            lifecycle.start(paths, tell)
        _wait_renewed(paths, deadline, timeout)
        lifecycle.ready(paths, max(0.0, deadline - time.monotonic()), tell)
    click.echo(f"This node ({held.node_id}) is back in swarm {held.cluster_id}.")


def _wait_renewed(paths: Paths, deadline: float, timeout: float) -> None:
    """Until the renewer has a new certificate. Raises Refused or Unreachable with what the managers said to the first
    request; TimedOut."""
    with Bus(paths.bus, None, ("certificate",)) as bus:
        while True:
            value = bus.last("certificate")
            said = value.body if value is not None else None
            if isinstance(said, topics.Certificate):
                if said.state != "expired":
                    return  # how it stands otherwise, `ready` tells
                if said.attempt:
                    raise _refusal(said)
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimedOut(f"no manager has answered after {timeout:g} s", remedy="see `swarmvisor status`")
            bus.poll(left)


def _refusal(said: topics.Certificate) -> SwarmvisorError:
    if said.problem == Trouble.REFUSED:
        return Refused(said.why)
    return Unreachable(said.why, remedy="the node is up and tries again by itself: see `swarmvisor status`")
