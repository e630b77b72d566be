"""Role changes on a real manager: over the control API, through role manager, dispatcher and CA to the node."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from ipc.aio import AsyncBus
from procs.manager import manager
from procs.manager.members import SoleMember
from swarm.api import control_pb2, control_pb2_grpc, dispatcher_pb2, dispatcher_pb2_grpc, types_pb2
from swarm.exits import ExitCode
from swarm.paths import Paths
from swarm.process import Context, make_directories
from tests.integration.manager_node import ManagerNode, code_and_text, request_certificate, running
from tests.tools.authority import Authority

GROWING = """
import functools, sys
from procs.manager import __main__, manager
manager.ControlService = functools.partial(manager.ControlService, may_grow=True)
sys.exit(__main__.main())
"""


@asynccontextmanager
async def in_this_process(directory: Path) -> AsyncIterator[tuple[ManagerNode, asyncio.Task[ExitCode], AsyncBus]]:
    """A manager whose insides a test may replace before."""
    node = ManagerNode(Paths(directory / "s", directory / "r"), Authority())
    node.own = node.authority.bootstrap(node.paths)
    make_directories(node.paths)
    context = Context("manager", node.paths, logging.getLogger("test"))
    stop = asyncio.Event()
    async with AsyncBus(node.paths.bus, None, ("manager",)) as bus:
        task = asyncio.create_task(manager.run_manager(context, stop))
        try:
            ready = await bus.wait("manager", lambda v: v.body.state == "ready", 20)
            node.address = ready.body.remote_addr
            yield node, task, bus
        finally:
            stop.set()
            await asyncio.wait_for(task, 10)
            context.stop.close()


async def test_a_removed_manager_says_who_did_it_and_ends(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    removal: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def removed(_self: SoleMember) -> str:
        return await removal

    monkeypatch.setattr(SoleMember, "removed", removed)
    async with in_this_process(short_dir) as (node, task, bus):
        assert node.paths.control_socket.exists()
        removal.set_result("demoted by node1")
        said = await bus.wait("manager", lambda v: v.body.state != "ready", 10)
        assert (said.body.state, said.body.why, said.body.leader) == ("removed", "demoted by node1", False)
        assert await asyncio.wait_for(asyncio.shield(task), 10) is ExitCode.REMOVED
        assert not node.paths.control_socket.exists()
        last = bus.last("manager")
        assert last is not None
        assert last.body.state == "removed"


async def wish(node: ManagerNode, node_id: str, role: types_pb2.NodeRole.ValueType) -> None:
    async with node.control() as channel:
        stub = control_pb2_grpc.ControlStub(channel)
        found = (await stub.GetNode(control_pb2.GetNodeRequest(node_id=node_id), timeout=10)).node
        found.spec.desired_role = role
        request = control_pb2.UpdateNodeRequest(node_id=node_id, node_version=found.meta.version, spec=found.spec)
        await stub.UpdateNode(request, timeout=10)


@asynccontextmanager
async def growing(directory: Path) -> AsyncIterator[ManagerNode]:
    """A manager that takes promotions, as one with an engine for several managers does; nobody can join it, though."""
    node = ManagerNode.new(directory)
    with node.log.open("ab") as log:
        node.process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", GROWING,
            "--state-dir", str(node.paths.state), "--runtime-dir", str(node.paths.runtime), stdout=log, stderr=log,
        )  # fmt: skip
    try:
        await node.ready()
        yield node
    finally:
        await node.stop()


async def test_a_promotion_reaches_the_session_and_then_the_certificate(short_dir: Path) -> None:
    async with growing(short_dir) as node, asyncio.timeout(30):
        worker = await node.join()
        async with node.remote(worker) as channel:
            session = dispatcher_pb2_grpc.DispatcherStub(channel).Session(dispatcher_pb2.SessionRequest())
            first: Any = await session.read()
            assert (first.node.spec.desired_role, first.node.role) == (types_pb2.WORKER, types_pb2.WORKER)
            await wish(node, worker.node_id, types_pb2.MANAGER)
            shown: Any = await session.read()
            while shown.node.role != types_pb2.MANAGER:
                shown = await session.read()
            assert shown.node.spec.desired_role == types_pb2.MANAGER
            renewed = await request_certificate(channel, node.authority)
            assert (renewed.node_id, renewed.role) == (worker.node_id, "manager")
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await wish(node, worker.node_id, types_pb2.WORKER)
            code, text = code_and_text(refusal.value)
            assert code is grpc.StatusCode.NOT_FOUND
            assert text.startswith("can't find manager in raft memberlist")
            session.cancel()


async def swarmvisor(node: ManagerNode, *args: str) -> tuple[int, str, str]:
    """Exit code and words of the command on that node."""
    places = ("--state-dir", str(node.paths.state), "--runtime-dir", str(node.paths.runtime))
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "procs.cli",
        *places,
        *args,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(child.communicate(), 30)
    return await child.wait(), out.decode(), err.decode()


async def test_what_the_command_says_where_there_can_be_only_one_manager(short_dir: Path) -> None:
    async with running(short_dir) as node:
        assert node.own is not None
        worker = await node.join()
        for verb in (("promote",), ("update", "--role", "manager")):
            code, _, said = await swarmvisor(node, "node", *verb, worker.node_id)
            assert code == 6, said
            assert "keeps its state in a SQLite file, which has exactly one manager" in said
            assert "a store for several managers is not in this release" in said
        code, _, said = await swarmvisor(node, "node", "demote", "self")
        assert code == 6, said
        assert f"attempting to demote the last manager of the swarm: {node.own.node_id} is 1 of 1" in said
        assert "promote another node first" in said
        code, out, said = await swarmvisor(node, "node", "promote", "self", "--timeout", "5")
        assert (code, out.strip()) == (0, node.own.node_id), said
        code, out, said = await swarmvisor(node, "node", "ls", "-o", "json")
        rows = {row["id"]: row for row in json.loads(out)}
        keys = ("desired_role", "role", "certificate_role", "certificate_state", "step")
        assert [rows[node.own.node_id][key] for key in keys] == ["manager", "manager", "manager", "issued", ""]
        assert [rows[worker.node_id][key] for key in keys] == ["worker", "worker", "worker", "issued", ""]
