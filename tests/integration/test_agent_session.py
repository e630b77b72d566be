"""Sessions of a real agent process with scripted dispatchers, over real TLS."""

from __future__ import annotations

import asyncio
import os
import signal

import grpc
import pytest

from ipc import topics
from swarm.api import dispatcher_pb2, types_pb2
from swarm.exits import ExitCode
from tests.integration.agent_node import (
    DEADLINE,
    Message,
    ScriptedDispatcher,
    State,
    agent_node,
    gone,
    serving,
    task,
)
from tests.tools.authority import Authority


async def test_the_node_describes_itself_and_tells_the_bus_what_the_manager_said() -> None:
    authority, dispatcher = Authority(), ScriptedDispatcher()
    dispatcher.node.spec.desired_role = types_pb2.MANAGER
    dispatcher.node.certificate.status.state = types_pb2.IssuanceStatus.ROTATE
    dispatcher.node.VXLANUDPPort = 4789
    dispatcher.root_ca = b"PEM"
    async with serving(authority, dispatcher) as addr, agent_node(authority, addr, supervisord=False) as node:
        dispatcher.managers = [("manager0", addr), ("manager1", "192.0.2.1:2377"), ("blank", "")]
        await node.start_agent()
        said = await node.agent_says("ready")
        assert (said.manager_id, said.manager_addr, said.tasks) == ("manager0", addr, 0)
        (request,) = dispatcher.requests
        assert request.session_id == ""
        assert request.description.hostname == "worker"
        assert request.description.tls_info.trust_root == authority.root.certs
        assert request.description.tls_info.cert_issuer_subject == node.credentials.issuer_subject
        changes = (await node.bus.wait("node.changes", lambda v: True, DEADLINE)).body
        assert changes == topics.NodeChanges(
            desired_role="manager",
            observed_role="worker",
            issuance_state=5,
            vxlan_port=4789,
            root_ca=b"PEM",
            under=topics.Under(node.credentials.fingerprint, node.credentials.root_digest),
            availability="active",
            foreign=True,  # the scripted one does not say that it is ours
        )
        managers = (await node.bus.wait("managers", lambda v: True, DEADLINE)).body
        assert [(m.node_id, m.addr) for m in managers.managers] == [
            ("manager0", addr),
            ("manager1", "192.0.2.1:2377"),
        ]
        dispatcher.node.role = types_pb2.MANAGER
        dispatcher.node.VXLANUDPPort = 99
        dispatcher.say()
        later = await node.bus.wait("node.changes", lambda v: v.body.observed_role == "manager", DEADLINE)
        assert later.body.vxlan_port == 4789, "99 is no port for it: the one before is kept"
        assert "VXLAN UDP port 99 is not in the range" in node.log()
        assert len(dispatcher.requests) == 1


async def test_heartbeats_go_on_at_the_pace_the_manager_sets() -> None:
    authority, dispatcher = Authority(), ScriptedDispatcher()
    async with serving(authority, dispatcher) as addr, agent_node(authority, addr, supervisord=False) as node:
        await node.start_agent()
        await node.agent_says("ready")
        await dispatcher.until(lambda: dispatcher.heartbeats >= 4, "four heartbeats", 5)


async def test_a_silent_a_refusing_and_a_closing_manager_are_tried_again_with_the_same_session() -> None:
    authority, dispatcher = Authority(), ScriptedDispatcher()
    dispatcher.silent = True
    async with serving(authority, dispatcher) as addr, agent_node(authority, addr, supervisord=False) as node:
        await node.start_agent()
        await dispatcher.until(lambda: dispatcher.requests, "the first request")
        value = await node.bus.wait("agent", lambda v: bool(v.body.why) and "timed out" in v.body.why, 15)
        assert value.body.why == "session initiation timed out"
        dispatcher.silent = False
        dispatcher.refuse_session = (grpc.StatusCode.UNAVAILABLE, "too many")
        await node.bus.wait("agent", lambda v: v.body.why == "UNAVAILABLE: too many", DEADLINE)
        dispatcher.refuse_session = None
        first = await node.agent_says("ready")
        dispatcher.end_sessions()
        value = await node.bus.wait("agent", lambda v: v.body.state == "waiting", DEADLINE)
        assert value.body.why == "the manager ended session"
        again = await node.agent_says("ready")
        assert again.session_id == first.session_id == dispatcher.requests[-1].session_id


