"""What a table looks like on a narrow terminal, on a wide one and in a pipe."""

from __future__ import annotations

import dataclasses

import pytest

from ipc.topics import TOPICS
from procs.cli.debug import GIST, gist
from procs.cli.output import Column, layout, plain
from procs.cli.rows import TASK_COLUMNS
from procs.cli.status import last_end

COLUMNS = (Column("NAME", "name"), Column("WHY", "why"))
CUT = (Column("NAME", "name"), Column("WHY", "why", cut=True))
LONG = "no suitable node (insufficient resources on 1 node)"
ROWS = [{"name": "web.1", "why": LONG}, {"name": "db.1", "why": ""}]


def test_in_a_pipe_every_row_is_one_whole_line() -> None:
    assert layout(ROWS, COLUMNS) == ["NAME    WHY", f"web.1   {LONG}", "db.1"]
    assert layout(ROWS, CUT) == layout(ROWS, COLUMNS)


def test_a_long_last_cell_is_wrapped_under_its_heading() -> None:
    assert layout(ROWS, COLUMNS, 42) == [
        "NAME    WHY",
        "web.1   no suitable node (insufficient",
        "        resources on 1 node)",
        "db.1",
    ]


def test_without_room_beside_the_others_it_stands_beneath_its_row_and_nothing_is_lost() -> None:
    lines = layout(ROWS, COLUMNS, 30)
    assert lines[:2] == ["NAME", "web.1"]
    assert " ".join(line.strip() for line in lines[2:-1]) == LONG
    assert lines[-1] == "db.1"


@pytest.mark.parametrize("width", [1, 5, 10, 20, 30, 42, 60, 80])
def test_only_a_column_that_may_be_cut_is_cut(width: int) -> None:
    assert LONG in " ".join(" ".join(layout(ROWS, COLUMNS, width)).split())
    cut = layout(ROWS, CUT, width)
    assert len(cut) == 3
    assert cut[1].endswith("…" if width < len(LONG) + 8 else ")")


def test_wide_characters_count_twice() -> None:
    lines = layout([{"name": "日本", "why": "x"}], COLUMNS)
    assert lines == ["NAME   WHY", "日本   x"]


def test_a_cell_cannot_give_orders_to_the_terminal() -> None:
    assert plain("a\x1b[2Jb\nc\td\x9b") == "a [2Jb c d "


def test_an_empty_listing_is_its_headings() -> None:
    assert layout([], TASK_COLUMNS, 80) == ["ID   NAME   NODE   DESIRED STATE   CURRENT STATE   ERROR"]


def test_debug_ps_has_words_for_every_topic() -> None:
    for topic, (_, body) in TOPICS.items():
        assert set(GIST[topic]) <= {f.name for f in dataclasses.fields(body)}
    assert set(GIST) == set(TOPICS)
    assert gist("manager", {"state": "ready", "leader": True, "why": ""}) == "state=ready leader"
    known = [{"node_id": "a", "addr": "h:1", "weight": 5}]
    assert gist("remotes", {"managers": known}) == "h:1 (weight 5)"


@pytest.mark.parametrize(
    ("signal", "exit_code", "expected", "words"),
    [
        (9, -1, False, "Killed"),
        (0, -1, True, ""),
        (0, 0, True, "exit 0"),
        (0, 1, False, "exit 1 (unexpected)"),
        (40, -1, False, "Real-time signal 6"),
    ],
)
def test_a_process_end_in_words(signal: int, exit_code: int, expected: bool, words: str) -> None:
    assert last_end({"signal": signal, "exit_code": exit_code, "expected": expected}) == words
