"""One record, one line."""

from __future__ import annotations

import io
import logging
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm import logs


@pytest.fixture
def out(monkeypatch):
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    monkeypatch.setattr(logs, "_identity", {"process": "", "node": ""})
    yield io.StringIO()
    root.handlers[:], _ = before[0], root.setLevel(before[1])


def test_a_line_carries_process_node_cause_and_message_in_order(out) -> None:
    log = logs.configure("agent", stream=out)
    logs.set_node_id("n1")
    logs.bind(logs.bind(log, cause="certificate#3"), task="t1").info("it is %s", "ready")
    line = out.getvalue()
    assert line.endswith('level=info process=agent node=n1 cause=certificate#3 task=t1 msg="it is ready"\n')


def test_a_traceback_follows_indented(out) -> None:
    log = logs.configure("agent", stream=out)
    try:
        raise ValueError("no")
    except ValueError:
        log.exception("failed")
    first, *rest = out.getvalue().splitlines()
    assert first.endswith("msg=failed")
    assert rest
    assert all(line.startswith("    ") for line in rest)


def test_level_is_obeyed(out) -> None:
    log = logs.configure("agent", level="warning", stream=out)
    log.info("quiet")
    log.warning("loud")
    assert "quiet" not in out.getvalue()
    assert "loud" in out.getvalue()


@given(st.text())
def test_any_text_stays_on_one_line(text: str) -> None:
    quoted = logs.quote(text)
    assert len(quoted.splitlines()) == 1
    assert quoted.isprintable()


@given(st.text(st.characters(whitelist_categories=("L", "N", "Zs"), whitelist_characters="\"\\='"), min_size=1))
def test_quoted_text_can_be_read_back(text: str) -> None:
    quoted = logs.quote(text)
    if quoted.startswith('"'):
        assert quoted[1:-1].replace('\\"', '"').replace("\\\\", "\\") == text or "\\u" in quoted or "\\\\" in quoted
    else:
        assert quoted == text


def test_plain_values_stay_bare() -> None:
    assert logs.quote("agent-1/2") == "agent-1/2"
    assert shlex.split(logs.quote("two words")) == ["two words"]
    assert logs.quote("") == '""'
