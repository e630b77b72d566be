"""docs/processes.md says who owns and hears which topic, and how processes end, as the code has it."""

from __future__ import annotations

import re
from pathlib import Path

from ipc.topics import FAMILIES, TOPICS
from procs.agent.agent import HEARD as AGENT_HEARS
from procs.coordinator.shell import SUBSCRIPTIONS as COORDINATOR_HEARS
from procs.renewer.__main__ import HEARD as RENEWER_HEARS
from swarm.exits import INTENDED, ExitCode

ROOT = Path(__file__).parents[3]
DOCUMENT = (ROOT / "docs" / "processes.md").read_text()

HEARS = {
    "coordinator": set(COORDINATOR_HEARS),
    "renewer": set(RENEWER_HEARS),
    "agent": set(AGENT_HEARS),
    "manager": {"certificate"},
}


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without its first two lines."""
    part = re.split(r"^## ", DOCUMENT.split(f"## {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_topic_is_documented_with_its_owner_and_type() -> None:
    documented = {(topic.strip("`"), owner, kind.strip("`")) for topic, owner, kind, *_ in rows("Topics")}
    families = {f"{prefix}*": entry for prefix, entry in FAMILIES.items()}
    assert documented == {(name, owner, kind.__name__) for name, (owner, kind) in {**TOPICS, **families}.items()}


def test_every_topic_is_documented_with_the_processes_that_subscribe_to_it() -> None:
    documented = {topic.strip("`"): set(heard.split(", ")) for topic, _, _, heard, _ in rows("Topics")}
    assert documented == {topic: {p for p, heard in HEARS.items() if topic in heard} for topic in documented}


def test_the_manager_subscribes_to_nothing_else() -> None:
    source = (ROOT / "procs" / "manager" / "manager.py").read_text()
    assert re.findall(r'AsyncBus\([^,]+, "manager", \(([^)]*)\)\)', source) == ['"certificate",']


def test_exit_codes_are_the_enums() -> None:
    documented = {(int(code), name.strip("`"), intended) for code, name, intended, _ in rows("How a process ends")}
    assert documented == {(int(c), c.name, "yes" if c in INTENDED else "no") for c in ExitCode}
