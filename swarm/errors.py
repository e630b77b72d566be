"""Every error that Swarmvisor raises on purpose, as one tree.

    SwarmvisorError
    ├── BadInput             what somebody gave us cannot be used (argument, file, frame, token, certificate)
    │   └── CorruptFile      a file of this node does not hold what it must; nothing was overwritten
    ├── Refused              understood, and not allowed now
    ├── Unreachable          a peer or a local process does not answer
    │   └── NoLeader         the swarm has nobody who may write
    ├── TimedOut             a deadline passed; the work may still finish
    ├── Locked               the node's key is encrypted and no key that opens it is at hand
    └── Twin                 another process already owns what this one needs

A message says what happened, why, and what to do; see `describe`.
"""

from __future__ import annotations


class SwarmvisorError(Exception):
    """Base of the tree. `remedy` says what the operator can do, empty where nothing."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def describe(self) -> str:
        """The message and, on the same line, the remedy."""
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


class BadInput(SwarmvisorError):
    """What was given cannot be used as it is."""


class CorruptFile(BadInput):
    """A file does not hold what it must. Names the file; it is left as it is."""

    def __init__(self, path: object, why: str, *, remedy: str = "") -> None:
        super().__init__(f"{path}: {why}", remedy=remedy)
        self.path = str(path)


class Refused(SwarmvisorError):
    """Understood, but not allowed in the present state."""


class Unreachable(SwarmvisorError):
    """A peer or local process does not answer."""


class NoLeader(Unreachable):
    """No manager may write at the moment."""


class TimedOut(SwarmvisorError):
    """A deadline passed. The work asked for may still complete."""


class Locked(SwarmvisorError):
    """The node key is encrypted and cannot be opened with what is at hand."""


class Twin(SwarmvisorError):
    """Another live process holds the lock that this one needs."""
