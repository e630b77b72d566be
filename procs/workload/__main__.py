"""workload: the second supervisord, whose children are the tasks (DESIGN §7).

Owns     `workload.conf`, `workload.sock`, `workload.pid` in the runtime directory; `exit`, `stdout`, `stderr`, `work`
         in `tasks/<id>/`; the cgroup subtree of the node; the bus socket `workload.sock`.
Reads    `tasks/<id>/spec`, written by the agent.
Says     `task.<id>`. Hears nothing: orders come as XML-RPC (`procs.workload.plugin`).
Never    starts a task by itself, or twice; removes a task's directory; dies with the node's supervisord (the next agent
         adopts it, so `PDEATHSIG` is not for this process).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from swarm.errors import SwarmvisorError
from swarm.exits import ExitCode
from swarm.files import write_atomic
from swarm.process import SUPERVISOR_PID_VARIABLE, Context, run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the workload's supervisord in this process until SIGTERM; returns an ExitCode."""
    # Not tied to the supervisord that started it: tasks outlive that one's crash.
    os.environ.pop(SUPERVISOR_PID_VARIABLE, None)
    return run("workload", "The second supervisord, whose children are the tasks of services.", serve, argv)


def serve(context: Context) -> ExitCode:
    """Write the configuration and be a supervisord until told to stop."""
    # late: --help needs no supervisor
    from supervisor.states import SupervisorStates

    from procs.workload.conf import render

    context.paths.tasks.mkdir(mode=0o700, exist_ok=True)
    conf = context.paths.workload_conf
    write_atomic(conf, render(context.paths, root=os.geteuid() == 0).encode())
    if _supervise(str(conf), context) == SupervisorStates.RESTARTING:
        # supervisor's own restart closes descriptors from 5 up, the lock's among them, and keeps the pid by which the
        # agent knows this life of ours: end instead, the node's supervisord takes that for a crash and starts another
        context.log.warning("a restart was asked for: ending, to be started anew")
        return ExitCode.FAILED
    return ExitCode.DONE


def _supervise(conf: str, context: Context) -> Any:
    """One life of a supervisord; returns its last mood. Raises SwarmvisorError if it could not start."""
    # late: as above
    from supervisor.medusa.asyncore_25 import ExitNow
    from supervisor.options import ServerOptions
    from supervisor.states import SupervisorStates
    from supervisor.supervisord import Supervisor

    from procs.workload.conf import LOG

    class WorkloadSupervisor(Supervisor):  # type: ignore[misc]  # supervisor has no types
        def runforever(self) -> None:
            if context.stop.is_set():
                # SIGTERM came before supervisor's own handlers were there
                self.options.mood = SupervisorStates.SHUTDOWN
            super().runforever()

    options = ServerOptions()
    options.realize(["-c", conf, "-n"], doc=__doc__)
    options.first = True
    options.test = False
    try:
        WorkloadSupervisor(options).main()
    except ExitNow:
        context.log.info("all tasks have ended")
    except SystemExit as error:
        # how supervisor says that it cannot start; its words are on stderr, its exit code would count as intended
        raise SwarmvisorError(
            f"the workload supervisord could not start (it says {error.code})",
            remedy=f"see the lines above and {context.paths.logs / LOG}",
        ) from error
    options.close_httpservers()
    options.close_logger()
    return options.mood


if __name__ == "__main__":
    sys.exit(main())
