"""What the machine hears and what it orders. Plain data; the shell (`shell.py`) turns bus values into these events and
performs the effects."""

from __future__ import annotations

from dataclasses import dataclass

from ipc import topics
from swarm.remotes import Peer

# -- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heard:
    """A new value on the bus."""

    topic: str
    body: object
    pid: int
    """Of the process that published it: a value of a dead process is "last known", not true."""
    cause: str = ""


@dataclass(frozen=True)
class Gone:
    """A topic exists no longer, or its owner fell silent without supervisord knowing why."""

    topic: str


@dataclass(frozen=True)
class Data:
    """What lies in the state directory of a manager's data."""

    present: bool
    """`manager/` exists."""
    erased: bool
    """A renamed `manager.erased-…/` exists."""


@dataclass(frozen=True)
class NotRunning:
    """supervisord, told to stop the manager, answered that it does not run."""


@dataclass(frozen=True)
class Tick:
    """Time passed: perhaps a deadline of the machine (`Machine.deadline`) is due."""


Event = Heard | Gone | Data | NotRunning | Tick

# -- effects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Publish:
    """Say `body` as the newest value of `topic`."""

    topic: str
    body: topics.Role | topics.Remotes | topics.Node
    cause: str = ""


@dataclass(frozen=True)
class SavePeers:
    """Write `state.json`."""

    peers: tuple[Peer, ...]


@dataclass(frozen=True)
class StartManager:
    """Have supervisord start the manager, without waiting for it."""


@dataclass(frozen=True)
class StopManager:
    """Have supervisord stop the manager, without waiting for it."""


@dataclass(frozen=True)
class SetManagerDataAside:
    """Rename `manager/` to `manager.erased-<fingerprint>/` (DESIGN §4)."""

    fingerprint: str


@dataclass(frozen=True)
class DeleteErasedData:
    """Delete every `manager.erased-…/`."""


@dataclass(frozen=True)
class Say:
    """One sentence for the log."""

    text: str
    cause: str = ""


Effect = Publish | SavePeers | StartManager | StopManager | SetManagerDataAside | DeleteErasedData | Say
