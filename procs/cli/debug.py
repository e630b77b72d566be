"""`swarmvisor debug`: look at one process of the node, or take it into your own hands, without touching the others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import click

from ipc.bus import Bus, Value
from ipc.topics import FAMILIES, TOPICS
from procs.cli.output import FORMATS, Column, ago, print_json, table
from procs.cli.status import PROCESS_COLUMNS, process_row
from swarm.errors import BadInput, Refused, TimedOut, Unreachable
from swarm.paths import PROCESSES, RUNTIME_DIR_VARIABLE, STATE_DIR_VARIABLE, Paths
from swarm.supervisor_rpc import SupervisorClient

GATHER = 1.0
"""Seconds in which every live publisher answers a new subscriber (measured: a few milliseconds)."""

QUIET = 0.3
"""Seconds without a new line after which a stack dump counts as whole."""

DUMP_DEADLINE = 5.0
STOP_DEADLINE = 30.0

TOPIC_COLUMNS = (
    Column("TOPIC", "topic"),
    Column("OWNER", "proc"),
    Column("SAID", lambda row: ago(row["at"] / 1e9)),
    Column("SEQ", "seq"),
    Column("VALUE", lambda row: gist(row["topic"], row["body"]), cut=True),
)

GIST = {
    "certificate": ("state", "role", "attempt", "why"),
    "node.changes": ("desired_role", "observed_role", "availability"),
    "managers": ("managers",),
    "role": ("current", "expected", "why"),
    "remotes": ("managers",),
    "node": ("state", "step", "cause"),
    "manager": ("state", "leader", "why"),
    "agent": ("state", "manager_addr", "tasks", "why"),
}
"""The fields of each topic that the table of `debug ps` has room for; `-o json` and `debug bus` show all."""


@click.group("debug")
def group() -> None:
    """Look into the processes of this node."""


@group.command("ps")
@click.option("-o", "--output", type=click.Choice(FORMATS), default="table", show_default=True)
@click.pass_obj
def processes(paths: Paths, output: str) -> None:
    """Show the node's processes, and what is said on its bus: by whom, since when."""
    values = snapshot(paths)
    rows = [process_row(v.body) for t, v in sorted(values.items()) if t.startswith("process.")]
    topics = [value_row(v) for t, v in sorted(values.items()) if not t.startswith(("process.", "task."))]
    if output == "json":
        print_json({"processes": rows, "topics": topics})
        return
    if not rows:
        raise Unreachable("nothing of this node answers on the bus", remedy="run `swarmvisor up`")
    table(rows, PROCESS_COLUMNS)
    click.echo()
    table(topics, TOPIC_COLUMNS)


@group.command("bus")
@click.argument("topic", default="*")
@click.option("--record", type=click.File("w"), metavar="FILE", help="Also append every value to FILE, a line each.")
@click.pass_obj
def listen(paths: Paths, topic: str, record: TextIO | None) -> None:
    """Show what is said on the bus, as it is said, until Ctrl-C. TOPIC: one topic, a family (`process.*`), or all."""
    with Bus(paths.bus, None, [check_topic(topic)]) as bus:
        while True:
            for value in bus.poll(None):
                line = json.dumps(value_row(value), ensure_ascii=False)
                click.echo(line)
                if record is not None:
                    record.write(line + "\n")
                    record.flush()


@group.command("stacks")
@click.argument("process", type=click.Choice(PROCESSES))
@click.pass_obj
def stacks(paths: Paths, process: str) -> None:
    """Show where every thread and every asyncio task of PROCESS is (it goes on running)."""
    info = SupervisorClient(paths.supervisor_socket).call("supervisor.getProcessInfo", process)
    if not info["pid"]:
        raise Refused(f"{process} does not run ({info['statename']})", remedy="see `swarmvisor debug ps`")
    log = paths.logs / f"{process}.log"
    start = log.stat().st_size
    os.kill(info["pid"], signal.SIGUSR1)
    click.echo(dump_after(log, start))


def dump_after(log: Path, start: int) -> str:
    """What `log` gained after `start`, once it has been quiet for a moment. Raises TimedOut."""
    deadline = time.monotonic() + DUMP_DEADLINE
    pause = threading.Event()
    size, grown_at = start, time.monotonic()
    while time.monotonic() < deadline:
        now = log.stat().st_size
        if now != size:
            size, grown_at = now, time.monotonic()
        elif size > start and time.monotonic() - grown_at > QUIET:
            with log.open("rb") as source:
                source.seek(start)
                return source.read().decode(errors="replace").rstrip()
        pause.wait(0.02)
    raise TimedOut(f"no stacks in {log} after {DUMP_DEADLINE:g} s", remedy="attach py-spy or gdb to the process")


