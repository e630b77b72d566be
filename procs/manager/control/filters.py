"""What listings let through (reference manager §5.1): values within a filter are OR-ed, filters are AND-ed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping


def labels_match(wanted: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Every wanted key is there, with the wanted value or any if that is empty."""
    return all(key in labels and value in ("", labels[key]) for key, value in wanted.items())


def one_of(wanted: Collection[object], value: object) -> bool:
    """No filter, or `value` is in it."""
    return not wanted or value in wanted


def starts_with(wanted: Iterable[str], value: str) -> bool:
    """No filter, or `value` starts with one of its texts."""
    prefixes = tuple(wanted)
    return not prefixes or value.startswith(prefixes)
