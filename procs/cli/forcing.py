"""`swarmvisor init --force-new-cluster`: this node goes on as the only manager of its swarm.

The command changes what is its own, and last, as the commit point, leaves the order beside the store, which the manager
carries out before it serves (procs/manager/forcing).
"""

from __future__ import annotations

import dataclasses

import click

from procs.cli import certificate, lifecycle
from procs.cli.init import check_bindable
from procs.cli.observed import supervisor_pid
from procs.cli.progress import Progress
from procs.cli.summary import print_running, typed
from swarm.errors import Refused, SwarmvisorError
from swarm.files import remove_durably, write_atomic
from swarm.nodeconfig import NodeConfig, load_node_config, save_node_config, validate
from swarm.paths import Paths
from swarm.remotes import load_peers

STORES = ("store.db", "etcd")
"""What the engines keep in `manager/`."""


def force(paths: Paths, listen_addr: str | None, advertise_addr: str | None, *, no_start: bool, timeout: float) -> None:
    """The whole command. An address that is None stays as it is. Raises Refused, BadInput; nothing was changed then."""
    identity = check(paths)
    running = supervisor_pid(paths.supervisor_socket) != 0
    if running and no_start:
        raise Refused(
            "this node runs, and would go on as it is", remedy="leave out --no-start, or run `swarmvisor down` first"
        )
    held = load_node_config(paths.node_toml)
    config = new_config(held, listen_addr, advertise_addr)
    if config.listen_addr != held.listen_addr:
        check_bindable(config.listen_addr)
    others = sorted(peer.node_id for peer in load_peers(paths.state_json) if peer.node_id != identity.node_id)
    with Progress() as tell:
        with lifecycle.own_only(paths):
            if running:
                lifecycle.stop_processes(paths, tell)
            save_node_config(paths.node_toml, config)
            if paths.state_json.exists():
                remove_durably(paths.state_json)  # the managers of before must not be asked for anything
            write_atomic(paths.forced, b"")
        if no_start:
            click.echo(f"It is done with the next start of this node: `{typed(paths)} up`.")
            return
        if running:
            lifecycle.begin_anew(paths)
        else:
            lifecycle.start(paths, tell)
        lifecycle.ready(paths, timeout, tell)
        if paths.forced.exists():
            raise SwarmvisorError("the manager has not done it", remedy=f"see {paths.logs / 'manager.log'}")
    click.echo(f"This node ({identity.node_id}) is now the only manager of swarm {identity.cluster_id}.")
    if others:
        click.echo(f"Workers from now on: {', '.join(others)}. Stop any of them that still manages by itself.")
    click.echo()
    print_running(paths)


def check(paths: Paths) -> certificate.OnDisk:
    """Who this node is. Raises Refused where it is no manager with a store."""
    if not paths.node_toml.exists():
        raise Refused(
            f"there is no node in {paths.state}, so no swarm to go on with",
            remedy="leave out --force-new-cluster to make a new swarm, or restore the state directory first",
        )
    identity = certificate.read(paths)
    if identity is None or identity.role != "manager":
        what = "is a worker" if identity is not None else "has no certificate yet"
        raise Refused(
            f"this node {what}: it holds nothing of its swarm to go on with",
            remedy="run this on a node that was a manager, or `swarmvisor leave` and then a plain `swarmvisor init`",
        )
    if not any((paths.manager / name).exists() for name in STORES):
        raise Refused(
            f"there is no store in {paths.manager}",
            remedy="restore it from a backup, or `swarmvisor leave --force` and then a plain `swarmvisor init`",
        )
    return identity


def new_config(held: NodeConfig, listen_addr: str | None, advertise_addr: str | None) -> NodeConfig:
    """`held` with the addresses given, and without a manager to join at. Raises BadInput."""
    return validate(
        dataclasses.replace(
            held,
            join_addr="",
            listen_addr=held.listen_addr if listen_addr is None else listen_addr,
            advertise_addr=held.advertise_addr if advertise_addr is None else advertise_addr,
        )
    )
