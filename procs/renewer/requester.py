"""Getting a certificate from a manager: the local one first, then the others (reference/node-and-ca §4.8, §5.5, §5.7).

Imports grpc: the shell imports this module when a request is near.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass

import grpc
import grpc.aio

from swarm import dial
from swarm.api import ca_pb2, ca_pb2_grpc, types_pb2
from swarm.errors import BadInput, Refused, SwarmvisorError, TimedOut, Unreachable
from swarm.paths import Paths
from swarm.pki import privatekey
from swarm.pki.certificate import CA_NAME, parse_bundle
from swarm.pki.chain import validate_chain
from swarm.pki.credentials import Credentials, make_credentials
from swarm.pki.request import new_request
from swarm.remotes import DEFAULT_WEIGHT, NoRemotes, Peer, Remotes

CALL_TIMEOUT = 5.0
"""Seconds for each call."""
ISSUE_TIMEOUT = 60.0
"""Seconds that one manager gets to have the certificate signed."""
_POLL_CAP = 30.0

_FINAL = (types_pb2.IssuanceStatus.ISSUED, types_pb2.IssuanceStatus.ROTATE)

Dial = Callable[[Credentials | None, str], grpc.aio.Channel]


@dataclass(frozen=True)
class Requester:
    """Asks in the name of a node that has a certificate."""

    paths: Paths
    remotes: Remotes
    log: logging.Logger | logging.LoggerAdapter[logging.Logger]
    issue_timeout: float = ISSUE_TIMEOUT

    async def request(self, held: Credentials, *, local: bool) -> Credentials:
        """A verified certificate with a fresh key for the node that `held` names; nothing is written.

        Asks the local manager if `local`, then each known remote once, best first. Raises SwarmvisorError that says
        what each of them answered.
        """
        said: list[str] = []
        if local:
            try:
                return await self._from(held, lambda _who, _name: dial.control_channel(self.paths, held.root_pem))
            except (SwarmvisorError, grpc.aio.AioRpcError) as error:
                said.append(f"this node's manager: {_words(error)}")
        tried = {held.node_id}
        while True:
            try:
                peer = self.remotes.select(tried)
            except NoRemotes:
                break
            tried.add(peer.addr)
            try:
                issued = await self._from(held, _dialler(peer, held.root_pem))
            except (SwarmvisorError, grpc.aio.AioRpcError) as error:
                self.remotes.observe_if_exists(peer, -DEFAULT_WEIGHT)
                said.append(f"{peer.addr}: {_words(error)}")
            else:
                self.remotes.observe_if_exists(peer, DEFAULT_WEIGHT)
                return issued
        raise Unreachable("no manager issued a certificate: " + ("; ".join(said) or "none is known"))

    async def _from(self, held: Credentials, to: Dial) -> Credentials:
        """One certificate from one manager. Raises SwarmvisorError or AioRpcError."""
        key_pem, csr = await asyncio.to_thread(new_request)
        try:
            async with asyncio.timeout(self.issue_timeout), to(held, dial.MANAGER_NAME) as channel:
                certificate_pem = await self._issue(ca_pb2_grpc.NodeCAStub(channel), csr)
        except TimeoutError as error:
            raise TimedOut(
                f"not signed within {self.issue_timeout:g} s", remedy="see whether the swarm's CA can sign"
            ) from error
        issued = await asyncio.to_thread(check_issued, held, certificate_pem, key_pem)
        if issued.role == "manager":
            async with to(issued, CA_NAME) as channel:
                await self._refuse_autolock(ca_pb2_grpc.CAStub(channel))
        return issued

    async def _issue(self, ca: ca_pb2_grpc.NodeCAAsyncStub, csr: bytes) -> bytes:
        """Ask, then wait until the record with our very CSR is signed."""
        asked = await ca.IssueNodeCertificate(ca_pb2.IssueNodeCertificateRequest(csr=csr), timeout=CALL_TIMEOUT)
        question = ca_pb2.NodeCertificateStatusRequest(node_id=asked.node_id)
        polls = 0
        while True:
            try:
                answer = await ca.NodeCertificateStatus(question, timeout=CALL_TIMEOUT)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise
                self.log.debug("not signed yet")
            else:
                if answer.certificate.csr == csr:
                    if answer.status.state in _FINAL:
                        if not answer.certificate.certificate:
                            raise BadInput("no certificate in CertificateStatus response")
                        return answer.certificate.certificate
                    if answer.status.state == types_pb2.IssuanceStatus.FAILED:
                        raise Refused(f"the swarm's CA refused the request: {answer.status.err}")
            polls += 1
            # The server blocks until the record is final; this bounds the calls where it does not.
            await asyncio.sleep(random.uniform(0.0, min(_POLL_CAP, 1.0 + 2.0 ** min(polls - 1, 10))))

    async def _refuse_autolock(self, ca: ca_pb2_grpc.CAAsyncStub) -> None:
        """A swarm without autolock has no unlock key; its absence, or of the whole call, means unlocked (§4.8)."""
        try:
            answer = await ca.GetUnlockKey(ca_pb2.GetUnlockKeyRequest(), timeout=CALL_TIMEOUT)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                raise
            return
        if answer.unlock_key:
            raise Refused(
                "this swarm locks its managers' keys (autolock), and this release cannot store a locked key",
                remedy="turn autolock off, or leave this node a worker",
            )


def check_issued(held: Credentials, certificate_pem: bytes, key_pem: bytes) -> Credentials:
    """Credentials of what was issued. Raises BadInput unless it verifies, fits the key and names the same node."""
    chain = validate_chain(parse_bundle(held.root_pem), certificate_pem)
    if chain.leaf.public_key != privatekey.public_key_info(privatekey.load_pem(key_pem)):
        raise BadInput("the certificate that was issued is not for the key that asked")
    issued = make_credentials(chain, certificate_pem, key_pem, held.root_pem)
    if (issued.node_id, issued.cluster_id) != (held.node_id, held.cluster_id):
        raise BadInput(f"the certificate that was issued is for node {issued.node_id} of swarm {issued.cluster_id}")
    return issued


def _dialler(peer: Peer, root_pem: bytes) -> Dial:
    return lambda who, name: dial.remote_channel(peer.addr, who, root_pem, name)


def _words(error: SwarmvisorError | grpc.aio.AioRpcError) -> str:
    if isinstance(error, SwarmvisorError):
        return error.describe()
    return f"{error.code().name}: {error.details()}"
