"""The RPCs of the certificate authority (reference node-and-ca §5.5)."""

from __future__ import annotations

import asyncio
import hmac
import logging
from typing import Any

import grpc

from procs.manager.authorization import caller_of
from procs.manager.ca import issuance, reenrol
from procs.manager.ca.reenrol import NotTaken
from procs.manager.ca.server import CAServer
from procs.manager.members import Members
from procs.manager.status import Status, aborted, failed_precondition, invalid_argument, not_found
from procs.manager.store import Store, Tx, by
from procs.manager.store.errors import AlreadyExists
from swarm.api import ca_pb2, ca_pb2_grpc, objects_pb2, specs_pb2, types_pb2
from swarm.clock import Clock, SystemClock
from swarm.errors import BadInput
from swarm.identity import new_id
from swarm.pki.reenrol import METADATA, REFUSED, parse_proof

# ruff: noqa: N802  (gRPC's method names)

log = logging.getLogger(__name__)

ID_ATTEMPTS = 4
TELL_BEFORE = 0.5
"""Seconds before a caller's deadline at which it is told why its certificate is not signed yet."""
UNLOCK_SUBSYSTEM = "swarm-manager"
NO_TOKEN = "A valid join token is necessary to join this cluster"
ONE_MANAGER = (
    "this is a manager's token, and this swarm keeps its state in a SQLite file, which has exactly one manager; "
    "join with the worker's token (`swarmvisor join-token worker`)"
)


class CAService(ca_pb2_grpc.CAServicer):
    """Hands out the root and the unlock key; reads the store at each call."""

    def __init__(self, store: Store, cluster_id: str) -> None:
        self._store = store
        self._cluster_id = cluster_id

    def _cluster(self) -> objects_pb2.Cluster:
        cluster = self._store.get(objects_pb2.Cluster, self._cluster_id)
        if cluster is None:
            raise aborted("CA signer is still starting")
        return cluster

    async def GetRootCACertificate(
        self,
        request: ca_pb2.GetRootCACertificateRequest,  # noqa: ARG002
        context: Any,  # noqa: ARG002
    ) -> ca_pb2.GetRootCACertificateResponse:
        """The trust bundle; during a rotation still the old one, under which everything verifies."""
        return ca_pb2.GetRootCACertificateResponse(certificate=self._cluster().root_ca.ca_cert)

    async def GetUnlockKey(
        self,
        request: ca_pb2.GetUnlockKeyRequest,  # noqa: ARG002
        context: Any,  # noqa: ARG002
    ) -> ca_pb2.GetUnlockKeyResponse:
        """The managers' unlock key, empty unless they are locked; its version is the cluster's."""
        cluster = self._cluster()
        response = ca_pb2.GetUnlockKeyResponse()
        response.version.CopyFrom(cluster.meta.version)
        if cluster.spec.encryption_config.auto_lock_managers:
            for key in cluster.unlock_keys:
                if key.subsystem == UNLOCK_SUBSYSTEM:
                    response.unlock_key = key.key
        return response


