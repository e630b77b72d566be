"""Two connections tied together: what one receives the other sends, with back-pressure both ways."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class End(asyncio.Protocol):
    """One end of a splice. Reads nothing until `tie` has been called for both; closes with the other one."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.heard_at = 0.0
        """Loop time of the last byte received; what idles is judged by it."""
        self._other: End | None = None
        self._closed: Callable[[], None] | None = None
        self._loop = asyncio.get_running_loop()

    def tie(self, other: End, closed: Callable[[], None]) -> None:
        """Pass everything on to `other`; call `closed` once this end is gone."""
        self._other = other
        self._closed = closed

    def start(self) -> None:
        """Begin to read. Both ends must be tied."""
        if self.transport is not None:
            self.transport.resume_reading()

    def close(self) -> None:
        """Flush what is buffered, then close."""
        # Once only: asyncio's TLS transport forgets its connection at a second close, and abort() then does nothing.
        if self.transport is not None and not self.transport.is_closing():
            self.transport.close()

    def abort(self) -> None:
        """Close now; buffered bytes are lost."""
        if self.transport is not None:
            self.transport.abort()

    # -- asyncio.Protocol ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport):
            raise TypeError(f"a stream transport is needed, got {transport!r}")
        self.transport = transport
        self.heard_at = self._loop.time()
        transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._loop.time()
        if self._other is not None and self._other.transport is not None:
            self._other.transport.write(data)

    def pause_writing(self) -> None:
        if self._other is not None and self._other.transport is not None:
            self._other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._other is not None and self._other.transport is not None:
            self._other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (the peer's reasons are its own)
        self.transport = None
        other, closed = self._other, self._closed
        self._other = self._closed = None
        if other is not None:
            other.close()
        if closed is not None:
            closed()
