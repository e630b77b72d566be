"""One task's life on this node, without I/O: which step is next, and what its result makes of the status.

`decide`, `conclude` and `resolve` are reference agent-and-dispatcher §3.2 and §3.3 as pure functions; `Machine` adds
what a task manager remembers between steps: one operation at a time, and which one runs. A wait is cancelled by the
update that makes it pointless, at once (SwarmKit: up to 1 s later, §2.8).

    state                    desired          step
    < COMPLETE               >= SHUTDOWN      SHUTDOWN operation → SHUTDOWN "shutdown"
    >= COMPLETE              >= SHUTDOWN      nothing
    > desired                < SHUTDOWN       nothing
    PREPARING                any              PREPARE operation → READY "prepared"
    STARTING                 any              START operation → RUNNING "started"
    RUNNING                  any              WAIT operation → COMPLETE "finished"
    >= desired               < SHUTDOWN       nothing (pause points: desired READY parks in READY)
    NEW, PENDING, ASSIGNED   higher           ACCEPTED "accepted"
    ACCEPTED                 higher           PREPARING "preparing"
    READY                    higher           STARTING "starting"

An operation that fails for good makes REJECTED of a state below STARTING, else FAILED; one that may work later leaves
the state and shows its error.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from google.protobuf import timestamp_pb2

from swarm.api import objects_pb2, types_pb2

ASSIGNED = types_pb2.ASSIGNED
ACCEPTED = types_pb2.ACCEPTED
PREPARING = types_pb2.PREPARING
READY = types_pb2.READY
STARTING = types_pb2.STARTING
RUNNING = types_pb2.RUNNING
COMPLETE = types_pb2.COMPLETE
SHUTDOWN = types_pb2.SHUTDOWN
FAILED = types_pb2.FAILED
REJECTED = types_pb2.REJECTED


class Operation(Enum):
    """What the machine asks of the executor."""

    PREPARE = auto()
    START = auto()
    WAIT = auto()
    SHUTDOWN = auto()


@dataclass(frozen=True)
class Advance:
    """A step that needs nobody."""

    state: types_pb2.TaskState.ValueType
    message: str


@dataclass(frozen=True)
class Process:
    """What is known of the task's process, for the status."""

    container_id: str
    pid: int = 0
    exit_code: int = 0


@dataclass(frozen=True)
class Done:
    """The operation did what it was asked, now or earlier: `at` that time (Unix ns), 0: now."""

    process: Process | None = None
    at: int = 0


@dataclass(frozen=True)
class Failed:
    """The operation did not. `temporary`: the same may work later. `exit_code` of the process if it had one; `at` as
    for Done."""

    error: str
    temporary: bool = False
    exit_code: int = 0
    process: Process | None = None
    at: int = 0


class Outcome(Enum):
    """What a concluded operation means for the machine."""

    OK = auto()
    RETRY = auto()


_ADVANCES: dict[int, Advance] = {
    types_pb2.NEW: Advance(ACCEPTED, "accepted"),
    types_pb2.PENDING: Advance(ACCEPTED, "accepted"),
    ASSIGNED: Advance(ACCEPTED, "accepted"),
    ACCEPTED: Advance(PREPARING, "preparing"),
    READY: Advance(STARTING, "starting"),
}
_OPERATIONS: dict[int, Operation] = {
    PREPARING: Operation.PREPARE,
    STARTING: Operation.START,
    RUNNING: Operation.WAIT,
}
_SUCCESSES: dict[Operation, Advance] = {
    Operation.PREPARE: Advance(READY, "prepared"),
    Operation.START: Advance(RUNNING, "started"),
    Operation.WAIT: Advance(COMPLETE, "finished"),
    Operation.SHUTDOWN: Advance(SHUTDOWN, "shutdown"),
}


def decide(state: int, desired: int) -> Advance | Operation | None:
    """The next step of a task in `state` that should be `desired`; None: nothing to do (the reference's NOOP)."""
    if desired >= SHUTDOWN:
        return None if state >= COMPLETE else Operation.SHUTDOWN
    if state > desired:
        return None
    if state in _OPERATIONS:
        return _OPERATIONS[state]
    if state >= desired:
        return None
    return _ADVANCES.get(state)


