"""Making a new swarm's first certificates (DESIGN §5, "The first root key").

Order: the root's key, the root, then the node's pair. Killed anywhere, the next start finds something missing and
starts over; a complete pair means that root and key before it are complete and its own.
"""

from __future__ import annotations

from swarm.clock import Clock
from swarm.errors import BadInput, CorruptFile
from swarm.files import remove_durably, write_atomic
from swarm.identity import new_id
from swarm.paths import Paths
from swarm.pki.certificate import MANAGER_OU
from swarm.pki.keyfile import KeyFile
from swarm.pki.request import new_request
from swarm.pki.rootca import DEFAULT_NODE_EXPIRY, RootCA


def bootstrap(paths: Paths, clock: Clock) -> None:
    """Write root key, root and a manager's pair of a swarm that nobody knew before.

    An operator's `swarm-root-ca.key` is used, and handed over by the same copy; it is never written or removed.
    Raises CorruptFile if that pair cannot be used.
    """
    now = clock.wall_ns() / 1e9
    paths.certificates.mkdir(mode=0o755, parents=True, exist_ok=True)
    pair = KeyFile.of(paths)
    pair.sweep()
    operators = paths.root_key.exists()
    root = _operators_root(paths, now) if operators else RootCA.create(now=now)
    # What another start left is removed certificate first: a pair must never outlive the root that it belongs to.
    for stale in (pair.certificate, pair.first_phase, pair.key):
        if stale.exists():
            remove_durably(stale)
    write_atomic(paths.bootstrap_root_key, root.key_pem, mode=0o600)
    if not operators:
        write_atomic(paths.root_cert, root.certs, mode=0o644)
    key_pem, request = new_request()
    pair.write(root.sign(request, new_id(), MANAGER_OU, new_id(), DEFAULT_NODE_EXPIRY, now=now), key_pem)


def _operators_root(paths: Paths, now: float) -> RootCA:
    certs, key = paths.root_cert.read_bytes(), paths.root_key.read_bytes()
    try:
        return RootCA.from_pem(certs, key, certs, now=now)
    except BadInput as error:
        raise CorruptFile(
            paths.root_key, f"cannot be used with swarm-root-ca.crt: {error.message}", remedy="mend or remove both"
        ) from error
