"""What a role change of a node waits for, in words, as far as a manager knows. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from swarm.api import objects_pb2, types_pb2

_MANAGER = types_pb2.MANAGER
_State = types_pb2.IssuanceStatus
_REACHABLE = types_pb2.RaftMemberStatus.REACHABLE


def role_name(role: int) -> str:
    """`worker` or `manager`."""
    return types_pb2.NodeRole.Name(role).lower()  # type: ignore[arg-type]


def step(node: objects_pb2.Node, nodes: Sequence[objects_pb2.Node] = ()) -> str:
    """What a role change of `node` waits for, as far as a manager knows; empty: nothing. `nodes`: all of them, for the
    numbers of a quorum."""
    wanted = node.spec.desired_role
    if node.role != wanted:
        if wanted == _MANAGER:
            return "waiting for the leader to take note of the promotion"
        return _removal(node, nodes)
    record = node.certificate
    state = record.status.state
    what = f"a certificate of role {role_name(wanted)}"
    if state == _State.FAILED:
        return f"the CA refused {what}: {record.status.err}"
    if state in (_State.RENEW, _State.PENDING) and record.role == wanted:
        return f"the node has asked for {what}; waiting for the CA's signature"
    if record.role != wanted:
        down = "" if node.status.state == types_pb2.NodeStatus.READY else f", which is {_state(node)},"
        return f"waiting for the node{down} to ask for {what}"
    if wanted == _MANAGER and not node.HasField("manager_status"):
        return f"{what} is issued; waiting for the node to join the managers"
    if wanted == _MANAGER and node.manager_status.reachability != _REACHABLE:
        return "it is one of the managers, but cannot be reached as one"
    return ""


def _removal(node: objects_pb2.Node, nodes: Sequence[objects_pb2.Node]) -> str:
    if not node.HasField("manager_status"):
        return "it is none of the managers any more; waiting for the leader to take note"
    rest = [n for n in nodes if n.HasField("manager_status") and n.id != node.id]
    reachable = sum(n.manager_status.reachability == _REACHABLE for n in rest)
    needed = len(rest) // 2 + 1
    if reachable < needed:
        return (
            f"it stays among the managers for now: of the {len(rest)} that would stay {reachable} can be reached, "
            f"and {needed} are needed"
        )
    return "waiting for the leader to take it out of the managers"


def _state(node: objects_pb2.Node) -> str:
    return types_pb2.NodeStatus.State.Name(node.status.state).lower()
