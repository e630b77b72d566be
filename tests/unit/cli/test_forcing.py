"""`init --force-new-cluster` before anything runs: whom it refuses, what it changes, and a kill in the middle."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from procs.cli import forcing
from procs.cli.forcing import force
from procs.cli.init import command
from swarm.errors import Refused
from swarm.nodeconfig import load_node_config
from swarm.paths import Paths
from swarm.pki.keyfile import KeyFile
from tests.tools.authority import Authority


@pytest.fixture
def paths(short_dir: Path) -> Paths:
    """A manager that is down, and once joined another one."""
    found = Paths(short_dir / "s", short_dir / "r")
    own = Authority().bootstrap(found, listen_addr="127.0.0.1:2377", join_addr="127.0.0.1:1")
    found.manager.mkdir()
    (found.manager / "store.db").touch()
    peers = [{"node_id": own.node_id, "addr": "127.0.0.1:2377"}, {"node_id": "lost", "addr": "127.0.0.1:1"}]
    found.state_json.write_text(json.dumps(peers))
    return found


def without_node(paths: Paths) -> None:
    paths.node_toml.unlink()


def without_store(paths: Paths) -> None:
    (paths.manager / "store.db").rename(paths.manager / "ENGINE")


def as_worker(paths: Paths) -> None:
    issued = Authority().issue("worker")
    KeyFile.of(paths).write(issued.certificate_pem, issued.key_pem)


def before_it_joined(paths: Paths) -> None:
    paths.node_cert.unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (without_node, "no node in .* leave out --force-new-cluster"),
        (without_store, "no store in .*/manager"),
        (as_worker, "this node is a worker"),
        (before_it_joined, "this node has no certificate yet"),
    ],
)
def test_without_a_managers_store_it_is_refused_and_nothing_changes(
    paths: Paths, spoil: Callable[[Paths], None], words: str
) -> None:
    spoil(paths)
    before = {path: path.read_bytes() for path in paths.state.rglob("*") if path.is_file()}
    with pytest.raises(Refused) as refusal:
        force(paths, None, None, no_start=True, timeout=1)
    assert re.search(words, refusal.value.describe())
    assert {path: path.read_bytes() for path in paths.state.rglob("*") if path.is_file()} == before


def test_it_forgets_the_others_takes_the_new_address_and_leaves_the_order(paths: Paths) -> None:
    done = CliRunner().invoke(
        command, ["--force-new-cluster", "--no-start", "--advertise-addr", "127.0.0.1:7"], obj=paths
    )
    assert done.exit_code == 0, done.output
    config = load_node_config(paths.node_toml)
    assert (config.join_addr, config.listen_addr, config.advertise_addr) == ("", "127.0.0.1:2377", "127.0.0.1:7")
    assert not paths.state_json.exists()
    assert paths.forced.exists()


@pytest.mark.parametrize("step", ["save_node_config", "remove_durably", "write_atomic"])
def test_killed_before_the_order_is_there_it_has_not_happened_and_can_be_given_again(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(forcing, step, die)
        with pytest.raises(Killed):
            force(paths, None, None, no_start=True, timeout=1)
    assert not paths.forced.exists()
    assert load_node_config(paths.node_toml).listen_addr == "127.0.0.1:2377"
    force(paths, None, None, no_start=True, timeout=1)
    assert paths.forced.exists()
