"""Generic resources: amounts and names (reference manager §7.5)."""

from __future__ import annotations

import pytest

from procs.manager.scheduler.generic import GenericUse, quantities
from swarm.api.types_pb2 import GenericResource


def amount(kind, value) -> GenericResource:
    made = GenericResource()
    made.discrete_resource_spec.kind, made.discrete_resource_spec.value = kind, value
    return made


def names(kind, *values) -> list[GenericResource]:
    made = [GenericResource() for _ in values]
    for resource, value in zip(made, values, strict=True):
        resource.named_resource_spec.kind, resource.named_resource_spec.value = kind, value
    return made


def test_quantities_count_names_and_add_amounts() -> None:
    assert quantities([amount("a", 2), *names("b", "x", "y"), amount("a", 1)]) == {"a": 3, "b": 2}


@pytest.mark.parametrize(
    ("declared", "taken", "free"),
    [
        ([amount("gpu", 3)], [], 3),
        ([amount("gpu", 3)], [amount("gpu", 2)], 1),
        (names("gpu", "x", "y"), names("gpu", "x"), 1),
        (names("gpu", "x", "y"), names("other", "x"), 2),
        ([], [amount("gpu", 1)], -1),
        ([amount("gpu", 3)], names("gpu", "x"), 2),  # it was a set before
        (names("gpu", "x", "y"), [amount("gpu", 1)], 1),  # it was an amount before
    ],
)
def test_what_is_free_follows_the_present_declaration(declared, taken, free) -> None:
    use = GenericUse()
    use.add(taken)
    assert use.free(declared, "gpu") == free
    use.drop(taken)
    assert use.free(declared, "gpu") == sum(quantities(declared).values())


def test_a_claim_takes_the_first_free_names_in_the_order_declared() -> None:
    declared = names("gpu", "b", "a", "c")
    use = GenericUse()
    use.add(names("gpu", "a"))
    assert list(use.claim(declared, {"gpu": 2})) == names("gpu", "b", "c")
    assert not use.enough(declared, {"gpu": 3})


def test_a_claim_of_an_amount_is_an_amount() -> None:
    assert list(GenericUse().claim([amount("gpu", 5)], {"gpu": 2})) == [amount("gpu", 2)]


@pytest.mark.parametrize(
    ("declared", "taken", "exceeds"),
    [
        ([amount("gpu", 2)], [amount("gpu", 2)], False),
        ([amount("gpu", 1)], [amount("gpu", 2)], True),
        (names("gpu", "x", "y"), names("gpu", "x"), False),
        (names("gpu", "y"), names("gpu", "x"), True),
        ([], names("gpu", "x"), True),
    ],
)
def test_more_than_declared_is_seen(declared, taken, exceeds) -> None:
    use = GenericUse()
    use.add(taken)
    assert use.exceeds(declared, ["gpu"]) == exceeds