async def test_another_manager_is_found_when_one_is_gone_and_everything_is_reported_to_it() -> None:
    authority, first, second = Authority(), ScriptedDispatcher(), ScriptedDispatcher()
    async with (
        serving(authority, second) as there,
        agent_node(authority, there) as node,
    ):
        async with serving(authority, first) as here:
            node.publish_remotes(here)
            await node.start_agent()
            await node.agent_says("ready")
            sleeper = task("/bin/sleep", "1000")
            first.assign(sleeper)
            await first.reached(sleeper.id, State.RUNNING)
            second.tasks[sleeper.id] = sleeper
            node.publish_remotes(here, there)
        status = await second.reached(sleeper.id, State.RUNNING)
        assert status == first.statuses[sleeper.id][-1]
        assert second.requests[0].session_id in first.known_sessions


async def test_a_gap_in_the_assignments_is_not_applied_and_the_stream_is_opened_anew() -> None:
    authority, dispatcher = Authority(), ScriptedDispatcher()
    async with serving(authority, dispatcher) as addr, agent_node(authority, addr) as node:
        await node.start_agent()
        await node.agent_says("ready")
        sleeper = task("/bin/sleep", "1000")
        dispatcher.assign(sleeper)
        await dispatcher.reached(sleeper.id, State.RUNNING)
        wrong = Message(type=Message.INCREMENTAL, applies_to="17")
        removal = wrong.changes.add(action=dispatcher_pb2.AssignmentChange.REMOVE)
        removal.assignment.task.id = sleeper.id
        dispatcher.send(wrong)
        await dispatcher.until(lambda: dispatcher.streams == 2, "a second stream")
        dispatcher.desire(sleeper.id, State.SHUTDOWN)
        assert (await dispatcher.reached(sleeper.id, State.SHUTDOWN)).state == State.SHUTDOWN
        assert len(dispatcher.requests) == 1
        assert dispatcher.streams == 2


async def test_refused_statuses_are_sent_again_and_forgotten_ones_are_not() -> None:
    authority, dispatcher = Authority(), ScriptedDispatcher()
    async with serving(authority, dispatcher) as addr, agent_node(authority, addr) as node:
        await node.start_agent()
        await node.agent_says("ready")
        dispatcher.refuse_update = (grpc.StatusCode.UNAVAILABLE, "no leader")
        rejected = task("/bin/true", tty=True)
        dispatcher.assign(rejected)
        assert (await dispatcher.reached(rejected.id, State.REJECTED)).err.startswith("tty cannot be honoured")
        assert len(dispatcher.requests) == 2, "the refusal ended the session"
        dispatcher.refuse_update = (grpc.StatusCode.NOT_FOUND, "node not registered")
        late = task("/bin/true", tty=True)
        dispatcher.assign(late)
        await dispatcher.reached(late.id, State.REJECTED)
        assert len(dispatcher.requests) == 3
        dispatcher.refuse_update = (grpc.StatusCode.NOT_FOUND, "task unknown")
        unknown = task("/bin/true", tty=True)
        dispatcher.assign(unknown)
        after = task("/bin/true", tty=True)
        await dispatcher.until(lambda: dispatcher.refuse_update is None, "the refusal was used")
        dispatcher.assign(after)
        await dispatcher.reached(after.id, State.REJECTED)
        assert unknown.id not in dispatcher.statuses
        assert len(dispatcher.requests) == 3


