"""Who answers at a manager's address, and why TLS with it fails: told by structure, not by the words of an error.

gRPC says UNAVAILABLE and a sentence for everything below it, and the sentence changes from release to release
(SwarmKit matched such a text, and its fail-fast join broke with it: reference/node-and-ca §1.10). So where it matters,
shake hands once more and look at what the server shows, by Go's rules (`swarm.tunnel`).
"""

from __future__ import annotations

import asyncio
import os
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from swarm import detours, tunnel
from swarm.errors import BadInput
from swarm.nodeconfig import split_host_port
from swarm.pki.certificate import Certificate
from swarm.pki.chain import CertificateInvalid, ChainError

TIMEOUT = 5.0
"""Seconds for connect and handshake together."""


class Problem(StrEnum):
    """Why there is no connection."""

    NONE = ""
    UNREACHABLE = "unreachable"
    """Nobody answers, or the name has no address."""
    NOT_A_MANAGER = "not a manager"
    """Somebody answers who speaks no TLS, or is not called as managers are."""
    OTHER_SWARM = "other swarm"
    """Its certificate was not issued by the swarm whose root we hold."""
    CLOCK = "clock"
    """Its certificate is expired or not valid yet by this machine's clock."""


@dataclass(frozen=True)
class Finding:
    """What a probe saw."""

    problem: Problem
    why: str = ""
    """In words, with the address."""
    leaf: Certificate | None = None
    """The server's certificate, unverified unless a root was given and `problem` is NONE."""


async def probe(addr: str, server_name: str, *, root_pem: bytes = b"", now: float) -> Finding:
    """Shake hands with `HOST:PORT`; under `root_pem` if one is given, else with whoever is there.

    `now` in Unix seconds judges dates. A manager that `swarm.dial` must tunnel to (no ALPN) is noted as such. Raises
    BadInput for an address that is none.
    """
    where = split_host_port(addr, "address of a manager")
    try:
        chain, alpn = await _shown(where, server_name)
    except TimeoutError:
        return Finding(Problem.UNREACHABLE, f"{addr} does not answer within {TIMEOUT:g} s")
    except ssl.SSLError as error:
        return Finding(Problem.NOT_A_MANAGER, f"what answers at {addr} speaks no TLS: {error.reason or error}")
    except BadInput as error:
        return Finding(Problem.NOT_A_MANAGER, f"what answers at {addr} is not a manager: {error.message}")
    except OSError as error:
        # asyncio puts the call into the text; a name without an address has a number that is no errno
        words = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
        return Finding(Problem.UNREACHABLE, f"cannot connect to {addr}: {words}")
    leaf = chain[0]
    if not leaf.not_before <= now <= leaf.not_after:
        return Finding(Problem.CLOCK, _dates(addr, leaf, now), leaf)
    if root_pem:
        try:
            tunnel.check_server(chain, root_pem, server_name, now)
        except CertificateInvalid as error:
            words = f"a certificate behind {addr} is not valid now: {error.message}; check this machine's clock"
            return Finding(Problem.CLOCK, words, leaf)
        except ChainError as error:
            words = f"{addr} belongs to another swarm than the root that this node trusts: {error.message}"
            return Finding(Problem.OTHER_SWARM, words, leaf)
        except BadInput:
            words = f"what answers at {addr} does not answer to {server_name}: it is no manager of this swarm"
            return Finding(Problem.NOT_A_MANAGER, words, leaf)
    if alpn != tunnel.ALPN:
        detours.note(addr)
    return Finding(Problem.NONE, "", leaf)


async def _shown(where: tuple[str, int], server_name: str) -> tuple[tuple[Certificate, ...], str | None]:
    """The chain that the server shows, and what it wants to speak. Raises OSError, TimeoutError; BadInput for a chain
    that is none."""
    async with asyncio.timeout(TIMEOUT):
        context = tunnel.client_context(None)
        _, writer = await asyncio.open_connection(*where, ssl=context, server_hostname=server_name)
    try:
        shown: ssl.SSLObject = writer.get_extra_info("ssl_object")
        return tunnel.server_chain(shown), shown.selected_alpn_protocol()
    finally:
        writer.transport.abort()


def _dates(addr: str, leaf: Certificate, now: float) -> str:
    def words(moment: float) -> str:
        return datetime.fromtimestamp(int(moment), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")

    if now < leaf.not_before:
        return (
            f"the certificate of {addr} is valid from {words(leaf.not_before)}, and this machine's clock says "
            f"{words(now)}: set the clock"
        )
    return (
        f"the certificate of {addr} ended {words(leaf.not_after)}, and this machine's clock says {words(now)}: "
        "set the clock, or have that manager renew"
    )
