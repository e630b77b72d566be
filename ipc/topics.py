"""Every topic of the bus: who owns it, what it says, what a reader may conclude from it (DESIGN §3).

A topic carries the newest whole value of one fact: a *state*, never an event. A reader that missed ten values has
missed nothing. Each topic has one owner; nobody else may publish it. Rules of evolution: a new field has a default,
a field never changes its meaning or type, readers ignore fields they do not know.

Bodies are frozen dataclasses of str, int, float, bool, bytes, tuples of those, and nested dataclasses; `ipc.envelope`
checks them field by field. Nothing secret travels here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

# Owners: a process of the node, or one of the two plug-ins in the supervisords.
COORDINATOR = "coordinator"
RENEWER = "renewer"
AGENT = "agent"
MANAGER = "manager"
SUPERVISOR = "supervisor"
WORKLOAD = "workload"

WORKER_ROLE = "worker"
MANAGER_ROLE = "manager"


@dataclass(frozen=True)
class Certificate:
    """`certificate`, owned by the renewer: what lies on disk now, and what is being done about it."""

    state: str
    """`none` (nothing on disk yet), `joining`, `locked`, `valid`, `expired` or `failed` (see `why`)."""
    node_id: str = ""
    cluster_id: str = ""
    role: str = ""
    """`worker` or `manager`, from the certificate's OU."""
    not_before: int = 0
    """Unix seconds."""
    not_after: int = 0
    """Unix seconds."""
    issuer_subject: bytes = b""
    """Raw DER subject of the CA that signed the leaf."""
    issuer_public_key: bytes = b""
    """Raw DER SubjectPublicKeyInfo of that CA."""
    fingerprint: str = ""
    """SHA-256 of the leaf's DER, hex."""
    root_digest: str = ""
    """SHA-256 over the exact bytes of the root bundle on disk, hex."""
    attempt: int = 0
    """Failed attempts at the request under way (joining or renewing); 0: none."""
    next_try_at: int = 0
    """Unix seconds of the next attempt, 0: none planned."""
    why: str = ""
    """The last error in words, or why the certificate is in this state."""
    problem: str = ""
    """The kind of that error where a request failed, `swarm.joining.Trouble`; empty: another kind."""


@dataclass(frozen=True)
class Under:
    """What the agent held when a node object arrived."""

    fingerprint: str = ""
    root_digest: str = ""


@dataclass(frozen=True)
class NodeChanges:
    """`node.changes`, owned by the agent: the newest node object from the dispatcher."""

    desired_role: str
    observed_role: str
    issuance_state: int = 0
    """IssuanceStatus.State of the node's certificate record (5: ROTATE)."""
    vxlan_port: int = 0
    root_ca: bytes = b""
    """The swarm's root bundle, PEM, as sent."""
    under: Under = field(default_factory=Under)
    availability: str = ""
    foreign: bool = False
    """The manager that says so is Docker's (or swarmd's): this node cannot be one beside it."""


@dataclass(frozen=True)
class ManagerAddress:
    """A manager as peers know it."""

    node_id: str
    addr: str
    weight: int = 0


@dataclass(frozen=True)
class Managers:
    """`managers`, owned by the agent: the managers as the dispatcher sent them."""

    managers: tuple[ManagerAddress, ...] = ()


@dataclass(frozen=True)
class Role:
    """`role`, owned by the coordinator: which role the node has and which it should get."""

    current: str
    """Role of the certificate in use; empty before there is one."""
    expected: str = ""
    """The role the next certificate must have; empty: any."""
    replace_fingerprint: str = ""
    """Replace the certificate with this fingerprint, because of `why`. Empty: nothing to replace. Obeyed once,
    since the new certificate has another fingerprint."""
    why: str = ""
    soon: bool = False
    """A replacement may be asked for shortly; load what that needs."""
    confirmed: bool = False
    """The managers say that `expected` is what they issue by now: earlier refusals count no longer."""


@dataclass(frozen=True)
class Remotes:
    """`remotes`, owned by the coordinator: known managers, as persisted in state.json."""

    managers: tuple[ManagerAddress, ...] = ()


