from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from swarm.api import (
    control_pb2,
    control_pb2_grpc,
    dispatcher_pb2,
    dispatcher_pb2_grpc,
    logbroker_pb2,
    logbroker_pb2_grpc,
    objects_pb2,
    specs_pb2,
    types_pb2,
)
from tests.integration.manager_node import ManagerNode, code_and_text, request_certificate, running

Assignments = dispatcher_pb2.AssignmentsMessage
State = types_pb2.TaskState
Code = grpc.StatusCode


def description(hostname: str = "worker") -> types_pb2.NodeDescription:
    found = types_pb2.NodeDescription(hostname=hostname)
    found.platform.architecture, found.platform.os = "x86_64", "linux"
    found.resources.nano_cpus, found.resources.memory_bytes = 4 * 10**9, 8 << 30
    found.engine.plugins.add(type="Runtime", name="process")
    found.engine.labels["runtime"] = "process"
    return found


def service(name: str, replicas: int) -> specs_pb2.ServiceSpec:
    spec = specs_pb2.ServiceSpec()
    spec.annotations.name = name
    spec.replicated.replicas = replicas
    spec.task.container.image = "host"
    spec.task.container.command.append("/bin/sleep")
    spec.task.container.args.append("1000")
    return spec


def reported(state: Any, message: str) -> types_pb2.TaskStatus:
    status = types_pb2.TaskStatus(state=state, message=message)
    status.timestamp.GetCurrentTime()
    return status


async def create(node: ManagerNode, spec: specs_pb2.ServiceSpec) -> objects_pb2.Service:
    async with node.control() as channel:
        request = control_pb2.CreateServiceRequest(spec=spec)
        return (await control_pb2_grpc.ControlStub(channel).CreateService(request, timeout=10)).service


async def task_of(node: ManagerNode, task_id: str) -> objects_pb2.Task:
    async with node.control() as channel:
        request = control_pb2.GetTaskRequest(task_id=task_id)
        return (await control_pb2_grpc.ControlStub(channel).GetTask(request, timeout=10)).task


async def read(stream: Any, seconds: float = 10) -> Any:
    message = await asyncio.wait_for(stream.read(), seconds)
    assert message is not grpc.aio.EOF, "the stream ended"
    return message


