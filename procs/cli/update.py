"""`swarmvisor update`: change a node's addresses without leaving the swarm."""

from __future__ import annotations

import dataclasses
import os
import time

import click

from ipc import topics
from ipc.bus import Bus
from procs.cli import lifecycle
from procs.cli.init import check_bindable
from procs.cli.observed import look
from procs.cli.progress import Progress
from swarm.errors import BadInput, Refused, SwarmvisorError, TimedOut
from swarm.nodeconfig import NodeConfig, load_node_config, save_node_config, split_host_port, validate
from swarm.paths import Paths
from swarm.supervisor_rpc import SupervisorClient

TIMEOUT = 15.0
"""Seconds that the manager may take to listen at another address."""


@click.command("update")
@click.option("--listen-addr", metavar="HOST:PORT", help="Where this node's manager serves the remote API.")
@click.option("--advertise-addr", metavar="HOST:PORT", help="What peers are told; empty: what it listens on.")
@click.pass_obj
def command(paths: Paths, listen_addr: str | None, advertise_addr: str | None) -> None:
    """Change this node's addresses. A running manager moves at once: it tells every node that is connected, and serves
    the connections of before to their end. A worker uses them once it is promoted."""
    if listen_addr is None and advertise_addr is None:
        raise BadInput("nothing to change", remedy="give --listen-addr, --advertise-addr or both")
    lifecycle.need_node(paths)
    with lifecycle.own_only(paths):
        before = load_node_config(paths.node_toml)
        after = validate(
            dataclasses.replace(
                before,
                listen_addr=before.listen_addr if listen_addr is None else listen_addr,
                advertise_addr=before.advertise_addr if advertise_addr is None else advertise_addr,
            )
        )
        view = look(paths)
        manager = view.processes.get(topics.MANAGER)
        running = manager is not None and manager.pid != 0
        said = view.body("manager", topics.Manager)
        if running and (said is None or said.state != "ready"):
            raise Refused("the manager is starting", remedy="try again when `swarmvisor status` says ready")
        if after != before:
            if running and _port(after) != _port(before):
                check_bindable(after.listen_addr)
            save_node_config(paths.node_toml, after)
        if not running or manager is None:
            click.echo("Addresses changed; this node's manager uses them when it runs.")
            return
        with Progress() as tell:
            tell("the manager moves")
            try:
                said = _moved(paths, manager.pid, after)
            except SwarmvisorError:
                save_node_config(paths.node_toml, before)
                _reread(paths)  # it finds what it has, and forgets the failure
                raise
    click.echo(f"The manager listens on {said.remote_addr}; other nodes reach it at {said.advertise_addr}.")


def _port(config: NodeConfig) -> int:
    return split_host_port(config.listen_addr, "listen_addr")[1]


def _moved(paths: Paths, pid: int, wanted: NodeConfig) -> topics.Manager:
    """Have the manager read node.toml again; what it says of its addresses then."""
    deadline = time.monotonic() + TIMEOUT
    handle = os.pidfd_open(pid)
    try:
        with Bus(paths.bus, None, ("manager",)) as bus:
            _reread(paths)
            while (left := deadline - time.monotonic()) > 0:
                value = bus.last("manager")
                if value is not None and isinstance(value.body, topics.Manager) and value.pid == pid:
                    if value.body.configured == configured(wanted):
                        return value.body
                    if value.body.why:
                        raise Refused(f"the manager did not move: {value.body.why}")
                bus.poll(left, fds=(handle,))
    finally:
        os.close(handle)
    raise TimedOut(
        f"the manager has not moved to {wanted.listen_addr} after {TIMEOUT:g} s; the old addresses stay",
        remedy=f"see {paths.logs / 'manager.log'}",
    )


def _reread(paths: Paths) -> None:
    SupervisorClient(paths.supervisor_socket).call("supervisor.signalProcess", topics.MANAGER, "HUP")


def configured(config: NodeConfig) -> str:
    """The two addresses as one text: what the manager says it has taken from node.toml."""
    return f"{config.listen_addr} {config.advertise_addr}".strip()
