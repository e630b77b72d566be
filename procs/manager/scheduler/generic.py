"""Generic resources: what nodes advertise besides CPU and memory (reference manager §7.5).

A node declares, for a kind, either an amount (`kind=n`) or a set of names (`kind={a,b}`); tasks reserve amounts. What
is taken is counted from the tasks' `assigned_generic_resources`, and what is free is computed from the node's present
declaration, so a declaration that changes needs no repair of the books.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from swarm.api.types_pb2 import DiscreteGenericResource, GenericResource, NamedGenericResource

Resources = Iterable[GenericResource]


def quantities(resources: Resources) -> dict[str, int]:
    """How much of each kind: amounts, and one for each name."""
    total: Counter[str] = Counter()
    for resource in resources:
        if resource.WhichOneof("resource") == "named_resource_spec":
            total[resource.named_resource_spec.kind] += 1
        else:
            total[resource.discrete_resource_spec.kind] += resource.discrete_resource_spec.value
    return dict(total)


class GenericUse:
    """What the tasks of one node have taken."""

    __slots__ = ("_amounts", "_names")

    def __init__(self) -> None:
        self._amounts: Counter[str] = Counter()
        self._names: Counter[tuple[str, str]] = Counter()

    def add(self, assigned: Resources) -> None:
        self._count(assigned, 1)

    def drop(self, assigned: Resources) -> None:
        self._count(assigned, -1)

    def _count(self, assigned: Resources, sign: int) -> None:
        for resource in assigned:
            if resource.WhichOneof("resource") == "named_resource_spec":
                named = resource.named_resource_spec
                self._names[named.kind, named.value] += sign
            else:
                discrete = resource.discrete_resource_spec
                self._amounts[discrete.kind] += sign * discrete.value

    def free(self, declared: Resources, kind: str) -> int:
        """How much of `kind` is left; negative if more is taken than there is."""
        amount, names = _offer(declared, kind)
        if names:
            return sum(1 for name in names if self._names[kind, name] < 1) - self._amounts[kind]
        return amount - self._amounts[kind] - sum(self._named(kind).values())

    def enough(self, declared: Resources, wanted: Mapping[str, int]) -> bool:
        """Whether what is left covers `wanted`."""
        return all(self.free(declared, kind) >= amount for kind, amount in wanted.items())

    def exceeds(self, declared: Resources, kinds: Iterable[str]) -> bool:
        """Whether more than declared is taken of one of `kinds`: too much, a name twice, or one not declared."""
        for kind in kinds:
            _, names = _offer(declared, kind)
            if self.free(declared, kind) < 0:
                return True
            if names and any(taken > 1 or name not in names for name, taken in self._named(kind).items()):
                return True
        return False

    def _named(self, kind: str) -> dict[str, int]:
        """The names taken of a kind, and how often."""
        return {name: taken for (taken_kind, name), taken in self._names.items() if taken_kind == kind and taken > 0}

    def claim(self, declared: Resources, wanted: Mapping[str, int]) -> tuple[GenericResource, ...]:
        """What a task gets that wants this much and fits: the first free names, or an amount."""
        claimed: list[GenericResource] = []
        for kind, amount in sorted(wanted.items()):
            free_names = [name for name in _offer(declared, kind)[1] if self._names[kind, name] < 1]
            if free_names:
                claimed.extend(
                    GenericResource(named_resource_spec=NamedGenericResource(kind=kind, value=name))
                    for name in free_names[:amount]
                )
            elif amount:
                claimed.append(GenericResource(discrete_resource_spec=DiscreteGenericResource(kind=kind, value=amount)))
        return tuple(claimed)


def _offer(declared: Resources, kind: str) -> tuple[int, list[str]]:
    """What a node declares of a kind: an amount, or names."""
    amount, names = 0, []
    for resource in declared:
        if resource.WhichOneof("resource") == "named_resource_spec":
            if resource.named_resource_spec.kind == kind:
                names.append(resource.named_resource_spec.value)
        elif resource.discrete_resource_spec.kind == kind:
            amount += resource.discrete_resource_spec.value
    return amount, names
