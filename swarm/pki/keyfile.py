"""The node's key and certificate on disk: always a matching pair, whoever is killed when (reference/node-and-ca §4).

Renewer (new pairs) and manager (headers, encryption) write through `KeyFile`: each change takes the exclusive lock,
re-reads, changes its part, and renames once. Readers take the shared lock and never repair; only the renewer repairs,
at its start. All methods block for at most the lock's deadline: asyncio callers use `asyncio.to_thread`.

A new pair is written in two phases: certificate to `.swarm-node.crt`, key renamed into place, certificate renamed
into place. The key's rename is the commit point; a reader that finds a certificate that does not fit the key looks
at the first-phase copy.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from swarm.errors import BadInput, CorruptFile, Locked, Refused
from swarm.files import fsync_directory, remove_durably, write_atomic
from swarm.paths import Paths
from swarm.pki import privatekey
from swarm.pki.certificate import MANAGER_OU, Certificate, parse_bundle
from swarm.pki.flock import locked
from swarm.pki.pem import Block, decode, normalize_pems

KEK_VERSION = "kek-version"
_ENCRYPTION_HEADERS = ("proc-type", "dek-info")
_LOCK_TIMEOUT = 5.0

Headers = Mapping[str, str]
REMEDY = "restore the file from a backup, or `swarmvisor leave --force` and join or init again"


@dataclass(frozen=True)
class Kek:
    """The key that encrypts the node key (the unlock key), and its version."""

    key: bytes = field(default=b"", repr=False)
    """Raw; empty: the node key is stored plain."""
    version: int = 0


@dataclass(frozen=True)
class Pair:
    """What lies on disk: a certificate chain and its key, opened."""

    certificate_pem: bytes
    key_pem: bytes = field(repr=False)
    """Plain, PKCS#8, without headers."""
    headers: Headers = field(repr=False)
    """What the manager keeps in the key file; never `kek-version`."""
    kek: Kek
    """What opened it (empty key: it was plain), and the version that the file names."""


