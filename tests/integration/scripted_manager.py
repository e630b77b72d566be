"""A manager program that manages nothing: what supervisord starts as `manager` where a test plays the other managers.

Behaves as the real one towards its own node: makes `manager/`, says `starting` and `ready`, ends with ROLE_LOST when
the certificate is a worker's, with REMOVED when the test writes `removed` into `<runtime>/membership`, a FIFO.
"""

from __future__ import annotations

import os
import sys

from ipc import topics
from ipc.bus import Bus
from swarm import process
from swarm.exits import ExitCode
from swarm.process import Context


def body(context: Context) -> ExitCode:
    """Until there is a reason to end."""
    paths = context.paths
    paths.manager.mkdir(mode=0o700, exist_ok=True)
    (paths.manager / "store.db").write_text("precious")
    # Read and write: so the FIFO never is at its end.
    membership = os.open(paths.runtime / "membership", os.O_RDWR | os.O_NONBLOCK)
    with Bus(paths.bus, topics.MANAGER, ("certificate",)) as bus:
        bus.publish("manager", topics.Manager("starting"))
        while not context.stop.is_set():
            bus.poll(None, fds=(context.stop.fileno(), membership))
            value = bus.last("certificate")
            if value is None:
                continue
            if value.body.role == topics.WORKER_ROLE:
                bus.publish("manager", topics.Manager("stopped", why="role lost"))
                return ExitCode.ROLE_LOST
            bus.publish("manager", topics.Manager("ready"))
            if _removed(membership):
                bus.publish("manager", topics.Manager("removed", why="the test"))
                return ExitCode.REMOVED
        bus.publish("manager", topics.Manager("stopped", why="done"))
    return ExitCode.DONE


def _removed(membership: int) -> bool:
    try:
        return b"removed" in os.read(membership, 4096)
    except BlockingIOError:
        return False


if __name__ == "__main__":
    sys.exit(process.run("manager", "A manager for tests.", body))
