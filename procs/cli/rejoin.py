"""`swarmvisor rejoin`: bring back a node whose certificate expired too long ago, under its own name.

The renewer then sends both the join token and the proof made with the node's old key (swarm/pki/reenrol).
"""

from __future__ import annotations

import dataclasses
import time

import click

from procs.cli import lifecycle
from procs.cli.join import check_token
from procs.cli.observed import supervisor_pid
from procs.cli.progress import Progress
from swarm.errors import Refused
from swarm.files import write_atomic
from swarm.nodeconfig import load_node_config, save_node_config, validate
from swarm.paths import Paths
from swarm.supervisor_rpc import SupervisorClient


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
    save_node_config(paths.node_toml, validate(dataclasses.replace(config, join_addr=address)))
    write_atomic(paths.join_token, f"{token.strip()}\n".encode(), mode=0o600)
    with Progress() as tell:
        if supervisor_pid(paths.supervisor_socket):
            supervisor = SupervisorClient(paths.supervisor_socket, timeout=30.0)
            for name in ("coordinator", "renewer"):  # they read node.toml at their start
                tell(f"restarting the {name}")
                supervisor.call("supervisor.stopProcess", name)
                supervisor.call("supervisor.startProcess", name)
        else:
            lifecycle.start(paths, tell)
        lifecycle.ready(paths, timeout, tell)
    click.echo(f"This node ({held.node_id}) is back in swarm {held.cluster_id}.")
