"""A server certificate for the control socket of a manager whose own has expired: it holds the swarm's key.

Never written down and shown on the control socket only, where the renewer of this node then gets a real one. Without
the root's key in the store (an external CA) there is none.
"""

from __future__ import annotations

from procs.manager.ca.server import signing_root
from swarm.api import objects_pb2
from swarm.pki.certificate import MANAGER_OU
from swarm.pki.credentials import Credentials
from swarm.pki.request import new_request
from swarm.pki.rootca import DEFAULT_NODE_EXPIRY


def stopgap(cluster: objects_pb2.Cluster, own: Credentials) -> tuple[bytes, bytes]:
    """(chain, key), PEM, in the name of this node. Raises NoValidSigner, BadInput."""
    key_pem, request = new_request()
    root = signing_root(cluster.root_ca)
    return root.sign(request, own.node_id, MANAGER_OU, own.cluster_id, DEFAULT_NODE_EXPIRY), key_pem
