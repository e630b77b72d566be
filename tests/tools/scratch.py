"""Directories for tests that run nodes: short enough for Unix sockets, and no cgroup of theirs may stay behind."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from procs.workload.cgroup import parse_mounts, subtree_name


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory under /tmp; afterwards it is gone, and so must be every cgroup that a node in it made."""
    path = Path(tempfile.mkdtemp(prefix="sv", dir="/tmp"))
    try:
        yield path
        left = cgroups_of([path, *(entry for entry in path.iterdir() if entry.is_dir())])
        assert not left, f"cgroups left behind: {left}"
    finally:
        shutil.rmtree(path, ignore_errors=True)


def cgroups_of(states: list[Path]) -> list[Path]:
    """The cgroups that nodes with these state directories have anywhere in the cgroup file systems."""
    names = {subtree_name(state) for state in states}
    points = {mount.point for mount in parse_mounts(Path("/proc/self/mountinfo").read_text())}
    return [found for point in points for name in names for found in point.rglob(name)]
