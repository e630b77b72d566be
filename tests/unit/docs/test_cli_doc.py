"""docs/cli.md says what the command can do: all of it, and nothing that it cannot."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from ipc import topics
from ipc.envelope import Value
from procs.cli import status, version
from procs.cli.__main__ import swarmvisor
from procs.cli.debug import value_row
from procs.cli.exits import Exit
from procs.cli.observed import View
from procs.cli.rows import node_row, service_row, task_row
from swarm.api import objects_pb2
from swarm.paths import Paths

DOCUMENT = Path(__file__).parents[3] / "docs" / "cli.md"

MAPS = {"labels", "engine_labels", "body"}
"""Keys whose values have keys of the user's, or of a topic's, own."""


def sections() -> dict[str, str]:
    """The document's parts by heading."""
    parts = re.split(r"^#+ (.*)$", DOCUMENT.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def first_cells(text: str) -> list[str]:
    """What stands in backticks in the first column of a part's tables."""
    return re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            sub = command.get_command(context, name)
            assert sub is not None
            yield from commands(sub, f"{path} {name}")
    else:
        yield path, command


def test_every_command_has_a_part_and_every_part_a_command() -> None:
    documented = {heading.strip("`") for heading in sections() if heading.startswith("`swarmvisor")}
    groups = {"swarmvisor debug", "swarmvisor node", "swarmvisor service", "swarmvisor swarm", "swarmvisor task"}
    assert documented - groups == {path for path, _ in commands(swarmvisor, "swarmvisor")}


@pytest.mark.parametrize(("path", "command"), [("", swarmvisor), *commands(swarmvisor, "swarmvisor")])
def test_every_option_is_documented_and_every_documented_one_exists(path: str, command: click.Command) -> None:
    part = sections()[f"`{path}`" if path else "The command"]
    documented = {word for cell in first_cells(part) for word in re.findall(r"(?<![\w-])--?[a-z][\w-]*", cell)}
    assert documented == {
        o for p in command.params if isinstance(p, click.Option) for o in [*p.opts, *p.secondary_opts]
    }


def test_exit_codes_are_the_enums() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", sections()["Exit codes"], re.MULTILINE)
    assert {(int(code), name) for code, name in rows} == {(int(code), code.name) for code in Exit}


def keys(value: Any, prefix: str = "") -> set[str]:
    """The names of everything in a JSON value: `a.b` in objects, `a[].b` in lists of objects."""
    found: set[str] = set()
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, dict) and key not in MAPS:
            found |= keys(inner, f"{name}.")
        elif isinstance(inner, list) and inner and isinstance(inner[0], dict):
            found |= keys(inner[0], f"{name}[].")
        else:
            found.add(name)
    return found


def full_status(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A report in which nothing is absent."""
    manager = topics.ManagerAddress("n", "h:1")
    view = View(
        supervisor_pid=1,
        workload_pid=2,
        processes={"agent": topics.Process("agent", "RUNNING")},
        bodies={
            "node": topics.Node("ready"),
            "certificate": topics.Certificate("valid"),
            "manager": topics.Manager("ready"),
            "agent": topics.Agent("ready"),
            "remotes": topics.Remotes((manager,)),
        },
    )
    monkeypatch.setattr(status, "look", lambda _paths: view)
    return status.describe(Paths(tmp_path, tmp_path))


def test_every_key_of_status_is_documented(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    documented = set(first_cells(sections()["JSON of `status`"]))
    assert documented - {"manager", "agent"} == keys(full_status(monkeypatch, tmp_path))
    assert {"manager", "agent"} <= documented


def test_with_everything_down_status_has_no_other_keys(tmp_path: Path) -> None:
    down = status.describe(Paths(tmp_path / "s", tmp_path / "r"))
    documented = set(first_cells(sections()["JSON of `status`"]))
    assert keys(down) - {"managers", "processes"} <= documented
    assert (down["manager"], down["agent"]) == (None, None)


@pytest.mark.parametrize(
    ("listing", "row"),
    [
        ("`node ls`", node_row(objects_pb2.Node())),
        ("`service ls`", service_row(objects_pb2.Service(), 0, 0)),
        ("`node ps`, `service ps` and `task ls`", task_row(objects_pb2.Task(), {})),
        (
            "`debug ps`",
            value_row(Value(topic="node", proc="c", pid=1, epoch=1, seq=1, at=1, cause="", body=topics.Node("ready"))),
        ),
    ],
)
def test_every_key_of_a_listing_is_documented(listing: str, row: dict[str, Any]) -> None:
    assert set(first_cells(sections()[f"JSON of {listing}"])) == keys(row)


def test_every_key_of_version_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    version.command.main(["-o", "table"], standalone_mode=False)
    printed = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert set(first_cells(sections()["JSON of `version`"])) == printed
