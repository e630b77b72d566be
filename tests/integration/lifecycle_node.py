"""A node of its own for one test, driven through the command line as an operator would."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ipc.bus import Bus, Value
from swarm.paths import Paths
from swarm.supervisor_rpc import SupervisorClient

REPOSITORY = Path(__file__).parents[2]


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"127.0.0.1:{probe.getsockname()[1]}"


class Node:
    """State and runtime directory, and the command."""

    def __init__(self, directory: Path) -> None:
        self.paths = Paths(directory / "s", directory / "r")

    def command(self, *words: str, timeout: float = 50.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "procs.cli", *words],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=self.environment(),
            cwd=REPOSITORY,
            check=False,
        )

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "SWARMVISOR_STATE_DIR": str(self.paths.state),
            "SWARMVISOR_RUNTIME_DIR": str(self.paths.runtime),
        }

    def ok(self, *words: str, timeout: float = 50.0) -> str:
        done = self.command(*words, timeout=timeout)
        assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}{self.logs()}"
        return done.stdout

    def status(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(self.ok("status", "-o", "json"))
        return report

    def logs(self) -> str:
        found = sorted(self.paths.logs.glob("*.log")) if self.paths.logs.is_dir() else []
        return "".join(f"\n--- {p.name}\n{p.read_text(errors='replace')[-3000:]}" for p in found)

    def supervisor(self) -> SupervisorClient:
        return SupervisorClient(self.paths.supervisor_socket)

    def pids(self) -> dict[str, int]:
        """Program to pid, of what runs."""
        found = {i["name"]: i["pid"] for i in self.supervisor().call("supervisor.getAllProcessInfo") if i["pid"]}
        return {"supervisord": self.supervisor().call("supervisor.getPID"), **found}

    def wait_for(self, topic: str, seconds: float, wanted: Any) -> Value:
        """The first value of `topic` for which `wanted(body)` holds."""
        with Bus(self.paths.bus, None, (topic,)) as bus:
            import time

            deadline = time.monotonic() + seconds
            while True:
                value = bus.last(topic)
                if value is not None and wanted(value.body):
                    return value
                left = deadline - time.monotonic()
                assert left > 0, f"{topic} stayed {value}{self.logs()}"
                bus.poll(left)


@contextmanager
def kill_and_wait(pid: int, number: int = signal.SIGKILL) -> Iterator[None]:
    """Signal a process that is not our child; leaving the block waits for its end."""
    handle = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(handle, number)
        yield
        wait_gone(handle)
    finally:
        os.close(handle)


def wait_gone(handle: int, seconds: float = 10.0) -> None:
    assert select.select([handle], [], [], seconds)[0], "the process is still there"


@contextmanager
def node_in(directory: Path) -> Iterator[Node]:
    """A node that is down and wiped afterwards, whatever the test did to it."""
    node = Node(directory)
    try:
        yield node
    finally:
        node.command("leave", "--force")
