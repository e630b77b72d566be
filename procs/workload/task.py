"""A task as supervisor's state machine sees it: started once, stopped by its own signal and grace, its end kept.

`spawn`, `kill`, `signal`, `finish` and `transition` replace supervisor's own, which copies output through pipes, closes
descriptors one by one, adds variables, reports -1 for every signal and waits on the wall clock.

    STOPPED → STARTING (forked) → RUNNING (execve worked) → EXITED
                  │                    └→ STOPPING → STOPPED
                  └→ FATAL (a step failed; `why` names it)

supervisord's loop reads the pipe of `procs.workload.child` as one of the process's dispatchers: the RPC that starts a
task waits for the fork only, so that a step that hangs (a dead file server) holds nobody up.
"""

from __future__ import annotations

import os
import resource
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from supervisor.options import decode_wait_status, signame
from supervisor.process import Subprocess
from supervisor.states import ProcessStates

from procs.workload.child import REPORT_LIMIT, Launch, fork_child, resource_number
from procs.workload.config import TaskConfig
from procs.workload.containment import Containment, Limits
from procs.workload.endings import Endings
from procs.workload.logfile import RESET_SIZE, LogWatch
from procs.workload.timers import LoopTimers, Timer
from swarm.errors import SwarmvisorError
from swarm.workload import WORK, TaskExit

KILL_AGAIN = 10.0
"""Seconds until a task that did not end by SIGKILL (it waits for a disk) is killed again."""

MANY_DESCRIPTORS = 1 << 20
"""The kernel's own bound (fs.nr_open) where there is no limit."""

RUNNING = "running"
STOPPING = "stopping"
EXITED = "exited"
FAILED = "failed"


@dataclass(frozen=True)
class Surroundings:
    """What tasks need of the world; one for all of them."""

    containment: Containment
    endings: Endings
    timers: LoopTimers
    published: Callable[[TaskProcess], None]
    """Called after each change that the agent is to hear of."""
    boot_id: str
    oom_score_adj: int
    """Of this supervisord; a task with the same needs no write."""
    highest_fd: int


class Report:
    """The read end of a child's report pipe, as a dispatcher of supervisord's loop."""

    def __init__(self, fd: int, done: Callable[[], None], failed: Callable[[str], None]) -> None:
        """`done` is called at the end of the pipe, `failed` with the traceback of whatever went wrong in that."""
        self.fd = fd
        self._done = done
        self._failed = failed
        self._data = bytearray()
        os.set_blocking(fd, False)

    def readable(self) -> bool:
        return self.fd >= 0

    def writable(self) -> bool:
        return False

    def handle_read_event(self) -> None:
        """Read to the end, if that is there: then say so."""
        if self.fd < 0:
            return
        with suppress(BlockingIOError):
            while part := os.read(self.fd, REPORT_LIMIT):
                self._data += part
            self.close()
            self._done()

    def handle_error(self) -> None:
        """supervisord calls this for an exception of the above, and says nothing of it."""
        self._failed(traceback.format_exc())
        self.close()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    @property
    def text(self) -> str:
        """The failing step and why; empty after a good start."""
        return self._data.decode(errors="backslashreplace")