class NodeCAService(ca_pb2_grpc.NodeCAServicer):
    """Takes certificate requests and tells what became of them. Open to strangers: it looks at callers itself."""

    def __init__(
        self,
        store: Store,
        server: CAServer,
        cluster_id: str,
        *,
        may_grow: bool = True,
        members: Members | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`may_grow`: the store's engine takes more than one manager; else a manager's token admits nobody.
        `members`: the managers; None: every node of that role counts as one."""
        self._members = members
        self._clock = clock or SystemClock()
        self._pace = reenrol.Pace()
        self._store = store
        self._server = server
        self._may_grow = may_grow
        self._cluster_id = cluster_id

    async def IssueNodeCertificate(
        self, request: ca_pb2.IssueNodeCertificateRequest, context: Any
    ) -> ca_pb2.IssueNodeCertificateResponse:
        """A node renews for itself; a stranger joins with a token, which decides the role."""
        if not request.csr:
            raise invalid_argument("InvalidArgument")
        tokens = self._server.tokens()
        caller = caller_of(context)
        if caller.node_id:
            return await self._renew(caller.node_id, request.csr, caller.leaf_hash)
        proof = _proof(context)
        # Both are compared, so that the time taken does not tell which one was close.
        manager = _equal(request.token, tokens.manager)
        worker = _equal(request.token, tokens.worker)
        if proof is not None:
            try:
                return await self._reenrol(proof, request.csr, with_token=manager or worker)
            except (NotTaken, BadInput) as refusal:
                log.warning("an expired certificate from %s is not taken: %s", caller.remote_addr, refusal.message)
                if isinstance(refusal, NotTaken) and refusal.marker:
                    context.set_trailing_metadata(((REFUSED, refusal.marker),))
                raise invalid_argument(NO_TOKEN) from refusal
        if not manager and not worker:
            raise invalid_argument(NO_TOKEN)
        if manager and not self._may_grow:
            raise failed_precondition(ONE_MANAGER)
        role = types_pb2.NodeRole.MANAGER if manager else types_pb2.NodeRole.WORKER
        return await self._join(role, request, caller.remote_addr)

    async def _reenrol(self, data: bytes, csr: bytes, *, with_token: bool) -> ca_pb2.IssueNodeCertificateResponse:
        """A node whose certificate expired renews after all. Raises NotTaken, BadInput."""
        proof = parse_proof(data)
        cluster = self._store.get(objects_pb2.Cluster, self._cluster_id)
        if cluster is None:
            raise NotTaken("", "there is no cluster object yet")
        store = self._store

        def known_now(node_id: str) -> reenrol.Known:
            record = store.side(reenrol.side_key(node_id))
            return reenrol.Known(store.get(objects_pb2.Node, node_id), reenrol.read_trace(record))

        node_id = reenrol.authenticate(proof, csr, cluster, known_now)
        if not known_now(node_id).has_asked(proof, csr):
            self._pace.admit(node_id, self._clock.monotonic())

        def write(tx: Tx) -> specs_pb2.NodeSpec.Membership.ValueType:
            # Everything is judged again on what is there when this is written.
            cluster, node = tx.get(objects_pb2.Cluster, self._cluster_id), tx.get(objects_pb2.Node, node_id)
            if cluster is None:
                raise NotTaken("", "the cluster object is gone")
            taken = reenrol.judge(
                proof,
                csr,
                cluster,
                reenrol.Known(node, reenrol.read_trace(tx.side(reenrol.side_key(node_id)))),
                self._clock.wall_ns(),
                with_token=with_token,
                is_member=lambda: self._is_member(node_id),
            )
            if node is None:
                raise AssertionError("judged as present")
            if not taken.repeated:
                tx.put_side(reenrol.side_key(node_id), reenrol.write_trace(taken.trace))
                tx.update(issuance.renewing(node, csr))
            return node.spec.membership

        membership = await self._store.update(write, cause="re-enrolment")
        log.info("node %s came back with an expired certificate, and gets a new one", node_id)
        return ca_pb2.IssueNodeCertificateResponse(node_id=node_id, node_membership=membership)

    def _is_member(self, node_id: str) -> bool:
        return self._members is None or any(member.node_id == node_id for member in self._members.members())

    async def _renew(self, node_id: str, csr: bytes, leaf_hash: str = "") -> ca_pb2.IssueNodeCertificateResponse:
        def write(tx: Tx) -> specs_pb2.NodeSpec.Membership.ValueType:
            node = tx.get(objects_pb2.Node, node_id)
            if node is None:
                raise not_found(f"node {node_id} not found when attempting to renew certificate")
            record = node.certificate
            # Else it is the same request again, whose answer was lost.
            if record.csr != csr or record.role != node.role:
                tx.update(issuance.renewing(node, csr))
                # The node object forgets the present certificate; a node that never gets the next one shows it again.
                reenrol.note_leaf(tx, node_id, leaf_hash)
            return node.spec.membership

        membership = await self._store.update(write, cause="renewal")
        return ca_pb2.IssueNodeCertificateResponse(node_id=node_id, node_membership=membership)

    async def _join(
        self, role: types_pb2.NodeRole.ValueType, request: ca_pb2.IssueNodeCertificateRequest, remote_addr: str
    ) -> ca_pb2.IssueNodeCertificateResponse:
        def write(tx: Tx) -> str:
            for node in tx.find(objects_pb2.Node, by.joining(request.csr)):
                # The same request again, from somebody who never got the answer: the same node (§11.2).
                if node.role == role:
                    return node.id
            cluster = tx.get(objects_pb2.Cluster, self._cluster_id)
            port = 0 if cluster is None else cluster.VXLANUDPPort
            for _ in range(ID_ATTEMPTS):
                node_id = new_id()
                try:
                    tx.create(issuance.joining(node_id, role, request.csr, request.availability, port))
                except AlreadyExists:
                    continue
                return node_id
            raise AlreadyExists

        node_id = await self._store.update(write, cause="join")
        log.info("node %s joins from %s as %s", node_id, remote_addr, types_pb2.NodeRole.Name(role).lower())
        return ca_pb2.IssueNodeCertificateResponse(node_id=node_id, node_membership=specs_pb2.NodeSpec.ACCEPTED)

    async def NodeCertificateStatus(
        self,
        request: ca_pb2.NodeCertificateStatusRequest,
        context: Any,
    ) -> ca_pb2.NodeCertificateStatusResponse:
        """The node's certificate record, once it is in a final state; waits for that as long as the caller does. Where
        the CA cannot sign for now the caller gets the unfinished record, which says why, just before its deadline."""
        if not request.node_id:
            raise invalid_argument("InvalidArgument")
        self._server.check_running()
        left: float | None = context.time_remaining()
        patience = None if left is None else asyncio.get_running_loop().time() + left - TELL_BEFORE
        with self._server.changes_of(request.node_id) as changed:
            while True:
                node = self._store.get(objects_pb2.Node, request.node_id)
                if node is None:
                    raise not_found("NotFound")
                record = node.certificate
                answer = ca_pb2.NodeCertificateStatusResponse(status=record.status, certificate=record)
                if record.status.state in issuance.FINAL:
                    return answer
                try:
                    async with asyncio.timeout_at(patience if record.status.err else None):
                        await changed.wait()
                except TimeoutError:
                    return answer
                changed.clear()
                try:
                    self._server.check_running()
                except Status as stopped:
                    raise Status(grpc.StatusCode.CANCELLED, "context canceled") from stopped


def _proof(context: Any) -> bytes | None:
    """The proof in the request's metadata; None if there is none."""
    for key, value in context.invocation_metadata() or ():
        if key == METADATA:
            return value if isinstance(value, bytes) else str(value).encode()
    return None


def _equal(given: str, token: str) -> bool:
    return bool(token) and hmac.compare_digest(given.encode(), token.encode())
