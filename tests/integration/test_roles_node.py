"""A role change end to end, with the real coordinator, renewer and agent under a real supervisord (DESIGN §4)."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import Any

import grpc

from ipc import topics
from swarm.api import types_pb2
from swarm.pki.certificate import MANAGER_OU, WORKER_OU
from tests.integration.agent_node import eventually
from tests.integration.roles_node import RolesNode, roles_node


async def promoted(node: RolesNode) -> None:
    node.peer.wish("manager")
    await node.settled("manager")
    await node.says("manager", lambda m: m.state == "ready", "the manager is ready")


async def test_promotion_and_demotion_end_to_end() -> None:
    async with roles_node() as node:
        peer = node.peer
        assert peer.session_roles == [WORKER_OU]
        await promoted(node)
        assert peer.asked == 1
        await peer.until(lambda: peer.session_roles[-1] == MANAGER_OU, "a session with the new certificate")
        assert (node.paths.manager / "store.db").read_text() == "precious"

        # The scripted manager has no control socket: the agent has to try it, and fall back, before all else.
        def fallen_back() -> bool:
            _, tried, since = (node.paths.logs / "agent.log").read_text().rpartition("session with local:")
            return bool(tried) and ("resumed session" in since or "registered session" in since)

        await eventually(fallen_back, "the agent is in session with the other manager again")
        # Demotion: out of the managers, then the role; and nobody gives the node a session for a while.
        peer.refuse_session = (grpc.StatusCode.UNAVAILABLE, "not now")
        node.remove_from_managers()
        await node.says("process.manager", lambda p: p.exit_code == 80, "the manager ends with REMOVED")
        assert peer.asked == 1
        peer.wish("worker")
        await node.settled("worker")
        await eventually(node.erased, "the data is set aside")
        assert not node.paths.manager.exists()
        (aside,) = node.erased()
        assert aside.name == f"manager.erased-{node.credentials().fingerprint}"
        refused = len(peer.session_roles)
        await peer.until(lambda: len(peer.session_roles) >= refused + 2, "two more sessions refused")
        assert (aside / "store.db").read_text() == "precious"

        peer.refuse_session = None
        await node.says("agent", lambda a: a.state == "ready", "a session with another manager")
        await eventually(lambda: not node.erased(), "what was set aside is deleted")
        assert peer.asked == 2
        assert peer.session_roles[-1] == WORKER_OU


async def status(node: RolesNode) -> dict[str, Any]:
    """`swarmvisor status -o json` of the node."""
    places = ("--state-dir", str(node.paths.state), "--runtime-dir", str(node.paths.runtime))
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "procs.cli", *places, "status", "-o", "json", stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(child.communicate(), 20)
    found: dict[str, Any] = json.loads(out)
    return found


async def test_a_ca_that_fails_is_asked_again_and_the_step_says_so() -> None:
    async with roles_node() as node:
        assert (await status(node))["roles"] == {
            "desired": "worker", "observed": "worker", "certificate": "worker", "step": "",
        }  # fmt: skip
        node.peer.failures = 1000
        node.peer.wish("manager")
        said = await node.says("certificate", lambda c: c.attempt == 1, "the first attempt has failed")
        assert "the CA has the hiccups" in said.why
        assert said.next_try_at
        step = await node.says("node", lambda n: "attempt 1" in n.step, "the node tells the attempt")
        assert step.step.startswith("waiting for a certificate of role manager, attempt 1: ")
        shown = await status(node)
        assert shown["vxlan_port"] == node.peer.node.VXLANUDPPort > 0
        roles = shown["roles"]
        assert (roles["desired"], roles["observed"], roles["certificate"]) == ("manager", "manager", "worker")
        pattern = (
            r"the swarm wants the role manager; waiting for certificate, attempt \d+(, next in \d+ s)?: .*hiccups.*"
        )
        assert re.fullmatch(pattern, roles["step"]), roles["step"]
        node.peer.failures = 0
        node.peer.wish("worker")  # another wish does not wait for the back-off of this one
        await node.says("role", lambda r: not r.replace_fingerprint, "nothing is asked for")
        node.peer.wish("manager")
        await node.settled("manager", 10)
        assert node.pid("manager")


async def test_a_certificate_of_the_wrong_role_is_not_installed() -> None:
    async with roles_node() as node:
        held = node.credentials().fingerprint
        peer = node.peer
        # Observed manager is told, but the CA (another manager's) still signs what it knows.
        peer.wish("manager")
        peer.node.role = types_pb2.WORKER
        said = await node.says("certificate", lambda c: c.attempt >= 1, "the wrong role is refused")
        assert said.why == "the swarm still issues worker certificates, manager is expected"
        assert node.credentials().fingerprint == held
        peer.wish("manager")
        await node.settled("manager")


async def test_a_killed_manager_is_restarted_at_once_and_its_data_kept() -> None:
    async with roles_node() as node:
        await promoted(node)
        first = node.pid("manager")
        node.kill("manager")
        await node.says("process.manager", lambda p: p.pid not in (0, first), "another manager runs", 10)
        assert node.paths.manager.exists()
        assert node.credentials().role == topics.MANAGER_ROLE
