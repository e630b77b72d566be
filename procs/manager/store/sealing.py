"""Values at rest: sealed so that neither a look at the file nor moving a value elsewhere gives anything away.

    value = 0x01 ‖ key id (8) ‖ index (8, big-endian) ‖ nonce (12, random) ‖ AES-256-GCM ciphertext and tag

The associated data are cluster id, full store key and index, each with its length (4, big-endian) before it: a value
taken from another swarm, another key or another revision's header does not open (DESIGN §6). The data keys come from
the caller; the manager keeps them in the headers of the node's key file, and replaces them (`procs.manager.datakey`).
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from procs.manager.store.engine import Clock, Delete, Engine, EngineMember, Operation, Put, Revision, Scrubbing
from swarm.errors import CorruptFile

DATA_KEY_BYTES = 32
_FORMAT = 0x01
_HEADER = struct.Struct(">B8sQ12s")
_TAG_BYTES = 16


def new_data_key() -> bytes:
    """A fresh random data key."""
    return os.urandom(DATA_KEY_BYTES)


def key_id(data_key: bytes) -> bytes:
    """The 8 bytes that name a data key in what it sealed."""
    return hashlib.sha256(b"swarmvisor data key\0" + data_key).digest()[:8]


class CannotUnseal(CorruptFile):
    """A stored value does not open. Names the store's key."""


@dataclass(frozen=True, slots=True)
class Unsealed:
    """A value in clear, and the index of the transaction that wrote it."""

    value: bytes
    index: int


class Sealer:
    """Seals with one data key, opens with all that it was given and not told to forget."""

    def __init__(self, cluster_id: str, current: bytes, others: Sequence[bytes] = ()) -> None:
        """`others`: data keys that still open values (a pending or an outgoing one)."""
        for data_key in (current, *others):
            if len(data_key) != DATA_KEY_BYTES:
                raise ValueError(f"a data key has {DATA_KEY_BYTES} bytes, got {len(data_key)}")
        self._cluster = _lengthened(cluster_id.encode())
        self._keys = {key_id(data_key): AESGCM(data_key) for data_key in (current, *others)}
        self.current_id = key_id(current)
        """Id of the key that seals."""

    def turn(self, data_key: bytes) -> None:
        """Seal with this key from now on; those of before go on opening."""
        self.current_id = key_id(data_key)
        self._keys.setdefault(self.current_id, AESGCM(data_key))

    def forget_others(self) -> None:
        """Open only what the current key sealed."""
        self._keys = {self.current_id: self._keys[self.current_id]}

    def seal(self, key: str, value: bytes, index: int) -> bytes:
        nonce = os.urandom(12)
        header = _HEADER.pack(_FORMAT, self.current_id, index, nonce)
        return header + self._keys[self.current_id].encrypt(nonce, value, self._associated(key, index))

    def unseal(self, key: str, sealed: bytes) -> Unsealed:
        """CannotUnseal says which key, and why it does not open."""
        if len(sealed) < _HEADER.size + _TAG_BYTES:
            raise CannotUnseal(key, f"only {len(sealed)} bytes long, not a sealed value", remedy=_RESTORE)
        format_, named, index, nonce = _HEADER.unpack_from(sealed)
        if format_ != _FORMAT:
            raise CannotUnseal(key, f"sealed in format {format_}, this version opens {_FORMAT}", remedy=_RESTORE)
        data_key = self._keys.get(named)
        if data_key is None:
            raise CannotUnseal(
                key,
                f"sealed with data key {named.hex()}, which this node does not hold",
                remedy="restore certificates/swarm-node.key that belongs to this store: it carries the data key",
            )
        try:
            value = data_key.decrypt(nonce, memoryview(sealed)[_HEADER.size :], self._associated(key, index))
        except InvalidTag as error:
            raise CannotUnseal(
                key, "changed since it was sealed, or taken from another swarm or place", remedy=_RESTORE
            ) from error
        return Unsealed(value, index)

    def _associated(self, key: str, index: int) -> bytes:
        return self._cluster + _lengthened(key.encode()) + _lengthened(index.to_bytes(8, "big"))


