"""Managers that grpc itself cannot speak to, and `swarm.tunnel` can: what this process has learnt of them.

Apart from the tunnel, which loads cryptography: whoever dials looks here first.
"""

from __future__ import annotations

_odd: set[str] = set()


def is_needed(addr: str) -> bool:
    """Whether the manager at `HOST:PORT` is known to need a tunnel."""
    return addr in _odd


def note(addr: str) -> None:
    """The manager at `HOST:PORT` needs a tunnel from now on; a tunnel works with any manager, so it is never undone."""
    _odd.add(addr)
