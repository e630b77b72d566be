"""A supervisord with one program, the manager, beside the coordinator's machine: its orders come back as events."""

from __future__ import annotations

from dataclasses import replace

from ipc import topics
from procs.coordinator.effects import Data, Effect, Event, Heard, NotRunning, StartManager, StopManager, Tick
from procs.coordinator.machine import Machine
from swarm.exits import ExitCode

NODE = "node0000000000000000000self"
WORKER_CERT = topics.Certificate("valid", NODE, "swarm", topics.WORKER_ROLE, fingerprint="w1", root_digest="r1")
MANAGER_CERT = replace(WORKER_CERT, role=topics.MANAGER_ROLE, fingerprint="m1")


class World:
    """The machine, a clock turned by hand, and the model of supervisord."""

    def __init__(self, machine: Machine | None = None) -> None:
        self.machine = machine or Machine()
        self.now = 1000.0
        self.pid = 0
        self.pids = 500
        self.done: list[Effect] = []
        self._take(self.machine.start())

    def feed(self, event: Event) -> list[Effect]:
        """Hand one event to the machine, obey it, and return everything ordered meanwhile."""
        before = len(self.done)
        self._take(self.machine.handle(event, self.now))
        return self.done[before:]

    def hear(self, topic: str, body: object, pid: int = 77) -> list[Effect]:
        return self.feed(Heard(topic, body, pid))

    def process(self, state: str, code: int = -1, signal: int = 0, expected: bool = True) -> list[Effect]:
        body = topics.Process("manager", state, self.pid, code, signal, expected)
        return self.hear("process.manager", body)

    def _take(self, effects: list[Effect]) -> None:
        for effect in effects:
            self.done.append(effect)
            match effect:
                case StartManager():
                    self.operator_starts()
                case StopManager() if self.pid:
                    self.operator_stops()
                case StopManager():
                    self._take(self.machine.handle(NotRunning(), self.now))

    # -- what happens to the program ---------------------------------------------------------------------------------

    def not_started(self) -> None:
        self.process("STOPPED")

    def operator_starts(self) -> None:
        if not self.pid:
            self.pids += 1
            self.pid = self.pids
            self.process("STARTING")
            self.process("RUNNING")

    def operator_stops(self) -> None:
        if self.pid:
            self.process("STOPPING")
            self.pid = 0
            self.process("STOPPED", ExitCode.DONE)

    def exits(self, code: ExitCode) -> None:
        if self.pid:
            self.pid = 0
            self.process("EXITED", code)

    def crashes(self) -> None:
        if self.pid:
            self.pid = 0
            self.process("EXITED", signal=9, expected=False)
            self.operator_starts()

    def time_out(self) -> None:
        """Go to the machine's deadline, if it has one."""
        due = self.machine.deadline()
        if due is not None:
            self.now = max(self.now, due)
            self.feed(Tick())

    def settle(self) -> None:
        """Let all time pass that the machine waits for."""
        for _ in range(10):
            if self.machine.deadline() is None:
                return
            self.time_out()
        raise AssertionError(f"never at rest: {self.machine.story}")

    def data(self, *, present: bool = False, erased: bool = False) -> list[Effect]:
        return self.feed(Data(present, erased))

    def published(self, topic: str) -> object:
        from procs.coordinator.effects import Publish

        return next(e.body for e in reversed(self.done) if isinstance(e, Publish) and e.topic == topic)


def changes(desired: str, observed: str | None = None, *, rotate: bool = False, under: str = "") -> topics.NodeChanges:
    return topics.NodeChanges(
        desired, observed if observed is not None else desired, 5 if rotate else 3, under=topics.Under(under)
    )
