"""From a task as the swarm describes it to a process as the workload starts it: `ContainerSpec` → `TaskSpec`.

Everything is resolved here: image, user, groups, environment, signal, limits. What cannot be honoured raises
`Unresolvable` with a sentence, and the task is REJECTED with it (reference agent-and-dispatcher §3.2, §4.1).
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from procs.agent.dependencies import CONFIGS, CONFIGS_VARIABLE, SECRETS, SECRETS_VARIABLE, FileSet, needs_files
from procs.agent.refusals import refusals
from procs.agent.users import User, Users
from swarm.api import objects_pb2, specs_pb2
from swarm.errors import BadInput
from swarm.nodeconfig import NodeConfig
from swarm.workload import TaskSpec

HOST_IMAGE = "host"
"""The image that is the host's own file system, whatever its tag."""
BUNDLES = "bundles"
"""`<state>/bundles/<name>[:<tag>]`: a directory, or a link to one, with an executable `command` in it."""
BUNDLE_COMMAND = "command"

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_GRACE = 10.0
"""Seconds between stop signal and kill where the task says nothing (Docker's)."""

_NANOS = 10**9
_UNLIMITED = -1
_NAME = r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*"
_IMAGE = re.compile(rf"(?P<name>{_NAME})(?::(?P<tag>[\w][\w.-]{{0,127}}))?(?P<digest>@.+)?")
_VARIABLE = re.compile(r"[^=\0]+")
_CAPABILITY = re.compile(r"[A-Z_]+")


VXLAN_PORTS = (1024, 49151)
"""The ports that Docker takes for overlay networks: IANA's user ports."""


class Unresolvable(BadInput):
    """The task cannot run on this node; the message says why."""


@dataclass(frozen=True)
class Image:
    """What an image's name stands for here."""

    command: list[str]
    """Put before the arguments where the task names no command of its own."""
    directory: Path | None = None


@dataclass(frozen=True)
class Resolved:
    """What to start, and who must own its working directory where the workload cannot know that (None: it can)."""

    spec: TaskSpec
    work_owner: tuple[int, int] | None = None
    private: FileSet | None = None
    """Where its secrets and configs go; their content is filled in when the task is prepared."""


