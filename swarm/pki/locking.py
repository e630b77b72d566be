"""Putting the node's key file under another unlock key: body, headers and `unlock.json`, so that a kill anywhere leaves
a node that opens (DESIGN §5, reference/node-and-ca §4.5)."""

from __future__ import annotations

from swarm.errors import Refused
from swarm.paths import Paths
from swarm.pki.dek import reseal
from swarm.pki.keyfile import Headers, Kek, KeyFile
from swarm.unlock import forget_unlock_keys, raw, read_unlock_keys, write_unlock_keys


def must_change(present: Kek, wanted: Kek) -> bool:
    """compareKEKs: whether `wanted` takes the place of `present`. Raises Refused for two keys of one version."""
    if present.key == wanted.key or wanted.version < present.version:
        return False
    if wanted.version == present.version:
        raise Refused("candidate KEK has the same version as the current KEK, but a different KEK value")
    return True


def change_unlock_key(paths: Paths, wanted: Kek, *, fips: bool = False) -> tuple[bool, bool]:
    """(changed, it was unlocked and is locked now). Blocks for the key file's lock. Raises Locked, Refused,
    CorruptFile; the old key then still opens everything."""
    file = KeyFile.of(paths)
    at_hand = read_unlock_keys(paths)
    present = file.read(*raw(at_hand)).kek
    if not must_change(present, wanted):
        return False, False
    if present.key or wanted.key:
        write_unlock_keys(paths, present, wanted)

    def change(kek: Kek, headers: Headers) -> tuple[Kek, Headers]:
        return wanted, reseal(headers, kek.key, wanted.key, fips=fips)

    file.rotate(change, *raw(at_hand))
    settle(paths, wanted)
    return True, bool(wanted.key) and not present.key


def settle(paths: Paths, kek: Kek) -> None:
    """`kek` is what the key file is under now."""
    if kek.key:
        write_unlock_keys(paths, kek)
    else:
        forget_unlock_keys(paths)
