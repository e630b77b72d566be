from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.topics import TaskProcess
from procs.agent.plugin import task_process
from procs.agent.processes import (
    HOST_RESTARTED,
    STARTING,
    WORKLOAD_ENDED,
    Instance,
    Lost,
    Observation,
    Phase,
    Processes,
    boot_id,
    exit_code,
    exit_text,
    judge,
    start_ticks,
)
from procs.agent.task import Done, Failed
from swarm.workload import TaskExit

BOOT = "b00t"
DEAD = Instance(BOOT, 10, 100)
LIVE = Instance(BOOT, 20, 200)


def words(state: str, *, task_id: str = "t", pid: int = 7, wait_status: int = 0, why: str = "") -> TaskProcess:
    return TaskProcess(task_id=task_id, state=state, pid=pid, start_ticks=5, wait_status=wait_status, why=why)


def lost(**fields: Any) -> Lost:
    return Lost(**{"task_id": "t", "instance": DEAD.name, "pid": 7, "start_ticks": 70, **fields})


def judged(
    of: Lost, *, attached: bool = True, current: str = "", exit_file: TaskExit | None = None, **ticks: int
) -> Any:
    table = {int(name.removeprefix("p")): value for name, value in ticks.items()}
    return judge(
        of,
        attached=attached,
        current=current,
        exit_file=lambda: exit_file,
        this_boot=lambda: BOOT,
        ticks=lambda pid: table.get(pid, 0),
    )


def test_a_task_that_nobody_was_asked_to_start_was_never_started() -> None:
    assert judged(lost(instance="", pid=0)).phase is Phase.ABSENT
    assert judged(lost(instance="", pid=0), attached=False).phase is Phase.ABSENT


def test_a_task_that_the_living_supervisor_does_not_know_was_never_started_by_it() -> None:
    assert judged(lost(instance=LIVE.name, pid=0), current=LIVE.name).phase is Phase.ABSENT


def test_before_the_supervisor_is_found_nothing_is_said() -> None:
    assert judged(lost(), attached=False).phase is Phase.UNKNOWN


def test_what_ended_with_its_supervisor_says_so() -> None:
    seen = judged(lost(), current=LIVE.name)
    assert (seen.phase, seen.why) == (Phase.ENDED, WORKLOAD_ENDED)
    assert seen.result("t") == Failed(WORKLOAD_ENDED, process=seen.process("t"))
    assert judged(lost(instance="?")).why == WORKLOAD_ENDED


def test_what_ended_with_the_host_says_so() -> None:
    assert judged(lost(instance=Instance("other", 10, 100).name)).why == HOST_RESTARTED


def test_a_supervisor_or_process_that_is_still_ending_is_waited_for() -> None:
    assert judged(lost(), p10=100).phase is Phase.UNKNOWN
    assert judged(lost(), p7=70).phase is Phase.UNKNOWN
    assert judged(lost(), p10=101, p7=71).phase is Phase.ENDED, "other processes with the same pids"


def test_the_exit_file_is_believed_before_anything_else() -> None:
    ended = TaskExit(task_id="t", boot_id="other", pid=7, start_ticks=70, wait_status=3 << 8)
    seen = judged(lost(), attached=False, exit_file=ended)
    assert seen.result("t") == Failed("task: non-zero exit (3)", exit_code=3, process=seen.process("t"))
    failed = TaskExit(task_id="t", boot_id=BOOT, why="user 5: Operation not permitted")
    assert judged(lost(), exit_file=failed).result("t").error == "user 5: Operation not permitted"


@pytest.mark.parametrize(
    ("status", "code", "text"),
    [
        (1 << 8, 1, "task: non-zero exit (1)"),
        (255 << 8, 255, "task: non-zero exit (255)"),
        (signal.SIGKILL, 137, "task: non-zero exit (137): ended by SIGKILL"),
        (signal.SIGSEGV | 0x80, 139, "task: non-zero exit (139): ended by SIGSEGV"),
        (40, 168, "task: non-zero exit (168): ended by signal 40"),
    ],
)
def test_wait_statuses_in_words(status: int, code: int, text: str) -> None:
    assert exit_code(status) == code
    assert exit_text(status) == text


def test_observations_of_the_plugins_words() -> None:
    processes = Processes()
    phases = {"running": Phase.ALIVE, "stopping": Phase.ALIVE, STARTING: Phase.STARTING, "exited": Phase.ENDED}
    for number, (state, phase) in enumerate(phases.items()):
        processes.offer(words(state), 1, number)
        assert processes.observe("t") == Observation(phase, 7, 5)
    assert processes.observe("t").result("t") == Done(processes.observe("t").process("t"))  # type: ignore[union-attr]
    processes.offer(words("failed", why="chdir: no"), 1, 9)
    assert processes.observe("t") == Observation(Phase.ENDED, 7, 5, why="chdir: no", started=False)
    assert processes.observe("other") is None


def test_a_new_supervisor_voids_what_was_running_and_keeps_what_ended() -> None:
    processes = Processes()
    processes.offer(words("running", task_id="old"), 100, 1)
    processes.offer(words("exited", task_id="over"), 100, 2)
    processes.offer(words("running", task_id="new"), 5_000, 1)
    processes.born(1_000)
    assert sorted(processes.ids()) == ["new", "over"]
    assert processes.died() == ["new"]
    assert processes.ids() == ["over"]


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 5), st.sampled_from(["running", "exited"]))))
def test_words_in_any_order_end_with_the_newest(offers: list[tuple[int, int, str]]) -> None:
    processes = Processes()
    for epoch, seq, state in offers:
        processes.offer(words(state, pid=epoch * 10 + seq), epoch, seq)
    if offers:
        epoch, seq = max((epoch, seq) for epoch, seq, _ in offers)
        assert processes.observe("t").pid == epoch * 10 + seq  # type: ignore[union-attr]


def test_names_of_instances_come_back() -> None:
    assert Instance.parse(LIVE.name) == LIVE
    for name in ("", "?", "a/b", "a/b/c", "a/1/x"):
        assert Instance.parse(name) is None
    me = Instance(boot_id(), os.getpid(), start_ticks(os.getpid()))
    assert me.alive()
    assert not Instance(me.boot_id, me.pid, me.start_ticks + 1).alive()
    assert not Instance("other", me.pid, me.start_ticks).alive()


def test_an_entry_of_a_snapshot_may_hold_numbers_as_text() -> None:
    entry = {
        "task_id": "t",
        "state": "running",
        "pid": 7,
        "start_ticks": "5",
        "started_at": "1700000000000000000",
        "exited_at": "0",
        "wait_status": 0,
        "why": "",
        "epoch": "1",
        "seq": 2,
    }
    assert task_process(entry) == TaskProcess("t", "running", 7, 5, 1_700_000_000_000_000_000)
