"""Objects of the swarm as rows of a listing: plain dicts, the same for the table and for JSON (docs/cli.md)."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from procs.cli.control import short_name
from procs.cli.output import Column, ago, short_id
from procs.cli.rolestep import step
from swarm.api import objects_pb2, specs_pb2, types_pb2

NODE_COLUMNS = (
    Column("ID", lambda row: f"{short_id(row)} *" if row["self"] else short_id(row)),
    Column("HOSTNAME", "hostname"),
    Column("STATUS", "status"),
    Column("AVAILABILITY", "availability"),
    Column("MANAGER STATUS", "manager_status"),
)
SERVICE_COLUMNS = (
    Column("ID", short_id),
    Column("NAME", "name"),
    Column("MODE", "mode"),
    Column("REPLICAS", "replicas"),
    Column("IMAGE", "image"),
    Column("COMMAND", lambda row: shlex.join(row["command"]), cut=True),
)
TASK_COLUMNS = (
    Column("ID", short_id),
    Column("NAME", "name"),
    Column("NODE", "node"),
    Column("DESIRED STATE", "desired_state"),
    Column("CURRENT STATE", lambda row: f"{row['state']} {ago(row['timestamp'])}".rstrip()),
    Column("ERROR", "reason"),
)

DEAD = types_pb2.COMPLETE
"""Observed states from here on are final."""


def state_name(state: int) -> str:
    """A task state's name in lower case; a number we do not know stays a number."""
    known = types_pb2.TaskState.DESCRIPTOR.values_by_number.get(state)
    return known.name.lower() if known is not None else str(state)


def node_row(node: objects_pb2.Node, self_id: str = "", nodes: Sequence[objects_pb2.Node] = ()) -> dict[str, Any]:
    """`nodes`: all of them, for the words about a role change."""
    manager = node.manager_status
    if node.HasField("manager_status"):
        reachability = types_pb2.RaftMemberStatus.Reachability.Name(manager.reachability).capitalize()
        status = "Leader" if manager.leader else reachability
    else:
        status = ""
    return {
        "id": node.id,
        "self": node.id == self_id,
        "hostname": node.description.hostname,
        "status": types_pb2.NodeStatus.State.Name(node.status.state).lower(),
        "message": node.status.message,
        "addr": node.status.addr,
        "availability": specs_pb2.NodeSpec.Availability.Name(node.spec.availability).lower(),
        "role": types_pb2.NodeRole.Name(node.role).lower(),
        "desired_role": types_pb2.NodeRole.Name(node.spec.desired_role).lower(),
        "certificate_role": types_pb2.NodeRole.Name(node.certificate.role).lower(),
        "certificate_state": types_pb2.IssuanceStatus.State.Name(node.certificate.status.state).lower(),
        "step": step(node, nodes),
        "manager_status": status,
        "manager_addr": manager.addr,
        "raft_id": manager.raft_id,
        "labels": dict(node.spec.annotations.labels),
        "engine_labels": dict(node.description.engine.labels),
        "engine_version": node.description.engine.engine_version,
    }


def service_row(service: objects_pb2.Service, running: int, desired: int) -> dict[str, Any]:
    container = service.spec.task.container
    return {
        "id": service.id,
        "name": service.spec.annotations.name,
        "mode": (service.spec.WhichOneof("mode") or "").replace("_", "-"),
        "replicas": f"{running}/{desired}",
        "running": running,
        "desired": desired,
        "image": container.image,
        "command": [*container.command, *container.args],
        "labels": dict(service.spec.annotations.labels),
        "version": service.meta.version.index,
    }


def task_row(task: objects_pb2.Task, hostnames: Mapping[str, str]) -> dict[str, Any]:
    status = task.status
    since = status.timestamp.seconds + status.timestamp.nanos / 1e9
    return {
        "id": task.id,
        "name": short_name(task),
        "service_id": task.service_id,
        "slot": task.slot,
        "node_id": task.node_id,
        "node": hostnames.get(task.node_id, task.node_id),
        "desired_state": state_name(task.desired_state),
        "state": state_name(status.state),
        "timestamp": since,
        "message": status.message,
        "error": status.err,
        "reason": reason(task),
        "pid": status.container.pid,
        "exit_code": status.container.exit_code if status.state >= DEAD else None,
    }


def reason(task: objects_pb2.Task) -> str:
    """Why a task is not running, in words; empty where there is nothing to say."""
    status = task.status
    if status.err:
        return status.err
    if status.state < types_pb2.RUNNING:
        return {types_pb2.NEW: "waiting to be admitted", types_pb2.PENDING: "waiting for a node"}.get(status.state, "")
    return ""


def task_order(task: objects_pb2.Task) -> tuple[str, int, str, int]:
    """Listings go by service and slot, newest first within a slot."""
    return (task.service_annotations.name, task.slot, task.node_id if not task.slot else "", -task.meta.version.index)


def task_rows(
    tasks: Sequence[objects_pb2.Task], nodes: Sequence[objects_pb2.Node], *, everything: bool
) -> list[dict[str, Any]]:
    """Rows in listing order; without `everything` only tasks that are wanted or still run."""
    hostnames = {node.id: node.description.hostname or node.id for node in nodes}
    shown = [t for t in tasks if everything or t.desired_state <= types_pb2.COMPLETE or t.status.state < DEAD]
    return [task_row(task, hostnames) for task in sorted(shown, key=task_order)]
