"""`swarmvisor join`: make this host a node of a swarm that exists."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from ipc import topics
from procs.cli import footprint, lifecycle
from procs.cli.init import create
from procs.cli.observed import explain_end, is_hopeless, look, supervisor_pid
from procs.cli.options import node_options
from procs.cli.progress import Progress
from procs.cli.summary import print_running, typed
from swarm.errors import BadInput, Refused, SwarmvisorError, TimedOut, Unreachable
from swarm.files import remove_durably
from swarm.joining import Trouble
from swarm.nodeconfig import NodeConfig, split_host_port, validate
from swarm.paths import Paths
from swarm.pki.tokens import JoinToken

if TYPE_CHECKING:
    from ipc.bus import Bus

TRIES = 5
"""Tries of the renewer after which the command gives up on an address where nobody answers (reference §5.7)."""
DEFAULT_PORT = 2377
_CERTIFIED = ("valid", "expired", "locked")


class _Ended(SwarmvisorError):
    """The node's processes ended while it joined."""


@click.command("join")
@click.option("--token", required=True, metavar="SWMTKN-…", help="From `swarmvisor join-token` on a manager.")
@node_options
@click.option("--fips", is_flag=True, help="A FIPS node; a swarm may admit such nodes only.")
@click.option("--no-start", is_flag=True, help="Create the node only; it joins with `up`.")
@click.option(
    "--timeout", type=click.FloatRange(min=0), default=lifecycle.READY_TIMEOUT, show_default=True, metavar="S"
)
@click.argument("address", metavar="HOST[:PORT]")
@click.pass_obj
def command(
    paths: Paths,
    token: str,
    listen_addr: str,
    advertise_addr: str,
    hostname: str,
    labels: dict[str, str],
    generic_resources: dict[str, str],
    availability: str,
    fips: bool,
    no_start: bool,
    timeout: float,
    address: str,
) -> None:
    """Create a node that joins the swarm whose manager answers at HOST:PORT (2377), and start it.

    The token decides whether it becomes a worker or a manager. Where that fails, nothing is left behind.
    """
    check_token(token, fips=fips)
    config = validate(
        NodeConfig(
            hostname=hostname,
            listen_addr=listen_addr,
            advertise_addr=advertise_addr,
            join_addr=with_port(address),
            labels=labels,
            generic_resources=generic_resources,
            availability=availability,
            fips=fips,
        )
    )
    refuse_members(paths)
    waiting = supervisor_pid(paths.supervisor_socket)
    create(paths, config, token=token.strip())
    if no_start:
        click.echo(f"Node created in {paths.state}. It joins with `{typed(paths)} up`.")
        return
    deadline = time.monotonic() + timeout
    with Progress() as tell:
        try:
            if waiting:
                lifecycle.begin_anew(paths)
            else:
                lifecycle.start(paths, tell)
            _wait_joined(paths, deadline, timeout, tell)
        except (Refused, BadInput, Unreachable, _Ended):
            tell("cleaning up")
            _undo(paths, keep_supervisor=bool(waiting))
            raise
        lifecycle.ready(paths, max(0.0, deadline - time.monotonic()), tell)
    said = look(paths).body("certificate", topics.Certificate) or topics.Certificate("none")
    click.echo(f"This node ({said.node_id}) joined swarm {said.cluster_id} as a {said.role}.\n")
    print_running(paths)


def with_port(address: str) -> str:
    """`HOST` means its port 2377, as in Docker. Raises BadInput."""
    whole = address if address.rstrip("0123456789").endswith(":") else f"{address}:{DEFAULT_PORT}"
    if not split_host_port(whole, "the manager's address")[0]:
        raise BadInput(f"the manager's address: {address!r} is not HOST:PORT", remedy="it lacks the host")
    return whole


def check_token(text: str, *, fips: bool) -> JoinToken:
    """What the token says. Raises BadInput for what is none, Refused for one of a FIPS swarm on another node."""
    token = JoinToken.parse(text.strip())
    token.root_digest()
    if token.fips and not fips:
        # before any traffic (reference node-and-ca §1.12); the renewer says the same
        raise Refused("node is not FIPS-enabled but cluster requires FIPS", remedy="join with --fips, on a FIPS host")
    return token


def refuse_members(paths: Paths) -> None:
    """Raise Refused where a node is already."""
    if not paths.node_toml.exists():
        return
    if paths.join_token.exists() and not paths.node_cert.exists():
        raise Refused(
            "this node is joining a swarm already",
            remedy="see `swarmvisor status` how far it is; `swarmvisor leave` gives up",
        )
    raise Refused(
        "This node is already part of a swarm", remedy="use `swarmvisor leave` to leave it and join another one"
    )


def _wait_joined(paths: Paths, deadline: float, timeout: float, tell: Callable[[str], None]) -> None:
    """Until the renewer has a certificate. Raises Refused, BadInput, Unreachable, _Ended where it is hopeless;
    TimedOut where it is not, and then it goes on."""
    from ipc.bus import Bus  # late: zmq; loaded while supervisord started

    pid = supervisor_pid(paths.supervisor_socket)
    handle = os.pidfd_open(pid) if pid else None
    try:
        with Bus(paths.bus, None, ("certificate", "process.*")) as bus:
            while True:
                certificate = _certificate(bus)
                if certificate is not None:
                    if certificate.state in _CERTIFIED:
                        return
                    _judge(certificate)
                    tell(_progress(certificate))
                for value in bus.values().values():
                    if isinstance(value.body, topics.Process) and is_hopeless(value.body):
                        raise _Ended(explain_end(paths, value.body))
                left = deadline - time.monotonic()
                if left <= 0:
                    why = certificate.why if certificate is not None else ""
                    raise TimedOut(
                        f"this node has not joined after {timeout:g} s{': ' + why if why else ''}",
                        remedy="it goes on trying: see `swarmvisor status`; `swarmvisor leave` gives up",
                    )
                if handle is not None and supervisor_pid(paths.supervisor_socket) != pid:
                    raise _Ended("supervisord ended", remedy=f"see {paths.logs / 'supervisord.start.log'}")
                bus.poll(left, fds=() if handle is None else (handle,))
    finally:
        if handle is not None:
            os.close(handle)


def _certificate(bus: Bus) -> topics.Certificate | None:
    value = bus.last("certificate")
    return value.body if value is not None and isinstance(value.body, topics.Certificate) else None


def _judge(certificate: topics.Certificate) -> None:
    """Raise what the renewer's words mean for whoever typed the command; nothing while there is hope."""
    trouble = Trouble(certificate.problem) if certificate.problem in set(Trouble) else Trouble.OTHER
    if certificate.state == "failed":
        raise (BadInput if trouble is Trouble.TOKEN else Refused)(certificate.why)
    if certificate.state == "joining" and certificate.attempt >= TRIES and trouble is Trouble.UNREACHABLE:
        raise Unreachable(certificate.why)
    if certificate.state == "joining" and trouble is Trouble.CLOCK:
        raise Refused(certificate.why)


def _progress(certificate: topics.Certificate) -> str:
    if not certificate.attempt:
        return "joining"
    return f"joining, attempt {certificate.attempt + 1}: {certificate.why}"


def _undo(paths: Paths, *, keep_supervisor: bool) -> None:
    """Leave this host as it was before the command."""
    if not keep_supervisor:
        lifecycle.stop(paths, lambda _text: None, keep_tasks=False)
        footprint.wipe(paths)
        return
    for path in (paths.node_toml, paths.join_token, paths.joining, paths.root_cert):
        if path.parent.exists():
            remove_durably(path)
    lifecycle.begin_anew(paths)