class SealedEngine:
    """An engine whose values lie sealed in another."""

    def __init__(self, engine: Engine, sealer: Sealer) -> None:
        self._engine = engine
        self._sealer = sealer
        self._stale: dict[str, None] = {}
        """Keys (of the store) whose values may be sealed with another data key than the one turned to. In order."""

    async def open(self) -> None:
        await self._engine.open()

    async def close(self) -> None:
        await self._engine.close()

    async def read_all(self) -> tuple[Clock, dict[str, bytes]]:
        """As the engine's; CannotUnseal."""
        clock, sealed = await self._engine.read_all()
        return clock, {key: self._sealer.unseal(key, value).value for key, value in sealed.items()}

    async def read_clock(self) -> Clock:
        return await self._engine.read_clock()

    async def write(self, batch: Sequence[Operation], expected: Clock, new: Clock) -> None:
        data_key, written = self._sealer.current_id, False
        try:
            await self._engine.write([self._sealed(operation) for operation in batch], expected, new)
            written = True
        finally:
            if data_key != self._sealer.current_id:  # sealed before `turn`, and perhaps there now
                self._stale.update((operation.key, None) for operation in batch)
            elif written and self._stale:
                self.settle(operation.key for operation in batch)

    # -- another data key ---------------------------------------------------------------------------

    @property
    def data_key_id(self) -> bytes:
        """Id of the data key that seals."""
        return self._sealer.current_id

    def turn(self, data_key: bytes, keys: Iterable[str]) -> None:
        """Seal with `data_key` from now on. `keys`: all that are committed; a write in flight is thought of here."""
        self._sealer.turn(data_key)
        self._stale.update((key, None) for key in keys)

    def stale(self, count: int) -> list[str]:
        """Up to `count` keys that have to be written again before the old data key can go; empty: none is left."""
        return list(islice(self._stale, count))

    def settle(self, keys: Iterable[str]) -> None:
        """These are not stale: sealed anew, or not in the store."""
        for key in keys:
            self._stale.pop(key, None)

    def forget_old(self) -> None:
        """Open nothing any more that an earlier data key sealed. ValueError while something stale is left."""
        if self._stale:
            raise ValueError(f"{len(self._stale)} values may be sealed with the old data key")
        self._sealer.forget_others()

    async def scrub(self) -> None:
        """As the engine's, where it can (`Scrubbing`)."""
        if isinstance(self._engine, Scrubbing):
            await self._engine.scrub()

    def watch(self, after: int) -> AsyncIterator[Revision]:
        return self._open_each(self._engine.watch(after))

    async def _open_each(self, revisions: AsyncIterator[Revision]) -> AsyncIterator[Revision]:
        async for revision in revisions:
            yield Revision(revision.clock, tuple(self._opened(operation) for operation in revision.operations))

    async def campaign(self) -> None:
        await self._engine.campaign()

    async def lost(self) -> str:
        return await self._engine.lost()

    async def members(self) -> list[EngineMember]:
        return await self._engine.members()

    async def add_member(self, member: EngineMember) -> None:
        await self._engine.add_member(member)

    async def remove_member(self, name: str) -> None:
        await self._engine.remove_member(name)

    def _sealed(self, operation: Operation) -> Operation:
        if isinstance(operation, Delete):
            return operation
        return Put(operation.key, self._sealer.seal(operation.key, operation.value, operation.index), operation.index)

    def _opened(self, operation: Operation) -> Operation:
        if isinstance(operation, Delete):
            return operation
        clear = self._sealer.unseal(operation.key, operation.value)
        return Put(operation.key, clear.value, clear.index)


_RESTORE = "restore the manager's directory from a backup, or let this node join the swarm again"


def _lengthened(part: bytes) -> bytes:
    return len(part).to_bytes(4, "big") + part
