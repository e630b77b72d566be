"""The real renewer with the real manager: hand-over of the first root key, replacement of the certificate."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from swarm.nodeconfig import NodeConfig, save_node_config
from tests.integration.renewer_node import DEADLINE, a_node, seen


async def test_manager_takes_over_the_root_key_and_issues_the_next_certificate() -> None:
    async with a_node(be_manager=False) as node:
        save_node_config(node.paths.node_toml, NodeConfig(listen_addr="127.0.0.1:0"))
        await node.start()
        first = await node.certificate()
        log = node.paths.state / "manager.log"
        with log.open("wb") as out:
            manager = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "procs.manager",
                "--state-dir", str(node.paths.state), "--runtime-dir", str(node.paths.runtime),
                stderr=out, cwd=Path(__file__).parents[2],
            )  # fmt: skip
        try:
            await seen(lambda: not node.paths.bootstrap_root_key.exists())
            node.ask(first.fingerprint)
            second = await node.certificate(lambda c: c.fingerprint != first.fingerprint)
            assert (second.node_id, second.cluster_id, second.role, second.issuer_public_key) == (
                first.node_id, first.cluster_id, "manager", first.issuer_public_key,
            )  # fmt: skip
            # both restart on what lies there now
            assert await node.stop() == 0
            await node.start()
            assert await node.certificate() == second
        finally:
            manager.terminate()
            assert await asyncio.wait_for(manager.wait(), DEADLINE) == 0, log.read_text()
