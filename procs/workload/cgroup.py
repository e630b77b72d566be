"""Tasks as cgroups: found, made, limited, ended and removed (DESIGN §7).

`cgroup.kill` of a v2 hierarchy ends a task with all its double-forked daemons; a hierarchy without controllers (the
`unified` mount of a hybrid host) does as well. Limits come from v2 controllers where they are delegated, else from
the v1 hierarchies where those are writable, else they are refused: a limit is never ignored.

    <v2 mount>/<our own cgroup>/swarmvisor-<hash of the state directory>/<task id>
    <v1 mount>/<our own cgroup>/swarmvisor-<hash …>/<task id>          only for a task with such a limit
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import select
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from procs.workload.containment import Entry, Limits
from swarm.errors import Refused

CPU_PERIOD = 100_000
"""Microseconds; the kernel's default period of a CPU quota."""
SHORTEST_QUOTA = 1_000
"""Microseconds; the kernel refuses less."""
END_DEADLINE = 10.0
"""Seconds that killed processes of an earlier life may take to be gone."""
KILL_ROUNDS = 100
"""Rounds of killing one by one, where the kernel has no cgroup.kill (before 5.14)."""


@dataclass(frozen=True)
class Mount:
    """One mounted cgroup hierarchy."""

    point: Path
    root: str
    """Which part of the hierarchy is mounted; `/` for all of it."""
    v2: bool
    controllers: frozenset[str] = frozenset()
    """v1: the controllers of this hierarchy."""


def parse_mounts(mountinfo: str) -> list[Mount]:
    """The cgroup hierarchies in `/proc/self/mountinfo` (proc(5)), in mount order; read-only ones are left out."""
    mounts: list[Mount] = []
    for line in mountinfo.splitlines():
        before, found, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if not found or len(fields) < 6 or kind[0] not in ("cgroup", "cgroup2") or "ro" in fields[5].split(","):
            continue
        options = frozenset(kind[2].split(",")) if len(kind) > 2 else frozenset()
        v2 = kind[0] == "cgroup2"
        mounts.append(Mount(Path(_unescape(fields[4])), _unescape(fields[3]), v2, frozenset() if v2 else options))
    return mounts


def parse_membership(text: str) -> dict[str, str]:
    """`/proc/self/cgroup` as controller to path; the v2 path is under the empty name."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            paths[name] = path
    return paths


def own_directory(mount: Mount, path: str) -> Path | None:
    """Where the cgroup `path` is in `mount`; None if that mount does not show it."""
    root = mount.root.rstrip("/")
    if path != root and not path.startswith(root + "/"):
        return None
    return mount.point / path[len(root) :].strip("/")


def subtree_name(state: Path) -> str:
    """The name of a node's subtree: two nodes of one host never share one."""
    return f"swarmvisor-{hashlib.sha256(os.fsencode(state)).hexdigest()[:16]}"


