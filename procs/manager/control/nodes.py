"""Nodes (reference manager §5.2, §4.2, §4.3)."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from procs.manager.ca.reenrol import side_key
from procs.manager.control.filters import labels_match, one_of, starts_with
from procs.manager.control.ports import Ports, copied
from procs.manager.members import quorum_without
from procs.manager.status import Status, failed_precondition, invalid_argument, not_found
from procs.manager.store import Tx, by
from swarm.api import control_pb2, raft_pb2
from swarm.api.objects_pb2 import Cluster, Node, Task
from swarm.api.specs_pb2 import NodeSpec
from swarm.api.types_pb2 import COMPLETE, MANAGER, ORPHANED, WORKER, ManagerStatus, NodeStatus
from swarm.errors import BadInput
from swarm.pki.certificate import parse_bundle

# ruff: noqa: N802, ARG002  (gRPC's method names and arguments)

DEFAULT_CLUSTER = "default"
BLACKLIST_GRACE_SECONDS = 7 * 24 * 3600
"""A removed node's certificate stays listed this long after it expired."""


class NodeMethods(Ports):
    """GetNode, ListNodes, UpdateNode, RemoveNode."""

    async def GetNode(self, request: control_pb2.GetNodeRequest, context: Any) -> control_pb2.GetNodeResponse:
        if not request.node_id:
            raise invalid_argument()
        node = self._store.get(Node, request.node_id)
        if node is None:
            raise not_found(f"node {request.node_id} not found")
        return control_pb2.GetNodeResponse(node=self._with_status(node, self._managers()))

    async def ListNodes(self, request: control_pb2.ListNodesRequest, context: Any) -> control_pb2.ListNodesResponse:
        managers = self._managers()
        nodes = [node for node in self._store.find(Node) if _listed(node, request.filters)]
        return control_pb2.ListNodesResponse(nodes=[self._with_status(node, managers) for node in nodes])

    async def UpdateNode(self, request: control_pb2.UpdateNodeRequest, context: Any) -> control_pb2.UpdateNodeResponse:
        if not request.node_id or not request.HasField("node_version") or not request.HasField("spec"):
            raise invalid_argument()

        def write(tx: Tx) -> Node:
            stored = tx.get(Node, request.node_id)
            if stored is None:
                raise not_found(f"node {request.node_id} not found")
            self._check_role_change(tx, stored, request.spec)
            node = copied(stored)
            node.meta.version.CopyFrom(request.node_version)
            node.spec.CopyFrom(request.spec)
            tx.update(node)
            return node

        node = await self._store.update(write, cause=f"UpdateNode {request.node_id}")
        return control_pb2.UpdateNodeResponse(node=node)

    async def RemoveNode(self, request: control_pb2.RemoveNodeRequest, context: Any) -> control_pb2.RemoveNodeResponse:
        if not request.node_id:
            raise invalid_argument()
        await self._store.update(
            lambda tx: self._remove(tx, request.node_id, request.force), cause=f"RemoveNode {request.node_id}"
        )
        return control_pb2.RemoveNodeResponse()

    def _check_role_change(self, tx: Tx, stored: Node, wanted: NodeSpec) -> None:
        if stored.spec.desired_role == MANAGER and wanted.desired_role == WORKER:
            self._check_demotion(tx, stored)
        if stored.spec.desired_role == WORKER and wanted.desired_role == MANAGER and not self._may_grow:
            raise failed_precondition(
                f"node {stored.id} cannot be promoted: this swarm keeps its state in a SQLite file, which has exactly "
                "one manager. Leave the node a worker; a store for several managers is not in this release"
            )

    def _check_demotion(self, tx: Tx, stored: Node) -> None:
        """The reference's order and texts, each with its numbers and what to do (reference manager §4.2)."""
        if [node.id for node in tx.find(Node, by.role(MANAGER))] == [stored.id]:
            raise failed_precondition(
                f"attempting to demote the last manager of the swarm: {stored.id} is 1 of 1; promote another node first"
            )
        managers = self._managers()
        if stored.id not in managers:
            raise not_found(
                f"can't find manager in raft memberlist: {stored.id} is none of its {len(managers)} members; "
                "a promotion can be taken back only once the node has joined the managers: see `swarmvisor node ls`"
            )
        quorum = quorum_without(stored.id, list(managers.values()))
        if not quorum.kept:
            raise failed_precondition(
                f"can't remove member from the raft: this would result in a loss of quorum: {quorum.words}"
            )

    def _remove(self, tx: Tx, node_id: str, force: bool) -> None:
        node = tx.get(Node, node_id)
        if node is None:
            raise not_found(f"node {node_id} not found")
        if node.spec.desired_role == MANAGER and node_id in self._managers():
            raise failed_precondition(
                f"node {node_id} is a cluster manager and is a member of the raft cluster. "
                "It must be demoted to worker before removal"
            )
        if not force and node.status.state == NodeStatus.READY:
            raise failed_precondition(f"node {node_id} is not down and can't be removed")
        clusters = tx.find(Cluster, by.name(DEFAULT_CLUSTER))
        if len(clusters) != 1:
            raise Status(grpc.StatusCode.INTERNAL, "could not fetch cluster object")
        now = self._now()
        cluster = copied(clusters[0])
        _blacklist(cluster, node)
        drop_expired(cluster, now.seconds)
        tx.update(cluster)
        for stored in tx.find(Task, by.node(node_id)):
            if stored.status.state < COMPLETE:
                task = copied(stored)
                task.status.Clear()
                task.status.timestamp.CopyFrom(now)
                task.status.state = ORPHANED
                task.status.message = "Task belonged to a node that has been deleted"
                tx.update(task)
        tx.delete(Node, node_id)
        tx.delete_side(side_key(node_id))

    def _managers(self) -> dict[str, raft_pb2.RaftMember]:
        return {member.node_id: member for member in self._members.members()}

    def _with_status(self, node: Node, managers: dict[str, raft_pb2.RaftMember]) -> Node:
        """A copy that says how the node does as a manager, if it is one; that is never stored."""
        shown = copied(node)
        shown.ClearField("manager_status")
        member = managers.get(node.id)
        if member is not None:
            shown.manager_status.CopyFrom(
                ManagerStatus(
                    raft_id=member.raft_id,
                    addr=member.addr,
                    leader=member.status.leader,
                    reachability=member.status.reachability,
                )
            )
        return shown


