"""A manager whose key lies encrypted on the disk: locked, unlocked, re-keyed, restarted."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator

import pytest

from swarm.api.types_pb2 import MaybeEncryptedRecord
from swarm.pki.keyfile import KeyFile
from swarm.pki.tokens import parse_unlock_key
from swarm.unlock import forget_unlock_keys, secrets_directory
from tests.e2e.host import Host, eventually


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


def as_after_a_reboot(node: Host) -> None:
    """Stop everything; what lay in memory is gone."""
    node.ok("down", timeout=90)
    forget_unlock_keys(node.paths)
    node.run("up", "--timeout", "3")


def unlock(node: Host, key: str) -> None:
    result = node.run("unlock", stdin=f"{key}\n")
    assert result.code == 0, result.err + node.logs()


def test_a_locked_manager_waits_for_its_key_and_then_goes_on_without_a_restart(host: Host) -> None:
    host.init()
    host.service("web", "sleep", "600")
    before = host.identity()
    assert not encrypted(host)
    clear = host.paths.node_cert.read_bytes()
    first = key_in(host.ok("swarm", "update", "--autolock"))
    eventually(lambda: encrypted(host), what="the key file is locked")
    assert record(host).algorithm == MaybeEncryptedRecord.SECRETBOX_SALSA20_POLY1305
    eventually(lambda: host.paths.node_cert.read_bytes() != clear, what="the key that lay in the clear is gone")
    assert key_in(host.ok("swarm", "unlock-key")) == first
    second = host.ok("swarm", "unlock-key", "--rotate", "-q").strip()
    assert second != first
    eventually(lambda: opens(host, second), what="the key file is under the new key")
    assert not opens(host, first)
    # one that is restarted while the machine runs finds the key in memory
    host.kill("manager")
    eventually(lambda: host.json("node", "ls"), what="the manager is back without being asked for the key")
    as_after_a_reboot(host)
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
    as_after_a_reboot(host)
    eventually(lambda: host.state() == "locked", what="locked")
    unlock(host, key)
    assert host.ok("swarm", "unlock-key", "-q").strip() == key
