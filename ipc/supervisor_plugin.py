"""What runs inside supervisord: says what it knows of each program, and keeps its loop awake (DESIGN §7, §10).

    [rpcinterface:swarmvisor]
    supervisor.rpcinterface_factory = ipc.supervisor_plugin:make_node_interface
    bus = <runtime>/bus

Owns `<bus>/supervisor.sock` and the topics `process.<name>`. Reads nothing. It changes four things in supervisord's
ways: the back-off begins with a try at once, is capped at 4 s and never ends in FATAL; an intended exit code
(`exitcodes=`) counts as such however early it comes; a child can be stopped from its first moment on; and the loop no
longer sleeps up to a second before it spawns or reaps.

Four rules for ZeroMQ in a supervisord, all kept by `SupervisorBus`: the context is made on SupervisorRunningEvent (the
factory runs before daemonize's fork); `options.cleanup` is wrapped, so that everything is closed before a reload closes
the descriptors under libzmq; the socket's descriptor is edge-triggered, so EVENTS is looked at before each sleep of the
loop; the topics of what is gone are forgotten. Nothing raised here may reach supervisord: an exception in a callback of
its events would end it.
"""

from __future__ import annotations

import functools
import math
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq
from supervisor import events
from supervisor.datatypes import RestartUnconditionally
from supervisor.states import (
    RUNNING_STATES,
    ProcessStates,
    SupervisorStates,
    getProcessStateDescription,
)

from ipc.errors import Closed
from ipc.publisher import Publisher
from ipc.topics import SUPERVISOR, Process

PID_VARIABLE = "SWARMVISOR_SUPERVISOR_PID"
"""Tells the children which process must be their parent."""

BACKOFF_CAP = 4
"""Seconds; supervisor's own back-off grows by one second a failure without bound."""

_PIDFUL = (*RUNNING_STATES, ProcessStates.STOPPING)

_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR2)
"""What supervisord handles: blocked around the fork, since its handler would swallow in the child, until that is
executed, what is meant to stop it; supervisord would wait for `stopwaitsecs` in vain."""


def guarded(supervisord: Any, call: Callable[..., Any]) -> Callable[..., None]:
    """`call`, made harmless to supervisord: what it raises is logged as critical, with its traceback."""

    @functools.wraps(call)
    def harmless(*args: Any) -> None:
        try:
            call(*args)
        except Exception:  # noqa: BLE001  an exception that reached supervisord's loop would end it
            supervisord.options.logger.critical(
                "swarmvisor plug-in failed in %(call)r:\n%(trace)s", call=call, trace=traceback.format_exc()
            )

    return harmless


def on_event(supervisord: Any, kind: type, call: Callable[..., Any]) -> None:
    """Have `call(event)` called at each event of `kind` until supervisord ends or reloads."""
    events.subscribe(kind, guarded(supervisord, call))


def before_cleanup(supervisord: Any, call: Callable[[], None]) -> None:
    """Have `call()` called before supervisord closes its descriptors, at its end and at a reload."""
    options = supervisord.options
    original = options.cleanup
    close = guarded(supervisord, call)

    def cleanup() -> None:
        close()
        original()

    options.cleanup = cleanup


class _Listener:
    """An entry of supervisord's socket map: calls `ready` when its descriptor is readable, and `before_sleep` on each
    pass of the loop."""

    def __init__(self, supervisord: Any, fd: int, ready: Callable[[], None], before_sleep: Callable[[], None]) -> None:
        self._map: dict[int, Any] = supervisord.options.get_socket_map()
        self._fd = fd
        self._ready = guarded(supervisord, ready)
        self._before_sleep = guarded(supervisord, before_sleep)
        self._error = guarded(supervisord, self._unexpected)
        self._map[fd] = self

    def readable(self) -> bool:
        self._before_sleep()
        return True

    def writable(self) -> bool:
        return False

    def handle_read_event(self) -> None:
        self._ready()

    def handle_error(self) -> None:
        self._error()

    def remove(self) -> None:
        self._map.pop(self._fd, None)

    def _unexpected(self) -> None:
        raise RuntimeError(f"descriptor {self._fd} is in error")


