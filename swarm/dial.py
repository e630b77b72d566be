"""gRPC channels to managers: over the network, and to the local one's control socket.

grpc costs 15 MB and 0.1 s: whoever imports this module does so late.
Facts: reference/node-and-ca §5.1, §12.19 to §12.21; DESIGN §10 (a channel keeps its first certificate for ever: make a
new one after a renewal).
"""

from __future__ import annotations

import grpc
import grpc.aio

from swarm import detours
from swarm.paths import Paths
from swarm.pki.held import Credentials

MANAGER_NAME = "swarm-manager"
"""The server name that every manager's certificate answers to."""

OURS = "swarmvisor-manager"
"""Key of initial metadata that managers of ours answer streams with: its absence means a Docker or swarmd manager,
whose raft no node of ours can join."""

ChannelOption = tuple[str, int | str]


def remote_channel(
    addr: str, credentials: Credentials | None, root_pem: bytes, server_name: str = MANAGER_NAME
) -> grpc.aio.Channel:
    """A channel to the manager at `HOST:PORT`, which must answer to `server_name` under `root_pem`.

    A manager that grpc refuses and `swarm.tunnel` has learnt of is reached through a tunnel.
    `credentials` None: without a client certificate (a node that has none yet). Connects with the first call; the
    caller closes it.
    """
    if detours.is_needed(addr):
        from swarm import tunnel  # late: cryptography, which most nodes never need to dial

        options: list[ChannelOption] = [("grpc.default_authority", server_name), *_options("")[1:]]
        return tunnel.tunnel_channel(addr, credentials, root_pem, server_name, options)
    key, chain = (credentials.key_pem, credentials.certificate_pem) if credentials else (None, None)
    tls = grpc.ssl_channel_credentials(root_pem, key, chain)
    return grpc.aio.secure_channel(f"dns:///{addr}", tls, options=_options(server_name))


def control_channel(paths: Paths, root_pem: bytes) -> grpc.aio.Channel:
    """A channel to this node's manager through `control.sock`: TLS as everywhere, but file permissions are the guard,
    so no client certificate."""
    return grpc.aio.secure_channel(
        f"unix:{paths.control_socket}", _control_tls(paths, root_pem), options=_options(MANAGER_NAME)
    )


def control_channel_sync(paths: Paths, root_pem: bytes) -> grpc.Channel:
    """The same for programs without asyncio."""
    return grpc.secure_channel(
        f"unix:{paths.control_socket}", _control_tls(paths, root_pem), options=_options(MANAGER_NAME)
    )


def _control_tls(paths: Paths, root_pem: bytes) -> grpc.ChannelCredentials:
    """Takes also what a manager shows there whose own certificate has expired."""
    try:
        stopgap = paths.control_certificate.read_bytes()
    except FileNotFoundError:
        stopgap = b""
    return grpc.ssl_channel_credentials(root_pem.rstrip() + b"\n" + stopgap)


def _options(server_name: str) -> list[ChannelOption]:
    return [
        ("grpc.ssl_target_name_override", server_name),
        ("grpc.max_receive_message_length", -1),  # sessions and assignments have no bound
        ("grpc.enable_http_proxy", 0),
        # a new channel must not inherit a connection that an older one made with another certificate
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
    ]