async def test_life_of_a_worker(short_dir: Path) -> None:
    async with running(short_dir) as node:
        assert node.own is not None
        worker = await node.join()
        async with node.remote(worker) as channel:
            stub = dispatcher_pb2_grpc.DispatcherStub(channel)
            session = stub.Session(dispatcher_pb2.SessionRequest(description=description()))
            first = await read(session)
            assert first.session_id
            assert first.node.id == worker.node_id
            assert first.node.status.state == types_pb2.NodeStatus.READY
            assert first.node.status.addr == "127.0.0.1"
            assert first.node.description.hostname == "worker"
            assert first.RootCA == node.authority.root.certs
            assert [(m.peer.node_id, m.peer.addr, m.weight) for m in first.managers] == [
                (node.own.node_id, node.address, 10)
            ]
            beat = await stub.Heartbeat(dispatcher_pb2.HeartbeatRequest(session_id=first.session_id), timeout=5)
            assert 4.5 <= beat.period.seconds + beat.period.nanos / 1e9 < 5.5

            assignments = stub.Assignments(dispatcher_pb2.AssignmentsRequest(session_id=first.session_id))
            complete = await read(assignments)
            assert (complete.type, complete.applies_to, complete.results_in) == (Assignments.COMPLETE, "", "1")
            assert not complete.changes

            await create(node, service("web", 1))
            step = await read(assignments)
            assert (step.type, step.applies_to, step.results_in) == (Assignments.INCREMENTAL, "1", "2")
            (change,) = step.changes
            task = change.assignment.task
            assert (task.node_id, task.status.state) == (worker.node_id, State.ASSIGNED)
            assert task.spec.container.command == ["/bin/sleep"]

            request = dispatcher_pb2.UpdateTaskStatusRequest(session_id=first.session_id)
            request.updates.add(task_id=task.id, status=reported(State.RUNNING, "started"))
            await stub.UpdateTaskStatus(request, timeout=5)
            stored = await task_of(node, task.id)  # acknowledged: so it is there, at once
            assert (stored.status.state, stored.status.message) == (State.RUNNING, "started")
            assert stored.status.applied_by == node.own.node_id

            stale = dispatcher_pb2.UpdateTaskStatusRequest(session_id=first.session_id)
            stale.updates.add(task_id=task.id, status=reported(State.PREPARING, "preparing"))
            await stub.UpdateTaskStatus(stale, timeout=5)
            assert (await task_of(node, task.id)).status.state == State.RUNNING

            async with node.control() as control:
                await control_pb2_grpc.ControlStub(control).RemoveService(
                    control_pb2.RemoveServiceRequest(service_id=task.service_id), timeout=10
                )
            stop = await read(assignments)
            assert stop.changes[0].assignment.task.desired_state in (State.REMOVE, State.SHUTDOWN)
            request = dispatcher_pb2.UpdateTaskStatusRequest(session_id=first.session_id)
            request.updates.add(task_id=task.id, status=reported(State.SHUTDOWN, "shutdown"))
            await stub.UpdateTaskStatus(request, timeout=5)
            gone = await read(assignments)
            while gone.changes[0].action != dispatcher_pb2.AssignmentChange.AssignmentAction.REMOVE:
                gone = await read(assignments)
            assert gone.changes[0].assignment.task.id == task.id

            renewed = await request_certificate(channel, node.authority)
            assert (renewed.node_id, renewed.role) == (worker.node_id, "worker")
            assert renewed.fingerprint != worker.fingerprint
            session.cancel()
            assignments.cancel()


async def test_session_is_resumed_with_its_id_and_a_stranger_id_registers_anew(short_dir: Path) -> None:
    async with running(short_dir) as node:
        worker = await node.join()
        async with node.remote(worker) as channel:
            stub = dispatcher_pb2_grpc.DispatcherStub(channel)
            session = stub.Session(dispatcher_pb2.SessionRequest(description=description()))
            first = await read(session)
            session.cancel()
            resumed = stub.Session(dispatcher_pb2.SessionRequest(session_id=first.session_id))
            assert (await read(resumed)).session_id == first.session_id
            other = stub.Session(dispatcher_pb2.SessionRequest(session_id="somebody-else's"))
            new = await read(other)
            assert new.session_id not in (first.session_id, "somebody-else's")
            # the older session ends at once: one node, one session
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await read(resumed)
            assert code_and_text(refusal.value) == (Code.INVALID_ARGUMENT, "session invalid")
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await stub.Heartbeat(dispatcher_pb2.HeartbeatRequest(session_id=first.session_id), timeout=5)
            assert code_and_text(refusal.value) == (Code.INVALID_ARGUMENT, "session invalid")
            other.cancel()


async def test_registering_too_often_is_refused_for_a_while(short_dir: Path) -> None:
    async with running(short_dir) as node:
        worker = await node.join()
        async with node.remote(worker) as channel:
            stub = dispatcher_pb2_grpc.DispatcherStub(channel)
            for _ in range(4):  # the first one this term does not count
                session = stub.Session(dispatcher_pb2.SessionRequest())
                await read(session)
                session.cancel()
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await read(stub.Session(dispatcher_pb2.SessionRequest()))
            assert code_and_text(refusal.value) == (
                Code.UNAVAILABLE,
                f"node {worker.node_id} exceeded rate limit count of registrations",
            )


