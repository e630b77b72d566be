"""Values at rest: sealed so that neither a look at the file nor moving a value elsewhere gives anything away.

    value = 0x01 ‖ key id (8) ‖ index (8, big-endian) ‖ nonce (12, random) ‖ AES-256-GCM ciphertext and tag

The associated data are cluster id, full store key and index, each with its length (4, big-endian) before it: a value
taken from another swarm, another key or another revision's header does not open (DESIGN §6). The data keys come from
the caller; the manager keeps them in the headers of the node's key file.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from procs.manager.store.engine import Clock, Delete, Engine, EngineMember, Operation, Put, Revision
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
    """Seals with one data key, opens with all that it was given."""

    def __init__(self, cluster_id: str, current: bytes, others: Sequence[bytes] = ()) -> None:
        """`others`: data keys that still open values (a pending or an outgoing one)."""
        for data_key in (current, *others):
            if len(data_key) != DATA_KEY_BYTES:
                raise ValueError(f"a data key has {DATA_KEY_BYTES} bytes, got {len(data_key)}")
        self._cluster = _lengthened(cluster_id.encode())
        self._current_id = key_id(current)
        self._current = AESGCM(current)
        self._keys = {key_id(data_key): AESGCM(data_key) for data_key in others}
        self._keys[self._current_id] = self._current

    def seal(self, key: str, value: bytes, index: int) -> bytes:
        nonce = os.urandom(12)
        header = _HEADER.pack(_FORMAT, self._current_id, index, nonce)
        return header + self._current.encrypt(nonce, value, self._associated(key, index))

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
        await self._engine.write([self._sealed(operation) for operation in batch], expected, new)

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
