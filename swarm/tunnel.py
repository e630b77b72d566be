"""TLS to managers that grpc itself refuses although Go's rules, which SwarmKit lives by, accept them.

Two kinds of Docker managers are such (both seen with docker.io 20.10):

- during a rotation of the root they send `leaf + cross-signed new root`, and as Go makes that certificate (subject
  equal to issuer, no AKI) OpenSSL and BoringSSL take it for self-signed and look no further (DESIGN §10);
- after any renewal of their own certificate they no longer select an ALPN protocol, without which grpc speaks to
  nobody.

So for such a manager we make the TLS connection with `ssl` and verify the server by Go's rules ourselves, before a byte
is sent (`swarm.pki.chain`: signatures, dates, CA flags, usage; and the name); grpc speaks through it over a Unix socket
in a directory that only this process can enter. A manager is known to be such once `learn` has looked at it, which its
callers do when grpc has failed: all others are dialled by grpc.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import ssl
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio
from cryptography import x509

from swarm import detours
from swarm.errors import BadInput
from swarm.nodeconfig import split_host_port
from swarm.pki.certificate import Certificate, parse_bundle
from swarm.pki.chain import verify
from swarm.pki.credentials import Credentials

TIMEOUT = 5.0
"""Seconds for connect and handshake together."""
LONGEST_CHAIN = 16
"""Certificates that a server may show."""
ALPN = "h2"
_CHUNK = 65536


async def learn(addr: str, root_pem: bytes, server_name: str) -> bool:
    """Look at a manager with which grpc has failed: whether Go's rules accept what grpc does not. Then it is noted.

    False also if it was noted before, if it cannot be reached, or if nobody's rules accept it.
    """
    if detours.is_needed(addr):
        return False
    try:
        async with asyncio.timeout(TIMEOUT):
            _, writer = await _connect(addr, client_context(None), server_name)
    except (TimeoutError, OSError, BadInput):
        return False
    try:
        shown: ssl.SSLObject = writer.get_extra_info("ssl_object")
        check_server(server_chain(shown), root_pem, server_name)
        if shown.selected_alpn_protocol() == ALPN and not _has_bare_cross_signed(server_chain(shown)):
            return False
    except BadInput:
        return False
    finally:
        writer.transport.abort()
    detours.note(addr)
    return True


def client_context(credentials: Credentials | None) -> ssl.SSLContext:
    """For a connection whose server is verified by `check_server`, not by `ssl`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols([ALPN])
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if credentials is not None:
        # `load_cert_chain` reads files only: give it one in memory, so that the plain key is never on a disk.
        descriptor = os.memfd_create("chain", os.MFD_CLOEXEC)
        with os.fdopen(descriptor, "wb") as chain:
            chain.write(credentials.certificate_pem.rstrip() + b"\n" + credentials.key_pem)
            chain.flush()
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    return context


def server_chain(shown: ssl.SSLObject) -> tuple[Certificate, ...]:
    """What the server sent, leaf first. Raises BadInput if that cannot be a manager's."""
    source: Any = shown
    if not hasattr(source, "get_unverified_chain"):
        source = source._sslobj  # noqa: SLF001  public from Python 3.13 on (DESIGN §10)
    listed = source.get_unverified_chain() or ()
    der = [one if isinstance(one, bytes) else ssl.PEM_cert_to_DER_cert(one.public_bytes()) for one in listed]
    if not der or len(der) > LONGEST_CHAIN:
        raise BadInput("the server shows no chain of certificates that a manager could have")
    return tuple(Certificate.load(one) for one in der)


def check_server(chain: Sequence[Certificate], root_pem: bytes, server_name: str, now: float | None = None) -> None:
    """Raise BadInput unless, by Go's rules, the server is `server_name` under a root of the bundle `root_pem`."""
    leaf = chain[0]
    verify(leaf, parse_bundle(root_pem), chain[1:], time.time() if now is None else now)
    try:
        names = leaf.parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as error:
        raise BadInput("x509: certificate is not valid for any names") from error
    if server_name not in names.get_values_for_type(x509.DNSName):
        raise BadInput(f"x509: certificate is not valid for {server_name}")


def tunnel_channel(
    addr: str,
    credentials: Credentials | None,
    root_pem: bytes,
    server_name: str,
    options: Sequence[tuple[str, int | str]],
) -> grpc.aio.Channel:
    """A channel as `swarm.dial.remote_channel` makes, for one connection: when that ends, so does the channel's use."""
    return _TunnelChannel(_Tunnel(addr, credentials, root_pem, server_name), options)


class _Tunnel:
    """One Unix socket that takes one connection, and the TLS connection behind it."""

    def __init__(self, addr: str, credentials: Credentials | None, root_pem: bytes, server_name: str) -> None:
        self._addr = addr
        self._context = client_context(credentials)
        self._root_pem = root_pem
        self._server_name = server_name
        self._directory = Path(tempfile.mkdtemp(prefix="sv"))  # 0700
        self.path = self._directory / "tunnel"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        self._listener.bind(os.fspath(self.path))
        self._listener.listen(1)
        self._work = asyncio.get_running_loop().create_task(self._serve(), name=f"tunnel to {addr}")

    async def close(self) -> None:
        self._work.cancel()
        await asyncio.gather(self._work, return_exceptions=True)
        self._listener.close()
        shutil.rmtree(self._directory, ignore_errors=True)  # gone already if there was a connection

    async def _serve(self) -> None:
        try:
            with contextlib.closing(self._listener):
                near, _ = await asyncio.get_running_loop().sock_accept(self._listener)
        finally:
            self.path.unlink()
            self._directory.rmdir()
        near_reader, near_writer = await asyncio.open_connection(sock=near)
        try:
            async with asyncio.timeout(TIMEOUT):
                reader, writer = await _connect(self._addr, self._context, self._server_name)
            try:
                check_server(server_chain(writer.get_extra_info("ssl_object")), self._root_pem, self._server_name)
                ends = [
                    asyncio.ensure_future(_copy(near_reader, writer)),
                    asyncio.ensure_future(_copy(reader, near_writer)),
                ]
                try:
                    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for end in ends:
                        end.cancel()
                    await asyncio.gather(*ends, return_exceptions=True)
            finally:
                writer.transport.abort()
        except (TimeoutError, OSError, BadInput):
            return  # grpc sees its connection end, and says so to the caller
        finally:
            near_writer.transport.abort()


async def _connect(
    addr: str, context: ssl.SSLContext, server_name: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = split_host_port(addr, "address of a manager")
    return await asyncio.open_connection(host, port, ssl=context, server_hostname=server_name)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()


def _has_bare_cross_signed(chain: Sequence[Certificate]) -> bool:
    """Whether a certificate of the chain looks self-signed and is not: what OpenSSL's kin stumble over."""
    return any(one.subject == one.issuer and not one.is_signed_by(one) for one in chain[1:])


class _TunnelChannel(grpc.aio.Channel):
    """A channel through a tunnel; both end together."""

    def __init__(self, tunnel: _Tunnel, options: Sequence[tuple[str, int | str]]) -> None:
        self._tunnel = tunnel
        self._channel = grpc.aio.insecure_channel(f"unix:{tunnel.path}", options=options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)
        await self._tunnel.close()

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._channel.unary_unary(*args, **kwargs)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._channel.unary_stream(*args, **kwargs)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._channel.stream_unary(*args, **kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._channel.stream_stream(*args, **kwargs)
