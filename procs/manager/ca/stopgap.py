"""A server certificate for the control socket of a manager whose own has expired.

The renewer of this node gets a real one through that socket, and the operator can act. It is under a root that is made
for it alone and whose key is forgotten at once, since the swarm's key may be elsewhere (an external CA). That root lies
beside the socket (`control.crt`), where those who dial the socket find it: file permissions are the guard of both.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from swarm.pki.certificate import MANAGER_OU
from swarm.pki.credentials import Credentials
from swarm.pki.request import new_request
from swarm.pki.rootca import DEFAULT_NODE_EXPIRY, RootCA


@dataclass(frozen=True)
class Stopgap:
    """All PEM."""

    chain: bytes
    key: bytes = field(repr=False)
    root: bytes


def stopgap(own: Credentials) -> Stopgap:
    """One in the name of this node."""
    key_pem, request = new_request()
    root = RootCA.create()
    return Stopgap(
        root.sign(request, own.node_id, MANAGER_OU, own.cluster_id, DEFAULT_NODE_EXPIRY), key_pem, root.certs
    )
