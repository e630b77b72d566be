"""A hundred random kills while a client creates, scales and removes services (issue 2 §5.3)."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from procs.cli.control import Control, NotFound, connect
from swarm.api import control_pb2 as api
from swarm.api import specs_pb2, types_pb2
from swarm.errors import Refused, SwarmvisorError
from tests.e2e.host import PROCESSES, Host, eventually, new_host

KILLS = 100
PAUSES = (0.05, 0.7)
"""Seconds between two kills: some hit a process that is still starting."""

GONE = -1


@pytest.fixture
def node() -> Iterator[Host]:
    for host in new_host():
        host.init()
        yield host


def spec(name: str, replicas: int) -> specs_pb2.ServiceSpec:
    made = specs_pb2.ServiceSpec()
    made.annotations.name = name
    made.replicated.replicas = replicas
    made.task.container.image = "host"
    made.task.container.command.extend(["/bin/sleep", "100000"])
    made.task.container.stop_grace_period.FromSeconds(1)
    made.task.restart.condition = types_pb2.RestartPolicy.ANY
    made.task.restart.delay.FromMilliseconds(100)
    return made


@dataclass
class Client:
    """Writes as fast as it is let, and remembers what was acknowledged.

    `possible[name]` is the set of replica counts (GONE: no such service) that the service may have: one after an
    acknowledged write, more after a call whose outcome nobody told us.
    """

    node: Host
    seed: int
    possible: dict[str, set[int]] = field(default_factory=dict)
    acknowledged: int = 0
    stopping: threading.Event = field(default_factory=threading.Event)
    failure: BaseException | None = None

    def run(self) -> None:
        choice = random.Random(self.seed)
        try:
            while not self.stopping.is_set():
                try:
                    with connect(self.node.paths) as control:
                        while not self.stopping.is_set():
                            self.write(control, choice)
                            self.stopping.wait(0.03)
                except SwarmvisorError:  # the manager is away; that is the point of this test
                    self.stopping.wait(0.05)
        except BaseException as error:  # noqa: BLE001 - shown by the test's own thread
            self.failure = error

    def write(self, control: Control, choice: random.Random) -> None:
        name = f"churn{choice.randrange(6)}"
        state = self.possible.setdefault(name, {GONE})
        verb = choice.choice(["create", "scale", "scale", "remove"])
        replicas = choice.randrange(5)
        try:
            if verb == "create":
                state.add(replicas)
                control.call("CreateService", api.CreateServiceRequest(spec=spec(name, replicas)), timeout=5)
                self.settle(name, replicas)
                return
            service = control.find_service(name)
            if verb == "scale":
                request = api.UpdateServiceRequest(service_id=service.id, service_version=service.meta.version)
                request.spec.CopyFrom(service.spec)
                request.spec.replicated.replicas = replicas
                state.add(replicas)
                control.call("UpdateService", request, timeout=5)
                self.settle(name, replicas)
            else:
                state.add(GONE)
                control.call("RemoveService", api.RemoveServiceRequest(service_id=service.id), timeout=5)
                self.settle(name, GONE)
        except NotFound:
            assert GONE in state, f"{name} was acknowledged and is not there"
        except Refused as refusal:
            assert "name conflicts" in refusal.message, refusal
            assert state != {GONE, replicas} or verb != "create" or self.unsure(name), f"{name} is there unasked"

    def unsure(self, name: str) -> bool:
        return len(self.possible[name]) > 1

    def settle(self, name: str, replicas: int) -> None:
        self.possible[name] = {replicas}
        self.acknowledged += 1


@pytest.mark.timeout(300)
def test_no_acknowledged_write_and_no_task_is_lost_or_doubled_by_a_hundred_kills(node: Host) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    choice = random.Random(seed)
    node.service("steady", "/bin/sleep", "100000", replicas=5)
    steady = {(row["id"], row["pid"]) for row in node.expect_running("steady", 5)}

    client = Client(node, seed)
    thread = threading.Thread(target=client.run, name="client")
    thread.start()
    killed = dict.fromkeys(PROCESSES, 0)
    try:
        while sum(killed.values()) < KILLS:
            name = choice.choice(PROCESSES)
            pid = node.pid(name)
            if pid:
                os.kill(pid, signal.SIGKILL)
                killed[name] += 1
            client.stopping.wait(choice.uniform(*PAUSES))
    finally:
        client.stopping.set()
        thread.join(30)
    assert client.failure is None, client.failure
    assert client.acknowledged > 20, f"hardly anything was written: {client.acknowledged}"

    node.expect_ready()
    assert "FATAL" not in {info["statename"] for info in node.processes().values()}

    def converged() -> bool:
        services = {row["name"]: row for row in node.json("service", "ls")}
        for name, possible in client.possible.items():
            found = services[name]["desired"] if name in services else GONE
            assert found in possible, f"{name} has {found}, acknowledged was {possible}"
        for name, row in services.items():
            assert row["running"] == row["desired"], row
            rows = node.tasks(name)
            live = [r["slot"] for r in rows if r["desired_state"] == "running"]
            assert sorted(live) == list(range(1, row["desired"] + 1)), rows
            assert {r["state"] for r in rows} <= {"running", "shutdown", "complete"}, rows
        return True

    eventually(converged, what="everything as acknowledged")
    now = node.tasks("steady")
    assert {(row["id"], row["pid"]) for row in now} == steady, "no task restarted, none was added"
    processes = [line for line in node.own_processes().values() if "/bin/sleep" in line]
    wanted = sum(row["running"] for row in node.json("service", "ls"))
    assert len(processes) == wanted, "as many processes as running tasks"