def conclude(
    status: types_pb2.TaskStatus, operation: Operation, result: Done | Failed, now_ns: int
) -> tuple[types_pb2.TaskStatus, Outcome]:
    """The status after `operation` ended with `result` (§3.3 with FATAL); `status` itself is left alone.

    Its time is that of the event where that is known and lies between the status of before and now.
    """
    before = status.timestamp.seconds * 10**9 + status.timestamp.nanos
    if before <= result.at <= now_ns and result.at:
        now_ns = result.at
    new = _copy(status)
    outcome = Outcome.OK
    if isinstance(result, Done):
        _advance(new, _SUCCESSES[operation])
    else:
        new.err = result.error
        if result.temporary:
            outcome = Outcome.RETRY
        else:
            new.state = REJECTED if status.state < STARTING else FAILED
    if new.state >= STARTING:
        _show_process(new, result)
    return _stamped(status, new, now_ns), outcome


def advanced(status: types_pb2.TaskStatus, step: Advance, now_ns: int) -> types_pb2.TaskStatus:
    """The status after a step that needs nobody."""
    new = _copy(status)
    _advance(new, step)
    return _stamped(status, new, now_ns)


def resolve(status: types_pb2.TaskStatus, error: str = "") -> types_pb2.TaskStatus:
    """The status after the executor looked at the task for the first time (§3.2); leaves the timestamp alone."""
    new = _copy(status)
    if not error:
        if new.state < ACCEPTED:
            _advance(new, Advance(ACCEPTED, "accepted"))
        return new
    new.message = "resolving controller failed"
    new.err = error
    if new.state < STARTING:
        new.state = REJECTED
    elif new.state <= RUNNING:
        new.state = FAILED
    return new


def same_but_for_status(left: objects_pb2.Task, right: objects_pb2.Task) -> bool:
    """Whether two versions of a task differ in nothing but `status` and `meta`, which carry no order for us."""
    stripped = []
    for task in (left, right):
        copy = objects_pb2.Task()
        copy.CopyFrom(task)
        copy.ClearField("status")
        copy.ClearField("meta")
        stripped.append(copy)
    return stripped[0] == stripped[1]


class Machine:
    """The task manager of one task: the newest definition, the status, and the one operation under way."""

    def __init__(self, task: objects_pb2.Task, status: types_pb2.TaskStatus) -> None:
        self.task = task
        self.status = status
        self.operation: Operation | None = None

    @property
    def terminal(self) -> bool:
        """Nothing will run any more under this task's id."""
        return self.status.state >= COMPLETE

    def update(self, task: objects_pb2.Task) -> bool:
        """Take a newer definition; say whether it changes anything (§2.8). A lower desired state is ignored.

        A running wait is cancelled, so that the next `advance` sees the new desired state; short operations finish.
        """
        if task.desired_state < self.task.desired_state or same_but_for_status(task, self.task):
            return False
        self.task = task
        if self.operation is Operation.WAIT:
            self.operation = None
        return True

    def advance(self, now_ns: int) -> Operation | None:
        """Make every step that needs nobody; return the operation to begin, None if idle or one is under way."""
        if self.operation is not None:
            return None
        while isinstance(step := decide(self.status.state, self.task.desired_state), Advance):
            self.status = advanced(self.status, step, now_ns)
        self.operation = step
        return step

    def cancel(self) -> None:
        """Give up the operation under way; the next `advance` decides anew."""
        self.operation = None

    def finish(self, operation: Operation, result: Done | Failed, now_ns: int) -> Outcome:
        """The operation under way has ended. Raises ValueError if another one (or none) is under way."""
        if operation is not self.operation:
            raise ValueError(f"task {self.task.id}: {operation.name} ended while {self.operation} was under way")
        self.operation = None
        self.status, outcome = conclude(self.status, operation, result, now_ns)
        return outcome


def _advance(status: types_pb2.TaskStatus, step: Advance) -> None:
    if step.state < status.state:
        raise ValueError(f"a status may not go back from {status.state} to {step.state}")
    status.state = step.state
    status.message = step.message
    status.err = ""


def _show_process(status: types_pb2.TaskStatus, result: Done | Failed) -> None:
    process = result.process
    status.container.SetInParent()
    if process is not None:
        status.container.container_id = process.container_id
        status.container.pid = process.pid
        status.container.exit_code = process.exit_code
    if isinstance(result, Failed) and result.exit_code:
        status.container.exit_code = result.exit_code


def _copy(status: types_pb2.TaskStatus) -> types_pb2.TaskStatus:
    copy = types_pb2.TaskStatus()
    copy.CopyFrom(status)
    return copy


def _stamped(old: types_pb2.TaskStatus, new: types_pb2.TaskStatus, now_ns: int) -> types_pb2.TaskStatus:
    """`new` with the time of the change, if anything but the time differs."""
    if old != new:
        new.timestamp.CopyFrom(timestamp_pb2.Timestamp(seconds=now_ns // 10**9, nanos=now_ns % 10**9))
    return new
