"""Where everything of a node lies (DESIGN §5): pure names, nothing is created here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from swarm.errors import BadInput

STATE_DIR_VARIABLE = "SWARMVISOR_STATE_DIR"
RUNTIME_DIR_VARIABLE = "SWARMVISOR_RUNTIME_DIR"

SOCKET_PATH_LIMIT = 107
"""Bytes of a Unix socket's path, without the terminating NUL."""

_ROOT_STATE = Path("/var/lib/swarmvisor")
_ROOT_RUNTIME = Path("/run/swarmvisor")

PROCESSES = ("coordinator", "renewer", "agent", "manager")
"""The processes of a node that are ours and have a lock, a bus socket and a metrics socket."""


@dataclass(frozen=True)
class Paths:
    """The two directories of a node, and every path in them."""

    state: Path
    runtime: Path

    # -- state: survives a reboot ------------------------------------------------------------------

    @property
    def node_toml(self) -> Path:
        return self.state / "node.toml"

    @property
    def adopting(self) -> Path:
        """The node.toml of an adoption under way; renamed to `node.toml` once all else is in place."""
        return self.state / ".adopting"

    @property
    def join_token(self) -> Path:
        return self.state / "join-token"

    @property
    def certificates(self) -> Path:
        return self.state / "certificates"

    @property
    def node_key(self) -> Path:
        return self.certificates / "swarm-node.key"

    @property
    def node_cert(self) -> Path:
        return self.certificates / "swarm-node.crt"

    @property
    def root_cert(self) -> Path:
        return self.certificates / "swarm-root-ca.crt"

    @property
    def root_key(self) -> Path:
        """An operator's root key; honoured, never written or deleted."""
        return self.certificates / "swarm-root-ca.key"

    @property
    def bootstrap_root_key(self) -> Path:
        return self.certificates / ".bootstrap-ca.key"

    @property
    def joining(self) -> Path:
        return self.certificates / ".joining"

    @property
    def state_json(self) -> Path:
        return self.state / "state.json"

    @property
    def node_state(self) -> Path:
        """The coordinator's last words on how the node stands, for when nothing runs (`swarm.nodestate`)."""
        return self.state / "node-state.json"

    @property
    def worker(self) -> Path:
        return self.state / "worker"

    @property
    def agent_db(self) -> Path:
        return self.worker / "agent.db"

    @property
    def manager(self) -> Path:
        return self.state / "manager"

    @property
    def forced(self) -> Path:
        """The order to make this node the only manager (`init --force-new-cluster`); removed once it is carried out."""
        return self.manager / "force-new-cluster"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def tasks(self) -> Path:
        return self.state / "tasks"

    def task(self, task_id: str) -> Path:
        """A task's own directory (see swarm.workload for what lies in it)."""
        return self.tasks / task_id

    def lock(self, process: str) -> Path:
        return self.state / f".lock.{process}"

    # -- runtime: sockets, gone after a reboot -----------------------------------------------------

    @property
    def bus(self) -> Path:
        return self.runtime / "bus"

    def bus_socket(self, process: str) -> Path:
        return self.bus / f"{process}.sock"

    def metrics_socket(self, process: str) -> Path:
        return self.runtime / "metrics" / f"{process}.sock"

    @property
    def control_socket(self) -> Path:
        return self.runtime / "control.sock"

    @property
    def control_certificate(self) -> Path:
        """The root of what the manager shows on its control socket while its own certificate has expired."""
        return self.runtime / "control.crt"

    @property
    def secrets_mount(self) -> Path:
        """Where a file system in memory is mounted for the node's secrets, on hosts that have none (`swarm.tmpfs`)."""
        return self.runtime / "secrets"

    @property
    def tasks_mount(self) -> Path:
        """The same for secrets of tasks: beside the runtime directory, which is closed to them."""
        return self.runtime.with_name(f"{self.runtime.name}.tasks")

    @property
    def gateway_socket(self) -> Path:
        """Where the manager's grpcio server listens for its own TLS front, and nobody else."""
        return self.runtime / "gateway.sock"

    @property
    def supervisor_conf(self) -> Path:
        return self.runtime / "supervisord.conf"

    @property
    def supervisor_socket(self) -> Path:
        return self.runtime / "supervisord.sock"

    @property
    def supervisor_pid(self) -> Path:
        return self.runtime / "supervisord.pid"

    @property
    def workload_conf(self) -> Path:
        return self.runtime / "workload.conf"

    @property
    def workload_socket(self) -> Path:
        return self.runtime / "workload.sock"

    @property
    def workload_pid(self) -> Path:
        return self.runtime / "workload.pid"

    def sockets(self) -> list[Path]:
        """Every Unix socket of the node; `init` refuses directories that make one too long."""
        publishers = (*PROCESSES, "supervisor", "workload")
        return [
            *(self.bus_socket(name) for name in publishers),
            *(self.metrics_socket(name) for name in PROCESSES),
            self.control_socket,
            self.gateway_socket,
            self.supervisor_socket,
            self.workload_socket,
        ]

    def check_lengths(self) -> None:
        """Raise BadInput if a socket path exceeds what the kernel takes.

        supervisord binds under a temporary name (path + "." + pid) first, so leave room for that.
        """
        room = SOCKET_PATH_LIMIT - len(".4194304")
        for path in self.sockets():
            if len(os.fsencode(path)) > room:
                raise BadInput(
                    f"runtime directory {self.runtime} is too long: socket {path} would exceed {room} bytes",
                    remedy=f"choose a shorter one with --runtime-dir or {RUNTIME_DIR_VARIABLE}",
                )


def default_state_dir() -> Path:
    """`/var/lib/swarmvisor` for root, else `~/.local/state/swarmvisor`."""
    return _ROOT_STATE if os.geteuid() == 0 else Path.home() / ".local" / "state" / "swarmvisor"


def default_runtime_dir(state: Path) -> Path:
    """`/run/swarmvisor` for root's default node; any other node gets a name derived from its state directory under
    `$XDG_RUNTIME_DIR` or `/tmp`."""
    if state == _ROOT_STATE and os.geteuid() == 0:
        return _ROOT_RUNTIME
    # late: brings OpenSSL, 4 MB; the processes of a node are told their directories and never come here
    import hashlib

    digest = hashlib.sha256(os.fsencode(state)).hexdigest()[:12]
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base) / f"swarmvisor-{digest}" if base else Path("/tmp") / f"swarmvisor-{os.geteuid()}-{digest}"


def find_paths(state_dir: str | None = None, runtime_dir: str | None = None) -> Paths:
    """The node that arguments, else environment, else defaults select. Paths are made absolute."""
    chosen = state_dir or os.environ.get(STATE_DIR_VARIABLE)
    state = Path(chosen).absolute() if chosen else default_state_dir()
    runtime = runtime_dir or os.environ.get(RUNTIME_DIR_VARIABLE)
    return Paths(state=state, runtime=Path(runtime).absolute() if runtime else default_runtime_dir(state))
