"""Directories in memory, for what must never reach a disk (DESIGN §5, "Secrets directory")."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Iterable
from pathlib import Path

from swarm.errors import Refused
from swarm.paths import Paths

SHARED_MEMORY = Path("/dev/shm")
SIZE = 64 * 1024 * 1024
"""Bytes that one mounted by us may hold."""
_MOUNT_FLAGS = 2 | 4 | 8  # nosuid, nodev, noexec
_UMOUNT_NOFOLLOW = 8
_SOURCE = "swarmvisor"
"""What a mount of ours calls itself."""
_MOUNTINFO = Path("/proc/self/mountinfo")
_IN_MEMORY = ("tmpfs", "ramfs")
_OCTAL = re.compile(r"\\([0-7]{3})")


def is_in_memory(path: Path, *, mountinfo: Path = _MOUNTINFO) -> bool:
    """Whether what is written under `path` stays in memory: the file system mounted nearest above it is a tmpfs."""
    return _nearest_mount(path, mountinfo)[0] in _IN_MEMORY


def _nearest_mount(path: Path, mountinfo: Path = _MOUNTINFO) -> tuple[str, str]:
    """Type and source of the file system that `path` is on."""
    path = path.resolve()
    nearest, found = -1, ("", "")
    for line in mountinfo.read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        mount = Path(_OCTAL.sub(lambda match: chr(int(match[1], 8)), fields.split()[4]))
        # the later of two mounts on one point hides the earlier
        if path.is_relative_to(mount) and len(mount.parts) >= nearest:
            kind, source = rest.split()[:2]
            nearest, found = len(mount.parts), (kind, source)
    return found


def tasks_in_memory(paths: Paths, candidates: Iterable[Path] | None = None, *, mount: bool = False) -> Path:
    """Where this node's tasks get files that must not reach a disk; the directory itself need not exist.

    Not below the node's own directories, which are closed to tasks. With `mount`, root gets a place of its own where
    there is none. Raises Refused if there is no tmpfs.
    """
    # late: brings OpenSSL; only who has such files comes here
    import hashlib

    runtime = os.environ.get("XDG_RUNTIME_DIR")
    places = [SHARED_MEMORY, *([Path(runtime)] if runtime else [])] if candidates is None else list(candidates)
    digest = hashlib.sha256(os.fsencode(paths.state)).hexdigest()[:12]
    place = find_memory(places, paths.tasks_mount, "tasks' secrets", mode=0o711 if mount else None)
    return place / f"swarmvisor-tasks-{os.geteuid()}-{digest}"


def find_memory(places: Iterable[Path], own: Path, purpose: str, *, mode: int | None = None) -> Path:
    """The first of `places` that is in memory and writable; `own` before them all once something is mounted there.

    With a `mode`, root mounts one on `own` where there is none. Raises Refused, naming `purpose` and `places`.
    """
    tried = list(places)
    for place in (*([own] if os.path.ismount(own) else []), *tried):
        if place.is_dir() and os.access(place, os.W_OK | os.X_OK) and is_in_memory(place):
            return place
    why = ""
    if mode is not None and os.geteuid() == 0:
        try:
            _mount(own, mode)
        except OSError as error:
            why = f", and none can be mounted on {own}: {error.strerror}"
        else:
            return own
    raise Refused(
        f"there is no file system in memory for {purpose} (looked at {', '.join(map(str, tried))}){why}",
        remedy=f"mount a tmpfs on {SHARED_MEMORY}",
    )


def release(own: Path) -> None:
    """Unmount what `find_memory` mounted on `own`, if nothing is in it any more. Raises OSError if that fails."""
    if not os.path.ismount(own) or _nearest_mount(own)[1] != _SOURCE or any(own.iterdir()):
        return
    try:
        _libc("umount2", os.fsencode(own), _UMOUNT_NOFOLLOW)
    except OSError as error:
        if error.errno != errno.EBUSY:  # somebody is about to write there: it stays
            raise
    else:
        own.rmdir()


def _mount(own: Path, mode: int) -> None:
    """Mount a small tmpfs on `own`, which is made; nothing if another process was faster. Raises OSError."""
    own.mkdir(mode=0o700, exist_ok=True)
    below = os.open(own, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(below, fcntl.LOCK_EX)  # of what is under the mount: who comes later sees the mount
        if not os.path.ismount(own):
            options = f"mode={mode:04o},size={SIZE}".encode()
            _libc("mount", _SOURCE.encode(), os.fsencode(own), b"tmpfs", _MOUNT_FLAGS, options)
    finally:
        os.close(below)


def _libc(function: str, *arguments: bytes | int) -> None:
    # late: only hosts without a tmpfs need it
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    words = [ctypes.c_ulong(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in arguments]
    if getattr(libc, function)(*words) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
