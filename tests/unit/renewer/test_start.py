"""What the renewer does with what it finds at start: load, bootstrap, or refuse in words and overwrite nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from procs.renewer import files
from procs.renewer.inventory import Choice, Inventory, choose, lost_swarm
from swarm.clock import SystemClock
from swarm.errors import BadInput, CorruptFile, Locked, SwarmvisorError
from swarm.identity import FIPS_PREFIX
from swarm.nodeconfig import NodeConfig, save_node_config
from swarm.paths import Paths
from swarm.pki import pem, privatekey
from swarm.pki.credentials import load_credentials
from swarm.pki.keyfile import Kek, KeyFile
from swarm.pki.rootca import RootCA
from swarm.pki.tokens import generate_join_token
from swarm.remotes import Peer, save_peers
from tests.tools.authority import Authority

CLOCK = SystemClock()


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    found = Paths(tmp_path / "state", tmp_path / "run")
    found.state.mkdir()
    save_node_config(found.node_toml, NodeConfig())
    return found


@pytest.fixture
def founded(paths: Paths) -> Paths:
    files.begin(paths, CLOCK)
    return paths


def content(paths: Paths) -> dict[str, str]:
    return {
        str(p.relative_to(paths.state)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in paths.state.rglob("*")
        if p.is_file() and p.name != ".lock"
    }


WHOLE = {"root": True, "key": True, "certificate": True}
NOTHING = {"root": False, "key": False, "certificate": False}


@pytest.mark.parametrize(
    ("found", "choice", "words"),
    [
        (Inventory(**WHOLE), Choice.LOAD, ""),
        (Inventory(**WHOLE, store=True, peers=True, join_addr="h:1"), Choice.LOAD, ""),
        (Inventory(**NOTHING), Choice.BOOTSTRAP, ""),
        (Inventory(**{**NOTHING, "root": True}, operator_key=True), Choice.BOOTSTRAP, ""),
        (Inventory(**{**NOTHING, "root": True}, bootstrap_key=True), Choice.BOOTSTRAP, ""),
        (Inventory(**{**WHOLE, "root": False}, bootstrap_key=True), Choice.BOOTSTRAP, ""),
        (Inventory(**NOTHING, operator_key=True), Choice.REFUSE, "swarm-root-ca.key is there without"),
        (Inventory(**NOTHING, join_addr="h:1"), Choice.JOIN, ""),
        (Inventory(**{**NOTHING, "root": True}, join_addr="h:1"), Choice.JOIN, ""),
        (Inventory(**NOTHING, join_addr="h:1", peers=True), Choice.REFUSE, "belongs to a swarm (state.json)"),
        (Inventory(**NOTHING, join_addr="h:1", store=True), Choice.REFUSE, "has a store"),
        (Inventory(**{**WHOLE, "key": False}, store=True), Choice.REFUSE, "lacks swarm-node.key;"),
        (Inventory(**NOTHING, store=True), Choice.REFUSE, "swarm-root-ca.crt, swarm-node.key, swarm-node.crt;"),
        (Inventory(**NOTHING, peers=True), Choice.REFUSE, "belongs to a swarm (state.json)"),
    ],
)
def test_choices(found: Inventory, choice: Choice, words: str) -> None:
    chosen, why = choose(found)
    assert chosen is choice
    assert words in why
    assert bool(why) == (choice is Choice.REFUSE)


def test_managers_certificate_without_anything_else_is_a_lost_swarm() -> None:
    assert "are gone" in lost_swarm(Inventory(**WHOLE), "manager")
    assert lost_swarm(Inventory(**WHOLE), "worker") == ""
    for there in ("bootstrap_key", "operator_key", "store", "peers"):
        assert lost_swarm(Inventory(**WHOLE, **{there: True}), "manager") == ""


def test_bootstrap_makes_a_manager_of_a_swarm_of_its_own(paths: Paths) -> None:
    held, bootstrap_key = files.begin(paths, CLOCK)
    assert (held.role, bootstrap_key, len(held.node_id), len(held.cluster_id)) == ("manager", True, 25, 25)
    assert held.node_id != held.cluster_id
    assert held.not_after - held.not_before == 90 * 86400 + 3600
    modes = {p.name: p.stat().st_mode & 0o777 for p in paths.certificates.iterdir() if p.name != ".lock"}
    assert modes == {
        ".bootstrap-ca.key": 0o600,
        "swarm-root-ca.crt": 0o644,
        "swarm-node.crt": 0o644,
        "swarm-node.key": 0o600,
    }
    root = RootCA.from_pem(held.root_pem, paths.bootstrap_root_key.read_bytes(), held.root_pem)
    assert root.pool[0].common_name == "swarm-ca"
    assert files.begin(paths, CLOCK) == (held, True)


def test_operators_root_is_used_and_stays(paths: Paths) -> None:
    own = RootCA.create("operator")
    paths.certificates.mkdir()
    paths.root_cert.write_bytes(own.certs)
    paths.root_key.write_bytes(own.key_pem)
    held, bootstrap_key = files.begin(paths, CLOCK)
    assert (held.root_pem, held.issuer_subject, bootstrap_key) == (own.certs, own.pool[0].subject, True)
    assert paths.bootstrap_root_key.read_bytes() == paths.root_key.read_bytes() == own.key_pem


def test_operators_root_that_does_not_fit_its_key_is_refused(paths: Paths) -> None:
    paths.certificates.mkdir()
    paths.root_cert.write_bytes(RootCA.create().certs)
    paths.root_key.write_bytes(RootCA.create().key_pem)
    before = content(paths)
    with pytest.raises(CorruptFile, match=r"swarm-root-ca\.key: cannot be used .* certificate key mismatch"):
        files.begin(paths, CLOCK)
    assert content(paths) == before


@pytest.mark.parametrize("gone", ["node_key", "node_cert", "root_cert"])
def test_node_with_a_store_never_becomes_another_swarm(founded: Paths, gone: str) -> None:
    founded.manager.mkdir()
    missing: Path = getattr(founded, gone)
    missing.unlink()
    before = content(founded)
    with pytest.raises(BadInput, match=f"has a store .*lacks {missing.name}; restore"):
        files.begin(founded, CLOCK)
    assert content(founded) == before


def test_node_that_knows_managers_never_becomes_another_swarm(paths: Paths) -> None:
    save_peers(paths.state_json, [Peer("m", "192.0.2.1:2377")])
    with pytest.raises(BadInput, match=r"state\.json"):
        files.begin(paths, CLOCK)
    save_peers(paths.state_json, [])
    assert files.begin(paths, CLOCK)[0].role == "manager"


def test_node_that_shall_join_makes_no_swarm_of_its_own(paths: Paths) -> None:
    save_node_config(paths.node_toml, NodeConfig(join_addr="192.0.2.1:2377"))
    with pytest.raises(files.NotJoined, match=r"has to join the swarm at 192\.0\.2\.1:2377"):
        files.begin(paths, CLOCK)
    assert not content(paths).keys() - {"node.toml"}


def test_what_a_join_needed_goes_once_there_is_a_certificate(founded: Paths) -> None:
    founded.joining.write_text("a join that was killed after it had written the pair")
    founded.join_token.write_text("SWMTKN")
    files.begin(founded, CLOCK)
    assert not founded.joining.exists()
    assert not founded.join_token.exists()


@pytest.mark.parametrize("kek", [Kek(), Kek(b"k" * 32, 7)])
def test_first_certificate_is_written_under_the_managers_unlock_key(founded: Paths, kek: Kek) -> None:
    held = load_credentials(founded)
    for path in (founded.node_key, founded.node_cert):
        path.unlink()
    founded.join_token.write_text("SWMTKN")
    assert files.install_first(founded, held, kek) == held
    _, version, encrypted = KeyFile.of(founded).read_headers()
    assert (version, encrypted) == (kek.version, bool(kek.key))
    assert not founded.join_token.exists()


def test_certificates_win_over_an_address_to_join(founded: Paths) -> None:
    save_node_config(founded.node_toml, NodeConfig(join_addr="192.0.2.1:2377"))
    assert files.begin(founded, CLOCK)[0].role == "manager"


JUNK = [b"", b"junk", b"-----BEGIN CERTIFICATE-----\nQUJD\n-----END CERTIFICATE-----\n", b"\xff\0"]
NAMES = ["node_key", "node_cert", "root_cert", "state_json", "node_toml"]


# an empty node.toml is no junk: it means all defaults
@pytest.mark.parametrize(("name", "junk"), [(n, j) for n in NAMES for j in JUNK if (n, j) != ("node_toml", b"")])
def test_corrupt_files_are_named_and_left(founded: Paths, name: str, junk: bytes) -> None:
    broken: Path = getattr(founded, name)
    broken.write_bytes(junk)
    before = content(founded)
    with pytest.raises(SwarmvisorError) as raised:
        files.begin(founded, CLOCK)
    assert broken.name in raised.value.describe()
    assert raised.value.remedy
    assert content(founded) == before


def test_new_root_must_cover_the_present_certificate(founded: Paths) -> None:
    held = load_credentials(founded)
    other = RootCA.create()
    for bundle in (other.certs, b"junk", b""):
        with pytest.raises(BadInput):
            files.install_root(founded, held, bundle, CLOCK)
        assert founded.root_cert.read_bytes() == held.root_pem
    both = held.root_pem + other.certs
    after = files.install_root(founded, held, both, CLOCK)
    assert (after.root_pem, founded.root_cert.read_bytes()) == (both, both)
    assert after.root_digest == hashlib.sha256(both).hexdigest()


def test_key_headers_of_the_manager_survive_a_restart_of_the_renewer(founded: Paths) -> None:
    KeyFile.of(founded).view_and_update_headers(lambda _: {"raft-dek": "x"})
    files.begin(founded, CLOCK)
    assert KeyFile.of(founded).read().headers == {"raft-dek": "x"}


@pytest.mark.parametrize("gone", ["node_key and node_cert", "root_cert"])
def test_a_part_of_the_certificates_of_no_swarm_is_replaced_as_a_whole(founded: Paths, gone: str) -> None:
    before = load_credentials(founded)
    founded.bootstrap_root_key.unlink()
    for name in gone.split(" and "):
        missing: Path = getattr(founded, name)
        missing.unlink()
    after, _ = files.begin(founded, CLOCK)
    assert after.root_digest != before.root_digest
    assert after.key_pem != before.key_pem
    assert after.cluster_id != before.cluster_id


@pytest.mark.parametrize("fips", [True, False])
def test_a_fips_swarms_certificate_is_for_fips_nodes_and_any_other_for_both(paths: Paths, fips: bool) -> None:
    authority = Authority(cluster_id=f"{FIPS_PREFIX}swarm")
    held = authority.bootstrap(paths)
    save_node_config(paths.node_toml, NodeConfig(fips=fips))
    before = content(paths)
    if fips:
        assert files.begin(paths, CLOCK)[0] == held
    else:
        with pytest.raises(BadInput, match="^node is not FIPS-enabled but cluster requires FIPS$"):
            files.begin(paths, CLOCK)
        assert content(paths) == before
    other = Authority().issue("worker")
    KeyFile.of(paths).write(other.certificate_pem, other.key_pem)
    paths.root_cert.write_bytes(other.root_pem)
    paths.join_token.write_text(generate_join_token(other.root_pem, fips=True))
    assert files.begin(paths, CLOCK)[0] == other, "what is on disk wins over the token"


@pytest.mark.parametrize("fips", [True, False])
def test_a_fips_node_founds_a_fips_swarm(paths: Paths, fips: bool) -> None:
    save_node_config(paths.node_toml, NodeConfig(fips=fips))
    assert files.begin(paths, CLOCK)[0].cluster_id.startswith(FIPS_PREFIX) is fips
    assert paths.node_key.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----"), "PKCS#8 in either case"


def test_a_key_that_is_encrypted_with_md5_is_none_for_a_fips_node(founded: Paths) -> None:
    plain = privatekey.to_pkcs8(privatekey.load_pem(load_credentials(founded).key_pem))
    sealed, headers = privatekey.encrypt_legacy(plain, b"unlock")
    founded.node_key.write_bytes(pem.Block(privatekey.LEGACY, sealed, headers).encode())
    before = content(founded)
    with pytest.raises(Locked):
        files.begin(founded, CLOCK)
    save_node_config(founded.node_toml, NodeConfig(fips=True))
    with pytest.raises(CorruptFile, match=r"swarm-node\.key: unsupported key format due to FIPS compliance"):
        files.begin(founded, CLOCK)
    assert {**content(founded), "node.toml": ""} == {**before, "node.toml": ""}
