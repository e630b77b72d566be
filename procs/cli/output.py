"""What listings look like: a table for people, JSON for programs, bare names for pipes.

JSON is a contract: keys and their types are documented in docs/cli.md and only ever added to.
"""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

FORMATS = ("table", "json")

Row = Mapping[str, Any]

GAP = "   "
NARROW = 24
"""Cells: a last column with less room than this is not worth wrapping into."""

ID_SHOWN = 12
"""Characters of an id in a table, as Docker shows them; every command takes an unambiguous beginning of an id."""


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    heading: str
    value: str | Callable[[Row], Any]
    """A key of the row, or what to make of the row."""
    cut: bool = False
    """On a terminal its end may be cut off (the last column only)."""

    def of(self, row: Row) -> Any:
        return row[self.value] if isinstance(self.value, str) else self.value(row)


def short_id(row: Row) -> str:
    """The beginning of a row's id."""
    return str(row["id"])[:ID_SHOWN]


def listing_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that every listing has: `-o table|json` and `-q`."""
    command = click.option("-q", "--quiet", is_flag=True, help="Print only the ids.")(command)
    return click.option(
        "-o", "--output", type=click.Choice(FORMATS), default="table", show_default=True, help="Form of the listing."
    )(command)


def show(rows: Sequence[Row], columns: Sequence[Column], *, output: str, quiet: bool, key: str = "id") -> None:
    """Print `rows`; `columns` only concern the table."""
    if quiet:
        for row in rows:
            click.echo(row[key])
    elif output == "json":
        print_json(list(rows))
    else:
        table(rows, columns)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def table(rows: Sequence[Row], columns: Sequence[Column]) -> None:
    """A table without frames. In a pipe every row is one line and nothing is cut."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for position, line in enumerate(layout(rows, columns, width)):
        click.secho(line, bold=position == 0)


def layout(rows: Sequence[Row], columns: Sequence[Column], width: int | None = None) -> list[str]:
    """The table's lines, the headings first. With a `width`, the last column is fitted into it: cut if it may be,
    else wrapped, and where there is no room for that beside the others, put beneath them."""
    from rich.cells import cell_len, set_cell_size  # late: `-q` and `-o json` need no widths

    cells = [[plain(column.of(row)) for column in columns] for row in rows]
    widths = [
        max([cell_len(column.heading), *(cell_len(line[n]) for line in cells)]) for n, column in enumerate(columns)
    ]
    indent = sum(widths[:-1]) + len(GAP) * (len(columns) - 1)
    room = max(0, width - indent) if width is not None else widths[-1]
    beneath = widths[-1] > room and room < NARROW and not columns[-1].cut

    def line(cells: Sequence[str]) -> str:
        return GAP.join([set_cell_size(c, w) for c, w in zip(cells, widths, strict=False)]).rstrip()

    lines = [line([column.heading for column in columns[: -1 if beneath else None]])]
    for *first, last in cells:
        if columns[-1].cut and cell_len(last) > room:
            lines.append(line([*first, set_cell_size(last, max(0, room - 1)).rstrip() + "…"]))
        elif beneath:
            lines += [line(first), *(f"    {part}" for part in textwrap.wrap(last, max(NARROW, (width or 0) - 4)))]
        else:
            parts = textwrap.wrap(last, max(1, room)) or [""]
            lines += [line([*first, parts[0]]), *(f"{'':{indent}}{part}" for part in parts[1:])]
    return lines


def plain(value: Any) -> str:
    """A cell's text on one line, without anything that a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in str(value))


def ago(unix_seconds: float) -> str:
    """`12 seconds ago`, in the largest unit that fits; empty for zero."""
    if not unix_seconds:
        return ""
    seconds = max(0, int(time.time_ns() / 1e9 - unix_seconds))
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        if seconds >= size:
            count = seconds // size
            return f"{count} {unit}{'s' if count != 1 else ''} ago"
    return "just now"
