"""A manager whose key lies encrypted on the disk: locked, unlocked, re-keyed, restarted."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator

import pytest

from procs.manager.datakey import KeyRing
from procs.manager.store.sealing import key_id
from swarm.api.types_pb2 import MaybeEncryptedRecord
from swarm.pki.keyfile import KeyFile
from swarm.pki.tokens import parse_unlock_key
from swarm.unlock import forget_unlock_keys, secrets_directory
from tests.e2e.host import Host, Result, eventually, free_port


@pytest.fixture(autouse=True)
def nothing_in_memory(host: Host) -> Iterator[None]:
    yield
    forget_unlock_keys(host.paths)


def key_in(text: str) -> str:
    (found,) = re.findall(r"SWMKEY-1-\S+", text)
    return str(found)


def encrypted(node: Host) -> bool:
    return KeyFile.of(node.paths).read_headers()[2]


def record(node: Host) -> MaybeEncryptedRecord:
    headers, _, _ = KeyFile.of(node.paths).read_headers()
    return MaybeEncryptedRecord.FromString(base64.b64decode(headers["raft-dek"]))


def data_key(node: Host) -> bytes:
    """The one data key of the store; AssertionError while there are two, or another one is asked for."""
    headers, _, _ = KeyFile.of(node.paths).read_headers()
    assert set(headers) == {"raft-dek"}, headers
    return KeyRing(node.paths).read(store_exists=True).current


def sealed_with(node: Host, key: bytes) -> bool:
    """Whether anything on the disk of the store is: each value carries the id of its data key."""
    return any(key_id(key) in path.read_bytes() for path in node.paths.manager.glob("store.db*"))


def as_after_a_reboot(node: Host) -> Result:
    """Stop everything; what lay in memory is gone. What `up` says then."""
    node.ok("down", timeout=90)
    forget_unlock_keys(node.paths)
    return node.run("up")


def unlock(node: Host, key: str) -> None:
    result = node.run("unlock", stdin=f"{key}\n")
    assert result.code == 0, result.err + node.logs()


def test_a_locked_manager_waits_for_its_key_and_then_goes_on_without_a_restart(host: Host) -> None:
    host.init()
    host.service("web", "sleep", "600")
    before = host.identity()
    assert not encrypted(host)
    clear, lay_in_the_clear = host.paths.node_cert.read_bytes(), data_key(host)
    assert sealed_with(host, lay_in_the_clear)
    first = key_in(host.ok("swarm", "update", "--autolock"))
    eventually(lambda: encrypted(host), what="the key file is locked")
    assert record(host).algorithm == MaybeEncryptedRecord.SECRETBOX_SALSA20_POLY1305
    eventually(lambda: host.paths.node_cert.read_bytes() != clear, what="the key that lay in the clear is gone")
    in_use = eventually(lambda: data_key(host), what="the store has one data key")
    assert in_use != lay_in_the_clear
    assert sealed_with(host, in_use)
    assert not sealed_with(host, lay_in_the_clear)
    assert key_in(host.ok("swarm", "unlock-key")) == first
    second = host.ok("swarm", "unlock-key", "--rotate", "-q").strip()
    assert second != first
    eventually(lambda: opens(host, second), what="the key file is under the new key")
    assert not opens(host, first)
    # one that is restarted while the machine runs finds the key in memory
    host.kill("manager")
    eventually(lambda: host.json("node", "ls"), what="the manager is back without being asked for the key")
    assert data_key(host) == in_use, "another unlock key needs no other data key"
    asked = as_after_a_reboot(host)
    assert asked.code == 6
    assert asked.err.endswith("swarm-node.key is encrypted; run `swarmvisor unlock`\n"), asked.err
    eventually(lambda: host.state() == "locked", what="locked")
    pids = {name: host.pid(name) for name in ("coordinator", "renewer", "agent")}
    assert all(pids.values())
    wrong = host.run("unlock", stdin=f"{first}\n")
    assert wrong.code != 0
    assert "unlock key" in wrong.err
    nonsense = host.run("unlock", stdin="hunter2\n")
    assert "invalid key string" in nonsense.err
    assert host.state() == "locked"
    unlock(host, second)
    assert {name: host.pid(name) for name in pids} == pids
    assert host.identity() == before
    host.expect_running("web", 1)
    host.ok("swarm", "update", "--no-autolock")
    eventually(lambda: not encrypted(host), what="the key file is plain again")
    assert data_key(host) == in_use
    as_after_a_reboot(host)
    host.expect_ready()


def opens(node: Host, key: str) -> bool:
    from swarm.errors import Locked

    try:
        KeyFile.of(node.paths).read(parse_unlock_key(key))
    except Locked:
        return False
    return True


def test_a_swarm_that_is_born_locked_and_keeps_to_fips(host: Host) -> None:
    result = host.run("init", "--listen-addr", f"127.0.0.1:{host.port}", "--autolock", "--fips")
    assert result.code == 0, result.err + host.logs()
    key = key_in(result.out)
    assert result.out.index(key) < result.out.index("Swarm initialized"), "printed before anything depends on it"
    assert encrypted(host)
    assert record(host).algorithm == MaybeEncryptedRecord.FERNET_AES_128_CBC
    assert host.identity()[1].startswith("FIPS.")
    assert host.ok("join-token", "worker", "-q").startswith("SWMTKN-2-1-")
    secret = secrets_directory(host.paths) / "unlock.json"
    raw = parse_unlock_key(key)
    for found in host.paths.state.rglob("*"):
        if found.is_file():
            data = found.read_bytes()
            assert raw not in data, found
            assert base64.b64encode(raw) not in data, found
    assert secret.exists()
    before, port = host.identity(), free_port()
    host.ok("down", timeout=90)
    forget_unlock_keys(host.paths)
    # an order that needs the key waits for it
    asked = host.run("init", "--force-new-cluster", "--listen-addr", f"127.0.0.1:{port}")
    assert asked.code == 6, asked
    assert asked.err.count("swarmvisor unlock") == 1, asked.err
    assert host.paths.forced.exists()
    unlock(host, key)
    assert not host.paths.forced.exists()
    assert host.identity() == before
    assert f":{port}" in host.ok("join-token", "worker")
    assert host.ok("swarm", "unlock-key", "-q").strip() == key
