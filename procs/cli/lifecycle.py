"""Starting and stopping a node's supervisord, and with it everything of the node (DESIGN §8)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from ipc import topics
from procs.cli.observed import NO_NODE, look, order, supervisor_pid, wait_for_end, wait_ready
from procs.cli.supervisord_conf import PROGRAMS, write_configuration
from swarm.errors import Refused, SwarmvisorError, TimedOut, Twin, Unreachable
from swarm.lock import TWIN_DEADLINE, ProcessLock
from swarm.nodeconfig import load_node_config
from swarm.paths import PROCESSES, Paths
from swarm.process import SUPERVISOR_PID_VARIABLE, make_directories
from swarm.supervisor_rpc import ALREADY_STARTED, NOT_RUNNING, SHUTDOWN_STATE, SupervisorClient, SupervisorFault
from swarm.tmpfs import release, tasks_in_memory

READY_TIMEOUT = 60.0
"""Seconds that `init` and `up` wait for the node to be ready, unless told otherwise."""

_SUPERVISOR_START = 15.0
"""Seconds that supervisord may take until it answers."""

_SHUTDOWN = 4000.0
"""Seconds that a shutdown may take: more than supervisord itself allows its programs (tasks have grace periods)."""

_STOPPED_FIRST = ("agent", "manager", "renewer", "coordinator")
"""What ends, in this order, while the workload is kept."""

Tell = Callable[[str], None]


def own_only(paths: Paths) -> ProcessLock:
    """The lock that keeps two commands from starting or stopping the same node at once."""
    make_directories(paths)
    return ProcessLock(paths.lock("command"))


def need_node(paths: Paths) -> None:
    """Raises Refused if there is no node here, CorruptFile if node.toml cannot be used."""
    try:
        load_node_config(paths.node_toml)
    except FileNotFoundError as error:
        raise Refused(
            f"there is no node in {paths.state}",
            remedy=f"{NO_NODE}; or name the node with --state-dir",
        ) from error


def start(paths: Paths, tell: Tell) -> bool:
    """Start the node's supervisord in the background and wait until it answers; False if it was up already.

    Programs of a running one that ended and stayed so (over a file that was mended since) are started again.
    """
    paths.check_lengths()
    with own_only(paths):
        if supervisor_pid(paths.supervisor_socket):
            _start_ended_programs(paths)
            return False
        _nobody_else(paths)
        write_configuration(paths)
        tell("starting supervisord")
        _spawn(paths)
        return True


def run_in_foreground(paths: Paths) -> None:
    """Become the node's supervisord; never returns. Raises Refused if the node is up already."""
    paths.check_lengths()
    with own_only(paths):
        pid = supervisor_pid(paths.supervisor_socket)
        if pid:
            raise Refused(
                f"the node is already up (supervisord is process {pid})", remedy="run `swarmvisor down` first"
            )
        _nobody_else(paths)
        write_configuration(paths)
    os.chdir("/")
    os.execve(sys.executable, _command(paths), _environment())


def _command(paths: Paths) -> list[str]:
    return [sys.executable, "-P", "-m", "supervisor.supervisord", "-c", str(paths.supervisor_conf)]


def _environment() -> dict[str, str]:
    """Ours without the traces of a supervisord around us (`swarmvisor.include.conf`)."""
    traces = ("SUPERVISOR_ENABLED", "SUPERVISOR_SERVER_URL", "SUPERVISOR_PROCESS_NAME", "SUPERVISOR_GROUP_NAME")
    return {k: v for k, v in os.environ.items() if k not in (*traces, SUPERVISOR_PID_VARIABLE)}


