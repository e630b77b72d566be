"""The grpcio server behind the front: reachable only through a path in the 0700 runtime directory."""

from __future__ import annotations

from pathlib import Path

import grpc
import grpc.aio

from procs.manager.gateway.interceptor import Guard
from swarm.errors import Refused

MAX_RECEIVE = 4 << 20
"""Bytes of one request (reference node-and-ca §0.1); larger ones get RESOURCE_EXHAUSTED."""

MAX_STREAMS = 1000
"""Calls at once on one connection; an agent has about six. A stranger may wait for certificates, but within bounds."""

_UNLIMITED = -1


def make_server(guard: Guard, socket_path: Path) -> grpc.aio.Server:
    """A server, not started, without services, bound to `socket_path`; every call passes `guard`."""
    server = grpc.aio.server(
        interceptors=(guard,),
        options=(
            ("grpc.max_receive_message_length", MAX_RECEIVE),
            ("grpc.max_send_message_length", _UNLIMITED),
            ("grpc.so_reuseport", 0),
            ("grpc.max_concurrent_streams", MAX_STREAMS),
            # Peers set no keepalive (agent-and-dispatcher §0.1), but may ping; never call that abuse.
            ("grpc.http2.min_ping_interval_without_data_ms", 0),
            ("grpc.http2.max_ping_strikes", 0),
        ),
    )
    socket_path.unlink(missing_ok=True)
    try:
        server.add_insecure_port(f"unix:{socket_path}")
    except RuntimeError as error:
        raise Refused(f"cannot listen on {socket_path}: {error}", remedy="check the runtime directory") from error
    return server
