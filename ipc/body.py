"""Bodies of messages: frozen dataclasses to plain msgpack values, and back with every field checked.

A body's fields are str, int, float, bool, bytes, nested dataclasses and `tuple[T, ...]` of those (see `ipc.topics`).
Unknown extra fields are ignored, absent ones take their default: releases next to each other understand one another.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable
from typing import Any

Reader = Callable[[Any, str], Any]


class Misfit(ValueError):
    """A plain value does not fit the type; the text names the field."""


def to_plain(body: Any) -> Any:
    """`body` as msgpack takes it: dataclasses become maps, tuples lists."""
    if dataclasses.is_dataclass(body):
        return {field.name: to_plain(getattr(body, field.name)) for field in dataclasses.fields(body)}
    if isinstance(body, tuple):
        return [to_plain(item) for item in body]
    return body


def from_plain(kind: type, plain: Any) -> Any:
    """An instance of the dataclass `kind` from what msgpack gave. Raises Misfit."""
    return reader_of(kind)(plain, kind.__name__)


@functools.cache
def reader_of(hint: Any) -> Reader:
    """The function that checks and converts a plain value for the type `hint`. TypeError: no such body type."""
    if hint in (str, int, bool, bytes):
        return functools.partial(_scalar, hint)
    if hint is float:
        return _float
    if dataclasses.is_dataclass(hint):
        return _dataclass_reader(hint)
    if typing.get_origin(hint) is tuple:
        item, *rest = typing.get_args(hint)
        if rest == [Ellipsis]:
            return functools.partial(_tuple, reader_of(item))
    raise TypeError(f"{hint!r} cannot be part of a body; ipc.topics says what can")


def _scalar(kind: type, plain: Any, where: str) -> Any:
    # The exact type: a bool is no int here, else True would pass for an exit code of 1.
    if type(plain) is not kind:
        raise Misfit(f"{where}: expected {kind.__name__}, got {type(plain).__name__}")
    return plain


def _float(plain: Any, where: str) -> float:
    # Other languages' msgpack writes 2.0 as 2.
    if type(plain) not in (float, int):
        raise Misfit(f"{where}: expected float, got {type(plain).__name__}")
    return float(plain)


def _tuple(read_item: Reader, plain: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(plain, (list, tuple)):
        raise Misfit(f"{where}: expected a list, got {type(plain).__name__}")
    return tuple(read_item(item, f"{where}[{index}]") for index, item in enumerate(plain))


def _dataclass_reader(kind: Any) -> Reader:
    hints = typing.get_type_hints(kind)
    fields = [(field.name, reader_of(hints[field.name]), _required(field)) for field in dataclasses.fields(kind)]

    def read(plain: Any, where: str) -> Any:
        if not isinstance(plain, dict):
            raise Misfit(f"{where}: expected a map, got {type(plain).__name__}")
        given: dict[str, Any] = {}
        for name, read_field, required in fields:
            if name in plain:
                given[name] = read_field(plain[name], f"{where}.{name}")
            elif required:
                raise Misfit(f"{where}.{name}: missing")
        return kind(**given)

    return read


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