def _spawn(paths: Paths) -> None:
    log = paths.logs / "supervisord.start.log"
    with open(log, "wb") as out:
        child = subprocess.Popen(
            [*_command(paths), "--silent"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd="/",
            env=_environment(),
            start_new_session=True,
        )
    from ipc.bus import Bus  # late: zmq, loaded while supervisord starts

    deadline = time.monotonic() + _SUPERVISOR_START
    handle = os.pidfd_open(child.pid)
    try:
        with Bus(paths.bus, None, ("process.*",)) as bus:
            while not bus.complete(topics.SUPERVISOR):
                if child.poll() is not None:
                    words = log.read_text(errors="replace").strip().splitlines()
                    raise SwarmvisorError(
                        f"supervisord did not start: {words[-1] if words else f'exit code {child.returncode}'}",
                        remedy=f"see {log} and {paths.logs / 'supervisord.log'}",
                    )
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimedOut(
                        f"supervisord (process {child.pid}) does not answer after {_SUPERVISOR_START:g} s",
                        remedy=f"see {paths.logs / 'supervisord.log'}",
                    )
                bus.poll(left, fds=(handle,))
    finally:
        os.close(handle)
    # It is meant to outlive us: nobody here waits for it.
    child.returncode = 0


def _start_ended_programs(paths: Paths) -> None:
    client = SupervisorClient(paths.supervisor_socket, timeout=60.0)
    state = client.call("supervisor.getState")["statename"]
    if state != "RUNNING":
        raise Refused(f"the node's supervisord is in state {state}", remedy="wait a moment, then run it again")
    certificate = look(paths).body("certificate", topics.Certificate)
    if certificate is not None and certificate.state == "failed":
        # It does not end over a file that it cannot use, it waits: for this.
        _over_again(client, topics.RENEWER)
    for program in PROGRAMS:
        if program.autostart:
            _begin(client, program.name)


def _begin(client: SupervisorClient, name: str) -> None:
    try:
        client.call("supervisor.startProcess", name, False)
    except SupervisorFault as fault:
        if fault.code != ALREADY_STARTED:
            raise


def begin_anew(paths: Paths) -> None:
    """Have the programs of a running supervisord start over: they waited for a node.toml that is there now."""
    client = SupervisorClient(paths.supervisor_socket, timeout=60.0)
    for program in PROGRAMS:
        if program.autostart:
            _over_again(client, program.name)


def _over_again(client: SupervisorClient, name: str) -> None:
    order(client, "supervisor.stopProcess", name, NOT_RUNNING)
    _begin(client, name)


def _nobody_else(paths: Paths) -> None:
    """Raise Refused while any process of this state directory lives: another node runs on it, perhaps under another
    runtime directory. Those of a supervisord that was killed are dying, hence the patience."""
    deadline = time.monotonic() + TWIN_DEADLINE
    for name in PROCESSES:
        lock = ProcessLock(paths.lock(name))
        try:
            lock.acquire(max(0.0, deadline - time.monotonic()))
        except Twin as error:
            raise Refused(
                f"another node runs on {paths.state}: {error.message}",
                remedy="stop it (`swarmvisor down` with its runtime directory), or choose another state directory",
            ) from error
        lock.release()


def stop(paths: Paths, tell: Tell, *, keep_tasks: bool) -> bool:
    """Stop everything of the node; with `keep_tasks` all but the workload and its tasks. False: nothing ran."""
    with own_only(paths):
        pid = supervisor_pid(paths.supervisor_socket)
        if keep_tasks:
            if pid:
                _stop_around_workload(paths, pid, tell)
            _sweep(paths, keep_workload=supervisor_pid(paths.workload_socket) != 0)
            return pid != 0
        if pid:
            tell("stopping: agent, tasks, manager, renewer, coordinator")
            _shut_down(SupervisorClient(paths.supervisor_socket), pid, "supervisord")
        # The workload of an earlier supervisord, or of one that was killed just now, is nobody's program.
        workload = supervisor_pid(paths.workload_socket)
        if workload:
            tell("ending the tasks")
            _shut_down(SupervisorClient(paths.workload_socket), workload, "the workload's supervisord")
        _forget_secrets(paths)
        _nobody_else(paths)
        _sweep(paths, keep_workload=False)
        return bool(pid or workload)


def _forget_secrets(paths: Paths) -> None:
    """Remove the secrets of tasks: none runs any more, and memory is shared with the rest of the host."""
    try:
        place = tasks_in_memory(paths)
    except Refused:
        return  # there is no such place, so no task ever had one
    if place.exists():
        shutil.rmtree(place)
    release(paths.tasks_mount)


def _shut_down(client: SupervisorClient, pid: int, what: str) -> None:
    patience = _SHUTDOWN
    try:
        client.call("supervisor.shutdown")
    except SupervisorFault as fault:
        if fault.code != SHUTDOWN_STATE:
            raise
    except Unreachable:
        # It may have ended between our question and our order.
        patience = client.timeout
    wait_for_end(pid, patience, what)


def stop_processes(paths: Paths, tell: Tell) -> None:
    """End the node's own processes under its supervisord, which stays, and so do the tasks. `begin_anew` undoes it."""
    client = SupervisorClient(paths.supervisor_socket, timeout=60.0)
    for name in _STOPPED_FIRST:
        tell(f"stopping {name}")
        order(client, "supervisor.stopProcess", name, NOT_RUNNING)


def _stop_around_workload(paths: Paths, pid: int, tell: Tell) -> None:
    """End all but the workload. supervisord would stop it too, so it is killed; what is left lives on (DESIGN §8)."""
    stop_processes(paths, tell)
    handle = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    finally:
        os.close(handle)
    wait_for_end(pid, _SUPERVISOR_START, "supervisord")
    _nobody_else(paths)


def _sweep(paths: Paths, *, keep_workload: bool) -> None:
    """Remove what ended processes leave in the runtime directory: not every socket is unlinked by its owner."""
    kept = {paths.workload_socket, paths.workload_conf, paths.workload_pid, paths.bus_socket("workload")}
    files = {*paths.sockets(), paths.control_certificate, paths.supervisor_conf, paths.supervisor_pid, *kept}
    for path in files - (kept if keep_workload else set()):
        path.unlink(missing_ok=True)
    for directory in (paths.runtime / "metrics", paths.bus, paths.runtime):
        if directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()


def ready(paths: Paths, timeout: float, tell: Tell) -> topics.Node:
    """Wait until the started node is ready, and return what it says; a locked one is said to be so, and left."""
    pid = supervisor_pid(paths.supervisor_socket)
    handle = os.pidfd_open(pid) if pid else None
    try:
        node = wait_ready(paths, timeout, tell, watch=() if handle is None else (handle,))
    finally:
        if handle is not None:
            os.close(handle)
    if node.state == "locked":
        raise Refused(f"the node is up and locked: {node.cause}")  # which says what to do, as `status` does
    return node
