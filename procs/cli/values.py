"""What users write for quantities and pairs, as numbers: `512m`, `1.5`, `1m30s`, `KEY=VALUE`."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from typing import Any

import click

_MEMORY = {"": 0, "b": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_SECONDS = {"ns": Decimal("1e-9"), "us": Decimal("1e-6"), "µs": Decimal("1e-6"), "ms": Decimal("1e-3")}
_SECONDS |= {"s": Decimal(1), "m": Decimal(60), "h": Decimal(3600)}
NANOS = 10**9


class Memory(click.ParamType[int]):
    """Bytes: a number with an optional unit b, k, m, g or t (powers of 1024; `KiB` and `kb` mean the same as `k`)."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?", str(value).strip().lower())
        if not match:
            self.fail(f"{value!r} is not an amount of memory; write for example 512m or 2g", param, ctx)
        return int(Decimal(match[1]) * 1024 ** _MEMORY[match[2]])


class Cpus(click.ParamType[int]):
    """Billionths of a core: a decimal number of cores with at most nine decimals."""

    name = "cores"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            nanos = Decimal(str(value)) * NANOS
        except InvalidOperation:
            self.fail(f"{value!r} is not a number of cores; write for example 0.5", param, ctx)
        if nanos != nanos.to_integral_value():
            self.fail(f"CPU value cannot have more than 9 decimal places: {value}", param, ctx)
        return int(nanos)


class Span(click.ParamType[int]):
    """Nanoseconds: Go's notation for durations (`500ms`, `1m30s`), or plain seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).strip()
        if re.fullmatch(r"\d+(\.\d+)?", text):
            text += "s"
        parts = re.findall(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)", text)
        if not parts or "".join(number + unit for number, unit in parts) != text:
            self.fail(f"{value!r} is not a duration; write for example 500ms, 10s or 1m30s", param, ctx)
        return int(sum(Decimal(number) * _SECONDS[unit] for number, unit in parts) * NANOS)


class Signal(click.ParamType[str]):
    """A signal's name with SIG (SIGTERM), from a name with or without it, or from its number."""

    name = "signal"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value).strip().upper()
        try:
            if text.isdigit():
                return signal.Signals(int(text)).name
            return signal.Signals["SIG" + text.removeprefix("SIG")].name
        except (KeyError, ValueError):
            self.fail(f"{value!r} is not a signal; write for example SIGTERM, hup or 9", param, ctx)


def pairs(values: Iterable[str], what: str) -> dict[str, str]:
    """`KEY=VALUE` strings as a dict; a later one wins. Raises click.UsageError naming `what`."""
    found: dict[str, str] = {}
    for text in values:
        key, _, value = text.partition("=")
        if not key:
            raise click.UsageError(f"{what}: {text!r} is not KEY=VALUE")
        found[key] = value
    return found