@dataclass(frozen=True)
class KeyFile:
    """The pair `swarm-node.key` and `swarm-node.crt`."""

    key: Path
    certificate: Path
    lock_timeout: float = _LOCK_TIMEOUT
    """Seconds."""

    @classmethod
    def of(cls, paths: Paths) -> Self:
        """The pair of a node."""
        return cls(paths.node_key, paths.node_cert)

    @property
    def first_phase(self) -> Path:
        """`.swarm-node.crt`: the certificate of a write under way."""
        return self.certificate.with_name(f".{self.certificate.name}")

    @property
    def legacy_key(self) -> Path:
        """`.swarm-node.key`, which very old SwarmKit left (§4.6)."""
        return self.key.with_name(f".{self.key.name}")

    def read(self, *keks: bytes) -> Pair:
        """The pair, opened with the first of `keks` that fits.

        Raises FileNotFoundError, Locked, CorruptFile (also for a pair that does not match), TimedOut.
        """
        with self._lock(exclusive=False):
            return self._read(keks)

    def read_at_rest(self, *keks: bytes) -> Pair:
        """As `read`, without the lock, whose file would be made: for a directory that is not ours, of which the caller
        knows that nobody writes there."""
        return self._read(keks)

    def read_headers(self) -> tuple[Headers, int, bool]:
        """(headers, kek-version, encrypted) without opening the key."""
        with self._lock(exclusive=False):
            block = self._block()
            return _own_headers(block), _kek_version(block), privatekey.is_encrypted(block)

    def check_fips(self) -> None:
        """Raises CorruptFile for a key encrypted in the old way, with MD5, which a FIPS node does not take (§4.3)."""
        with self._lock(exclusive=False):
            if privatekey.is_encrypted_legacy(self._block()):
                raise CorruptFile(self.key, "unsupported key format due to FIPS compliance", remedy=REMEDY)

    def sweep(self) -> None:
        """Remove the temporary files that killed writers left in this directory: some hold keys. Renewer only, at its
        start."""
        with self._lock(exclusive=True):
            for litter in self.key.parent.glob(".tmp-*"):
                remove_durably(litter)

    def repair(self, *keks: bytes) -> None:
        """Finish or drop the two-phase write of a killed writer (§4.4, §4.6). Renewer only, at its start.

        Raises Locked or CorruptFile, and leaves things as they are, if the key cannot be opened to see.
        """
        with self._lock(exclusive=True):
            self._migrate()
            if not self.first_phase.exists():
                return
            if not self.key.exists():
                remove_durably(self.first_phase)
                return
            key, _ = self._load(self._block(), keks)
            if _fits(self.first_phase, key):
                os.rename(self.first_phase, self.certificate)
                fsync_directory(self.certificate.parent)
            else:
                remove_durably(self.first_phase)

    def write(
        self,
        certificate_pem: bytes,
        key_pem: bytes,
        *,
        kek: Kek | None = None,
        headers: Callable[[Headers], Headers] = dict,
    ) -> None:
        """Replace the pair. `kek` None keeps the present one (then a plain key file must be there, or none).

        `headers` turns the manager's present headers into those to write. A worker's certificate drops them and the
        encryption, in the same rename. Raises BadInput for a pair that does not match, Locked, CorruptFile if the
        present key file cannot be read (it is left), TimedOut.
        """
        chain = parse_bundle(certificate_pem)
        key = privatekey.load_pem(key_pem)
        if not chain or chain[0].public_key != privatekey.public_key_info(key):
            raise BadInput("certificate and key do not belong together")
        self.key.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with self._lock(exclusive=True):
            present = self._block() if self.key.exists() else None
            if MANAGER_OU not in chain[0].names(NameOID.ORGANIZATIONAL_UNIT_NAME):
                chosen = Kek()
                kept: Headers = {}
            else:
                chosen = self._keep(present, kek)
                kept = headers(_own_headers(present) if present else {})
            write_atomic(self.first_phase, normalize_pems(certificate_pem), mode=0o644)
            write_atomic(self.key, _seal(privatekey.to_pkcs8(key), chosen, kept), mode=0o600)
            os.rename(self.first_phase, self.certificate)
            fsync_directory(self.certificate.parent)

    def view_and_update_headers(self, change: Callable[[Headers], Headers]) -> Headers:
        """Give `change` the manager's headers, write what it returns; the key's bytes stay as they are.

        `change` runs under the lock, so it must not block. Returns what was written.
        """
        with self._lock(exclusive=True):
            block = self._block()
            new = dict(change(_own_headers(block)))
            kept = {name: value for name, value in block.headers.items() if name.lower() in _ENCRYPTION_HEADERS}
            version = {KEK_VERSION: str(_kek_version(block))}
            write_atomic(self.key, Block(block.type, block.data, {**new, **version, **kept}).encode(), mode=0o600)
            return new

    def rotate(self, change: Callable[[Kek, Headers], tuple[Kek, Headers]], *keks: bytes) -> Kek:
        """Rewrite body and headers under another unlock key, in one rename. Returns the new Kek.

        `change` gets the present Kek and headers (encrypted under it, opaque here) and returns both anew. The present
        key is opened with the first of `keks` that fits. Raises Locked, CorruptFile, FileNotFoundError, TimedOut.
        """
        with self._lock(exclusive=True):
            block = self._block()
            key, used = self._load(block, keks)
            kek, headers = change(Kek(used, _kek_version(block)), _own_headers(block))
            write_atomic(self.key, _seal(privatekey.to_pkcs8(key), kek, headers), mode=0o600)
            return kek

    def downgrade(self, *keks: bytes) -> None:
        """Rewrite the key as SEC1, under the same unlock key in the old way of encrypting (§4.7); headers stay.

        Raises Refused if it has that form already or is no EC key; Locked, CorruptFile, FileNotFoundError, TimedOut.
        """
        with self._lock(exclusive=True):
            block = self._block()
            if block.type == privatekey.LEGACY:
                raise Refused("key is already downgraded to PKCS#1")
            key, used = self._load(block, keks)
            if not isinstance(key, ec.EllipticCurvePrivateKey):
                raise Refused("only an ECDSA key has this older form")
            plain, _ = decode(privatekey.to_sec1_pem(key))
            if plain is None:
                raise AssertionError("what was just encoded decodes")
            data, legacy = privatekey.encrypt_legacy(plain.data, used) if used else (plain.data, {})
            headers = {**_own_headers(block), KEK_VERSION: str(_kek_version(block)), **legacy}
            write_atomic(self.key, Block(privatekey.LEGACY, data, headers).encode(), mode=0o600)

    # -- under the lock ----------------------------------------------------------------------------

    def _lock(self, *, exclusive: bool) -> AbstractContextManager[None]:
        return locked(self.key.with_name(".lock"), exclusive=exclusive, timeout=self.lock_timeout)

    def _block(self) -> Block:
        block, _ = decode(self.key.read_bytes())
        if block is None:
            raise CorruptFile(self.key, "invalid PEM-encoded private key", remedy=REMEDY)
        return block

    def _open(self, block: Block, keks: tuple[bytes, ...]) -> tuple[bytes, bytes]:
        """Plain DER of the key, and the unlock key that opened it (empty: none was needed)."""
        if not privatekey.is_encrypted(block):
            return block.data, b""
        for kek in keks:
            try:
                return privatekey.decrypt(block, kek), kek
            except Locked:
                continue
            except BadInput as error:
                raise CorruptFile(self.key, error.message, remedy=REMEDY) from error
        why = "opens with none of the unlock keys at hand" if keks else "is encrypted"
        raise Locked(f"{self.key} {why}", remedy="run `swarmvisor unlock`")

    def _read(self, keks: tuple[bytes, ...]) -> Pair:
        block = self._block()
        key, used = self._load(block, keks)
        found = self.certificate
        if not _fits(found, key):
            if not _fits(self.first_phase, key):
                found.stat()  # a missing certificate is FileNotFoundError, another one is this:
                raise CorruptFile(found, f"does not hold a certificate for the key in {self.key}", remedy=REMEDY)
            found = self.first_phase
        key_pem = Block(privatekey.PLAIN, privatekey.to_pkcs8(key)).encode()
        return Pair(found.read_bytes(), key_pem, _own_headers(block), Kek(used, _kek_version(block)))

    def _load(self, block: Block, keks: tuple[bytes, ...]) -> tuple[privatekey.PrivateKey, bytes]:
        """The key, and the unlock key that opened it."""
        plain, used = self._open(block, keks)
        try:
            return privatekey.load(plain), used
        except BadInput as error:
            raise CorruptFile(self.key, error.message, remedy=REMEDY) from error

    def _migrate(self) -> None:
        """`.swarm-node.key` is moved into place if it fits the certificate, else removed."""
        if not self.legacy_key.exists():
            return
        if _fits(self.certificate, self._legacy()):
            os.rename(self.legacy_key, self.key)
            fsync_directory(self.key.parent)
        else:
            remove_durably(self.legacy_key)

    def _legacy(self) -> privatekey.PrivateKey | None:
        """The key in `.swarm-node.key`; None if that is none, or encrypted."""
        try:
            return privatekey.load_pem(self.legacy_key.read_bytes())
        except BadInput:
            return None

    def _keep(self, present: Block | None, kek: Kek | None) -> Kek:
        if kek is not None:
            return kek
        if present is None:
            return Kek()
        if privatekey.is_encrypted(present):
            raise Locked(f"{self.key}: the present key is encrypted, the new one needs the same unlock key")
        return Kek(version=_kek_version(present))


