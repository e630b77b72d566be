"""Secrets and configs: what the manager sent of them, which task may have which, and as which files.

They are kept in memory only. A task gets those that it names, in a directory of its own on a tmpfs, as long as it runs:

    <tmpfs>/<task id>/secrets/<target>    `SWARMVISOR_SECRETS_DIR` names the directory
    <tmpfs>/<task id>/configs/<target>    `SWARMVISOR_CONFIGS_DIR`

Only the task's user may enter `<task id>`; below it a file has the owner and mode of its target. A target's owner 0,
Docker's default, stands for the default user of the image; here that is the workload user.
Facts: reference/agent-and-dispatcher §2.7, §2.11, §8.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from swarm.api import dispatcher_pb2, objects_pb2, specs_pb2, types_pb2
from swarm.errors import BadInput

SECRETS = "secrets"
CONFIGS = "configs"
SECRETS_VARIABLE = "SWARMVISOR_SECRETS_DIR"
CONFIGS_VARIABLE = "SWARMVISOR_CONFIGS_DIR"
_PERMISSIONS = 0o777


class Missing(BadInput):
    """The manager has not sent what a task names."""


@dataclass(frozen=True)
class File:
    """One file for a task."""

    name: str
    """Relative to the task's directory: `secrets/…` or `configs/…`."""
    data: bytes = field(repr=False)
    mode: int
    uid: int
    """-1: the task's user."""
    gid: int


@dataclass(frozen=True)
class FileSet:
    """All files of a task, and who it is that may enter their directory (-1: who we are)."""

    directory: Path
    files: tuple[File, ...]
    uid: int
    gid: int

    def write(self) -> None:
        """Write anew. Raises OSError."""
        withdraw(self.directory)
        shared = self.directory.parent
        shared.mkdir(mode=0o700, exist_ok=True)
        if shared.is_symlink() or shared.lstat().st_uid != os.geteuid():
            raise PermissionError(f"{shared} belongs to somebody else")
        shared.chmod(0o711)  # tasks pass through it, each to its own
        self.directory.mkdir(mode=0o700)
        for file in self.files:
            path = self.directory / file.name
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "wb") as out:
                out.write(file.data)
                os.fchown(descriptor, self.uid if file.uid < 0 else file.uid, self.gid if file.gid < 0 else file.gid)
                os.fchmod(descriptor, file.mode)
        for inner, _, _ in os.walk(self.directory):
            os.chmod(inner, 0o755)
        os.chmod(self.directory, 0o700)
        os.chown(self.directory, self.uid, self.gid)


def withdraw(directory: Path) -> None:
    """Remove a task's files, if there are any, and the place for them when they were the last."""
    if directory.exists():
        shutil.rmtree(directory)
    with contextlib.suppress(OSError):  # other tasks' files are there, or none ever were
        directory.parent.rmdir()


class Dependencies:
    """What the manager sent. `apply` takes change sets, `files` answers for a task."""

    def __init__(self) -> None:
        self._secrets: dict[str, objects_pb2.Secret] = {}
        self._configs: dict[str, objects_pb2.Config] = {}
        self.complete = False
        """Whether a whole set was heard in this life of the agent: what is missing then does not come."""

    def apply(self, message: dispatcher_pb2.AssignmentsMessage) -> None:
        """Take over the secrets and configs of a change set."""
        if message.type == dispatcher_pb2.AssignmentsMessage.COMPLETE:
            self._secrets.clear()
            self._configs.clear()
            self.complete = True
        for change in message.changes:
            removed = change.action == dispatcher_pb2.AssignmentChange.REMOVE
            match change.assignment.WhichOneof("item"):
                case "secret":
                    secret = change.assignment.secret
                    if removed:
                        self._secrets.pop(secret.id, None)
                    else:
                        self._secrets[secret.id] = secret
                case "config":
                    config = change.assignment.config
                    if removed:
                        self._configs.pop(config.id, None)
                    else:
                        self._configs[config.id] = config

    def files(self, task: objects_pb2.Task) -> tuple[File, ...]:
        """The files of a task. Raises Missing, or BadInput for what cannot be delivered."""
        container = task.spec.container
        defaults = not container.user
        found = []
        for reference in container.secrets:
            # A driver may have made one for this task alone.
            secret = self._secrets.get(f"{reference.secret_id}.{task.id}") or self._secrets.get(reference.secret_id)
            if secret is None:
                raise Missing(f"secret {reference.secret_id} not found")
            _check_templating(secret.spec.HasField("templating"), f"secret {reference.secret_name!r}")
            found.append(_file(SECRETS, reference.file, secret.spec.data, defaults=defaults))
        for config_reference in container.configs:
            config = self._configs.get(config_reference.config_id)
            if config is None:
                raise Missing(f"config {config_reference.config_id} not found")
            _check_templating(config.spec.HasField("templating"), f"config {config_reference.config_name!r}")
            found.append(_file(CONFIGS, config_reference.file, config.spec.data, defaults=defaults))
        return tuple(found)


def needs_files(task: objects_pb2.Task) -> bool:
    """Whether a task names secrets or configs."""
    return bool(task.spec.container.secrets or task.spec.container.configs)


def refused_targets(container: specs_pb2.ContainerSpec) -> Iterator[str]:
    """A sentence for each secret and config whose target no process on the host can be given."""
    taken: set[str] = set()
    for kind, variable, name, target in _targets(container):
        what = f"{kind} {name!r}"
        if target is None:
            yield f"{what} cannot be honoured: it has no file as its target"
            continue
        path = PurePosixPath(target.name)
        if path.is_absolute():
            yield (
                f"{what}: target {target.name!r} cannot be honoured: a process uses the host's own files as they are;"
                f" give a relative target, which is found in ${variable}"
            )
        elif not path.parts or ".." in path.parts or "\0" in target.name:
            yield f"{what}: target {target.name!r} is not the name of a file"
        elif f"{kind}/{path}" in taken:
            yield f"{what}: target {target.name!r} is that of another one"
        taken.add(f"{kind}/{path}")
        for field_name, text in (("uid", target.uid), ("gid", target.gid)):
            if text and not (text.isascii() and text.isdigit() and int(text) < 2**32 - 1):
                yield f"{what}: {field_name} {text!r} is not a number"
            elif os.geteuid() != 0 and text and int(text) not in (0, os.geteuid(), os.getegid()):
                yield f"{what}: {field_name} {text} cannot be honoured: this node does not run as root"


def _targets(container: specs_pb2.ContainerSpec) -> Iterator[tuple[str, str, str, types_pb2.FileTarget | None]]:
    for secret in container.secrets:
        yield "secret", SECRETS_VARIABLE, secret.secret_name, secret.file if secret.HasField("file") else None
    for config in container.configs:
        yield "config", CONFIGS_VARIABLE, config.config_name, config.file if config.HasField("file") else None


def _file(kind: str, target: types_pb2.FileTarget, data: bytes, *, defaults: bool) -> File:
    def owner(text: str) -> int:
        number = int(text or "0")
        return -1 if number == 0 and defaults else number

    name = f"{kind}/{PurePosixPath(target.name)}"
    return File(name, data, target.mode & _PERMISSIONS, owner(target.uid), owner(target.gid))


def _check_templating(asked: bool, what: str) -> None:
    if asked:
        raise BadInput(f"{what}: templating cannot be honoured: this release expands no templates")
