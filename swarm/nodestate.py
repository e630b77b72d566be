"""`node-state.json`: how the node stood last, kept on disk by the coordinator for `status` (reference/node-and-ca §1.2,
Ready and Err).

Written when the node becomes ready, locked or failed, and when its cause changes then; read by the command line while
no process is there to ask, and by the coordinator itself at its start, for `foreign`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from swarm.errors import CorruptFile
from swarm.files import write_atomic

KEPT = ("ready", "locked", "failed")
"""States that are worth remembering; the others pass."""


@dataclass(frozen=True)
class NodeState:
    """What the coordinator said, and when."""

    state: str
    cause: str = ""
    node_id: str = ""
    at: int = 0
    """Unix seconds."""
    vxlan_port: int = 0
    """UDP port of the swarm's overlay networks as the node object names it; 0: not told."""
    foreign: bool = False
    """The swarm's managers are Docker's: this node never runs one, whatever its certificate says."""


def save_node_state(path: Path, state: NodeState) -> None:
    """Write it, 0600."""
    write_atomic(path, json.dumps(asdict(state)).encode(), mode=0o600)


def load_node_state(path: Path) -> NodeState | None:
    """What `path` says, None if there is none. Raises CorruptFile."""
    try:
        said: Any = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise CorruptFile(path, f"not JSON: {error}", remedy="remove it: it only says how the node stood") from error
    if not isinstance(said, dict) or not isinstance(said.get("state"), str):
        raise CorruptFile(path, "says no state", remedy="remove it: it only says how the node stood")

    def text(name: str) -> str:
        value = said.get(name, "")
        return value if isinstance(value, str) else ""

    def number(name: str) -> int:
        value = said.get(name, 0)
        return value if isinstance(value, int) else 0

    return NodeState(
        said["state"], text("cause"), text("node_id"), number("at"), number("vxlan_port"), said.get("foreign") is True
    )
