"""What `swarm.process` does around a body, on real processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from swarm.exits import ExitCode
from swarm.lock import ProcessLock, holder_pid
from swarm.paths import Paths

SYNC = """
import sys
from swarm import process
from swarm.exits import ExitCode
from swarm.metrics import Metrics, MetricsServer
def body(context):
    metrics = Metrics()
    metrics.gauge("swarm_node_manager", "Whether this node is a manager").set(1)
    with MetricsServer(context.paths.metrics_socket(context.name), metrics):
        context.log.info("waiting")
        context.stop.wait()
    return ExitCode.DONE
sys.exit(process.run("agent", "A test.", body))
"""

ASYNC = """
import asyncio, sys
from swarm.exits import ExitCode
from swarm.process_async import run_async
async def inner(context, stop):
    context.log.info("waiting")
    await stop.wait()
async def body(context, stop):
    await asyncio.create_task(inner(context, stop), name="the-session")
    return ExitCode.DONE
sys.exit(run_async("agent", "A test.", body))
"""

UNNOTICED = """
import signal, sys, threading
from pathlib import Path
from swarm import process
from swarm.exits import ExitCode
def send():
    # Python runs its handlers in the main thread only, and select goes on: as for a signal right before it
    main = threading.main_thread()
    state = Path(f"/proc/self/task/{main.native_id}/stat")
    pause = threading.Event()
    while sys._current_frames()[main.ident].f_code.co_name != "wait" or ") S " not in state.read_text():
        pause.wait(0.01)
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
def body(context):
    threading.Thread(target=send, daemon=True).start()
    context.log.info("waiting")
    context.stop.wait()
    return ExitCode.DONE
sys.exit(process.run("agent", "A test.", body))
"""

RAISES = """
import sys
from swarm import process
from swarm.errors import *
def body(context):
    raise {what}
sys.exit(process.run("agent", "A test.", body))
"""

STUBBORN = """
import sys, time
from swarm import process
def body(context):
    context.log.info("waiting")
    context.stop.wait()
    context.log.info("stopping")
    while True:
        time.sleep(60)
sys.exit(process.run("agent", "A test.", body))
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def paths(short_dir: Path) -> Paths:
    (short_dir / "s").mkdir()
    (short_dir / "s" / "node.toml").touch()
    return Paths(short_dir / "s", short_dir / "r")