class LoopWaker:
    """Ends supervisord's sleep of up to one second: at each signal (a child's end), at each state change, on `wake`."""

    def __init__(self, supervisord: Any) -> None:
        """Opens on SupervisorRunningEvent. One for each supervisord: there is one wake-up descriptor a process."""
        self._supervisord = supervisord
        self._pair: tuple[socket.socket, socket.socket] | None = None
        self._listener: _Listener | None = None
        on_event(supervisord, events.SupervisorRunningEvent, self._open)
        # reap stops after 100 children a pass, and EXITED → STARTING is the next pass's work.
        on_event(supervisord, events.ProcessStateEvent, lambda _: self.wake())
        before_cleanup(supervisord, self._close)

    def wake(self) -> None:
        """Have the loop make another pass at once."""
        if self._pair is None:
            return
        try:
            self._pair[1].send(b"\0")
        except BlockingIOError:
            return  # full of wake-ups that the loop has not seen yet: it will pass

    def _open(self, _: object) -> None:
        reading, writing = socket.socketpair()
        reading.setblocking(False)
        writing.setblocking(False)
        self._pair = (reading, writing)
        self._listener = _Listener(self._supervisord, reading.fileno(), self._drain, lambda: None)
        signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        self.wake()

    def _drain(self) -> None:
        if self._pair is not None:
            # What does not fit is read at the next pass: the descriptor stays readable.
            self._pair[0].recv(4096)

    def _close(self) -> None:
        if self._pair is None or self._listener is None:
            return
        signal.set_wakeup_fd(-1)
        self._listener.remove()
        for end in self._pair:
            end.close()
        self._pair = self._listener = None


class SupervisorBus:
    """A publisher that lives in a supervisord. Opens on SupervisorRunningEvent, closes before `options.cleanup`."""

    def __init__(self, supervisord: Any, directory: Path, proc: str, waker: LoopWaker | None = None) -> None:
        """`proc` names socket and owner; supervisord itself is unique through its own pid file and sockets. Handlers of
        SupervisorRunningEvent that subscribed after this was made find it open."""
        self._supervisord = supervisord
        self._directory = directory
        self._proc = proc
        self._waker = waker
        self._context: zmq.Context[Any] | None = None
        self._publisher: Publisher | None = None
        self._listener: _Listener | None = None
        on_event(supervisord, events.SupervisorRunningEvent, self._open)
        before_cleanup(supervisord, self._close)

    @property
    def epoch(self) -> int:
        """Of this publisher. Raises Closed while not open."""
        return self._opened().epoch

    @property
    def counters(self) -> dict[str, int]:
        """Everything counted so far, by name. Raises Closed while not open."""
        return dict(self._opened().counters)

    def seq(self, topic: str) -> int:
        """Of the topic's newest value, 0 if it has none. Raises Closed while not open."""
        return self._opened().seq(topic)

    def publish(self, topic: str, body: object, cause: str = "") -> None:
        """See Bus.publish. Raises Closed while not open, Refused."""
        self._opened().publish(topic, body, cause)

    def retire(self, topic: str) -> None:
        """See Bus.retire. Raises Closed while not open, Refused."""
        self._opened().retire(topic)

    def _opened(self) -> Publisher:
        if self._publisher is None:
            raise Closed(f"the bus of {self._proc} is open only while supervisord runs")
        return self._publisher

    def _open(self, _: object) -> None:
        self._context = zmq.Context()
        try:
            self._publisher = Publisher(self._context, self._directory, self._proc)
        except BaseException:
            self._context.term()
            raise
        self._listener = _Listener(self._supervisord, self._publisher.fileno(), self._service, self._before_sleep)

    def _before_sleep(self) -> None:
        # Also the timer of the digest: the loop passes at least once a second.
        if self._publisher is not None and self._publisher.pending():
            self._service()

    def _service(self) -> None:
        if self._publisher is None:
            return
        self._publisher.service()
        if self._publisher.pending() and self._waker is not None:
            self._waker.wake()

    def _close(self) -> None:
        if self._publisher is None or self._listener is None or self._context is None:
            return
        self._listener.remove()
        self._publisher.close()
        self._context.term()
        self._context = self._publisher = self._listener = None


