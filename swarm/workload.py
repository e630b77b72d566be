"""What the agent and the workload's supervisord agree on: the files of a task (DESIGN §7).

    tasks/<id>/spec     written by the agent before `add` (0600): a `TaskSpec`
    tasks/<id>/exit     written by the workload plug-in when the main process has ended: a `TaskExit`
    tasks/<id>/stdout, stderr   the task's output, O_APPEND, bounded by freeing the head of the file in place
    tasks/<id>/work     the working directory where the spec names none, owned by the task's user

Both files are JSON objects, versioned; unknown fields are ignored so that agent and workload may be of neighbouring
releases.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from swarm.errors import CorruptFile
from swarm.files import write_atomic

VERSION = 1
SPEC = "spec"
EXIT = "exit"
STDOUT = "stdout"
STDERR = "stderr"
WORK = "work"


class _Record:
    """JSON in and out for the two dataclasses below."""

    def save(self, path: Path) -> None:
        body = {"version": VERSION, **dataclasses.asdict(self)}  # type: ignore[call-overload]
        write_atomic(path, json.dumps(body).encode(), mode=0o600)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises FileNotFoundError, or CorruptFile if the content cannot be used."""
        try:
            body: Any = json.loads(path.read_bytes())
            known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
            return cls(**{k: v for k, v in body.items() if k in known})
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptFile(path, f"not a {cls.__name__}: {error}") from error


@dataclass(frozen=True)
class TaskSpec(_Record):
    """Everything the workload needs to start one task's process; resolved by the agent, nothing left to guess."""

    task_id: str
    argv: list[str]
    env: dict[str, str] = field(default_factory=dict)
    """The whole environment, nothing is inherited."""
    cwd: str = ""
    """Empty: `tasks/<id>/work`."""
    uid: int = -1
    """-1: the user that runs the workload supervisord."""
    gid: int = -1
    groups: list[int] = field(default_factory=list)
    umask: int = 0o022
    stop_signal: int = 15
    stop_grace: float = 10.0
    """Seconds between the stop signal and the end of the whole cgroup."""
    memory_limit: int = 0
    """Bytes, 0: none."""
    nano_cpus_limit: int = 0
    """10^9 a core, 0: none."""
    pids_limit: int = 0
    oom_score_adj: int = 0
    rlimits: dict[str, list[int]] = field(default_factory=dict)
    """Name without RLIMIT_, lower case (nofile) to [soft, hard]."""
    log_max_bytes: int = 10 * 1024 * 1024
    """Bound of stdout and of stderr on disk, each."""
    wrapper: list[str] = field(default_factory=list)
    """Command put before argv (setpriv, unshare), only where capabilities or mounts ask for it."""


@dataclass(frozen=True)
class TaskExit(_Record):
    """How a task's main process ended."""

    task_id: str
    boot_id: str
    """/proc/sys/kernel/random/boot_id of the boot in which it ended."""
    pid: int = 0
    start_ticks: int = 0
    started_at: int = 0
    """Unix ns."""
    exited_at: int = 0
    """Unix ns."""
    wait_status: int = 0
    """Raw wait status; meaningless if `why` says that it never started."""
    why: str = ""
    """Non-empty: it could not be started; names the failing step."""
