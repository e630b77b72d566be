"""`swarmvisor task`: single runs of services."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import click

from procs.cli.control import connect
from procs.cli.output import listing_options, print_json, show
from procs.cli.rows import TASK_COLUMNS, task_rows
from swarm.errors import Refused
from swarm.paths import Paths
from swarm.tasklog import follow_task_log, read_task_log
from swarm.workload import STDERR


@click.group("task")
def group() -> None:
    """List tasks, look into one, read its output."""


@group.command("ls")
@click.option("-a", "--all", "everything", is_flag=True, help="Also tasks that have ended and were replaced.")
@listing_options
@click.pass_obj
def list_tasks(paths: Paths, everything: bool, output: str, quiet: bool) -> None:
    """List the tasks of all services."""
    with connect(paths) as control:
        rows = task_rows(control.tasks(), control.nodes(), everything=everything)
    show(rows, TASK_COLUMNS, output=output, quiet=quiet)


@group.command()
@click.argument("names", nargs=-1, required=True, metavar="TASK...")
@click.pass_obj
def inspect(paths: Paths, names: tuple[str, ...]) -> None:
    """Show everything that is known of tasks, as JSON. TASK: an id, a unique prefix of one, or SERVICE.SLOT."""
    from google.protobuf.json_format import MessageToDict  # late: only inspect needs it

    with connect(paths) as control:
        found = [control.find_task(name) for name in names]
    print_json([MessageToDict(task, preserving_proto_field_name=True) for task in found])


@group.command()
@click.argument("name", metavar="TASK")
@click.option("-f", "--follow", is_flag=True, help="Go on showing lines as they come, until the task has ended.")
@click.option("-n", "--tail", type=click.IntRange(min=0), metavar="LINES", help="Only the last LINES of each stream.")
@click.option("-t", "--timestamps", is_flag=True, help="Put the time at which a line was read before it.")
@click.pass_obj
def logs(paths: Paths, name: str, follow: bool, tail: int | None, timestamps: bool) -> None:
    """Show what a task of this node has written; its stderr goes to stderr.

    Works with everything down. TASK: an id, a unique prefix of one, or (asking the manager) SERVICE.SLOT.
    """
    directory = task_directory(paths, name)
    lines = follow_task_log(directory, tail=tail) if follow else read_task_log(directory, tail=tail)
    for line in lines:
        stamp = f"{datetime.fromtimestamp(line.at / 1e9, UTC):%Y-%m-%dT%H:%M:%S.%fZ} ".encode() if timestamps else b""
        stream = sys.stderr.buffer if line.stream == STDERR else sys.stdout.buffer
        stream.write(stamp + line.data + b"\n")
        if follow:
            stream.flush()


def task_directory(paths: Paths, name: str) -> Path:
    """The directory of the task that `name` means. Raises Refused if the task runs on another node."""
    here = sorted(entry.name for entry in paths.tasks.iterdir()) if paths.tasks.is_dir() else []
    matches = [task_id for task_id in here if name and task_id.startswith(name)]
    if len(matches) == 1:
        return paths.task(matches[0])
    with connect(paths) as control:
        task = control.find_task(name)
        hostnames = {node.id: node.description.hostname for node in control.nodes()}
    if task.id not in here:
        where = hostnames.get(task.node_id) or task.node_id
        why = f"task {task.id} has no files here: it belongs to node {where}" if where else "the task has no node yet"
        raise Refused(why, remedy="use the command on that node" if where else "see `swarmvisor task inspect`")
    return paths.task(task.id)
