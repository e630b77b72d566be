"""The coordinator as a process: real bus, real files, and a supervisord that only writes down what it was told."""

from __future__ import annotations

import json
import os
import random
import signal
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from xmlrpc.server import SimpleXMLRPCDispatcher

import pytest

from ipc import topics
from ipc.bus import Bus
from swarm.exits import ExitCode
from swarm.paths import Paths
from swarm.process import make_directories

SELF = "node0000000000000000000self"
WORKER = topics.Certificate("valid", SELF, "swarm", topics.WORKER_ROLE, fingerprint="w1", root_digest="r1")
MANAGER = replace(WORKER, role=topics.MANAGER_ROLE, fingerprint="m1")


class Supervisord:
    """Answers XML-RPC on the node's socket, and publishes what became of the orders."""

    def __init__(self, paths: Paths) -> None:
        self.bus = Bus(paths.bus, topics.SUPERVISOR)
        self.orders: list[str] = []
        self.pid = 0
        self.guard = threading.Lock()
        self.ended = topics.Process("manager", "STOPPED")
        self.arrived = threading.Event()
        dispatcher = SimpleXMLRPCDispatcher(allow_none=True)
        dispatcher.register_function(self.start, "supervisor.startProcess")
        dispatcher.register_function(self.stop, "supervisor.stopProcess")

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                answer = dispatcher._marshaled_dispatch(body)
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def address_string(self) -> str:
                return "unix"

            def log_message(self, *_: object) -> None:
                pass

        class Server(socketserver.UnixStreamServer):
            allow_reuse_address = True

        self.server = Server(str(paths.supervisor_socket), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def start(self, name: str, _wait: bool) -> bool:
        with self.guard:
            self.orders.append(f"start {name}")
            self.pid = 4711
        self.arrived.set()
        return True

    def stop(self, name: str, _wait: bool) -> bool:
        with self.guard:
            self.orders.append(f"stop {name}")
            self.pid = 0
            self.ended = topics.Process("manager", "STOPPED", exit_code=0)
        self.arrived.set()
        return True

    def tell(self) -> None:
        """Publish the state (from the test's thread: the bus is not for two)."""
        with self.guard:
            body = topics.Process("manager", "RUNNING", self.pid) if self.pid else self.ended
        self.bus.publish("process.manager", body)
        self.bus.service()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
        self.bus.close()


class Scene:
    """One coordinator, and everybody it hears."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        make_directories(paths)
        paths.node_toml.touch()
        # A certificate that tells nothing: without one the coordinator foresees a new swarm.
        paths.certificates.mkdir(exist_ok=True)
        paths.node_cert.touch()
        self.supervisord = Supervisord(paths)
        self.renewer = Bus(paths.bus, topics.RENEWER)
        self.agent = Bus(paths.bus, topics.AGENT)
        self.ear = Bus(paths.bus, None, ("role", "remotes", "node"))
        self.child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.log = open(self.paths.logs / "coordinator.log", "ab")  # noqa: SIM115
        words = ("--state-dir", str(self.paths.state), "--runtime-dir", str(self.paths.runtime))
        self.child = subprocess.Popen([sys.executable, "-m", "procs.coordinator", *words], stderr=self.log)

    def kill(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child.wait()
            self.log.close()

    def turn(self) -> None:
        """Let every publisher answer new subscribers."""
        for bus in (self.renewer, self.agent):
            bus.service()
        self.supervisord.tell()

    def until(self, condition: Callable[[], bool], what: str, seconds: float = 15.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, (
                f"{what}: {self.said()} {(self.paths.logs / 'coordinator.log').read_text()}"
            )
            self.turn()
            self.ear.poll(0.02)

    def said(self) -> dict[str, Any]:
        return {topic: value.body for topic, value in self.ear.values().items()}

    def role(self) -> topics.Role:
        value = self.ear.last("role")
        return value.body if value is not None else topics.Role("")

    def close(self) -> None:
        self.kill()
        for bus in (self.renewer, self.agent, self.ear):
            bus.close()
        self.supervisord.close()


@pytest.fixture
def scene(short_dir: Path) -> Iterator[Scene]:
    made = Scene(Paths(short_dir / "s", short_dir / "r"))
    yield made
    made.close()


def changes(desired: str, observed: str) -> topics.NodeChanges:
    return topics.NodeChanges(desired, observed)


def test_promotion_and_demotion_end_to_end(scene: Scene) -> None:
    scene.start()
    scene.renewer.publish("certificate", WORKER)
    scene.agent.publish("node.changes", changes("manager", "manager"))
    scene.until(lambda: scene.role().replace_fingerprint == "w1", "asks for a manager's certificate")
    assert scene.role().expected == "manager"
    scene.renewer.publish("certificate", MANAGER)
    scene.until(lambda: scene.supervisord.orders == ["start manager"], "starts the manager")
    scene.until(lambda: scene.role() == topics.Role("manager"), "says the role")
    scene.paths.manager.mkdir()
    (scene.paths.manager / "store.db").write_text("precious")
    scene.agent.publish("node.changes", changes("worker", "worker"))
    scene.until(lambda: scene.role().expected == "worker", "asks for a worker's certificate")
    scene.renewer.publish("certificate", replace(WORKER, fingerprint="w2"))
    scene.until(lambda: scene.supervisord.orders[-1] == "stop manager", "stops the manager")
    aside = scene.paths.state / "manager.erased-w2"
    scene.until(aside.is_dir, "sets its data aside")
    assert (aside / "store.db").read_text() == "precious"
    scene.agent.publish("agent", topics.Agent("ready", "s", "another-node", "192.0.2.1:2377"))
    scene.agent.publish("node.changes", replace(changes("worker", "worker"), under=topics.Under("w2")))
    scene.until(lambda: not aside.exists(), "deletes it once another manager has given a session")


def test_a_docker_swarms_promoted_node_starts_no_manager_after_a_reboot(scene: Scene) -> None:
    scene.start()
    docker = topics.ManagerAddress("docker", "192.0.2.1:2377", 10)
    scene.agent.publish("managers", topics.Managers((docker,)))
    scene.renewer.publish("certificate", WORKER)
    scene.agent.publish("node.changes", replace(changes("manager", "manager"), foreign=True))
    scene.agent.publish("agent", topics.Agent("ready", "s", "docker", docker.addr))

    def is_told() -> bool:
        node = scene.said().get("node")
        return isinstance(node, topics.Node) and node.state == "ready" and "its managers are Docker's" in node.step

    scene.until(is_told, "the node is ready, and says that it cannot be promoted")
    scene.until(scene.paths.state_json.exists, "its managers are kept on disk")
    scene.renewer.publish("certificate", MANAGER)  # a renewal, while Docker counts it among its managers
    scene.until(lambda: scene.role().current == "manager", "it has heard of the certificate")
    scene.kill()
    assert scene.supervisord.orders == []
    # Only the renewer is back: no session has said yet whose managers they are.
    scene.agent.close()
    scene.agent = Bus(scene.paths.bus, topics.AGENT)
    scene.start()

    def waits() -> bool:
        return getattr(scene.said().get("node"), "cause", "") == "waiting for the agent"

    scene.until(waits, "the node waits for the agent alone")
    assert scene.supervisord.orders == []


def test_managers_survive_in_state_json(scene: Scene) -> None:
    scene.start()
    scene.agent.publish(
        "managers", topics.Managers((topics.ManagerAddress("b", "b:1", 10), topics.ManagerAddress("a", "a:1", 10)))
    )
    scene.until(scene.paths.state_json.exists, "writes state.json")
    assert json.loads(scene.paths.state_json.read_bytes()) == [
        {"node_id": "a", "addr": "a:1"},
        {"node_id": "b", "addr": "b:1"},
    ]
    scene.kill()
    scene.agent.publish("managers", topics.Managers())
    scene.start()
    scene.until(
        lambda: [m.addr for m in getattr(scene.said().get("remotes"), "managers", ())] == ["a:1", "b:1"],
        "knows them again",
    )


def test_killed_at_random_moments_of_role_changes_it_comes_back_right(scene: Scene) -> None:
    chance = random.Random(20)
    scene.start()
    certificate = WORKER
    scene.renewer.publish("certificate", certificate)
    for change in range(6):
        desired = "manager" if change % 2 == 0 else "worker"
        scene.agent.publish("node.changes", changes(desired, desired))
        if chance.random() < 0.7:
            pause = time.monotonic() + chance.random() * 0.3
            scene.until(lambda end=pause: time.monotonic() > end, "a moment")
            scene.kill()
            scene.start()
        scene.until(lambda d=desired: scene.role().expected == d, f"asks for {desired}")
        assert scene.role().replace_fingerprint == certificate.fingerprint
        certificate = replace(certificate, role=desired, fingerprint=f"c{change}")
        scene.renewer.publish("certificate", certificate)
        if chance.random() < 0.7:
            scene.kill()
            scene.start()
        runs = desired == "manager"
        scene.until(lambda r=runs: bool(scene.supervisord.pid) == r, f"manager runs: {runs}")
        scene.until(lambda d=desired: scene.role() == topics.Role(d), f"says {desired}")


@pytest.mark.parametrize(
    ("name", "junk"),
    [("state.json", b"{"), ("state.json", b'[{"addr": 7}]'), ("node.toml", b"hostname = 1\n"), ("node.toml", b"=")],
)
def test_a_corrupt_file_ends_it_with_config_naming_the_file(scene: Scene, name: str, junk: bytes) -> None:
    (scene.paths.state / name).write_bytes(junk)
    scene.start()
    assert scene.child is not None
    assert scene.child.wait(10) == ExitCode.CONFIG
    assert name in (scene.paths.logs / "coordinator.log").read_text()
    assert (scene.paths.state / name).read_bytes() == junk


def test_a_supervisord_that_does_not_answer_is_asked_again(scene: Scene) -> None:
    hidden = scene.paths.runtime / "hidden.sock"
    os.rename(scene.paths.supervisor_socket, hidden)
    scene.start()
    scene.renewer.publish("certificate", MANAGER)
    log = scene.paths.logs / "coordinator.log"
    scene.until(lambda: "does not answer supervisor.startProcess" in log.read_text(), "meets nobody")
    os.rename(hidden, scene.paths.supervisor_socket)
    scene.until(lambda: scene.supervisord.orders == ["start manager"], "asks again")


def test_sigterm_ends_it(scene: Scene) -> None:
    scene.start()
    scene.until(lambda: "node" in scene.said(), "speaks")
    assert scene.child is not None
    scene.child.send_signal(signal.SIGTERM)
    assert scene.child.wait(10) == ExitCode.DONE


def test_it_needs_no_asyncio_grpc_cryptography_or_ssl() -> None:
    script = (
        "import sys, procs.coordinator.__main__;"
        "print([m for m in ('asyncio','grpc','cryptography','ssl','http.client','_hashlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
