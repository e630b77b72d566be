"""Placement constraints: `key==value` and `key!=value` over nodes (reference manager §7.3).

Shared by the Control API, which refuses what does not parse, and the scheduler and enforcer, which match.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from swarm.api import objects_pb2, types_pb2
from swarm.errors import BadInput

_KEY = re.compile(r"[a-z_][a-z0-9\-_.]+", re.IGNORECASE | re.ASCII)
_VALUE = re.compile(r"[a-z0-9:\-_\s.*()?+\[\]\\^$|/]+", re.IGNORECASE | re.ASCII)
_OPERATORS = ("==", "!=")

_NODE_LABEL = "node.labels."
_ENGINE_LABEL = "engine.labels."

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Constraint:
    """One condition on a node."""

    key: str
    equal: bool
    """`==`, else `!=`."""
    value: str

    def matches(self, node: objects_pb2.Node) -> bool:
        """Whether `node` satisfies it. Values are compared literally but for case; what a node does not say counts
        as empty; an unknown key is satisfied by no node."""
        key = self.key.lower()
        if key == "node.ip":
            return self._matches_address(node.status.addr)
        actual = _simple(key, node)
        if actual is None and key.startswith(_NODE_LABEL) and len(key) > len(_NODE_LABEL):
            actual = node.spec.annotations.labels.get(self.key[len(_NODE_LABEL) :], "")
        if actual is None and key.startswith(_ENGINE_LABEL) and len(key) > len(_ENGINE_LABEL):
            actual = node.description.engine.labels.get(self.key[len(_ENGINE_LABEL) :], "")
        if actual is None:
            return False
        return (actual.lower() == self.value.lower()) is self.equal

    def _matches_address(self, addr: str) -> bool:
        """`value` is an address or a network; anything else matches no node, whatever the operator."""
        actual = _address(addr)
        wanted = _address(self.value)
        if wanted is not None:
            return (wanted == actual) is self.equal
        try:
            network = ipaddress.ip_network(self.value, strict=False)
        except ValueError:
            return False
        if "/" not in self.value:
            return False
        return (actual is not None and actual in network) is self.equal


def parse(expressions: Iterable[str]) -> list[Constraint]:
    """All expressions, or BadInput with SwarmKit's text for the first that does not parse."""
    return [_parse_one(expression) for expression in expressions]


def all_match(constraints: Iterable[Constraint], node: objects_pb2.Node) -> bool:
    """Whether `node` satisfies every constraint."""
    return all(constraint.matches(node) for constraint in constraints)


def _parse_one(expression: str) -> Constraint:
    for operator in _OPERATORS:
        key, found, value = expression.partition(operator)
        if not found:
            continue
        key, value = key.strip(), value.strip()
        if not _KEY.fullmatch(key):
            raise BadInput(f"key '{key}' is invalid")
        if not _VALUE.fullmatch(value):
            raise BadInput(f"value '{value}' is invalid")
        return Constraint(key, operator == "==", value)
    raise BadInput(f"constraint expected one operator from {', '.join(_OPERATORS)}")


def _simple(key: str, node: objects_pb2.Node) -> str | None:
    """The node's value for a key without parameter; None if there is no such key."""
    match key:
        case "node.id":
            return node.id
        case "node.hostname":
            return node.description.hostname
        case "node.role":
            return types_pb2.NodeRole.Name(node.role)
        case "node.platform.os":
            return node.description.platform.os
        case "node.platform.arch":
            return node.description.platform.architecture
    return None


def _address(text: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
