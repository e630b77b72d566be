"""Joins one after another, several at once, as a node does it: a client process of `tests.bench.joining`.

    python -m tests.bench.joiner HOST:PORT TOKEN ROOT_FILE JOINS AT_ONCE

Says `ready` once it has imported everything, begins when it reads a line, and says `done` at the end.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from pathlib import Path

from swarm import dial
from swarm.api import ca_pb2, ca_pb2_grpc, types_pb2
from swarm.pki.certificate import CA_NAME
from swarm.pki.request import new_request
from swarm.pki.tokens import JoinToken

TIMEOUT = 60.0


async def join(addr: str, token: str, root: bytes) -> None:
    """A connection of its own: the root, held against the token's digest; a key and its request; the certificate."""
    async with dial.remote_channel(addr, None, root, CA_NAME) as channel:
        ca: ca_pb2_grpc.CAAsyncStub = ca_pb2_grpc.CAStub(channel)
        node_ca: ca_pb2_grpc.NodeCAAsyncStub = ca_pb2_grpc.NodeCAStub(channel)
        found = (await ca.GetRootCACertificate(ca_pb2.GetRootCACertificateRequest(), timeout=TIMEOUT)).certificate
        if hashlib.sha256(found).hexdigest() != JoinToken.parse(token).root_digest():
            raise RuntimeError("another root than the token's")
        _, csr = new_request()
        request = ca_pb2.IssueNodeCertificateRequest(csr=csr, token=token)
        node_id = (await node_ca.IssueNodeCertificate(request, timeout=TIMEOUT)).node_id
        question = ca_pb2.NodeCertificateStatusRequest(node_id=node_id)
        answer = await node_ca.NodeCertificateStatus(question, timeout=TIMEOUT)
        if answer.status.state != types_pb2.IssuanceStatus.ISSUED or answer.certificate.csr != csr:
            raise RuntimeError(f"not signed: {answer.status}")


async def work(addr: str, token: str, root: bytes, joins: int, at_once: int) -> None:
    left = iter(range(joins))

    async def one_after_another() -> None:
        for _ in left:
            await join(addr, token, root)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(one_after_another())


def main() -> None:
    addr, token, root_file, joins, at_once = sys.argv[1:]
    root = Path(root_file).read_bytes()
    print("ready", flush=True)
    sys.stdin.readline()
    asyncio.run(work(addr, token, root, int(joins), int(at_once)))
    print("done", flush=True)


if __name__ == "__main__":
    main()
