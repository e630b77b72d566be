"""The store's data key: made with the first store, kept in the headers of the node's key file, and replaced.

    raft-dek                  the current one: opens what the store holds
    raft-dek-needs-rotation   set when the managers are locked: until then the current one lay on the disk in the clear
    raft-dek-pending          the next one, while both are needed

A replacement goes on from wherever it was killed (DESIGN §6, "Sealing"; reference node-and-ca §4.5):

1. The flag becomes a pending key, in one rename.
2. Once every manager holds it durably (where there is one: at once) the store seals with it; both open.
3. Whatever the store holds is written again, in small batches through the store's ordinary path, so under its fence.
4. The engine takes the values of before off its disk.
5. The pending key becomes the current one, in one rename, and the old one opens nothing any more.

A manager that starts in between seals with the current key again and goes on at 2.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from procs.manager.store import Store
from procs.manager.store.sealing import DATA_KEY_BYTES, SealedEngine, key_id, new_data_key
from swarm.backoff import Backoff, BackoffPolicy
from swarm.errors import BadInput, CorruptFile, Locked, SwarmvisorError
from swarm.paths import Paths
from swarm.pki.dek import CURRENT, NEEDS_ROTATION, PENDING, seal, unseal
from swarm.pki.keyfile import Headers, Kek, KeyFile
from swarm.unlock import raw, read_unlock_keys

BATCH = 100
BATCH_BYTES = 256 * 1024
"""What is written anew at once: it bounds how long the event loop is held, and how long other writes wait."""
RETRY = BackoffPolicy(base=1.0, factor=2.0, cap=60.0)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataKeys:
    """What the key file holds."""

    current: bytes = field(repr=False)
    pending: bytes | None = field(default=None, repr=False)


class KeyRing:
    """The data keys in the headers of the node's key file. Every method blocks for the file's lock."""

    def __init__(self, paths: Paths, *, fips: bool = False) -> None:
        self._paths = paths
        self._file = KeyFile.of(paths)
        self._fips = fips

    def read(self, *, store_exists: bool) -> DataKeys:
        """The keys; the first one is made for a new store.

        Raises CorruptFile if they cannot be used, or are missing while a store sealed with them exists; Locked.
        """
        pair = self._file.read(*self._unlock_keys())
        if CURRENT in pair.headers:
            return self._parse(pair.headers, pair.kek)
        if PENDING in pair.headers:
            raise CorruptFile(self._file.key, "there is a pending DEK, but no current DEK", remedy=_RESTORE)
        if store_exists:
            raise CorruptFile(
                self._file.key,
                f"has no {CURRENT} header, but {self._paths.manager} holds a store sealed with that key: this node was"
                " a worker since that store was written, or the file is not the one that belongs to it",
                remedy="restore the key file and the store together from a backup; without that key the store cannot be"
                " read: `swarmvisor leave --force` gives it up",
            )
        return self._change(lambda kek, headers: {CURRENT: self._seal(new_data_key(), kek), **headers})

    def begin(self) -> bytes | None:
        """The key to change to, made now if one is asked for; None: all is as it should be. Raises as `read`."""
        headers, _, _ = self._file.read_headers()
        if CURRENT not in headers or not (PENDING in headers or NEEDS_ROTATION in headers):
            return None
        if PENDING in headers:
            return self.read(store_exists=True).pending

        def add(kek: Kek, headers: Headers) -> Headers:
            kept = {name: value for name, value in headers.items() if name != NEEDS_ROTATION}
            return {PENDING: self._seal(new_data_key(), kek), **kept}

        return self._change(add).pending

    def finish(self) -> None:
        """The pending key is the current one. A rotation asked for meanwhile stays asked for. Raises as `read`."""

        def replace(_: Kek, headers: Headers) -> Headers:
            left = dict(headers)
            if PENDING in left:  # else this node became a worker a moment ago
                left[CURRENT] = left.pop(PENDING)
            return left

        self._change(replace)

    def _change(self, change: Callable[[Kek, Headers], Headers]) -> DataKeys:
        """Change the headers under whatever unlock key the file is under at that moment."""
        result: list[tuple[Headers, Kek]] = []

        def apply(kek: Kek, headers: Headers) -> tuple[Kek, Headers]:
            result.append((change(kek, headers), kek))
            return kek, result[-1][0]

        self._file.rotate(apply, *self._unlock_keys())
        return self._parse(*result[-1])

    def _unlock_keys(self) -> list[bytes]:
        return raw(read_unlock_keys(self._paths))

    def _seal(self, data_key: bytes, kek: Kek) -> str:
        return seal(data_key, kek.key, fips=self._fips)

    def _parse(self, headers: Headers, kek: Kek) -> DataKeys:
        pending = self._open(PENDING, headers[PENDING], kek) if PENDING in headers else None
        return DataKeys(self._open(CURRENT, headers[CURRENT], kek), pending)

    def _open(self, name: str, text: str, kek: Kek) -> bytes:
        path = self._file.key
        try:
            data = unseal(text, kek.key, fips=self._fips)
        except Locked as error:
            raise Locked(f"{path}: {error.message}", remedy=error.remedy) from error
        except BadInput as error:
            raise CorruptFile(path, f"its {name} header cannot be read: {error.message}", remedy=_RESTORE) from error
        if len(data) != DATA_KEY_BYTES:
            why = f"its {name} header holds {len(data)} bytes instead of {DATA_KEY_BYTES}"
            raise CorruptFile(path, why, remedy=_RESTORE)
        return data


class Rotation:
    """Replaces the data key when the key file asks for it. One at a time; the leader's, who alone may write."""

    def __init__(self, ring: KeyRing, engine: SealedEngine, store: Store) -> None:
        self._ring = ring
        self._engine = engine
        self._store = store
        self._wake = asyncio.Event()
        self._wake.set()  # one that was begun before this process goes on

    def wake(self) -> None:
        """The key file may ask for it now."""
        self._wake.set()

    async def run(self) -> NoReturn:
        """Work until cancelled. What fails is said and tried again: until then both keys are kept."""
        backoff = Backoff(RETRY)
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self.rotate()
            except (OSError, SwarmvisorError) as error:
                why = error.describe() if isinstance(error, SwarmvisorError) else str(error)
                pause = backoff.failed()
                _log.error("the store's data key is not replaced yet, next try in %.0f s: %s", pause, why)
                await asyncio.sleep(pause)
                self._wake.set()
            else:
                backoff.reset()

    async def rotate(self) -> None:
        """Replace the key as often as the file asks for it. Raises what file and store raise."""
        while (pending := await asyncio.to_thread(self._ring.begin)) is not None:
            await self._replace(pending)

    async def _replace(self, pending: bytes) -> None:
        if self._engine.data_key_id != key_id(pending):
            _log.info("replacing the store's data key")
            self._engine.turn(pending, self._store.keys())
        while batch := self._engine.stale(BATCH):
            absent = await self._store.update(
                lambda tx, keys=batch: tx.rewrite(keys, BATCH_BYTES),  # type: ignore[misc]
                cause="data key",
            )
            self._engine.settle(absent)
        await self._engine.scrub()
        await asyncio.to_thread(self._ring.finish)
        self._engine.forget_old()
        _log.info("the store's data key is replaced")


_RESTORE = "restore the file from a backup"
