"""What lies on disk at start, and what follows: load it, join, make a new swarm, or refuse. Pure.

    root, key and certificate there            load
    one is missing, and
      there is a store (`manager/`)            refuse, naming what is missing
      other managers are known (`state.json`)  refuse, naming what is missing
      node.toml names a manager to join        join (again, from where it was)
      an operator's root key without its root  refuse
      otherwise                                bootstrap (again, from the start)

Sources: reference/node-and-ca §1.4; DESIGN §4 (erasing), §5 (the first root key).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Choice(Enum):
    """What to do at start."""

    LOAD = "load"
    BOOTSTRAP = "bootstrap"
    JOIN = "join"
    REFUSE = "refuse"


@dataclass(frozen=True)
class Inventory:
    """What is there."""

    root: bool
    key: bool
    certificate: bool
    """In place or as the first phase of a write."""
    bootstrap_key: bool = False
    operator_key: bool = False
    store: bool = False
    peers: bool = False
    """`state.json` knows managers."""
    join_addr: str = ""

    @property
    def missing(self) -> list[str]:
        """Names of the files that a node needs and that are not there."""
        named = {"swarm-root-ca.crt": self.root, "swarm-node.key": self.key, "swarm-node.crt": self.certificate}
        return [name for name, there in named.items() if not there]


def choose(found: Inventory) -> tuple[Choice, str]:
    """The choice, and for a refusal why and what to do."""
    if not found.missing:
        return Choice.LOAD, ""
    missing = ", ".join(found.missing)
    restore = "restore from a backup, or `swarmvisor leave --force` to give this node up"
    if found.store:
        return Choice.REFUSE, f"this node has a store (manager/), but certificates/ lacks {missing}; {restore}"
    if found.peers:
        return Choice.REFUSE, f"this node belongs to a swarm (state.json), but certificates/ lacks {missing}; {restore}"
    if found.join_addr:
        # Once a session has told the managers, they are the address to join at no longer (reference §11.1.6).
        return Choice.JOIN, ""
    if found.operator_key and not found.root:
        return Choice.REFUSE, "certificates/swarm-root-ca.key is there without swarm-root-ca.crt; put both or neither"
    return Choice.BOOTSTRAP, ""


def lost_swarm(found: Inventory, role: str) -> str:
    """Why a loaded certificate must not be used after all; empty: it may.

    A manager's certificate without store, root key and known managers: its swarm is lost, and a manager that started
    anew would silently be another swarm under the old name.
    """
    if role != "manager" or found.bootstrap_key or found.operator_key or found.store or found.peers or found.join_addr:
        return ""
    return (
        "this node is a manager, but its store (manager/), the root's key and every other manager are gone; "
        "restore manager/ from a backup, or `swarmvisor leave --force`, then `swarmvisor init`"
    )
