"""The parts of the plug-in that need no running supervisord, on supervisor's own Subprocess."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from supervisor import events
from supervisor.datatypes import RestartUnconditionally, RestartWhenExitUnexpected
from supervisor.process import Subprocess
from supervisor.states import ProcessStates, SupervisorStates

from ipc.errors import Closed
from ipc.supervisor_plugin import (
    LoopWaker,
    ProcessReporter,
    SupervisorBus,
    before_cleanup,
    make_node_interface,
    on_event,
)
from ipc.topics import Process


class Log:
    """The part of supervisor's logger that is used."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def critical(self, message: str, **words: object) -> None:
        self.lines.append(message % words)

    def debug(self, message: str, **words: object) -> None:
        self.lines.append(message)


class Heard:
    """Takes the place of SupervisorBus: what was said last of each topic."""

    def __init__(self) -> None:
        self.last: dict[str, Any] = {}

    def publish(self, topic: str, body: object, cause: str = "") -> None:
        self.last[topic] = body

    def retire(self, topic: str) -> None:
        del self.last[topic]


@pytest.fixture
def supervisord() -> Iterator[Any]:
    events.clear()
    sockets: dict[int, Any] = {}
    log: list[str] = []
    options = SimpleNamespace(
        logger=Log(),
        mood=SupervisorStates.RUNNING,
        get_socket_map=lambda: sockets,
        cleanup=lambda: log.append("cleaned up"),
    )
    yield SimpleNamespace(options=options, process_groups={}, sockets=sockets, log=log)
    events.clear()


def add_group(supervisord: Any, group_name: str, *names: str, **settings: Any) -> list[Any]:
    config = {
        "options": supervisord.options,
        "startsecs": 1,
        "startretries": 1000,
        "exitcodes": [0],
        "autorestart": RestartWhenExitUnexpected,
        "stopsignal": 15,
        **settings,
    }
    group = SimpleNamespace(config=SimpleNamespace(name=group_name), processes={})
    for name in names:
        process = Subprocess(SimpleNamespace(name=name, **config))
        process.group = group
        group.processes[name] = process
    supervisord.process_groups[group_name] = group
    return list(group.processes.values())


def fail_to_start(process: Any) -> None:
    process.change_state(ProcessStates.STARTING)
    process.change_state(ProcessStates.BACKOFF)


@pytest.mark.parametrize(
    ("startretries", "expected"), [(1000, [0, 1, 2, 3, 4, 4, 4]), (2, [0, 1, 1, 1]), (1, [1, 1, 1])]
)
def test_back_off_begins_at_once_grows_to_four_seconds_and_never_past_startretries(
    supervisord: Any, startretries: int, expected: list[int]
) -> None:
    heard = Heard()
    ProcessReporter(supervisord, heard)  # type: ignore[arg-type]
    [process] = add_group(supervisord, "agent", "agent", startretries=startretries)
    events.notify(events.SupervisorRunningEvent())
    for seconds in expected:
        fail_to_start(process)
        assert process.backoff <= startretries, "supervisor would turn it FATAL"
        assert seconds - 1 < process.delay - time.time() <= seconds
        body = heard.last["process.agent"]
        assert body.state == "BACKOFF"
        assert 0 <= body.next_restart_at - process.delay < 1
    assert supervisord.options.logger.lines == []


def test_what_is_in_back_off_at_shutdown_is_stopped_and_not_fatal(supervisord: Any) -> None:
    heard = Heard()
    ProcessReporter(supervisord, heard)  # type: ignore[arg-type]
    [process] = add_group(supervisord, "agent", "agent")
    events.notify(events.SupervisorRunningEvent())
    fail_to_start(process)
    supervisord.options.mood = SupervisorStates.SHUTDOWN
    events.notify(events.SupervisorStoppingEvent())
    assert process.get_state() == ProcessStates.STOPPED
    assert heard.last["process.agent"] == Process("agent", "STOPPED")


