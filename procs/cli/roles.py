"""Waiting for a role change, and where it stands: from node objects (any node, as a manager sees it) and from what the
processes of this node say. `judge` and `judge_here` are pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from ipc import topics
from procs.cli import convergence
from procs.cli.control import Control
from procs.cli.convergence import Verdict
from procs.cli.observed import View, look
from procs.cli.rolestep import role_name, step
from swarm.api import objects_pb2, types_pb2
from swarm.errors import Unreachable
from swarm.paths import Paths

_WORKER = types_pb2.WORKER


def judge(node: objects_pb2.Node, nodes: Sequence[objects_pb2.Node], wanted: int) -> Verdict:
    """Whether `node` has the role `wanted` in every sense. Hopeless if somebody wants another one meanwhile."""
    if node.spec.desired_role != wanted:
        return Verdict(False, "", hopeless=f"its desired role is {role_name(node.spec.desired_role)} again")
    words = step(node, nodes)
    return Verdict(not words, words or f"is a {role_name(wanted)}")


def wait(control: Control, paths: Paths, node: objects_pb2.Node, wanted: int, *, self_id: str, timeout: float) -> None:
    """Until the node has its role. A node that demotes itself loses the manager it asks; then its own processes tell.

    Raises TimedOut with the step it stands at, Refused words of the manager, Unreachable.
    """
    name = node.description.hostname or node.id

    def look_there() -> Verdict:
        try:
            nodes = control.nodes()
        except Unreachable:
            if node.id != self_id or wanted != _WORKER:
                raise
            return judge_here(look(paths))
        found = [n for n in nodes if n.id == node.id]
        return judge(found[0], nodes, wanted) if found else Verdict(False, "", hopeless="it was removed")

    convergence.wait(
        look_there, what=f"node {name}", timeout=timeout, remedy="it goes on; look again with `swarmvisor node ls`"
    )


def judge_here(view: View) -> Verdict:
    """Whether this node has become a worker, from what its own processes say."""
    certificate = view.body("certificate", topics.Certificate)
    program = view.processes.get(topics.MANAGER)
    if certificate is None or certificate.role != topics.WORKER_ROLE:
        node = view.body("node", topics.Node)
        return Verdict(False, (node.step if node is not None else "") or "waiting for a worker's certificate")
    if program is not None and program.pid:
        return Verdict(False, f"waiting for the manager (process {program.pid}) to end")
    return Verdict(True, "is a worker")
