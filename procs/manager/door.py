"""The remote API's listening socket and what peers are told of it: opened once, moved while the manager serves."""

from __future__ import annotations

import asyncio
import logging
import socket
from dataclasses import dataclass

from procs.manager.gateway.front import Front
from procs.manager.gateway.listeners import listen_remote
from procs.manager.gateway.records import Listener
from swarm.errors import BadInput, Refused
from swarm.nodeconfig import NodeConfig, split_host_port

log = logging.getLogger(__name__)

OVERLAP = 30.0
"""Seconds for which the old door stays open after a move: a node that had no connection just then still finds us, and
is told the new address."""


@dataclass(frozen=True)
class Addresses:
    """Where a manager is found."""

    bound: str
    """What the remote API listens on, `HOST:PORT`."""
    advertised: str
    """What peers are told. An unspecified host is for them to replace by where they reached us."""
    configured: str
    """`listen_addr` and `advertise_addr` of node.toml as they were taken."""


class Door:
    """One listening socket at a time, and for a while after a move the one of before."""

    def __init__(self, config: NodeConfig) -> None:
        """Listen. Raises Refused, BadInput."""
        self._listening, bound = listen_remote(config.listen_addr)
        self._listen_addr = config.listen_addr
        self._front: Front | None = None
        self._old: list[tuple[socket.socket, asyncio.TimerHandle]] = []
        try:
            self.addresses = _addresses(config, bound)
        except BadInput:
            self.close()
            raise

    def serve(self, front: Front) -> None:
        """Let `front` accept what comes; it closes the socket with everything else."""
        self._front = front
        front.listen(self._listening, Listener.REMOTE)

    def move(self, config: NodeConfig) -> Addresses:
        """Listen where `config` says. Raises Refused or BadInput; the old door stays open then."""
        if self._front is None:
            raise AssertionError("a door is moved only while it is served")
        if config.listen_addr == self._listen_addr:
            self.addresses = _addresses(config, self.addresses.bound)
            return self.addresses
        same_port = _port(config.listen_addr) == _port(self.addresses.bound)
        _addresses(config, "0.0.0.0:1")  # refuse what nobody can be told before anything moves
        old = self._listening
        if same_port:  # 0.0.0.0 and 127.0.0.1 cannot listen on one port at a time
            self._front.forget(old)
        try:
            self._listening, bound = listen_remote(config.listen_addr)
        except Refused:
            if same_port:
                self._listening, _ = listen_remote(self.addresses.bound)
                self._front.listen(self._listening, Listener.REMOTE)
            raise
        self._listen_addr = config.listen_addr
        self.addresses = _addresses(config, bound)
        self._front.listen(self._listening, Listener.REMOTE)
        if not same_port:
            timer = asyncio.get_running_loop().call_later(OVERLAP, self._front.forget, old)
            self._old.append((old, timer))
        return self.addresses

    def close(self) -> None:
        """Close everything; harmless after the front has."""
        for sock, timer in self._old:
            timer.cancel()
            sock.close()
        self._listening.close()


def _addresses(config: NodeConfig, bound: str) -> Addresses:
    return Addresses(bound, _advertised(config, bound), f"{config.listen_addr} {config.advertise_addr}".strip())


def _advertised(config: NodeConfig, bound: str) -> str:
    """What peers are told: the operator's word, else the unspecified host with our port (reference manager §1.2)."""
    if not config.advertise_addr:
        host, port = split_host_port(config.listen_addr, "listen_addr")
        return bound if host not in ("", "0.0.0.0", "::") else f"0.0.0.0:{_port(bound) or port}"
    host, port = split_host_port(config.advertise_addr, "advertise_addr")
    if port:
        return config.advertise_addr
    if not host:
        raise BadInput("advertise_addr: names no host")
    return f"{config.advertise_addr.rpartition(':')[0]}:{_port(bound)}"


def _port(address: str) -> str:
    return address.rpartition(":")[2]
