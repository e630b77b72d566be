"""Run in a mount namespace of its own, on a host that has no file system in memory: prints what became of a node's.

Argument: an empty directory on a disk, which is bound over what was in memory. Each check that fails ends it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

from swarm.errors import Refused
from swarm.paths import Paths
from swarm.pki.keyfile import Kek
from swarm.tmpfs import SHARED_MEMORY, is_in_memory, release, tasks_in_memory
from swarm.unlock import forget_unlock_keys, read_unlock_keys, secrets_directory, write_unlock_keys
from tests.e2e.host import Host, new_host


def mounts(below: Path) -> list[str]:
    """What is mounted below a directory, with its options."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if line.split()[4].startswith(f"{below}/")]


def files(root: Path) -> None:
    """The two places: made when needed, gone when not."""
    paths = Paths(root / "s", root / "r")
    paths.runtime.mkdir()
    try:
        secrets_directory(paths)
    except Refused as refusal:
        assert "no file system in memory for the unlock key" in refusal.message
    else:
        raise AssertionError("found memory where there is none")
    assert read_unlock_keys(paths) == []
    racers = [threading.Thread(target=lambda: write_unlock_keys(paths, Kek(b"1" * 32, 1))) for _ in range(8)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    (line,) = mounts(root)
    assert all(option in line for option in ("nosuid", "nodev", "noexec", "size=65536k", "mode=700")), line
    assert paths.secrets_mount.stat().st_mode & 0o777 == 0o700
    assert is_in_memory(secrets_directory(paths))
    assert [kek.version for kek in read_unlock_keys(paths)] == [1]
    release(paths.secrets_mount)
    assert mounts(root), "it was unmounted with the key in it"
    tasks = tasks_in_memory(paths, mount=True)
    assert tasks.parent == paths.tasks_mount
    assert is_in_memory(tasks)
    assert paths.tasks_mount.stat().st_mode & 0o777 == 0o711
    release(paths.tasks_mount)
    forget_unlock_keys(paths)
    assert mounts(root) == []
    assert os.listdir(paths.runtime) == []
    # what an operator mounted there is his
    paths.secrets_mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "theirs", paths.secrets_mount], check=True)
    write_unlock_keys(paths, Kek(b"1" * 32, 1))
    forget_unlock_keys(paths)
    assert len(mounts(root)) == 1
    subprocess.run(["umount", paths.secrets_mount], check=True)


def node(host: Host) -> None:
    """A whole node: locked, stopped, started without being asked for its key, given up."""
    host.ok("init", "--listen-addr", f"127.0.0.1:{host.port}", "--autolock")
    assert (host.paths.secrets_mount / secrets_directory(host.paths).name / "unlock.json").exists()
    assert len(mounts(host.root)) == 2
    host.ok("down", timeout=90)
    assert [line.split()[4] for line in mounts(host.root)] == [str(host.paths.secrets_mount)]
    host.ok("up")
    host.expect_ready()
    host.ok("leave", "--force", timeout=90)
    assert mounts(host.root) == []
    assert not host.paths.tasks_mount.exists()
    assert not host.paths.runtime.exists()


def main() -> None:
    disk = Path(sys.argv[1])
    subprocess.run(["mount", "--bind", disk, SHARED_MEMORY], check=True)
    os.environ.pop("XDG_RUNTIME_DIR", None)
    (disk / "files").mkdir()
    files(disk / "files")
    for host in new_host():
        node(host)
    print("held")


if __name__ == "__main__":
    main()