async def test_reports_on_tasks_of_another_node_are_refused(short_dir: Path) -> None:
    async with running(short_dir) as node:
        one, two = await node.join(), await node.join()
        async with node.remote(one) as first, node.remote(two) as second:
            owner, stranger = (dispatcher_pb2_grpc.DispatcherStub(c) for c in (first, second))
            session = owner.Session(dispatcher_pb2.SessionRequest(description=description()))
            held = await read(session)
            assignments = owner.Assignments(dispatcher_pb2.AssignmentsRequest(session_id=held.session_id))
            await read(assignments)
            await create(node, service("web", 1))
            task = (await read(assignments)).changes[0].assignment.task
            intruder = stranger.Session(dispatcher_pb2.SessionRequest(description=description("other")))
            other = await read(intruder)
            request = dispatcher_pb2.UpdateTaskStatusRequest(session_id=other.session_id)
            request.updates.add(task_id=task.id, status=reported(State.FAILED, "started"))
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await stranger.UpdateTaskStatus(request, timeout=5)
            assert code_and_text(refusal.value) == (
                Code.PERMISSION_DENIED,
                "cannot update a task not assigned this node",
            )
            assert (await task_of(node, task.id)).status.state == State.ASSIGNED
            for stream in (session, assignments, intruder):
                stream.cancel()


async def test_listening_for_log_subscriptions_stays_open(short_dir: Path) -> None:
    async with running(short_dir) as node:
        worker = await node.join()
        async with node.remote(worker) as channel:
            stream = logbroker_pb2_grpc.LogBrokerStub(channel).ListenSubscriptions(
                logbroker_pb2.ListenSubscriptionsRequest()
            )
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(stream.read())), 0.3)
            assert not stream.done()
            stream.cancel()


async def test_stop_ends_sessions_in_words_and_within_its_grace(short_dir: Path) -> None:
    async with running(short_dir) as node:
        worker = await node.join()
        async with node.remote(worker) as channel:
            stub = dispatcher_pb2_grpc.DispatcherStub(channel)
            session = stub.Session(dispatcher_pb2.SessionRequest())
            await read(session)
            parked = logbroker_pb2_grpc.LogBrokerStub(channel).ListenSubscriptions(
                logbroker_pb2.ListenSubscriptionsRequest()
            )
            started = time.monotonic()
            assert await node.stop() == 0
            assert time.monotonic() - started < 3
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await read(session)
            assert code_and_text(refusal.value) == (Code.ABORTED, "node must disconnect")
            with pytest.raises(grpc.aio.AioRpcError):
                await read(parked)


async def test_acknowledged_report_survives_sigkill_and_the_worker_registers_anew(short_dir: Path) -> None:
    node = ManagerNode.new(short_dir)
    await node.start()
    try:
        await node.ready()
        worker = await node.join()
        async with node.remote(worker) as channel:
            stub = dispatcher_pb2_grpc.DispatcherStub(channel)
            session = stub.Session(dispatcher_pb2.SessionRequest(description=description()))
            held = await read(session)
            assignments = stub.Assignments(dispatcher_pb2.AssignmentsRequest(session_id=held.session_id))
            await read(assignments)
            await create(node, service("web", 1))
            task = (await read(assignments)).changes[0].assignment.task
            request = dispatcher_pb2.UpdateTaskStatusRequest(session_id=held.session_id)
            request.updates.add(task_id=task.id, status=reported(State.RUNNING, "started"))
            await stub.UpdateTaskStatus(request, timeout=5)
            await node.stop(signal.SIGKILL)
        await node.start()
        await node.ready()
        assert (await task_of(node, task.id)).status.state == State.RUNNING
        async with node.remote(worker) as channel:
            stub = dispatcher_pb2_grpc.DispatcherStub(channel)
            session = stub.Session(dispatcher_pb2.SessionRequest(session_id=held.session_id))
            again = await read(session)
            assert again.session_id != held.session_id
            assert again.node.status.state == types_pb2.NodeStatus.READY
            assignments = stub.Assignments(dispatcher_pb2.AssignmentsRequest(session_id=again.session_id))
            complete = await read(assignments)
            assert [c.assignment.task.id for c in complete.changes] == [task.id]
            session.cancel()
            assignments.cancel()
    finally:
        await node.stop(signal.SIGKILL)
