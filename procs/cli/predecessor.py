"""A swarm directory of Docker's, of swarmd's, or of a node of ours: who runs on it, and whose identity it holds.

SwarmKit's layout is ours (DESIGN §5; reference/node-and-ca §0.2). Nothing here writes: the directory stays as it is.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from procs.cli import certificate
from swarm.errors import BadInput, CorruptFile, Locked, Refused
from swarm.identity import FIPS_PREFIX
from swarm.paths import PROCESSES, Paths
from swarm.pki.held import Credentials
from swarm.remotes import Peer, load_peers

_RESTORE = "restore it from a backup, or remove the node from its swarm and use `swarmvisor join`"
_STOP = (
    "stop it first (Docker: `systemctl stop docker.socket docker.service`), but do not let it leave the swarm: "
    "`docker swarm leave` wipes the directory"
)
_OPEN_WHILE_RUNNING = ("/worker/tasks.db", "/worker/agent.db")
"""Ends of the paths of what SwarmKit's node and ours hold open from their start to their end."""


@dataclass(frozen=True)
class Predecessor:
    """A worker that may be continued here."""

    directory: Path
    credentials: Credentials
    managers: list[Peer]
    """With addresses; empty if another address was to be used."""

    @property
    def is_docker(self) -> bool:
        return (self.directory / "docker-state.json").exists()

    @property
    def has_expired(self) -> bool:
        return self.credentials.not_after < time.time()


@contextmanager
def taken_over(directory: Path, *, fips: bool, need_managers: bool) -> Iterator[Predecessor]:
    """The worker whose identity lies in `directory` (absolute), which nobody can start on within the context.

    Raises Refused (a manager's, in use, encrypted, needs FIPS, knows no managers, not ours to read), BadInput (no such
    directory), CorruptFile.
    """
    try:
        _refuse_absent(directory)
        _refuse_manager(directory)  # before who runs on it: it has to run, to be demoted
        with _at_rest(directory):
            found = _read(directory, fips=fips, need_managers=need_managers)
            _refuse_twin(found.credentials)
            yield found
    except PermissionError as error:
        if not Path(error.filename or "").is_relative_to(directory.parent):
            raise
        raise Refused(
            f"{error.filename}: {error.strerror}", remedy="run it as root, or as the user whose swarm this was"
        ) from error


def _refuse_absent(directory: Path) -> None:
    if not directory.is_dir():
        raise BadInput(f"--swarm-dir: there is no directory {directory}")
    from swarm.pki.keyfile import KeyFile  # late: imports cryptography

    paths = Paths(directory, directory)
    pair = KeyFile.of(paths)
    for path, stand_in in (
        (paths.root_cert, paths.root_cert),
        (pair.certificate, pair.first_phase),
        (pair.key, pair.key),
    ):
        if path.exists() or stand_in.exists():
            continue
        below = directory / "swarm"
        if (below / "certificates").is_dir():
            remedy = f"give --swarm-dir {below}"
        else:
            remedy = "give the directory `swarm` in Docker's data root (see `docker info`), or swarmd's state directory"
        raise Refused(f"{directory} holds no node of a swarm: there is no {path.relative_to(directory)}", remedy=remedy)


def _refuse_manager(directory: Path) -> None:
    found = None
    with suppress(CorruptFile):  # `_read` says so, or knows a better one
        found = certificate.read(Paths(directory, directory))
    if found is not None and found.role == "manager":
        _refuse_as_manager(directory, found.node_id)


def _refuse_as_manager(directory: Path, node_id: str) -> NoReturn:
    raise Refused(
        f"{directory} is a manager's (node {node_id}): its copy of the swarm's store, SwarmKit's raft, cannot be "
        "continued here",
        remedy=f"make it a worker first: start its owner, `docker node demote {node_id}` on another manager, stop its "
        "owner, and adopt it then",
    )


@contextmanager
def _at_rest(directory: Path) -> Iterator[None]:
    """Hold the locks that an owner takes at its start (an owner that starts meanwhile waits for them).

    SwarmKit's node locks worker/tasks.db (bbolt), Docker its store of volumes beside the swarm directory, also while
    its swarm part has stopped over an error and will be tried again; ours are `.lock.*`. Raises Refused naming who
    runs.
    """
    ours = [Paths(directory, directory).lock(name) for name in (*PROCESSES, "command")]
    with ExitStack() as held:
        for path in (directory / "worker/tasks.db", directory.parent / "volumes/metadata.db", *ours):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            held.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Refused(f"{path} is in use by {_who_has(path)}", remedy=_STOP) from None
        yield


def _read(directory: Path, *, fips: bool, need_managers: bool) -> Predecessor:
    # late: import cryptography
    from swarm.pki.credentials import CertificateExpired, verify_credentials
    from swarm.pki.keyfile import KeyFile

    paths = Paths(directory, directory)
    try:
        pair = KeyFile.of(paths).read_at_rest()
        held = verify_credentials(paths, pair, paths.root_cert.read_bytes(), allow_expired=True)
    except Locked as error:
        raise Refused(
            f"{paths.node_key} is encrypted, as only a manager's key is, with the swarm's unlock key",
            remedy="make it a worker first: start its owner, `docker swarm unlock`, demote it on another manager, stop "
            "its owner, and adopt it then",
        ) from error
    except CorruptFile as error:
        if not isinstance(error, CertificateExpired):  # not valid yet: the clock, not the file
            error.remedy = _RESTORE
        raise
    if held.role != "worker":
        _refuse_as_manager(directory, held.node_id)
    if held.cluster_id.startswith(FIPS_PREFIX) and not fips:
        raise Refused(
            "node is not FIPS-enabled but cluster requires FIPS", remedy="adopt it with --fips, on a FIPS host"
        )
    if not need_managers:
        return Predecessor(directory, held, [])
    elsewhere = "give the address of one with --join-addr HOST:PORT"
    try:
        managers = [peer for peer in load_peers(paths.state_json) if peer.addr]
    except CorruptFile as error:
        error.remedy = elsewhere
        raise
    if not managers:
        raise Refused(f"{paths.state_json} names no manager", remedy=elsewhere)
    return Predecessor(directory, held, managers)


def _refuse_twin(held: Credentials) -> None:
    """Raise Refused where a process of this host runs as this node on another directory: this one is a copy then."""
    for pid, link in _open_files():
        with suppress(OSError, CorruptFile):  # it ended, or is another user's, or not what its name says
            target = os.readlink(link)
            if not target.endswith(_OPEN_WHILE_RUNNING):
                continue
            theirs = Path(f"/proc/{pid}/root{target}").parents[1]
            found = certificate.read(Paths(theirs, theirs))
            if found is not None and (found.node_id, found.cluster_id) == (held.node_id, held.cluster_id):
                raise Refused(
                    f"{_name(pid)} runs as this node ({held.node_id}), on {Path(target).parents[1]}", remedy=_STOP
                )


def _who_has(path: Path) -> str:
    """Who has `path` open, in words."""
    wanted = path.stat()
    for pid, link in _open_files():
        with suppress(OSError):
            if os.path.samestat(os.stat(link), wanted):
                return _name(pid)
    return "a process that cannot be seen from here (of another user, or of another container)"


def _open_files() -> Iterator[tuple[int, str]]:
    """(pid, name in /proc) of every file that other processes have open, as far as this user may look."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        with suppress(OSError):  # it ended, or is another user's
            for descriptor in os.listdir(f"/proc/{entry}/fd"):
                yield int(entry), f"/proc/{entry}/fd/{descriptor}"


def _name(pid: int) -> str:
    try:
        return f"process {pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})"
    except OSError:
        return f"process {pid}"
