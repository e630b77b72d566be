"""The plug-in in a real supervisord: what it says of programs, and that it leaves supervisord as sound as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from supervisor.xmlrpc import SupervisorTransport

from ipc.bus import Bus, Value
from ipc.topics import Process

DEADLINE = 20.0
ROOT = Path(__file__).parents[2]

CONF = """\
[supervisord]
nodaemon=true
logfile={directory}/supervisord.log
pidfile={directory}/supervisord.pid
childlogdir={directory}
[unix_http_server]
file={directory}/s.sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[rpcinterface:swarmvisor]
supervisor.rpcinterface_factory = ipc.supervisor_plugin:make_node_interface
{bus}
"""


class Supervisord:
    """A real supervisord in a short directory, with a reader of its bus."""

    def __init__(self, directory: Path, *programs: str, bus: str | None = None) -> None:
        self.directory = directory
        self.bus_directory = directory / "bus"
        conf = CONF.format(directory=directory, bus=f"bus={self.bus_directory}" if bus is None else bus)
        (directory / "s.conf").write_text(conf + "\n".join(programs))
        self.reader = Bus(self.bus_directory, None, ["process.*"])
        self.seen: list[Value] = []
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        with (self.directory / "out").open("ab") as out:
            command = [sys.executable, "-m", "supervisor.supervisord", "-n", "-c", str(self.directory / "s.conf")]
            self.process = subprocess.Popen(command, stdout=out, stderr=out, cwd=ROOT)
        return self.process

    def rpc(self, method: str, *args: Any) -> Any:
        transport = SupervisorTransport(None, None, f"unix://{self.directory}/s.sock")
        with xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport) as proxy:
            result = getattr(proxy, method)(*args)
        transport.close()
        return result

    def until(self, what: Callable[[list[Value]], Any], timeout: float = DEADLINE) -> Any:
        """Listen until `what(values seen so far)` is true; its result."""
        deadline = time.monotonic() + timeout
        while not (result := what(self.seen)):
            left = deadline - time.monotonic()
            assert left > 0, f"not seen: {[value.body for value in self.seen]}\n{self.log()}"
            self.seen += self.reader.poll(left)
        return result

    def until_body(self, name: str, predicate: Callable[[Process], bool]) -> Process:
        """The first body of `process.<name>` seen that `predicate` accepts."""
        result = self.until(
            lambda seen: [v.body for v in seen if v.topic == f"process.{name}" and predicate(v.body)][:1]
        )
        body = result[0]
        assert isinstance(body, Process)
        return body

    def until_executed(self, pid: int, command: str) -> None:
        """Wait until the child is no longer supervisord's fork."""
        deadline = time.monotonic() + DEADLINE
        while Path(f"/proc/{pid}/comm").read_text() != f"{command}\n":
            assert time.monotonic() < deadline
            self.seen += self.reader.poll(0.01)

    def log(self) -> str:
        return "".join(
            path.read_text() for name in ("supervisord.log", "out") if (path := self.directory / name).exists()
        )

    def close(self) -> None:
        self.reader.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def program(name: str, command: str, **settings: object) -> str:
    lines = [f"[program:{name}]", f"command={command}", *(f"{key}={value}" for key, value in settings.items())]
    return "\n".join(lines)


SLEEPER = program("sleeper", "/bin/sleep 600", startsecs=0)


@pytest.fixture
def start(short_dir: Path) -> Iterator[Callable[..., Supervisord]]:
    started: list[Supervisord] = []

    def start(*programs: str, bus: str | None = None) -> Supervisord:
        supervisord = Supervisord(short_dir, *programs, bus=bus)
        started.append(supervisord)
        return supervisord

    yield start
    for supervisord in started:
        supervisord.close()


def descriptors(pid: int) -> dict[int, str]:
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            continue  # closed between listing and reading
    return found


def test_programs_are_announced_with_state_and_pid(start: Callable[..., Supervisord]) -> None:
    supervisord = start(SLEEPER, program("idle", "/bin/sleep 600", autostart="false"))
    running = supervisord.until_body("sleeper", lambda body: body.state == "RUNNING")
    supervisord.until_executed(running.pid, "sleep")
    assert supervisord.until_body("idle", lambda body: True) == Process("idle", "STOPPED")
    supervisord.rpc("supervisor.startProcess", "idle", False)
    supervisord.until_body("idle", lambda body: body.state == "STARTING" and body.pid > 0)
    supervisord.rpc("supervisor.stopProcess", "sleeper", False)
    stopped = supervisord.until_body("sleeper", lambda body: body.state == "STOPPED")
    assert (stopped.pid, stopped.signal, stopped.exit_code, stopped.expected) == (0, signal.SIGTERM, -1, True)


def test_a_reader_that_comes_late_gets_the_last_states(start: Callable[..., Supervisord]) -> None:
    supervisord = start(SLEEPER)
    supervisord.until_body("sleeper", lambda body: body.state == "RUNNING")
    with Bus(supervisord.bus_directory, None, ["process.sleeper"]) as late:
        [value] = late.poll(DEADLINE)
    assert value.body.state == "RUNNING"
    assert value.pid == supervisord.process.pid


