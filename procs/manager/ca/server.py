"""The signing loop: runs on the leader, follows nodes and cluster, signs what waits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from procs.manager.ca import issuance
from procs.manager.ca.external import ExternalCAs, SignerRefused, SignerUnavailable, is_for, urls_for
from procs.manager.status import aborted
from procs.manager.store import Store, Tx, Watch
from swarm.api import objects_pb2, types_pb2
from swarm.errors import BadInput, Refused, SwarmvisorError
from swarm.pki.certificate import MANAGER_OU, WORKER_OU
from swarm.pki.chain import validate_chain
from swarm.pki.rootca import DEFAULT_NODE_EXPIRY, NoValidSigner, RootCA, check_request

log = logging.getLogger(__name__)

RETRY_SECONDS = 10.0
"""After a failure that another try may mend."""
BATCH = 50
"""Certificates signed and written at once; bounds how long the event loop is held (0.3 ms each)."""
EXTERNAL_BATCH = 8
"""Questions to external CAs at once."""


@dataclass(frozen=True)
class _Outcome:
    """What became of one request."""

    node_id: str
    csr: bytes
    certificate: bytes = b""
    """Empty: none, see `why`."""
    why: str = ""
    final: bool = True
    """False: another try may get one."""


class CAServer:
    """One per process. Serves while `run` runs."""

    def __init__(self, store: Store, cluster_id: str, externals: ExternalCAs | None = None) -> None:
        """`externals`: how signers outside the swarm are asked; None: never."""
        self._store = store
        self._cluster_id = cluster_id
        self._externals = externals
        self._urls: list[str] = []
        self._trusted = b""
        """Under what an external signer must be certified: our roots, PEM."""
        self._running = False
        self._tokens: types_pb2.JoinTokens | None = None
        self._applied: types_pb2.RootCA | None = None
        self._root: RootCA | None = None
        self._expiry = float(DEFAULT_NODE_EXPIRY)
        self._pending: dict[str, bytes] = {}
        """Node id to CSR of the requests that wait."""
        self._wake = asyncio.Event()
        self._retry: asyncio.TimerHandle | None = None
        """One for all that wait, however often something else wakes the signer meanwhile."""
        self._waiting: dict[str, set[asyncio.Event]] = {}

    # -- for the services ---------------------------------------------------------------------------

    def check_running(self) -> None:
        """Raises Status unless the signer runs."""
        if not self._running:
            raise aborted("CA signer is stopped")

    def tokens(self) -> types_pb2.JoinTokens:
        """The swarm's join tokens. Raises Status while stopped or starting."""
        self.check_running()
        if self._tokens is None:
            raise aborted("CA signer is still starting")
        return self._tokens

    @contextmanager
    def changes_of(self, node_id: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever the node changes, and when the signer stops."""
        event = asyncio.Event()
        self._waiting.setdefault(node_id, set()).add(event)
        try:
            yield event
        finally:
            events = self._waiting[node_id]
            events.discard(event)
            if not events:
                del self._waiting[node_id]

    # -- the loop -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Sign until cancelled."""
        if self._running:
            raise Refused("CA signer is already running")
        async with self._store.watch() as watch:
            cluster = self._store.get(objects_pb2.Cluster, self._cluster_id)
            if cluster is None:
                raise Refused("could not find cluster object")
            self._apply(cluster)
            self._pending = {
                n.id: n.certificate.csr for n in self._store.find(objects_pb2.Node) if issuance.wants_signature(n)
            }
            self._wake.set()
            self._running = True
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._follow(watch), name="ca-follow")
                    group.create_task(self._sign_forever(), name="ca-sign")
            finally:
                self._running = False
                self._tokens = None
                for events in self._waiting.values():
                    for event in events:
                        event.set()

    async def _follow(self, watch: Watch) -> None:
        async for commit in watch:
            for event in commit.events:
                match event.object:
                    case objects_pb2.Cluster() as cluster if cluster.id == self._cluster_id:
                        self._apply(cluster)
                    case objects_pb2.Node() as node:
                        # The newest one: the signer may have moved it on since this commit.
                        current = self._store.get(objects_pb2.Node, node.id)
                        if current is not None and issuance.wants_signature(current):
                            # One that waits already is tried again in time: this may be our own note on it.
                            if self._pending.get(node.id) != current.certificate.csr:
                                self._pending[node.id] = current.certificate.csr
                                self._wake.set()
                        else:
                            self._pending.pop(node.id, None)
                        for waiter in self._waiting.get(node.id, ()):
                            waiter.set()

    def _apply(self, cluster: objects_pb2.Cluster) -> None:
        """Take tokens, expiry and root from the cluster; a new root is another chance for what failed."""
        self._tokens = cluster.root_ca.join_tokens
        expiry = cluster.spec.ca_config.node_cert_expiry
        self._expiry = expiry.seconds + expiry.nanos / 1e9 or float(DEFAULT_NODE_EXPIRY)
        current, following = cluster.root_ca.ca_cert, cluster.root_ca.root_rotation.ca_cert
        self._trusted = current + following
        urls = urls_for(cluster.spec.ca_config.external_cas, following or current, current)
        if urls != self._urls:
            self._urls = urls
            self._wake.set()  # another chance for what waits
        wanted = types_pb2.RootCA()
        wanted.CopyFrom(cluster.root_ca)
        wanted.ClearField("join_tokens")
        if wanted == self._applied:
            return
        self._applied = wanted
        try:
            self._root = signing_root(cluster.root_ca)
        except BadInput as error:
            # Handing out the root and everything else goes on; signing waits for a root that can sign.
            log.error("the swarm's root cannot sign: %s", error.describe())
            self._root = None
        self._wake.set()

    async def _sign_forever(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if not await self._sign_pending() and self._retry is None:
                self._retry = asyncio.get_running_loop().call_later(RETRY_SECONDS, self._again)

    def _again(self) -> None:
        self._retry = None
        self._wake.set()

    async def _sign_pending(self) -> bool:
        """Sign all that waits; False if some could not be signed for now."""
        waiting = list(self._pending)
        complete = True
        outside = self._externals is not None and bool(self._urls)
        step = EXTERNAL_BATCH if outside else BATCH
        for start in range(0, len(waiting), step):
            wanted: list[objects_pb2.Node] = []
            for node_id in waiting[start : start + step]:
                node = self._store.get(objects_pb2.Node, node_id)
                if node is None or not issuance.wants_signature(node):
                    self._pending.pop(node_id, None)
                else:
                    wanted.append(node)
            outcomes = await asyncio.gather(*(self._try(node, outside=outside) for node in wanted))
            complete = complete and all(outcome.final for outcome in outcomes)
            if outcomes:
                await self._write(outcomes)
        return complete

    async def _try(self, node: objects_pb2.Node, *, outside: bool) -> _Outcome:
        """One signature, or why there is none."""
        record = node.certificate
        ou = MANAGER_OU if record.role == types_pb2.NodeRole.MANAGER else WORKER_OU
        try:
            try:
                certificate = await self._sign_outside(record, ou) if outside else self._sign(record, ou)
            except SignerUnavailable as error:
                if self._root is None or not self._root.can_sign:
                    raise
                log.warning("signing with the swarm's own key for node %s: %s", node.id, error.message)
                certificate = self._sign(record, ou)
        except (NoValidSigner, SignerUnavailable) as error:
            log.warning("certificate of node %s cannot be signed now: %s", node.id, error.describe())
            return _Outcome(node.id, record.csr, why=error.describe(), final=False)
        except SwarmvisorError as error:
            log.warning("certificate of node %s refused: %s", node.id, error.message)
            return _Outcome(node.id, record.csr, why=error.message)
        return _Outcome(node.id, record.csr, certificate)

    def _sign(self, record: types_pb2.Certificate, ou: str) -> bytes:
        if self._root is None:
            raise NoValidSigner
        return self._root.sign(record.csr, record.cn, ou, self._cluster_id, self._expiry)

    async def _sign_outside(self, record: types_pb2.Certificate, ou: str) -> bytes:
        """Leaf of an external CA, with the intermediates that the swarm adds; checked before it is stored."""
        root = self._root
        if root is None or self._externals is None:
            raise NoValidSigner
        check_request(record.csr)  # what nobody can sign is refused here: it would only seem unreachable there
        leaf = await self._externals.sign(self._urls, self._trusted, record.csr, record.cn, ou, self._cluster_id)
        chain = leaf.rstrip() + b"\n" + root.intermediates
        found = validate_chain(root.pool, chain).leaf
        if not is_for(found, record.csr) or found.common_name != record.cn:
            raise SignerRefused("the external CA's certificate is not for the node and key that asked")
        return chain

    async def _write(self, outcomes: list[_Outcome]) -> None:
        def write(tx: Tx) -> None:
            for done in outcomes:
                node = tx.get(objects_pb2.Node, done.node_id)
                if node is None:
                    continue
                if done.certificate:
                    changed = issuance.issued(node, done.csr, done.certificate)
                else:
                    changed = (issuance.failed if done.final else issuance.delayed)(node, done.csr, done.why)
                if changed is not None:
                    tx.update(changed)

        await self._store.update(write, cause="certificate")
        for done in outcomes:
            # One that asked anew meanwhile comes back with its own event.
            if done.final and self._pending.get(done.node_id) == done.csr:
                del self._pending[done.node_id]


def signing_root(record: types_pb2.RootCA) -> RootCA:
    """The signer that the cluster's record asks for: the next root's while a rotation runs. Raises BadInput."""
    if record.HasField("root_rotation"):
        rotation = record.root_rotation
        crossed = rotation.cross_signed_ca_cert
        key = rotation.ca_key
        return RootCA.from_pem(record.ca_cert, key or None, crossed if key else None, crossed)
    key = record.ca_key
    return RootCA.from_pem(record.ca_cert, key or None, record.ca_cert if key else None)
