"""How long after its end a certificate may still be exchanged for a new one: label `swarmvisor.cert-grace`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from swarm.errors import BadInput

LABEL = "swarmvisor.cert-grace"
"""Of the cluster object."""
DEFAULT = 90 * 24 * 3600
"""Seconds."""
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 24 * 3600}


def parse_grace(text: str) -> int:
    """Seconds of `90d`, `36h`, `10m`, `0`. Raises BadInput."""
    match = re.fullmatch(r"(\d{1,9})([smhd]?)", text.strip())
    if match is None:
        raise BadInput(f"{LABEL}: {text!r} is not a time span", remedy="write for example 90d, 36h, or 0 for never")
    return int(match[1]) * _UNITS[match[2]]


def grace_of(labels: Mapping[str, str]) -> int:
    """Seconds; the default without the label, or where it cannot be read (it is checked when it is set)."""
    text = labels.get(LABEL)  # not labels[…]: a protobuf's map would make the entry, in an object that is shared
    if text is None:
        return DEFAULT
    try:
        return parse_grace(text)
    except BadInput:
        return DEFAULT
