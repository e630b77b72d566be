"""The renewer's work on `certificates/`: all of it blocks, so the shell runs it in a thread.

Imports cryptography: the shell imports this module late.
"""

from __future__ import annotations

from procs.renewer.bootstrap import bootstrap
from procs.renewer.inventory import Choice, Inventory, choose, lost_swarm
from swarm.clock import Clock
from swarm.errors import BadInput, Refused
from swarm.files import remove_durably, write_atomic
from swarm.identity import FIPS_PREFIX
from swarm.nodeconfig import load_node_config
from swarm.paths import Paths
from swarm.pki.chain import validate_chain
from swarm.pki.credentials import Credentials, load_credentials
from swarm.pki.dek import reseal
from swarm.pki.keyfile import Headers, Kek, KeyFile
from swarm.pki.locking import must_change, settle
from swarm.pki.rootca import RootCA
from swarm.remotes import load_peers
from swarm.unlock import raw, read_unlock_keys, write_unlock_keys


class NotJoined(Refused):
    """There is no certificate yet, and node.toml names a manager to join at."""


def begin(paths: Paths, clock: Clock) -> tuple[Credentials, bool]:
    """Load what lies on disk or make a new swarm; also whether the bootstrap key is there.

    Finishes what a killed writer left. An expired certificate is loaded too. Raises NotJoined; CorruptFile, Locked,
    BadInput in words for the operator; nothing is overwritten then.
    """
    found = take_inventory(paths)
    choice, why = choose(found)
    if choice is Choice.REFUSE:
        raise BadInput(why)
    if choice is Choice.BOOTSTRAP:
        bootstrap(paths, clock)
    else:
        paths.certificates.mkdir(mode=0o755, parents=True, exist_ok=True)
        pair = KeyFile.of(paths)
        if found.key and load_node_config(paths.node_toml).fips:
            pair.check_fips()
        pair.sweep()
        pair.repair(*raw(read_unlock_keys(paths)))
    if choice is Choice.JOIN:
        raise NotJoined(f"this node has to join the swarm at {found.join_addr}")
    credentials = load_credentials(paths, allow_expired=True, now=clock.wall_ns() / 1e9)
    if choice is Choice.LOAD and (why := lost_swarm(found, credentials.role)):
        raise BadInput(why)
    if credentials.cluster_id.startswith(FIPS_PREFIX) and not load_node_config(paths.node_toml).fips:
        raise BadInput(
            "node is not FIPS-enabled but cluster requires FIPS", remedy="set `fips = true` in node.toml again"
        )
    if credentials.not_after >= clock.wall_ns() / 1e9:
        forget_join(paths)  # else `rejoin` may just have put a token there
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


def install_first(paths: Paths, joined: Credentials, kek: Kek) -> Credentials:
    """Write the pair of a node that has just joined, and read it back; then what the join needed goes.

    Raises SwarmvisorError or OSError; the next try goes on from the same record then.
    """
    if kek.key:
        write_unlock_keys(paths, kek)
    KeyFile.of(paths).write(joined.certificate_pem, joined.key_pem, kek=kek)
    credentials = load_credentials(paths, unlock_key=kek.key or None)
    forget_join(paths)
    return credentials


def forget_join(paths: Paths) -> None:
    """Remove the record of a join that is over, and its token."""
    for path in (paths.joining, paths.join_token):
        if path.exists():
            remove_durably(path)


def install(paths: Paths, issued: Credentials, kek: Kek | None = None) -> Credentials:
    """Write a new pair and read it back. Raises SwarmvisorError or OSError, the old pair then is in place.

    `kek` is what the swarm says that managers' keys are locked with; None: as it is now.
    """
    if paths.root_cert.read_bytes() != issued.root_pem:
        write_atomic(paths.root_cert, issued.root_pem, mode=0o644)  # holds the old root too: the old pair verifies
    file = KeyFile.of(paths)
    at_hand = read_unlock_keys(paths)
    present = file.read(*raw(at_hand)).kek
    chosen = kek if kek is not None and must_change(present, kek) else present
    if issued.role != "manager":
        chosen = Kek()
    if chosen.key:
        write_unlock_keys(paths, present, chosen)
    fips = load_node_config(paths.node_toml).fips if paths.node_toml.exists() else False

    def headers(found: Headers) -> Headers:
        return found if chosen.key == present.key else reseal(found, present.key, chosen.key, fips=fips)

    file.write(issued.certificate_pem, issued.key_pem, kek=chosen, headers=headers)
    settle(paths, chosen)
    forget_join(paths)
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
