"""Figures of joining: a host from `swarmvisor join` to a READY node, and certificates per second. A real manager."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack

from procs.cli.control import Control, connect
from swarm.api import types_pb2
from tests.bench.node import cpu, fresh_node, middle, until
from tests.e2e.host import COMMAND, Host, new_host

CLIENTS = 2
"""Processes that join at once: one alone would be the bottleneck."""


def worker_token(manager: Host) -> str:
    return manager.ok("join-token", "worker", "-q").strip()


def joins(manager: Host, control: Control, runs: int) -> tuple[list[float], list[float]]:
    """Seconds from the start of the command until the manager's store holds the node as READY, and until the command
    returns, which it does when the node itself says that it is ready."""
    token = worker_token(manager)
    ready: list[float] = []
    returned: list[float] = []
    for run in range(runs):
        for host in new_host():
            name = f"joined{run}"
            argv = [COMMAND, "join", "--token", token, "--hostname", name, f"127.0.0.1:{manager.port}"]
            started = time.monotonic()
            with subprocess.Popen(argv, env=host.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as command:

                def there(name: str = name) -> bool:
                    nodes = control.nodes()
                    return any(
                        n.description.hostname == name and n.status.state == types_pb2.NodeStatus.READY for n in nodes
                    )

                until(there, interval=0.01)
                ready.append(time.monotonic() - started)
                if command.wait() != 0:
                    raise RuntimeError("the join failed")
                returned.append(time.monotonic() - started)
    return ready, returned


def certificates(manager: Host, token: str, total: int, at_once: int) -> tuple[float, float]:
    """Certificates per second of `total` joins, `at_once` at a time; milliseconds of the manager's CPU for each."""
    clients = min(CLIENTS, at_once)
    argv = [sys.executable, "-m", "tests.bench.joiner", f"127.0.0.1:{manager.port}", token]
    argv += [str(manager.paths.root_cert), str(total // clients), str(at_once // clients)]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            for _ in range(clients)
        ]
        pipes = [(process.stdin, process.stdout) for process in processes]
        for _, out in pipes:
            _expect(out, "ready")
        pid = manager.pid("manager")
        used, started = cpu(pid), time.monotonic()
        for into, _ in pipes:
            if into is not None:
                into.write("go\n")
                into.flush()
        for _, out in pipes:
            _expect(out, "done")
        return total / (time.monotonic() - started), 1000 * (cpu(pid) - used) / total


def _expect(out: object, word: str) -> None:
    if not hasattr(out, "readline") or out.readline().strip() != word:
        raise RuntimeError(f"a client did not say {word}")


def report() -> Iterator[tuple[str, str, str, str]]:
    """Rows as in `tests.bench.node.report`."""
    with fresh_node() as manager, connect(manager.paths) as control:
        ready, returned = joins(manager, control, 7)
        yield "join with a token → READY on the manager, s", middle(ready), "0.17 / 0.12", "≤ 0.5"
        yield "join with a token → the command returns, s", middle(returned), "–", "< 1"
    with fresh_node() as manager:
        token = worker_token(manager)
        certificates(manager, token, 20, 1)
        for at_once, total, peers in ((1, 200, "176 / 170"), (16, 400, "449 / 461"), (64, 400, "438 / 493")):
            rate, each = certificates(manager, token, total, at_once)
            what = f"certificates/s, {at_once} at once (root, CSR, cert; own TLS)"
            yield what, f"{rate:.0f} ({each:.1f} ms CPU each)", peers, "no slower"
