"""SIGKILL at every step of every write in `certificates/`: a loadable pair and a usable root key are always left."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCENARIOS = {
    "founding": {"bootstrap", "bootstrap over an old pair", "bootstrap with an operator's root"},
    "changing": {
        "replacement by a manager certificate",
        "replacement by a worker certificate",
        "headers",
        "unlock key",
        "root",
    },
    "joining": {"the answer of the swarm", "the first certificate"},
}


@pytest.mark.parametrize("group", list(SCENARIOS))
def test_killed_at_any_step_of_any_write_leaves_a_usable_node(group: str) -> None:
    script = Path(__file__).with_name("renewer_crashes.py")
    done = subprocess.run(
        [sys.executable, str(script), group],
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
        cwd=script.parents[2],
    )
    assert done.returncode == 0, done.stderr
    steps = json.loads(done.stdout)
    assert set(steps) == SCENARIOS[group]
    # one atomic write alone has five operations and a write that can be cut: killed before and after each
    assert all(count >= 10 for count in steps.values()), steps
