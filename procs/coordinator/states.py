"""States and happenings of the coordinator's two small machines. No imports of ours: a vocabulary.

The node's state in words (`starting`, `ready` …) is not a state of a machine; `words.py` derives it from the facts.
"""

from __future__ import annotations

from enum import StrEnum


class Supervision(StrEnum):
    """Where the supervision of the manager program stands."""

    BOOTING = "booting"
    """The role, or what the program is doing, is not known yet."""
    DECIDING = "deciding"
    """The role is manager; what the program is doing decides at once."""
    PARKED = "parked"
    """The certificate is a worker's; the manager does not run."""
    RUNNING = "running"
    """The certificate is a manager's; supervisord keeps the manager running."""
    HELD = "held"
    """An operator stopped the manager; it stays so until somebody starts it."""
    ENDED = "ended"
    """The manager ended as intended; waiting for a role change before it is started again."""
    REMOVED = "removed"
    """The manager was removed from the managers; waiting for the worker's certificate."""
    FORCED = "forced"
    """As REMOVED, and a new certificate has been asked for."""
    WITHDRAWN = "withdrawn"
    """The certificate is a worker's; the manager was told to stop and has not ended yet."""
    RETURNING = "returning"
    """As WITHDRAWN, but meanwhile the certificate is a manager's again: start it once it has ended."""


class Happening(StrEnum):
    """What the supervision of the manager hears."""

    ROLE_MANAGER = "certificate: manager"
    ROLE_WORKER = "certificate: worker"
    UP = "manager: up"
    """supervisord runs it, or will by itself (STARTING, RUNNING, STOPPING, BACKOFF after a crash)."""
    STOPPED = "manager: stopped"
    """Not running because nobody started it, or because somebody asked supervisord to stop it."""
    ENDED = "manager: ended"
    """Ended by itself with an intended exit code."""
    REMOVED = "manager: removed"
    """As ENDED, with the exit code REMOVED."""
    WANTED = "promoted again"
    """The swarm took a demotion back: desired and observed role are manager again."""
    TIMEOUT = "16 s"
    """The time given to a role change has passed."""


class Action(StrEnum):
    """What a transition of either machine orders."""

    START = "start the manager"
    STOP = "stop the manager"
    WAIT = "wait 16 s"
    RENEW = "ask for a new certificate"


class Replacement(StrEnum):
    """Where the replacement of the node's certificate stands."""

    AGREED = "agreed"
    """The certificate is the one that the swarm wants."""
    EXPECTING = "expecting"
    """Another role is desired, and the managers have not confirmed it yet."""
    ASKING = "asking"
    """A certificate of the desired role has been asked for."""
    ROTATING = "rotating"
    """A new certificate of the same role has been asked for, since the swarm's root rotates."""


class Wish(StrEnum):
    """What the newest node object says about the newest certificate."""

    AGREE = "roles agree"
    UNCONFIRMED = "other role desired"
    CONFIRMED = "other role desired and observed"
    ROTATE = "rotation asked for"
    TIMEOUT = "16 s"