class Executor:
    """Builds the process of a task. Reads users and bundles of the host, changes nothing."""

    def __init__(
        self,
        *,
        state: Path,
        config: NodeConfig,
        node_id: Callable[[], str],
        memory: Path | None = None,
        users: Users | None = None,
        euid: int | None = None,
    ) -> None:
        """`memory`: below it each task gets its secrets and configs; None: there is no such place."""
        self._bundles = state / BUNDLES
        self._state = state
        self._config = config
        self._node_id = node_id
        self._memory = memory
        self._users = users or Users()
        self._euid = os.geteuid() if euid is None else euid
        self.vxlan_port = 0
        """UDP port of the swarm's overlay networks, 0: the default. Their tasks are refused in words (`refusals`)."""

    def configure(self, *, vxlan_port: int) -> None:
        """Take what the node object says (SwarmKit's Configure). Raises BadInput; the port of before stays then."""
        if vxlan_port and not VXLAN_PORTS[0] <= vxlan_port <= VXLAN_PORTS[1]:
            raise BadInput(
                f"VXLAN UDP port {vxlan_port} is not in the range {VXLAN_PORTS[0]} to {VXLAN_PORTS[1]}; "
                f"{self.vxlan_port or 'the default'} stays"
            )
        self.vxlan_port = vxlan_port

    def resolve(self, task: objects_pb2.Task) -> Resolved:
        """The process to start for `task`. Raises Unresolvable."""
        runtime = task.spec.WhichOneof("runtime")
        if runtime != "container":
            raise Unresolvable(f"exec: unsupported runtime: this node runs processes, not {runtime or 'nothing'}")
        refused = list(refusals(task))
        if refused:
            raise Unresolvable("; ".join(refused))
        container = task.spec.container
        user = self._user(container)
        image = self._image(container.image, user)
        argv = [*(container.command or image.command), *container.args]
        if not argv:
            raise Unresolvable("command and args are empty: the image `host` has no command of its own")
        if any("\0" in part for part in argv):
            raise Unresolvable("a command cannot hold a NUL character")
        limits = task.spec.resources.limits
        wrapper, wrapped = self._wrapper(container, user)
        private = self._private(task, user)
        spec = TaskSpec(
            task_id=task.id,
            argv=argv,
            env=self._environment(task, user, private),
            cwd=_directory(container.dir) or str(image.directory or ""),
            uid=-1 if wrapped else user.uid,
            gid=-1 if wrapped else user.gid,
            groups=[] if wrapped else list(user.groups),
            stop_signal=_signal(container.stop_signal),
            stop_grace=_grace(container),
            memory_limit=_positive(limits.memory_bytes),
            nano_cpus_limit=_positive(limits.nano_cpus),
            pids_limit=_positive(container.pidsLimit),
            oom_score_adj=self._oom_score(container.oom_score_adj),
            rlimits=_rlimits(container),
            wrapper=wrapper,
        )
        return Resolved(spec, work_owner=(user.uid, user.gid) if wrapped else None, private=private)

    def _private(self, task: objects_pb2.Task, user: User) -> FileSet | None:
        if not needs_files(task):
            return None
        if self._memory is None:
            raise Unresolvable(
                "secrets and configs cannot be honoured: this node has no file system in memory for them"
            )
        return FileSet(self._memory / task.id, (), user.uid, user.gid)

    def _user(self, container: specs_pb2.ContainerSpec) -> User:
        text = container.user
        privileged = self._euid == 0
        try:
            if not text and not privileged:
                user = self._users.current(self._euid)
            else:
                user = self._users.find(text or self._config.workload_user, list(container.groups))
        except BadInput as error:
            raise Unresolvable(error.describe()) from error
        if user.uid == 0 and text and privileged and not self._config.allow_root_tasks:
            raise Unresolvable("user root cannot be honoured: allow_root_tasks is false in this node's node.toml")
        if not privileged:
            if user.uid != self._euid:
                raise Unresolvable(f"user {text!r} cannot be honoured: this node does not run as root")
            if container.groups:
                raise Unresolvable("groups cannot be honoured: this node does not run as root")
            return User(name=user.name, home=user.home, uid=-1, gid=-1, groups=())
        return user

    def _image(self, reference: str, user: User) -> Image:
        if not reference:
            raise Unresolvable("image required: `host` for a command of the host, or the name of an installed bundle")
        match = _IMAGE.fullmatch(reference)
        if match and match["name"] == HOST_IMAGE:
            return Image(command=[])
        if not match:
            raise Unresolvable(f"image {reference!r} cannot be run: this node runs `host` and installed bundles")
        if match["digest"]:
            raise Unresolvable(f"image {reference!r} cannot be run: bundles have no digests")
        tag = match["tag"] or "latest"
        name = match["name"] if tag == "latest" else f"{match['name']}:{tag}"
        directory = self._bundles / name
        if not directory.is_dir():
            raise Unresolvable(
                f"image {reference!r} is not installed on this node: there is no {BUNDLES}/{name} in its state"
                " directory; the image `host` runs a command of the host itself"
            )
        home = directory.resolve()
        command = home / BUNDLE_COMMAND
        if not os.access(command, os.X_OK) or not command.is_file():
            raise Unresolvable(f"image {reference!r} cannot be run: its bundle has no executable file `command`")
        if user.uid > 0 and home.is_relative_to(self._state.resolve()):
            raise Unresolvable(
                f"image {reference!r} cannot be run as user {user.name}: its bundle lies in the node's own directory,"
                f" which only root may enter; make {BUNDLES}/{name} a link to a directory elsewhere"
            )
        return Image(command=[str(command)], directory=home)

    def _environment(self, task: objects_pb2.Task, user: User, private: FileSet | None) -> dict[str, str]:
        env = {
            "PATH": DEFAULT_PATH,
            "HOME": user.home,
            "USER": user.name,
            "LOGNAME": user.name,
            "SWARMVISOR_TASK_ID": task.id,
            "SWARMVISOR_TASK_NAME": task_name(task),
            "SWARMVISOR_TASK_SLOT": str(task.slot),
            "SWARMVISOR_SERVICE_ID": task.service_id,
            "SWARMVISOR_SERVICE_NAME": task.service_annotations.name,
            "SWARMVISOR_NODE_ID": task.node_id or self._node_id(),
        }
        if private is not None and task.spec.container.secrets:
            env[SECRETS_VARIABLE] = str(private.directory / SECRETS)
        if private is not None and task.spec.container.configs:
            env[CONFIGS_VARIABLE] = str(private.directory / CONFIGS)
        generic: dict[str, list[str]] = {}
        for one in task.assigned_generic_resources:
            if one.WhichOneof("resource") == "named_resource_spec":
                generic.setdefault(one.named_resource_spec.kind, []).append(one.named_resource_spec.value)
            else:
                generic.setdefault(one.discrete_resource_spec.kind, []).append(str(one.discrete_resource_spec.value))
        env.update({f"DOCKER_RESOURCE_{kind.upper()}": ",".join(values) for kind, values in sorted(generic.items())})
        for entry in task.spec.container.env:
            key, separator, value = entry.partition("=")
            if not _VARIABLE.fullmatch(key) or "\0" in value:
                raise Unresolvable(f"env {entry!r} is not NAME=VALUE")
            if separator:
                env[key] = value
            else:
                env.pop(key, None)  # Docker's way to take a default out of the environment
        return env

    def _oom_score(self, score: int) -> int:
        if not -1000 <= score <= 1000:
            raise Unresolvable(f"oom_score_adj {score} is not within -1000 and 1000")
        if score < 0 and self._euid != 0:
            raise Unresolvable(f"oom_score_adj {score} cannot be honoured: this node does not run as root")
        return score

    def _wrapper(self, container: specs_pb2.ContainerSpec, user: User) -> tuple[list[str], bool]:
        """`setpriv` with what the task asks of capabilities and privileges, and whether it changes the user as well."""
        added, dropped = _capabilities(container.capability_add), _capabilities(container.capability_drop)
        options: list[str] = []
        changes_user = False
        if added or dropped:
            if self._euid != 0:
                raise Unresolvable("capabilities cannot be honoured: this node does not run as root")
            bounding = _capability_set(added, dropped)
            options += ["--bounding-set", bounding, "--inh-caps", _ambient(added, user)]
            if user.uid > 0:
                # After the change of user nobody could give capabilities any more, so setpriv does both.
                changes_user = True
                options += ["--ambient-caps", _ambient(added, user)]
                options += ["--reuid", str(user.uid), "--regid", str(user.gid)]
                options += ["--groups", ",".join(map(str, user.groups))] if user.groups else ["--clear-groups"]
                # A change of user clears the signal that ends the task with its supervisor.
                options += ["--pdeathsig", "KILL"]
        if container.privileges.no_new_privileges:
            options.append("--no-new-privs")
        if not options:
            return [], False
        program = shutil.which("setpriv", path=DEFAULT_PATH)
        if program is None:
            raise Unresolvable(
                "capabilities and no_new_privileges cannot be honoured: there is no setpriv on this node"
            )
        return [program, *options, "--"], changes_user


