"""The renewer's brain: when to request which certificate, and what to do with the answer. No I/O, no clock.

Rules: reference/node-and-ca §7, DESIGN §4. Each event first changes what is known (facts in any phase, answers only in
the phase that asked, see `ANSWERS`), then `_decide` looks whether there is something to begin.

    phase        leaves for         when
    loading      resting            a certificate was loaded
                 stuck              the key is locked, or the files cannot be used
                 joining            nothing lies there, and node.toml names a manager to join at
    joining      resting            the swarm issued a certificate, and it is on disk
                 unjoined           it did not work, and may later
                 stuck              it did not work, and only the operator can change that
    unjoined     joining            the wait is over: 2 s for the first tries, then a growing back-off
    stuck        loading            the operator has acted and says so (SIGHUP, sent by `swarmvisor unlock`), or the
                                    clock was set
    resting      requesting         a replacement is asked for or the renewal window is reached, and a CA can be asked
                 waiting            as before, but nobody can be asked
                 rooting            the swarm has a new root (DESIGN §4.3)
    waiting      requesting         somebody can be asked
                 resting, rooting   the reason is gone; a new root, as above
    requesting   installing         a certificate with the role asked for came
                 retrying           it did not, or with another role
    installing   resting            the pair is on disk
                 retrying           it could not be written
    retrying     requesting         the back-off is over, the reason is another one, this node's manager came up, or
                                    the CA signs again
                 waiting            as before, but nobody can be asked
                 resting, rooting   the reason is gone; a new root, as above
    rooting      resting            the bundle is on disk, or was refused
"""

from __future__ import annotations

import random
from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

from ipc.topics import Certificate, ManagerAddress, NodeChanges, Role
from procs.renewer.events import (
    Begin,
    Due,
    Effect,
    Event,
    Held,
    Install,
    Installed,
    InstallFailed,
    InstallRoot,
    Join,
    Joined,
    JoinRefused,
    Loaded,
    LookAgain,
    ManagerSaid,
    Moment,
    MustJoin,
    NodeChanged,
    Obtained,
    Prepare,
    Publish,
    RemotesSaid,
    RemoveBootstrapKey,
    Request,
    RequestFailed,
    RoleSaid,
    RootInstalled,
    RootRefused,
    Unusable,
    WakeAt,
)
from swarm.joining import Trouble

LOWER, UPPER = 0.5, 0.8
"""The renewal window, as parts of the certificate's whole validity."""
LONGEST_SLEEP = 3600.0
"""Seconds after which the wall clock is looked at again: a kernel may not tell that it was set (`swarm.clock`)."""
JOIN_TRIES, JOIN_PAUSE = 5, 2.0
"""The first tries to join, and the seconds between them (reference/node-and-ca §5.7)."""
EXPIRED_CAP = 60.0
"""Seconds that a pause may last while the certificate has expired: the node is out of service until it is renewed."""
JOIN_CAP = 60.0
"""Seconds that later pauses between tries to join may last."""
_ISSUED = 3
"""IssuanceStatus.State of a certificate record that the CA has signed."""
_BACKOFF_BASE, _BACKOFF_CAP = 5.0, 3600.0


class Phase(Enum):
    """Where the brain stands (table above)."""

    LOADING = "loading"
    STUCK = "stuck"
    JOINING = "joining"
    UNJOINED = "unjoined"
    RESTING = "resting"
    WAITING = "waiting"
    REQUESTING = "requesting"
    INSTALLING = "installing"
    RETRYING = "retrying"
    ROOTING = "rooting"


class InvalidTransition(RuntimeError):
    """An answer came in a phase that asked for none: a mistake in the shell."""


class Reason(NamedTuple):
    """Why the certificate is to be replaced."""

    fingerprint: str
    """Of the certificate to replace."""
    expected: str
    """Role that the next one must have; empty: any."""
    forced: bool
    """Asked for by the coordinator, not by the certificate's age."""
    confirmed: bool = False
    """The managers say that they issue this role by now: what they refused before counts no longer."""


def renewal_time(not_before: int, not_after: int, randrange: Callable[[int, int], int]) -> float:
    """When to renew, Unix seconds: a random whole minute in [50 %, 80 %) of the validity (§7.1)."""
    minutes = (not_after - not_before) // 60
    lowest, highest = int(minutes * LOWER), int(minutes * UPPER)
    chosen = lowest if highest - lowest < 1 else randrange(lowest, highest)
    return not_before + chosen * 60.0


def backoff_bound(failures: int) -> float:
    """Seconds: the wait after n failures in a row is uniform in [0, this): 10, 15, 25, 45 … 3600 (§7)."""
    return min(_BACKOFF_CAP, _BACKOFF_BASE * (1.0 + (1 << min(failures - 1, 10))))