def cpu_quota(nano_cpus: int) -> int:
    """Microseconds of CPU in each CPU_PERIOD."""
    return max(SHORTEST_QUOTA, nano_cpus * CPU_PERIOD // 1_000_000_000)


class Cgroups:
    """The cgroups of one node's tasks. Raises OSError at birth if this process has no right to make and enter them."""

    name = "cgroup"

    def __init__(self, subtree: str, mountinfo: str, membership: str) -> None:
        mounts, own = parse_mounts(mountinfo), parse_membership(membership)
        unified = [m for m in mounts if m.v2]
        homes = [home for m in unified if (home := own_directory(m, own.get("", "/"))) is not None]
        if not homes:
            raise OSError(errno.ENOENT, "no writable cgroup v2 mount in /proc/self/mountinfo")
        self._subtree = subtree
        self._mount = unified[0].point
        self._own = homes[0]
        self.root = homes[0] / subtree
        self._v1: dict[str, Path] = {}
        for mount in mounts:
            for controller in mount.controllers & {"memory", "pids", "cpu"}:
                home = own_directory(mount, own.get(controller, "/"))
                if home is not None:
                    self._v1.setdefault(controller, home / subtree)
        self._leaves: dict[str, list[Path]] = {}
        """Every cgroup of a task, that of v2 first."""
        self._stale: set[str] = set()
        """Tasks that are over, but whose last process was still dying."""
        self._make_root()

    @classmethod
    def of_this_process(cls, state: Path) -> Cgroups:
        """The cgroups of the node with this state directory."""
        read = Path("/proc/self").joinpath
        return cls(subtree_name(state), read("mountinfo").read_text(), read("cgroup").read_text())

    # -- the port ----------------------------------------------------------------------------------

    def end_all(self) -> None:
        # An earlier life may have had another cgroup of its own, so its subtree may lie elsewhere: look everywhere.
        found = [Path(at) / self._subtree for at, names, _ in os.walk(self._mount) if self._subtree in names]
        for root in found:
            if root == self._own or root in self._own.parents:
                raise Refused(
                    f"this supervisord runs inside {root}, the cgroup of its own tasks",
                    remedy="start the node from outside its tasks",
                )
            _kill(root)
        for root in found:
            _wait_empty(root, END_DEADLINE)
            _remove_tree(root)
        for root in self._v1.values():
            _remove_tree(root)
        self.root.mkdir(exist_ok=True)

    def prepare(self, task_id: str, limits: Limits) -> Entry:
        leaf = self.root / task_id
        self._leaves[task_id] = [leaf]
        try:
            leaf.mkdir(parents=True)
            self._limit(task_id, limits)
        except BaseException:
            self.forget(task_id)
            raise
        return Entry(cgroups=[str(directory / "cgroup.procs") for directory in self._leaves[task_id]])

    def end(self, task_id: str) -> None:
        _kill(self.root / task_id)

    def forget(self, task_id: str) -> None:
        removed = [_remove_tree(leaf) for leaf in self._leaves.get(task_id, [])]
        if all(removed):
            self._leaves.pop(task_id, None)
            self._stale.discard(task_id)
        else:
            self._stale.add(task_id)

    def sweep(self) -> bool:
        for task_id in list(self._stale):
            self.forget(task_id)
        return bool(self._stale)

    def close(self, deadline: float) -> None:
        _kill(self.root)
        _wait_empty(self.root, deadline)
        for root in (self.root, *self._v1.values()):
            _remove_tree(root)
        self._leaves.clear()
        self._stale.clear()

    # -- limits ------------------------------------------------------------------------------------

    def _limit(self, task_id: str, limits: Limits) -> None:
        """Enforce `limits` on a new task, in v1 cgroups that join its leaves where v2 has no such controller."""
        leaves = self._leaves[task_id]
        quota = cpu_quota(limits.nano_cpus)
        # controller, words, files of v2, files of v1; v1 wants memory before memory+swap, whose file need not be there
        wanted: list[tuple[str, str, list[tuple[str, str]], list[tuple[str, str]]]] = []
        if limits.memory:
            amount = str(limits.memory)
            v1 = [("memory.limit_in_bytes", amount), ("memory.memsw.limit_in_bytes?", amount)]
            wanted.append(("memory", "memory limit", [("memory.max", amount), ("memory.swap.max?", "0")], v1))
        if limits.pids:
            files = [("pids.max", str(limits.pids))]
            wanted.append(("pids", "pids limit", files, files))
        if limits.nano_cpus:
            v1 = [("cpu.cfs_period_us", str(CPU_PERIOD)), ("cpu.cfs_quota_us", str(quota))]
            wanted.append(("cpu", "CPU limit", [("cpu.max", f"{quota} {CPU_PERIOD}")], v1))
        for controller, what, v2_files, v1_files in wanted:
            if self._delegated(controller):
                _write_all(leaves[0], v2_files)
            elif controller in self._v1:
                directory = self._v1[controller] / task_id
                try:
                    directory.mkdir(parents=True, exist_ok=True)
                    # two controllers may share a hierarchy
                    leaves += [directory] if directory not in leaves else []
                    _write_all(directory, v1_files)
                except OSError as error:
                    raise _cannot_enforce(what, f"cgroup v1 {controller}: {error.strerror} at {directory}") from error
            else:
                raise _cannot_enforce(what, f"no {controller} controller is delegated to {self.root}, and none in v1")

    def _delegated(self, controller: str) -> bool:
        """Whether leaves have this v2 controller; switches it on from our own cgroup down if that is allowed."""
        for directory in (self._own, self.root):
            if controller not in (directory / "cgroup.controllers").read_text().split():
                return False
            if controller not in (directory / "cgroup.subtree_control").read_text().split():
                try:
                    (directory / "cgroup.subtree_control").write_text(f"+{controller}")
                except OSError:
                    # not ours to switch on, or our own cgroup has processes (only the root may have both)
                    return False
        return True

    def _make_root(self) -> None:
        """Make the subtree, and prove by a child that processes may be moved into it.

        Owning a directory is not enough without root: the mover must sit inside a common ancestor that it may write.
        """
        self.root.mkdir(exist_ok=True)
        leaf = self.root / "probe"
        leaf.mkdir(exist_ok=True)
        child = os.fork()
        if child == 0:
            try:
                (leaf / "cgroup.procs").write_text("0")
                os._exit(0)
            except OSError as error:
                os._exit(error.errno or errno.EPERM)
            finally:
                os._exit(errno.EPERM)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        _wait_empty(leaf, END_DEADLINE)
        leaf.rmdir()
        if code != 0:
            _remove_tree(self.root)
            raise OSError(code, f"cannot move processes into {self.root}: {os.strerror(code)}")


def _cannot_enforce(what: str, why: str) -> Refused:
    return Refused(
        f"{what}: cannot be enforced on this node: {why}",
        remedy="delegate the controller to the node's cgroup (systemd: Delegate=yes), or drop the limit",
    )


def _write_all(directory: Path, files: Iterable[tuple[str, str]]) -> None:
    """Write each value; a name that ends in `?` may be absent."""
    for name, value in files:
        path = directory / name.rstrip("?")
        if name.endswith("?") and not path.exists():
            continue
        path.write_text(value)


def _kill(root: Path) -> None:
    """SIGKILL everything in `root` and below. A cgroup that is gone has nothing to kill."""
    try:
        (root / "cgroup.kill").write_text("1")
    except FileNotFoundError:
        if root.exists():
            _kill_one_by_one(root)


def _kill_one_by_one(root: Path) -> None:
    """Kernels before 5.14: again and again, as what is killed may have forked meanwhile."""
    for _ in range(KILL_ROUNDS):
        pids = [pid for at, _, _ in os.walk(root) for pid in (Path(at) / "cgroup.procs").read_text().split()]
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def _wait_empty(root: Path, deadline: float) -> bool:
    """Wait until no process is in `root` and below; the kernel tells through `cgroup.events`. False: not in time."""
    end = time.monotonic() + deadline
    try:
        events = os.open(root / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        poller = select.poll()
        poller.register(events, select.POLLPRI)
        while b"populated 1" in os.pread(events, 4096, 0):
            left = end - time.monotonic()
            if left <= 0:
                return False
            poller.poll(left * 1000)
    finally:
        os.close(events)
    return True


def _remove_tree(root: Path) -> bool:
    """Remove `root` and the cgroups below it. False if one still has processes."""
    try:
        root.rmdir()
        return True
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
            raise
    try:
        for at, _, _ in os.walk(root, topdown=False):
            os.rmdir(at)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
            return False
        raise
    return True


def _unescape(text: str) -> str:
    """mountinfo writes space, tab, newline and backslash in octal."""
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), text)
