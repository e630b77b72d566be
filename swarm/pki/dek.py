"""The data key in the headers of the node's key file, sealed under the unlock key (reference/node-and-ca §4.5).

A header's value is the base64 of a `MaybeEncryptedRecord`. Without unlock key: plain. With one: NaCl's secretbox, or in
FIPS mode Fernet; both are read outside FIPS mode. SwarmKit reads what is written here, and the other way round.
"""

from __future__ import annotations

import base64
import binascii
import os

from cryptography.fernet import Fernet, InvalidToken
from google.protobuf.message import DecodeError

from swarm.api.types_pb2 import MaybeEncryptedRecord as Record
from swarm.errors import BadInput, Locked
from swarm.pki.keyfile import Headers

CURRENT, PENDING, NEEDS_ROTATION = "raft-dek", "raft-dek-pending", "raft-dek-needs-rotation"
_NONCE_BYTES = 24
_KEY_BYTES = 32


def seal(key: bytes, kek: bytes, *, fips: bool = False) -> str:
    """The header's text. `kek` empty: plain."""
    if not kek:
        record = Record(algorithm=Record.NONE, data=key)
    elif fips:
        record = Record(algorithm=Record.FERNET_AES_128_CBC, data=_fernet(kek).encrypt(key))
    else:
        from nacl.secret import SecretBox  # late: only autolocked managers need it

        nonce = os.urandom(_NONCE_BYTES)
        sealed = SecretBox(_fitted(kek)).encrypt(key, nonce).ciphertext
        record = Record(algorithm=Record.SECRETBOX_SALSA20_POLY1305, data=sealed, nonce=nonce)
    return base64.b64encode(record.SerializeToString()).decode("ascii")


def unseal(text: str, kek: bytes, *, fips: bool = False) -> bytes:
    """The key in a header's text. Raises Locked if `kek` does not fit it, BadInput for what is no record."""
    try:
        record = Record.FromString(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError, DecodeError) as error:
        raise BadInput(f"the data key in the node's key file cannot be read: {error}") from error
    if record.algorithm == Record.NONE:
        if kek:
            raise Locked("cannot decrypt record encrypted using NONE", remedy="give no unlock key: nothing is locked")
        return record.data
    if not kek:
        raise Locked("record is encrypted", remedy="run `swarmvisor unlock`")
    if record.algorithm == Record.FERNET_AES_128_CBC:
        try:
            return _fernet(kek).decrypt(record.data)
        except InvalidToken as error:
            raise Locked("the data key opens with another unlock key", remedy="run `swarmvisor unlock`") from error
    if record.algorithm == Record.SECRETBOX_SALSA20_POLY1305 and not fips:
        return _open_box(record, kek)
    raise BadInput("the data key is encrypted in a way that this node does not take (FIPS takes Fernet only)")


def reseal(headers: Headers, old: bytes, new: bytes, *, fips: bool = False) -> dict[str, str]:
    """The headers under another unlock key; going from unlocked to locked asks for another data key too, since the
    present one lay on the disk in the clear. Raises Locked, BadInput."""
    changed = dict(headers)
    for name in (CURRENT, PENDING):
        if name in changed:
            changed[name] = seal(unseal(changed[name], old, fips=fips), new, fips=fips)
    if new and not old and CURRENT in changed:
        changed[NEEDS_ROTATION] = "true"
    return changed


def _open_box(record: Record, kek: bytes) -> bytes:
    from nacl.exceptions import CryptoError  # late: as above
    from nacl.secret import SecretBox

    if len(record.nonce) != _NONCE_BYTES:
        raise BadInput("invalid nonce size")
    try:
        return SecretBox(_fitted(kek)).decrypt(record.data, record.nonce)
    except CryptoError as error:
        raise Locked("the data key opens with another unlock key", remedy="run `swarmvisor unlock`") from error


def _fernet(kek: bytes) -> Fernet:
    return Fernet(base64.urlsafe_b64encode(_fitted(kek)))


def _fitted(kek: bytes) -> bytes:
    """As Go copies a key into an array of 32 bytes: the rest is zero, what is too long is cut."""
    return kek[:_KEY_BYTES].ljust(_KEY_BYTES, b"\0")
