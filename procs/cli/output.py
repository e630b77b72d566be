"""What listings look like: a table for people, JSON for programs, bare names for pipes.

JSON is a contract: keys and their types are documented in docs/cli.md and only ever added to.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

FORMATS = ("table", "json")

Row = Mapping[str, Any]


def listing_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that every listing has: `-o table|json` and `-q`."""
    command = click.option("-q", "--quiet", is_flag=True, help="Print only the ids.")(command)
    return click.option(
        "-o", "--output", type=click.Choice(FORMATS), default="table", show_default=True, help="Form of the listing."
    )(command)


def show(rows: Sequence[Row], columns: Sequence[tuple[str, str]], *, output: str, quiet: bool, key: str = "id") -> None:
    """Print `rows`; `columns` are (heading, key of the row) and only concern the table."""
    if quiet:
        for row in rows:
            click.echo(row[key])
    elif output == "json":
        print_json(list(rows))
    else:
        table(rows, columns)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def table(rows: Sequence[Row], columns: Sequence[tuple[str, str]]) -> None:
    """A table without frames. On a terminal long cells wrap; in a pipe every row is one line, nothing is cut."""
    # late: rich costs 40 ms, which `-q` and `-o json` need not pay
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 10_000, highlight=False, soft_wrap=False)
    shown = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold", show_edge=False)
    for position, (heading, _) in enumerate(columns):
        shown.add_column(heading, overflow="fold", no_wrap=position < len(columns) - 1)
    for row in rows:
        shown.add_row(*(plain(row[key]) for _, key in columns))
    console.print(shown)


def plain(value: Any) -> str:
    """A cell's text, safe from rich's markup."""
    # late: only tables need it
    from rich.markup import escape

    return escape(str(value))


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
