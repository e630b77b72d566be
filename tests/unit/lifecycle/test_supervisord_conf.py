"""The rendered configuration, read back by supervisor's own parser."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from supervisor.options import ServerOptions

from procs.cli import supervisord_conf
from swarm.errors import BadInput
from swarm.exits import ExitCode
from swarm.paths import Paths

REPOSITORY = Path(__file__).parents[3]


def parsed(directory: Path, text: str) -> ServerOptions:
    conf = directory / "supervisord.conf"
    conf.write_text(text)
    options = ServerOptions()
    options.realize(["-c", str(conf)])
    return options


def made(base: Path) -> Paths:
    paths = Paths(base / "state", base / "run")
    for directory in (paths.logs, paths.bus):
        directory.mkdir(parents=True)
    return paths


def test_the_checked_in_file_is_the_rendering_for_the_default_directories() -> None:
    assert (REPOSITORY / "supervisord.conf").read_text() == supervisord_conf.checked_in()


@pytest.mark.parametrize("name", ["plain", "a b", "semi;colon", "ha#sh", "$dollar", "ünïcode"])
def test_supervisor_reads_back_what_was_meant(tmp_path: Path, name: str) -> None:
    paths = made(tmp_path / name)
    interpreter = str(tmp_path / name / "bin" / "python")
    options = parsed(tmp_path, supervisord_conf.render(paths, supervisord_conf.fit(interpreter), root=False))
    assert options.nodaemon
    assert options.pidfile == str(paths.supervisor_pid)
    assert options.server_configs[0]["file"] == str(paths.supervisor_socket)
    assert options.server_configs[0]["chmod"] == 0o700
    plug_ins = {name: config for name, _, config in options.rpcinterface_factories}
    assert plug_ins["swarmvisor"] == {"bus": str(paths.bus)}
    programs = {group.name: group.process_configs[0] for group in options.process_group_configs}
    for program in supervisord_conf.PROGRAMS:
        config = programs[program.name]
        import shlex

        assert shlex.split(config.command)[:4] == [interpreter, "-P", "-m", f"procs.{program.name}"]
        assert shlex.split(config.command)[4:] == ["--node", os.uname().nodename]
        assert config.stdout_logfile == str(paths.logs / f"{program.name}.log")
        assert config.environment["SWARMVISOR_STATE_DIR"] == str(paths.state)
        assert config.environment["SWARMVISOR_RUNTIME_DIR"] == str(paths.runtime)
        assert config.redirect_stderr
        assert config.stdout_logfile_maxbytes > 0


def test_programs_stop_in_the_order_of_the_design(tmp_path: Path) -> None:
    paths = made(tmp_path)
    options = parsed(tmp_path, supervisord_conf.render(paths, "/python", root=False))
    groups = sorted(options.process_group_configs, reverse=True)  # as supervisord stops them
    assert [group.name for group in groups] == ["agent", "workload", "manager", "renewer", "coordinator"]


def test_intended_ends_are_not_answered_with_a_restart(tmp_path: Path) -> None:
    paths = made(tmp_path)
    options = parsed(tmp_path, supervisord_conf.render(paths, "/python", root=False))
    for group in options.process_group_configs:
        codes = set(group.process_configs[0].exitcodes)
        assert {ExitCode.CONFIG, ExitCode.REMOVED, ExitCode.ROLE_LOST, ExitCode.USAGE} <= codes
        assert not codes & {ExitCode.FAILED, ExitCode.TWIN, ExitCode.ORPHANED}
        # a coordinator, renewer or agent that somebody killed with SIGTERM comes back
        assert (ExitCode.DONE in codes) == (group.name in ("manager", "workload"))


def test_only_what_must_start_by_itself_does(tmp_path: Path) -> None:
    options = parsed(tmp_path, supervisord_conf.render(made(tmp_path), "/python", root=False))
    automatic = {g.name for g in options.process_group_configs if g.process_configs[0].autostart}
    assert automatic == {"coordinator", "renewer", "agent"}


@pytest.mark.parametrize("name", ['quo"te', "new\nline", "back\\slash", "comment ; here", "apo'strophe", "50%"])
def test_directories_that_cannot_be_carried_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match="cannot stand"):
        supervisord_conf.render(Paths(tmp_path / name, tmp_path / "r"), "/python", root=False)
