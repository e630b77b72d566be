"""The node's state and its cause in words, from the facts. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from ipc import topics
from procs.coordinator.states import Replacement, Supervision
from swarm.exits import ExitCode

HOPELESS = (ExitCode.CONFIG, ExitCode.USAGE)
"""Last words of a process that a restart cannot mend."""

_UP = ("STARTING", "RUNNING", "STOPPING", "BACKOFF")


@dataclass
class Facts:
    """The newest value of everything the coordinator hears; None: never heard."""

    certificate: topics.Certificate | None = None
    identity: topics.Certificate | None = None
    """The newest value that named a role and a fingerprint: a certificate that is locked or expired since is still the
    node's."""
    changes: topics.NodeChanges | None = None
    manager: topics.Manager | None = None
    agent: topics.Agent | None = None
    processes: dict[str, topics.Process] = field(default_factory=dict)
    speakers: dict[str, int] = field(default_factory=dict)
    """Owner to the pid that published its value."""
    dead: dict[str, int] = field(default_factory=dict)
    """Owner to its newest pid that has ended."""
    foreign_before: bool = False
    """What was known of `foreign` when this coordinator started."""

    def speaks(self, owner: str) -> bool:
        """Whether the process that published `owner`'s value still runs, as far as supervisord knows.

        A process that runs outside supervisord (`swarmvisor debug run`) has a pid that supervisord does not know.
        """
        pid = self.speakers.get(owner, 0)
        known = self.processes.get(owner)
        if known is not None and known.pid:
            return known.pid == pid
        return pid != 0 and self.dead.get(owner) != pid

    @property
    def foreign(self) -> bool:
        """Whether the swarm's managers are Docker's, whose raft this node cannot join: it stays a worker, whatever
        role the swarm gives it."""
        return self.changes.foreign if self.changes is not None else self.foreign_before

    @property
    def unpromotable(self) -> str:
        """Why a promotion that the swarm asks for does not happen, in words; empty: none is asked for, or it does."""
        if self.changes is None or not self.foreign or self.changes.desired_role != topics.MANAGER_ROLE:
            return ""
        return (
            "the swarm promoted this node, but its managers are Docker's and this node cannot join their raft: it goes"
            " on as a worker. Docker demotes members of its raft only: to end this, remove the node there"
            " (`docker node rm --force`) and join it anew"
        )

    def runs(self, program: str) -> bool:
        """Whether supervisord runs `program`, or will by itself."""
        process = self.processes.get(program)
        if process is None:
            return False
        return process.state in _UP or (process.state == "EXITED" and not process.expected)


def node_words(facts: Facts, supervision: Supervision, replacement: Replacement) -> topics.Node:
    """The `node` topic."""
    state, cause = _state(facts)
    return topics.Node(
        state=state,
        node_id=facts.certificate.node_id if facts.certificate else "",
        cause=cause,
        step=_step(facts, supervision, replacement),
    )


def _state(facts: Facts) -> tuple[str, str]:
    for name, process in sorted(facts.processes.items()):
        if name == topics.MANAGER and facts.foreign:
            continue  # it has no business here, and will not be started again
        if process.pid == 0 and process.state in ("EXITED", "BACKOFF") and process.exit_code in HOPELESS:
            code = ExitCode(process.exit_code)
            return "failed", f"{name} ended with {code.name} ({code.value}): its log names file and remedy"
    certificate = facts.certificate
    if certificate is None:
        return "starting", "waiting for the renewer to tell of the certificate"
    match certificate.state:
        case "locked":
            return "locked", certificate.why or "the node key is encrypted; unlock it with `swarmvisor unlock`"
        case "failed":
            return "failed", certificate.why or "the certificate cannot be used"
        case "joining" if certificate.why:
            return "starting", f"joining the swarm, attempt {certificate.attempt + 1}: {certificate.why}"
        case "none" | "joining":
            return "starting", certificate.why or "joining the swarm: waiting for the first certificate"
        case "expired":
            return "starting", certificate.why or "the certificate has expired; renewing it"
    agent = facts.agent
    if agent is not None and agent.state == "left":
        return "leaving", agent.why
    if agent is not None and agent.state == "refused" and facts.speaks(topics.AGENT):
        return "failed", agent.why
    if certificate.role == topics.MANAGER_ROLE and not facts.foreign and not _manager_ready(facts):
        why = facts.manager.why if facts.manager is not None and facts.speaks(topics.MANAGER) else ""
        return "starting", f"waiting for the manager: {why}" if why else "waiting for the manager"
    if agent is None or not facts.speaks(topics.AGENT):
        return "starting", "waiting for the agent"
    if agent.state != "ready":
        return "starting", f"waiting for the agent: {agent.why}" if agent.why else "waiting for the agent's session"
    return "ready", ""


def _manager_ready(facts: Facts) -> bool:
    return facts.manager is not None and facts.manager.state == "ready" and facts.speaks(topics.MANAGER)


def _step(facts: Facts, supervision: Supervision, replacement: Replacement) -> str:
    parts = [facts.unpromotable] if facts.unpromotable else []
    desired = facts.changes.desired_role if facts.changes else ""
    match replacement:
        case Replacement.EXPECTING:
            parts.append(f"the swarm wants the role {desired}; waiting for its managers to confirm it")
        case Replacement.ASKING:
            parts.append(f"waiting for a certificate of role {desired}{_attempts(facts)}")
        case Replacement.ROTATING:
            parts.append(f"the swarm's root rotates; waiting for a new certificate{_attempts(facts)}")
    match supervision:
        case Supervision.HELD:
            parts.append("the manager was stopped by an operator")
        case Supervision.ENDED:
            parts.append("the manager has ended; waiting for a role change before it is started again")
        case Supervision.REMOVED:
            parts.append("this node was removed from the managers; waiting for a worker's certificate")
        case Supervision.FORCED:
            parts.append(f"this node was removed from the managers; waiting for a new certificate{_attempts(facts)}")
        case Supervision.WITHDRAWN:
            parts.append("the manager is stopping: this node is a worker now")
        case Supervision.RETURNING:
            parts.append("the manager is stopping, and will be started again")
    return "; ".join(parts)


def _attempts(facts: Facts) -> str:
    """What the renewer says of the request under way. When it tries again is for readers to tell: it has a clock."""
    certificate = facts.certificate
    if certificate is None or not (certificate.attempt or certificate.why):
        return ""
    return (f", attempt {certificate.attempt}" if certificate.attempt else "") + f": {certificate.why}"
