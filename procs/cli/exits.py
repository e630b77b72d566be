"""Exit codes of the command, and which error ends with which. (Processes of the node have others: `swarm.exits`.)"""

from __future__ import annotations

from enum import IntEnum

from swarm import errors


class Exit(IntEnum):
    """Exit codes of `swarmvisor`; scripts may rely on them."""

    DONE = 0
    FAILED = 1
    """It did not work; the message says why."""
    USAGE = 2
    """The command line or a value on it cannot be understood."""
    UNREACHABLE = 4
    """The node, or a manager, does not answer."""
    NO_QUORUM = 5
    """The swarm has no leader at the moment."""
    REFUSED = 6
    """Understood, and not allowed in the present state."""
    TIMED_OUT = 7
    """Not finished in time; it may still finish."""


_BY_ERROR: tuple[tuple[type[errors.SwarmvisorError], Exit], ...] = (
    # subclasses before their bases
    (errors.NoLeader, Exit.NO_QUORUM),
    (errors.Unreachable, Exit.UNREACHABLE),
    (errors.CorruptFile, Exit.FAILED),
    (errors.BadInput, Exit.USAGE),
    (errors.Refused, Exit.REFUSED),
    (errors.Locked, Exit.REFUSED),
    (errors.Twin, Exit.REFUSED),
    (errors.TimedOut, Exit.TIMED_OUT),
)


def exit_for(error: errors.SwarmvisorError) -> Exit:
    """The exit code that `error` ends the command with."""
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), Exit.FAILED)
