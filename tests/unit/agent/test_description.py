from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import pytest

from procs.agent.description import describe, memory_bytes
from swarm.api import types_pb2
from swarm.nodeconfig import NodeConfig

TLS = types_pb2.NodeTLSInfo(trust_root=b"root", cert_issuer_subject=b"subject", cert_issuer_public_key=b"key")


def test_the_description_is_whole(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemFree:  1 kB\nMemTotal:        2048 kB\nMemAvailable: 3 kB\n")
    config = NodeConfig(
        hostname="box", labels={"zone": "a", "runtime": "docker"}, generic_resources={"gpu": "g1, g2", "apple": "3"}
    )
    told = describe(config, TLS, meminfo=meminfo)
    assert told.hostname == "box"
    assert (told.platform.architecture, told.platform.os) == (platform.machine(), "linux")
    assert told.resources.memory_bytes == 2048 * 1024
    assert told.resources.nano_cpus == len(os.sched_getaffinity(0)) * 10**9
    assert dict(told.engine.labels) == {"zone": "a", "runtime": "process"}
    assert [(p.type, p.name) for p in told.engine.plugins] == [("Network", "host"), ("Runtime", "process")]
    assert told.engine.engine_version == importlib.metadata.version("swarmvisor")
    assert told.tls_info == TLS
    assert told.fips is False
    generic = [str(one.WhichOneof("resource")) for one in told.resources.generic]
    assert generic == ["discrete_resource_spec", "named_resource_spec", "named_resource_spec"]
    assert describe(config, TLS, meminfo=meminfo) == told


@pytest.mark.parametrize("fips", [True, False])
def test_a_fips_node_says_so(fips: bool) -> None:
    assert describe(NodeConfig(fips=fips), TLS).fips is fips


def test_a_machine_without_memory_is_not_believed() -> None:
    with pytest.raises(ValueError, match="MemTotal"):
        memory_bytes("MemFree: 1 kB\n")
