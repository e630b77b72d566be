"""One try to join a swarm: root, certificate, and for a manager the unlock key (reference/node-and-ca §1.4, §5.7).

Whatever a try has reached is on disk (the root; `.joining` with key, CSR and node id), so the next one, perhaps of
another process, goes on from there. Imports grpc: the shell imports this module when there is something to join.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from dataclasses import dataclass, replace

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from procs.renewer.signed import CALL_TIMEOUT, RequestFailed, signed
from swarm import dial, tunnel
from swarm.api import ca_pb2, ca_pb2_grpc, specs_pb2
from swarm.clock import Clock
from swarm.errors import BadInput, CorruptFile
from swarm.files import write_atomic
from swarm.identity import FIPS_PREFIX
from swarm.joining import JoinFailed, Joining, Trouble, load_joining, save_joining
from swarm.paths import Paths
from swarm.pki import privatekey
from swarm.pki.certificate import CA_NAME, MALFORMED, Certificate
from swarm.pki.chain import CertificateInvalid, validate_chain
from swarm.pki.credentials import Credentials, make_credentials
from swarm.pki.keyfile import Kek
from swarm.pki.request import new_request
from swarm.pki.rootca import RootCA
from swarm.pki.tokens import JoinToken
from swarm.probe import Problem, probe

ISSUE_TIMEOUT = 60.0
"""Seconds that the swarm gets to sign, in one try."""
UNLOCK_TRIES = 5

_TROUBLE = {
    Problem.UNREACHABLE: Trouble.UNREACHABLE,
    Problem.NOT_A_MANAGER: Trouble.UNREACHABLE,
    Problem.OTHER_SWARM: Trouble.OTHER_SWARM,
    Problem.CLOCK: Trouble.CLOCK,
}
_REFUSALS = (
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
)
_SPKI = serialization.PublicFormat.SubjectPublicKeyInfo
_NEW_TOKEN = "ask a manager for the present one: `swarmvisor join-token worker` (or `docker swarm join-token worker`)"
_AVAILABILITY = {
    "active": specs_pb2.NodeSpec.ACTIVE,
    "pause": specs_pb2.NodeSpec.PAUSE,
    "drain": specs_pb2.NodeSpec.DRAIN,
}


@dataclass(frozen=True)
class Joiner:
    """Asks in the name of a node that has nothing yet."""

    paths: Paths
    addr: str
    """`HOST:PORT` of a manager."""
    availability: str
    """active, pause or drain."""
    fips: bool
    """Whether this node is a FIPS node."""
    clock: Clock
    log: logging.Logger | logging.LoggerAdapter[logging.Logger]
    issue_timeout: float = ISSUE_TIMEOUT

    async def join(self) -> tuple[Credentials, Kek]:
        """A verified certificate with its key, and what the key is to be encrypted with. Neither is written.

        Raises JoinFailed; CorruptFile for a file of ours that cannot be used (it is left as it is).
        """
        text, token = await asyncio.to_thread(read_token, self.paths)
        if token.fips and not self.fips:
            raise needs_fips()
        root = await self._root(token)
        record = await asyncio.to_thread(self._record, root)
        try:
            async with asyncio.timeout(self.issue_timeout):
                certificate_pem = await self._certificate(text, record, root)
        except TimeoutError as error:
            raise JoinFailed(
                Trouble.OTHER,
                f"the swarm did not sign the certificate within {self.issue_timeout:g} s",
                remedy="see on a manager whether the swarm's CA can sign",
            ) from error
        joined = await asyncio.to_thread(self._check, certificate_pem, record, root)
        return joined, await self._unlock_key(joined) if joined.role == "manager" else Kek()

    # -- the root ----------------------------------------------------------------------------------

    async def _root(self, token: JoinToken) -> RootCA:
        """The root on disk (SwarmKit too keeps one that is there), else the manager's, if the token names it."""
        try:
            return await asyncio.to_thread(self._root_on_disk)
        except FileNotFoundError:
            pass
        digest = token.root_digest()
        bundle = await self._download(await self._leaf())
        found = hashlib.sha256(bundle).hexdigest()
        if found != digest:
            raise JoinFailed(
                Trouble.DIGEST,
                f"remote CA does not match fingerprint. Expected: {digest}, but {self.addr} has {found}",
                remedy=f"the token is another swarm's, or from before its root was rotated; {_NEW_TOKEN}",
            )
        root = self._valid_root(bundle)
        await asyncio.to_thread(self._save_root, bundle)
        self.log.info("the root of the swarm at %s is the one that the token names", self.addr)
        return root

    def _root_on_disk(self) -> RootCA:
        path = self.paths.root_cert
        try:
            return RootCA.from_pem(path.read_bytes(), now=self._now())
        except CertificateInvalid as error:
            raise JoinFailed(Trouble.CLOCK, error.message, remedy="check this machine's clock") from error
        except BadInput as error:
            raise CorruptFile(path, error.message, remedy="remove it: the join fetches it again") from error

    def _valid_root(self, bundle: bytes) -> RootCA:
        try:
            return RootCA.from_pem(bundle, now=self._now())
        except CertificateInvalid as error:
            raise JoinFailed(Trouble.CLOCK, error.message, remedy="check this machine's clock") from error
        except BadInput as error:
            raise JoinFailed(
                Trouble.OTHER, f"the root that {self.addr} sent cannot be used: {error.message}"
            ) from error

    def _save_root(self, bundle: bytes) -> None:
        self.paths.certificates.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_atomic(self.paths.root_cert, bundle, mode=0o644)

    async def _leaf(self) -> Certificate:
        """What the manager shows, unverified: it becomes the one root of the connection that fetches the root, and the
        token's digest decides on what came over it (DESIGN §6)."""
        seen = await probe(self.addr, CA_NAME, now=self._now())
        if seen.leaf is None or seen.problem is not Problem.NONE:
            raise JoinFailed(_TROUBLE[seen.problem], seen.why, remedy=_remedy(seen.problem))
        return seen.leaf

    async def _download(self, leaf: Certificate) -> bytes:
        names = _dns_names(leaf)
        if not names:
            raise JoinFailed(
                Trouble.UNREACHABLE, f"what answers at {self.addr} is not a manager: its certificate has no name"
            )
        name = CA_NAME if CA_NAME in names else names[0]
        async with dial.remote_channel(self.addr, None, leaf.pem, name) as channel:
            ca: ca_pb2_grpc.CAAsyncStub = ca_pb2_grpc.CAStub(channel)
            try:
                answer = await ca.GetRootCACertificate(ca_pb2.GetRootCACertificateRequest(), timeout=CALL_TIMEOUT)
            except grpc.aio.AioRpcError as error:
                raise JoinFailed(
                    Trouble.UNREACHABLE,
                    f"{self.addr} did not tell the swarm's root: {_text(error)}",
                    remedy=_remedy(Problem.UNREACHABLE),
                ) from error
        return answer.certificate

    # -- the certificate ---------------------------------------------------------------------------

    def _record(self, root: RootCA) -> Joining:
        """The join that was under way with this swarm, else a new one; on disk before anybody is asked."""
        found = load_joining(self.paths.joining)
        if found is not None and found.root_digest == root.digest:
            try:
                key = privatekey.public_key_info(privatekey.load_pem(found.key_pem.encode()))
                request = x509.load_pem_x509_csr(found.csr_pem.encode()).public_key()
            except (BadInput, *MALFORMED) as error:
                raise CorruptFile(
                    self.paths.joining, f"holds no key or no request: {error}", remedy="remove it to join as a new node"
                ) from error
            if key != request.public_bytes(serialization.Encoding.DER, _SPKI):
                raise CorruptFile(
                    self.paths.joining, "its request is not for its key", remedy="remove it to join as a new node"
                )
            self.log.info("going on with the join of before%s", f" as node {found.node_id}" if found.node_id else "")
            return found
        key_pem, csr = new_request()
        made = Joining(key_pem.decode(), csr.decode(), root.digest)
        save_joining(self.paths.joining, made)
        return made

    async def _certificate(self, token: str, record: Joining, root: RootCA) -> bytes:
        csr = record.csr_pem.encode()
        async with dial.remote_channel(self.addr, None, root.certs, CA_NAME) as channel:
            ca: ca_pb2_grpc.NodeCAAsyncStub = ca_pb2_grpc.NodeCAStub(channel)
            try:
                node_id = record.node_id
                if not node_id:
                    request = ca_pb2.IssueNodeCertificateRequest(
                        csr=csr, token=token, availability=_AVAILABILITY[self.availability]
                    )
                    node_id = (await ca.IssueNodeCertificate(request, timeout=CALL_TIMEOUT)).node_id
                    await asyncio.to_thread(save_joining, self.paths.joining, replace(record, node_id=node_id))
                    self.log.info("the swarm at %s took this host as node %s", self.addr, node_id)
                return await signed(ca, node_id, csr, self.log)
            except RequestFailed as error:
                raise JoinFailed(Trouble.REFUSED, error.message) from error
            except BadInput as error:
                raise JoinFailed(Trouble.OTHER, f"{self.addr}: {error.message}") from error
            except grpc.aio.AioRpcError as error:
                unavailable = error.code() is grpc.StatusCode.UNAVAILABLE
                if not unavailable or not await tunnel.learn(self.addr, root.certs, CA_NAME):
                    raise await self._explain(error, record, root) from error
        self.log.info("%s speaks TLS as Go does and grpc does not; tunnelling to it", self.addr)
        record = await asyncio.to_thread(self._record, root)  # it may name the node by now
        return await self._certificate(token, record, root)

    async def _explain(self, error: grpc.aio.AioRpcError, record: Joining, root: RootCA) -> JoinFailed:
        """What a failed call means for the join."""
        code, said = error.code(), error.details() or error.code().name
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            return JoinFailed(
                Trouble.REFUSED,
                f"the swarm at {self.addr} does not take this token: {said}",
                remedy=f"it may have been rotated; {_NEW_TOKEN}",
            )
        if code in _REFUSALS:
            return JoinFailed(Trouble.REFUSED, f"the swarm at {self.addr} does not take this node: {said}")
        if code is grpc.StatusCode.NOT_FOUND:
            # Removed before it had ever come: nobody of that name any more, so the next try is another node.
            await asyncio.to_thread(save_joining, self.paths.joining, replace(record, node_id=""))
            return JoinFailed(Trouble.OTHER, f"node {record.node_id} was removed from the swarm while it joined")
        if code is grpc.StatusCode.UNAVAILABLE:
            seen = await probe(self.addr, CA_NAME, root_pem=root.certs, now=self._now())
            if seen.problem is not Problem.NONE:
                return JoinFailed(_TROUBLE[seen.problem], seen.why, remedy=_remedy(seen.problem))
        return JoinFailed(
            Trouble.UNREACHABLE,
            f"{self.addr} did not answer the request for a certificate: {_text(error)}",
            remedy=_remedy(Problem.UNREACHABLE),
        )

    def _check(self, certificate_pem: bytes, record: Joining, root: RootCA) -> Credentials:
        """Credentials of what was issued (§5.7.3)."""
        key_pem = record.key_pem.encode()
        try:
            chain = validate_chain(root.pool, certificate_pem, now=self._now())
            if chain.leaf.public_key != privatekey.public_key_info(privatekey.load_pem(key_pem)):
                raise BadInput("the certificate that was issued is not for the key that asked")
            joined = make_credentials(chain, certificate_pem, key_pem, root.certs)
        except CertificateInvalid as error:
            raise JoinFailed(Trouble.CLOCK, error.message, remedy="check this machine's clock") from error
        except BadInput as error:
            raise JoinFailed(
                Trouble.OTHER, f"the certificate of {self.addr} cannot be used: {error.message}"
            ) from error
        if joined.cluster_id.startswith(FIPS_PREFIX) and not self.fips:
            raise needs_fips()
        return joined

    async def _unlock_key(self, joined: Credentials) -> Kek:
        """The key that locks the managers' keys (§4.8); a manager without the call has no autolock."""
        tries = 0
        while True:
            tries += 1
            async with dial.remote_channel(self.addr, joined, joined.root_pem, CA_NAME) as channel:
                ca: ca_pb2_grpc.CAAsyncStub = ca_pb2_grpc.CAStub(channel)
                try:
                    answer = await ca.GetUnlockKey(ca_pb2.GetUnlockKeyRequest(), timeout=CALL_TIMEOUT)
                except grpc.aio.AioRpcError as error:
                    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                        return Kek()
                    if tries == UNLOCK_TRIES:
                        raise JoinFailed(
                            Trouble.OTHER, f"{self.addr} did not tell whether managers are locked: {_text(error)}"
                        ) from error
                else:
                    return Kek(answer.unlock_key, answer.version.index)

    def _now(self) -> float:
        return self.clock.wall_ns() / 1e9


