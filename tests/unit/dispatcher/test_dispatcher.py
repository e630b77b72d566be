from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from procs.manager.authorization import Caller
from procs.manager.dispatcher.dispatcher import Dispatcher, Term
from procs.manager.dispatcher.nodes import Timing
from procs.manager.dispatcher.service import DispatcherService
from procs.manager.members import SoleMember
from procs.manager.status import Status
from procs.manager.store import Store, Tx
from swarm.api import dispatcher_pb2, objects_pb2, types_pb2
from swarm.clock import SystemClock

Code = grpc.StatusCode
State = types_pb2.TaskState
NodeState = types_pb2.NodeStatus
FAST = Timing(period=0.05, epsilon=0.0, orphan_after=0.1)


class Context:
    """What the service sees of a call: who makes it."""

    def __init__(
        self, node_id: str = "n", remote_addr: str = "192.0.2.9:999", local_addr: str = "192.0.2.1:2377"
    ) -> None:
        self.caller = Caller(node_id, ("swarm-worker",), "org", False, remote_addr, local_addr=local_addr)


async def put(store: Store, *objects: Any) -> None:
    def write(tx: Tx) -> None:
        for found in objects:
            tx.create(found)

    await store.update(write)


async def change(store: Store, kind: type[Any], id_: str, how: Callable[[Any], None]) -> None:
    def write(tx: Tx) -> None:
        copy = kind()
        copy.CopyFrom(tx.get(kind, id_))
        how(copy)
        tx.update(copy)

    await store.update(write)


def cluster() -> objects_pb2.Cluster:
    made = objects_pb2.Cluster(id="org")
    made.spec.annotations.name = "default"
    made.root_ca.ca_cert = b"ROOT"
    made.network_bootstrap_keys.add(subsystem="networking:gossip", key=b"k", lamport_time=7)
    return made


def task(id_: str, node_id: str = "n", state: Any = State.ASSIGNED) -> objects_pb2.Task:
    made = objects_pb2.Task(id=id_, node_id=node_id, desired_state=State.RUNNING)
    made.status.state = state
    return made


@asynccontextmanager
async def serving(store: Store, timing: Timing | None = None, addr: str = "0.0.0.0:2377") -> AsyncIterator[Any]:
    dispatcher = Dispatcher(store, SystemClock(), "leader", timing)
    service = DispatcherService(store, dispatcher, SoleMember(7, "leader", addr))
    running = asyncio.create_task(dispatcher.run())
    await asyncio.sleep(0)
    try:
        yield service
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def opened(service: Any, context: Context | None = None, session_id: str = "") -> tuple[Any, Any]:
    """A session's stream, and its first message."""
    stream = service.Session(dispatcher_pb2.SessionRequest(session_id=session_id), context or Context())
    return stream, await asyncio.wait_for(anext(stream), 5)


async def test_stopped_dispatcher_says_so_to_everybody(store: Store) -> None:
    service = DispatcherService(store, Dispatcher(store, SystemClock(), "leader"), SoleMember(7, "leader", "a:1"))
    calls = [
        service.Heartbeat(dispatcher_pb2.HeartbeatRequest(), Context()),
        service.UpdateTaskStatus(dispatcher_pb2.UpdateTaskStatusRequest(), Context()),
        service.UpdateVolumeStatus(dispatcher_pb2.UpdateVolumeStatusRequest(), Context()),
        anext(service.Session(dispatcher_pb2.SessionRequest(), Context())),
        anext(service.Assignments(dispatcher_pb2.AssignmentsRequest(), Context())),
        anext(service.Tasks(dispatcher_pb2.TasksRequest(), Context())),
    ]
    for call in calls:
        with pytest.raises(Status) as refusal:
            await call
        assert (refusal.value.code, refusal.value.message) == (Code.ABORTED, "dispatcher is stopped")


