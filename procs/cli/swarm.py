"""`swarmvisor swarm`: the swarm as a whole: its root, its settings, the key that locks its managers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import grpc

from procs.cli import convergence, rotation
from procs.cli.control import CALL_TIMEOUT, Control, connect, translate
from procs.cli.externalca import ExternalCA, remedy_for
from procs.cli.output import FORMATS, print_json
from procs.cli.values import Span, pairs
from swarm import dial
from swarm.api import ca_pb2, ca_pb2_grpc, objects_pb2, specs_pb2, types_pb2
from swarm.api import control_pb2 as api
from swarm.errors import Refused, SwarmvisorError
from swarm.paths import Paths
from swarm.pki.tokens import format_unlock_key

CERT_GRACE = "swarmvisor.cert-grace"
"""Label of the cluster: how long after its end a node's certificate may still be exchanged."""

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group("swarm")
def group() -> None:
    """Look at the swarm's root and settings, and change them."""


@group.command("ca")
@click.option("--rotate", is_flag=True, help="Replace the root, without losing a node or a task.")
@click.option("--ca-cert", type=_FILE, metavar="FILE", help="The new root (PEM); else one is made.")
@click.option("--ca-key", type=_FILE, metavar="FILE", help="Its key (PEM); without, an external CA must sign.")
@click.option("--cert-expiry", type=Span(), metavar="SPAN", help="Life of the certificates issued from now on (≥ 1h).")
@click.option(
    "--external-ca",
    "external",
    type=ExternalCA(),
    multiple=True,
    metavar="protocol=cfssl,url=URL[,cacert=FILE]",
    help="A signer outside the swarm; repeatable, replaces the present list.",
)
@click.option("-o", "--output", type=click.Choice(FORMATS), default="table", help="table: the root itself, as PEM.")
@convergence.waiting_options
@click.pass_obj
def certificate_authority(
    paths: Paths,
    rotate: bool,
    ca_cert: Path | None,
    ca_key: Path | None,
    cert_expiry: int | None,
    external: tuple[types_pb2.ExternalCA, ...],
    output: str,
    detach: bool,
    timeout: float,
) -> None:
    """Show the swarm's root, or (--rotate) replace it and wait until all nodes have followed."""
    if (ca_cert or ca_key) and not rotate:
        raise click.UsageError("--ca-cert and --ca-key need --rotate: they replace the swarm's root")
    if ca_key and not ca_cert:
        raise click.UsageError("--ca-key needs --ca-cert: the key of which certificate?")
    cert = ca_cert.read_bytes() if ca_cert else b""
    key = ca_key.read_bytes() if ca_key else b""

    def change(spec: specs_pb2.ClusterSpec) -> None:
        config = spec.ca_config
        if cert_expiry is not None:
            config.node_cert_expiry.FromNanoseconds(cert_expiry)
        if external:
            del config.external_cas[:]
            config.external_cas.extend(external)
        if rotate:
            config.signing_ca_cert, config.signing_ca_key = cert, key
            config.force_rotate += 1

    with connect(paths) as control:
        cluster = control.cluster()
        if rotate or external or cert_expiry is not None:
            try:
                cluster = update_cluster(control, change)
            except SwarmvisorError as error:
                error.remedy = error.remedy or remedy_for(error.message)
                raise
        if rotate and not detach and cluster.root_ca.HasField("root_rotation"):
            rotation.wait(control, cluster, timeout=timeout)
            cluster = control.cluster()
        stand = rotation.stand(cluster, control.nodes())
    if output == "json":
        print_json(stand.row(cluster))
        return
    if stand.running:
        click.echo(f"a rotation is under way: {stand.line}" + "".join(f"; {text}" for text in stand.blocking), err=True)
    click.echo(cluster.root_ca.ca_cert.decode(errors="replace"), nl=False)


@group.command("update")
@click.option("--autolock/--no-autolock", default=None, help="Lock the managers' keys: a restart needs `unlock`.")
@click.option("--cert-grace", metavar="SPAN", help="How long an expired node may still come back (90d; 0: never).")
@click.option("--label-add", multiple=True, metavar="KEY=VALUE", help="Set a label of the swarm.")
@click.option("--label-rm", multiple=True, metavar="KEY", help="Remove a label of the swarm.")
@click.pass_obj
def update(
    paths: Paths,
    autolock: bool | None,
    cert_grace: str | None,
    label_add: tuple[str, ...],
    label_rm: tuple[str, ...],
) -> None:
    """Change the swarm's settings. With --autolock the key that unlocks the managers is printed."""
    added = pairs(label_add, "--label-add")
    if cert_grace is not None:
        added[CERT_GRACE] = cert_grace
    if autolock is None and not added and not label_rm:
        raise click.UsageError("nothing to change: see --help")

    def change(spec: specs_pb2.ClusterSpec) -> None:
        if autolock is not None:
            spec.encryption_config.auto_lock_managers = autolock
        for key in label_rm:
            if key not in spec.annotations.labels:
                raise Refused(f"the swarm has no label {key}")
            del spec.annotations.labels[key]
        spec.annotations.labels.update(added)

    with connect(paths) as control:
        before = control.cluster().spec.encryption_config.auto_lock_managers
        update_cluster(control, change)
        if autolock and not before:
            _explain(unlock_key(paths))
        else:
            click.echo("swarm updated")


@group.command("unlock-key")
@click.option("--rotate", is_flag=True, help="Replace it first.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the key.")
@click.pass_obj
def show_unlock_key(paths: Paths, rotate: bool, quiet: bool) -> None:
    """Show the key that unlocks the managers."""
    with connect(paths) as control:
        if not control.cluster().spec.encryption_config.auto_lock_managers:
            raise Refused("the managers of this swarm are not locked", remedy="see `swarm update --autolock`")
        if rotate:
            update_cluster(control, lambda _spec: None, api.KeyRotation(manager_unlock_key=True))
        text = unlock_key(paths)
    if quiet:
        click.echo(text)
    else:
        _explain(text)


def unlock_key(paths: Paths) -> str:
    """The swarm's unlock key as people keep it."""
    with dial.control_channel_sync(paths, paths.root_cert.read_bytes()) as channel:
        stub = ca_pb2_grpc.CAStub(channel)
        try:
            answer = stub.GetUnlockKey(ca_pb2.GetUnlockKeyRequest(), timeout=CALL_TIMEOUT)
        except grpc.RpcError as error:
            raise translate(error) from error
    return format_unlock_key(answer.unlock_key)


def _explain(text: str) -> None:
    click.echo("To unlock a manager after it restarts, run `swarmvisor unlock` and give it this key:\n")
    click.echo(f"    {text}\n")
    click.echo("Keep it in a safe place: without it no manager can be restarted.")


def update_cluster(
    control: Control,
    change: Callable[[specs_pb2.ClusterSpec], None],
    rotate: api.KeyRotation | None = None,
) -> objects_pb2.Cluster:
    """Read, change and write the cluster's settings; again if somebody else wrote them in between."""

    def attempt() -> objects_pb2.Cluster:
        cluster = control.cluster()
        change(cluster.spec)
        request = api.UpdateClusterRequest(
            cluster_id=cluster.id, cluster_version=cluster.meta.version, spec=cluster.spec, rotation=rotate
        )
        # it may dial several external CAs, 5 s each
        updated: objects_pb2.Cluster = control.call("UpdateCluster", request, timeout=60.0).cluster
        return updated

    return control.modify(attempt)
