"""One line on a terminal that says what is being waited for; nothing at all in a pipe."""

from __future__ import annotations

import shutil
import sys
from types import TracebackType
from typing import Self

import click


class Progress:
    """Call it with each new sentence; the line is wiped at the end."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()

    def __call__(self, text: str) -> None:
        if self._shown:
            # A line longer than the terminal would wrap, and only its last part be wiped.
            room = max(20, shutil.get_terminal_size().columns - 3)
            click.echo(f"\r\x1b[K{text[:room]} …", err=True, nl=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._shown:
            click.echo("\r\x1b[K", err=True, nl=False)
