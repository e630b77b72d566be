"""A file that cannot be used is refused by name with a remedy, and is left as it is (issue 2 §5.5)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from swarm.paths import Paths
from tests.e2e.host import Host, eventually

GARBAGE = b"\x00\xffthis is not what it should be\n" * 64


@pytest.mark.parametrize(
    ("which", "process"),
    [
        (lambda p: p.node_toml, ""),
        (lambda p: p.node_cert, "renewer"),
        (lambda p: p.node_key, "renewer"),
        (lambda p: p.root_cert, "renewer"),
        (lambda p: p.state_json, "coordinator"),
        (lambda p: p.agent_db, "agent"),
        (lambda p: p.manager / "store.db", "manager"),
    ],
    ids=["node.toml", "certificate", "key", "root", "state.json", "agent.db", "store.db"],
)
def test_a_corrupted_file_is_named_with_a_remedy_and_not_overwritten(
    node: Host, which: Callable[[Paths], Path], process: str
) -> None:
    path = which(node.paths)
    if path.name == "state.json" and not path.exists():
        path.write_bytes(b"[]")
    node.ok("down")
    good = path.read_bytes()
    for extra in (path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
        extra.unlink(missing_ok=True)
    path.write_bytes(GARBAGE)

    result = node.run("up", timeout=90)
    assert result.code != 0
    assert "Traceback" not in result.err

    def told() -> bool:
        log = node.paths.logs / f"{process}.log" if process else None
        said = result.err + (log.read_text(errors="replace") if log is not None and log.exists() else "")
        assert path.name in said, said[-2000:]
        return True

    eventually(told, what=f"{path.name} is named")
    if process:
        states = {name: info["statename"] for name, info in node.processes().items()}
        assert "FATAL" not in states.values(), states
        status = node.json("status")
        assert status["node"]["state"] != "ready"
        assert path.name in str(status), status
    assert path.read_bytes() == GARBAGE

    path.write_bytes(good)
    node.ok("down")
    node.ok("up")
    node.expect_ready()
