"""`swarmvisor node`: the members of the swarm."""

from __future__ import annotations

import click

from procs.cli import convergence, roles, values
from procs.cli.control import Control, connect
from procs.cli.exits import exit_for
from procs.cli.output import listing_options, print_json, show
from procs.cli.rows import NODE_COLUMNS, TASK_COLUMNS, node_row, task_rows
from swarm.api import control_pb2 as api
from swarm.api import objects_pb2, specs_pb2, types_pb2
from swarm.errors import Refused, SwarmvisorError
from swarm.paths import Paths

_AVAILABILITIES: dict[int, str] = {
    specs_pb2.NodeSpec.ACTIVE: "active",
    specs_pb2.NodeSpec.PAUSE: "paused",
    specs_pb2.NodeSpec.DRAIN: "drained",
}


@click.group("node")
def group() -> None:
    """List and steer the nodes of the swarm."""


def self_id(paths: Paths) -> str:
    """This node's own id, from its certificate."""
    from swarm.pki.credentials import load_credentials  # late: imports cryptography

    return load_credentials(paths, allow_expired=True).node_id


@group.command("ls")
@listing_options
@click.pass_obj
def list_nodes(paths: Paths, output: str, quiet: bool) -> None:
    """List all nodes; the one marked * is this one."""
    with connect(paths) as control:
        mine = self_id(paths)
        nodes = sorted(control.nodes(), key=lambda n: (n.description.hostname, n.id))
    rows = [node_row(node, mine, nodes) for node in nodes]
    show(rows, NODE_COLUMNS, output=output, quiet=quiet)


@group.command()
@click.argument("names", nargs=-1, required=True, metavar="NODE...")
@click.pass_obj
def inspect(paths: Paths, names: tuple[str, ...]) -> None:
    """Show everything that is known of nodes, as JSON. NODE: an id, a hostname, a unique prefix, or `self`."""
    from google.protobuf.json_format import MessageToDict  # late: only inspect needs it

    with connect(paths) as control:
        found = [control.find_node(name, self_id=self_id(paths)) for name in names]
    print_json([MessageToDict(node, preserving_proto_field_name=True) for node in found])


@group.command("ps")
@click.argument("name", default="self", metavar="[NODE]")
@click.option("-a", "--all", "everything", is_flag=True, help="Also tasks that have ended and were replaced.")
@listing_options
@click.pass_obj
def list_tasks(paths: Paths, name: str, everything: bool, output: str, quiet: bool) -> None:
    """List the tasks of a node (default: of this one)."""
    with connect(paths) as control:
        node = control.find_node(name, self_id=self_id(paths))
        rows = task_rows(control.tasks(node_ids=[node.id]), control.nodes(), everything=everything)
    show(rows, TASK_COLUMNS, output=output, quiet=quiet)


@group.command()
@click.argument("names", nargs=-1, required=True, metavar="NODE...")
@convergence.waiting_options
@click.pass_obj
def drain(paths: Paths, names: tuple[str, ...], detach: bool, timeout: float) -> None:
    """Take all tasks off nodes and give them no new ones."""
    with connect(paths) as control:
        nodes = [_set_availability(control, paths, name, specs_pb2.NodeSpec.DRAIN) for name in names]
        if not detach:
            for node in nodes:
                convergence.wait_drained(control, node.id, what=f"drained node {_name(node)}", timeout=timeout)


@group.command()
@click.argument("names", nargs=-1, required=True, metavar="NODE...")
@click.pass_obj
def pause(paths: Paths, names: tuple[str, ...]) -> None:
    """Give nodes no new tasks; those that run there stay."""
    with connect(paths) as control:
        for name in names:
            _set_availability(control, paths, name, specs_pb2.NodeSpec.PAUSE)


@group.command()
@click.argument("names", nargs=-1, required=True, metavar="NODE...")
@click.pass_obj
def activate(paths: Paths, names: tuple[str, ...]) -> None:
    """Let nodes have tasks (again)."""
    with connect(paths) as control:
        for name in names:
            _set_availability(control, paths, name, specs_pb2.NodeSpec.ACTIVE)


@group.command()
@click.argument("names", nargs=-1, required=True, metavar="NODE...")
@convergence.waiting_options
@click.pass_obj
def promote(paths: Paths, names: tuple[str, ...], detach: bool, timeout: float) -> None:
    """Make nodes managers, and wait until they are."""
    _change_roles(paths, names, types_pb2.MANAGER, detach=detach, timeout=timeout)


@group.command()
@click.argument("names", nargs=-1, required=True, metavar="NODE...")
@convergence.waiting_options
@click.pass_obj
def demote(paths: Paths, names: tuple[str, ...], detach: bool, timeout: float) -> None:
    """Make managers workers, and wait until they are."""
    _change_roles(paths, names, types_pb2.WORKER, detach=detach, timeout=timeout)


