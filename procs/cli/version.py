"""`swarmvisor version`."""

from __future__ import annotations

import platform

import click

from procs.cli.output import FORMATS, print_json
from swarm import VERSION

PROTOCOL = "docker.swarmkit.v1"


@click.command("version")
@click.option("-o", "--output", type=click.Choice(FORMATS), default="table", show_default=True)
def command(output: str) -> None:
    """Show the version of Swarmvisor, of Python, and of the protocol between nodes."""
    row = {"swarmvisor": VERSION, "python": platform.python_version(), "protocol": PROTOCOL}
    if output == "json":
        print_json(row)
        return
    for name, value in row.items():
        click.echo(f"{name:<11} {value}")
