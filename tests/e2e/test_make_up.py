"""`make up` and `make down` as somebody meets them who has just cloned the repository (issue 2 §5.1)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from procs.workload.cgroup import subtree_name
from swarm.paths import RUNTIME_DIR_VARIABLE, STATE_DIR_VARIABLE
from tests.e2e.host import PROCESSES, Host, alive

REPOSITORY = Path(__file__).resolve().parents[2]

LENT = (
    "PIP_",
    "SSL_CERT_",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
)
"""What a machine may need to install packages at all; nothing of ours reads it."""


@pytest.fixture
def clone(host: Host) -> Path:
    """A clone of HEAD with the working tree's changes on it, and no environment of its own yet."""
    trusting = host.root / "gitconfig"
    # In CI the checkout often belongs to another user, whom git would not trust.
    trusting.write_text("[safe]\n\tdirectory = *\n")

    def git(*args: str) -> str:
        environment = {**os.environ, "GIT_CONFIG_GLOBAL": str(trusting)}
        command = ["git", "-C", str(REPOSITORY), *args]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    path = host.root / "clone"
    git("clone", "--quiet", "--no-hardlinks", str(REPOSITORY), str(path))
    for name in filter(None, git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")):
        source, target = REPOSITORY / name, path / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
        else:
            target.unlink(missing_ok=True)
    return path


def make(clone: Path, host: Host, *args: str) -> str:
    """`env -i PATH=… HOME=… make ARGS` in the clone, which must succeed; what it printed."""
    lent = {key: value for key, value in os.environ.items() if key.upper().startswith(LENT)}
    bare = {"PATH": "/usr/bin:/bin", "HOME": os.environ["HOME"], **lent}
    places = {STATE_DIR_VARIABLE: str(host.paths.state), RUNTIME_DIR_VARIABLE: str(host.paths.runtime)}
    done = subprocess.run(
        ["make", *args], cwd=clone, env={**bare, **places}, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, f"make {' '.join(args)}: {done.stdout}{done.stderr}\n{host.logs()}"
    return done.stdout


def cgroups(host: Host) -> list[Path]:
    """Control groups of this node, in every hierarchy."""
    name = subtree_name(host.paths.state)
    return [Path(where) / name for where, directories, _ in os.walk("/sys/fs/cgroup") if name in directories]


@pytest.mark.timeout(300)
def test_make_up_from_a_clean_clone_in_a_bare_environment_then_again_then_down(host: Host, clone: Path) -> None:
    flags = f"UP_FLAGS=--listen-addr 127.0.0.1:{host.port}"
    first = make(clone, host, "up", flags)
    assert "hello.1" in first
    assert "hello.2" in first
    assert "make down" in first

    rows = host.running("hello")
    pids = {row["pid"] for row in rows}
    assert len(pids) == 2
    assert all(alive(pid) for pid in pids)
    node = {name: host.pid(name) for name in ("supervisord", "workload", *PROCESSES)}
    assert all(node.values())
    for pid in node.values():
        assert str(clone / ".venv") in Path(f"/proc/{pid}/cmdline").read_text()
    assert host.json("status")["manager"]["listen_addr"] == f"127.0.0.1:{host.port}"

    again = make(clone, host, "up", flags)
    assert f"already up (supervisord is process {node['supervisord']})" in again
    assert {row["pid"] for row in host.running("hello")} == pids
    assert {name: host.pid(name) for name in ("supervisord", "workload", *PROCESSES)} == node
    assert [row["name"] for row in json.loads(host.ok("service", "ls", "-o", "json"))] == ["hello"]

    held = cgroups(host)
    assert held or os.geteuid() != 0, "root's tasks have no control group, so the check below would see nothing"
    assert "down" in make(clone, host, "down")
    assert host.own_processes() == {}
    assert [pid for pid in (*pids, *node.values()) if alive(pid)] == []
    assert not host.paths.runtime.exists()
    assert cgroups(host) == []
    assert "already down" in make(clone, host, "down")