async def test_nodes_are_unknown_when_a_term_begins_and_down_when_they_stay_silent(store: Store) -> None:
    ready, down = objects_pb2.Node(id="n"), objects_pb2.Node(id="d")
    ready.status.state, down.status.state = NodeState.READY, NodeState.DOWN
    down.status.message = "as it was"
    await put(store, cluster(), ready, down, task("t", "d", State.RUNNING), task("over", "d", State.COMPLETE))
    async with store.watch() as watch, serving(store, FAST):
        seen = []
        async with asyncio.timeout(5):
            async for commit in watch:
                for event in commit.events:
                    if isinstance(event.object, objects_pb2.Node):
                        seen.append((event.object.id, event.object.status.state, event.object.status.message))
                    elif isinstance(event.object, objects_pb2.Task):
                        seen.append((event.object.id, event.object.status.state, ""))
                if ("t", State.ORPHANED, "") in seen and any(s[1] == NodeState.DOWN for s in seen):
                    break
    assert seen[0] == (
        "n",
        NodeState.UNKNOWN,
        'Node moved to "unknown" state due to leadership change in cluster',
    )
    assert ("n", NodeState.DOWN, 'heartbeat failure for node in "unknown" state') in seen
    assert store.get(objects_pb2.Node, "d").status.message == "as it was"  # type: ignore[union-attr]
    assert store.get(objects_pb2.Task, "over").status.state == State.COMPLETE  # type: ignore[union-attr]


async def test_silent_node_goes_down_and_its_session_hears_of_it(store: Store) -> None:
    await put(store, cluster(), objects_pb2.Node(id="n"))
    async with serving(store, FAST) as service:
        stream, first = await opened(service)
        assert first.node.status.state == NodeState.READY
        last = await asyncio.wait_for(anext(stream), 5)
        assert (last.node.status.state, last.node.status.message) == (NodeState.DOWN, "heartbeat failure")
        with pytest.raises(Status) as refusal:
            await asyncio.wait_for(anext(stream), 5)
        assert (refusal.value.code, refusal.value.message) == (Code.NOT_FOUND, "node not registered")


async def test_a_term_ends_even_if_a_deadline_changes_in_the_moment_of_its_end(store: Store) -> None:
    """`asyncio.wait_for` lost the cancellation then, and the manager never came to its end."""
    term = Term(store, SystemClock(), "leader", Timing())
    term.table.enter("n", "session", term.clock.monotonic())
    running = asyncio.create_task(term.watch_timers())
    await asyncio.sleep(0.01)
    term.timers_changed()
    await asyncio.sleep(0)  # the event has been seen, and not been acted on
    running.cancel()
    done, _ = await asyncio.wait({running}, timeout=5)
    assert done


async def test_unknown_node_is_not_registered(store: Store) -> None:
    async with serving(store) as service:
        with pytest.raises(Status) as refusal:
            await opened(service)
        assert (refusal.value.code, refusal.value.message) == (Code.UNKNOWN, "node not found")


@pytest.mark.parametrize(
    ("addr", "local", "told"),
    [
        ("0.0.0.0:2377", "192.0.2.1:40", "192.0.2.1:2377"),
        ("0.0.0.0:2377", "[2001:db8::1]:40", "[2001:db8::1]:2377"),
        ("0.0.0.0:2377", "", "127.0.0.1:2377"),
        ("198.51.100.1:2377", "192.0.2.1:40", "198.51.100.1:2377"),
    ],
)
async def test_agents_are_told_an_address_they_can_use(store: Store, addr: str, local: str, told: str) -> None:
    await put(store, cluster(), objects_pb2.Node(id="n"))
    async with serving(store, addr=addr) as service:
        stream, first = await opened(service, Context(local_addr=local))
        assert [(m.peer.node_id, m.peer.addr, m.weight) for m in first.managers] == [("leader", told, 10)]
        assert first.RootCA == b"ROOT"
        assert first.network_bootstrap_keys[0].lamport_time == 7
        await stream.aclose()


async def test_session_tells_of_its_node_and_of_root_and_keys_but_not_of_other_things(store: Store) -> None:
    await put(store, cluster(), objects_pb2.Node(id="n"), objects_pb2.Node(id="other"))
    async with serving(store) as service:
        stream, _ = await opened(service)
        following = asyncio.ensure_future(anext(stream))
        await change(store, objects_pb2.Cluster, "org", lambda c: c.spec.annotations.labels.update(x="y"))
        await change(store, objects_pb2.Node, "other", lambda n: n.spec.annotations.labels.update(x="y"))
        await change(store, objects_pb2.Node, "n", lambda n: n.spec.annotations.labels.update(mine="1"))
        message = await asyncio.wait_for(following, 5)
        assert dict(message.node.spec.annotations.labels) == {"mine": "1"}
        following = asyncio.ensure_future(anext(stream))
        await change(store, objects_pb2.Cluster, "org", lambda c: setattr(c.root_ca, "ca_cert", b"NEW"))
        assert (await asyncio.wait_for(following, 5)).RootCA == b"NEW"
        await stream.aclose()


