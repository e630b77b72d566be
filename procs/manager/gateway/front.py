"""The TLS front: accepts, shakes hands, remembers who called, and splices the decrypted bytes to the gRPC server.

grpcio's Python server cannot ask for a client certificate without insisting on one, and SwarmKit serves joiners without
a certificate and nodes with one on the same port; hence this front (DESIGN §6).

Nobody can keep others out: a handshake has a deadline; when too many are pending the oldest is dropped (an honest one
takes milliseconds); a peer without a certificate that stays silent is closed; accepting never waits for anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import secrets
import socket
import ssl
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from procs.manager.gateway.records import Listener, Record, Records, read_subject
from procs.manager.gateway.splice import End
from procs.manager.gateway.tls import ALPN
from swarm.errors import Unreachable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """Bounds of the front. Times in seconds."""

    handshake: float = 10.0
    """From accept to the end of the handshake."""
    shutdown: float = 1.0
    """To flush what is buffered, and for the peer to answer our close_notify; gRPC's clients never do."""
    inner_connect: float = 5.0
    pending: int = 256
    """Handshakes at once; one more drops the oldest."""
    connections: int = 4096
    """Established at once; beyond that new ones are closed, those without a certificate first."""
    anonymous: int = 1024
    """Established at once without a certificate; one more drops the most silent."""
    anonymous_idle: float = 60.0
    """Silence after which a peer without a certificate is closed. A joiner that waits asks again every few seconds."""
    accept_burst: int = 64
    """Connections taken from the backlog before others get a turn."""
    accept_pause: float = 0.5
    """Rest after the process ran out of descriptors."""


