"""What the README and the guides tell people to type exists, and defaults are those of the code."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import click
import pytest

from procs.cli.__main__ import swarmvisor
from swarm.nodeconfig import NodeConfig

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()
GUIDES = [ROOT / "README.md", ROOT / "docs" / "operations.md", ROOT / "docs" / "processes.md"]


def typed(text: str) -> set[str]:
    """Command lines of `swarmvisor` in code blocks and in backticks."""
    fenced = re.compile(r"^```\n(.*?)^```", re.DOTALL | re.MULTILINE)
    line = re.compile(r"^(?:\$ )?(?: *)((?:\.venv/bin/)?swarmvisor .*)$", re.MULTILINE)
    lines = [found for block in fenced.findall(text) for found in line.findall(block)]
    inline = re.findall(r"`((?:\.venv/bin/)?swarmvisor [a-z][^`]*)`", fenced.sub("", text))
    return {re.split(r"  +| > ", line)[0] for line in lines + inline}


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_every_command_that_is_shown_can_be_typed(guide: Path) -> None:
    found = typed(guide.read_text())
    assert found
    for line in found:
        words = shlex.split(line)[1:]
        command: click.Command = swarmvisor
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            sub = command.get_command(click.Context(command), words.pop(0))
            assert sub is not None, line
            command = sub
        own = words[: words.index("--")] if "--" in words else words
        known = {o for p in command.params for o in [*p.opts, *p.secondary_opts]} | {"--help", "-h"}
        assert {word for word in own if word.startswith("-")} <= known, line


def test_every_make_target_that_is_shown_exists() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make (\w+)", re.sub(r"`make up \| .*?`", "", README))) <= targets | {"and"}
    [listed] = re.findall(r"`make (\w+(?: \| \w+)+)`", README)
    assert set(listed.split(" | ")) <= targets


def test_the_fields_of_node_toml_and_their_defaults() -> None:
    part = README.split("## Configuration", 1)[1].split("\n## ", 1)[0]
    defaults = {field.name: field.default for field in dataclasses.fields(NodeConfig)}
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", part, re.MULTILINE)
    assert rows
    for name, default in rows:
        assert name in defaults
        if default.startswith("`"):
            assert default.strip("`") == str(defaults[name]).replace("True", "true").replace("False", "false")