async def test_a_new_certificate_makes_a_new_channel_and_keeps_the_session() -> None:
    authority, dispatcher = Authority(), ScriptedDispatcher()
    async with serving(authority, dispatcher) as addr, agent_node(authority, addr, supervisord=False) as node:
        await node.start_agent()
        first = await node.agent_says("ready")
        node.credentials = node.install(authority.issue("worker", node_id=node.credentials.node_id))
        node.publish_certificate()
        await dispatcher.until(lambda: len(dispatcher.requests) == 2, "the second session")
        assert dispatcher.requests[1].session_id == first.session_id
        new = node.credentials.fingerprint
        await node.bus.wait("node.changes", lambda v: v.body.under.fingerprint == new, DEADLINE)
        assert (await node.agent_says("ready")).session_id == first.session_id


HASTY = """
import sys
from procs.agent import __main__, agent
agent.DESCRIPTION_PERIOD = 0.05
sys.exit(__main__.main())
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core cannot be taken away")
async def test_what_the_node_is_is_told_anew_when_it_has_changed_in_the_same_session() -> None:
    authority, dispatcher = Authority(), ScriptedDispatcher()
    async with serving(authority, dispatcher) as addr, agent_node(authority, addr, supervisord=False) as node:
        agent = await node.start_agent("-c", HASTY)
        first = await node.agent_says("ready")
        os.sched_setaffinity(agent.pid, {min(os.sched_getaffinity(agent.pid))})
        await dispatcher.until(lambda: len(dispatcher.requests) == 2, "another description")
        before, after = (request.description for request in dispatcher.requests)
        assert before.resources.nano_cpus > after.resources.nano_cpus == 10**9
        before.resources.nano_cpus = after.resources.nano_cpus
        assert before == after
        assert dispatcher.requests[1].session_id == first.session_id, "resumed: Docker limits registrations only"
        assert (await node.agent_says("ready")).session_id == first.session_id


async def test_another_identity_inherits_neither_session_nor_tasks() -> None:
    authority, dispatcher = Authority(), ScriptedDispatcher()
    async with serving(authority, dispatcher) as addr, agent_node(authority, addr) as node:
        await node.start_agent()
        await node.agent_says("ready")
        sleeper = task("/bin/sleep", "1000")
        dispatcher.assign(sleeper)
        pid = (await dispatcher.reached(sleeper.id, State.RUNNING)).container.pid
        await node.kill_agent()
        dispatcher.tasks.clear()
        reported = len(dispatcher.statuses[sleeper.id])
        node.credentials = node.install(authority.issue("worker"))
        node.publish_certificate()
        await node.start_agent()
        await node.agent_says("ready")
        assert dispatcher.requests[-1].session_id == ""
        await gone(pid)
        assert len(dispatcher.statuses[sleeper.id]) == reported


async def test_a_locked_or_absent_certificate_is_waited_for_with_its_reason() -> None:
    authority, dispatcher = Authority(), ScriptedDispatcher()
    async with serving(authority, dispatcher) as addr, agent_node(authority, addr, supervisord=False) as node:
        node.renewer.publish("certificate", topics.Certificate(state="locked", why="the node key is encrypted"))
        await node.start_agent()
        value = await node.bus.wait("agent", lambda v: "encrypted" in v.body.why, DEADLINE)
        assert value.body.state == "waiting"
        assert dispatcher.requests == []
        node.publish_certificate()
        await node.agent_says("ready")


async def test_a_corrupt_database_ends_the_agent_with_file_and_remedy() -> None:
    authority = Authority()
    async with agent_node(authority, supervisord=False) as node:
        node.paths.worker.mkdir()
        node.paths.agent_db.write_bytes(b"scribble" * 1000)
        agent = await node.start_agent()
        code = await asyncio.wait_for(agent.wait(), DEADLINE)
        node.agent = None
        assert code == ExitCode.CONFIG
        assert str(node.paths.agent_db) in node.log()
        assert "move it away" in node.log()
        assert node.paths.agent_db.read_bytes() == b"scribble" * 1000


async def test_sigterm_ends_a_waiting_agent_at_once() -> None:
    async with agent_node(Authority(), supervisord=False) as node:
        await node.start_agent()
        await node.agent_says("waiting")
        assert await asyncio.wait_for(node.kill_agent(signal.SIGTERM), 5) == 0
        assert os.path.exists(node.paths.agent_db)
