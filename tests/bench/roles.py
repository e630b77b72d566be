"""Figures of a role change, on a real node (supervisord, coordinator, renewer, agent) whose managers are scripted: with
a SQLite store there is only one manager. So this is the node's part: from the node object sent to the certificate on
disk. A manager's own part, one transaction and one signature, is not in it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

from tests.bench.node import middle
from tests.integration.roles_node import RolesNode, roles_node


async def _until_certificate(node: RolesNode, role: str) -> float:
    """Seconds until the certificate of that role is on disk; the renewer says so right after the last fsync."""
    started = time.monotonic()
    await node.says("certificate", lambda c: c.role == role, f"certificate: {role}")
    return time.monotonic() - started


async def flips(runs: int) -> tuple[list[float], list[float], list[float], list[float]]:
    """Promotion → certificate, → manager ready; demotion (removed, then the role) → certificate, → manager gone."""
    found: tuple[list[float], list[float], list[float], list[float]] = ([], [], [], [])
    async with roles_node() as node:
        for _ in range(runs):
            started = time.monotonic()
            node.peer.wish("manager")
            found[0].append(await _until_certificate(node, "manager"))
            await node.says("manager", lambda m: m.state == "ready", "the manager is ready")
            found[1].append(time.monotonic() - started)
            await node.settled("manager")
            started = time.monotonic()
            node.remove_from_managers()
            node.peer.wish("worker")
            found[2].append(await _until_certificate(node, "worker"))
            await node.says("process.manager", lambda p: not p.pid, "the manager has ended")
            found[3].append(time.monotonic() - started)
            await node.settled("worker")
    return found


def report(runs: int = 10) -> Iterator[tuple[str, str, str, str]]:
    """Rows as in `tests.bench.node.report`."""
    promoted, ready, demoted, gone = asyncio.run(flips(runs))
    yield "promote → certificate on disk, first (imports), s", f"{promoted[0]:.3f}", "0.54 / 0.54", "≤ 0.2"
    yield "promote → certificate on disk, s", middle(promoted[1:]), "0.54 / 0.54", "≤ 0.2, then 0.1"
    yield "promote → manager program ready (scripted), s", middle(ready), "0.59 / 0.61 (Reachable)", "≤ 1.5, then 0.6"
    yield "demote → worker certificate on disk, s", middle(demoted), "7.8 / 6.6", "≤ 0.3"
    yield "demote → manager program ended, s", middle(gone), "–", "–"
