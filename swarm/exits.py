"""How our long-lived processes end, and what supervisord does about it.

These are *final words*: supervisord keeps the exit code of a process, the plug-in publishes it as `process.<name>`,
so it outlives the process that said it (DESIGN §3). `supervisord.conf` writes `exitcodes=` from `INTENDED`; every other
end (a signal, FAILED) counts as a crash and is restarted at once.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit code of a process of the node. Not the exit codes of the command line (`procs.cli.exits`)."""

    DONE = 0
    """Asked to stop (SIGTERM) and stopped."""
    FAILED = 1
    """Something went wrong that a restart may mend."""
    USAGE = 2
    """Bad command-line arguments."""
    CONFIG = 78
    """A file of the node cannot be used (node.toml, a key, a database); the log names file and remedy. A restart
    cannot mend it."""
    TWIN = 79
    """Another process holds this process's lock, and still did after 5 s."""
    REMOVED = 80
    """Manager: this node is no longer a member of the managers."""
    ROLE_LOST = 81
    """Manager: the certificate no longer says manager."""
    ORPHANED = 82
    """The supervisord that started this process is gone."""


INTENDED: frozenset[ExitCode] = frozenset(
    {ExitCode.DONE, ExitCode.USAGE, ExitCode.CONFIG, ExitCode.REMOVED, ExitCode.ROLE_LOST}
)
"""Ends that supervisord does not answer with a restart; the coordinator decides what follows."""