def test_processes_are_named_as_supervisorctl_names_them(supervisord: Any) -> None:
    heard = Heard()
    ProcessReporter(supervisord, heard)  # type: ignore[arg-type]
    add_group(supervisord, "agent", "agent")
    add_group(supervisord, "etc", "one", "two")
    events.notify(events.SupervisorRunningEvent())
    assert set(heard.last) == {"process.agent", "process.etc:one", "process.etc:two"}
    del supervisord.process_groups["etc"]
    events.notify(events.ProcessGroupRemovedEvent("etc"))
    assert set(heard.last) == {"process.agent"}
    add_group(supervisord, "etc", "three")
    events.notify(events.ProcessGroupAddedEvent("etc"))
    assert set(heard.last) == {"process.agent", "process.etc:three"}


@pytest.mark.parametrize(
    ("autorestart", "expected", "planned"),
    [
        (RestartUnconditionally, True, True),
        (RestartWhenExitUnexpected, False, True),
        (RestartWhenExitUnexpected, True, False),
        (False, False, False),
    ],
)
def test_a_restart_is_announced_where_supervisor_will_make_one(
    supervisord: Any, autorestart: Any, expected: bool, planned: bool
) -> None:
    heard = Heard()
    ProcessReporter(supervisord, heard)  # type: ignore[arg-type]
    [process] = add_group(supervisord, "agent", "agent", autorestart=autorestart)
    events.notify(events.SupervisorRunningEvent())
    process.laststop = 1_700_000_000
    process.change_state(ProcessStates.RUNNING)
    process.change_state(ProcessStates.EXITED, expected=expected)
    assert bool(heard.last["process.agent"].next_restart_at) is planned


def test_an_exception_in_the_plug_in_is_logged_and_goes_no_further(supervisord: Any) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("broken on purpose")

    on_event(supervisord, events.SupervisorRunningEvent, fail)
    before_cleanup(supervisord, fail)
    events.notify(events.SupervisorRunningEvent())
    supervisord.options.cleanup()
    assert supervisord.log == ["cleaned up"]
    assert len(supervisord.options.logger.lines) == 2
    assert all("RuntimeError: broken on purpose" in line for line in supervisord.options.logger.lines)


def test_a_waker_takes_any_number_of_wake_ups_and_closes_before_the_cleanup(supervisord: Any) -> None:
    waker = LoopWaker(supervisord)
    waker.wake()
    assert supervisord.sockets == {}
    events.notify(events.SupervisorRunningEvent())
    [listener] = supervisord.sockets.values()
    for _ in range(10_000):
        waker.wake()
    assert listener.readable()
    assert not listener.writable()
    listener.handle_read_event()
    supervisord.options.cleanup()
    assert (supervisord.sockets, supervisord.log) == ({}, ["cleaned up"])
    waker.wake()
    supervisord.options.cleanup()
    assert supervisord.options.logger.lines == []


def test_a_supervisors_bus_is_closed_before_it_runs_and_after(supervisord: Any, short_dir: Any) -> None:
    bus = SupervisorBus(supervisord, short_dir / "bus", "supervisor")
    with pytest.raises(Closed):
        bus.publish("process.a", Process("a", "RUNNING"))
    events.notify(events.SupervisorRunningEvent())
    bus.publish("process.a", Process("a", "RUNNING"))
    bus.publish("process.a", Process("a", "EXITED"))
    assert (bus.seq("process.a"), bus.counters["published"]) == (2, 2)
    first = bus.epoch
    bus.retire("process.a")
    assert bus.seq("process.a") == 0
    supervisord.options.cleanup()
    assert supervisord.sockets == {}
    with pytest.raises(Closed):
        bus.publish("process.a", Process("a", "RUNNING"))
    # A reload makes a new plug-in, whose publisher is a new life to its readers.
    again = SupervisorBus(supervisord, short_dir / "bus", "supervisor")
    events.notify(events.SupervisorRunningEvent())
    assert again.epoch > first
    supervisord.options.cleanup()
    assert supervisord.options.logger.lines == []


@pytest.mark.parametrize("config", [{}, {"bus": ""}, {"bus": "/tmp/x", "busses": "/tmp/y"}])
def test_settings_are_checked(supervisord: Any, config: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="needs bus=<directory>"):
        make_node_interface(supervisord, **config)
