"""Making this node the only manager of its swarm (`swarmvisor init --force-new-cluster`).

For a swarm whose other managers are lost, and for a store that was restored from a copy. The command leaves an order
beside the store (`Paths.forced`); the next start of the manager carries it out before it serves anybody, and then
removes it. Killed in between it begins again: each step may be done twice.

1. The store is opened with a leap of its clock, so that nothing that others wrote meanwhile passes for newer; an
   engine with members of its own opens as the only one (`Store.open`).
2. In one transaction this node is made a manager, and every other manager a worker.
3. The order is removed.

Services, tasks, secrets, nodes, the root and the ids stay. SwarmKit leaves the objects of the other managers as they
are, and those must join anew under another id (reference manager §3.7); here the guard believes none of them any more,
and one that is found again is given a worker's certificate, keeps its id, and may be promoted.
"""

from __future__ import annotations

import logging

from procs.manager.store import Store, Tx
from swarm.api import objects_pb2, specs_pb2
from swarm.api.types_pb2 import MANAGER, WORKER, NodeRole
from swarm.files import remove_durably
from swarm.paths import Paths

_log = logging.getLogger(__name__)


def is_ordered(paths: Paths) -> bool:
    """Whether the next start has to do it."""
    return paths.forced.exists()


async def carry_out(store: Store, paths: Paths, node_id: str) -> None:
    """Steps 2 and 3, on a store that holds this node's own object. Raises what the store raises."""
    if not is_ordered(paths):
        return
    demoted = await store.update(lambda tx: make_sole(tx, node_id), cause="force-new-cluster")
    remove_durably(paths.forced)
    others = f"; workers now: {', '.join(demoted)}" if demoted else ""
    _log.warning("forced: this node is the only manager of its swarm, from index %d on%s", store.index, others)


def make_sole(tx: Tx, node_id: str) -> list[str]:
    """Make `node_id` a manager, and every other manager a worker. Returns the ids of those."""
    demoted = []
    for node in tx.find(objects_pb2.Node):
        mine = node.id == node_id
        role: NodeRole.ValueType = MANAGER if mine else WORKER
        if node.role == node.spec.desired_role == role and not (mine and _is_out(node)):
            continue
        changed = objects_pb2.Node()
        changed.CopyFrom(node)
        changed.role = changed.spec.desired_role = role
        if mine:
            changed.spec.membership = specs_pb2.NodeSpec.ACCEPTED
        else:
            demoted.append(node.id)
        tx.update(changed)
    return demoted


def _is_out(node: objects_pb2.Node) -> bool:
    return node.spec.membership != specs_pb2.NodeSpec.ACCEPTED
