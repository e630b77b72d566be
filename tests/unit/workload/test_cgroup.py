"""Where the cgroups are: every way a host mounts them, from the text of /proc/self."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procs.workload.cgroup import (
    CPU_PERIOD,
    SHORTEST_QUOTA,
    Cgroups,
    Mount,
    cpu_quota,
    own_directory,
    parse_membership,
    parse_mounts,
    subtree_name,
)

PURE = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID = """\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
39 31 0:36 / /sys/fs/cgroup/pids ro,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
CONTAINER = "60 50 0:26 /docker/abc /sys/fs/cgroup rw master:1 master:2 - cgroup2 cgroup rw\n"


def test_a_pure_v2_host_has_one_hierarchy() -> None:
    assert parse_mounts(PURE) == [Mount(Path("/sys/fs/cgroup"), "/", v2=True)]


def test_a_hybrid_host_has_the_unified_one_and_writable_v1_hierarchies() -> None:
    mounts = {mount.point.name: mount for mount in parse_mounts(HYBRID)}
    assert set(mounts) == {"cpu,cpuacct", "memory", "systemd", "unified"}  # pids is mounted read-only
    assert mounts["unified"].v2
    assert {"cpu", "cpuacct"} <= mounts["cpu,cpuacct"].controllers
    assert not mounts["unified"].controllers


def test_escapes_and_broken_lines_are_survived() -> None:
    text = "29 23 0:26 / /sys/fs/c\\040group\\134x rw - cgroup2 cgroup2 rw\nrubbish\n\n1 2 3 - cgroup2 x rw\n"
    assert [mount.point for mount in parse_mounts(text)] == [Path("/sys/fs/c group\\x")]


@given(st.text())
def test_any_text_is_read_without_an_error(text: str) -> None:
    assert isinstance(parse_mounts(text), list)


def test_membership_of_v2_is_under_the_empty_name() -> None:
    assert parse_membership("4:cpu,cpuacct:/a\n3:memory:/b:c\n0::/user.slice/x\n") == {
        "cpu": "/a",
        "cpuacct": "/a",
        "memory": "/b:c",
        "": "/user.slice/x",
    }


@pytest.mark.parametrize(
    ("root", "path", "found"),
    [
        ("/", "/", "/m"),
        ("/", "/a/b", "/m/a/b"),
        ("/docker/abc", "/docker/abc", "/m"),
        ("/docker/abc", "/docker/abc/x", "/m/x"),
        ("/docker/abc", "/docker/abcd", None),
        ("/docker/abc", "/", None),
    ],
)
def test_our_own_cgroup_in_a_mount(root: str, path: str, found: str | None) -> None:
    directory = own_directory(Mount(Path("/m"), root, v2=True), path)
    assert directory == (Path(found) if found else None)


def test_two_nodes_have_two_subtrees_with_harmless_names() -> None:
    names = {subtree_name(Path("/var/lib/swarmvisor")), subtree_name(Path("/tmp/other"))}
    assert len(names) == 2
    assert all(name.startswith("swarmvisor-") and name.replace("-", "").isalnum() for name in names)


@pytest.mark.parametrize(
    ("nano", "quota"),
    [(1_000_000_000, CPU_PERIOD), (500_000_000, CPU_PERIOD // 2), (2_500_000_000, 250_000), (1, SHORTEST_QUOTA)],
)
def test_a_cpu_limit_as_quota(nano: int, quota: int) -> None:
    assert cpu_quota(nano) == quota


@pytest.mark.parametrize("mountinfo", ["", HYBRID.replace("cgroup2", "ext4"), CONTAINER])
def test_without_a_v2_mount_that_shows_our_cgroup_there_are_none(mountinfo: str) -> None:
    with pytest.raises(OSError, match="no writable cgroup v2 mount"):
        Cgroups("swarmvisor-test", mountinfo, "0::/elsewhere\n")


def test_a_directory_that_is_no_cgroup_is_refused(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir()
    mountinfo = f"29 23 0:26 / {tmp_path}/nowhere rw - cgroup2 cgroup2 rw\n"
    with pytest.raises(OSError, match="No such file"):
        Cgroups("swarmvisor-test", mountinfo, "0::/\n")
