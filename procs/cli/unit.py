"""`swarmvisor unit`: the node as a service of systemd."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import click

from procs.cli.supervisord_conf import PROGRAMS
from swarm.errors import BadInput
from swarm.paths import RUNTIME_DIR_VARIABLE, STATE_DIR_VARIABLE, Paths


@click.command("unit")
@click.pass_obj
def command(paths: Paths) -> None:
    """Print a systemd unit for this node.

    Save it as /etc/systemd/system/swarmvisor.service, then `systemctl enable --now swarmvisor`.
    """
    click.echo(render(paths, own_command()), nl=False)


def own_command() -> str:
    """How systemd starts this very installation."""
    beside = Path(sys.executable).parent / "swarmvisor"
    found = str(beside) if beside.exists() else shutil.which("swarmvisor")
    return found if found is not None else f"{sys.executable} -m procs.cli"


def render(paths: Paths, program: str) -> str:
    """The unit's text. Raises BadInput for directories that a unit cannot carry."""
    for path in (paths.state, paths.runtime):
        if any(c in '"\\\n%$' for c in str(path)):
            raise BadInput(
                f"{path} cannot stand in a systemd unit", remedy="choose a directory without such characters"
            )
    seconds = max(program.stopwaitsecs for program in PROGRAMS) + 100
    runtime = ""
    if paths.runtime.parent == Path("/run"):
        # kept over a restart of the service: the workload's socket is in it, and its tasks live on
        runtime = f"""\
RuntimeDirectory={paths.runtime.name}
RuntimeDirectoryMode=0700
RuntimeDirectoryPreserve=restart
"""
    user = "" if os.geteuid() == 0 else f"User={os.geteuid()}\n"
    return f"""\
[Unit]
Description=Swarmvisor node
Wants=network-online.target
After=network-online.target
ConditionPathExists={paths.node_toml}

[Service]
Type=exec
Environment="{STATE_DIR_VARIABLE}={paths.state}" "{RUNTIME_DIR_VARIABLE}={paths.runtime}"
ExecStart={program} up --foreground
{user}{runtime}\
# supervisord ends its processes itself, in order; should it be killed, the tasks live on for the next one
KillMode=process
TimeoutStopSec={seconds}
Restart=on-failure
RestartPreventExitStatus=2 6
# tasks get control groups of their own
Delegate=yes
UMask=0077

[Install]
WantedBy=multi-user.target
"""
