"""What in a state directory is ours."""

from __future__ import annotations

import fnmatch
import os
import shutil
from pathlib import Path

from swarm.files import fsync_directory, remove_durably
from swarm.paths import Paths

OURS = (
    "node.toml",
    ".adopting",
    "join-token",
    "certificates",
    "state.json",
    "node-state.json",
    "worker",
    "manager",
    "manager.erased-*",
    "logs",
    "tasks",
    ".lock.*",
    ".tmp-*",
)
"""Everything that a node makes (DESIGN §5), as patterns."""

HARMLESS = ("lost+found", "logs", ".lock.*", ".tmp-*", "certificates", "bundles")
"""What `init` may find and `leave` may leave: an empty file system, what processes without a node.toml and killed
commands leave, an operator's root key and bundles."""

_OPERATORS = ("swarm-root-ca.crt", "swarm-root-ca.key")


def foreign_entries(paths: Paths) -> list[str]:
    """Names in the state directory that keep a new node from being created there.

    What a killed `adopt` left does not: `discard_unfinished` removes it."""
    if not paths.state.exists():
        return []
    if paths.adopting.exists():
        unfinished = (paths.adopting.name, paths.state_json.name)
        return [n for n in sorted(os.listdir(paths.state)) if not _matches(n, (*HARMLESS, *unfinished))]
    found = [name for name in sorted(os.listdir(paths.state)) if not _matches(name, HARMLESS)]
    if paths.certificates.is_dir():
        found += [f"certificates/{name}" for name in sorted(os.listdir(paths.certificates)) if name not in _OPERATORS]
    return found


def discard_unfinished(paths: Paths) -> None:
    """Remove what commands that were killed before they wrote node.toml left. For who holds the command's lock, where
    there is no node."""
    for litter in paths.state.glob(".tmp-*"):
        remove_durably(litter)
    if paths.adopting.exists():
        # Last, so that this too may be killed: while it is there, all the rest is an adoption's.
        if paths.certificates.exists():
            shutil.rmtree(paths.certificates)
        for path in (paths.state_json, paths.adopting):
            remove_durably(path)


def left_overs(paths: Paths) -> list[Path]:
    """What is ours in the state directory; node.toml first: without it nothing starts on the rest."""
    if not paths.state.is_dir():
        return []
    ours = [path for path in paths.state.iterdir() if _matches(path.name, OURS)]
    return sorted(ours, key=lambda path: (path != paths.node_toml, path.name.startswith(".lock"), path.name))


def wipe(paths: Paths) -> list[str]:
    """Remove what is ours, and the directory if that leaves it empty; return the names that were left alone."""
    from swarm.unlock import forget_unlock_keys  # late: imports cryptography

    forget_unlock_keys(paths)
    for path in left_overs(paths):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        fsync_directory(paths.state)
    left = sorted(os.listdir(paths.state)) if paths.state.is_dir() else []
    if not left and paths.state.is_dir() and not os.path.ismount(paths.state):
        paths.state.rmdir()
    if paths.runtime.is_dir() and not any(paths.runtime.iterdir()):
        paths.runtime.rmdir()  # its last content was in memory (`Paths.secrets_mount`)
    return left


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
