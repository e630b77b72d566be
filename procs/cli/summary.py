"""What `init` and `up` print when all is well: what runs, and what to type next."""

from __future__ import annotations

import shlex
import shutil
import sys

import click

from ipc import topics
from procs.cli.observed import look
from procs.cli.output import Column, table
from procs.cli.supervisord_conf import PROGRAMS
from swarm.paths import Paths, find_paths

_COLUMNS = (Column("PROCESS", "name"), Column("PID", "pid"), Column("WHAT IT DOES", "why"))
_SUPERVISORD = "starts the others, and starts them again"


def print_running(paths: Paths) -> None:
    """Who runs, and where the node is reached."""
    view = look(paths)
    rows: list[dict[str, object]] = [{"name": "supervisord", "pid": view.supervisor_pid, "why": _SUPERVISORD}]
    for program in PROGRAMS:
        process = view.processes.get(program.name)
        if process is not None and process.pid:
            rows.append({"name": program.name, "pid": process.pid, "why": program.why})
    table(rows, _COLUMNS)
    manager = view.body("manager", topics.Manager)
    if manager is not None and manager.remote_addr:
        click.echo(f"\nOther nodes reach this manager at {manager.advertise_addr or manager.remote_addr}.")


def next_steps(paths: Paths) -> str:
    """Commands that make sense now, as they must be typed here."""
    me = typed(paths)
    return f"""
What next:
  {me} service create web --replicas 2 -- sleep infinity
  {me} service ps web
  {me} node ls
  {me} status"""


def typed(paths: Paths) -> str:
    """How this command is called from here: its name if the shell finds it, and the node if it must be named."""
    name = "swarmvisor" if shutil.which("swarmvisor") else sys.argv[0]
    words = [name]
    default = find_paths()
    if paths.state != default.state:
        words += ["--state-dir", str(paths.state)]
    if paths.runtime != find_paths(str(paths.state)).runtime:
        words += ["--runtime-dir", str(paths.runtime)]
    return shlex.join(words)