def task_name(task: objects_pb2.Task) -> str:
    """`<service>.<slot>.<id>`; the node id stands for slot 0 (reference agent-and-dispatcher §1.4)."""
    if task.annotations.name:
        return task.annotations.name
    return f"{task.service_annotations.name}.{task.slot or task.node_id}.{task.id}"


def _directory(text: str) -> str:
    if text and not os.path.isabs(text):
        raise Unresolvable(f"dir {text!r} is not an absolute path")
    if "\0" in text:
        raise Unresolvable("dir cannot hold a NUL character")
    return text


def _signal(text: str) -> int:
    if not text:
        return int(signal.SIGTERM)
    name = text.strip().upper()
    try:
        if name.isdigit():
            return int(signal.Signals(int(name)))
        return int(signal.Signals["SIG" + name.removeprefix("SIG")])
    except (KeyError, ValueError) as error:
        raise Unresolvable(f"stop_signal {text!r} is not a signal of this system") from error


def _grace(container: specs_pb2.ContainerSpec) -> float:
    if not container.HasField("stop_grace_period"):
        return DEFAULT_GRACE
    grace = container.stop_grace_period
    seconds = grace.seconds + grace.nanos / _NANOS
    if seconds < 0:
        raise Unresolvable(f"stop_grace_period {seconds:g} s is negative")
    return seconds


def _positive(number: int) -> int:
    return max(0, number)


def _rlimits(container: specs_pb2.ContainerSpec) -> dict[str, list[int]]:
    limits: dict[str, list[int]] = {}
    for ulimit in container.ulimits:
        name = ulimit.name.lower()
        if not hasattr(resource, f"RLIMIT_{name.upper()}"):
            raise Unresolvable(f"ulimit {ulimit.name!r} is not a limit of this system")
        soft, hard = ulimit.soft, ulimit.hard
        if soft < _UNLIMITED or hard < _UNLIMITED or (hard != _UNLIMITED and not 0 <= soft <= hard):
            raise Unresolvable(f"ulimit {ulimit.name}: soft {soft} exceeds hard {hard}, or one is negative")
        limits[name] = [soft, hard]
    return limits


def _capabilities(names: Iterable[str]) -> list[str]:
    found = []
    for name in names:
        short = name.upper().removeprefix("CAP_")
        if not _CAPABILITY.fullmatch(short):
            raise Unresolvable(f"capability {name!r} is not a capability's name")
        found.append(short.lower())
    return found


def _capability_set(added: list[str], dropped: list[str]) -> str:
    """setpriv's notation of the bounding set: all, less what is dropped, and what is added comes back."""
    if "all" in added:
        return "+all"
    if "all" in dropped:
        return ",".join(["-all", *(f"+{name}" for name in added)])
    return ",".join(f"-{name}" for name in dropped if name not in added) or "+all"


def _ambient(added: list[str], user: User) -> str:
    """What a task's process may keep over execve: root needs nothing inherited, others exactly what was added."""
    if user.uid == 0 or not added:
        return "-all"
    return "+all" if "all" in added else ",".join(["-all", *(f"+{name}" for name in added)])
