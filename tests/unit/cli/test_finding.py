"""What a name on the command line means, and what a failed call tells the user."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from procs.cli import control
from swarm.api import objects_pb2
from swarm.errors import BadInput, NoLeader, Refused, SwarmvisorError, TimedOut, Unreachable
from swarm.nodeconfig import NodeConfig, save_node_config
from swarm.paths import Paths
from swarm.pki.certificate import MANAGER_OU, WORKER_OU
from swarm.pki.keyfile import KeyFile
from swarm.pki.request import new_request
from swarm.pki.rootca import RootCA


def asked_at(paths: Paths) -> str:
    with pytest.raises(Unreachable) as refusal, control.connect(paths):
        pass
    return refusal.value.describe()


def test_a_host_that_is_no_node_is_told_both_ways_to_become_one(tmp_path: Path) -> None:
    told = asked_at(Paths(tmp_path, tmp_path / "run"))
    assert "`swarmvisor init`" in told
    assert "`swarmvisor join`" in told


def test_a_worker_is_not_told_to_start_a_manager_that_it_has_not(tmp_path: Path) -> None:
    paths = Paths(tmp_path, tmp_path / "run")
    save_node_config(paths.node_toml, NodeConfig())
    authority = RootCA.create()
    for unit, words in ((WORKER_OU, "this node is a worker"), (MANAGER_OU, "no manager runs on this node; run")):
        key, csr = new_request()
        KeyFile.of(paths).write(authority.sign(csr, "me", unit, "swarm", 7_776_000), key)
        paths.root_cert.write_bytes(authority.certs)
        told = asked_at(paths)
        assert words in told
        assert ("`swarmvisor up`" in told) == (unit == MANAGER_OU)


def service(id_: str, name: str) -> objects_pb2.Service:
    found = objects_pb2.Service(id=id_)
    found.spec.annotations.name = name
    return found


SERVICES = [service("abc1", "web"), service("abd2", "webhook"), service("web9", "db")]


def pick(name: str) -> str:
    return control.pick("service", name, SERVICES, lambda s: s.spec.annotations.name).spec.annotations.name


@pytest.mark.parametrize(
    ("given", "means"),
    [("abc1", "web"), ("web", "web"), ("webhook", "webhook"), ("webh", "webhook"), ("abd", "webhook"), ("d", "db")],
)
def test_id_then_name_then_unique_prefix(given: str, means: str) -> None:
    assert pick(given) == means


def test_an_ambiguous_prefix_lists_the_candidates() -> None:
    with pytest.raises(BadInput, match=r"service ab is ambiguous \(2 matches found\)") as caught:
        pick("ab")
    assert caught.value.remedy == "one of: web (abc1), webhook (abd2)"


def test_a_typo_gets_a_suggestion() -> None:
    with pytest.raises(control.NotFound, match="service wbe not found") as caught:
        pick("wbe")
    assert caught.value.remedy == "did you mean web?"


@pytest.mark.parametrize("name", ["", "zzz"])
def test_what_is_not_there_is_not_found(name: str) -> None:
    with pytest.raises(control.NotFound, match=f"service {name} not found"):
        pick(name)


class Failure(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__()
        self._code, self._text = code, text

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._text


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, "connection refused", Unreachable),
        (grpc.StatusCode.UNKNOWN, "The swarm does not have a leader. It's possible that …", NoLeader),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "", TimedOut),
        (grpc.StatusCode.NOT_FOUND, "service x not found", control.NotFound),
        (grpc.StatusCode.INVALID_ARGUMENT, "name must be 63 characters or fewer", Refused),
        (grpc.StatusCode.ALREADY_EXISTS, "name conflicts", Refused),
        (grpc.StatusCode.UNKNOWN, "update out of sequence", SwarmvisorError),
    ],
)
def test_a_failed_call_becomes_an_error_of_the_tree(code: grpc.StatusCode, text: str, kind: type) -> None:
    error = control.translate(Failure(code, text))
    assert type(error) is kind
    assert text in error.message or kind is TimedOut


class Bare:
    """A Control without a channel: only `modify` is used."""

    modify = control.Control.modify


def test_a_change_is_tried_again_when_somebody_else_wrote_first() -> None:
    tries: list[int] = []

    def attempt() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise SwarmvisorError("update out of sequence")
        return "done"

    assert Bare().modify(attempt) == "done"  # type: ignore[misc]
    assert len(tries) == 3


def test_a_change_that_never_wins_says_so_in_the_end() -> None:
    def attempt() -> str:
        raise SwarmvisorError("update out of sequence")

    with pytest.raises(SwarmvisorError, match="update out of sequence"):
        Bare().modify(attempt)  # type: ignore[misc]


def test_other_errors_are_not_retried() -> None:
    tries: list[int] = []

    def attempt() -> str:
        tries.append(1)
        raise Refused("no")

    with pytest.raises(Refused):
        Bare().modify(attempt)  # type: ignore[misc]
    assert len(tries) == 1