class Renewer:
    """Feed it events with `handle`, perform the effects it returns, in order."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._random = rng or random.Random()
        self.phase = Phase.LOADING
        self.held: Held | None = None
        self.failures = 0
        self._why = ""
        self._problem = ""
        self._bootstrap_key = False
        self._prepared = False
        self._renew_at = 0.0
        self._retry_at = 0.0
        self._next_try_at = 0
        self._reason: Reason | None = None
        self._role = Role(current="")
        self._role_cause = ""
        self._changes: NodeChanges | None = None
        self._changes_digest = ""
        self._refused_root = ""
        self._manager = ManagerSaid(ready=False)
        self._remotes: tuple[ManagerAddress, ...] = ()
        self._published: Certificate | None = None

    def handle(self, event: Event, now: Moment) -> list[Effect]:
        """What to do about `event`. Raises InvalidTransition."""
        asked_in = ANSWERS.get(type(event))
        if asked_in is not None and self.phase is not asked_in:
            raise InvalidTransition(f"{type(event).__name__} while {self.phase.value}, not {asked_in.value}")
        effects = self._learn(event, now)
        if self.held is not None:
            effects += self._decide(self.held, now)
            effects += self._publish(self.held, now)
            effects.append(WakeAt(self._wake_at(self.held, now)))
        elif self.phase is Phase.UNJOINED:
            effects += self._join_again(now)
        return effects

    def _learn(self, event: Event, now: Moment) -> list[Effect]:
        """Take `event` in; for the answers, move to the next phase."""
        match event:
            case RoleSaid(role, cause):
                self._role, self._role_cause = role, cause
            case NodeChanged(changes, digest):
                signs = self._problem == Trouble.UNSIGNED and changes.issuance_state == _ISSUED
                if signs and self.phase is Phase.RETRYING:
                    self._retry_at = now.monotonic  # what we asked for in vain was signed meanwhile: the CA is back
                self._changes, self._changes_digest = changes, digest
            case ManagerSaid():
                came_up = event.ready and (not self._manager.ready or self._manager.epoch != event.epoch)
                self._manager = event
                if came_up and self.phase is Phase.RETRYING:
                    self._retry_at = now.monotonic
            case RemotesSaid(managers):
                self._remotes = managers
            case LookAgain():
                if self.phase is Phase.STUCK:
                    self.phase = Phase.LOADING
                    return [Begin()]
            case Due():
                pass  # time passed: the decision below looks at it
            case Loaded(held, bootstrap_key):
                self._bootstrap_key = bootstrap_key
                self._take(held)
            case MustJoin():
                self.phase = Phase.JOINING
                return [Publish(Certificate(state="joining")), Join()]
            case Joined(held):
                self._take(held)
            case JoinRefused():
                return self._not_joined(event, now)
            case Unusable(state, why):
                self.phase = Phase.STUCK
                return [Publish(Certificate(state=state, why=why))]
            case Obtained(role):
                expected = self._role.expected
                if expected and role != expected:
                    self._failed(f"the swarm still issues {role} certificates, {expected} is expected", now)
                elif self._unwanted(role):
                    self._rest()
                else:
                    self.phase = Phase.INSTALLING
                    return [Install()]
            case RequestFailed(why, trouble):
                self._failed(why, now, trouble)
            case InstallFailed(why):
                self._failed(why, now)
            case Installed(held):
                self._take(held)
            case RootInstalled(held):
                self.phase, self.held, self._why = Phase.RESTING, held, ""
            case RootRefused(digest, why):
                self.phase, self._refused_root, self._why = Phase.RESTING, digest, why
        return []

    # -- joining -----------------------------------------------------------------------------------

    def _not_joined(self, refused: JoinRefused, now: Moment) -> list[Effect]:
        self.failures += 1
        why, problem = refused.why, str(refused.trouble)
        if refused.hopeless or refused.trouble.hopeless:
            self.phase = Phase.STUCK
            return [Publish(Certificate("failed", attempt=self.failures, why=why, problem=problem))]
        self.phase = Phase.UNJOINED
        more = self.failures - JOIN_TRIES
        delay = JOIN_PAUSE if more < 0 else self._random.uniform(0.0, min(JOIN_CAP, backoff_bound(more + 1)))
        self._retry_at, self._next_try_at = now.monotonic + delay, int(now.wall + delay)
        said = Certificate("joining", attempt=self.failures, next_try_at=self._next_try_at, why=why, problem=problem)
        return [Publish(said)]

    def _join_again(self, now: Moment) -> list[Effect]:
        if now.monotonic < self._retry_at:
            return [WakeAt(self._retry_at)]
        self.phase = Phase.JOINING
        return [Join()]

    # -- decisions ---------------------------------------------------------------------------------

    def _decide(self, held: Held, now: Moment) -> list[Effect]:
        effects: list[Effect] = []
        if self._bootstrap_key and self._manager.root_digest_held == held.root_digest:
            self._bootstrap_key = False
            effects.append(RemoveBootstrapKey())
        reason, why = self._present_reason(held, now)
        if not self._prepared and (reason is not None or self._role.soon):
            self._prepared = True
            effects.append(Prepare())
        if self.phase not in (Phase.RESTING, Phase.WAITING, Phase.RETRYING):
            return effects
        root = self._new_root(held)
        if root is not None:
            self.phase = Phase.ROOTING
            return [*effects, root]
        if reason is None:
            if self.phase is not Phase.RESTING:
                self._rest()
            return effects
        if reason != self._reason:
            self._reason, self.failures, self._retry_at = reason, 0, now.monotonic
        if self.phase is Phase.RETRYING and now.monotonic < self._retry_at:
            return effects
        local = self._manager.ready
        others = any(manager.node_id != held.node_id for manager in self._remotes)
        if not local and not others:
            self.phase, self._next_try_at = Phase.WAITING, 0
            self._why = f"{why}; nobody to ask: this node's manager does not answer, and no other manager is known"
            return effects
        self.phase, self._next_try_at = Phase.REQUESTING, 0
        if not self.failures:
            self._why = ""  # what it waited for is there now
        return [*effects, Request(local, why, self._role_cause if reason.forced else "")]

    def _present_reason(self, held: Held, now: Moment) -> tuple[Reason | None, str]:
        """Why the certificate must be replaced now, for comparing and in words; None if it need not."""
        role = self._role
        if role.replace_fingerprint == held.fingerprint:
            reason = Reason(held.fingerprint, role.expected, forced=True, confirmed=role.confirmed)
            return reason, role.why or "its replacement is asked for"
        if self._manager.ready and self._manager.replace == held.fingerprint:
            return Reason(held.fingerprint, role.expected, forced=False), "its key lay on the disk unlocked"
        if now.wall < min(self._renew_at, held.not_after):
            return None, ""
        cause = "it has expired" if now.wall > held.not_after else "more than half of its life is over"
        return Reason(held.fingerprint, role.expected, forced=False), f"the certificate is to be renewed: {cause}"

    def _unwanted(self, role: str) -> bool:
        """Whether a role change was asked for and taken back while the request ran, and `role` would still make it."""
        asked, held = self._reason, self.held
        taken_back = asked is not None and asked.expected != "" and not self._role.expected
        return taken_back and held is not None and role != held.role

    def _new_root(self, held: Held) -> InstallRoot | None:
        """A bundle to install: another one than ours, sent to an agent that held ours (DESIGN §4.3)."""
        changes, digest = self._changes, self._changes_digest
        if changes is None or not digest or digest in (held.root_digest, self._refused_root):
            return None
        return InstallRoot(changes.root_ca, digest) if changes.under.root_digest == held.root_digest else None

    def _take(self, held: Held) -> None:
        self.held = held
        self._renew_at = renewal_time(held.not_before, held.not_after, self._random.randrange)
        self._rest()

    def _rest(self) -> None:
        self.phase, self.failures, self._why, self._reason, self._next_try_at = Phase.RESTING, 0, "", None, 0

    def _failed(self, why: str, now: Moment, trouble: Trouble = Trouble.OTHER) -> None:
        self.failures += 1
        expired = self.held is not None and now.wall > self.held.not_after
        bound = min(backoff_bound(self.failures), EXPIRED_CAP if expired else _BACKOFF_CAP)
        delay = self._random.uniform(0.0, bound)
        self.phase, self._why, self._problem = Phase.RETRYING, why, str(trouble)
        self._retry_at, self._next_try_at = now.monotonic + delay, int(now.wall + delay)

    # -- what others see ---------------------------------------------------------------------------

    def _publish(self, held: Held, now: Moment) -> list[Effect]:
        expired = now.wall > held.not_after
        said = Certificate(
            state="expired" if expired else "valid",
            node_id=held.node_id,
            cluster_id=held.cluster_id,
            role=held.role,
            not_before=held.not_before,
            not_after=held.not_after,
            issuer_subject=held.issuer_subject,
            issuer_public_key=held.issuer_public_key,
            fingerprint=held.fingerprint,
            root_digest=held.root_digest,
            attempt=self.failures,
            next_try_at=self._next_try_at,
            why=self._why,
            problem=self._problem if self.failures else "",
        )
        if said == self._published:
            return []
        self._published = said
        return [Publish(said)]

    def _wake_at(self, held: Held, now: Moment) -> float:
        """The next moment at which time alone changes something; the end of the certificate always is one."""
        waits = [LONGEST_SLEEP]
        if now.wall <= held.not_after:
            waits.append(held.not_after + 1 - now.wall)
        if self.phase is Phase.RETRYING:
            waits.append(self._retry_at - now.monotonic)
        if self.phase is Phase.RESTING:
            waits.append(self._renew_at - now.wall)
        return now.monotonic + max(0.0, min(waits))


ANSWERS: dict[type[Any], Phase] = {
    Loaded: Phase.LOADING,
    Unusable: Phase.LOADING,
    MustJoin: Phase.LOADING,
    Joined: Phase.JOINING,
    JoinRefused: Phase.JOINING,
    Obtained: Phase.REQUESTING,
    RequestFailed: Phase.REQUESTING,
    Installed: Phase.INSTALLING,
    InstallFailed: Phase.INSTALLING,
    RootInstalled: Phase.ROOTING,
    RootRefused: Phase.ROOTING,
}
"""The phase in which each answer may come."""
