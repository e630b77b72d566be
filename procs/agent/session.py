"""When to open a session, with which manager, and when to give one up: the brain, without I/O.

The present certificate and the known managers come in as states of the bus; a session is opened, ends (every end is an
error, even a clean one: reference agent-and-dispatcher §2.3), and is opened again after a growing random wait, always
offering the id of the last one. Closing on purpose (new certificate, new description, the local manager became ready)
waits for nothing.

    phase        event                             then
    IDLE         certificate and a manager known   OPENING
    OPENING      registered                        CONNECTED, back-off forgotten
    OPENING      ended                             RESTING: wait in [0, bound)
    CONNECTED    ended                             RESTING
    any session  new certificate, description, or  CLOSING: close, then OPENING at once
                 local manager (ready again)
    RESTING      time is up                        OPENING, or IDLE if no manager is known
    RESTING      local manager became ready        OPENING
    any          left                              IDLE for ever
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto

from swarm.backoff import SESSION, Backoff
from swarm.remotes import DEFAULT_WEIGHT, NoRemotes, Peer, Remotes

LOCAL = "local"
"""The address of the control socket in the words of the bus."""


class Phase(Enum):
    """Where the session stands."""

    IDLE = auto()
    OPENING = auto()
    CONNECTED = auto()
    CLOSING = auto()
    RESTING = auto()


@dataclass(frozen=True)
class Target:
    """A manager to hold a session with."""

    node_id: str
    addr: str

    @property
    def local(self) -> bool:
        return self.addr == LOCAL


@dataclass(frozen=True)
class Open:
    """Open a session with `target`, offering `session_id`. Answered by `registered` or `ended`."""

    target: Target
    session_id: str


@dataclass(frozen=True)
class Close:
    """End the session under way. Answered by `ended`."""

    why: str


@dataclass(frozen=True)
class Rest:
    """Call `rested` after `seconds`."""

    seconds: float


@dataclass(frozen=True)
class Say:
    """What the bus is told: `waiting`, `refused` or `connected`, to whom, and why not."""

    state: str
    target: Target | None = None
    session_id: str = ""
    why: str = ""


Effect = Open | Close | Rest | Say


class SessionBrain:
    """Decides. Every method takes an event and returns what is to be done, in order."""

    def __init__(self, *, session_id: str = "", uniform: Callable[[float, float], float] = random.uniform) -> None:
        self.phase = Phase.IDLE
        self.session_id = session_id
        """Of the last session; offered to the next manager, whoever that is."""
        self.target: Target | None = None
        self._uniform = uniform
        self._backoff = Backoff(SESSION, uniform=uniform)
        self._remotes = Remotes()
        self._node_id = ""
        self._certificate: tuple[str, str] | None = None
        self._unusable = "waiting for a certificate"
        self._expired = False
        self._local_epoch = 0
        self._avoid_local = False
        self._left = False

    # -- events --------------------------------------------------------------------------------------

    def certificate(self, node_id: str, fingerprint: str, root_digest: str) -> list[Effect]:
        """This is the certificate to present and the root to trust from now on."""
        changed = self._certificate not in (None, (fingerprint, root_digest))
        self._certificate = (fingerprint, root_digest)
        self._node_id = node_id
        return self._close("a new certificate") if changed and self._in_session else self._open_if_idle()

    def dates(self, *, expired: bool, known: bool) -> list[Effect]:
        """Whether the certificate is past its end: then other nodes' managers would only drop the connection, and
        gRPC would not say why (DESIGN §10). `known`: it is the one in use, no other one follows."""
        was, self._expired = self._expired, expired
        return self._open_if_idle() if known and was and not expired else []

    def no_certificate(self, why: str) -> list[Effect]:
        """None can be used yet."""
        self._unusable = why
        return [Say("waiting", why=why)] if self._certificate is None and self.phase is Phase.IDLE else []

    def local_manager(self, *, ready: bool, epoch: int) -> list[Effect]:
        """What the local manager says of itself; `epoch` tells one life of it from the next."""
        known, self._local_epoch = self._local_epoch, epoch if ready else 0
        if not ready or known == epoch:
            return []
        self._avoid_local = False
        if self._in_session:
            if self.target is not None and not self.target.local:
                return self._close("the local manager is ready")
            return []
        if self.phase is Phase.RESTING:
            self._backoff.reset()
            return self._open()
        return self._open_if_idle()

    def managers(self, peers: Iterable[tuple[Peer, int]]) -> list[Effect]:
        """The managers that this node knows."""
        self._remotes.replace((peer, weight or DEFAULT_WEIGHT) for peer, weight in peers)
        return self._open_if_idle()

    def description_changed(self) -> list[Effect]:
        """What the managers were told of this node is no longer true."""
        return self._close("the node's description has changed") if self._in_session else []

    def registered(self, session_id: str) -> list[Effect]:
        """The manager has answered."""
        self._must_be(Phase.OPENING, Phase.CLOSING)
        self.session_id = session_id
        self._backoff.reset()
        if self.phase is Phase.CLOSING:
            return []
        self.phase = Phase.CONNECTED
        return [Say("connected", self.target, session_id)]

    def ended(self, why: str, *, refused: bool = False) -> list[Effect]:
        """The session is over, on purpose or not. `refused`: the swarm will not take this node for what `why` says."""
        self._must_be(Phase.OPENING, Phase.CONNECTED, Phase.CLOSING)
        target, self.target = self.target, None
        if self.phase is Phase.CLOSING:
            return self._open()
        if target is not None:
            if target.local:
                self._avoid_local = True
            else:
                self._remotes.observe_if_exists(Peer(target.node_id, target.addr), -DEFAULT_WEIGHT)
                self._avoid_local = False
        self.phase = Phase.RESTING
        return [Say("refused" if refused else "waiting", why=why), Rest(self._backoff.failed())]

    def rested(self) -> list[Effect]:
        """The wait is over; of no meaning if the phase has changed since."""
        return self._open() if self.phase is Phase.RESTING else []

    def left(self) -> list[Effect]:
        """The node leaves: no session any more."""
        self._left = True
        if self._in_session:
            return self._close("the node leaves")
        self.phase = Phase.IDLE
        return []

    # -- decisions -----------------------------------------------------------------------------------

    @property
    def _in_session(self) -> bool:
        return self.phase in (Phase.OPENING, Phase.CONNECTED)

    def _close(self, why: str) -> list[Effect]:
        self.phase = Phase.CLOSING
        return [Close(why)]

    def _open_if_idle(self) -> list[Effect]:
        return self._open() if self.phase is Phase.IDLE else []

    def _open(self) -> list[Effect]:
        self.phase = Phase.IDLE
        if self._left:
            return []
        if self._certificate is None:
            return [Say("waiting", why=self._unusable)]
        target = self._choose()
        if target is not None and self._expired and not target.local:
            return [Say("waiting", why="this node's certificate has expired; waiting for the renewer")]
        if target is None:
            return [Say("waiting", why="no manager is known or ready")]
        self.phase = Phase.OPENING
        self.target = target
        return [Open(target, self.session_id)]

    def _choose(self) -> Target | None:
        local = Target(self._node_id, LOCAL) if self._local_epoch else None
        if local is not None and not self._avoid_local:
            return local
        try:
            peer = self._remotes.select({self._node_id}, uniform=self._uniform)
        except NoRemotes:
            return local
        return Target(peer.node_id, peer.addr)

    def _must_be(self, *phases: Phase) -> None:
        if self.phase not in phases:
            raise ValueError(f"the session is {self.phase.name}, which does not fit what happened")
