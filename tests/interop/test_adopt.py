"""A Docker worker's identity continued by a node of ours: same node for the swarm, another engine."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from procs.cli.exits import Exit
from tests.e2e.host import Host, eventually, new_host
from tests.interop.dockerd import Dockerd


@pytest.fixture
def worker(dockerd: Dockerd) -> Iterator[Dockerd]:
    """A second dockerd on this host, a worker of the first one's swarm."""
    second = Dockerd(Path(tempfile.mkdtemp(prefix="svw", dir="/tmp")))
    try:
        second.launch()
        second.docker(
            "swarm", "join", "--token", dockerd.token(), "--advertise-addr", second.addr, "--listen-addr", second.addr,
            dockerd.addr,
        )  # fmt: skip
        yield second
    finally:
        second.stop()


@pytest.fixture
def host() -> Iterator[Host]:
    yield from new_host()


def content(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_docker_worker_goes_on_as_a_node_of_ours_under_its_own_id(
    dockerd: Dockerd, worker: Dockerd, host: Host, service: str
) -> None:
    node_id = json.loads(worker.docker("info", "--format", "{{json .Swarm.NodeID}}"))
    dockerd.docker("node", "update", "--label-add", "adopted=yes", node_id)
    swarm_dir = worker.root / "data" / "swarm"
    refused = host.run("adopt", "--swarm-dir", str(swarm_dir))
    assert refused.code == Exit.REFUSED
    assert f"is in use by process {worker.pid} (dockerd)" in refused.err
    assert not host.paths.state.exists()
    manager = host.run("adopt", "--swarm-dir", str(dockerd.root / "data" / "swarm"))
    assert (manager.code, "is a manager's" in manager.err) == (Exit.REFUSED, True)

    worker.terminate()
    before = content(swarm_dir)
    assert f"mv {swarm_dir} " in host.ok("adopt", "--swarm-dir", str(swarm_dir), "--label", "zone=taken")
    assert content(swarm_dir) == before
    assert host.identity()[0] == node_id

    def ours() -> bool:
        found = dockerd.node(node_id)
        labels = found["Description"]["Engine"].get("Labels", {})
        return bool(found["Status"]["State"] == "ready") and labels == {"zone": "taken", "runtime": "process"}

    eventually(ours, what="the manager sees the same node with our engine")
    assert dockerd.node(node_id)["Spec"]["Labels"] == {"adopted": "yes"}
    dockerd.docker(
        "service", "create", "--detach", "--quiet", "--no-resolve-image",
        "--constraint", "node.labels.adopted==yes", "--name", service, "host", "sleep", "1000",
    )  # fmt: skip
    (task,) = dockerd.running(service, 1)
    assert task["NodeID"] == node_id
    assert task["Status"]["ContainerStatus"]["PID"] in host.own_processes()

    # as the command said: with the directory out of its way Docker starts, and is in no swarm
    swarm_dir.rename(swarm_dir.with_name("swarm.adopted"))
    worker.launch()
    assert worker.docker("info", "--format", "{{.Swarm.LocalNodeState}}") == "inactive"
    host.ok("leave")
    dockerd.run("node", "rm", "--force", node_id)
