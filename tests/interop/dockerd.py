"""A real dockerd with a swarm of its own, on loopback and in directories of its own, driven by the `docker` command."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.conftest import SHARED
from tests.e2e.host import Host, alive, eventually, free_port

NEEDED = ("dockerd", "docker", "containerd")
CI = "SWARMVISOR_CI"


def missing() -> list[str]:
    """Programs that these tests need and that this machine does not have."""
    return [name for name in NEEDED if shutil.which(name) is None]


class Dockerd:
    """One dockerd; `docker` runs commands against it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.addr = f"127.0.0.1:{free_port()}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.root / "dockerd.log"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it and make it the manager of a new swarm."""
        self.launch()
        self.docker("swarm", "init", "--advertise-addr", self.addr, "--listen-addr", self.addr)
        # a node that is gone is down after three of these
        self.docker("swarm", "update", "--dispatcher-heartbeat", "1s")

    def launch(self) -> None:
        """Start it, with no swarm."""
        with self.log.open("wb") as out:
            self._process = subprocess.Popen(
                [
                    "dockerd",
                    f"--data-root={self.root / 'data'}",
                    f"--exec-root={self.root / 'exec'}",
                    f"--pidfile={self.root / 'pid'}",
                    f"--host=unix://{self.root / 'sock'}",
                    "--iptables=false",
                    "--bridge=none",
                    "--storage-driver=vfs",
                ],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, SHARED: "1"},
                start_new_session=True,
            )
        eventually(self._answers, what=f"dockerd answers; see {self.log}")

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"dockerd ended: {self.log.read_text()[-2000:]}")
        return self.run("info").returncode == 0

    def terminate(self) -> None:
        """End it as its service manager does, and with it its containerd; its data stays."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait()

    def stop(self) -> None:
        """End it and its containerd, at once: nothing of them is needed again. Leave nothing mounted."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            containerd = self.root / "exec" / "containerd" / "containerd.pid"
            if containerd.exists():
                pid = int(containerd.read_text())
                os.kill(pid, signal.SIGKILL)
                eventually(lambda: not alive(pid), what="containerd ends")
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            mount = line.split()[4]
            if mount.startswith(f"{self.root}/"):
                subprocess.run(["umount", "--lazy", mount], check=True)
        shutil.rmtree(self.root)

    # -- commands ----------------------------------------------------------------------------------

    def command(self, *args: str) -> list[str]:
        return ["docker", "--host", f"unix://{self.root / 'sock'}", *args]

    def run(self, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """`docker ARGS`, whatever comes of it."""
        return subprocess.run(
            self.command(*args),
            capture_output=True,
            text=True,
            input=stdin,
            timeout=60,
            check=False,
            env=_environment(),
        )

    def docker(self, *args: str, stdin: str = "") -> str:
        """`docker ARGS`, which must succeed; its standard output."""
        done = self.run(*args, stdin=stdin)
        assert done.returncode == 0, f"docker {' '.join(args)}: {done.stderr}"
        return done.stdout.strip()

    def follow(self, *args: str) -> subprocess.Popen[str]:
        """`docker ARGS`, which goes on; its standard output is a pipe."""
        return subprocess.Popen(
            self.command(*args),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**_environment(), SHARED: "1"},
        )

    # -- the swarm ---------------------------------------------------------------------------------

    def token(self, role: str = "worker") -> str:
        return self.docker("swarm", "join-token", "--quiet", role)

    def service(self, name: str, *argv: str, options: tuple[str, ...] = (), image: str = "host") -> None:
        """Create a service for nodes of ours. Does not wait for it."""
        self.docker(
            "service", "create", "--detach", "--quiet", "--no-resolve-image",
            "--constraint", "node.labels.processes==yes", "--name", name, *options, image, *argv,
        )  # fmt: skip

    def tasks(self, service: str, *, wanted: str = "") -> list[dict[str, Any]]:
        """The tasks of a service as `docker inspect` shows them, newest first; `wanted`: of that desired state."""
        listed = self.docker("service", "ps", "--quiet", "--no-trunc", service).split()
        found: list[dict[str, Any]] = json.loads(self.docker("inspect", "--type", "task", *listed)) if listed else []
        return [task for task in found if wanted in ("", task["DesiredState"])]

    def running(self, service: str, count: int) -> list[dict[str, Any]]:
        """Wait until `count` tasks of a service run, and no more are wanted."""

        def look() -> list[dict[str, Any]]:
            tasks = self.tasks(service, wanted="running")
            states = [(task["Status"]["State"], task["Status"].get("Err", "")) for task in tasks]
            assert len(tasks) == count, states
            assert all(state == "running" for state, _ in states), states
            return tasks or [{}]

        return eventually(look, what=f"{count} running tasks of {service}")

    def ended(self, service: str) -> dict[str, Any]:
        """Wait until the only task of a service has ended; what `docker inspect` shows of it."""

        def look() -> dict[str, Any]:
            (task,) = self.tasks(service)
            assert task["Status"]["State"] in ("complete", "failed", "rejected", "shutdown"), task["Status"]
            return task

        return eventually(look, what=f"the end of {service}")

    def node(self, node_id: str) -> dict[str, Any]:
        (found,) = json.loads(self.docker("node", "inspect", node_id))
        return dict(found)

    def expect_node(self, node_id: str, state: str) -> dict[str, Any]:
        def look() -> dict[str, Any]:
            found = self.node(node_id)
            assert found["Status"]["State"] == state, found["Status"]
            return found

        return eventually(look, what=f"node {node_id} {state}")

    def join(self, host: Host, hostname: str, *options: str) -> str:
        """Make `host` a worker of this swarm that takes processes; its node id."""
        host.ok("join", "--token", self.token(), "--hostname", hostname, *options, self.addr)
        node_id = host.identity()[0]
        self.docker("node", "update", "--label-add", "processes=yes", node_id)
        return node_id


def a_dockerd() -> Iterator[Dockerd]:
    root = Path(tempfile.mkdtemp(prefix="svd", dir="/tmp"))
    dockerd = Dockerd(root)
    try:
        dockerd.start()
        yield dockerd
    finally:
        dockerd.stop()


def moment(text: str) -> float:
    """Unix seconds of a time as Docker prints it (nanoseconds)."""
    head, _, fraction = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{head}+00:00").timestamp() + float(f"0.{fraction or 0}")


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("DOCKER_")}
