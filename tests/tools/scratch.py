"""Directories for tests that run nodes: short enough for Unix sockets, and no cgroup of theirs may stay behind."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from procs.workload.cgroup import parse_mounts, subtree_name
from swarm.paths import Paths
from swarm.unlock import forget_unlock_keys


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory under /tmp; afterwards it is gone, and so must be every cgroup that a node in it made."""
    path = Path(tempfile.mkdtemp(prefix="sv", dir="/tmp"))
    try:
        yield path
        left = cgroups_of(states_in(path))
        assert not left, f"cgroups left behind: {left}"
    finally:
        for state in states_in(path):
            # as a reboot would: a locked node's key lies in memory, outside of its directories
            forget_unlock_keys(Paths(state=state, runtime=state))
        shutil.rmtree(path, ignore_errors=True)


def states_in(path: Path) -> list[Path]:
    """The directories that may be a node's state directory."""
    return [path, *(entry for entry in path.iterdir() if entry.is_dir())]


def cgroups_of(states: list[Path]) -> list[Path]:
    """The cgroups that nodes with these state directories have anywhere in the cgroup file systems."""
    names = {subtree_name(state) for state in states}
    points = {mount.point for mount in parse_mounts(Path("/proc/self/mountinfo").read_text())}
    # os.walk, unlike rglob, does not mind what goes while it looks: other tests' nodes have cgroups here too
    places = (Path(place, name) for point in points for place, inside, _ in os.walk(point) for name in inside)
    return [place for place in places if place.name in names]