def test_exit_codes_and_whether_they_were_intended(start: Callable[..., Supervisord]) -> None:
    supervisord = start(
        program("bad", "/bin/sh -c 'sleep 0.2; exit 7'", startsecs=0, autorestart="false"),
        program("good", "/bin/sh -c 'sleep 0.2; exit 80'", startsecs=0, autorestart="unexpected", exitcodes="0,80"),
    )
    bad = supervisord.until_body("bad", lambda body: body.state == "EXITED")
    assert (bad.exit_code, bad.signal, bad.expected, bad.pid, bad.next_restart_at) == (7, 0, False, 0, 0)
    good = supervisord.until_body("good", lambda body: body.state == "EXITED")
    assert (good.exit_code, good.signal, good.expected, good.next_restart_at) == (80, 0, True, 0)


def test_an_intended_exit_counts_as_such_however_early(start: Callable[..., Supervisord]) -> None:
    supervisord = start(
        program("early", "/bin/sh -c 'exit 78'", startsecs=5, startretries=1000, autorestart="unexpected", exitcodes=78)
    )
    early = supervisord.until_body("early", lambda body: body.exit_code == 78)
    assert (early.state, early.expected) == ("RUNNING", True) or early.state == "EXITED"
    supervisord.until_body("early", lambda body: body.state == "EXITED" and body.expected and not body.next_restart_at)
    assert not [v for v in supervisord.seen if v.body.state == "BACKOFF"]


def test_the_signal_that_killed_a_program_is_said_and_it_is_back_at_once(start: Callable[..., Supervisord]) -> None:
    supervisord = start(SLEEPER)
    first = supervisord.until_body("sleeper", lambda body: body.state == "RUNNING")
    killed_at = time.monotonic()
    os.kill(first.pid, signal.SIGKILL)
    again = supervisord.until_body("sleeper", lambda body: body.pid not in (0, first.pid))
    assert time.monotonic() - killed_at < 0.9, "the loop slept its second"
    assert (again.exit_code, again.signal, again.expected) == (-1, signal.SIGKILL, False)


def test_a_program_that_is_stopped_before_it_was_even_executed_need_not_be_killed(
    start: Callable[..., Supervisord],
) -> None:
    supervisord = start(program("sleeper", "/bin/sleep 600", startsecs=0, autostart="false", stopwaitsecs=2))
    supervisord.until_body("sleeper", lambda body: body.state == "STOPPED")
    for _ in range(8):
        supervisord.seen.clear()
        supervisord.rpc("supervisor.startProcess", "sleeper", False)
        supervisord.rpc("supervisor.stopProcess", "sleeper", True)
        stopped = supervisord.until_body("sleeper", lambda body: body.state == "STOPPED" and body.signal != 0)
        assert stopped.signal == signal.SIGTERM


def test_a_program_that_dies_soon_respawns_without_the_loops_second(start: Callable[..., Supervisord]) -> None:
    supervisord = start(program("flash", "/bin/sleep 0.1", startsecs=0, autorestart="true"))

    def pids(seen: list[Value]) -> list[int]:
        return list(dict.fromkeys(v.body.pid for v in seen if v.body.pid))

    supervisord.until(lambda seen: len(pids(seen)) >= 2)
    before = time.monotonic()
    supervisord.until(lambda seen: len(pids(seen)) >= 10)
    # Eight lives of 0.1 s; with supervisor's own loop each takes at least a second.
    assert time.monotonic() - before < 6.0


def test_back_off_never_ends_in_fatal(start: Callable[..., Supervisord]) -> None:
    # Supervisor alone turns this FATAL at the second failure.
    supervisord = start(program("crash", "/bin/sh -c 'exit 1'", startsecs=1, startretries=1))

    def failures(seen: list[Value]) -> list[Process]:
        return [v.body for v in seen if v.body.state == "BACKOFF"]

    supervisord.until(lambda seen: len(failures(seen)) >= 4)
    for body in failures(supervisord.seen):
        assert (body.exit_code, body.expected) == (1, False)
        assert 0 <= body.next_restart_at - time.time() + DEADLINE <= DEADLINE + 5
    assert "FATAL" not in {v.body.state for v in supervisord.seen}
    assert "FATAL" not in supervisord.log()


def test_a_command_that_does_not_exist_is_tried_again(start: Callable[..., Supervisord]) -> None:
    supervisord = start(program("absent", "/nonexistent/command", startsecs=1, startretries=1000))
    body = supervisord.until_body("absent", lambda body: body.state == "BACKOFF")
    assert (body.pid, body.exit_code, body.signal) == (0, -1, 0)
    assert body.next_restart_at > 0


def test_reload_keeps_supervisord_and_its_bus_alive(start: Callable[..., Supervisord]) -> None:
    supervisord = start(SLEEPER)
    known = supervisord.until(lambda seen: [v for v in seen if v.body.state == "RUNNING"])[-1]
    before = None
    for _ in range(3):
        epoch = known.epoch
        supervisord.rpc("supervisor.restart")
        known = supervisord.until(
            lambda seen, epoch=epoch: [v for v in seen if v.epoch > epoch and v.body.state == "RUNNING"]
        )[-1]
        assert known.pid == supervisord.process.pid
        assert supervisord.process.poll() is None
        now = len(descriptors(supervisord.process.pid))
        assert before is None or now <= before, descriptors(supervisord.process.pid)
        before = now
    assert supervisord.rpc("swarmvisor.getBusCounters")["published"] >= 2
    assert "plug-in failed" not in supervisord.log()


