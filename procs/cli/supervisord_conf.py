"""The configuration of a node's supervisord, rendered from the exit codes and the node's directories (DESIGN §8).

`swarmvisor up` writes it to `<runtime>/supervisord.conf`. The checked-in `supervisord.conf` is exactly the rendering
for root's default directories; a test compares them byte for byte.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from swarm.errors import BadInput
from swarm.exits import INTENDED, ExitCode
from swarm.files import write_atomic
from swarm.nodeconfig import load_node_config
from swarm.paths import Paths

MACHINE = "%(host_node_name)s"
"""The machine's own name, in supervisord's notation; the title of processes whose node has no other."""

NEVER_FATAL = 1_000_000_000
"""`startretries`: no process ever reaches FATAL; our plug-in caps the back-off at 4 s (DESIGN §8)."""

_PLAIN = re.compile(r"[\w.-]+", re.ASCII)
_UNFIT = re.compile(r"[\x00-\x1f\x7f\"'\\%]|\s[;#]|^\s|\s$")


@dataclass(frozen=True)
class Program:
    """One program of the node's supervisord. Each is a group of its own: those of one group stop all at once."""

    name: str
    priority: int
    """Started in ascending order, stopped in descending order, one after the other."""
    autostart: bool
    stopwaitsecs: int
    """Seconds from SIGTERM to SIGKILL."""
    exitcodes: frozenset[ExitCode]
    why: str


# DONE, unasked by supervisord, of a process that only ever ends when supervisord asks: somebody's `kill`. Start again.
_ASKED_ONLY = INTENDED - {ExitCode.DONE}

PROGRAMS = (
    Program("coordinator", 10, True, 10, _ASKED_ONLY, "decides the node's role and whether the manager runs"),
    Program("renewer", 20, True, 10, _ASKED_ONLY, "writes keys and certificates"),
    Program("manager", 30, False, 20, INTENDED, "manages the swarm; started by the coordinator"),
    Program("workload", 40, False, 3600, INTENDED, "the tasks; started by the agent, waits for their grace periods"),
    Program("agent", 50, True, 20, _ASKED_ONLY, "the session with a manager"),
)

HEAD = """\
; The supervisord of a Swarmvisor node. Written by procs/cli/supervisord_conf.py, do not edit:
; `swarmvisor up` writes it anew into the node's runtime directory.
;
; The checked-in copy is for root's default directories and runs as it is, from the checkout:
;
;     install -d -m 0700 /var/lib/swarmvisor/logs /run/swarmvisor
;     .venv/bin/supervisord -c supervisord.conf
;
; supervisord itself makes no directories, hence `install` (once for /var/lib, after each boot for /run). It must be the
; supervisord of .venv, since our plug-in is loaded into it. Without a node.toml the processes wait; `swarmvisor init`
; creates the node and has them start over.
"""


def render(paths: Paths, interpreter: str, *, root: bool, node: str = MACHINE) -> str:
    """The whole configuration. `interpreter` is in supervisord's own notation; `root`: whether
    supervisord will run as root. Raises BadInput for directories that its file format cannot carry."""
    state, runtime, logs = (_fit(p) for p in (paths.state, paths.runtime, paths.logs))
    sections = [
        HEAD,
        f"""\
[unix_http_server]
file={_fit(paths.supervisor_socket)}
chmod=0700

[supervisord]
nodaemon=true
identifier=swarmvisor
{"user=root" + chr(10) if root else ""}\
umask=077
directory=/
pidfile={_fit(paths.supervisor_pid)}
logfile={logs}/supervisord.log
logfile_maxbytes=5MB
logfile_backups=2
childlogdir={logs}
nocleanup=true
environment=SWARMVISOR_STATE_DIR="{state}",SWARMVISOR_RUNTIME_DIR="{runtime}"

[supervisorctl]
serverurl=unix://{_fit(paths.supervisor_socket)}

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface

[rpcinterface:swarmvisor]
supervisor.rpcinterface_factory=ipc.supervisor_plugin:make_node_interface
bus={_fit(paths.bus)}
""",
        *(_section(program, interpreter, logs, node) for program in PROGRAMS),
    ]
    return "\n".join(sections)


def _section(program: Program, interpreter: str, logs: str, node: str) -> str:
    # -P: `python -m` would put the working directory before our own packages
    return f"""\
; {program.why}
[program:{program.name}]
command="{interpreter}" -P -m procs.{program.name} --node {node}
priority={program.priority}
autostart={"true" if program.autostart else "false"}
autorestart=unexpected
exitcodes={",".join(str(int(code)) for code in sorted(program.exitcodes))}
startsecs=1
startretries={NEVER_FATAL}
stopsignal=TERM
stopwaitsecs={program.stopwaitsecs}
redirect_stderr=true
stdout_logfile={logs}/{program.name}.log
stdout_logfile_maxbytes=5MB
stdout_logfile_backups=2
"""


def fit(path: str) -> str:
    """`path` if supervisord's file format carries it as it is, else BadInput.

    `%` would have to be doubled, and in `environment=` doubled twice: supervisord expands that one once more.
    """
    if _UNFIT.search(path):
        raise BadInput(
            f"{path!r} cannot stand in supervisord's configuration",
            remedy="choose a directory without quotes, backslashes, percent signs, control characters, ' ;' and ' #'",
        )
    return path


def _fit(path: Path) -> str:
    return fit(str(path))


def write_configuration(paths: Paths) -> None:
    """Write this node's configuration for the interpreter that runs now."""
    hostname = load_node_config(paths.node_toml).hostname
    # Only a title: a name that would need quoting is not worth it.
    node = hostname if _PLAIN.fullmatch(hostname) else MACHINE
    text = render(paths, fit(sys.executable), root=os.geteuid() == 0, node=node)
    write_atomic(paths.supervisor_conf, text.encode(), mode=0o600)


def checked_in() -> str:
    """What the repository's `supervisord.conf` must hold."""
    paths = Paths(state=Path("/var/lib/swarmvisor"), runtime=Path("/run/swarmvisor"))
    return render(paths, "%(here)s/.venv/bin/python", root=True)


if __name__ == "__main__":
    sys.stdout.write(checked_in())
