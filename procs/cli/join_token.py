"""`swarmvisor join-token`: the secrets that let other hosts in."""

from __future__ import annotations

import click

from procs.cli.control import Control, connect
from swarm.api import control_pb2 as api
from swarm.api import objects_pb2
from swarm.paths import Paths


@click.command("join-token")
@click.argument("role", type=click.Choice(["worker", "manager"]))
@click.option("--rotate", is_flag=True, help="Make a new one first: the old one lets nobody in any more.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the token.")
@click.pass_obj
def command(paths: Paths, role: str, rotate: bool, quiet: bool) -> None:
    """Show the token with which a host joins as a worker or as a manager."""
    with connect(paths) as control:
        cluster = control.modify(lambda: _rotate(control, role)) if rotate else control.cluster()
        token = getattr(cluster.root_ca.join_tokens, role)
        if quiet:
            click.echo(token)
            return
        addresses = [n.manager_status.addr for n in control.nodes() if n.manager_status.leader]
    if rotate:
        click.echo(f"Successfully rotated {role} join token.\n")
    click.echo(f"To add a {role} to this swarm, run on the other host:\n")
    click.echo(f"    swarmvisor join --token {token} {addresses[0] if addresses else '(no leader)'}\n")
    click.echo(f"Keep it secret: whoever has it becomes a {role}.")


def _rotate(control: Control, role: str) -> objects_pb2.Cluster:
    """The cluster with another token. Nodes that have joined are not touched."""
    cluster = control.cluster()
    request = api.UpdateClusterRequest(cluster_id=cluster.id, cluster_version=cluster.meta.version, spec=cluster.spec)
    setattr(request.rotation, f"{role}_join_token", True)
    changed: objects_pb2.Cluster = control.call("UpdateCluster", request).cluster
    return changed
