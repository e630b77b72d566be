"""How a service of the manager refuses a call: with a gRPC status whose code and text peers match.

Source of the rule: reference manager §0.1.
"""

from __future__ import annotations

import grpc

from swarm.errors import SwarmvisorError


class Status(SwarmvisorError):
    """Ends a call with `code` and exactly `text`."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


def invalid_argument(text: str = "invalid argument") -> Status:
    """The bare text is SwarmKit's generic "required field missing"."""
    return Status(grpc.StatusCode.INVALID_ARGUMENT, text)


def not_found(text: str) -> Status:
    return Status(grpc.StatusCode.NOT_FOUND, text)


def failed_precondition(text: str) -> Status:
    return Status(grpc.StatusCode.FAILED_PRECONDITION, text)


def already_exists(text: str) -> Status:
    return Status(grpc.StatusCode.ALREADY_EXISTS, text)


def permission_denied(text: str) -> Status:
    return Status(grpc.StatusCode.PERMISSION_DENIED, text)


def unimplemented(text: str) -> Status:
    return Status(grpc.StatusCode.UNIMPLEMENTED, text)


def unavailable(text: str) -> Status:
    return Status(grpc.StatusCode.UNAVAILABLE, text)


def aborted(text: str) -> Status:
    return Status(grpc.StatusCode.ABORTED, text)


def unknown(text: str) -> Status:
    """What a plain error becomes in Go's server; the text is the contract."""
    return Status(grpc.StatusCode.UNKNOWN, text)
