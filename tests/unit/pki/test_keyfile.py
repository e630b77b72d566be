"""The pair on disk: formats, headers, encryption, two-phase writes, locks (node-and-ca §4)."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from swarm.errors import BadInput, CorruptFile, Locked, Refused, TimedOut
from swarm.paths import Paths
from swarm.pki import pem, privatekey
from swarm.pki.certificate import parse_bundle
from swarm.pki.credentials import CertificateExpired, load_credentials
from swarm.pki.keyfile import Kek, KeyFile
from swarm.pki.request import new_request
from swarm.pki.rootca import RootCA
from tests.tools.authority import Authority
from tests.unit.pki.authority import make

ROOT = RootCA.create()
HEADERS = {"raft-dek": "b25l", "raft-dek-pending": "dHdv", "raft-dek-needs-rotation": "true"}


def new_pair(role: str = "swarm-manager") -> tuple[bytes, bytes]:
    key, csr = new_request()
    return ROOT.sign(csr, "node1", role, "org1", 7200), key


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    found = Paths(tmp_path, tmp_path / "run")
    found.certificates.mkdir()
    found.root_cert.write_bytes(ROOT.certs)
    return found


@pytest.fixture
def pair(paths: Paths) -> KeyFile:
    return KeyFile.of(paths)


def add_headers(pair: KeyFile) -> None:
    assert pair.view_and_update_headers(lambda present: {**present, **HEADERS}) == HEADERS


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_pair_comes_back_as_it_was_written(pair: KeyFile) -> None:
    certificate, key = new_pair()
    pair.write(certificate, key)
    read = pair.read()
    assert (read.certificate_pem, read.key_pem, read.headers, read.kek) == (certificate, key, {}, Kek())
    assert (mode(pair.key), mode(pair.certificate)) == (0o600, 0o644)
    assert pair.key.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----\nkek-version: 0\n\n")
    assert not pair.first_phase.exists()


def test_an_intermediate_behind_blanks_is_written_too_and_the_directory_made(tmp_path: Path) -> None:
    base = make("swarm-ca", start=1.6e9, end=4e9)
    middle = base.issue("middle", start=1.6e9, end=4e9)
    key, csr = new_request()
    ca = RootCA.from_pem(base.pem, middle.key_pem, middle.pem, b" \n  " + middle.pem)
    chain = ca.sign(csr, "node1", "swarm-manager", "org1", 7200)
    paths = Paths(tmp_path / "a" / "b", tmp_path / "run")
    KeyFile.of(paths).write(chain, key)
    paths.root_cert.write_bytes(base.pem)
    assert paths.node_cert.read_bytes() == parse_bundle(chain)[0].pem + middle.pem
    held = load_credentials(paths)
    assert (held.issuer_subject, held.issuer_public_key) == (ca.signer.subject, ca.signer.public_key)  # type: ignore[union-attr]


def test_headers_survive_a_new_pair_and_a_worker_drops_them(pair: KeyFile) -> None:
    pair.write(*new_pair())
    add_headers(pair)
    before = pair.read()
    assert before.headers == HEADERS
    pair.write(*new_pair())
    assert pair.read().headers == HEADERS
    assert pair.read().key_pem != before.key_pem
    pair.write(*new_pair("swarm-worker"))
    assert pair.read().headers == {}
    assert b"raft-dek" not in pair.key.read_bytes()


def test_header_changes_leave_the_keys_bytes_alone(pair: KeyFile) -> None:
    pair.write(*new_pair(), kek=Kek(b"k" * 32, 7))
    sealed = next(pem.blocks(pair.key.read_bytes()))
    add_headers(pair)
    after = next(pem.blocks(pair.key.read_bytes()))
    assert (after.type, after.data) == ("ENCRYPTED PRIVATE KEY", sealed.data)
    assert after.headers == {"kek-version": "7", **HEADERS}
    assert pair.read_headers() == (HEADERS, 7, True)


def test_legacy_encryption_headers_are_carried_over(pair: KeyFile, tmp_path: Path) -> None:
    certificate, _ = new_pair()
    pair.certificate.write_bytes(certificate)
    legacy = {"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-256-CBC," + "00" * 16, "kek-version": "3"}
    pair.key.write_bytes(pem.Block("EC PRIVATE KEY", bytes(32), legacy).encode())
    add_headers(pair)
    assert next(pem.blocks(pair.key.read_bytes())).headers == {**legacy, **HEADERS}
    with pytest.raises(Locked):
        pair.read(b"wrong")


def test_encrypted_pair_opens_with_its_key_only(pair: KeyFile, paths: Paths) -> None:
    certificate, key = new_pair()
    pair.write(certificate, key, kek=Kek(b"right", 5))
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in pair.key.read_bytes()
    for keys in ((), (b"wrong",)):
        with pytest.raises(Locked):
            pair.read(*keys)
    read = pair.read(b"wrong", b"right")
    assert (read.key_pem, read.kek) == (key, Kek(b"right", 5))
    with pytest.raises(Locked):
        load_credentials(paths)
    assert load_credentials(paths, unlock_key=b"right").key_pem == key


def test_an_encrypted_key_is_not_replaced_by_a_plain_one_unasked(pair: KeyFile) -> None:
    pair.write(*new_pair(), kek=Kek(b"k", 1))
    before = pair.key.read_bytes()
    with pytest.raises(Locked):
        pair.write(*new_pair())
    assert pair.key.read_bytes() == before
    pair.write(*new_pair("swarm-worker"))
    assert pair.read().kek == Kek()


def test_rotation_rewrites_body_and_headers_together(pair: KeyFile) -> None:
    certificate, key = new_pair()
    pair.write(certificate, key)
    add_headers(pair)
    seen: list[object] = []

    def lock(kek: Kek, headers):
        seen.append((kek, headers))
        return Kek(b"new", 9), {"raft-dek": "sealed"}

    assert pair.rotate(lock) == Kek(b"new", 9)
    assert seen == [(Kek(), HEADERS)]
    read = pair.read(b"new")
    assert (read.key_pem, read.headers, read.kek) == (key, {"raft-dek": "sealed"}, Kek(b"new", 9))
    pair.rotate(lambda kek, headers: (Kek(b"", 10), headers), b"new")
    assert pair.read().kek == Kek(b"", 10)


def test_a_failing_change_changes_nothing(pair: KeyFile) -> None:
    pair.write(*new_pair())
    before = pair.key.read_bytes()

    def fail(*_):
        raise BadInput("no")

    for change in (lambda: pair.view_and_update_headers(fail), lambda: pair.rotate(fail)):
        with pytest.raises(BadInput):
            change()
    assert pair.key.read_bytes() == before


@pytest.mark.parametrize("legacy", [False, True])
def test_old_key_formats_are_read(pair: KeyFile, legacy: bool) -> None:
    certificate, key_pem = new_pair()
    key = privatekey.load_pem(key_pem)
    assert isinstance(key, privatekey.ec.EllipticCurvePrivateKey)
    pair.certificate.write_bytes(certificate)
    text = privatekey.to_sec1_pem(key) if legacy else key_pem
    pair.key.write_bytes(text)
    assert pair.read().key_pem == key_pem


def test_pair_that_does_not_match_is_never_written(pair: KeyFile) -> None:
    with pytest.raises(BadInput, match="do not belong together"):
        pair.write(new_pair()[0], new_pair()[1])
    assert not pair.key.exists()


def test_first_phase_certificate_is_used_until_it_is_moved(pair: KeyFile, paths: Paths) -> None:
    pair.write(*new_pair())
    old = pair.certificate.read_bytes()
    certificate, key = new_pair()
    pair.write(certificate, key)
    pair.certificate.rename(pair.first_phase)
    pair.certificate.write_bytes(old)
    assert pair.read().certificate_pem == certificate
    assert pair.first_phase.exists(), "readers never repair"
    pair.repair()
    assert (pair.certificate.read_bytes(), pair.first_phase.exists()) == (certificate, False)
    assert load_credentials(paths).certificate_pem == certificate


def test_first_phase_certificate_of_another_key_is_dropped(pair: KeyFile) -> None:
    certificate, key = new_pair()
    pair.write(certificate, key)
    pair.first_phase.write_bytes(new_pair()[0])
    assert pair.read().certificate_pem == certificate
    pair.repair()
    assert not pair.first_phase.exists()
    assert pair.read().certificate_pem == certificate


def test_repair_of_a_locked_key_waits(pair: KeyFile) -> None:
    pair.write(*new_pair(), kek=Kek(b"k", 1))
    pair.first_phase.write_bytes(pair.certificate.read_bytes())
    with pytest.raises(Locked):
        pair.repair()
    assert pair.first_phase.exists()
    pair.repair(b"k")
    assert not pair.first_phase.exists()


def test_very_old_temporary_key_is_moved_or_dropped(pair: KeyFile) -> None:
    certificate, key = new_pair()
    pair.certificate.write_bytes(certificate)
    pair.legacy_key.write_bytes(key)
    pair.repair()
    assert pair.read().key_pem == key
    for other in (new_pair()[1], b"junk", b"-----BEGIN PRIVATE KEY-----\nQUJD\n-----END PRIVATE KEY-----\n"):
        pair.legacy_key.write_bytes(other)
        for _ in range(2):
            pair.repair()
            assert not pair.legacy_key.exists()
            assert pair.read().key_pem == key


def test_litter_of_killed_writers_goes(pair: KeyFile) -> None:
    pair.write(*new_pair())
    litter = pair.key.with_name(".tmp-swarm-node.key_x1")
    litter.write_bytes(b"secret")
    pair.sweep()
    assert not litter.exists()


@pytest.mark.parametrize("content", [b"", b"junk", b"-----BEGIN PRIVATE KEY-----\nQUJD\n-----END PRIVATE KEY-----\n"])
def test_corrupt_keys_are_named_and_left(pair: KeyFile, content: bytes) -> None:
    pair.write(*new_pair())
    pair.key.write_bytes(content)
    for use in (pair.read, lambda: pair.rotate(lambda k, h: (k, h))):
        with pytest.raises(CorruptFile, match=r"swarm-node\.key: "):
            use()
    if b"BEGIN" not in content:
        with pytest.raises(CorruptFile):
            pair.write(*new_pair())
    assert pair.key.read_bytes() == content


def test_certificate_of_another_key_is_named(pair: KeyFile) -> None:
    pair.write(*new_pair())
    pair.certificate.write_bytes(new_pair()[0])
    with pytest.raises(CorruptFile, match=r"swarm-node\.crt: does not hold a certificate for the key"):
        pair.read()


def test_missing_files_are_file_not_found(pair: KeyFile, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        pair.read()
    pair.write(*new_pair())
    pair.certificate.unlink()
    with pytest.raises(FileNotFoundError):
        pair.read()
    with pytest.raises(FileNotFoundError):
        load_credentials(Paths(tmp_path / "none", tmp_path))


def test_locks_have_deadlines_and_readers_share(pair: KeyFile) -> None:
    pair.write(*new_pair())
    hasty = KeyFile(pair.key, pair.certificate, lock_timeout=0.02)
    fd = os.open(pair.key.with_name(".lock"), os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        hasty.read()
        with pytest.raises(TimedOut, match="held this lock for too long"):
            hasty.view_and_update_headers(dict)
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(TimedOut):
            hasty.read()
    finally:
        os.close(fd)


def test_credentials_say_who_we_are(pair: KeyFile, paths: Paths) -> None:
    certificate, key = new_pair("swarm-worker")
    pair.write(certificate, key)
    found = load_credentials(paths)
    assert (found.node_id, found.cluster_id, found.role) == ("node1", "org1", "worker")
    assert (found.root_pem, found.root_digest) == (ROOT.certs, ROOT.digest)
    assert (found.issuer_subject, found.issuer_public_key) == (ROOT.pool[0].subject, ROOT.pool[0].public_key)
    assert key.decode() not in repr(found)
    with pytest.raises(CertificateExpired, match=r"swarm-node\.crt: certificate \(1 - node1\) not valid after"):
        load_credentials(paths, now=found.not_after + 1)
    assert load_credentials(paths, now=found.not_after + 1, allow_expired=True) == found


def test_credentials_of_a_foreign_root_or_broken_root_are_refused(pair: KeyFile, paths: Paths) -> None:
    pair.write(*new_pair())
    paths.root_cert.write_bytes(RootCA.create().certs)
    with pytest.raises(CorruptFile, match=r"swarm-node\.crt: x509: certificate signed by unknown authority"):
        load_credentials(paths)
    for junk, text in ((b"junk", "invalid root certificates"), (b"", "no valid root CA certificates found")):
        paths.root_cert.write_bytes(junk)
        with pytest.raises(CorruptFile, match=rf"swarm-root-ca\.crt: {text}"):
            load_credentials(paths)


@pytest.mark.parametrize(
    ("org", "ou", "name", "text"),
    [
        ("", "swarm-worker", "n", "no organization found in certificate subject"),
        ("o", "", "n", "no OU found in certificate subject"),
        ("o", "swarm-worker", "", "no valid subject names found for TLS configuration"),
        ("o", "other", "n", "names no role"),
    ],
)
def test_certificates_that_name_no_node_are_refused(
    pair: KeyFile, paths: Paths, org: str, ou: str, name: str, text: str
) -> None:
    root = make("swarm-ca", start=1.6e9, end=4e9)
    leaf = root.issue(name, ca=False, org=org, ou=ou, start=1.6e9, end=4e9)
    paths.root_cert.write_bytes(root.pem)
    pair.write(leaf.pem, leaf.key_pem)
    with pytest.raises(CorruptFile, match=text):
        load_credentials(paths)


@pytest.mark.parametrize("kek", [b"", b"unlock"])
def test_a_downgraded_key_is_read_by_old_and_new_and_goes_with_the_next_write(tmp_path: Path, kek: bytes) -> None:
    paths = Paths(tmp_path / "s", tmp_path / "r")
    own = Authority().bootstrap(paths)
    file = KeyFile.of(paths)
    file.rotate(lambda _, headers: (Kek(kek, 7), {**headers, "raft-dek": "kept"}))
    file.downgrade(*([kek] if kek else []))
    text = paths.node_key.read_bytes()
    assert text.startswith(b"-----BEGIN EC PRIVATE KEY-----")
    assert (b"DEK-Info: AES-256-CBC," in text) is bool(kek)
    pair = file.read(*([kek] if kek else []))
    assert (pair.key_pem, pair.headers, pair.kek) == (own.key_pem, {"raft-dek": "kept"}, Kek(kek, 7))
    with pytest.raises(Refused, match="already downgraded"):
        file.downgrade(kek)
    if kek:
        with pytest.raises(Locked):
            file.read(b"another")
        headerless = text.replace(b"kek-version: 7\n", b"").replace(b"raft-dek: kept\n", b"")
        assert load_pem_private_key(headerless, kek), "OpenSSL reads what Go would"
