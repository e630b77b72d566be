"""Names of services and networks (reference manager §5.1)."""

from __future__ import annotations

import re

from procs.manager.status import invalid_argument
from swarm.api import types_pb2

NAME_LENGTH = 63

# SwarmKit's `^[a-zA-Z0-9](?:[-_]*[A-Za-z0-9]+)*$` accepts the same names, but takes Python exponential time to refuse.
_NAME = re.compile(r"[a-zA-Z0-9](?:[-_a-zA-Z0-9]*[a-zA-Z0-9])?")


def check_annotations(annotations: types_pb2.Annotations) -> None:
    """InvalidArgument unless the name is there and is a component of a DNS name."""
    if not annotations.name:
        raise invalid_argument("meta: name must be provided")
    if not _NAME.fullmatch(annotations.name):
        raise invalid_argument("name must be valid as a DNS name component")
    if len(annotations.name.encode()) > NAME_LENGTH:
        raise invalid_argument(f"name must be {NAME_LENGTH} characters or fewer")
