"""Getting a certificate from a manager: the local one first, then the others (reference/node-and-ca §4.8, §5.5, §5.7).

Imports grpc: the shell imports this module when a request is near.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc
import grpc.aio

from procs.renewer.reenroller import Reenroller
from procs.renewer.signed import CALL_TIMEOUT, NotSigned, check_issued, signed
from swarm import dial
from swarm.api import ca_pb2, ca_pb2_grpc
from swarm.errors import Refused, SwarmvisorError, TimedOut
from swarm.joining import NoCertificate, Trouble
from swarm.nodeconfig import load_node_config
from swarm.paths import Paths
from swarm.pki.certificate import CA_NAME
from swarm.pki.credentials import Credentials
from swarm.pki.keyfile import Kek
from swarm.pki.request import new_request
from swarm.remotes import DEFAULT_WEIGHT, NoRemotes, Peer, Remotes
from swarm.tunnel import learn

ISSUE_TIMEOUT = 60.0
"""Seconds that one manager gets to have the certificate signed."""

Issued = tuple[Credentials, Kek]
Dial = Callable[[Credentials | None, str], grpc.aio.Channel]


@dataclass(frozen=True)
class Requester:
    """Asks in the name of a node that has a certificate."""

    paths: Paths
    remotes: Remotes
    log: logging.Logger | logging.LoggerAdapter[logging.Logger]
    issue_timeout: float = ISSUE_TIMEOUT

    async def request(self, held: Credentials, *, local: bool) -> Issued:
        """A verified certificate with a fresh key for the node that `held` names, and what a manager's key file is to
        be locked with; nothing is written.

        Asks the local manager if `local`, then each known remote once, best first; with an expired certificate (our
        own dates are looked at before dialling) by the proof of `procs.renewer.reenroller`. Raises NoCertificate,
        which says what each of them answered.
        """
        said: list[str] = []
        troubles: set[Trouble] = set()
        if local:
            try:
                return await self._from(held, lambda _who, _name: dial.control_channel(self.paths, held.root_pem))
            except (SwarmvisorError, grpc.aio.AioRpcError) as error:
                troubles.add(_trouble(error))
                said.append(f"this node's manager: {_words(error)}")
        if time.time() > held.not_after:
            await asyncio.to_thread(self._add_join_address)
        tried = {held.node_id}
        while True:
            try:
                peer = self.remotes.select(tried)
            except NoRemotes:
                break
            tried.add(peer.addr)
            try:
                issued = await self._from_remote(held, peer)
            except (SwarmvisorError, grpc.aio.AioRpcError) as error:
                self.remotes.observe_if_exists(peer, -DEFAULT_WEIGHT)
                troubles.add(_trouble(error))
                said.append(f"{peer.addr}: {_words(error)}")
            else:
                self.remotes.observe_if_exists(peer, DEFAULT_WEIGHT)
                return issued
        worst = next((kind for kind in (Trouble.REFUSED, Trouble.UNSIGNED) if kind in troubles), Trouble.UNREACHABLE)
        raise NoCertificate(worst, "no manager issued a certificate: " + ("; ".join(said) or "none is known"))

    def _add_join_address(self) -> None:
        """Where `rejoin` said to come back at is asked too."""
        if self.paths.node_toml.exists() and (addr := load_node_config(self.paths.node_toml).join_addr):
            self.remotes.observe(Peer("", addr), DEFAULT_WEIGHT)

    async def _from_remote(self, held: Credentials, peer: Peer) -> Issued:
        if time.time() > held.not_after:
            back = await Reenroller(self.paths, self.log, self.issue_timeout).ask(held, peer.addr)
            if back.role != "manager":
                return back, Kek()
            async with dial.remote_channel(peer.addr, back, back.root_pem, CA_NAME) as channel:
                return back, await self._unlock_key(ca_pb2_grpc.CAStub(channel))
        to = _dialler(peer, held.root_pem)
        try:
            return await self._from(held, to)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE or not await learn(
                peer.addr, held.root_pem, dial.MANAGER_NAME
            ):
                raise
            self.log.info("%s speaks TLS as Go does and grpc does not; tunnelling to it", peer.addr)
            return await self._from(held, to)

    async def _from(self, held: Credentials, to: Dial) -> Issued:
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
                return issued, await self._unlock_key(ca_pb2_grpc.CAStub(channel))
        return issued, Kek()

    async def _issue(self, ca: ca_pb2_grpc.NodeCAAsyncStub, csr: bytes) -> bytes:
        """Ask, then wait until the record with our very CSR is signed."""
        asked = await ca.IssueNodeCertificate(ca_pb2.IssueNodeCertificateRequest(csr=csr), timeout=CALL_TIMEOUT)
        return await signed(ca, asked.node_id, csr, self.log)

    async def _unlock_key(self, ca: ca_pb2_grpc.CAAsyncStub) -> Kek:
        """What managers' keys are locked with; a manager without the call has no autolock (§4.8)."""
        try:
            answer = await ca.GetUnlockKey(ca_pb2.GetUnlockKeyRequest(), timeout=CALL_TIMEOUT)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                raise
            return Kek()
        return Kek(answer.unlock_key, answer.version.index)


def _dialler(peer: Peer, root_pem: bytes) -> Dial:
    return lambda who, name: dial.remote_channel(peer.addr, who, root_pem, name)


def _trouble(error: SwarmvisorError | grpc.aio.AioRpcError) -> Trouble:
    if isinstance(error, NotSigned):
        return Trouble.UNSIGNED
    return Trouble.REFUSED if isinstance(error, Refused) else Trouble.UNREACHABLE


def _words(error: SwarmvisorError | grpc.aio.AioRpcError) -> str:
    if isinstance(error, SwarmvisorError):
        return error.describe()
    return f"{error.code().name}: {error.details()}"
