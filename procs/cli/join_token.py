"""`swarmvisor join-token`: the secrets that let other hosts in."""

from __future__ import annotations

import click

from procs.cli.control import connect
from swarm.paths import Paths


@click.command("join-token")
@click.argument("role", type=click.Choice(["worker", "manager"]))
@click.option("-q", "--quiet", is_flag=True, help="Print only the token.")
@click.pass_obj
def command(paths: Paths, role: str, quiet: bool) -> None:
    """Show the token with which a host joins as a worker or as a manager."""
    with connect(paths) as control:
        cluster = control.cluster()
        token = getattr(cluster.root_ca.join_tokens, role)
        if quiet:
            click.echo(token)
            return
        addresses = [n.manager_status.addr for n in control.nodes() if n.manager_status.leader]
    click.echo(f"To add a {role} to this swarm, a host needs this token and the address of a manager:\n")
    click.echo(f"    {token}")
    click.echo(f"    {addresses[0] if addresses else '(no leader)'}\n")
    click.echo(f"Keep it secret: whoever has it becomes a {role}.")