def drop_expired(cluster: Cluster, now: int) -> None:
    """Forget removed nodes whose certificate expired more than the grace period before `now` (Unix seconds)."""
    listed = cluster.blacklisted_certificates
    for name in [
        name
        for name, entry in listed.items()
        if entry.HasField("expiry") and entry.expiry.seconds + BLACKLIST_GRACE_SECONDS < now
    ]:
        del listed[name]


def _blacklist(cluster: Cluster, node: Node) -> None:
    """List the node's certificate as removed, until it expires if that can be told."""
    entry = cluster.blacklisted_certificates[node.id]
    entry.Clear()
    try:
        chain = parse_bundle(node.certificate.certificate)
    except BadInput:  # SwarmKit too lists what it cannot read, then for ever
        return
    if chain:
        entry.expiry.CopyFrom(Timestamp(seconds=chain[0].not_after))


def _listed(node: Node, filters: control_pb2.ListNodesRequest.Filters) -> bool:
    has_name = node.HasField("description")
    name = node.description.hostname
    return (
        (not filters.names or (has_name and name in filters.names))
        and (not filters.name_prefixes or (has_name and starts_with(filters.name_prefixes, name)))
        and starts_with(filters.id_prefixes, node.id)
        and labels_match(filters.labels, node.description.engine.labels)
        and labels_match(filters.node_labels, node.spec.annotations.labels)
        and one_of(filters.roles, node.role)
        and one_of(filters.memberships, node.spec.membership)
    )
