"""SIGKILL at every step of `adopt`: it can be run again, or is done."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_an_adoption_killed_at_any_step_is_not_begun_or_complete() -> None:
    repository = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.adopt_crashes"],
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
        cwd=repository,
    )
    assert done.returncode == 0, done.stderr
    # five files, each written atomically, after what is left over is gone
    assert json.loads(done.stdout) >= 70