@pytest.fixture
def start(paths: Paths) -> Iterator[Start]:
    running: list[subprocess.Popen[str]] = []

    def begin(script: str, *, until: str = "waiting", **environment: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", script, "--state-dir", str(paths.state), "--runtime-dir", str(paths.runtime)],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        running.append(child)
        if until:
            read_until(child, until)
        return child

    yield begin
    for child in running:
        if child.poll() is None:
            child.kill()
        child.communicate()


def read_until(child: subprocess.Popen[str], word: str) -> str:
    assert child.stderr is not None
    text = ""
    for line in child.stderr:
        text += line
        if word in line:
            return text
    raise AssertionError(f"{word!r} never came: {text}")


@pytest.mark.parametrize("script", [SYNC, ASYNC], ids=["sync", "async"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_ends_when_asked(start: Start, script: str, number: int) -> None:
    child = start(script)
    child.send_signal(number)
    assert child.wait(10) == ExitCode.DONE


def test_a_signal_that_comes_right_before_the_wait_ends_it(start: Start) -> None:
    assert start(UNNOTICED).wait(10) == ExitCode.DONE


def test_a_second_sigterm_ends_a_process_that_hangs_in_stopping(start: Start) -> None:
    child = start(STUBBORN)
    child.send_signal(signal.SIGTERM)
    read_until(child, "stopping")
    child.send_signal(signal.SIGTERM)
    assert child.wait(10) == -signal.SIGTERM


def test_sigusr1_shows_every_thread_and_the_process_goes_on(start: Start) -> None:
    child = start(SYNC)
    child.send_signal(signal.SIGUSR1)
    shown = read_until(child, "in <module>")
    assert "metrics.py" in shown  # the metrics server's thread
    assert "in body" in shown
    child.send_signal(signal.SIGTERM)
    assert child.wait(10) == ExitCode.DONE


def test_sigusr1_shows_where_every_asyncio_task_waits(start: Start) -> None:
    child = start(ASYNC)
    child.send_signal(signal.SIGUSR1)
    shown = read_until(child, "locks.py")
    assert "task the-session" in shown
    assert "inner" in shown
    child.send_signal(signal.SIGUSR1)
    read_until(child, "task the-session")


@pytest.mark.parametrize(
    ("what", "code", "words"),
    [
        ("CorruptFile('/x/node.toml', 'not TOML', remedy='mend it')", ExitCode.CONFIG, "node.toml: not TOML; mend it"),
        ("Unreachable('nobody there')", ExitCode.FAILED, "nobody there"),
        ("Twin('held')", ExitCode.TWIN, "held"),
        ("RuntimeError('bug')", ExitCode.FAILED, "RuntimeError: bug"),
    ],
)
def test_errors_end_with_their_code_and_their_words_in_the_log(
    start: Start, what: str, code: ExitCode, words: str
) -> None:
    child = start(RAISES.format(what=what), until="")
    _, log = child.communicate(timeout=10)
    assert child.returncode == code
    assert words in log
    assert "level=error" in log


def test_a_twin_waits_and_then_ends_naming_the_holder(start: Start, paths: Paths) -> None:
    first = start(SYNC)
    assert holder_pid(paths.lock("agent")) == first.pid
    twin = start(SYNC, until="")
    _, log = twin.communicate(timeout=15)
    assert twin.returncode == ExitCode.TWIN
    assert f"process {first.pid}" in log
    assert first.poll() is None


def test_a_twin_takes_over_from_one_that_is_killed_while_it_waits(start: Start, paths: Paths) -> None:
    first = start(SYNC)
    twin = start(SYNC, until="")
    # it waits in the kernel, behind the first: its thread shows that
    read = Path(f"/proc/{twin.pid}/task")
    wait_for(lambda: len(list(read.iterdir())) == 2)
    first.kill()
    read_until(twin, "waiting")
    assert holder_pid(paths.lock("agent")) == twin.pid


def test_a_free_lock_has_no_holder(paths: Paths) -> None:
    lock = ProcessLock(paths.lock("agent"))
    assert holder_pid(lock.path) is None
    with lock:
        assert holder_pid(lock.path) == os.getpid()
    assert holder_pid(lock.path) is None


def test_metrics_are_served_on_a_socket_of_its_own(start: Start, paths: Paths) -> None:
    child = start(SYNC)
    answer = scrape(paths.metrics_socket("agent"), b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.0 200 OK\r\n")
    assert b"\nswarm_node_manager 1.0\n" in answer
    assert scrape(paths.metrics_socket("agent"), b"GET /secrets HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.0 404")
    assert scrape(paths.metrics_socket("agent"), b"") == b""
    assert paths.metrics_socket("agent").stat().st_mode & 0o777 == 0o600
    child.send_signal(signal.SIGTERM)
    assert child.wait(10) == ExitCode.DONE
    assert not paths.metrics_socket("agent").exists()


def test_a_process_whose_supervisord_is_gone_already_ends_at_once(start: Start) -> None:
    child = start(SYNC, until="", SUPERVISOR_ENABLED="1", SWARMVISOR_SUPERVISOR_PID="1")
    _, log = child.communicate(timeout=10)
    assert child.returncode == ExitCode.ORPHANED
    assert "gone" in log


def test_without_a_node_an_asynchronous_process_waits(start: Start, paths: Paths) -> None:
    paths.node_toml.unlink()
    child = start(ASYNC, until="absent")
    child.send_signal(signal.SIGTERM)
    assert child.wait(10) == ExitCode.DONE


def scrape(path: Path, request: bytes) -> bytes:
    with closing(socket.socket(socket.AF_UNIX)) as peer:
        peer.settimeout(10)
        peer.connect(str(path))
        peer.sendall(request)
        peer.shutdown(socket.SHUT_WR)
        parts = []
        while part := peer.recv(65536):
            parts.append(part)
        return b"".join(parts)


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """For what nobody announces: the kernel's view of another process."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline
        pause.wait(0.01)
