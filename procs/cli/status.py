"""`swarmvisor status`: where this node stands, from its processes, else from its files."""

from __future__ import annotations

import os
import signal
import time
from datetime import UTC, datetime
from typing import Any

import click

from ipc import topics
from procs.cli import certificate, ownroles
from procs.cli.observed import NO_NODE, View, explain_end, is_hopeless, last_error, look
from procs.cli.output import FORMATS, Column, Row, print_json, table
from swarm.errors import CorruptFile
from swarm.nodeconfig import NodeConfig, load_node_config
from swarm.nodestate import load_node_state
from swarm.paths import Paths
from swarm.remotes import load_peers


def last_end(process: Row) -> str:
    """How a process ended last, in words; empty: it never did."""
    if process["signal"]:
        return signal.strsignal(process["signal"]) or f"signal {process['signal']}"
    if process["exit_code"] < 0:
        return ""
    return f"exit {process['exit_code']}{'' if process['expected'] else ' (unexpected)'}"


PROCESS_COLUMNS = (
    Column("PROCESS", "name"),
    Column("STATE", "state"),
    Column("PID", lambda row: row["pid"] or ""),
    Column("LAST END", last_end),
)


_NEVER_ENDED = {"exit_code": -1, "signal": 0, "expected": True}


@click.command("status")
@click.option("-o", "--output", type=click.Choice(FORMATS), default="table", show_default=True)
@click.pass_obj
def command(paths: Paths, output: str) -> None:
    """Show where this node stands. Works with everything down: then it reads the node's files."""
    report = describe(paths)
    if output == "json":
        print_json(report)
    else:
        print_report(report)


def describe(paths: Paths) -> dict[str, Any]:
    """The report, as `-o json` prints it (docs/cli.md)."""
    view = look(paths)
    trouble: list[str] = []
    config = _config(paths, trouble)
    trouble += [explain_end(paths, p) for p in view.processes.values() if is_hopeless(p)]
    held = _certificate(paths, view, trouble)
    report: dict[str, Any] = {
        "node": _node(paths, view, config, trouble),
        "supervisord": {"running": view.supervisor_pid != 0, "pid": view.supervisor_pid},
        "workload": {"running": view.workload_pid != 0, "pid": view.workload_pid, "tasks": _task_count(paths, view)},
        "certificate": held,
        "roles": ownroles.describe(view, held["role"], time.time()),
        "vxlan_port": _vxlan_port(paths, view, trouble),
        "manager": _manager(view),
        "agent": _agent(view),
        "managers": _managers(paths, view, trouble),
        "processes": [_process(p, view) for _, p in sorted(view.processes.items())],
        "paths": {"state": str(paths.state), "runtime": str(paths.runtime), "logs": str(paths.logs)},
        "isolated_tasks": os.geteuid() == 0,
    }
    report["trouble"] = trouble
    return report


def _config(paths: Paths, trouble: list[str]) -> NodeConfig | None:
    try:
        return load_node_config(paths.node_toml)
    except FileNotFoundError:
        return None
    except CorruptFile as error:
        trouble.append(error.describe())
        return None


def _node(paths: Paths, view: View, config: NodeConfig | None, trouble: list[str]) -> dict[str, Any]:
    node = view.body("node", topics.Node)
    hostname = (config.hostname if config else "") or os.uname().nodename
    if node is not None:
        state, cause, step = node.state, node.cause, node.step
    elif view.supervisor_pid:
        said = last_error(paths.logs / "coordinator.log")
        state, cause, step = "starting", said or "the coordinator says nothing", ""
    elif not paths.node_toml.exists():
        state, cause, step = "uninitialized", f"there is no node in {paths.state}; {NO_NODE}", ""
    else:
        kept = ", its tasks keep running" if view.workload_pid else ""
        state, cause, step = "down", f"not started{kept}{_last_words(paths, trouble)}", ""
    if trouble and state == "starting":
        state, cause = "failed", trouble[0]
    return {"state": state, "cause": cause, "step": step, "hostname": hostname}


def _last_words(paths: Paths, trouble: list[str]) -> str:
    """How the node stood before everything ended, where that was not well."""
    try:
        last = load_node_state(paths.node_state)
    except CorruptFile as error:
        if error.describe() not in trouble:
            trouble.append(error.describe())
        return ""
    if last is None or last.state == "ready":
        return ""
    when = datetime.fromtimestamp(last.at, UTC)
    return f"; {last.state} when last seen ({when:%Y-%m-%d %H:%M} UTC): {last.cause}"


def _vxlan_port(paths: Paths, view: View, trouble: list[str]) -> int:
    """Of the swarm's overlay networks, as the node object names it; 0: not told, or the default."""
    said = view.body("node.changes", topics.NodeChanges)
    if said is not None:
        return said.vxlan_port
    try:
        last = load_node_state(paths.node_state)
    except CorruptFile as error:
        if error.describe() not in trouble:
            trouble.append(error.describe())
        return 0
    return last.vxlan_port if last is not None else 0


