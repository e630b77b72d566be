"""Nodes of real swarms made to look as if they had been off for long: their certificates are over, and the manager's
store says that these were the ones issued last."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from procs.manager.datakey import KeyRing
from procs.manager.store import Store, Tx
from procs.manager.store.sealing import SealedEngine, Sealer
from procs.manager.store.sqlite import SqliteEngine
from swarm.api import objects_pb2
from swarm.clock import SystemClock
from swarm.paths import Paths
from swarm.pki.certificate import MANAGER_OU, WORKER_OU
from swarm.pki.credentials import Credentials, load_credentials
from swarm.pki.keyfile import KeyFile
from swarm.pki.request import new_request
from swarm.pki.rootca import RootCA

DAY = 24 * 3600.0
HOUR = 3600.0


def old_root() -> RootCA:
    """A root older than any certificate that a test wants to have been issued."""
    return RootCA.create(now=time.time() - 1000 * DAY)


def lay_root(paths: Paths, root: RootCA) -> None:
    """Have a node that was created and has not started yet found its swarm on this root."""
    paths.certificates.mkdir()
    paths.root_cert.write_bytes(root.certs)
    paths.root_key.write_bytes(root.key_pem)


def reissue(paths: Paths, root: RootCA, *, age: float = 0.0, life: float = 90 * DAY) -> Credentials:
    """Give a node that is down another certificate, issued `age` seconds ago for `life` more; it keeps its name, role
    and swarm."""
    held = load_credentials(paths, allow_expired=True)
    key, csr = new_request()
    unit = MANAGER_OU if held.role == "manager" else WORKER_OU
    chain = root.sign(csr, held.node_id, unit, held.cluster_id, life, now=time.time() - age)
    KeyFile.of(paths).write(chain, key, headers=lambda found: found)
    return load_credentials(paths, allow_expired=True)


def expire(paths: Paths, root: RootCA, days: float) -> Credentials:
    """The same, with one that was over `days` ago."""
    held = reissue(paths, root, age=HOUR + days * DAY, life=HOUR)
    assert held.not_after < time.time()
    return held


async def rewrite(paths: Paths, cluster_id: str, write: Callable[[Tx], None]) -> None:
    """Change the store of a manager that is down."""
    keys = KeyRing(paths).read(store_exists=True)
    sealer = Sealer(cluster_id, keys.current, [keys.pending] if keys.pending else [])
    engine = SealedEngine(SqliteEngine(paths.manager / "store.db", node_id="test"), sealer)
    store = await Store.open(engine, clock=SystemClock())
    await store.update(write)
    await store.close()


async def believe(paths: Paths, held: Sequence[Credentials]) -> None:
    """Let the store of a manager that is down say that these are the certificates it issued last."""

    def write(tx: Tx) -> None:
        for credentials in held:
            found = tx.get(objects_pb2.Node, credentials.node_id)
            assert found is not None
            changed = objects_pb2.Node()
            changed.CopyFrom(found)
            changed.certificate.certificate = credentials.certificate_pem
            tx.update(changed)

    await rewrite(paths, held[0].cluster_id, write)
