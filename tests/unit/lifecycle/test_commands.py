"""The contents page, exit codes, and what needs no running node."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from procs.cli import __main__ as cli
from procs.cli import footprint, unit
from procs.cli.exits import Exit, exit_for
from procs.cli.observed import last_error
from swarm import errors
from swarm.nodeconfig import NodeConfig, load_node_config, save_node_config
from swarm.paths import Paths


@pytest.fixture
def paths(short_dir: Path) -> Paths:
    return Paths(short_dir / "s", short_dir / "r")


@pytest.fixture
def run(paths: Paths, capsys, monkeypatch):
    def call(*words: str) -> tuple[int, str, str]:
        code = cli.run(["--state-dir", str(paths.state), "--runtime-dir", str(paths.runtime), *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_every_command_of_the_contents_page_exists() -> None:
    for name, entry in cli.COMMANDS.items():
        assert importlib.util.find_spec(entry.module), name
        result = CliRunner().invoke(cli.swarmvisor, [name, "--help"])
        assert result.exit_code == 0, (name, result.output)


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from procs.cli.__main__ import run; run(['--help']);"
        "print([m for m in ('grpc','rich','zmq','cryptography','google') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.BadInput("x"), Exit.USAGE),
        (errors.CorruptFile("f", "x"), Exit.FAILED),
        (errors.Unreachable("x"), Exit.UNREACHABLE),
        (errors.NoLeader("x"), Exit.NO_QUORUM),
        (errors.Refused("x"), Exit.REFUSED),
        (errors.Locked("x"), Exit.REFUSED),
        (errors.TimedOut("x"), Exit.TIMED_OUT),
        (errors.SwarmvisorError("x"), Exit.FAILED),
    ],
)
def test_exit_codes(error: errors.SwarmvisorError, code: Exit) -> None:
    assert exit_for(error) is code


def test_an_unexpected_error_is_one_line_and_no_traceback(run, monkeypatch) -> None:
    def bang(*_: object) -> None:
        raise RuntimeError("bang")

    monkeypatch.setattr("procs.cli.status.describe", bang)
    code, out, err = run("status")
    assert code == Exit.FAILED
    assert err.count("\n") == 1
    assert "bang" in err
    assert "Traceback" not in out + err


def test_unknown_commands_and_options_are_usage_errors(run) -> None:
    assert run("dance")[0] == Exit.USAGE
    assert run("status", "--nonsense")[0] == Exit.USAGE
    assert run("wait", "forever")[0] == Exit.USAGE


@pytest.mark.parametrize("command", [["up"], ["wait", "ready"], ["leave"], ["leave", "--force"]])
def test_without_a_node_there_is_nothing_to_do(run, command: list[str]) -> None:
    code, _, err = run(*command)
    assert code == Exit.REFUSED
    assert "`swarmvisor init`" in err
    assert "`swarmvisor join`" in err


def test_down_without_a_node_is_done_already(run, paths: Paths) -> None:
    code, out, _ = run("down")
    assert (code, out) == (Exit.DONE, "The node is already down.\n")
    assert not paths.state.exists()


def test_status_without_a_node(run) -> None:
    code, out, _ = run("status", "-o", "json")
    assert code == Exit.DONE
    node = json.loads(out)["node"]
    assert node["state"] == "uninitialized"
    assert "`swarmvisor join`" in node["cause"]


def test_init_without_start_writes_only_what_was_asked(run, paths: Paths) -> None:
    code, out, _ = run(
        "init",
        "--no-start",
        "--listen-addr",
        "127.0.0.1:0",
        "--hostname",
        "h",
        "--label",
        "a=b=c",
        "--availability",
        "drain",
    )
    assert code == Exit.DONE
    assert "up" in out
    config = load_node_config(paths.node_toml)
    assert config == NodeConfig(listen_addr="127.0.0.1:0", hostname="h", labels={"a": "b=c"}, availability="drain")
    assert paths.state.stat().st_mode & 0o777 == 0o700
    assert paths.node_toml.stat().st_mode & 0o777 == 0o600


def test_init_twice_is_refused(run, paths: Paths) -> None:
    assert run("init", "--no-start", "--listen-addr", "127.0.0.1:0")[0] == Exit.DONE
    before = paths.node_toml.read_bytes()
    code, _, err = run("init", "--no-start", "--hostname", "other")
    assert code == Exit.REFUSED
    assert "already" in err
    assert paths.node_toml.read_bytes() == before


@pytest.mark.parametrize("name", ["precious", "state.json", "manager", "certificates/swarm-node.key"])
def test_init_refuses_a_directory_with_something_in_it(run, paths: Paths, name: str) -> None:
    target = paths.state / name
    target.parent.mkdir(parents=True)
    target.write_text("x")
    code, _, err = run("init", "--no-start")
    assert code == Exit.REFUSED
    assert name in err
    assert not paths.node_toml.exists()


def test_init_honours_an_operators_root_key(run, paths: Paths) -> None:
    paths.certificates.mkdir(parents=True)
    paths.root_key.write_text("key")
    assert run("init", "--no-start", "--listen-addr", "127.0.0.1:0")[0] == Exit.DONE


def test_init_refuses_sockets_that_would_be_too_long(paths: Paths, capsys) -> None:
    long = paths.runtime / ("x" * 100)
    code = cli.run(["--state-dir", str(paths.state), "--runtime-dir", str(long), "init", "--no-start"])
    assert code == Exit.USAGE
    assert "--runtime-dir" in capsys.readouterr().err
    assert not paths.state.exists()


@pytest.mark.parametrize("words", [["--label", "novalue"], ["--listen-addr", "nowhere"], ["--availability", "lazy"]])
def test_init_refuses_bad_values_and_writes_nothing(run, paths: Paths, words: list[str]) -> None:
    assert run("init", "--no-start", *words)[0] == Exit.USAGE
    assert not paths.state.exists()


def test_init_refuses_a_port_in_use(run) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, _, err = run("init", "--no-start", "--listen-addr", address)
    assert code == Exit.REFUSED
    assert address in err


def test_a_corrupt_node_toml_is_named_and_left_alone(run, paths: Paths) -> None:
    paths.state.mkdir()
    paths.node_toml.write_text("hostname = 3\n")
    for command in (["up"], ["wait", "ready"]):
        code, _, err = run(*command)
        assert code == Exit.FAILED
        assert "node.toml" in err
    report = json.loads(run("status", "-o", "json")[1])
    assert any("node.toml" in text for text in report["trouble"])
    assert paths.node_toml.read_text() == "hostname = 3\n"


def test_leave_wipes_what_is_ours_and_nothing_else(run, paths: Paths) -> None:
    paths.state.mkdir()
    save_node_config(paths.node_toml, NodeConfig())
    (paths.state / "precious").write_text("x")
    for ours in ("manager/store.db", "manager.erased-1/x", "worker/agent.db", "tasks/t/spec"):
        (paths.state / ours).parent.mkdir(parents=True, exist_ok=True)
        (paths.state / ours).write_text("x")
    code, out, _ = run("leave", "--force")
    assert code == Exit.DONE
    assert "precious" in out
    assert [p.name for p in paths.state.iterdir()] == ["precious"]


def test_an_interrupted_leave_can_be_finished(run, paths: Paths) -> None:
    (paths.state / "manager").mkdir(parents=True)
    assert run("leave")[0] == Exit.REFUSED
    assert run("leave", "--force")[0] == Exit.DONE
    assert not paths.state.exists()


def test_node_toml_goes_first_so_that_nothing_starts_on_the_rest(paths: Paths) -> None:
    (paths.state / "manager").mkdir(parents=True)
    paths.node_toml.touch()
    assert footprint.left_overs(paths)[0] == paths.node_toml


def test_the_last_error_of_a_log_is_read_back(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text(
        'time=t level=error process=x msg="first"\n'
        'time=t level=error process=x msg="a \\"quoted\\" file: bad; mend it"\ntime=t level=info process=x msg=ended\n'
    )
    assert last_error(log) == 'a "quoted" file: bad; mend it'
    assert last_error(tmp_path / "absent.log") == ""


def test_the_unit_stops_only_supervisord_and_waits_for_it(paths: Paths) -> None:
    text = unit.render(paths, "/opt/swarmvisor")
    assert "ExecStart=/opt/swarmvisor up --foreground\n" in text
    assert "KillMode=process\n" in text
    assert f"SWARMVISOR_STATE_DIR={paths.state}" in text
    default = unit.render(Paths(Path("/var/lib/swarmvisor"), Path("/run/swarmvisor")), "x")
    assert "RuntimeDirectory=swarmvisor\n" in default


def test_version_in_json(run) -> None:
    code, out, _ = run("version", "-o", "json")
    assert code == Exit.DONE
    assert json.loads(out)["protocol"] == "docker.swarmkit.v1"