def _certificate(paths: Paths, view: View, trouble: list[str]) -> dict[str, Any]:
    said = view.body("certificate", topics.Certificate)
    if said is not None:
        return {
            "state": said.state,
            "node_id": said.node_id,
            "cluster_id": said.cluster_id,
            "role": said.role,
            "not_after": said.not_after,
            "why": said.why,
        }
    try:
        found = certificate.read(paths)
    except CorruptFile as error:
        trouble.append(error.describe())
        found = None
    empty = {"state": "none", "node_id": "", "cluster_id": "", "role": "", "not_after": 0, "why": ""}
    if found is None:
        return empty
    return {
        **empty,
        "state": "on disk",
        "node_id": found.node_id,
        "cluster_id": found.cluster_id,
        "role": found.role,
        "not_after": found.not_after,
    }


def _manager(view: View) -> dict[str, Any] | None:
    said = view.body("manager", topics.Manager)
    if said is None:
        return None
    return {
        "state": said.state,
        "leader": said.leader,
        "listen_addr": said.remote_addr,
        "advertise_addr": said.advertise_addr,
        "control_socket": said.control_socket,
        "why": said.why,
    }


def _agent(view: View) -> dict[str, Any] | None:
    said = view.body("agent", topics.Agent)
    if said is None:
        return None
    return {
        "state": said.state,
        "session_id": said.session_id,
        "manager_id": said.manager_id,
        "manager_addr": said.manager_addr,
        "tasks": said.tasks,
        "why": said.why,
    }


def _managers(paths: Paths, view: View, trouble: list[str]) -> list[dict[str, str]]:
    said = view.body("remotes", topics.Remotes)
    if said is not None:
        return [{"node_id": m.node_id, "addr": m.addr} for m in said.managers]
    try:
        return [peer._asdict() for peer in load_peers(paths.state_json)]
    except CorruptFile as error:
        trouble.append(error.describe())
        return []


def _task_count(paths: Paths, view: View) -> int:
    agent = view.body("agent", topics.Agent)
    if agent is not None:
        return agent.tasks
    return sum(1 for entry in paths.tasks.iterdir() if entry.is_dir()) if paths.tasks.is_dir() else 0


def _process(process: topics.Process, view: View) -> dict[str, Any]:
    row = process_row(process)
    if process.name == topics.WORKLOAD and not process.pid and view.workload_pid:
        # The workload of a supervisord that was killed, or of before `down --keep-tasks`: alive, but nobody's program.
        row.update(state="ADOPTED", pid=view.workload_pid)
    return row


def process_row(process: topics.Process) -> dict[str, Any]:
    """A program of the node's supervisord as a row of `status` and `debug ps`."""
    return {
        "name": process.name,
        "state": process.state,
        "pid": process.pid,
        "exit_code": process.exit_code,
        "signal": process.signal,
        "expected": process.expected,
        "next_restart_at": process.next_restart_at,
    }


def print_report(report: dict[str, Any]) -> None:
    """The report for people."""
    node, held = report["node"], report["certificate"]
    lines = [("Node", f"{node['state']}{': ' + node['cause'] if node['cause'] else ''}")]
    if report["roles"]["step"]:
        lines.append(("Step", report["roles"]["step"]))
    if held["node_id"]:
        until = datetime.fromtimestamp(held["not_after"], UTC)
        lines += [
            ("Node id", f"{held['node_id']} ({node['hostname']})"),
            ("Swarm id", held["cluster_id"]),
            ("Role", held["role"] + _leader(report["manager"]) + _wanted(report["roles"])),
            ("Certificate", f"{held['state']}, until {until:%Y-%m-%d %H:%M} UTC"),
        ]
    if held["why"] and held["why"] != node["cause"]:
        lines.append(("", held["why"]))
    if report["manager"] and report["manager"]["listen_addr"]:
        lines.append(("Remote API", report["manager"]["listen_addr"]))
    if report["agent"]:
        lines.append(("Agent", _agent_in_words(report["agent"])))
    if report["vxlan_port"]:
        lines.append(("VXLAN port", str(report["vxlan_port"])))
    lines.append(("Tasks", _tasks_in_words(report)))
    lines.append(("State", report["paths"]["state"]))
    if not report["isolated_tasks"]:
        lines.append(("Note", "without root, tasks are as trusted as this node: they can read its keys"))
    lines += [("Trouble", text) for text in report["trouble"]]
    for name, text in lines:
        click.echo(f"{name:<12} {text}")
    if report["processes"]:
        main = {"name": "supervisord", "state": "RUNNING", "pid": report["supervisord"]["pid"], **_NEVER_ENDED}
        click.echo()
        table([main, *report["processes"]], PROCESS_COLUMNS)


def _leader(manager: dict[str, Any] | None) -> str:
    return " (leader)" if manager and manager["leader"] else ""


def _wanted(said: dict[str, Any]) -> str:
    """The other roles, where they differ from the certificate's."""
    if said["desired"] in ("", said["certificate"]):
        return ""
    return f" (desired: {said['desired']}, observed by the managers: {said['observed']})"


def _agent_in_words(agent: dict[str, Any]) -> str:
    addr = agent["manager_addr"]
    if not addr:
        return f"{agent['state']}, without a manager{': ' + agent['why'] if agent['why'] else ''}"
    return f"{agent['state']}, in session with {'the manager here' if addr == 'local' else addr}"


def _tasks_in_words(report: dict[str, Any]) -> str:
    workload = report["workload"]
    count = f"{workload['tasks']} {'assigned' if report['agent'] else 'on disk'}"
    return f"{count}, under supervisord {workload['pid']}" if workload["running"] else count
