"""The data key under the unlock key, and changing that key without a moment in which nothing opens the file."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.secret import SecretBox

from swarm.api.types_pb2 import MaybeEncryptedRecord as Record
from swarm.errors import BadInput, CorruptFile, Locked, Refused
from swarm.paths import Paths
from swarm.pki import locking
from swarm.pki.credentials import load_credentials
from swarm.pki.dek import CURRENT, NEEDS_ROTATION, PENDING, reseal, seal, unseal
from swarm.pki.keyfile import Kek, KeyFile
from swarm.unlock import forget_unlock_keys, read_unlock_keys, secrets_directory, write_unlock_keys
from tests.tools.authority import Authority

DEK, ONE, TWO = b"d" * 32, b"1" * 32, b"2" * 32


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[Paths]:
    found = Paths(tmp_path / "s", tmp_path / "r")
    Authority().bootstrap(found)
    yield found
    forget_unlock_keys(found)
    assert not secrets_directory(found).exists()


@pytest.mark.parametrize(("kek", "fips"), [(b"", False), (ONE, False), (ONE, True), (b"short", False), (ONE * 2, True)])
def test_what_is_sealed_opens_with_the_same_key_only(kek: bytes, fips: bool) -> None:
    text = seal(DEK, kek, fips=fips)
    assert unseal(text, kek, fips=fips) == unseal(text, kek) == DEK
    with pytest.raises(Locked):
        unseal(text, TWO, fips=fips)
    if kek:
        with pytest.raises(Locked, match="record is encrypted"):
            unseal(text, b"")


def test_the_records_are_swarmkits() -> None:
    """Tag first, nonce apart; Fernet's token as text: read by the libraries themselves."""
    boxed = Record.FromString(base64.b64decode(seal(DEK, ONE)))
    assert (boxed.algorithm, len(boxed.nonce), len(boxed.data)) == (Record.SECRETBOX_SALSA20_POLY1305, 24, 48)
    assert SecretBox(ONE).decrypt(boxed.nonce + boxed.data) == DEK
    token = Record.FromString(base64.b64decode(seal(DEK, ONE, fips=True)))
    assert (token.algorithm, token.nonce) == (Record.FERNET_AES_128_CBC, b"")
    assert token.data.startswith(b"gAAAA")


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (Record(algorithm=Record.SECRETBOX_SALSA20_POLY1305, nonce=b"n" * 23, data=b"x" * 48), "invalid nonce size"),
        (Record(algorithm=9, data=b"x" * 48), "in a way that this node does not take"),
    ],
)
def test_a_record_that_nobody_seals_is_refused_in_words(record: Record, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        unseal(base64.b64encode(record.SerializeToString()).decode(), ONE)


def test_in_fips_mode_a_secretbox_is_not_taken() -> None:
    with pytest.raises(BadInput, match="Fernet only"):
        unseal(seal(DEK, ONE), ONE, fips=True)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=120), st.sampled_from([b"", ONE]))
def test_no_header_makes_it_fall_over(data: bytes, kek: bytes) -> None:
    try:
        unseal(base64.b64encode(data).decode(), kek)
    except (BadInput, Locked):
        return


def test_going_locked_seals_every_key_again_and_asks_for_a_new_one() -> None:
    plain = {CURRENT: seal(DEK, b""), PENDING: seal(TWO, b""), "other": "kept"}
    locked = reseal(plain, b"", ONE)
    assert (unseal(locked[CURRENT], ONE), unseal(locked[PENDING], ONE), locked["other"]) == (DEK, TWO, "kept")
    assert locked[NEEDS_ROTATION] == "true"
    assert NEEDS_ROTATION not in reseal({CURRENT: locked[CURRENT]}, ONE, TWO)


@pytest.mark.parametrize(
    ("present", "wanted", "outcome"),
    [
        (Kek(b"", 0), Kek(ONE, 5), True),
        (Kek(ONE, 5), Kek(TWO, 6), True),
        (Kek(ONE, 5), Kek(b"", 6), True),
        (Kek(ONE, 5), Kek(ONE, 9), False),
        (Kek(ONE, 5), Kek(TWO, 4), False),
        (Kek(ONE, 5), Kek(TWO, 5), Refused),
    ],
)
def test_only_a_newer_key_takes_the_place_of_another(
    present: Kek, wanted: Kek, outcome: bool | type[Exception]
) -> None:
    if isinstance(outcome, bool):
        assert locking.must_change(present, wanted) is outcome
    else:
        with pytest.raises(outcome, match="candidate KEK has the same version"):
            locking.must_change(present, wanted)


def test_lock_rekey_unlock(paths: Paths) -> None:
    file = KeyFile.of(paths)
    file.view_and_update_headers(lambda _: {CURRENT: seal(DEK, b"")})
    assert locking.change_unlock_key(paths, Kek(ONE, 3)) == (True, True)
    assert locking.change_unlock_key(paths, Kek(ONE, 4)) == (False, False)
    assert load_credentials(paths).role == "manager", "who has the memory opens it unasked"
    assert locking.change_unlock_key(paths, Kek(TWO, 5)) == (True, False)
    assert [kek.key for kek in read_unlock_keys(paths)] == [TWO]
    assert unseal(file.read(TWO).headers[CURRENT], TWO) == DEK
    forget_unlock_keys(paths)
    with pytest.raises(Locked, match="is encrypted"):
        load_credentials(paths)
    write_unlock_keys(paths, Kek(TWO, 5))
    assert locking.change_unlock_key(paths, Kek(b"", 6)) == (True, False)
    assert (read_unlock_keys(paths), unseal(file.read().headers[CURRENT], b"")) == ([], DEK)


@pytest.mark.parametrize("step", ["rotate", "settle"])
@pytest.mark.parametrize(("first", "second"), [(b"", ONE), (ONE, TWO), (ONE, b"")])
def test_killed_anywhere_one_of_the_keys_at_hand_opens_the_file(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, step: str, first: bytes, second: bytes
) -> None:
    if first:
        locking.change_unlock_key(paths, Kek(first, 1))

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        if step == "rotate":
            patched.setattr(KeyFile, "rotate", die)
        else:
            patched.setattr(locking, "settle", die)
        with pytest.raises(Killed):
            locking.change_unlock_key(paths, Kek(second, 2))
    assert load_credentials(paths).role == "manager"
    locking.change_unlock_key(paths, Kek(second, 2))
    assert KeyFile.of(paths).read(*([second] if second else [])).kek.key == second


def others_file(path: Path) -> None:
    path.mkdir(mode=0o755)
    path.chmod(0o755)


@pytest.mark.parametrize("spoil", [others_file, lambda path: path.symlink_to("/tmp")])
def test_a_directory_that_is_not_ours_alone_is_not_used(paths: Paths, spoil: Callable[[Path], None]) -> None:
    directory = secrets_directory(paths)
    spoil(directory)
    try:
        with pytest.raises(Refused, match="not this node's own"):
            write_unlock_keys(paths, Kek(ONE))
    finally:
        directory.unlink() if directory.is_symlink() else directory.rmdir()


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"[" * 100_000, b'{"current": 1}', b'{"current": {"key": "!", "version": 1}}']
)
def test_a_spoilt_file_is_named_and_left(paths: Paths, text: bytes) -> None:
    write_unlock_keys(paths, Kek(ONE))
    file = secrets_directory(paths) / "unlock.json"
    file.write_bytes(text)
    with pytest.raises(CorruptFile, match=r"unlock\.json"):
        read_unlock_keys(paths)
    assert file.read_bytes() == text
