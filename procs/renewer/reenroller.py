"""Getting a certificate for a node whose own has expired: by a proof made with the old key (swarm/pki/reenrol).

Managers of ours take it; a Go manager asks for a join token instead. Imports grpc: loaded with the requester.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass, replace

import grpc
import grpc.aio

from procs.renewer.signed import CALL_TIMEOUT, check_issued, signed
from swarm import dial
from swarm.api import ca_pb2, ca_pb2_grpc
from swarm.errors import Refused, TimedOut
from swarm.paths import Paths
from swarm.pki.certificate import CA_NAME, parse_bundle
from swarm.pki.chain import UnknownAuthority
from swarm.pki.credentials import Credentials
from swarm.pki.reenrol import METADATA, REFUSED, TOO_SOON, make_proof, words
from swarm.pki.request import new_request
from swarm.pki.rootca import RootCA

_GO = (
    "it takes no expired certificate, as Docker's and swarmd's managers do: `swarmvisor leave --force`, then join "
    "again with a token (a manager of ours gives no reason either, to a proof that does not verify)"
)


class _TooSoon(Refused):
    """Nothing is wrong with the proof; one a second is taken."""


@dataclass(frozen=True)
class Reenroller:
    """Asks without a client certificate; the manager must verify under the node's own roots."""

    paths: Paths
    log: logging.Logger | logging.LoggerAdapter[logging.Logger]
    issue_timeout: float

    async def ask(self, held: Credentials, addr: str) -> Credentials:
        """A verified certificate with a fresh key. Raises SwarmvisorError or AioRpcError; nothing is written."""
        try:
            return await self._ask(held, addr)
        except _TooSoon:  # `rejoin` has started us right after another try
            await asyncio.sleep(random.uniform(1.0, 1.5))
            return await self._ask(held, addr)

    async def _ask(self, held: Credentials, addr: str) -> Credentials:
        key_pem, csr = await asyncio.to_thread(new_request)
        token = await asyncio.to_thread(self._token)
        leaf = parse_bundle(held.certificate_pem)[0]
        proof = make_proof(held.cluster_id, held.node_id, leaf, held.key_pem, csr, time.time_ns())
        self.log.info("the certificate has expired: proving to %s with its key who this node is", addr)
        async with dial.remote_channel(addr, None, held.root_pem, CA_NAME) as channel:
            try:
                async with asyncio.timeout(self.issue_timeout):
                    certificate_pem = await self._issue(channel, csr, token, proof, held.role)
            except TimeoutError as error:
                raise TimedOut(f"not signed within {self.issue_timeout:g} s") from error
            try:
                issued = await asyncio.to_thread(check_issued, held, certificate_pem, key_pem)
            except UnknownAuthority:
                issued = await self._under_new_root(channel, held, certificate_pem, key_pem)
        return issued

    async def _issue(self, channel: grpc.aio.Channel, csr: bytes, token: str, proof: bytes, role: str) -> bytes:
        ca: ca_pb2_grpc.NodeCAAsyncStub = ca_pb2_grpc.NodeCAStub(channel)
        request = ca_pb2.IssueNodeCertificateRequest(csr=csr, token=token)
        try:
            asked = await ca.IssueNodeCertificate(request, timeout=CALL_TIMEOUT, metadata=((METADATA, proof),))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                raise _refusal(error, with_token=bool(token), role=role) from error
            raise
        return await signed(ca, asked.node_id, csr, self.log)

    async def _under_new_root(
        self, channel: grpc.aio.Channel, held: Credentials, certificate_pem: bytes, key_pem: bytes
    ) -> Credentials:
        """The swarm's root was rotated meanwhile. This manager verified under our old one (the cross-signed
        certificates in its chain lead there), so what it says is the root is one; both are kept until a session
        brings the new one alone."""
        ca: ca_pb2_grpc.CAAsyncStub = ca_pb2_grpc.CAStub(channel)
        answer = await ca.GetRootCACertificate(ca_pb2.GetRootCACertificateRequest(), timeout=CALL_TIMEOUT)
        RootCA.from_pem(answer.certificate)
        both = held.root_pem.rstrip() + b"\n" + answer.certificate
        self.log.info("the swarm's root was rotated while this node was away")
        return await asyncio.to_thread(check_issued, replace(held, root_pem=both), certificate_pem, key_pem)

    def _token(self) -> str:
        """The operator's join token (`rejoin`), empty without one."""
        try:
            return self.paths.join_token.read_text("ascii", errors="replace").strip()
        except FileNotFoundError:
            return ""


def _refusal(error: grpc.aio.AioRpcError, *, with_token: bool, role: str) -> Refused:
    """What the manager's no means for the operator."""
    markers = [
        value.decode(errors="replace") if isinstance(value, bytes) else str(value)
        for key, value in error.trailing_metadata() or ()
        if key == REFUSED
    ]
    if not markers:
        return Refused(f"{error.details()}: {_GO}")
    kind = _TooSoon if markers[0] == TOO_SOON else Refused
    return kind(words(markers[0], with_token=with_token, role=role))
