"""The node's state machine: events in, effects out. No I/O and no clock of its own.

Two machines with a table each (`tables.py`) stand on the facts heard so far (`words.Facts`): one supervises the manager
program, one decides when the certificate must be replaced. What the coordinator publishes is derived from the facts and
the two states, and said whenever it changed.
"""

from __future__ import annotations

from collections.abc import Iterable

from ipc import topics
from procs.coordinator.effects import (
    Data,
    DeleteErasedData,
    Effect,
    Event,
    Gone,
    Heard,
    NotRunning,
    Publish,
    SavePeers,
    Say,
    SetManagerDataAside,
    StartManager,
    StopManager,
    Tick,
)
from procs.coordinator.states import Action, Happening, Replacement, Supervision, Wish
from procs.coordinator.tables import (
    REPLACEMENT,
    ROLE_CHANGE_SECONDS,
    SUPERVISION,
    IllegalTransition,
    Step,
)
from procs.coordinator.words import Facts, node_words
from swarm.exits import ExitCode
from swarm.remotes import Peer, Remotes

_ROTATE = 5
"""IssuanceStatus.State of a certificate record whose certificate must be replaced."""


class Machine:
    """The coordinator's brain."""

    def __init__(
        self, peers: Iterable[Peer] = (), join_addr: str = "", foreseen_role: str = "", *, foreign: bool = False
    ) -> None:
        """`peers`: what `state.json` holds; `join_addr` is known too as long as that is empty. `foreseen_role`: what
        the files say that the renewer will say, so that the manager can start meanwhile; empty: nothing. `foreign`: the
        managers were Docker's when a coordinator here last heard of them."""
        known = list(peers)
        self._saved = sorted(set(known))
        self._remotes = Remotes(known or ([Peer("", join_addr)] if join_addr else []))
        self.facts = Facts(foreign_before=foreign)
        self.data = Data(present=False, erased=False)
        self.supervision = Supervision.BOOTING
        self.replacement = Replacement.AGREED
        self.story: list[str] = []
        """Transitions so far, newest last."""
        self._supervision_due: float | None = None
        self._replacement_due: float | None = None
        self._forced_fingerprint = ""
        self._foreseen_role = foreseen_role
        self._told_role: Happening | None = None
        self._told_program: Happening | None = None
        self._again = False
        """The swarm has come to want a manager here since the last one was started. If that one was removed, by the
        demotion that was taken back, another may be started at once, whichever is heard first."""
        self._told_wish: tuple[Wish, str, str] | None = None
        self._published: dict[str, object] = {}
        self._out: list[Effect] = []
        self._cause = ""

    def start(self) -> list[Effect]:
        """What there is to say before anything was heard."""
        return self._derive("start")

    def deadline(self) -> float | None:
        """Monotonic time at which a Tick is wanted; None: no need."""
        return min((due for due in (self._supervision_due, self._replacement_due) if due is not None), default=None)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in one event at monotonic time `now`; return what must be done, in order."""
        self._cause = ""
        match event:
            case Heard():
                self._cause = event.cause or event.topic
                self._learn(event)
            case Gone(topic):
                self._cause = f"{topic} is gone"
                self._forget(topic)
            case Data():
                self.data = event
            case NotRunning():
                self._cause = "supervisord"
                self._supervise(Happening.STOPPED, now)
            case Tick():
                self._tick(now)
        self._settle(now)
        return self._derive(self._cause)

    # -- facts -------------------------------------------------------------------------------------------------------

    def _learn(self, heard: Heard) -> None:
        facts = self.facts
        match heard.body:
            case topics.Certificate():
                facts.certificate = heard.body
                if heard.body.role and heard.body.fingerprint:
                    facts.identity = heard.body
            case topics.NodeChanges():
                before = facts.unpromotable
                known_changes, facts.changes = facts.changes, heard.body
                came = known_changes is not None and not _manages(known_changes)
                self._again = _manages(heard.body) and (came or self._again)
                if facts.unpromotable != before:
                    self._out.append(Say(facts.unpromotable or "the swarm no longer wants this node as a manager"))
            case topics.Managers():
                self._remotes.replace((Peer(m.node_id, m.addr), m.weight) for m in heard.body.managers)
            case topics.Manager():
                facts.manager = heard.body
                self._spoke(topics.MANAGER, heard.pid)
            case topics.Agent():
                facts.agent = heard.body
                self._spoke(topics.AGENT, heard.pid)
            case topics.Process():
                known = facts.processes.get(heard.body.name)
                if known is not None and known.pid and known.pid != heard.body.pid:
                    facts.dead[heard.body.name] = known.pid
                facts.processes[heard.body.name] = heard.body
                if heard.body.name == topics.MANAGER:
                    # Every value is news: between two equal ends the manager may have run and nobody have heard of it.
                    self._told_program = None

    def _spoke(self, owner: str, pid: int) -> None:
        self.facts.speakers[owner] = pid
        if self.facts.dead.get(owner) == pid:
            del self.facts.dead[owner]

    def _forget(self, topic: str) -> None:
        if topic.startswith("process."):
            self.facts.processes.pop(topic.removeprefix("process."), None)
        elif topic in (topics.MANAGER, topics.AGENT):
            self.facts.dead[topic] = self.facts.speakers.get(topic, 0)

    # -- the two machines --------------------------------------------------------------------------------------------

    def _settle(self, now: float) -> None:
        """Tell the two machines what has changed. The role first: what the program does is judged under it."""
        role, program = self._role(), self._program()
        if role is not None and program is not None:
            if role is not self._told_role:
                self._told_role = role
                self._supervise(role, now)
            if program is not self._told_program:
                self._told_program = program
                self._supervise(program, now)
            if self._again and self.supervision in (Supervision.REMOVED, Supervision.FORCED):
                self._supervise(Happening.WANTED, now)
        wish = self._wish()
        if wish is not None and wish != self._told_wish:
            self._told_wish = wish
            self._replace(wish[0], now)

    def _tick(self, now: float) -> None:
        self._cause = "time"
        if self._supervision_due is not None and now >= self._supervision_due:
            self._supervision_due = None
            self._supervise(Happening.TIMEOUT, now)
        if self._replacement_due is not None and now >= self._replacement_due:
            self._replacement_due = None
            self._replace(Wish.TIMEOUT, now)

    def _role(self) -> Happening | None:
        identity = self.facts.identity
        match identity.role if identity else self._foreseen_role:
            case topics.MANAGER_ROLE if not self.facts.foreign:
                return Happening.ROLE_MANAGER
            case topics.MANAGER_ROLE | topics.WORKER_ROLE:
                return Happening.ROLE_WORKER
        return None

    def _program(self) -> Happening | None:
        process = self.facts.processes.get(topics.MANAGER)
        if process is None:
            return None
        if self.facts.runs(topics.MANAGER):
            return Happening.UP
        if process.state == "STOPPED":
            return Happening.STOPPED
        return Happening.REMOVED if process.exit_code == ExitCode.REMOVED else Happening.ENDED

    def _wish(self) -> tuple[Wish, str, str] | None:
        """What the swarm wants of the certificate, the certificate's fingerprint, and the role desired."""
        identity, changes = self.facts.identity, self.facts.changes
        if identity is None or changes is None:
            return None
        if changes.desired_role != identity.role and not self.facts.unpromotable:
            wish = Wish.CONFIRMED if changes.observed_role == changes.desired_role else Wish.UNCONFIRMED
        elif changes.issuance_state == _ROTATE and changes.under.fingerprint == identity.fingerprint:
            # Said about a certificate that was replaced since, it is old news (DESIGN §4).
            wish = Wish.ROTATE
        else:
            wish = Wish.AGREE
        return wish, identity.fingerprint, changes.desired_role

    def _supervise(self, happening: Happening, now: float) -> None:
        step = self._step(SUPERVISION.get((self.supervision, happening)), "manager", self.supervision, happening)
        if step.state != self.supervision:
            self._supervision_due = None
        self.supervision = Supervision(step.state)
        for action in step.actions:
            match action:
                case Action.START:
                    self._again = False
                    self._out.append(StartManager())
                case Action.STOP:
                    self._out.append(StopManager())
                case Action.WAIT:
                    self._supervision_due = now + ROLE_CHANGE_SECONDS
                case Action.RENEW:
                    self._forced_fingerprint = self.facts.identity.fingerprint if self.facts.identity else ""

    def _replace(self, wish: Wish, now: float) -> None:
        step = self._step(REPLACEMENT.get((self.replacement, wish)), "certificate", self.replacement, wish)
        if step.state != self.replacement:
            self._replacement_due = None
        self.replacement = Replacement(step.state)
        if Action.WAIT in step.actions:
            self._replacement_due = now + ROLE_CHANGE_SECONDS

    def _step(self, step: Step | None, what: str, state: str, event: str) -> Step:
        if step is None:
            raise IllegalTransition(state, event, self.story)
        if step.state != state:
            self.story = [*self.story[-99:], f"{what}: {state} -> {step.state} on {event}"]
            self._out.append(Say(f"{what}: {state} -> {step.state} on {event}" + (f": {step.why}" if step.why else "")))
        return step

    # -- what follows from the facts and the two states --------------------------------------------------------------

    def _derive(self, cause: str) -> list[Effect]:
        out = self._out
        self._out = []
        self._say(out, "role", self._role_body(), cause)
        peers = self._remotes.peers()
        if peers != self._saved and any(peer.node_id for peer in peers):
            # Only what a dispatcher listed: the bare address to join at is in node.toml already.
            self._saved = peers
            out.append(SavePeers(tuple(peers)))
        weights = self._remotes.weights()
        listed = tuple(topics.ManagerAddress(p.node_id, p.addr, weights[p]) for p in peers)
        self._say(out, "remotes", topics.Remotes(listed), cause)
        out.extend(self._erase())
        self._say(out, "node", node_words(self.facts, self.supervision, self.replacement), cause)
        return [Say(e.text, cause) if isinstance(e, Say) else e for e in out]

    def _say(self, out: list[Effect], topic: str, body: topics.Role | topics.Remotes | topics.Node, cause: str) -> None:
        if self._published.get(topic) != body:
            self._published[topic] = body
            out.append(Publish(topic, body, cause))

    def _role_body(self) -> topics.Role:
        identity, changes = self.facts.identity, self.facts.changes
        current = identity.role if identity else ""
        fingerprint = identity.fingerprint if identity else ""
        desired = changes.desired_role if changes else ""
        if self.replacement is Replacement.ASKING:
            confirmed = changes is not None and changes.observed_role == desired
            why = f"the swarm wants the role {desired}"
            return topics.Role(current, desired, fingerprint, why, soon=True, confirmed=confirmed)
        if self.supervision is Supervision.FORCED and fingerprint == self._forced_fingerprint:
            return topics.Role(current, "", fingerprint, "this node was removed from the managers", soon=True)
        if self.replacement is Replacement.ROTATING:
            return topics.Role(current, "", fingerprint, "the swarm's root rotates", soon=True)
        soon = self.replacement is Replacement.EXPECTING or self.supervision is Supervision.REMOVED
        return topics.Role(current, soon=soon)

    def _erase(self) -> Iterable[Effect]:
        """Manager data goes when all of these hold (DESIGN §4): certificate and desired role are worker's, manager and
        etcd do not run; the renamed directory when, besides, the agent holds a session with another manager, opened
        with this very certificate (one of before the demotion proves nothing)."""
        identity, changes, agent = self.facts.identity, self.facts.changes, self.facts.agent
        worker = (
            identity is not None
            and identity.role == topics.WORKER_ROLE
            and changes is not None
            and changes.desired_role == topics.WORKER_ROLE
            and self.supervision is Supervision.PARKED
            and not self.facts.runs("etcd")
        )
        if not worker or identity is None:
            return
        if self.data.present:
            # Believed at once, so that nothing is ordered twice; the shell looks again after it.
            self.data = Data(present=False, erased=True)
            yield SetManagerDataAside(identity.fingerprint)
        elsewhere = (
            agent is not None
            and agent.state in ("connected", "ready")
            and agent.manager_id not in ("", identity.node_id)
            and agent.manager_addr != "local"
            and self.facts.speaks(topics.AGENT)
            and changes is not None
            and changes.under.fingerprint == identity.fingerprint
        )
        if self.data.erased and elsewhere:
            self.data = Data(present=False, erased=False)
            yield DeleteErasedData()


def _manages(changes: topics.NodeChanges) -> bool:
    """Whether the swarm wants a manager, and has taken note of it."""
    return changes.desired_role == changes.observed_role == topics.MANAGER_ROLE