class Front:
    """Serves any number of listening sockets. One per process, on the event loop of the gRPC server."""

    def __init__(self, records: Records, inner: Path, context: ssl.SSLContext, limits: Limits | None = None) -> None:
        self._records = records
        self._inner = str(inner)
        self._context = context
        self._limits = limits or Limits()
        self._loop = asyncio.get_running_loop()
        self._listening: list[socket.socket] = []
        self._pending: dict[asyncio.Task[None], socket.socket] = {}
        self._dropped: set[asyncio.Task[None]] = set()
        self._anonymous: dict[str, End] = {}
        self._established: dict[str, End] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()
        self.counters: Counter[str] = Counter()
        """accepted, established, handshake_failed, dropped_pending, dropped_idle, dropped_full, inner_failed."""

    def use(self, context: ssl.SSLContext) -> None:
        """Serve new connections with `context`; established ones stay (reference node-and-ca §5.1)."""
        self._context = context

    def listen(self, sock: socket.socket, listener: Listener) -> None:
        """Accept from a bound, listening, non-blocking socket; the front owns it from now on."""
        self._listening.append(sock)
        self._loop.add_reader(sock, self._accept, sock, listener)

    def forget(self, sock: socket.socket) -> None:
        """Close one door; who came in by it stays."""
        if sock in self._listening:
            self._listening.remove(sock)
            self._loop.remove_reader(sock)
            sock.close()

    @property
    def connections(self) -> int:
        """Established connections."""
        return len(self._established)

    @property
    def pending(self) -> int:
        """Handshakes under way."""
        return len(self._pending)

    def stop_listening(self) -> None:
        """Close the doors; who is inside stays."""
        for sock in self._listening:
            self._loop.remove_reader(sock)
            sock.close()
        self._listening.clear()

    async def close(self, timeout: float = 0.3) -> None:  # noqa: ASYNC109  (a bound on politeness, not on the caller)
        """End everything; give established connections `timeout` seconds to flush."""
        self.stop_listening()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        while self._pending:
            self._drop_oldest()
        await asyncio.gather(*self._dropped, return_exceptions=True)
        for end in list(self._established.values()):
            end.close()
        self._empty.clear()
        if self._established:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), timeout)
        for end in list(self._established.values()):
            end.abort()
        if self._established:
            # Transports say that they are closed in the loop's next round; until then their sockets are open.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), timeout)

    # -- accepting ----------------------------------------------------------------------------------

    def _accept(self, listening: socket.socket, listener: Listener) -> None:
        for _ in range(self._limits.accept_burst):
            try:
                sock, address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    log.info(
                        "a connection failed before it was accepted: %s", error
                    )  # accept(2): go on as after EAGAIN
                    return
                log.warning("cannot accept a connection: %s; trying again in %s s", error, self._limits.accept_pause)
                self._loop.remove_reader(listening)
                self._loop.call_later(self._limits.accept_pause, self._resume, listening, listener)
                return
            self.counters["accepted"] += 1
            sock.setblocking(False)
            if listener is Listener.REMOTE:
                _tune(sock)
            if len(self._pending) >= self._limits.pending:
                self._drop_oldest()
            task = self._loop.create_task(self._welcome(sock, listener, _host_port(address)))
            self._pending[task] = sock
            task.add_done_callback(self._settled)

    def _resume(self, listening: socket.socket, listener: Listener) -> None:
        if listening in self._listening:
            self._loop.add_reader(listening, self._accept, listening, listener)

    def _settled(self, task: asyncio.Task[None]) -> None:
        self._pending.pop(task, None)
        self._dropped.discard(task)

    def _drop_oldest(self) -> None:
        """End the oldest handshake as if the peer had hung up.

        Not by cancelling it: asyncio's transport would keep the descriptor's number and read from whoever gets it next.
        """
        task = next(iter(self._pending))  # insertion order: the first is the oldest
        sock = self._pending.pop(task)
        self._dropped.add(task)
        self.counters["dropped_pending"] += 1
        with contextlib.suppress(OSError):  # it may be gone already
            sock.shutdown(socket.SHUT_RDWR)

    # -- one connection -----------------------------------------------------------------------------

    async def _welcome(self, sock: socket.socket, listener: Listener, remote_addr: str) -> None:
        """Shake hands, write the record, dial the inner server, splice."""
        outer = End()
        local_addr = _host_port(sock.getsockname()) if listener is Listener.REMOTE else ""
        try:
            await self._loop.connect_accepted_socket(
                lambda: outer,
                sock,
                ssl=self._context,
                ssl_handshake_timeout=self._limits.handshake,
                ssl_shutdown_timeout=self._limits.shutdown,
            )
        except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
            self.counters["handshake_failed"] += 1
            log.debug("handshake with %s failed: %s", remote_addr or listener.value, error)
            return  # the transport has closed the socket
        record = self._identify(outer, listener, remote_addr, local_addr)
        if record is None:
            outer.abort()
            return
        name = secrets.token_hex(16)
        self._records[name] = record
        try:
            inner = await self._dial(name)
        except (OSError, Unreachable) as error:
            self.counters["inner_failed"] += 1
            log.warning("connection of %s dropped: the gRPC server does not take it: %s", remote_addr, error)
            del self._records[name]
            outer.abort()
            return
        except asyncio.CancelledError:
            del self._records[name]
            outer.abort()
            raise
        self._tie(name, record, outer, inner)

    def _identify(self, outer: End, listener: Listener, remote_addr: str, local_addr: str) -> Record | None:
        if outer.transport is None:  # gone again
            return None
        tls = outer.transport.get_extra_info("ssl_object")
        if tls.selected_alpn_protocol() != ALPN:
            self.counters["handshake_failed"] += 1
            log.debug("%s did not ask for %s by ALPN", remote_addr, ALPN)
            return None
        der = tls.getpeercert(binary_form=True)
        if der is None:
            return Record(listener, remote_addr, local_addr)
        try:
            cn, ou, org, not_after, leaf_hash = read_subject(der)
        except ValueError as error:
            self.counters["handshake_failed"] += 1
            log.warning("certificate of %s cannot be read: %s", remote_addr, error)
            return None
        return Record(listener, remote_addr, local_addr, cn, ou, org, not_after, leaf_hash)

    async def _dial(self, name: str) -> End:
        """Connect to the gRPC server from a socket bound to the abstract `name`."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.bind(b"\0" + name.encode())
            deadline = self._loop.time() + self._limits.inner_connect
            # connect() on a Unix socket succeeds at once or says that the backlog is full (EAGAIN); nothing tells when
            # there is room again, and loop.sock_connect would take EAGAIN for success.
            while True:
                try:
                    sock.connect(self._inner)
                    break
                except BlockingIOError:
                    if self._loop.time() > deadline:
                        raise Unreachable("its backlog is full") from None
                    await asyncio.sleep(0.01)
            inner = End()
            await self._loop.create_unix_connection(lambda: inner, sock=sock)
        except BaseException:
            sock.close()
            raise
        return inner

    def _tie(self, name: str, record: Record, outer: End, inner: End) -> None:
        if outer.transport is None:  # the peer left while we dialled
            inner.close()
            del self._records[name]
            return
        self.counters["established"] += 1
        self._make_room(anonymous=not record.leaf_hash and record.listener is Listener.REMOTE)
        self._established[name] = outer
        if not record.leaf_hash and record.listener is Listener.REMOTE:
            self._anonymous[name] = outer
            self._arm()

        def outer_closed() -> None:
            self._anonymous.pop(name, None)
            self._established.pop(name, None)
            if not self._established:
                self._empty.set()

        def inner_closed() -> None:
            self._records.pop(name, None)

        outer.tie(inner, outer_closed)
        inner.tie(outer, inner_closed)
        outer.start()
        inner.start()

    # -- limits -------------------------------------------------------------------------------------

    def _make_room(self, *, anonymous: bool) -> None:
        """Before one more connection: close the most silent peer without a certificate if a bound is reached."""
        full = len(self._established) >= self._limits.connections
        if full or (anonymous and len(self._anonymous) >= self._limits.anonymous):
            victims: Iterable[End] = self._anonymous.values() or self._established.values()
            victim = min(victims, key=lambda end: end.heard_at)
            victim.abort()
            self.counters["dropped_full"] += 1

    def _arm(self) -> None:
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(self._limits.anonymous_idle / 4, self._sweep)

    def _sweep(self) -> None:
        self._sweeper = None
        horizon = self._loop.time() - self._limits.anonymous_idle
        for end in [end for end in self._anonymous.values() if end.heard_at < horizon]:
            end.abort()
            self.counters["dropped_idle"] += 1
        if self._anonymous:
            self._arm()


def _tune(sock: socket.socket) -> None:
    """Small messages at once; find out about dead peers within about a minute."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def _host_port(address: object) -> str:
    """A socket address as `HOST:PORT`, IPv6 in brackets, IPv4-mapped as IPv4; empty for a Unix socket."""
    if not isinstance(address, tuple):
        return ""
    host, port = str(address[0]), int(address[1])
    host = host.removeprefix("::ffff:") if "." in host else host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
