"""A task's spec as supervisor wants it: a ProcessConfig made of attributes, without the config parser.

The parser expands `%` in commands; here nothing is expanded, split or looked up.
"""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supervisor.options import ProcessConfig

from procs.workload.child import resource_number
from swarm.errors import BadInput
from swarm.workload import STDERR, STDOUT, TaskSpec

if TYPE_CHECKING:
    from procs.workload.task import Surroundings

GROUP = "tasks"
"""The one group of all tasks, declared empty in workload.conf: `supervisorctl update` leaves a declared group alone."""

HIGHEST_ID = (1 << 32) - 2
"""The highest user or group id; the one above means "unchanged" to the kernel."""

_SIGNALS = frozenset(int(number) for number in signal.valid_signals())

_ID = re.compile(r"[a-z0-9]{25}")


def check_id(task_id: object) -> str:
    """`task_id` itself if it is a swarm id (and so a harmless file name), else BadInput."""
    if not isinstance(task_id, str) or not _ID.fullmatch(task_id):
        raise BadInput(f"{task_id!r} is not a task id: 25 characters of 0-9 and a-z")
    return task_id


def check_spec(spec: TaskSpec, task_id: str) -> TaskSpec:
    """`spec` itself if every field can be used, else BadInput naming the field. Types first: it was JSON."""
    fields: list[tuple[str, bool, str]] = [
        ("task_id", spec.task_id == task_id, f"says {spec.task_id!r}, but lies in the directory of {task_id}"),
        (
            "argv",
            _strings(spec.argv) and bool(spec.argv) and bool(spec.argv[0]),
            "is no list of strings with a command",
        ),
        ("wrapper", _strings(spec.wrapper), "is no list of strings"),
        ("env", isinstance(spec.env, dict) and _strings([*spec.env, *spec.env.values()]), "is no map of strings"),
        ("cwd", isinstance(spec.cwd, str) and (not spec.cwd or spec.cwd.startswith("/")), "is no absolute path"),
        ("uid", _integer(spec.uid, -1, HIGHEST_ID), "is no user id"),
        ("gid", _integer(spec.gid, -1, HIGHEST_ID), "is no group id"),
        ("gid", not _integer(spec.uid) or _integer(spec.gid), "is missing, though a uid is given"),
        ("groups", _ids(spec.groups), "is no list of group ids"),
        ("umask", _integer(spec.umask, 0, 0o777), "is no file mode mask"),
        ("stop_signal", _integer(spec.stop_signal) and spec.stop_signal in _SIGNALS, "is no signal"),
        ("stop_grace", isinstance(spec.stop_grace, (int, float)) and spec.stop_grace >= 0, "is no number of seconds"),
        ("memory_limit", _integer(spec.memory_limit), "is no number of bytes"),
        ("nano_cpus_limit", _integer(spec.nano_cpus_limit), "is no number"),
        ("pids_limit", _integer(spec.pids_limit), "is no number"),
        ("oom_score_adj", _integer(spec.oom_score_adj, -1000, 1000), "is not in -1000..1000"),
        ("log_max_bytes", _integer(spec.log_max_bytes), "is no number of bytes"),
        ("rlimits", isinstance(spec.rlimits, dict), "is no map"),
    ]
    for name, fits, problem in fields:
        if not fits:
            raise BadInput(f"spec of task {task_id}: {name} {problem}")
    for name, pair in spec.rlimits.items():
        if not (isinstance(pair, list) and len(pair) == 2 and all(_integer(bound, -1) for bound in pair)):
            raise BadInput(f"spec of task {task_id}: rlimit {name} is no pair of soft and hard bound")
        resource_number(name)
    return spec


class TaskConfig(ProcessConfig):  # type: ignore[misc]  # supervisor has no types
    """What supervisor's own RPC methods and state machine read of a task, and the spec for our part."""

    def __init__(self, options: Any, spec: TaskSpec, directory: Path, surroundings: Surroundings) -> None:
        super().__init__(
            options,
            name=spec.task_id,
            # shown, never parsed
            command=json.dumps(spec.wrapper + spec.argv),
            uid=None,
            directory=None,
            umask=None,
            priority=999,
            autostart=False,
            autorestart=False,
            startsecs=0,
            startretries=0,
            stdout_logfile=str(directory / STDOUT),
            stdout_capture_maxbytes=0,
            stdout_events_enabled=False,
            stdout_syslog=False,
            stdout_logfile_backups=0,
            stdout_logfile_maxbytes=0,
            stderr_logfile=str(directory / STDERR),
            stderr_capture_maxbytes=0,
            stderr_events_enabled=False,
            stderr_syslog=False,
            stderr_logfile_backups=0,
            stderr_logfile_maxbytes=0,
            stopsignal=spec.stop_signal,
            stopwaitsecs=spec.stop_grace,
            stopasgroup=False,
            killasgroup=False,
            exitcodes=[0],
            redirect_stderr=False,
            environment=None,
            serverurl=None,
        )
        self.spec = spec
        self.task_directory = directory
        self.surroundings = surroundings

    def make_process(self, group: Any = None) -> Any:
        # late: task.py needs this module
        from procs.workload.task import TaskProcess

        process = TaskProcess(self)
        process.group = group
        return process


def _strings(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _ids(values: object) -> bool:
    return isinstance(values, list) and all(_integer(value, 0, HIGHEST_ID) for value in values)


def _integer(value: object, least: int = 0, most: int = (1 << 63) - 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
