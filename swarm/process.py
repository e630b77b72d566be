"""What every long-lived process does around its body: arguments, log, umask, parent, lock, signals, exit code.

No asyncio here: the coordinator does without (see `swarm.process_async` for the others).

Order: arguments → umask 077 → log → directories → `PR_SET_PDEATHSIG` where supervisord is the parent → lock → signals →
body. SIGTERM and SIGINT ask the body to stop (`Context.stop`), a second one gets the default action; SIGUSR1 writes the
stacks of all threads to the log.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import logging
import os
import select
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from swarm import logs
from swarm.errors import CorruptFile, SwarmvisorError, Twin
from swarm.exits import ExitCode
from swarm.lock import ProcessLock
from swarm.paths import RUNTIME_DIR_VARIABLE, STATE_DIR_VARIABLE, Paths, find_paths

SUPERVISOR_PID_VARIABLE = "SWARMVISOR_SUPERVISOR_PID"
"""Set by our plug-in in supervisord for its children: the pid that must be their parent."""

LOG_LEVEL_VARIABLE = "SWARMVISOR_LOG_LEVEL"

_PR_SET_PDEATHSIG = 1
_STDERR = 2


class Stop:
    """Whether SIGTERM or SIGINT came. Its descriptor becomes readable then, for bodies that wait in select.

    It is Python's handler in C that makes it readable (`signal.set_wakeup_fd`): the one in Python runs between two
    lines of the main thread, and a signal right before that waits would be noticed only after the wait.
    """

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._asked = False

    def ask(self) -> None:
        """Ask the process to stop (what a signal does)."""
        if not self._asked:
            self._asked = True
            self._writer.send(b"\0")

    def is_set(self) -> bool:
        return self._asked

    def fileno(self) -> int:
        """Readable once `is_set`; nobody reads it empty."""
        return self._reader.fileno()

    def waker(self) -> int:
        """What the C handler writes to."""
        return self._writer.fileno()

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep until asked to stop or `timeout` seconds passed; return `is_set`."""
        select.select([self._reader], [], [], timeout)
        return self._asked

    def close(self) -> None:
        self._reader.close()
        self._writer.close()


@dataclass(frozen=True)
class Context:
    """What a body gets."""

    name: str
    paths: Paths
    log: logging.Logger
    stop: Stop = field(default_factory=Stop)
    """For synchronous bodies; asynchronous ones get an asyncio.Event."""


def run(
    name: str,
    description: str,
    body: Callable[[Context], ExitCode],
    argv: Sequence[str] | None = None,
    *,
    lock: bool = True,
) -> int:
    """Run `body` as the process `name` of a node and return its exit code (`swarm.exits.ExitCode`).

    CorruptFile ends with CONFIG, a held lock with TWIN, any other SwarmvisorError with FAILED, each with what, why and
    remedy in the log; anything unexpected is logged with its traceback and ends with FAILED.
    """
    arguments = _parse(name, description, argv)
    os.umask(0o077)
    log = logs.configure(name, level=arguments.log_level)
    paths = find_paths(arguments.state_dir, arguments.runtime_dir)
    with ExitStack() as cleanup:
        try:
            if not _tie_to_parent():
                log.error("the supervisord that started this process is gone; ending")
                return ExitCode.ORPHANED
            make_directories(paths)
            if lock:
                cleanup.enter_context(ProcessLock(paths.lock(name)))
            gc.freeze()  # what is imported by now stays: the collector need not look at it again
            context = Context(name=name, paths=paths, log=log)
            cleanup.callback(context.stop.close)
            cleanup.enter_context(_signals(context.stop))
            code = body(context)
            log.info("ended: %s", code.name)
            return code
        except Twin as error:
            log.error("%s", error.describe())
            return ExitCode.TWIN
        except CorruptFile as error:
            log.error("%s", error.describe())
            return ExitCode.CONFIG
        except SwarmvisorError as error:
            log.error("%s", error.describe())
            return ExitCode.FAILED
        except Exception:
            # The last line of defence, not a swallow: the whole story goes to the log and supervisord restarts us.
            log.exception("unexpected; ending, supervisord starts this process again")
            return ExitCode.FAILED


def make_directories(paths: Paths) -> None:
    """Make what is missing of the directories of a node that processes share, 0700 (DESIGN §3, §5)."""
    for directory in (paths.state, paths.logs, paths.runtime, paths.bus, paths.runtime / "metrics"):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory.stat().st_mode & 0o077:
            # Somebody else made it (systemd's RuntimeDirectory=, an operator): tasks must not reach what is in it.
            directory.chmod(0o700)


def _parse(name: str, description: str, argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python -m procs.{name}",
        description=description,
        epilog="Runs in the foreground with the node's own configuration; SIGTERM ends it, SIGUSR1 writes its stacks.",
    )
    parser.add_argument(
        "--state-dir", help=f"the node's state directory (else ${STATE_DIR_VARIABLE}, else the default)"
    )
    parser.add_argument("--runtime-dir", help=f"its runtime directory (else ${RUNTIME_DIR_VARIABLE}, else the default)")
    parser.add_argument("--node", metavar="NAME", help="host name; only a title for listings of processes")
    parser.add_argument(
        "--log-level",
        choices=logs.LEVELS,
        default=os.environ.get(LOG_LEVEL_VARIABLE, "info"),
        help=f"least level to log (else ${LOG_LEVEL_VARIABLE}, else info)",
    )
    return parser.parse_args(argv)


def _tie_to_parent() -> bool:
    """Die with the supervisord that started us; False if it is dead already (DESIGN §8).

    Only under our own supervisord: run by hand in a terminal, or under an operator's own supervisord, a process answers
    to nobody's death.
    """
    parent = os.environ.get(SUPERVISOR_PID_VARIABLE)
    if parent is None or "SUPERVISOR_ENABLED" not in os.environ:
        return True
    # late: only a supervised process needs it
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_PDEATHSIG): {os.strerror(number)}")
    # The parent may have died between its fork and the line above; then no signal will ever come.
    return os.getppid() == int(parent)


@contextmanager
def _signals(stop: Stop) -> Iterator[None]:
    """SIGTERM and SIGINT set the flag, once; SIGUSR1 shows all threads. Put back afterwards."""

    def asked(number: int, _frame: object) -> None:
        # Only a flag here, no logging: the interrupted line may hold the log's lock.
        stop.ask()
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, asked) for number in (signal.SIGTERM, signal.SIGINT)}
    woke = signal.set_wakeup_fd(stop.waker(), warn_on_full_buffer=False)
    # faulthandler writes from the C handler itself: it works in a process that is stuck in C code or holds a lock.
    faulthandler.register(signal.SIGUSR1, file=_STDERR, all_threads=True, chain=False)
    try:
        yield
    finally:
        faulthandler.unregister(signal.SIGUSR1)
        signal.set_wakeup_fd(woke)
        for number, handler in before.items():
            signal.signal(number, handler)
