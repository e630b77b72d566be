"""A host that has no file system in memory: root mounts one, and unmounts it when nothing needs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from swarm.tmpfs import is_in_memory


@pytest.mark.timeout(180)
def test_without_any_memory_the_node_mounts_its_own_and_unmounts_it_in_the_end(short_dir: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("a mount namespace needs root")
    if is_in_memory(short_dir):
        pytest.skip(f"{short_dir} is in memory itself: this host cannot be made to look like one without")
    tried = subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no mount namespace can be made here: {tried.stderr}")
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", sys.executable, "-m", "tests.integration.memory_host", short_dir],
        check=False,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert (done.returncode, done.stdout) == (0, "held\n"), done.stdout + done.stderr
