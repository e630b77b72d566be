"""A component of the leader that dies ends its term, and only that."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from ipc.aio import AsyncBus
from procs.manager import manager
from swarm.api import dispatcher_pb2, dispatcher_pb2_grpc
from swarm.exits import ExitCode
from swarm.process import Context, make_directories
from tests.integration.manager_node import ManagerNode


async def test_component_that_dies_ends_the_term_and_another_one_begins(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    node = ManagerNode.new(short_dir)
    make_directories(node.paths)
    started: list[asyncio.Event] = []
    die = asyncio.Event()

    async def lead(*_: Any) -> None:
        begun = asyncio.Event()
        begun.set()
        started.append(begun)
        if len(started) == 1:
            await die.wait()
            raise ZeroDivisionError
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(manager, "lead", lead)
    context, stop = Context("manager", node.paths, logging.getLogger("manager")), asyncio.Event()
    try:
        running = asyncio.create_task(manager.run_manager(context, stop))
        async with AsyncBus(node.paths.bus, None, ("manager",)) as bus:
            node.address = (await bus.wait("manager", lambda v: v.body.state == "ready", 10)).body.remote_addr
        worker = await node.join()
        async with node.remote(worker) as channel:
            stub = dispatcher_pb2_grpc.DispatcherStub(channel)
            session = stub.Session(dispatcher_pb2.SessionRequest())
            first = await asyncio.wait_for(session.read(), 5)
            die.set()
            with pytest.raises(Exception, match="node must disconnect"):
                await asyncio.wait_for(session.read(), 5)
            async with asyncio.timeout(10):
                while len(started) < 2:  # noqa: ASYNC110  (the term comes after a pause of its own)
                    await asyncio.sleep(0.01)
            again = stub.Session(dispatcher_pb2.SessionRequest(session_id=first.session_id))
            assert (await asyncio.wait_for(again.read(), 5)).session_id != first.session_id
            again.cancel()
        assert "the term ended" in caplog.text
        stop.set()
        assert await asyncio.wait_for(running, 10) == ExitCode.DONE
    finally:
        stop.set()
        context.stop.close()
        await asyncio.gather(running, return_exceptions=True)
