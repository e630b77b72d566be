"""Prints the coordinator's tables as Markdown: `python -m procs.coordinator.document > docs/coordinator.md`.

A test compares the file with this, so the document is the table.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from procs.coordinator import states
from procs.coordinator.states import Happening, Replacement, Supervision, Wish
from procs.coordinator.tables import REPLACEMENT, SUPERVISION, Step

_HEAD = """\
# The coordinator's state machine

Printed from `procs/coordinator/tables.py` by `python -m procs.coordinator.document`; a test keeps it so. Two small
machines stand on what the coordinator has heard. Every event is a state told again, so it may repeat and two may come
in either order; a row that changes nothing is left out here (the tables in the code are complete).

What the coordinator publishes follows from the facts and these two states: `role` (which certificate the node should
have), `remotes` (the managers it knows) and `node` (where it stands, in words).
"""


def document() -> str:
    """The whole of `docs/coordinator.md`."""
    return "\n".join(
        [
            _HEAD,
            "## Supervision of the manager\n",
            _meanings(Supervision),
            _events(Happening),
            _table(SUPERVISION),
            "## Replacement of the certificate\n",
            _meanings(Replacement),
            _events(Wish),
            _table(REPLACEMENT),
        ]
    )


def _meanings(enum: type[StrEnum]) -> str:
    notes = _notes(enum)
    rows = "".join(f"| {member} | {notes.get(member.name, '')} |\n" for member in enum)
    return f"| state | meaning |\n| --- | --- |\n{rows}"


def _events(enum: type[StrEnum]) -> str:
    notes = _notes(enum)
    explained = [f"*{member}*: {notes[member.name]}" for member in enum if member.name in notes]
    return "\n".join(explained) + "\n" if explained else ""


def _table(table: Mapping[tuple[Any, Any], Step]) -> str:
    lines = ["| state | event | next | does | why |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {state} | {event} | {step.state} | {', '.join(step.actions)} | {step.why} |"
        for (state, event), step in table.items()
        if step.state != state or step.actions
    ]
    return "\n".join(lines) + "\n"


def _notes(enum: type[StrEnum]) -> dict[str, str]:
    """The docstring under each member: Python itself does not keep them."""
    body = ast.parse(inspect.getsource(states)).body
    class_ = next(node for node in body if isinstance(node, ast.ClassDef) and node.name == enum.__name__)
    notes: dict[str, str] = {}
    name = ""
    for statement in class_.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            name = statement.targets[0].id
        elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and name:
            notes[name] = " ".join(str(statement.value.value).split())
    return notes


if __name__ == "__main__":
    sys.stdout.write(document())