@group.command("run", context_settings={"ignore_unknown_options": True})
@click.argument("process", type=click.Choice(PROCESSES))
@click.option("--pdb", is_flag=True, help="Start it in the debugger.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def run(paths: Paths, process: str, pdb: bool, arguments: tuple[str, ...]) -> None:
    """Run PROCESS here, in this terminal, in place of the one under supervisord; give it back at the end.

    It has the same state, bus and lock. Ctrl-C ends it and gives it back too.
    """
    module = f"procs.{process}"
    command = [sys.executable, "-m", *(["pdb", "-m"] if pdb else []), module, *arguments]
    places = {STATE_DIR_VARIABLE: str(paths.state), RUNTIME_DIR_VARIABLE: str(paths.runtime)}
    with taken_over(SupervisorClient(paths.supervisor_socket, timeout=STOP_DEADLINE), process):
        code = foreground(command, {**os.environ, **places})
    click.echo(f"{process} ended with {code}; supervisord runs it again", err=True)


@contextmanager
def taken_over(supervisor: SupervisorClient, process: str) -> Iterator[None]:
    """While inside, `process` does not run under supervisord; afterwards it does, whatever happened inside."""
    info = supervisor.call("supervisor.getProcessInfo", process)
    if info["pid"]:
        supervisor.call("supervisor.stopProcess", process, True)
    try:
        yield
    finally:
        supervisor.call("supervisor.startProcess", process, False)


def foreground(command: list[str], environment: dict[str, str]) -> int:
    """Run `command` on this terminal; Ctrl-C is its business, we wait for it. Its exit code."""
    child = subprocess.Popen(command, env=environment)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return child.wait()
    finally:
        signal.signal(signal.SIGINT, before)


def snapshot(paths: Paths) -> dict[str, Value]:
    """The last values of all topics: whatever live publishers say within `GATHER`."""
    with Bus(paths.bus, None, ["*"]) as bus:
        deadline = time.monotonic() + GATHER
        owners = ("supervisor", *PROCESSES)
        while (left := deadline - time.monotonic()) > 0 and not all(bus.complete(owner) for owner in owners):
            bus.poll(left)
        return bus.values()


def gist(topic: str, body: Mapping[str, Any]) -> str:
    """What a topic says, in few words: the fields of `GIST` that say something."""
    words = []
    for name in GIST[topic]:
        value = body[name]
        if name == "managers":
            words += [f"{manager['addr']} (weight {manager['weight']})" for manager in value]
        elif value not in ("", 0, False):
            words.append(name if value is True else f"{name}={value}")
    return " ".join(words)


def value_row(value: Value) -> dict[str, Any]:
    """An envelope as JSON: bytes as hex."""
    head = {"topic": value.topic, "proc": value.proc, "pid": value.pid, "epoch": value.epoch, "seq": value.seq}
    return {**head, "at": value.at, "cause": value.cause, "body": readable(asdict(value.body))}


def readable(body: dict[str, Any]) -> dict[str, Any]:
    """A body for people and JSON: bytes as a few hex digits and their length."""
    return {k: f"{v[:8].hex()}… ({len(v)} bytes)" if isinstance(v, bytes) else v for k, v in body.items()}


def check_topic(topic: str) -> str:
    """`topic` if the bus has it. Raises BadInput."""
    if topic == "*" or topic in TOPICS or any(topic.startswith(prefix) for prefix in FAMILIES):
        return topic
    raise BadInput(f"no topic {topic!r} on the bus", remedy=f"one of {', '.join([*TOPICS, 'process.*', 'task.*'])}")


@group.command("downgrade-key")
@click.option("--unlock-key", metavar="SWMKEY-…", help="Of a locked node; else the one in memory is tried.")
@click.pass_obj
def downgrade_key(paths: Paths, unlock_key: str | None) -> None:
    """Rewrite the node's key in the form that old releases of SwarmKit read (SEC1). The next renewal undoes it."""
    from swarm.nodeconfig import load_node_config  # late: only this command looks at it
    from swarm.pki.keyfile import KeyFile  # late: imports cryptography, as do the next
    from swarm.pki.tokens import parse_unlock_key
    from swarm.unlock import raw, read_unlock_keys

    file = KeyFile.of(paths)
    if not file.key.exists():
        raise Refused("this host has no node key", remedy="run `swarmvisor init` or `swarmvisor join`")
    if file.read_headers()[2] and load_node_config(paths.node_toml).fips:
        raise Refused("unsupported key format due to FIPS compliance")
    file.downgrade(*([parse_unlock_key(unlock_key)] if unlock_key else raw(read_unlock_keys(paths))))
    click.echo(f"{file.key} is an EC PRIVATE KEY now")
