"""The table of SwarmKit's scenarios names tests that there are, and leaves no scenario without an answer."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "scenarios.md").read_text()
SECTIONS = {
    "10.1": 13, "10.2": 24, "10.3": 17, "10.4": 18, "10.5": 16, "10.6": 16,
}  # fmt: skip
"""Rows of each part: none is to get lost."""
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def rows() -> list[tuple[str, list[str]]]:
    """(section, cells) of every row."""
    found, section = [], ""
    for line in TEXT.splitlines():
        if line.startswith("## "):
            section = line.split()[1]
        elif line.startswith("| ") and not line.startswith(("| ---", "| SwarmKit |")):
            found.append((section, [cell.strip() for cell in line.strip("|").split(" | ")]))
    return found


ROWS = rows()


@cache
def functions_of(path: str) -> frozenset[str]:
    """Names of the test functions in a file."""
    tree = ast.parse((ROOT / path).read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_every_part_of_the_reference_is_there() -> None:
    assert {name: sum(section == name for section, _ in ROWS) for name in SECTIONS} == SECTIONS
    names = [cells[0] for _, cells in ROWS]
    assert len(set(names)) == len(names)


def test_a_scenario_has_tests_that_exist_or_a_sentence_that_says_why_not() -> None:
    for _, (name, shows, ours) in ROWS:
        assert shows, name
        named = NAMED.findall(ours)
        said = NAMED.sub("", ours).replace("<br>", "")
        assert "tests/" not in said, f"{name}: a test that is not written as `path::test_name`"
        assert named or re.fullmatch(r"[A-Z].{20,}\.", said), f"{name}: neither a test nor a sentence"
        for path, function in named:
            assert function in functions_of(path), f"{name}: {path} has no {function}"
