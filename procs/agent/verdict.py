"""Whether the swarm will ever take this node as it is: what the end of a session means, told by structure.

A node that was removed, or that knocks at another swarm's door, goes on trying (a manager may be mended), but says so
at once instead of "waiting": its operator must act.
"""

from __future__ import annotations

import grpc
import grpc.aio

from swarm.dial import MANAGER_NAME
from swarm.pki.held import Credentials


async def refusal(error: BaseException | None, addr: str, credentials: Credentials, *, first: bool, now: float) -> str:
    """Why the swarm does not take this node, in words with a remedy; empty: it may, later.

    `error` ended the session with the manager at `addr` (`local`: this node's own). `first`: there never was a session;
    then a failed TLS handshake counts too (reference/node-and-ca §1.10), afterwards only the swarm's own word does.
    """
    if not isinstance(error, grpc.aio.AioRpcError):
        return ""
    said = error.details() or ""
    if error.code() is grpc.StatusCode.PERMISSION_DENIED:
        # SwarmKit's texts, which Go managers and ours send (§5.3)
        if f"node {credentials.node_id} was removed from swarm" in said:
            return (
                f"node {credentials.node_id} was removed from the swarm, and every manager refuses it; "
                "`swarmvisor leave --force` wipes it, then it may join again as a new node"
            )
        if "remote certificate not part of organization" in said:
            return (
                f"{addr} belongs to another swarm than this node ({credentials.cluster_id}); "
                "`swarmvisor leave --force`, then join the swarm that it is to be in"
            )
        return ""
    if not first or addr == "local" or error.code() is not grpc.StatusCode.UNAVAILABLE:
        return ""
    from swarm.probe import Problem, probe  # late: cryptography, for a session that never was

    seen = await probe(addr, MANAGER_NAME, root_pem=credentials.root_pem, now=now)
    return seen.why if seen.problem in (Problem.OTHER_SWARM, Problem.CLOCK) else ""
