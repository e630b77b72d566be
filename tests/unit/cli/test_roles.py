"""The words for a role change, from a node object and from this node's own processes."""

from __future__ import annotations

from typing import Any

import pytest

from ipc import topics
from procs.cli.observed import View
from procs.cli.ownroles import certificate_step, describe
from procs.cli.roles import judge, judge_here
from procs.cli.rolestep import step
from procs.cli.rows import node_row
from swarm.api import objects_pb2, types_pb2

MANAGER, WORKER = types_pb2.MANAGER, types_pb2.WORKER
State = types_pb2.IssuanceStatus
NOW = 1_700_000_000.0


def node(
    desired: Any,
    observed: Any,
    certificate: Any,
    state: Any = State.ISSUED,
    member: bool | None = None,
    name: str = "n1",
) -> objects_pb2.Node:
    """`member`: whether it is reached as a manager; None: it is none."""
    made = objects_pb2.Node(id=name, role=observed)
    made.spec.desired_role = desired
    made.certificate.role = certificate
    made.certificate.status.state = state
    made.status.state = types_pb2.NodeStatus.READY
    if member is not None:
        status = types_pb2.RaftMemberStatus
        made.manager_status.reachability = status.REACHABLE if member else status.UNREACHABLE
    return made


@pytest.mark.parametrize(
    ("about", "words"),
    [
        (node(WORKER, WORKER, WORKER), ""),
        (node(MANAGER, MANAGER, MANAGER, member=True), ""),
        (node(MANAGER, WORKER, WORKER), "waiting for the leader to take note of the promotion"),
        (node(MANAGER, MANAGER, WORKER), "waiting for the node to ask for a certificate of role manager"),
        (
            node(MANAGER, MANAGER, MANAGER, State.RENEW),
            "the node has asked for a certificate of role manager; waiting for the CA's signature",
        ),
        (
            node(MANAGER, MANAGER, MANAGER),
            "a certificate of role manager is issued; waiting for the node to join the managers",
        ),
        (node(MANAGER, MANAGER, MANAGER, member=False), "it is one of the managers, but cannot be reached as one"),
        (node(WORKER, MANAGER, MANAGER), "it is none of the managers any more; waiting for the leader to take note"),
        (node(WORKER, WORKER, MANAGER), "waiting for the node to ask for a certificate of role worker"),
    ],
)  # fmt: skip
def test_each_step_has_its_words(about: objects_pb2.Node, words: str) -> None:
    assert step(about) == words
    assert judge(about, [about], about.spec.desired_role).done == (not words)


def test_a_refusal_of_the_ca_and_a_node_that_is_down_are_named() -> None:
    failed = node(MANAGER, MANAGER, MANAGER, State.FAILED)
    failed.certificate.status.err = "bad CSR"
    assert step(failed) == "the CA refused a certificate of role manager: bad CSR"
    down = node(MANAGER, MANAGER, WORKER)
    down.status.state = types_pb2.NodeStatus.DOWN
    assert step(down) == "waiting for the node, which is down, to ask for a certificate of role manager"


def test_a_removal_that_would_cost_the_quorum_says_the_numbers() -> None:
    leaving = node(WORKER, MANAGER, MANAGER, member=True)
    others = [node(MANAGER, MANAGER, MANAGER, member=ok, name=f"o{ok}") for ok in (True, False)]
    assert step(leaving, [leaving, *others]).endswith("of the 2 that would stay 1 can be reached, and 2 are needed")
    assert step(leaving, [leaving, others[0]]) == "waiting for the leader to take it out of the managers"


def test_a_wish_that_somebody_took_back_ends_the_waiting() -> None:
    about = node(WORKER, MANAGER, WORKER)
    assert judge(about, [about], MANAGER).hopeless == "its desired role is worker again"


def test_a_listing_shows_all_three_roles_and_the_step() -> None:
    row = node_row(node(MANAGER, MANAGER, WORKER))
    assert (row["desired_role"], row["role"], row["certificate_role"]) == ("manager", "manager", "worker")
    assert row["step"] == "waiting for the node to ask for a certificate of role manager"


def test_the_request_under_way_is_told_with_attempt_time_and_cause() -> None:
    held = topics.Certificate("valid", attempt=3, next_try_at=int(NOW) + 4, why="connection refused")
    assert certificate_step(held, NOW) == "waiting for certificate, attempt 3, next in 4 s: connection refused"
    assert certificate_step(topics.Certificate("valid"), NOW) == "waiting for certificate"


def test_status_tells_the_roles_and_the_request_only_while_it_is_about_this_certificate() -> None:
    held = topics.Certificate("valid", "n1", "swarm", "worker", fingerprint="f", attempt=1, why="refused")
    view = View(
        bodies={
            "certificate": held,
            "node": topics.Node("ready", "n1", "", "what the coordinator says"),
            "node.changes": topics.NodeChanges("manager", "worker"),
            "role": topics.Role("worker", "manager", "f", "the swarm wants the role manager"),
        }
    )
    assert describe(view, "worker", NOW) == {
        "desired": "manager",
        "observed": "worker",
        "certificate": "worker",
        "step": "the swarm wants the role manager; waiting for certificate, attempt 1: refused",
    }
    view.bodies["role"] = topics.Role("worker", "manager", "older", "the swarm wants the role manager")
    assert describe(view, "worker", NOW)["step"] == "what the coordinator says"
    assert describe(View(), "", NOW) == {"desired": "", "observed": "", "certificate": "", "step": ""}


def test_a_node_that_demoted_itself_is_a_worker_once_its_manager_has_ended() -> None:
    view = View(bodies={"certificate": topics.Certificate("valid", role="manager")})
    assert not judge_here(view).done
    view.bodies["certificate"] = topics.Certificate("valid", role="worker")
    view.processes["manager"] = topics.Process("manager", "STOPPING", 7)
    assert judge_here(view).line == "waiting for the manager (process 7) to end"
    view.processes["manager"] = topics.Process("manager", "EXITED", 0, 81)
    assert judge_here(view).done
