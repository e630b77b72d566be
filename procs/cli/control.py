"""A manager's control API as the command line uses it: one synchronous channel to the local control socket."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc

from procs.cli import certificate
from procs.cli.observed import NO_NODE
from swarm import dial
from swarm.api import control_pb2 as api
from swarm.api import objects_pb2
from swarm.api.control_pb2_grpc import ControlStub
from swarm.errors import BadInput, NoLeader, Refused, SwarmvisorError, TimedOut, Unreachable
from swarm.paths import Paths

T = TypeVar("T")
N = TypeVar("N", objects_pb2.Node, objects_pb2.Service, objects_pb2.Task)

CALL_TIMEOUT = 15.0
"""Seconds that one call may take; a healthy manager answers in milliseconds."""

NO_LEADER = "The swarm does not have a leader"
"""How the manager's sentence on a lost quorum begins (reference manager §1.5)."""

OUT_OF_SEQUENCE = "update out of sequence"
"""The manager's words when an object was written since it was read (reference manager §2.2)."""

MODIFY_ATTEMPTS = 5

_REFUSALS = {
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNAUTHENTICATED,
}


class NotFound(SwarmvisorError):
    """No object has this id, name or prefix."""


class Control:
    """Calls on the control API, with gRPC's errors turned into ours and names into objects."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._stub = ControlStub(channel)

    def call(self, method: str, request: Any, *, timeout: float = CALL_TIMEOUT) -> Any:
        """One unary call, named as in control.proto."""
        try:
            return getattr(self._stub, method)(request, timeout=timeout)
        except grpc.RpcError as error:
            raise translate(error) from error

    def cluster(self) -> objects_pb2.Cluster:
        """The swarm's cluster object (redacted by the manager)."""
        clusters: list[objects_pb2.Cluster] = list(self.call("ListClusters", api.ListClustersRequest()).clusters)
        for cluster in clusters:
            if cluster.spec.annotations.name == "default":
                return cluster
        raise NotFound("the manager has no cluster object yet", remedy="try again in a moment")

    def nodes(self) -> list[objects_pb2.Node]:
        return list(self.call("ListNodes", api.ListNodesRequest()).nodes)

    def services(self) -> list[objects_pb2.Service]:
        return list(self.call("ListServices", api.ListServicesRequest()).services)

    def tasks(self, *, service_ids: Sequence[str] = (), node_ids: Sequence[str] = ()) -> list[objects_pb2.Task]:
        filters = api.ListTasksRequest.Filters(service_ids=service_ids, node_ids=node_ids)
        return list(self.call("ListTasks", api.ListTasksRequest(filters=filters)).tasks)

    def find_node(self, name: str, *, self_id: str = "") -> objects_pb2.Node:
        """A node by id, hostname, unique prefix of its id, or `self`."""
        nodes = self.nodes()
        wanted = self_id if name == "self" else name
        return pick("node", wanted, nodes, lambda node: node.description.hostname or node.spec.annotations.name)

    def find_service(self, name: str) -> objects_pb2.Service:
        """A service by id, name, or unique prefix of its id."""
        return pick("service", name, self.services(), lambda service: service.spec.annotations.name)

    def find_task(self, name: str) -> objects_pb2.Task:
        """A task by id, unique prefix of its id, or `SERVICE.SLOT` (the newest of that slot)."""
        tasks = sorted(self.tasks(), key=lambda task: task.meta.version.index, reverse=True)
        by_slot = [task for task in tasks if short_name(task) == name]
        return by_slot[0] if by_slot else pick("task", name, tasks, short_name)

    def modify(self, attempt: Callable[[], T]) -> T:
        """Run a read-change-write again, a few times, when somebody else wrote the object in between."""
        for _ in range(MODIFY_ATTEMPTS - 1):
            try:
                return attempt()
            except SwarmvisorError as error:
                if OUT_OF_SEQUENCE not in error.message:
                    raise
        return attempt()


def short_name(task: objects_pb2.Task) -> str:
    """`SERVICE.SLOT`, as listings show a task; a task of a global service has its node for a slot."""
    slot = str(task.slot) if task.slot else task.node_id
    return task.annotations.name or f"{task.service_annotations.name}.{slot}"


def pick(kind: str, name: str, objects: Iterable[N], name_of: Callable[[N], str]) -> N:
    """The one object that `name` means: id, then name, then a unique prefix of the id or name."""
    found = list(objects)
    for matches in (
        [o for o in found if o.id == name],
        [o for o in found if name_of(o) == name],
        [o for o in found if name and (o.id.startswith(name) or name_of(o).startswith(name))],
    ):
        if len(matches) == 1:
            return matches[0]
        if matches:
            listed = ", ".join(f"{name_of(o)} ({o.id})" for o in matches[:5])
            raise BadInput(f"{kind} {name} is ambiguous ({len(matches)} matches found)", remedy=f"one of: {listed}")
    close = difflib.get_close_matches(name, sorted({name_of(o) for o in found if name_of(o)}), n=1)
    raise NotFound(f"{kind} {name} not found", remedy=f"did you mean {close[0]}?" if close else "")


def translate(error: grpc.RpcError) -> SwarmvisorError:
    """What a failed call means for the user: the manager's own words, as an error of ours."""
    code = error.code()
    text = error.details() or code.name
    if NO_LEADER in text:
        return NoLeader(text)
    if code is grpc.StatusCode.UNAVAILABLE:
        return Unreachable(
            f"the manager on this node does not answer: {text}", remedy="see `swarmvisor status` for what it is doing"
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return TimedOut("the manager did not answer in time", remedy="the request may still have been carried out")
    if code is grpc.StatusCode.NOT_FOUND:
        return NotFound(text)
    return Refused(text) if code in _REFUSALS else SwarmvisorError(text)


def _no_manager(paths: Paths) -> Unreachable:
    """Why no manager can be asked here, by what this node is."""
    on_disk = certificate.read(paths)
    if on_disk is not None and on_disk.role == "worker":
        return Unreachable(
            "this node is a worker, and only managers know the swarm",
            remedy=f"use the command on a manager (`swarmvisor node promote {on_disk.node_id}` there makes this one)",
        )
    return Unreachable("no manager runs on this node", remedy="run `swarmvisor up`; if it is up, `swarmvisor status`")


@contextmanager
def connect(paths: Paths) -> Iterator[Control]:
    """The control API of this node's manager. Raises Unreachable, in words, where there is none."""
    if not paths.node_toml.exists():
        raise Unreachable(f"this host is not a node ({paths.state} has no node.toml)", remedy=NO_NODE)
    try:
        root = paths.root_cert.read_bytes()
    except FileNotFoundError:
        raise Unreachable("this node has no certificate yet", remedy="see `swarmvisor status`") from None
    if not paths.control_socket.exists():
        raise _no_manager(paths)
    channel = dial.control_channel_sync(paths, root)
    try:
        yield Control(channel)
    finally:
        channel.close()
