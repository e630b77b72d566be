"""How a node tells managers of ours, which it may stand beside, from Docker's."""

from __future__ import annotations

from pathlib import Path

from swarm.api import dispatcher_pb2, dispatcher_pb2_grpc
from swarm.dial import OURS
from tests.integration.manager_node import running
from tests.integration.test_manager_worker import read


async def test_a_manager_of_ours_says_so_with_the_first_answer_of_a_session(short_dir: Path) -> None:
    async with running(short_dir) as node:
        worker = await node.join()
        async with node.remote(worker) as channel:
            session = dispatcher_pb2_grpc.DispatcherStub(channel).Session(dispatcher_pb2.SessionRequest())
            await read(session)
            assert dict(await session.initial_metadata())[OURS] == "1"
            session.cancel()
