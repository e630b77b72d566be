"""`workload.conf`: the configuration of the second supervisord, written anew at each start."""

from __future__ import annotations

import resource

from procs.workload.config import GROUP
from swarm.errors import BadInput
from swarm.paths import Paths

LOG = "workload-supervisord.log"
"""In the logs directory; what the tasks print is in their own."""

_TEMPLATE = """\
; Written at each start of the workload supervisord; edits are lost. Tasks are added by RPC, none is declared here.
[unix_http_server]
file = {socket}
chmod = 0700

[supervisord]
nodaemon = true
silent = true
identifier = workload
logfile = {log}
logfile_maxbytes = 10MB
logfile_backups = 2
loglevel = info
pidfile = {pid}
childlogdir = {logs}
nocleanup = true
umask = 077
minfds = {minfds}
minprocs = 1
{user}
[group:{group}]
programs =

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[rpcinterface:workload]
supervisor.rpcinterface_factory = procs.workload.plugin:make_workload_interface
state = {state}
runtime = {runtime}

[supervisorctl]
serverurl = unix://{socket}
"""


def render(paths: Paths, *, root: bool) -> str:
    """The text of workload.conf. Raises BadInput for a path that the file cannot hold."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _TEMPLATE.format(
        socket=_value(paths.workload_socket),
        log=_value(paths.logs / LOG),
        logs=_value(paths.logs),
        pid=_value(paths.workload_pid),
        state=_value(paths.state),
        runtime=_value(paths.runtime),
        group=GROUP,
        # never raised: tasks would inherit the raised limit
        minfds=min(soft, 1024) if soft != resource.RLIM_INFINITY else 1024,
        # said on purpose: supervisor warns of running as root otherwise
        user="user = root\n" if root else "",
    )


def _value(path: object) -> str:
    """A path as supervisor's parser reads it back: `%` starts an expansion, ` ;` a comment."""
    text = str(path)
    if text != text.strip() or " ;" in text or not text.isprintable():
        raise BadInput(f"{text!r}: supervisord's configuration cannot hold this path", remedy="choose a plainer one")
    return text.replace("%", "%%")
