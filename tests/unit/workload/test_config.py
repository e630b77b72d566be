"""What a spec and an id must be before anything is forked, and the file that supervisord reads."""

from __future__ import annotations

import configparser
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from supervisor.options import ServerOptions

from procs.workload.conf import render
from procs.workload.config import check_id, check_spec
from procs.workload.task import printable
from swarm.errors import BadInput
from swarm.identity import new_id
from swarm.paths import Paths
from swarm.workload import TaskSpec

ID = "abcdefghijklmnopqrstuvwx1"
GOOD = TaskSpec(task_id=ID, argv=["/bin/true"])


@pytest.mark.parametrize(
    "bad", ["", ".", "..", "a/b", "A" * 25, "a" * 24, "a" * 26, "a" * 24 + "\n", "a" * 25 + "\n", "é" * 25, None, 7]
)
def test_what_is_no_id_is_refused(bad: object) -> None:
    with pytest.raises(BadInput, match="not a task id"):
        check_id(bad)


def test_swarm_ids_are_ids() -> None:
    assert all(check_id(task_id) == task_id for task_id in (new_id() for _ in range(100)))


def test_a_good_spec_passes_unchanged() -> None:
    full = replace(
        GOOD, env={"A": ""}, cwd="/", uid=1, gid=0, groups=[5], rlimits={"nofile": [-1, 10]}, wrapper=["setpriv"]
    )
    assert check_spec(full, ID) is full


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("task_id", "another0task0than0the0one"),
        ("argv", []),
        ("argv", [""]),
        ("argv", "ls"),
        ("argv", ["ls", 1]),
        ("wrapper", [None]),
        ("env", {"A": 1}),
        ("env", ["A=1"]),
        ("cwd", "relative"),
        ("cwd", None),
        ("uid", "root"),
        ("uid", -2),
        ("uid", (1 << 32) - 1),
        ("uid", 1),  # without a gid the task would keep ours
        ("groups", [-1]),
        ("umask", 0o1000),
        ("stop_signal", True),
        ("stop_signal", 0),
        ("stop_signal", 999),
        ("stop_grace", -1.0),
        ("stop_grace", "10s"),
        ("memory_limit", -1),
        ("memory_limit", 1.5),
        ("nano_cpus_limit", "1"),
        ("pids_limit", None),
        ("oom_score_adj", 1001),
        ("log_max_bytes", -5),
        ("rlimits", {"nofile": [1]}),
        ("rlimits", {"nofile": [1, "2"]}),
        ("rlimits", {"no_such": [1, 1]}),
        ("rlimits", [1]),
    ],
)
def test_a_bad_field_is_named(field: str, value: object) -> None:
    with pytest.raises(BadInput) as refused:
        check_spec(replace(GOOD, **{field: value}), ID)
    assert {"rlimits": "rlimit"}.get(field, "gid" if field == "uid" and value == 1 else field) in refused.value.message


@pytest.mark.parametrize("root", [True, False])
def test_the_configuration_is_read_back_by_supervisor_as_it_was_meant(tmp_path: Path, root: bool) -> None:
    paths = Paths(state=tmp_path / "100%s state%(x)d", runtime=tmp_path / "run;time")
    for directory in (paths.state, paths.logs, paths.runtime):
        directory.mkdir()
    paths.workload_conf.write_text(render(paths, root=root))
    options = ServerOptions()
    options.configfile = str(paths.workload_conf)
    section = options.read_config(str(paths.workload_conf))
    assert section.logfile == str(paths.logs / "workload-supervisord.log")
    assert section.nodaemon
    assert [(group.name, group.process_configs) for group in section.process_group_configs] == [("tasks", [])]
    assert section.server_configs[0]["file"] == str(paths.workload_socket)
    assert section.server_configs[0]["chmod"] == 0o700
    plugin = {name: extras for name, _, extras in section.rpcinterface_factories}
    assert plugin["workload"] == {"state": str(paths.state), "runtime": str(paths.runtime)}
    assert section.user == ("root" if root else None)


@pytest.mark.parametrize("name", ["new\nline", "comment ;here", "tab\there", "trailing "])
def test_a_path_that_the_configuration_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match="cannot hold this path"):
        render(Paths(state=Path("/tmp") / name, runtime=Path("/tmp/r")), root=False)


@given(st.text())
def test_printable_text_has_no_control_character_and_survives_xml(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable() or not shown
    shown.encode()
    if text.isprintable():
        assert shown == text


def test_the_template_is_plain_ini() -> None:
    parser = configparser.RawConfigParser()
    parser.read_string(render(Paths(state=Path("/s"), runtime=Path("/r")), root=True))
    assert parser.get("group:tasks", "programs") == ""
