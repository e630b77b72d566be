"""The two listening sockets of a manager."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from swarm.errors import Refused, Twin
from swarm.nodeconfig import split_host_port

BACKLOG = 1024


def listen_remote(address: str) -> tuple[socket.socket, str]:
    """Listen on `HOST:PORT` (port 0: any); return the socket and the address it really has. Raises Refused."""
    host, port = split_host_port(address, "listen_addr")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setblocking(False)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise Refused(
            f"cannot listen on {address}: {error.strerror or error}",
            remedy="end what uses the port, or choose another listen_addr in node.toml",
        ) from error
    bound = sock.getsockname()[1]
    return sock, f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}"


def listen_control(path: Path) -> socket.socket:
    """Listen on the control socket, 0600. A socket nobody answers on is replaced; a live one raises Twin.

    The process lock already keeps twins out; this one also notices a manager that runs with another state directory.
    """
    if path.exists() and not path.is_socket():
        raise Refused(f"{path} is in the way: not a socket", remedy="move it away")
    if path.exists():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(str(path))
            except (ConnectionRefusedError, FileNotFoundError):
                path.unlink(missing_ok=True)
            except OSError as error:
                raise Refused(f"{path}: {error.strerror or error}", remedy="remove what is in the way") from error
            else:
                raise Twin(f"another manager answers on {path}", remedy="stop it first: `swarmvisor down`")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        before = os.umask(0o177)
        try:
            sock.bind(str(path))
        finally:
            os.umask(before)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock
