"""A real node in a temporary directory, driven as its user drives it: through the `swarmvisor` command."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from swarm.errors import SwarmvisorError
from swarm.paths import RUNTIME_DIR_VARIABLE, STATE_DIR_VARIABLE, Paths
from swarm.supervisor_rpc import SupervisorClient
from tests.tools.scratch import scratch

T = TypeVar("T")

COMMAND = str(Path(sys.executable).with_name("swarmvisor"))
PROCESSES = ("coordinator", "renewer", "agent", "manager")
PATIENCE = 30.0
"""Seconds that a real node gets for anything; the machines are shared and slow at times."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def eventually(look: Callable[[], T], *, what: str, timeout: float = PATIENCE) -> T:
    """`look` until it returns something true. Its AssertionErrors and the node's refusals count as "not yet"."""
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while True:
        seen: object = None
        try:
            found = look()
        except (AssertionError, SwarmvisorError, subprocess.SubprocessError) as error:
            seen = error
        else:
            if found:
                return found
            seen = found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}; last seen: {seen!r}")
        pause.wait(0.05)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for somebody else's init to reap it does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@dataclass
class Result:
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Host:
    """One node: its directories, its port, and verbs on it."""

    root: Path
    port: int = field(default_factory=free_port)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def paths(self) -> Paths:
        return Paths(state=self.root / "state", runtime=self.root / "run")

    @property
    def env(self) -> dict[str, str]:
        places = {STATE_DIR_VARIABLE: str(self.paths.state), RUNTIME_DIR_VARIABLE: str(self.paths.runtime)}
        return {**os.environ, **places, **self.environment}

    def run(self, *args: str, timeout: float = 60.0, stdin: str | None = None) -> Result:
        """`swarmvisor ARGS`, whatever its exit code."""
        done = subprocess.run(
            [COMMAND, *args],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def ok(self, *args: str, timeout: float = 60.0) -> str:
        """`swarmvisor ARGS`, which must succeed; its standard output."""
        result = self.run(*args, timeout=timeout)
        assert result.code == 0, f"swarmvisor {' '.join(args)} exited {result.code}: {result.err}\n{self.logs()}"
        return result.out

    def json(self, *args: str) -> Any:
        return json.loads(self.ok(*args, "-o", "json"))

    def init(self, *args: str) -> None:
        self.ok("init", "--listen-addr", f"127.0.0.1:{self.port}", "--hostname", "node1", *args)

    # -- processes ---------------------------------------------------------------------------------

    def supervisor(self) -> SupervisorClient:
        return SupervisorClient(self.paths.supervisor_socket)

    def processes(self) -> dict[str, dict[str, Any]]:
        """What the node's supervisord knows of its programs, by name."""
        return {info["name"]: info for info in self.supervisor().call("supervisor.getAllProcessInfo")}

    def pid(self, process: str) -> int:
        """Pid of a running process of the node (0: not running); `supervisord` is the main one."""
        if process == "supervisord":
            return int(self.supervisor().call("supervisor.getPID"))
        if process == "workload":
            try:
                return int(SupervisorClient(self.paths.workload_socket).call("supervisor.getPID"))
            except SwarmvisorError:
                return 0
        return int(self.processes()[process]["pid"])

    def kill(self, process: str, signum: int = signal.SIGKILL) -> int:
        """Signal a process of the node; the pid it had."""
        pid = self.pid(process)
        assert pid, f"{process} does not run"
        os.kill(pid, signum)
        return pid

    def identity(self) -> tuple[str, str]:
        """Node id and cluster id, from `status`."""
        certificate = self.json("status")["certificate"]
        return certificate["node_id"], certificate["cluster_id"]

    def state(self) -> str:
        """The node's state in one word, from `status`."""
        return str(self.json("status")["node"]["state"])

    # -- the swarm ---------------------------------------------------------------------------------

    def service(self, name: str, *argv: str, replicas: int = 1, options: tuple[str, ...] = ()) -> str:
        """Create a service and wait until it runs; its id."""
        return self.ok("service", "create", name, "--replicas", str(replicas), *options, "--", *argv).strip()

    def tasks(self, service: str) -> list[dict[str, Any]]:
        """Rows of all tasks of a service, also ended ones."""
        rows: list[dict[str, Any]] = self.json("service", "ps", service, "--all")
        return rows

    def running(self, service: str) -> list[dict[str, Any]]:
        return [row for row in self.tasks(service) if row["state"] == "running" and row["desired_state"] == "running"]

    def pids(self, service: str) -> set[int]:
        return {row["pid"] for row in self.running(service)}

    def expect_running(self, service: str, count: int) -> list[dict[str, Any]]:
        def look() -> list[dict[str, Any]]:
            rows = self.running(service)
            assert len(rows) == count, rows
            return rows or [{}]

        return eventually(look, what=f"{count} running tasks of {service}")

    def expect_ready(self) -> None:
        self.ok("wait", "ready", "--timeout", str(int(PATIENCE)))

    # -- the end -----------------------------------------------------------------------------------

    def own_processes(self) -> dict[int, str]:
        """Every live process that belongs to this node: by state directory in its environment or task directory."""
        found: dict[int, str] = {}
        needle = os.fsencode(self.paths.state)
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                where = os.fsencode(os.readlink(entry / "cwd"))
                if needle in (entry / "environ").read_bytes() or where.startswith(needle):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:  # ended while we looked
                continue
        return found

    def logs(self) -> str:
        """The ends of all logs of the node, for a failed test's report."""
        found = sorted(self.paths.logs.glob("*.log")) if self.paths.logs.exists() else []
        parts = [f"--- {f.name}\n" + "\n".join(f.read_text(errors="replace").splitlines()[-25:]) for f in found]
        return "\n".join(parts)

    def destroy(self) -> None:
        """Whatever state the node is in, leave nothing of it running."""
        if self.paths.state.exists():
            self.run("down", timeout=90)
        for _ in range(3):
            for pid in self.own_processes():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue


def new_host() -> Iterator[Host]:
    """A host that is no node yet; destroyed at the end."""
    with scratch() as root:
        root.chmod(0o755)  # as /var/lib is: what keeps tasks out must be the node's own doing
        host = Host(root)
        try:
            yield host
        finally:
            host.destroy()
