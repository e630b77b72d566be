"""What is known of the tasks' processes: the newest word of the workload plug-in, or what its absence means.

Words come twice, as topics and as snapshots; they are merged by epoch and seq. A process of which the plug-in says
nothing has ended, was never started, or cannot be judged yet: see `judge`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Protocol

from procs.agent.task import Done, Failed, Process
from swarm.workload import TaskExit

STARTING = "starting"
"""Not a word of the plug-in: forked, and its topic does not exist yet."""
EXITED = "exited"
FAILED = "failed"

WORKLOAD_ENDED = "workload supervisor ended"
HOST_RESTARTED = "the host restarted while the task ran"


class Words(Protocol):
    """What the plug-in says of one process: the fields of `ipc.topics.TaskProcess`."""

    @property
    def task_id(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def pid(self) -> int: ...
    @property
    def start_ticks(self) -> int: ...
    @property
    def started_at(self) -> int: ...
    @property
    def exited_at(self) -> int: ...
    @property
    def wait_status(self) -> int: ...
    @property
    def why(self) -> str: ...


class Phase(Enum):
    """Where a process is."""

    UNKNOWN = auto()
    """Cannot be said yet; more will come."""
    ABSENT = auto()
    """Was never started."""
    STARTING = auto()
    """Forked, and not yet known whether it became the task."""
    ALIVE = auto()
    ENDED = auto()


@dataclass(frozen=True)
class Observation:
    """What is known of one task's process."""

    phase: Phase
    pid: int = 0
    start_ticks: int = 0
    wait_status: int = 0
    why: str = ""
    """Ended without a wait status: it could not be started, or was lost; in words."""
    started: bool = True
    """Whether there ever was a process."""
    started_at: int = 0
    """Unix ns, 0: not known."""
    exited_at: int = 0
    """Unix ns, 0: not known."""

    def process(self, task_id: str) -> Process:
        """For the status."""
        return Process(container_id=task_id, pid=self.pid, exit_code=exit_code(self.wait_status) if self.ended else 0)

    @property
    def ended(self) -> bool:
        return self.phase is Phase.ENDED

    def result(self, task_id: str) -> Done | Failed:
        """The result of waiting for a process that has ended."""
        process = self.process(task_id)
        if self.why:
            return Failed(self.why, process=process, at=self.exited_at)
        code = exit_code(self.wait_status)
        if code == 0:
            return Done(process, at=self.exited_at)
        return Failed(exit_text(self.wait_status), exit_code=code, process=process, at=self.exited_at)


_PHASES = {STARTING: Phase.STARTING, EXITED: Phase.ENDED, FAILED: Phase.ENDED}
"""Phases of the plug-in's words; any other means that the process lives."""
UNKNOWN = Observation(Phase.UNKNOWN)
ABSENT = Observation(Phase.ABSENT, started=False)


def exit_code(wait_status: int) -> int:
    """The exit code of a raw wait status; 128 + number for a signal, as shells say it."""
    if os.WIFSIGNALED(wait_status):
        return 128 + os.WTERMSIG(wait_status)
    return os.WEXITSTATUS(wait_status)


def exit_text(wait_status: int) -> str:
    """SwarmKit's text for an exit that is no success, and the signal in words."""
    text = f"task: non-zero exit ({exit_code(wait_status)})"
    if not os.WIFSIGNALED(wait_status):
        return text
    number = os.WTERMSIG(wait_status)
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"  # real-time signals have no names here
    return f"{text}: ended by {name}"


