"""Making a new swarm's first certificates (DESIGN §5, "The first root key").

Order: the root's key, the root, then the node's pair. Killed anywhere, the next start finds something missing and
starts over; a complete pair means that root and key before it are complete and its own.
"""

from __future__ import annotations

from swarm.clock import Clock
from swarm.errors import BadInput, CorruptFile
from swarm.files import remove_durably, write_atomic
from swarm.identity import FIPS_PREFIX, new_id
from swarm.nodeconfig import load_node_config
from swarm.paths import Paths
from swarm.pki import privatekey
from swarm.pki.certificate import MANAGER_OU
from swarm.pki.keyfile import Kek, KeyFile
from swarm.pki.pem import Block
from swarm.pki.request import new_request
from swarm.pki.rootca import DEFAULT_NODE_EXPIRY, RootCA
from swarm.unlock import read_unlock_keys


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
    kek = next(iter(read_unlock_keys(paths)), Kek())  # `init --autolock` made it
    fips = load_node_config(paths.node_toml).fips
    key = Block(privatekey.ENCRYPTED, privatekey.encrypt(_der(root), kek.key)).encode() if kek.key else root.key_pem
    write_atomic(paths.bootstrap_root_key, key, mode=0o600)
    if not operators:
        write_atomic(paths.root_cert, root.certs, mode=0o644)
    key_pem, request = new_request()
    swarm = FIPS_PREFIX + new_id() if fips else new_id()
    pair.write(root.sign(request, new_id(), MANAGER_OU, swarm, DEFAULT_NODE_EXPIRY, now=now), key_pem, kek=kek)


def _der(root: RootCA) -> bytes:
    return privatekey.to_pkcs8(privatekey.load_pem(root.key_pem))


def _operators_root(paths: Paths, now: float) -> RootCA:
    certs, key = paths.root_cert.read_bytes(), paths.root_key.read_bytes()
    try:
        return RootCA.from_pem(certs, key, certs, now=now)
    except BadInput as error:
        raise CorruptFile(
            paths.root_key, f"cannot be used with swarm-root-ca.crt: {error.message}", remedy="mend or remove both"
        ) from error
