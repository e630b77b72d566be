"""Whatever bytes lie in the files of a node: each is named and left as it is, or read as what it was (issue 3 §5.3)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import BadInput, CorruptFile, Locked, Refused
from swarm.nodeconfig import load_node_config
from swarm.paths import Paths
from swarm.pki import der, pem, privatekey
from swarm.pki.credentials import load_credentials
from swarm.pki.keyfile import KeyFile
from swarm.pki.request import new_request
from swarm.pki.rootca import RootCA
from swarm.remotes import Peer, load_peers, save_peers
from tests.unit.pki.authority import NOW
from tests.unit.pki.spoiled import FUZZ, json_values, spoiled

# What the library warns of (odd serial numbers, old algorithms) is no news about noise.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

ROOT = RootCA.create(now=NOW)
KEY, CSR = new_request()
LEAF = ROOT.sign(CSR, "node1", "swarm-manager", "org1", 7200, now=NOW)
STATE = b'[{"node_id":"a","addr":"192.0.2.1:2377"},{"addr":"192.0.2.2:2377"}]'
PLAIN = privatekey.to_pkcs8(privatekey.load_pem(KEY))
HEADERS = {"kek-version": "7", "raft-dek": "AAAA", "raft-dek-needs-rotation": "true"}
LEGACY, LEGACY_HEADERS = privatekey.encrypt_legacy(PLAIN, b"kek")
KEY_FILES = (
    pem.Block(privatekey.PLAIN, PLAIN, HEADERS).encode(),
    pem.Block(privatekey.ENCRYPTED, privatekey.encrypt(PLAIN, b"kek"), HEADERS).encode(),
    pem.Block(privatekey.LEGACY, LEGACY, {**HEADERS, **LEGACY_HEADERS}).encode(),
)

MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    base = tmp_path_factory.mktemp("node")
    found = Paths(base / "state", base / "run")
    found.certificates.mkdir(parents=True)
    found.root_cert.write_bytes(ROOT.certs)
    return found


def content(paths: Paths) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in paths.certificates.iterdir() if path.name != ".lock"}


@FUZZ
@given(spoiled(*KEY_FILES), st.sampled_from(["read", "rotate", "headers", "downgrade", "repair", "write"]))
def test_a_spoiled_key_file_is_named_and_left_or_opens_as_the_same_key(paths: Paths, data: bytes, what: str) -> None:
    file = KeyFile.of(paths)
    file.key.write_bytes(data)
    file.certificate.write_bytes(LEAF)
    before = content(paths)

    def fail(*_: object) -> None:
        raise Refused("the change does not work out")

    use: dict[str, Callable[[], object]] = {
        "read": lambda: file.read(b"kek"),
        "rotate": lambda: file.rotate(fail, b"kek"),  # type: ignore[arg-type]
        "headers": lambda: file.view_and_update_headers(fail),  # type: ignore[arg-type]
        "downgrade": lambda: file.downgrade(b"another"),
        "repair": lambda: file.repair(b"kek"),
        "write": lambda: file.write(LEAF, KEY, headers=fail),  # type: ignore[arg-type]
    }
    try:
        use[what]()
    except CorruptFile as error:
        assert str(paths.certificates) in error.describe()
        assert error.remedy
    except (Locked, Refused):
        pass
    else:
        if what == "read":
            assert file.read(b"kek").key_pem == KEY
        if what == "downgrade":
            return  # it was plain, and has its older form now
    assert content(paths) == before


@pytest.mark.parametrize(
    ("text", "version"),
    [("7", 7), ("007", 7), (str(2**64 - 1), 2**64 - 1), (str(2**64), 0), ("9" * 5000, 0), ("-1", 0), ("٣", 0), ("", 0)],
)
def test_a_version_of_the_unlock_key_that_is_no_number_of_64_bits_counts_as_none(
    paths: Paths, text: str, version: int
) -> None:
    file = KeyFile.of(paths)
    file.certificate.write_bytes(LEAF)
    file.key.write_bytes(pem.Block(privatekey.PLAIN, PLAIN, {"kek-version": text}).encode())
    assert file.read().kek.version == version


def test_a_number_of_rounds_that_has_more_digits_than_python_prints_is_refused() -> None:
    count = der.encode(der.INTEGER, b"\x7f" + bytes(4000))
    sealed = privatekey.encrypt(PLAIN, b"kek")
    algorithm, body = (whole for _, _, whole in der.children(sealed))
    kdf, cipher = (whole for _, _, whole in der.children(der.children(algorithm)[1][2]))
    salt = der.children(der.children(kdf)[1][2])[0][2]
    endless = der.encode(der.SEQUENCE, der.children(kdf)[0][2], der.encode(der.SEQUENCE, salt, count))
    scheme = der.encode(der.SEQUENCE, der.children(algorithm)[0][2], der.encode(der.SEQUENCE, endless, cipher))
    with pytest.raises(BadInput, match="number of iterations is not between"):
        privatekey.decrypt(pem.Block(privatekey.ENCRYPTED, der.encode(der.SEQUENCE, scheme, body)), b"kek")


@FUZZ
@given(spoiled(ROOT.certs), spoiled(LEAF))
def test_spoiled_certificate_files_are_named_and_left(paths: Paths, root: bytes, chain: bytes) -> None:
    file = KeyFile.of(paths)
    file.key.write_bytes(KEY_FILES[0])
    file.certificate.write_bytes(chain)
    paths.root_cert.write_bytes(root)
    before = content(paths)
    try:
        assert load_credentials(paths, now=NOW).key_pem == KEY
    except CorruptFile as error:
        assert str(paths.certificates) in error.describe()
    finally:
        assert content(paths) == before
        paths.root_cert.write_bytes(ROOT.certs)


# -- state.json, node.toml ------------------------------------------------------------------------------------------


@FUZZ
@given(
    spoiled(STATE)
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.lists(json_values, max_size=3).map(lambda value: json.dumps(value).encode())
)
def test_any_state_json_is_a_list_of_managers_or_named_and_left(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(data)
    try:
        found = load_peers(path)
    except CorruptFile as error:
        assert "state.json" in error.describe()
        assert error.remedy
    else:
        assert all(isinstance(peer, Peer) for peer in found)
        "".join(text for peer in found for text in peer).encode()
        save_peers(tmp_path / "again", found)
        assert set(load_peers(tmp_path / "again")) == set(found)
    assert path.read_bytes() == data


@pytest.mark.parametrize(
    "data",
    [b"[" * 100_000, b'[{"addr":' * 50_000, b"[" + b"9" * 5000 + b"]", b'[{"addr":"\\ud800"}]', b"\0" * MEGABYTE],
    ids=["deep", "deep with names", "a long number", "half a character", "zeros"],
)
def test_a_state_json_that_is_made_to_hurt_is_named_and_left(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(data)
    with pytest.raises(CorruptFile, match=r"state\.json"):
        load_peers(path)
    assert path.read_bytes() == data


def test_a_node_toml_of_many_brackets_is_named(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_bytes(b"labels = " + b"[" * 50_000)
    with pytest.raises(CorruptFile, match=r"node\.toml"):
        load_node_config(path)