def read_token(paths: Paths) -> tuple[str, JoinToken]:
    """The token of the file `join-token`: its text, and what it says. Raises JoinFailed."""
    try:
        text = paths.join_token.read_text("ascii", errors="replace").strip()
    except FileNotFoundError as error:
        raise JoinFailed(
            Trouble.TOKEN,
            f"{paths.join_token} is missing, and this node has not joined yet",
            remedy="`swarmvisor leave --force`, then `swarmvisor join` with a token",
        ) from error
    try:
        token = JoinToken.parse(text)
        token.root_digest()
    except BadInput as error:
        raise JoinFailed(Trouble.TOKEN, error.message, remedy=error.remedy) from error
    return text, token


def needs_fips() -> JoinFailed:
    """SwarmKit's ErrMandatoryFIPS."""
    return JoinFailed(
        Trouble.FIPS,
        "node is not FIPS-enabled but cluster requires FIPS",
        remedy="join with --fips, on a host whose OpenSSL is in FIPS mode",
    )


def _dns_names(leaf: Certificate) -> list[str]:
    try:
        names = leaf.parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.DNSName)


def _remedy(problem: Problem) -> str:
    match problem:
        case Problem.UNREACHABLE:
            return "see that the address is a manager's, that it runs, and that no firewall is between"
        case Problem.NOT_A_MANAGER:
            return "give the address of a manager's remote API, port 2377 unless chosen otherwise"
        case Problem.OTHER_SWARM:
            return "see that token and address are of the same swarm"
    return ""


def _text(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name}: {error.details()}"
