"""`up --init`: what it creates, and what it will not do to a node that is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from procs.cli.__main__ import run
from procs.cli.up import _create_if_none
from swarm.errors import BadInput, Refused
from swarm.nodeconfig import load_node_config
from swarm.paths import Paths

HERE = "127.0.0.1:0"


@pytest.fixture
def paths(short_dir: Path) -> Paths:
    return Paths(short_dir / "state", short_dir / "run")


def test_a_host_that_is_no_node_becomes_one_and_only_once(paths: Paths) -> None:
    assert _create_if_none(paths, HERE)
    assert load_node_config(paths.node_toml).listen_addr == HERE
    before = paths.node_toml.read_bytes()
    assert not _create_if_none(paths, HERE)
    assert not _create_if_none(paths, None)
    assert paths.node_toml.read_bytes() == before


def test_a_node_that_listens_elsewhere_is_left_as_it_is(paths: Paths) -> None:
    _create_if_none(paths, HERE)
    with pytest.raises(Refused, match=r"listens on 127.0.0.1:0, not on 127.0.0.1:1"):
        _create_if_none(paths, "127.0.0.1:1")
    assert load_node_config(paths.node_toml).listen_addr == HERE


def test_nothing_is_created_at_an_address_that_cannot_be(paths: Paths) -> None:
    with pytest.raises(BadInput):
        _create_if_none(paths, "nonsense")
    assert not paths.state.exists()


def test_a_listen_address_without_init_is_a_mistake_on_the_command_line(
    paths: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(["--state-dir", str(paths.state), "--runtime-dir", str(paths.runtime), "up", "--listen-addr", HERE])
    assert code == 2
    assert "--init" in capsys.readouterr().err
    assert not paths.state.exists()
