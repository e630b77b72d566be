"""What the forked child does between `fork` and `execve`: the task's surroundings, step by step (DESIGN §7).

There is no exec shim (a Python one costs 18 ms a task); these steps cost 0.3 ms. A step that fails is told to the
parent through a close-on-exec pipe: its closing without a word says that `execve` worked.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os
import resource
import signal
from dataclasses import dataclass, field
from typing import NoReturn

from swarm.errors import BadInput

PR_SET_PDEATHSIG = 1
REPORT_FD = 3
"""Where the child keeps its end of the report pipe; everything above is closed."""
REPORT_LIMIT = 2000
"""Bytes of a report; well below what a pipe takes at once."""
EXEC_FAILED = 127
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Loaded in the parent: a child of a process with threads should not run the dynamic loader.
_prctl = ctypes.CDLL(None, use_errno=True).prctl


@dataclass(frozen=True)
class Launch:
    """Everything the child needs, resolved by the parent: no lookups, no parsing after the fork."""

    argv: list[str]
    env: dict[str, str]
    stdout: str
    stderr: str
    cwd: str
    cwd_before_user: bool
    """Enter `cwd` as supervisord's user: the task's own directory lies below directories closed to the task's user."""
    cgroups: list[str] = field(default_factory=list)
    """`cgroup.procs` files to enter."""
    rlimits: list[tuple[int, int, int]] = field(default_factory=list)
    """Resource, soft, hard."""
    oom_score_adj: int | None = None
    """None: as inherited, which is already right."""
    umask: int = 0o022
    uid: int = -1
    """-1: stay who we are."""
    gid: int = -1
    groups: list[int] = field(default_factory=list)
    parent: int = 0
    """Pid of the supervisord; the child gives up if that is no longer its parent."""
    highest_fd: int = 65536
    """Descriptors from REPORT_FD + 1 up to this one are closed."""


def resource_number(name: str) -> int:
    """The number of a resource limit by its name without RLIMIT_, in any case. Raises BadInput."""
    number = getattr(resource, f"RLIMIT_{name.upper()}", None)
    if number is None:
        raise BadInput(f"rlimit {name!r}: there is no such resource limit")
    return int(number)


def fork_child(launch: Launch) -> tuple[int, int]:
    """Fork a child that becomes the task. Returns its pid and the read end of its report pipe. Raises OSError."""
    _altered_signals()
    reading, writing = os.pipe()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    try:
        pid = os.fork()
        if pid == 0:
            run_child(launch, writing)
    except OSError:
        os.close(reading)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(writing)
    return pid, reading


def run_child(launch: Launch, report: int) -> NoReturn:
    """Become the task; never returns. `report` is the write end of the pipe."""
    step = "start"
    try:
        if report != REPORT_FD:
            os.dup2(report, REPORT_FD, inheritable=False)
        gc.disable()  # nothing of the parent's is to be finalised here (its ZeroMQ context above all)
        step = "session"
        os.setsid()
        step = "descriptors"
        _take_descriptors(launch)
        step = "cgroup"
        for path in launch.cgroups:
            _write(path, b"0")
        step = "rlimits"
        for number, soft, hard in launch.rlimits:
            step = f"rlimit {_rlimit_name(number)}"
            resource.setrlimit(number, (soft, hard))
        step = "OOM score"
        if launch.oom_score_adj is not None:
            _write("/proc/self/oom_score_adj", str(launch.oom_score_adj).encode())
        os.umask(launch.umask)
        if launch.cwd_before_user:
            step = f"working directory {launch.cwd}"
            os.chdir(launch.cwd)
        if launch.uid >= 0:
            step = "groups"
            os.setgroups(launch.groups)
            step = f"group {launch.gid}"
            os.setresgid(launch.gid, launch.gid, launch.gid)
            step = f"user {launch.uid}"
            os.setresuid(launch.uid, launch.uid, launch.uid)
        if not launch.cwd_before_user:
            step = f"working directory {launch.cwd}"
            os.chdir(launch.cwd)
        step = "parent death signal"
        # after the change of user, which clears it
        if _prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        if os.getppid() != launch.parent:
            os._exit(EXEC_FAILED)  # the supervisord is gone: nobody is there to be told
        step = "signals"
        _reset_signals()
        step = f"command {launch.argv[0]}"
        _execute(launch.argv, launch.env)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is told to the parent and this process ends
        _tell(step, error)
    finally:
        os._exit(EXEC_FAILED)


def _take_descriptors(launch: Launch) -> None:
    """0 from /dev/null, 1 and 2 into the log files, nothing else but the report pipe (close-on-exec)."""
    os.closerange(REPORT_FD + 1, launch.highest_fd)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    for target, path in ((1, launch.stdout), (2, launch.stderr)):
        log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        if launch.uid >= 0:
            # `/dev/stdout` opens the file anew, with the task's own rights
            os.fchown(log, launch.uid, launch.gid)
        os.dup2(log, target)
        os.close(log)


HANDLED = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGCHLD,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
"""What a supervisord and `swarm.process` handle: blocked around the fork, since a handler would swallow, in the child,
what is meant for the task."""


@functools.cache
def _altered_signals() -> list[int]:
    """Every signal whose disposition is not the default. Asked for once, in the parent: it costs 0.1 ms."""
    return [n for n in signal.valid_signals() if n in HANDLED or signal.getsignal(n) not in (signal.SIG_DFL, None)]


def _reset_signals() -> None:
    """Every disposition to its default, then nothing blocked: what was sent since the fork takes effect now.

    Python ignores SIGPIPE and SIGXFSZ, and what is ignored stays so over execve.
    """
    for number in _altered_signals():
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _execute(argv: list[str], env: dict[str, str]) -> NoReturn:
    """execve, looking a name without slash up in the task's own PATH; raises the most telling OSError."""
    program = argv[0]
    if "/" in program:
        os.execve(program, argv, env)
    denied: OSError | None = None
    for directory in env.get("PATH", DEFAULT_PATH).split(":"):
        try:
            os.execve(f"{directory or '.'}/{program}", argv, env)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as error:
            denied = denied or error
    raise denied or FileNotFoundError(2, "not found in PATH")


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def _rlimit_name(number: int) -> str:
    return next((n for n in dir(resource) if n.startswith("RLIMIT_") and getattr(resource, n) == number), str(number))


def _tell(step: str, error: BaseException) -> None:
    """The failing step into the report pipe: `<step>: <why>`, at most REPORT_LIMIT bytes."""
    why = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    # a parent that is gone leaves nobody to tell: SIGPIPE is either blocked or ends this process, as it would anyway
    with contextlib.suppress(OSError):
        os.write(REPORT_FD, f"{step}: {why}".encode(errors="backslashreplace")[:REPORT_LIMIT])