async def test_end_of_a_term_ends_the_streams_and_the_next_one_starts_afresh(store: Store) -> None:
    await put(store, cluster(), objects_pb2.Node(id="n"))
    dispatcher = Dispatcher(store, SystemClock(), "leader")
    service = DispatcherService(store, dispatcher, SoleMember(7, "leader", "a:1"))
    running = asyncio.create_task(dispatcher.run())
    await asyncio.sleep(0)
    stream, first = await opened(service)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    with pytest.raises(Status) as refusal:
        await asyncio.wait_for(anext(stream), 5)
    assert (refusal.value.code, refusal.value.message) == (Code.ABORTED, "node must disconnect")
    running = asyncio.create_task(dispatcher.run())
    await asyncio.sleep(0)
    with pytest.raises(Status, match="session invalid"):
        await service.Heartbeat(dispatcher_pb2.HeartbeatRequest(session_id=first.session_id), Context())
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_many_reports_at_once_are_few_writes_and_each_is_answered_after_its_own(store: Store) -> None:
    tasks = [task(f"t{n:03}") for n in range(200)]
    await put(store, cluster(), objects_pb2.Node(id="n"), *tasks)
    async with serving(store) as service:
        stream, first = await opened(service)
        before = store.index

        async def report(task_id: str) -> int:
            request = dispatcher_pb2.UpdateTaskStatusRequest(session_id=first.session_id)
            request.updates.add(task_id=task_id, status=types_pb2.TaskStatus(state=State.RUNNING))
            await service.UpdateTaskStatus(request, Context())
            stored = store.get(objects_pb2.Task, task_id)
            return stored.status.state if stored else 0

        states = await asyncio.gather(*(report(t.id) for t in tasks))
        assert set(states) == {State.RUNNING}
        assert store.index - before <= 10
        again = store.index
        await asyncio.gather(*(report(t.id) for t in tasks))  # as agents do at each session
        assert store.index == again
        await stream.aclose()


async def test_one_bad_write_does_not_take_the_others_along(store: Store) -> None:
    await put(store, cluster(), objects_pb2.Node(id="n"), task("t"))
    dispatcher = Dispatcher(store, SystemClock(), "leader")
    running = asyncio.create_task(dispatcher.run())
    await asyncio.sleep(0)
    term = dispatcher.term()

    def bad(_: Tx) -> None:
        raise ZeroDivisionError

    outcomes = await asyncio.gather(
        term.batch.submit(bad),
        term.write_statuses([("t", types_pb2.TaskStatus(state=State.RUNNING)), ("gone", types_pb2.TaskStatus())]),
        return_exceptions=True,
    )
    assert isinstance(outcomes[0], ZeroDivisionError)
    assert outcomes[1] is None
    assert store.get(objects_pb2.Task, "t").status.state == State.RUNNING  # type: ignore[union-attr]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_legacy_tasks_stream_sends_the_whole_list(store: Store) -> None:
    await put(store, cluster(), objects_pb2.Node(id="n"), task("a"), task("b", state=State.PENDING))
    async with serving(store) as service:
        stream, first = await opened(service)
        tasks = service.Tasks(dispatcher_pb2.TasksRequest(session_id=first.session_id), Context())
        assert [t.id for t in (await anext(tasks)).tasks] == ["a"]
        following = asyncio.ensure_future(anext(tasks))
        await change(store, objects_pb2.Task, "b", lambda t: setattr(t.status, "state", State.ASSIGNED))
        assert [t.id for t in (await asyncio.wait_for(following, 5)).tasks] == ["a", "b"]
        await tasks.aclose()
        await stream.aclose()


async def test_burst_reaches_a_slow_reader_as_few_messages_with_the_newest_state(store: Store) -> None:
    await put(store, cluster(), objects_pb2.Node(id="n"), *(task(f"t{n}") for n in range(20)))
    async with serving(store) as service:
        stream, first = await opened(service)
        wanted = service.Assignments(dispatcher_pb2.AssignmentsRequest(session_id=first.session_id), Context())
        assert len((await anext(wanted)).changes) == 20
        for round_ in range(5):
            for n in range(20):
                await change(
                    store, objects_pb2.Task, f"t{n}", lambda t, r=round_: setattr(t, "desired_state", State.RUNNING + r)
                )
        for _ in range(20):  # the reader is slow: everybody else gets turns
            await asyncio.sleep(0)
        message = await asyncio.wait_for(anext(wanted), 5)
        assert len(message.changes) == 20
        assert {c.assignment.task.desired_state for c in message.changes} == {State.RUNNING + 4}
        await wanted.aclose()
        await stream.aclose()
