"""What happens to a node's certificate record. Pure: objects in, new versions out (reference node-and-ca §5.5, §5.6).

state     set by                 who moves it on
PENDING   join with a token      the signer, once the node is accepted → ISSUED or FAILED; `err`: why not yet
RENEW     authenticated renewal  the signer → ISSUED or FAILED; `err`: why not yet
ISSUED    signer; own node       a renewal → RENEW
FAILED    signer (final error)   a renewal → RENEW
ROTATE    root rotation          a renewal → RENEW
"""

from __future__ import annotations

from swarm.api import objects_pb2, specs_pb2, types_pb2

State = types_pb2.IssuanceStatus

FINAL = frozenset({State.ISSUED, State.FAILED, State.ROTATE})
"""States in which a request for the status is answered at once."""

_UNSIGNED = frozenset({State.PENDING, State.RENEW})


def wants_signature(node: objects_pb2.Node) -> bool:
    """Whether the signer has to act on the node."""
    state = node.certificate.status.state
    accepted = node.spec.membership == specs_pb2.NodeSpec.ACCEPTED
    return state == State.RENEW or (state == State.PENDING and accepted)


def joining(
    node_id: str,
    role: types_pb2.NodeRole.ValueType,
    csr: bytes,
    availability: specs_pb2.NodeSpec.Availability.ValueType,
    vxlan_port: int,
) -> objects_pb2.Node:
    """The node object of a joiner whose token admits it as `role`."""
    node = objects_pb2.Node(id=node_id, role=role, VXLANUDPPort=vxlan_port)
    node.spec.desired_role = role
    node.spec.membership = specs_pb2.NodeSpec.ACCEPTED
    node.spec.availability = availability
    node.certificate.CopyFrom(_request(node_id, role, csr, State.PENDING))
    return node


def renewing(node: objects_pb2.Node, csr: bytes) -> objects_pb2.Node:
    """The node asking for a new certificate: for the role it is observed to have, not the one desired."""
    changed = objects_pb2.Node()
    changed.CopyFrom(node)
    changed.certificate.CopyFrom(_request(node.id, node.role, csr, State.RENEW))
    return changed


def issued(node: objects_pb2.Node, csr: bytes, certificate: bytes) -> objects_pb2.Node | None:
    """The node with its certificate; None if it asks for another one by now: this one fits no key of it (§11.1.15)."""
    if node.certificate.csr != csr or node.certificate.status.state not in _UNSIGNED:
        return None
    changed = objects_pb2.Node()
    changed.CopyFrom(node)
    changed.certificate.certificate = certificate
    changed.certificate.status.state = State.ISSUED
    changed.certificate.status.err = ""
    return changed


def failed(node: objects_pb2.Node, csr: bytes, why: str) -> objects_pb2.Node | None:
    """The node with a request that will never be signed; None if it asks for something else by now."""
    if node.certificate.csr != csr or node.certificate.status.state not in _UNSIGNED:
        return None
    changed = objects_pb2.Node()
    changed.CopyFrom(node)
    changed.certificate.status.state = State.FAILED
    changed.certificate.status.err = why
    return changed


def delayed(node: objects_pb2.Node, csr: bytes, why: str) -> objects_pb2.Node | None:
    """The node with a request that cannot be signed for now; None if that is known, or it asks for something else by
    now. The state stays, so SwarmKit's nodes go on waiting; ours tell their operator."""
    record = node.certificate
    if record.csr != csr or record.status.state not in _UNSIGNED or record.status.err == why:
        return None
    changed = objects_pb2.Node()
    changed.CopyFrom(node)
    changed.certificate.status.err = why
    return changed


def _request(
    node_id: str, role: types_pb2.NodeRole.ValueType, csr: bytes, state: types_pb2.IssuanceStatus.State.ValueType
) -> types_pb2.Certificate:
    record = types_pb2.Certificate(role=role, csr=csr, cn=node_id)
    record.status.state = state
    return record