@dataclass(frozen=True)
class Node:
    """`node`, owned by the coordinator: where the node stands, in words."""

    state: str
    """`starting`, `locked`, `ready`, `leaving`, `failed` or `uninitialized` (no node.toml)."""
    node_id: str = ""
    cause: str = ""
    step: str = ""
    """The step of a role change under way, in words."""


@dataclass(frozen=True)
class Manager:
    """`manager`, owned by the manager."""

    state: str
    """`starting`, `ready`, `removed` or `stopped`."""
    leader: bool = False
    why: str = ""
    control_socket: str = ""
    remote_addr: str = ""
    """The bound `HOST:PORT` of the remote API."""
    advertise_addr: str = ""
    root_digest_held: str = ""
    """SHA-256 (hex) of the root bundle that the committed store holds; empty until the store has one. The renewer
    removes its bootstrap key when this is its own root."""
    configured: str = ""
    """`listen_addr` and `advertise_addr` of node.toml, as far as the manager has taken them."""
    replace_fingerprint: str = ""
    """Replace the certificate with this fingerprint: its key lay on the disk in the clear before the swarm was locked.
    Empty: nothing to replace."""


@dataclass(frozen=True)
class Agent:
    """`agent`, owned by the agent."""

    state: str
    """`waiting`, `connected`, `ready`, `refused` (the swarm will not take this node, for what `why` says; it goes on
    trying) or `left`."""
    session_id: str = ""
    manager_id: str = ""
    manager_addr: str = ""
    """`local` for the control socket, else `HOST:PORT`."""
    why: str = ""
    tasks: int = 0
    """Tasks assigned to this node."""


@dataclass(frozen=True)
class Process:
    """`process.<name>`, owned by the plug-in in the node's supervisord: what supervisord knows of a program."""

    name: str
    state: str
    """Supervisor's own word: STOPPED, STARTING, RUNNING, BACKOFF, STOPPING, EXITED, FATAL or UNKNOWN."""
    pid: int = 0
    exit_code: int = -1
    """Exit code of the last end, -1: has not ended, or by a signal."""
    signal: int = 0
    """Signal that ended it last, 0: none."""
    expected: bool = True
    """Whether supervisord took the last end as intended (`exitcodes=`)."""
    next_restart_at: int = 0
    """Unix seconds, 0: none planned."""


@dataclass(frozen=True)
class TaskProcess:
    """`task.<id>`, owned by the plug-in in the workload's supervisord: the process of one task.

    Dropped when the task is removed. Only the agent reads it; it merges these with the plug-in's `snapshot`.
    """

    task_id: str
    state: str
    """`running`, `stopping`, `exited` or `failed` (could not be started; `why` names the step)."""
    pid: int = 0
    start_ticks: int = 0
    """Field 22 of /proc/PID/stat: with the pid it names one process for ever."""
    started_at: int = 0
    """Unix ns."""
    exited_at: int = 0
    """Unix ns, 0: not yet."""
    wait_status: int = 0
    """Raw wait status (os.WIFEXITED …), meaningful in `exited`."""
    why: str = ""


TOPICS: dict[str, tuple[str, type]] = {
    "certificate": (RENEWER, Certificate),
    "node.changes": (AGENT, NodeChanges),
    "managers": (AGENT, Managers),
    "role": (COORDINATOR, Role),
    "remotes": (COORDINATOR, Remotes),
    "node": (COORDINATOR, Node),
    "manager": (MANAGER, Manager),
    "agent": (AGENT, Agent),
}
"""Topics with a fixed name: owner and type of the body."""

FAMILIES: dict[str, tuple[str, type]] = {
    "process.": (SUPERVISOR, Process),
    "task.": (WORKLOAD, TaskProcess),
}
"""Topics that exist once per thing: prefix, owner, body. The rest of the name is the thing's."""

ALIVE = "_alive"
"""Sent by every publisher every 2 s: its epoch and the newest seq of each of its topics."""


def lookup(topic: str) -> tuple[str, type] | None:
    """Owner and body type of a topic, None if there is no such topic."""
    known = TOPICS.get(topic)
    if known is not None:
        return known
    for prefix, entry in FAMILIES.items():
        if topic.startswith(prefix) and len(topic) > len(prefix):
            return entry
    return None
