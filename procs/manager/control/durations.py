"""Protobuf durations as the Control API checks them."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration

from procs.manager.status import unknown

_MAX_SECONDS = 315_576_000_000
"""Ten thousand years, what protobuf allows."""
_SECOND = 1_000_000_000

MILLISECOND = 1_000_000
"""In nanoseconds."""
HOUR = 3600 * _SECOND


def nanoseconds(duration: Duration) -> int:
    """The length in ns. One that is no valid duration ends the call with UNKNOWN, as Go's plain error does."""
    seconds, nanos = duration.seconds, duration.nanos
    if abs(seconds) > _MAX_SECONDS:
        raise unknown(f"duration: seconds:{seconds}: seconds out of range")
    if abs(nanos) >= _SECOND:
        raise unknown(f"duration: nanos:{nanos}: nanos out of range")
    if seconds * nanos < 0:
        raise unknown(f"duration: seconds:{seconds} nanos:{nanos}: seconds and nanos have different signs")
    return seconds * _SECOND + nanos
