"""The unlock key of an autolocked manager while the node runs: `unlock.json`, in memory only (DESIGN §5).

It holds the key in use and, while it is being replaced, the next one: write {current, next}, rewrite the key file,
write {next}. So whoever is killed in between leaves a file in which one of the two opens the key file.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarm.errors import CorruptFile, Refused
from swarm.files import remove_durably, write_atomic
from swarm.paths import Paths
from swarm.tmpfs import SHARED_MEMORY, find_memory, release

if TYPE_CHECKING:
    from swarm.pki.keyfile import Kek

_NAME = "unlock.json"


def secrets_directory(paths: Paths, *, create: bool = False) -> Path:
    """A directory in memory that is this node's alone; with `create` it is made, for root together with a mount where
    there is no memory. Raises Refused if there is none, or somebody else made it."""
    digest = hashlib.sha256(os.fsencode(paths.state)).hexdigest()[:12]
    own = f"swarmvisor-secrets-{os.geteuid()}-{digest}"
    session = os.environ.get("XDG_RUNTIME_DIR")
    places = [paths.runtime, *([Path(session)] if session else []), SHARED_MEMORY]
    place = find_memory(places, paths.secrets_mount, "the unlock key", mode=0o700 if create else None)
    found = place / own
    if create:
        found.mkdir(mode=0o700, exist_ok=True)
    if found.exists():
        status = found.lstat()
        if status.st_uid != os.geteuid() or status.st_mode & 0o077 or not found.is_dir() or found.is_symlink():
            raise Refused(f"{found} is not this node's own (owner or mode)", remedy="remove it")
    return found


def read_unlock_keys(paths: Paths) -> list[Kek]:
    """The keys at hand, the one in use first; none if the node is locked, or not autolocked. Raises CorruptFile."""
    try:
        file = secrets_directory(paths) / _NAME
        table = json.loads(file.read_bytes())
    except (FileNotFoundError, Refused):
        return []
    except (ValueError, RecursionError) as error:
        raise CorruptFile(file, "not JSON", remedy="remove it, then run `swarmvisor unlock`") from error
    try:
        return [_parse(table[name]) for name in ("current", "next") if table.get(name)]
    except (KeyError, TypeError, AttributeError, ValueError, binascii.Error) as error:
        raise CorruptFile(file, "holds no keys", remedy="remove it, then run `swarmvisor unlock`") from error


def write_unlock_keys(paths: Paths, current: Kek, following: Kek | None = None) -> None:
    """Keep these. Raises Refused where there is no memory for them."""
    table: dict[str, Any] = {"current": _format(current)}
    if following is not None:
        table["next"] = _format(following)
    write_atomic(secrets_directory(paths, create=True) / _NAME, json.dumps(table).encode(), mode=0o600)


def forget_unlock_keys(paths: Paths) -> None:
    """Nothing is locked any more, or the node leaves."""
    try:
        directory = secrets_directory(paths)
    except Refused:
        return
    if directory.exists():
        remove_durably(directory / _NAME)
        with contextlib.suppress(OSError):  # somebody is writing there again: it stays
            directory.rmdir()
    release(paths.secrets_mount)


def raw(keks: Iterable[Kek]) -> list[bytes]:
    """The keys themselves, without those that say "not locked"."""
    return [kek.key for kek in keks if kek.key]


def _format(kek: Kek) -> dict[str, Any]:
    return {"version": kek.version, "key": base64.b64encode(kek.key).decode("ascii")}


def _parse(row: Any) -> Kek:
    from swarm.pki.keyfile import Kek  # late: cryptography, which the command line loads only for a key

    return Kek(base64.b64decode(row["key"], validate=True), int(row["version"]))
