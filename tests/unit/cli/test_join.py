"""What `join` and `init` take, and what `join` makes of what the renewer says; without a node."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc import topics
from procs.agent.description import describe
from procs.cli.join import TRIES, _judge, check_token, refuse_members, with_port
from procs.cli.options import generic_resources, labels
from swarm.api import types_pb2
from swarm.errors import BadInput, Refused, SwarmvisorError, Unreachable
from swarm.joining import Trouble
from swarm.nodeconfig import NodeConfig, load_node_config, save_node_config, validate
from swarm.paths import Paths
from swarm.pki.tokens import generate_join_token

CONTEXT = click.Context(click.Command("join"))
PARAMETER = click.Option(["--generic-resource"])


def resources(*values: str) -> dict[str, str]:
    return generic_resources(CONTEXT, PARAMETER, values)


def test_generic_resources_are_counts_or_names_as_swarmd_and_docker_write_them() -> None:
    assert resources("fpga=2,gpu=UUID1", "gpu=UUID2") == {"fpga": "2", "gpu": "UUID1,UUID2"}
    told = describe(NodeConfig(generic_resources=resources("gpu=b,gpu=a", "ssd=3")), types_pb2.NodeTLSInfo())
    shown = [
        (r.WhichOneof("resource"), getattr(r, r.WhichOneof("resource") or "").kind) for r in told.resources.generic
    ]
    assert shown == [
        ("named_resource_spec", "gpu"),
        ("named_resource_spec", "gpu"),
        ("discrete_resource_spec", "ssd"),
    ]


@pytest.mark.parametrize("text", ["gpu", "=1", "gpu=", "gpu=1,gpu=2", "gpu=1,gpu=a", "gpu=a,gpu=a", ""])
def test_generic_resources_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        resources(text)


def test_the_port_may_be_left_out() -> None:
    for typed, meant in (("host", "host:2377"), ("host:1", "host:1"), ("[::1]", "[::1]:2377"), ("[::1]:7", "[::1]:7")):
        assert with_port(typed) == meant
        assert validate(NodeConfig(join_addr=meant)).join_addr == meant


@pytest.mark.parametrize("typed", ["a:b:c", "host:99999", "127.0.0.1:", ":2377", ""])
def test_an_address_that_is_none_is_refused_in_words_of_the_command(typed: str) -> None:
    with pytest.raises(BadInput, match=r"^the manager's address: .* is not HOST:PORT"):
        with_port(typed)


def test_labels_are_pairs() -> None:
    assert labels(CONTEXT, PARAMETER, ("a=b=c", "d=")) == {"a": "b=c", "d": ""}
    with pytest.raises(click.BadParameter, match="not KEY=VALUE"):
        labels(CONTEXT, PARAMETER, ("a",))


@given(st.text(max_size=120) | st.builds("SWMTKN-{}".format, st.text("12-abz09", max_size=90)))
def test_any_text_is_a_token_or_a_clear_error(text: str) -> None:
    try:
        check_token(text, fips=False)
    except (BadInput, Refused) as error:
        assert error.remedy


def test_a_fips_token_is_for_fips_nodes() -> None:
    token = generate_join_token(b"", fips=True)
    with pytest.raises(Refused, match="requires FIPS"):
        check_token(token, fips=False)
    assert str(check_token(f" {token}\n", fips=True)) == token


def joining(trouble: Trouble, attempt: int = 1) -> topics.Certificate:
    return topics.Certificate("joining", attempt=attempt, why="words", problem=trouble)


def failed(trouble: Trouble) -> topics.Certificate:
    return topics.Certificate("failed", attempt=1, why="words", problem=trouble)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (failed(Trouble.TOKEN), BadInput),
        *[(failed(t), Refused) for t in (Trouble.DIGEST, Trouble.REFUSED, Trouble.OTHER_SWARM, Trouble.FIPS)],
        (joining(Trouble.UNREACHABLE, TRIES), Unreachable),
        (joining(Trouble.CLOCK), Refused),
        (topics.Certificate("failed", why="words", problem="of a newer release"), Refused),
    ],
)
def test_what_will_not_do_ends_the_command(said: topics.Certificate, expected: type[SwarmvisorError]) -> None:
    with pytest.raises(expected, match="words"):
        _judge(said)


def test_what_may_do_later_is_waited_for() -> None:
    for said in (topics.Certificate("joining"), joining(Trouble.UNREACHABLE, TRIES - 1), joining(Trouble.OTHER, 50)):
        _judge(said)


def test_a_member_does_not_join_again(tmp_path: Path) -> None:
    paths = Paths(tmp_path, tmp_path / "run")
    refuse_members(paths)
    save_node_config(paths.node_toml, NodeConfig(join_addr="h:1", fips=True))
    assert load_node_config(paths.node_toml).fips
    paths.join_token.write_text("SWMTKN")
    with pytest.raises(Refused, match="joining a swarm already"):
        refuse_members(paths)
    paths.join_token.unlink()
    with pytest.raises(Refused, match=r"This node is already part of a swarm") as refusal:
        refuse_members(paths)
    assert refusal.value.describe() == (
        "This node is already part of a swarm; use `swarmvisor leave` to leave it and join another one"
    )
