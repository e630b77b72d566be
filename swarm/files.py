"""Files that must survive a crash: write new, fsync, rename, fsync directory (DESIGN §5)."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def fsync_directory(path: Path) -> None:
    """Make renames and unlinks in `path` durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace `path` with `data`: a reader or a crash sees the old content or the new, never a part.

    The temporary file is made in the same directory as `.tmp-<name><random>` (SwarmKit's naming, reference
    node-and-ca §0.2) with `mode` from birth.
    """
    fd, temporary = tempfile.mkstemp(prefix=f".tmp-{path.name}", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as out:
            os.fchmod(out.fileno(), mode)
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    fsync_directory(path.parent)


def remove_durably(path: Path) -> None:
    """Remove `path` if it is there, durably."""
    path.unlink(missing_ok=True)
    fsync_directory(path.parent)
