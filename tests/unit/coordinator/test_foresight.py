"""What the coordinator foresees from files, and that the renewer's word overrules it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipc.topics import Process
from procs.coordinator.effects import Heard, StartManager, StopManager
from procs.coordinator.foresight import foreseen_role
from procs.coordinator.machine import Machine
from swarm.nodeconfig import NodeConfig
from swarm.paths import Paths
from swarm.remotes import Peer
from tests.tools.authority import Authority
from tests.unit.coordinator.world import MANAGER_CERT, WORKER_CERT


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    found = Paths(state=tmp_path, runtime=tmp_path / "run")
    found.certificates.mkdir()
    return found


def test_an_empty_node_founds_a_swarm_as_its_manager(paths: Paths) -> None:
    assert foreseen_role(paths, NodeConfig(), []) == "manager"


def test_a_node_that_joins_or_has_lost_its_certificate_foresees_nothing(paths: Paths) -> None:
    assert foreseen_role(paths, NodeConfig(join_addr="m:2377"), []) == ""
    assert foreseen_role(paths, NodeConfig(), [Peer("x", "x:1")]) == ""
    paths.manager.mkdir()
    assert foreseen_role(paths, NodeConfig(), []) == ""


@pytest.mark.parametrize("role", ["manager", "worker"])
def test_a_certificate_tells_its_role(paths: Paths, role: str) -> None:
    paths.node_cert.write_bytes(Authority().issue(role).certificate_pem)
    assert foreseen_role(paths, NodeConfig(), []) == role


@pytest.mark.parametrize("content", [b"", b"junk", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_certificate_that_is_none_tells_nothing(paths: Paths, content: bytes) -> None:
    paths.node_cert.write_bytes(content)
    assert foreseen_role(paths, NodeConfig(), []) == ""


def orders(machine: Machine, topic: str, body: object) -> list[object]:
    return [e for e in machine.handle(Heard(topic, body, 7), 0.0) if isinstance(e, StartManager | StopManager)]


def test_the_foreseen_manager_is_started_once_and_stopped_when_the_certificate_is_a_workers() -> None:
    machine = Machine(foreseen_role="manager")
    machine.start()
    assert orders(machine, "process.manager", Process("manager", "STOPPED")) == [StartManager()]
    assert orders(machine, "process.manager", Process("manager", "STARTING", 9)) == []
    assert orders(machine, "certificate", MANAGER_CERT) == []
    assert orders(machine, "certificate", WORKER_CERT) == [StopManager()]