@group.command()
@click.argument("name", metavar="NODE")
@click.option("--label-add", multiple=True, metavar="KEY=VALUE", help="Set a label (constraint node.labels.KEY).")
@click.option("--label-rm", multiple=True, metavar="KEY", help="Remove a label.")
@click.option("--role", type=click.Choice(["worker", "manager"]), help="As promote and demote, with the same waiting.")
@convergence.waiting_options
@click.pass_obj
def update(
    paths: Paths,
    name: str,
    label_add: tuple[str, ...],
    label_rm: tuple[str, ...],
    role: str | None,
    detach: bool,
    timeout: float,
) -> None:
    """Change the labels or the role of a node."""
    added = values.pairs(label_add, "--label-add")
    wanted = None if role is None else types_pb2.NodeRole.Value(role.upper())
    with connect(paths) as control:
        mine = self_id(paths)
        node = control.modify(lambda: _change(control, control.find_node(name, self_id=mine), added, label_rm, wanted))
        if wanted is not None and not detach:
            roles.wait(control, paths, node, wanted, self_id=mine, timeout=timeout)
    click.echo(node.id)


def _change_roles(
    paths: Paths, names: tuple[str, ...], wanted: types_pb2.NodeRole.ValueType, *, detach: bool, timeout: float
) -> None:
    """Ask for all, then wait for each. A node that has the role already is only waited for, as Docker does."""
    with connect(paths) as control:
        mine = self_id(paths)
        changed = [control.modify(lambda name=name: _set_role(control, name, mine, wanted)) for name in names]  # type: ignore[misc]
        for node in changed:
            if not detach:
                roles.wait(control, paths, node, wanted, self_id=mine, timeout=timeout)
            click.echo(node.id)


def _set_role(control: Control, name: str, mine: str, wanted: types_pb2.NodeRole.ValueType) -> objects_pb2.Node:
    node = control.find_node(name, self_id=mine)
    if node.spec.desired_role != wanted:
        spec = specs_pb2.NodeSpec()
        spec.CopyFrom(node.spec)
        spec.desired_role = wanted
        _update(control, node, spec)
    return node


def _change(
    control: Control,
    node: objects_pb2.Node,
    added: dict[str, str],
    removed: tuple[str, ...],
    role: types_pb2.NodeRole.ValueType | None,
) -> objects_pb2.Node:
    missing = [key for key in removed if key not in node.spec.annotations.labels]
    if missing:
        raise Refused(f"node {_name(node)} has no label {missing[0]}", remedy="see `swarmvisor node inspect`")
    spec = specs_pb2.NodeSpec()
    spec.CopyFrom(node.spec)
    for key in removed:
        del spec.annotations.labels[key]
    spec.annotations.labels.update(added)
    if role is not None:
        spec.desired_role = role
    if spec == node.spec:
        raise Refused(f"no change for node {_name(node)}")
    _update(control, node, spec)
    return node


@group.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="NODE...")
@click.option("-f", "--force", is_flag=True, help="Also a node that is not down.")
@click.pass_obj
def remove(paths: Paths, names: tuple[str, ...], force: bool) -> None:
    """Remove nodes from the swarm for good: their certificates are refused from now on, their tasks given up.

    A node must be down first (`swarmvisor leave` on it), and a manager demoted, or this is refused.
    """
    failed: list[SwarmvisorError] = []
    with connect(paths) as control:
        for name in names:
            try:
                node = control.find_node(name, self_id=self_id(paths))
                control.call("RemoveNode", api.RemoveNodeRequest(node_id=node.id, force=force))
            except SwarmvisorError as error:
                failed.append(error)
                click.echo(f"swarmvisor: {_removal_refused(error).describe()}", err=True)
            else:
                click.echo(node.id)
    if failed:
        click.get_current_context().exit(exit_for(failed[0]))


def _removal_refused(error: SwarmvisorError) -> SwarmvisorError:
    """The manager's words, and what to do."""
    if "is not down and can't be removed" in error.message:
        return Refused(error.message, remedy="run `swarmvisor leave` on it first, or use --force")
    if "must be demoted" in error.message:
        return Refused(error.message, remedy="`swarmvisor node demote` it first")
    return error


def _set_availability(control: Control, paths: Paths, name: str, availability: int) -> objects_pb2.Node:
    """Set it; as in SwarmKit's own client, asking for what already is so is an error (reference manager §9.2)."""

    def attempt() -> objects_pb2.Node:
        node = control.find_node(name, self_id=self_id(paths))
        if node.spec.availability == availability:
            word = _AVAILABILITIES[availability]
            raise Refused(f"node {_name(node)} is already {word}")
        spec = specs_pb2.NodeSpec()
        spec.CopyFrom(node.spec)
        spec.availability = availability  # type: ignore[assignment]
        _update(control, node, spec)
        return node

    changed = control.modify(attempt)
    click.echo(changed.id)
    return changed


def _update(control: Control, node: objects_pb2.Node, spec: specs_pb2.NodeSpec) -> None:
    control.call("UpdateNode", api.UpdateNodeRequest(node_id=node.id, node_version=node.meta.version, spec=spec))


def _name(node: objects_pb2.Node) -> str:
    return node.description.hostname or node.id