@dataclass(frozen=True)
class Instance:
    """One life of the workload's supervisord; `name` names it for ever."""

    boot_id: str
    pid: int
    start_ticks: int

    @property
    def name(self) -> str:
        return f"{self.boot_id}/{self.pid}/{self.start_ticks}"

    @classmethod
    def parse(cls, name: str) -> Instance | None:
        """The instance of that name; None for the empty name or one of another release."""
        parts = name.split("/")
        if len(parts) != 3 or not parts[1].isdigit() or not parts[2].isdigit():
            return None
        return cls(parts[0], int(parts[1]), int(parts[2]))

    @property
    def born_ns(self) -> int:
        """When it started, CLOCK_BOOTTIME, rounded down: epochs of its publisher are not lower."""
        return self.start_ticks * (10**9 // os.sysconf("SC_CLK_TCK"))

    def alive(self) -> bool:
        """Whether that very process still runs."""
        return self.boot_id == boot_id() and start_ticks(self.pid) == self.start_ticks


def boot_id() -> str:
    """Names this boot of the host."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int:
    """Field 22 of /proc/PID/stat, 0 if the process is gone or a zombie."""
    if pid <= 0:
        return 0
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    fields = stat.rpartition(")")[2].split()
    return 0 if fields[0] in ("Z", "X") else int(fields[19])


class Processes:
    """The newest word about each process, of the workload's present life or (ended ones) of an earlier one."""

    def __init__(self) -> None:
        self._words: dict[str, tuple[int, int, Words]] = {}

    def __contains__(self, task_id: str) -> bool:
        return task_id in self._words

    def ids(self) -> list[str]:
        return list(self._words)

    def offer(self, words: Words, epoch: int, seq: int) -> bool:
        """Take a word if it is newer than what is known; say whether it was."""
        known = self._words.get(words.task_id)
        if known is not None and (epoch, seq) <= known[:2]:
            return False
        self._words[words.task_id] = (epoch, seq, words)
        return True

    def born(self, born_ns: int) -> None:
        """A workload supervisord of that birth is the one now: what earlier ones said to be running is not."""
        self._words = {
            task_id: known
            for task_id, known in self._words.items()
            if known[0] >= born_ns or known[2].state in (EXITED, FAILED)
        }

    def died(self) -> list[str]:
        """No workload supervisord runs: what was running has ended; returns those."""
        lost = [task_id for task_id, known in self._words.items() if known[2].state not in (EXITED, FAILED)]
        for task_id in lost:
            del self._words[task_id]
        return lost

    def forget(self, task_id: str) -> None:
        self._words.pop(task_id, None)

    def observe(self, task_id: str) -> Observation | None:
        """The observation that the newest word makes; None where there is none."""
        known = self._words.get(task_id)
        if known is None:
            return None
        words = known[2]
        phase = _PHASES.get(words.state, Phase.ALIVE)
        failed = words.state == FAILED
        why = (words.why or "the process could not be started") if failed else ""
        return Observation(
            phase,
            words.pid,
            words.start_ticks,
            words.wait_status,
            why,
            started=not failed,
            started_at=words.started_at,
            exited_at=words.exited_at,
        )


@dataclass(frozen=True)
class Lost:
    """What the agent remembers of a process of which the plug-in says nothing."""

    task_id: str
    instance: str
    """The life of the workload's supervisord that was asked to start it; empty: none was."""
    pid: int
    start_ticks: int


def judge(
    lost: Lost,
    *,
    attached: bool,
    current: str,
    exit_file: Callable[[], TaskExit | None],
    this_boot: Callable[[], str] = boot_id,
    ticks: Callable[[int], int] = start_ticks,
) -> Observation:
    """What the plug-in's silence about a process means.

    `current` is the life of the workload's supervisord whose complete snapshot the agent holds, empty if none runs;
    `attached` false: neither is known yet. The exit file is read only where it decides.
    """
    if not lost.instance and not lost.pid:
        return ABSENT
    ended = exit_file()
    if ended is not None:
        return Observation(
            Phase.ENDED,
            pid=ended.pid,
            start_ticks=ended.start_ticks,
            wait_status=ended.wait_status,
            why=ended.why,
            started=not ended.why,
            started_at=ended.started_at,
            exited_at=ended.exited_at,
        )
    if not attached:
        return UNKNOWN
    if lost.instance == current:
        return ABSENT  # asked for, and not done: the plug-in would know
    gone = Observation(Phase.ENDED, pid=lost.pid, start_ticks=lost.start_ticks, why=WORKLOAD_ENDED)
    instance = Instance.parse(lost.instance)
    if instance is None:
        return gone
    if instance.boot_id != this_boot():
        return Observation(Phase.ENDED, pid=lost.pid, start_ticks=lost.start_ticks, why=HOST_RESTARTED)
    if ticks(instance.pid) == instance.start_ticks:
        return UNKNOWN  # that supervisord is still ending its tasks
    if lost.pid and lost.start_ticks and ticks(lost.pid) == lost.start_ticks:
        return UNKNOWN  # SIGKILL is on its way (PDEATHSIG)
    return gone
