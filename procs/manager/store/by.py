"""Selectors for `Store.find` and `Tx.find`, as `by.service(id)` (reference manager §2.1).

Names are compared in lower case (a node's name is its hostname, a task's its display name); all else exactly.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Where:
    """One index, and the value (or the text it starts with) that an object must have there."""

    index: str
    value: Hashable
    prefix: bool = False


@dataclass(frozen=True, slots=True)
class AnyOf:
    """The union of what its parts select."""

    parts: tuple[Where, ...]


Selector = Where | AnyOf


def any_of(*parts: Where) -> AnyOf:
    """Objects that at least one of `parts` selects."""
    return AnyOf(parts)


def name(text: str) -> Where:
    return Where("name", text.lower())


def name_prefix(text: str) -> Where:
    return Where("name", text.lower(), prefix=True)


def id_prefix(text: str) -> Where:
    return Where("id", text, prefix=True)


def service(service_id: str) -> Where:
    """Tasks of a service."""
    return Where("service", service_id)


def node(node_id: str) -> Where:
    """Tasks on a node; `""` selects those without one."""
    return Where("node", node_id)


def slot(service_id: str, number: int) -> Where:
    """Tasks in a slot of a service."""
    return Where("slot", (service_id, number))


def desired_state(state: int) -> Where:
    """Tasks whose desired state is exactly this one."""
    return Where("desired_state", state)


def observed_state(state: int) -> Where:
    """Tasks whose status says exactly this state."""
    return Where("observed_state", state)


def role(number: int) -> Where:
    """Nodes by observed role."""
    return Where("role", number)


def joining(csr: bytes) -> Where:
    """Nodes that asked for a certificate with this request, and have not come yet."""
    return Where("joining", csr)


def membership(number: int) -> Where:
    return Where("membership", number)


def runtime(text: str) -> Where:
    """Services and tasks by the name of their runtime."""
    return Where("runtime", text)


def network(network_id: str) -> Where:
    """Services and tasks whose spec names the network."""
    return Where("network", network_id)


def secret(secret_id: str) -> Where:
    return Where("secret", secret_id)


def config(config_id: str) -> Where:
    return Where("config", config_id)


def volume(volume_id: str) -> Where:
    """Tasks to which the volume is attached."""
    return Where("volume", volume_id)


def kind(text: str) -> Where:
    """Resources of a kind."""
    return Where("kind", text)


def group(text: str) -> Where:
    """Volumes of a group."""
    return Where("group", text)


def driver(text: str) -> Where:
    """Volumes of a driver."""
    return Where("driver", text)


def custom(key: str, value: str) -> Where:
    """Objects whose annotations carry this index entry (resources: `key` is `<kind>|<key>`)."""
    return Where("custom", f"{key}|{value}")


def custom_prefix(key: str, value: str) -> Where:
    return Where("custom", f"{key}|{value}", prefix=True)
