"""What the files say that the renewer will say, so that the manager can start meanwhile.

The renewer needs half a second to load its libraries and to verify, or to make, the certificates; the manager takes as
long to load its own, and then waits for `certificate`. What is foreseen here only starts it early: the role that the
renewer tells of overrules it, by the same table.
"""

from __future__ import annotations

from ipc import topics
from swarm.nodeconfig import NodeConfig
from swarm.paths import Paths
from swarm.pki import pem
from swarm.remotes import Peer

_UNITS = {topics.MANAGER_ROLE: b"swarm-manager", topics.WORKER_ROLE: b"swarm-worker"}
"""The OU of a certificate, which is one of its DNS names too (reference/node-and-ca §3.3)."""


def foreseen_role(paths: Paths, config: NodeConfig, peers: list[Peer]) -> str:
    """`manager`, `worker`, or empty for what cannot be foreseen."""
    if paths.node_cert.exists():
        return _on_paper(paths.node_cert.read_bytes())
    # What the renewer asks before it founds a swarm, whose first manager this node then is (DESIGN §5).
    return "" if config.join_addr or peers or paths.manager.exists() else topics.MANAGER_ROLE


def _on_paper(certificate_pem: bytes) -> str:
    """The role that a certificate claims; it is not verified, nor even parsed."""
    leaf, _ = pem.decode(certificate_pem)
    found = [role for role, unit in _UNITS.items() if leaf is not None and unit in leaf.data]
    return found[0] if len(found) == 1 else ""
