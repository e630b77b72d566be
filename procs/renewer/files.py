"""The renewer's work on `certificates/`: all of it blocks, so the shell runs it in a thread.

Imports cryptography: the shell imports this module late.
"""

from __future__ import annotations

from procs.renewer.bootstrap import bootstrap
from procs.renewer.inventory import Choice, Inventory, choose, lost_swarm
from swarm.clock import Clock
from swarm.errors import BadInput
from swarm.files import write_atomic
from swarm.nodeconfig import load_node_config
from swarm.paths import Paths
from swarm.pki.chain import validate_chain
from swarm.pki.credentials import Credentials, load_credentials
from swarm.pki.keyfile import KeyFile
from swarm.pki.rootca import RootCA
from swarm.remotes import load_peers


def begin(paths: Paths, clock: Clock) -> tuple[Credentials, bool]:
    """Load what lies on disk or make a new swarm; also whether the bootstrap key is there.

    Finishes what a killed writer left. An expired certificate is loaded too. Raises CorruptFile, Locked, BadInput in
    words for the operator; nothing is overwritten then.
    """
    found = take_inventory(paths)
    choice, why = choose(found)
    if choice is Choice.REFUSE:
        raise BadInput(why)
    if choice is Choice.BOOTSTRAP:
        bootstrap(paths, clock)
    else:
        pair = KeyFile.of(paths)
        pair.sweep()
        pair.repair()
    credentials = load_credentials(paths, allow_expired=True, now=clock.wall_ns() / 1e9)
    if choice is Choice.LOAD and (why := lost_swarm(found, credentials.role)):
        raise BadInput(why)
    return credentials, paths.bootstrap_root_key.exists()


def take_inventory(paths: Paths) -> Inventory:
    """Look. Raises CorruptFile for a node.toml or state.json that cannot be used."""
    pair = KeyFile.of(paths)
    return Inventory(
        root=paths.root_cert.exists(),
        key=pair.key.exists(),
        certificate=pair.certificate.exists() or pair.first_phase.exists(),
        bootstrap_key=paths.bootstrap_root_key.exists(),
        operator_key=paths.root_key.exists(),
        store=paths.manager.exists(),
        peers=bool(load_peers(paths.state_json)),
        join_addr=load_node_config(paths.node_toml).join_addr,
    )


def install(paths: Paths, issued: Credentials) -> Credentials:
    """Write a new pair and read it back. Raises SwarmvisorError or OSError, the old pair then is in place."""
    KeyFile.of(paths).write(issued.certificate_pem, issued.key_pem)
    return load_credentials(paths, allow_expired=True)


def install_root(paths: Paths, held: Credentials, bundle: bytes, clock: Clock) -> Credentials:
    """Write a new root bundle if it is one and the present certificate verifies under it (§1.5, DESIGN §4.3).

    Raises BadInput; nothing is written then.
    """
    now = clock.wall_ns() / 1e9
    root = RootCA.from_pem(bundle, now=now)
    try:
        validate_chain(root.pool, held.certificate_pem, now=now)
    except BadInput as error:
        raise BadInput(f"new root CA does not match existing TLS credentials: {error.message}") from error
    write_atomic(paths.root_cert, bundle, mode=0o644)
    return load_credentials(paths, allow_expired=True, now=now)