class ProcessReporter:
    """Publishes `process.<name>` for every program of this supervisord, and bounds its back-off."""

    def __init__(self, supervisord: Any, bus: SupervisorBus) -> None:
        self._supervisord = supervisord
        self._bus = bus
        self._ends: dict[str, Process] = {}
        self._groups: dict[str, list[str]] = {}
        on_event(supervisord, events.SupervisorRunningEvent, self._running)
        on_event(supervisord, events.SupervisorStoppingEvent, self._stopping)
        on_event(supervisord, events.ProcessGroupAddedEvent, lambda event: self._added(event.group))
        on_event(supervisord, events.ProcessGroupRemovedEvent, lambda event: self._removed(event.group))
        on_event(supervisord, events.ProcessStateEvent, self._changed)

    def _running(self, _: object) -> None:
        os.environ[PID_VARIABLE] = str(os.getpid())
        for name in list(self._supervisord.process_groups):
            self._added(name)

    def _added(self, group_name: str) -> None:
        group = self._supervisord.process_groups[group_name]
        for process in group.processes.values():
            process.spawn = functools.partial(self._spawn, process, process.spawn)
            process._spawn_as_child = functools.partial(_as_child, process._spawn_as_child)  # noqa: SLF001
            process.finish = functools.partial(self._finish, process, process.finish)
            self._groups.setdefault(group_name, []).append(_name(process))
            self._publish(process)

    def _removed(self, group_name: str) -> None:
        for name in self._groups.pop(group_name, []):
            self._ends.pop(name, None)
            self._bus.retire(f"process.{name}")

    def _stopping(self, _: object) -> None:
        # supervisord would call a program that is in BACKOFF when it shuts down FATAL; it is merely stopped.
        for group in self._supervisord.process_groups.values():
            for process in group.processes.values():
                if process.get_state() == ProcessStates.BACKOFF:
                    process.stop()

    def _spawn(self, process: Any, original: Callable[[], Any]) -> Any:
        # STARTING is announced before the fork: say the pid as soon as there is one. The child never gets here.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
        try:
            result = original()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        guarded(self._supervisord, self._publish)(process)
        return result

    def _finish(self, process: Any, original: Callable[[int, int], Any], pid: int, status: int) -> Any:
        guarded(self._supervisord, self._ended)(process, status)
        return original(pid, status)

    def _ended(self, process: Any, status: int) -> None:
        """Keep how the process ended: supervisor itself forgets which signal it was."""
        if os.WIFSIGNALED(status):
            code, number = -1, os.WTERMSIG(status)
        else:
            code, number = os.WEXITSTATUS(status), 0
        intended = number == 0 and code in process.config.exitcodes
        name = _name(process)
        self._ends[name] = Process(name, "", 0, code, number, intended or process.killing)
        if intended and not process.killing and process.config.autorestart is not RestartUnconditionally:
            # Within startsecs supervisor takes any end for a failed start, even one that `exitcodes=` lists, and
            # would try again for ever. With the start moved back it is an ordinary, expected exit.
            process.laststart = min(process.laststart, time.time() - process.config.startsecs - 1)

    def _changed(self, event: Any) -> None:
        process = event.process
        if process.get_state() == ProcessStates.BACKOFF and process.config.startretries > 0:
            # Supervisor makes its counter the delay; above startretries it would turn FATAL. A program with
            # startretries=0 says itself that it is to be tried once.
            retries = process.config.startretries
            process.backoff = min(process.backoff, retries, BACKOFF_CAP + 1)
            # To be killed once within startsecs is no failure to start. (With startretries=1 each is the first.)
            process.delay = time.time() + (process.backoff - 1 if retries > 1 else 1)
        self._publish(process, event.expected)

    def _publish(self, process: Any, expected: bool = True) -> None:
        state = process.get_state()
        name = _name(process)
        end = self._ends.get(name)
        body = Process(
            name=name,
            state=getProcessStateDescription(state),
            pid=process.pid if state in _PIDFUL else 0,
            exit_code=-1 if end is None else end.exit_code,
            signal=0 if end is None else end.signal,
            expected=end is None or end.expected,
            next_restart_at=self._next_restart(process, expected),
        )
        self._bus.publish(f"process.{name}", body, f"supervisord:{body.state}")

    def _next_restart(self, process: Any, expected: bool) -> int:
        state = process.get_state()
        if self._supervisord.options.mood <= SupervisorStates.RESTARTING:
            return 0
        if state == ProcessStates.BACKOFF:
            return math.ceil(float(process.delay))
        restarts = process.config.autorestart
        if state == ProcessStates.EXITED and (restarts is RestartUnconditionally or (restarts and not expected)):
            return math.ceil(float(process.laststop))
        return 0


class NodeInterface:
    """XML-RPC namespace `swarmvisor` of the node's supervisord."""

    def __init__(self, supervisord: Any, directory: Path) -> None:
        # The order matters: each handler of SupervisorRunningEvent builds on those subscribed before it.
        self._waker = LoopWaker(supervisord)
        self._bus = SupervisorBus(supervisord, directory, SUPERVISOR, self._waker)
        self._reporter = ProcessReporter(supervisord, self._bus)

    def getBusCounters(self) -> dict[str, int]:  # noqa: N802  XML-RPC names are supervisor's style
        """What the plug-in's publisher has counted so far

        @return struct  name to count
        """
        return self._bus.counters


def make_node_interface(supervisord: Any, **config: str) -> NodeInterface:
    """The factory that supervisord calls. `bus`: directory of the bus sockets. ValueError keeps supervisord from
    starting, with this text in its log."""
    unknown = sorted(set(config) - {"bus"})
    if unknown or not config.get("bus"):
        raise ValueError(f"[rpcinterface:swarmvisor] needs bus=<directory> and takes nothing else, got {config!r}")
    return NodeInterface(supervisord, Path(config["bus"]))


def _as_child(original: Callable[[str, list[str]], None], filename: str, argv: list[str]) -> None:
    """The child's part of a spawn: what was sent since the fork takes effect now. Never returns."""
    for number in _HANDLED:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
    original(filename, argv)


def _name(process: Any) -> str:
    """As supervisorctl shows it: `group:name`, or the name alone where both are the same."""
    name = str(process.config.name)
    group = process.group.config.name if process.group is not None else name
    return name if group == name else f"{group}:{name}"