def _seal(plain: bytes, kek: Kek, headers: Headers) -> bytes:
    """The key file's whole content."""
    title, body = (privatekey.ENCRYPTED, privatekey.encrypt(plain, kek.key)) if kek.key else (privatekey.PLAIN, plain)
    return Block(title, body, {**headers, KEK_VERSION: str(kek.version)}).encode()


def _own_headers(block: Block) -> dict[str, str]:
    """The manager's headers: all but ours and those of the legacy encryption."""
    ours = (KEK_VERSION, *_ENCRYPTION_HEADERS)
    return {name: value for name, value in block.headers.items() if name.lower() not in ours}


def _kek_version(block: Block) -> int:
    """As Go parses it: what is no unsigned number of 64 bits counts as none."""
    text = block.headers.get(KEK_VERSION, "")
    version = int(text) if re.fullmatch(r"[0-9]{1,20}", text) else 0
    return version if version < 1 << 64 else 0


def _fits(path: Path, key: privatekey.PrivateKey | None) -> bool:
    """Whether the file's first certificate is for this key."""
    if key is None:
        return False
    try:
        block, _ = decode(path.read_bytes())
        return block is not None and Certificate.load(block.data).public_key == privatekey.public_key_info(key)
    except (FileNotFoundError, BadInput):
        return False
