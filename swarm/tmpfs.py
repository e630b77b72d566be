"""Directories in memory, for what must never reach a disk (DESIGN §5, "Secrets directory")."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from swarm.errors import Refused
from swarm.paths import Paths

SHARED_MEMORY = Path("/dev/shm")
_IN_MEMORY = ("tmpfs", "ramfs")
_OCTAL = re.compile(r"\\([0-7]{3})")


def is_in_memory(path: Path, *, mountinfo: Path = Path("/proc/self/mountinfo")) -> bool:
    """Whether what is written under `path` stays in memory: the file system mounted nearest above it is a tmpfs."""
    path = path.resolve()
    nearest, kind = -1, ""
    for line in mountinfo.read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        mount = Path(_OCTAL.sub(lambda match: chr(int(match[1], 8)), fields.split()[4]))
        # the later of two mounts on one point hides the earlier
        if path.is_relative_to(mount) and len(mount.parts) >= nearest:
            nearest, kind = len(mount.parts), rest.split()[0]
    return kind in _IN_MEMORY


def tasks_in_memory(paths: Paths, candidates: Iterable[Path] | None = None) -> Path:
    """Where this node's tasks get files that must not reach a disk; the directory itself need not exist.

    Not below the node's own directories, which are closed to tasks. Raises Refused if there is no tmpfs.
    """
    # late: brings OpenSSL; only who has such files comes here
    import hashlib

    runtime = os.environ.get("XDG_RUNTIME_DIR")
    places = [SHARED_MEMORY, *([Path(runtime)] if runtime else [])] if candidates is None else list(candidates)
    digest = hashlib.sha256(os.fsencode(paths.state)).hexdigest()[:12]
    for place in places:
        if place.is_dir() and os.access(place, os.W_OK | os.X_OK) and is_in_memory(place):
            return place / f"swarmvisor-tasks-{os.geteuid()}-{digest}"
    raise Refused(
        f"there is no file system in memory for tasks' secrets (looked at {', '.join(map(str, places))})",
        remedy=f"mount a tmpfs on {SHARED_MEMORY}",
    )
