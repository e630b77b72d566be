"""`swarmvisor adopt`: continue the identity of a worker that Docker or swarmd was on this host, in place of its owner.

The identity is copied, never moved. `.adopting` is written first and becomes node.toml last, in one rename: whoever is
killed in between leaves no node, and what lies around then is removed by the next `adopt`, `init` or `join`.
"""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path

import click

from procs.cli import lifecycle
from procs.cli.footprint import discard_unfinished
from procs.cli.init import check_vacant
from procs.cli.join import with_port
from procs.cli.options import place_options
from procs.cli.predecessor import Predecessor, taken_over
from procs.cli.progress import Progress
from procs.cli.summary import print_running, typed
from swarm.errors import Refused
from swarm.files import fsync_directory, write_atomic
from swarm.nodeconfig import NodeConfig, save_node_config, validate
from swarm.paths import Paths
from swarm.remotes import save_peers


@click.command("adopt")
@click.option(
    "--swarm-dir",
    required=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Docker's /var/lib/docker/swarm, or swarmd's state directory. Stays as it is.",
)
@click.option("--join-addr", metavar="HOST[:PORT]", default="", help="A manager, in place of those in its state.json.")
@place_options
@click.option("--fips", is_flag=True, help="A FIPS node; a swarm may admit such nodes only.")
@click.option("--no-start", is_flag=True, help="Take the identity over only; the node starts with `up`.")
@click.option("--no-wait", is_flag=True, help="Do not wait until the node is ready.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=lifecycle.READY_TIMEOUT,
    show_default=True,
    metavar="S",
    help="Seconds to wait until the node is ready.",
)
@click.pass_obj
def command(
    paths: Paths,
    swarm_dir: Path,
    join_addr: str,
    listen_addr: str,
    advertise_addr: str,
    hostname: str,
    labels: dict[str, str],
    generic_resources: dict[str, str],
    fips: bool,
    no_start: bool,
    no_wait: bool,
    timeout: float,
) -> None:
    """Continue here as the worker whose certificate, key and managers lie in DIR, and start it.

    Node id, labels and role stay; its owner (Docker, swarmd) must have stopped, and must not run on DIR again. DIR is
    copied and stays as it is. A manager has to be demoted first.
    """
    config = validate(
        NodeConfig(
            hostname=hostname,
            listen_addr=listen_addr,
            advertise_addr=advertise_addr,
            join_addr=with_port(join_addr) if join_addr else "",
            labels=labels,
            generic_resources=generic_resources,
            fips=fips,
        )
    )
    _check_vacant(paths)
    directory = swarm_dir.resolve()
    if paths.state.resolve().is_relative_to(directory):
        raise Refused(
            f"the node would lie in {directory}, which is to stay as it is",
            remedy="choose another directory with --state-dir",
        )
    with taken_over(directory, fips=fips, need_managers=not join_addr) as found:
        install(paths, config, found)
    held = found.credentials
    click.echo(_warning(found))
    if no_start:
        click.echo(f"Node {held.node_id} is in {paths.state}. Start it with `{typed(paths)} up`.")
        return
    with Progress() as tell:
        if not lifecycle.start(paths, tell):
            lifecycle.begin_anew(paths)  # its supervisord ran already, on a host that was no node
        if not no_wait:
            lifecycle.ready(paths, timeout, tell)
    click.echo(f"This node continues as {held.node_id}, a worker of swarm {held.cluster_id}.")
    if not no_wait:
        click.echo()
        print_running(paths)


def install(paths: Paths, config: NodeConfig, found: Predecessor) -> None:
    """Make this host that node. Killed at any moment it has either done nothing or all of it.

    Raises Refused where there is a node by now.
    """
    with lifecycle.own_only(paths):
        from swarm.pki.keyfile import KeyFile  # late: imports cryptography, as does the next
        from swarm.unlock import forget_unlock_keys

        _check_vacant(paths)
        discard_unfinished(paths)
        forget_unlock_keys(paths)  # what an earlier node of this directory may have left in memory
        save_node_config(paths.adopting, config)
        KeyFile.of(paths).write(found.credentials.certificate_pem, found.credentials.key_pem)
        write_atomic(paths.root_cert, found.credentials.root_pem, mode=0o644)
        if found.managers:
            save_peers(paths.state_json, found.managers)
        os.rename(paths.adopting, paths.node_toml)
        fsync_directory(paths.state)


def _check_vacant(paths: Paths) -> None:
    """As for any new node; and an operator's root, which `init` honours, has no place beside another swarm's."""
    check_vacant(paths)
    if paths.adopting.exists():
        return
    for path in (paths.root_key, paths.root_cert):
        if path.exists():
            raise Refused(f"{path} is there already", remedy="move it away: an adopted node has its swarm's own root")


def _warning(found: Predecessor) -> str:
    """What its owner must not do from now on, and what an expired certificate means."""
    here, aside = shlex.quote(str(found.directory)), shlex.quote(f"{found.directory}.adopted")
    owner = "Docker" if found.is_docker else "its owner"
    words = (
        f"The identity in {found.directory} is this node's now. The directory was left as it is, but {owner} must not "
        f"start\non it again: two nodes would be one and fail each other's tasks. Move it away before {owner} "
        f"starts:\n\n    mv {here} {aside}\n"
    )
    if found.is_docker:
        words += (
            "\nDocker then starts outside of any swarm. `docker swarm leave` is not the way: it would need Docker to "
            "run as\nthis node once more.\n"
        )
    if found.has_expired:
        ended = time.strftime("%Y-%m-%d", time.gmtime(found.credentials.not_after))
        words += (
            f"\nIts certificate expired on {ended}. Managers of Swarmvisor renew it all the same, within the swarm's "
            "grace (later:\n`swarmvisor rejoin`); Docker's and swarmd's do not: `swarmvisor leave --force`, and join "
            "again with a token.\n"
        )
    return words
