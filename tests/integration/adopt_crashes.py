"""Kill `adopt` with SIGKILL before and after every file operation: there is no node then, or all of it.

Run by test_adopt_kill.py in a process of its own, for the reasons of renewer_crashes.py; prints the number of steps as
JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from procs.cli.adopt import install
from procs.cli.footprint import foreign_entries
from procs.cli.predecessor import Predecessor
from procs.renewer import files
from swarm.clock import SystemClock
from swarm.nodeconfig import NodeConfig, load_node_config
from swarm.paths import Paths
from swarm.pki.credentials import load_credentials
from swarm.remotes import Peer, load_peers
from tests.integration.renewer_crashes import every_step, instrument
from tests.tools.authority import Authority

CONFIG = NodeConfig(hostname="adopted")
MANAGERS = [Peer("m1", "192.0.2.1:2377")]


def adopting(directory: Path, base: Paths) -> int:
    """Steps of an adoption into a copy of `base`."""
    held = Authority().issue("worker")
    found = Predecessor(directory, held, MANAGERS)

    def adopt(paths: Paths) -> None:
        install(paths, CONFIG, found)

    def nothing_or_all(paths: Paths) -> None:
        if not paths.node_toml.exists():
            assert foreign_entries(paths) == []
            adopt(paths)
        assert not paths.adopting.exists()
        assert load_node_config(paths.node_toml) == CONFIG
        assert load_peers(paths.state_json) == MANAGERS
        assert load_credentials(paths) == held
        files.begin(paths, SystemClock())  # what the renewer does at its start
        assert load_credentials(paths) == held
        assert not list(paths.state.glob("**/.tmp-*"))

    return every_step(base, adopt, nothing_or_all)


def main() -> None:
    instrument()
    with tempfile.TemporaryDirectory() as directory:
        # what another adoption left when it was killed right before its end: that has to go first
        wreck = Paths(Path(directory, "wreck"), Path(directory))
        install(wreck, CONFIG, Predecessor(wreck.state, Authority().issue("worker"), MANAGERS))
        wreck.node_toml.rename(wreck.adopting)
        json.dump(adopting(Path(directory), wreck), sys.stdout)


if __name__ == "__main__":
    main()