class TaskProcess(Subprocess):  # type: ignore[misc]  # supervisor has no types
    """One task's main process. Constructed by TaskConfig.make_process."""

    config: TaskConfig

    def __init__(self, config: TaskConfig) -> None:
        super().__init__(config)
        self.task_id = config.spec.task_id
        self.why = ""
        self.main_pid = 0
        """Stays after the end; supervisor's own `pid` becomes 0."""
        self.start_ticks = 0
        self.started_at = 0
        self.exited_at = 0
        self.wait_status = 0
        self.ended = False
        self._surroundings = config.surroundings
        self._report: Report | None = None
        self._kill_timer: Timer | None = None
        reset = RESET_SIZE
        if "fsize" in config.spec.rlimits and config.spec.rlimits["fsize"][0] > 0:
            # an apparent size at the task's own limit would end it by SIGXFSZ
            reset = min(reset, config.spec.rlimits["fsize"][0] // 2)
        self.logs = [
            LogWatch(path, config.spec.log_max_bytes, reset)
            for path in (config.stdout_logfile, config.stderr_logfile)
            if config.spec.log_max_bytes
        ]

    @property
    def word(self) -> str:
        """The state in the words of `ipc.topics.TaskProcess`."""
        if self.ended:
            return FAILED if self.why else EXITED
        return STOPPING if self.state == ProcessStates.STOPPING else RUNNING

    # -- start -------------------------------------------------------------------------------------

    def get_execv_args(self) -> tuple[str, list[str]]:
        """What supervisor's own startProcess looks at first; the child finds the file itself, as the task's user."""
        argv = self.config.spec.wrapper + self.config.spec.argv
        return argv[0], argv

    def spawn(self) -> int | None:
        """Fork the task. Returns the pid, or None with `why` set if it could not even be forked."""
        if self.started_at:
            self.spawnerr = "a task is started once; the swarm makes a new one instead"
            self._log("second start refused")
            return None
        self.started_at = time.time_ns()
        self.laststart = self.started_at / 1e9
        self.change_state(ProcessStates.STARTING)
        try:
            launch = self._prepare()
            self.pid = self.main_pid = self._fork(launch)
        except (OSError, SwarmvisorError) as error:
            self._could_not_start(_text(error))
            return None
        except Exception as error:  # noqa: BLE001 - told in the status and the log; a task half made would stay for ever
            self._log(f"could not be started: {traceback.format_exc()}", critical=True)
            self._could_not_start(f"internal error: {type(error).__name__}: {error}")
            return None
        self.config.options.pidhistory[self.pid] = self
        self.start_ticks = start_ticks(self.pid)
        self._log(f"started as pid {self.pid}")
        for log in self.logs:
            self._bound_later(log)
        return self.pid

    def _prepare(self) -> Launch:
        spec, around = self.config.spec, self._surroundings
        identity = _identity(spec.uid, spec.gid, spec.groups)
        directory = self.config.task_directory
        work = directory / WORK
        if not spec.cwd:
            work.mkdir(mode=0o700, exist_ok=True)
            if identity:
                os.chown(work, identity[0], identity[1])
        limits = Limits(spec.memory_limit, spec.nano_cpus_limit, spec.pids_limit)
        entry = around.containment.prepare(self.task_id, limits)
        return Launch(
            argv=spec.wrapper + spec.argv,
            env={**spec.env, **entry.env},
            stdout=self.config.stdout_logfile,
            stderr=self.config.stderr_logfile,
            cwd=spec.cwd or str(work),
            cwd_before_user=not spec.cwd,
            cgroups=entry.cgroups,
            rlimits=[(resource_number(name), soft, hard) for name, (soft, hard) in spec.rlimits.items()],
            oom_score_adj=spec.oom_score_adj if spec.oom_score_adj != around.oom_score_adj else None,
            umask=spec.umask,
            uid=identity[0] if identity else -1,
            gid=identity[1] if identity else -1,
            groups=identity[2] if identity else [],
            parent=os.getpid(),
            highest_fd=around.highest_fd,
        )

    def _fork(self, launch: Launch) -> int:
        pid, reading = fork_child(launch)
        self._report = Report(reading, self._reported, lambda trace: self._log(trace, critical=True))
        self.dispatchers = {reading: self._report}
        return pid

    def _reported(self) -> None:
        """The child has become the task, or has said why it could not; then its end follows at once."""
        if self._report is None:
            return
        self.dispatchers = {}
        self.why = self._report.text
        if self.why:
            self.spawnerr = self.why
        elif self.state == ProcessStates.STARTING:
            self.change_state(ProcessStates.RUNNING)
            self._surroundings.published(self)

    def _could_not_start(self, why: str) -> None:
        self.why = self.spawnerr = why
        self.exited_at = time.time_ns()
        self._over(ProcessStates.FATAL)

    # -- stop --------------------------------------------------------------------------------------

    def stop(self) -> str | None:
        """Stop signal now, the end of everything after the grace. Again: nothing, the grace runs already."""
        self.administrative_stop = True
        if self.state == ProcessStates.STOPPING:
            return None
        return self.kill(self.config.stopsignal)

    def kill(self, sig: int) -> str | None:
        """Send `sig` with the intention to end the task; None or an error text, as supervisor's own."""
        if not self.pid:
            return f"task {self.task_id} does not run"
        if self.state != ProcessStates.STOPPING:
            self.killing = True
            self.change_state(ProcessStates.STOPPING)
            self._kill_timer = self._surroundings.timers.call_later(self.config.stopwaitsecs, self._grace_over)
            self._surroundings.published(self)
        if sig == signal.SIGKILL:
            self._end_everything()
        else:
            self._send(sig)
        return None

    def signal(self, sig: int) -> str | None:
        """Send `sig` to the main process; None or an error text, as supervisor's own."""
        if not self.pid:
            return f"task {self.task_id} does not run"
        self._send(sig)
        return None

    def _send(self, sig: int) -> None:
        self._log(f"{signame(sig)} to pid {self.pid}")
        # not reaped yet, so the pid is still its own; a zombie takes a signal without complaint
        os.kill(self.pid, sig)

    def _grace_over(self) -> None:
        if self.pid:
            self._log("still runs after its grace, killing all of it")
            self._end_everything()

    def _end_everything(self) -> None:
        self._surroundings.containment.end(self.task_id)
        # also a child that has not entered its cgroup yet
        os.kill(self.pid, signal.SIGKILL)
        if self._kill_timer is not None:
            self._kill_timer.cancel()
        self._kill_timer = self._surroundings.timers.call_later(KILL_AGAIN, self._grace_over)

    # -- end ---------------------------------------------------------------------------------------

    def finish(self, pid: int, sts: int) -> None:
        """supervisord has reaped the main process: keep how it ended, end what it left behind, tell."""
        if self._report is not None:
            self._report.handle_read_event()
            if self._report.fd >= 0:
                # a grandchild from before execve would hold it open; there is none, but nothing may leak
                self._report.close()
        self.exited_at = time.time_ns()
        self.laststop = self.exited_at / 1e9
        self.wait_status = sts
        self.exitstatus, words = decode_wait_status(sts)
        self._log(f"pid {pid}: {self.why or words}")
        self.pid = 0
        if self._kill_timer is not None:
            self._kill_timer.cancel()
        killing, self.killing = self.killing, False
        if self.state == ProcessStates.STARTING and not self.why:
            self.change_state(ProcessStates.RUNNING)
        self._over(ProcessStates.FATAL if self.why else ProcessStates.STOPPED if killing else ProcessStates.EXITED)

    def _over(self, state: int) -> None:
        """Whatever fails in here is logged; the loop, and with it every other task, goes on."""
        self.ended = True
        self.dispatchers = {}
        for act in (self._end_rest, self._bound_at_end, lambda: self.change_state(state), self._tell):
            try:
                act()
            except Exception:  # noqa: BLE001 - see the docstring
                self._log(f"at its end: {traceback.format_exc()}", critical=True)

    def _end_rest(self) -> None:
        self._surroundings.containment.end(self.task_id)
        self._surroundings.containment.forget(self.task_id)

    def _bound_at_end(self) -> None:
        for log in self.logs:
            log.look()

    def _tell(self) -> None:
        self._surroundings.published(self)
        self._surroundings.endings.write(
            TaskExit(
                task_id=self.task_id,
                boot_id=self._surroundings.boot_id,
                pid=self.main_pid,
                start_ticks=self.start_ticks,
                started_at=self.started_at,
                exited_at=self.exited_at,
                wait_status=self.wait_status,
                why=self.why,
            )
        )

    def _bound(self, log: LogWatch) -> None:
        if not self.ended:
            try:
                log.look()
            finally:
                self._bound_later(log)

    def _bound_later(self, log: LogWatch) -> None:
        # a thousand tasks would wake the loop for each of their files
        self._surroundings.timers.call_later(log.wait, lambda: self._bound(log), slack=min(1.0, log.wait))

    def transition(self) -> None:
        """Nothing happens by time alone but the end of a grace, and that is a timer's."""

    def _log(self, text: str, *, critical: bool = False) -> None:
        logger = self.config.options.logger
        (logger.critical if critical else logger.info)("%(task)s: %(text)s", task=self.task_id, text=text)

    def drain(self) -> None:
        """Output goes straight to files."""


def start_ticks(pid: int) -> int:
    """Field 22 of /proc/PID/stat: with the pid it names one process of this boot for ever."""
    with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
        stat = file.read()
    # the second field is the name in parentheses, which may hold anything
    return int(stat.rpartition(b")")[2].split()[19])


def highest_descriptor() -> int:
    """One above the highest descriptor that this process can have."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return soft if soft != resource.RLIM_INFINITY else MANY_DESCRIPTORS


def _identity(uid: int, gid: int, groups: list[int]) -> tuple[int, int, list[int]] | None:
    """What the child must become; None where that is what we are and may not change anyway."""
    if uid < 0 or (os.geteuid() != 0 and (uid, gid) == (os.geteuid(), os.getegid())):
        return None
    return uid, gid, groups


def _text(error: OSError | SwarmvisorError) -> str:
    if isinstance(error, SwarmvisorError):
        return error.describe()
    return f"{error.filename}: {error.strerror}" if error.filename else (error.strerror or str(error))


def as_topic(process: TaskProcess) -> dict[str, Any]:
    """The fields of `ipc.topics.TaskProcess`, without control characters: XML and terminals choke on those."""
    return {
        "task_id": process.task_id,
        "state": process.word,
        "pid": process.main_pid,
        "start_ticks": process.start_ticks,
        "started_at": process.started_at,
        "exited_at": process.exited_at,
        "wait_status": process.wait_status,
        "why": printable(process.why),
    }


def printable(text: str) -> str:
    """`text` with everything that is not printable written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