def test_children_hold_no_descriptor_and_know_their_supervisor(start: Callable[..., Supervisord]) -> None:
    supervisord = start(SLEEPER)
    body = supervisord.until_body("sleeper", lambda body: body.state == "RUNNING")
    os.kill(body.pid, signal.SIGKILL)
    body = supervisord.until_body("sleeper", lambda again: again.state == "RUNNING" and again.pid != body.pid)
    supervisord.until_executed(body.pid, "sleep")
    assert set(descriptors(body.pid)) == {0, 1, 2}
    environment = Path(f"/proc/{body.pid}/environ").read_bytes().split(b"\0")
    assert b"SWARMVISOR_SUPERVISOR_PID=%d" % supervisord.process.pid in environment


def test_a_killed_supervisord_starts_again_on_the_stale_socket(start: Callable[..., Supervisord]) -> None:
    supervisord = start(program("short", "/bin/sleep 2", startsecs=0, autorestart="false"))
    old = supervisord.until(lambda seen: [v for v in seen if v.body.state == "RUNNING"])[-1]
    supervisord.process.kill()
    supervisord.process.wait()
    assert (supervisord.bus_directory / "supervisor.sock").exists()
    supervisord.start()
    new = supervisord.until(lambda seen: [v for v in seen if v.epoch > old.epoch and v.body.state == "RUNNING"])[-1]
    assert new.pid == supervisord.process.pid != old.pid


def test_a_clean_end_leaves_no_socket(start: Callable[..., Supervisord]) -> None:
    supervisord = start(SLEEPER, program("crash", "/bin/sh -c 'exit 1'", startsecs=1, startretries=1000))
    supervisord.until_body("sleeper", lambda body: body.state == "RUNNING")
    supervisord.until_body("crash", lambda body: body.state == "BACKOFF")
    assert (supervisord.bus_directory / "supervisor.sock").stat().st_mode & 0o777 == 0o600
    assert supervisord.bus_directory.stat().st_mode & 0o777 == 0o700
    supervisord.process.terminate()
    assert supervisord.process.wait(DEADLINE) == 0
    assert list(supervisord.bus_directory.iterdir()) == []
    assert "plug-in failed" not in supervisord.log()
    supervisord.seen += supervisord.reader.poll(0)
    assert "FATAL" not in {v.body.state for v in supervisord.seen}


def test_a_removed_group_is_gone_and_an_added_one_comes(start: Callable[..., Supervisord]) -> None:
    supervisord = start(SLEEPER, program("idle", "/bin/sleep 600", autostart="false"))
    supervisord.until_body("idle", lambda body: body.state == "STOPPED")
    supervisord.rpc("supervisor.removeProcessGroup", "idle")
    deadline = time.monotonic() + DEADLINE
    while supervisord.reader.last("process.idle") is not None:
        assert time.monotonic() < deadline
        supervisord.reader.poll(0.05)
    supervisord.seen.clear()
    supervisord.rpc("supervisor.addProcessGroup", "idle")
    supervisord.until_body("idle", lambda body: body.state == "STOPPED")


def test_500_readers_in_a_row_do_not_stall_the_loop(start: Callable[..., Supervisord]) -> None:
    supervisord = start(*(program(f"p{n}", "/bin/sleep 600", autostart="false") for n in range(40)), SLEEPER)
    supervisord.until(lambda seen: len({v.topic for v in seen}) == 41)
    for _ in range(500):
        Bus(supervisord.bus_directory, None, ["process.*"]).close()
    before = time.monotonic()
    supervisord.rpc("supervisor.stopProcess", "sleeper", False)
    supervisord.until_body("sleeper", lambda body: body.state == "STOPPED")
    assert time.monotonic() - before < 5.0


@pytest.mark.parametrize("bus", ["", "bus=/tmp/x\nbuss=/tmp/y"])
def test_a_wrong_setting_is_refused_in_words(start: Callable[..., Supervisord], bus: str) -> None:
    supervisord = start(SLEEPER, bus=bus)
    assert supervisord.process.wait(DEADLINE) != 0
    assert "needs bus=<directory> and takes nothing else" in supervisord.log()


def test_a_bus_that_cannot_be_opened_does_not_end_supervisord(start: Callable[..., Supervisord]) -> None:
    supervisord = start(SLEEPER, bus="bus=/dev/null/bus")
    deadline = time.monotonic() + DEADLINE
    while "cannot publish at /dev/null/bus/supervisor.sock" not in supervisord.log():
        assert time.monotonic() < deadline, supervisord.log()
        supervisord.reader.poll(0.05)
    assert supervisord.rpc("supervisor.getProcessInfo", "sleeper")["statename"] in ("STARTING", "RUNNING")
