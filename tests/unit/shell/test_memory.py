"""Finding a file system in memory, and being told of changes in directories."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarm.errors import Refused
from swarm.inotify import Inotify
from swarm.paths import Paths
from swarm.tmpfs import is_in_memory, tasks_in_memory

MOUNTS = """\
1 0 8:1 / / rw - ext4 /dev/sda rw
2 1 0:5 / /dev/shm rw - tmpfs tmpfs rw
3 1 8:2 / /dev/shm/disk rw shared:1 - ext4 /dev/sdb rw
4 1 0:6 / /with\\040space rw - tmpfs tmpfs rw
5 1 0:7 / /twice rw - tmpfs tmpfs rw
6 1 8:3 / /twice rw - xfs /dev/sdc rw
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/dev/shm", True),
        ("/dev/shm/a/b", True),
        ("/dev/shm/disk/a", False),
        ("/dev/shmother", False),
        ("/home", False),
        ("/with space/x", True),
        ("/twice/x", False),
    ],
)
def test_the_nearest_mount_decides(tmp_path: Path, path: str, expected: bool) -> None:
    (tmp_path / "mountinfo").write_text(MOUNTS)
    assert is_in_memory(Path(path), mountinfo=tmp_path / "mountinfo") is expected


def test_nodes_get_places_of_their_own_and_none_on_a_disk(tmp_path: Path) -> None:
    one, other = (Paths(tmp_path / name, tmp_path) for name in ("one", "other"))
    assert tasks_in_memory(one) != tasks_in_memory(other)
    assert is_in_memory(tasks_in_memory(one).parent)
    with pytest.raises(Refused, match="no file system in memory"):
        tasks_in_memory(one, [tmp_path / "absent", Path("/proc")])


def test_changes_are_told_by_directory(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    watch = Inotify()
    try:
        a, b = watch.add(tmp_path / "a"), watch.add(tmp_path / "b")
        assert watch.changed() == set()
        (tmp_path / "a" / "file").write_text("x")
        assert watch.changed() == {a}
        assert watch.changed() == set()
        (tmp_path / "b").rmdir()
        assert watch.changed() == {b}
        watch.remove(a)
        assert watch.changed() == set()
        with pytest.raises(FileNotFoundError):
            watch.add(tmp_path / "absent")
    finally:
        watch.close()
