"""`swarmvisor service`: what the swarm keeps running."""

from __future__ import annotations

from typing import Any

import click

from procs.cli import convergence, values
from procs.cli.control import Control, connect
from procs.cli.output import listing_options, print_json, show
from procs.cli.rows import SERVICE_COLUMNS, TASK_COLUMNS, service_row, task_rows
from swarm.api import control_pb2 as api
from swarm.api import objects_pb2, specs_pb2, types_pb2
from swarm.errors import Refused
from swarm.paths import Paths

HOST_IMAGE = "host"
"""The image that means: run the command from the host's own file system (DESIGN §7)."""

_CONDITIONS = {
    "none": types_pb2.RestartPolicy.NONE,
    "on-failure": types_pb2.RestartPolicy.ON_FAILURE,
    "any": types_pb2.RestartPolicy.ANY,
}


@click.group("service")
def group() -> None:
    """Create, list, scale and remove services."""


@group.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": True})
@click.argument("name")
@click.argument("argv", nargs=-1, type=click.UNPROCESSED, metavar="-- COMMAND [ARGS]...")
@click.option("--replicas", type=click.IntRange(min=0), default=1, show_default=True, help="How many tasks to keep.")
@click.option("--image", default=HOST_IMAGE, show_default=True, help="`host`, or a bundle installed on the nodes.")
@click.option("-e", "--env", multiple=True, metavar="KEY=VALUE", help="Set an environment variable.")
@click.option("--constraint", "constraints", multiple=True, metavar="KEY==VALUE", help="Where tasks may run.")
@click.option("--reserve-cpu", type=values.Cpus(), default=0, metavar="CORES", help="Cores a node must have free.")
@click.option("--reserve-memory", type=values.Memory(), default=0, metavar="BYTES", help="Memory it must have free.")
@click.option("--limit-cpu", type=values.Cpus(), default=0, metavar="CORES", help="Cores a task may use.")
@click.option("--limit-memory", type=values.Memory(), default=0, metavar="BYTES", help="Memory a task may use.")
@click.option("--limit-pids", type=click.IntRange(min=0), default=0, help="Processes a task may have.")
@click.option("--restart-condition", type=click.Choice(list(_CONDITIONS)), help="When ended tasks are replaced.")
@click.option("--restart-delay", type=values.Span(), help="Time before a replacement starts  [default: 5s]")
@click.option("--restart-max-attempts", type=click.IntRange(min=0), help="Replacements before giving up.")
@click.option("--restart-window", type=values.Span(), help="Time in which attempts are counted.")
@click.option("--stop-signal", type=values.Signal(), help="Signal that asks a task to end  [default: SIGTERM]")
@click.option("--stop-grace-period", type=values.Span(), help="Time before it is killed  [default: 10s]")
@click.option("-u", "--user", default="", metavar="USER[:GROUP]", help="Who the tasks run as.")
@click.option("-w", "--workdir", default="", help="Directory the tasks run in.")
@click.option("-l", "--label", "labels", multiple=True, metavar="KEY=VALUE", help="Label of the service.")
@convergence.waiting_options
@click.pass_obj
def create(paths: Paths, /, name: str, argv: tuple[str, ...], detach: bool, timeout: float, **options: Any) -> None:
    """Create a service that runs COMMAND in as many tasks as asked for.

    Everything after `--` is the command: swarmvisor service create web --replicas 3 -- python3 -m http.server
    """
    if not argv and options["image"].split(":")[0] == HOST_IMAGE:
        raise click.UsageError("no command: write it after --, as in `service create web -- sleep 60`")
    spec = service_spec(name, argv, **options)
    with connect(paths) as control:
        service = control.call("CreateService", api.CreateServiceRequest(spec=spec)).service
        click.echo(service.id)
        if not detach:
            convergence.wait_service(control, service.id, timeout=timeout)


def service_spec(name: str, argv: tuple[str, ...], **options: Any) -> specs_pb2.ServiceSpec:
    """The spec that `create`'s options describe; only what was given is set."""
    spec = specs_pb2.ServiceSpec()
    spec.annotations.name = name
    spec.annotations.labels.update(values.pairs(options["labels"], "--label"))
    spec.replicated.replicas = options["replicas"]
    container = spec.task.container
    container.image = options["image"]
    container.command.extend(argv[:1])
    container.args.extend(argv[1:])
    values.pairs(options["env"], "--env")
    container.env.extend(options["env"])
    container.user = options["user"]
    container.dir = options["workdir"]
    container.stop_signal = options["stop_signal"] or ""
    container.pidsLimit = options["limit_pids"]
    if options["stop_grace_period"] is not None:
        container.stop_grace_period.FromNanoseconds(options["stop_grace_period"])
    spec.task.placement.constraints.extend(options["constraints"])
    _resources(spec.task, options)
    _restart(spec.task, options)
    return spec


def _resources(task: specs_pb2.TaskSpec, options: dict[str, Any]) -> None:
    for prefix, field in (("reserve", "reservations"), ("limit", "limits")):
        cpu, memory = options[f"{prefix}_cpu"], options[f"{prefix}_memory"]
        if cpu or memory:
            resources = getattr(task.resources, field)
            resources.nano_cpus, resources.memory_bytes = cpu, memory


def _restart(task: specs_pb2.TaskSpec, options: dict[str, Any]) -> None:
    given = {key: options[f"restart_{key}"] for key in ("condition", "delay", "max_attempts", "window")}
    if all(value is None for value in given.values()):
        return
    restart = task.restart
    restart.condition = _CONDITIONS[given["condition"] or "any"]
    if given["delay"] is not None:
        restart.delay.FromNanoseconds(given["delay"])
    if given["window"] is not None:
        restart.window.FromNanoseconds(given["window"])
    restart.max_attempts = given["max_attempts"] or 0


@group.command("ls")
@listing_options
@click.pass_obj
def list_services(paths: Paths, output: str, quiet: bool) -> None:
    """List services with how many of their tasks run."""
    with connect(paths) as control:
        services = sorted(control.services(), key=lambda s: s.spec.annotations.name)
        request = api.ListServiceStatusesRequest(services=[service.id for service in services])
        statuses = control.call("ListServiceStatuses", request).statuses if services else []
    rows = [service_row(s, st.running_tasks, st.desired_tasks) for s, st in zip(services, statuses, strict=True)]
    show(rows, SERVICE_COLUMNS, output=output, quiet=quiet)


@group.command()
@click.argument("names", nargs=-1, required=True, metavar="SERVICE...")
@click.pass_obj
def inspect(paths: Paths, names: tuple[str, ...]) -> None:
    """Show everything that is known of services, as JSON."""
    from google.protobuf.json_format import MessageToDict  # late: only inspect needs it

    with connect(paths) as control:
        found = [control.find_service(name) for name in names]
    print_json([MessageToDict(service, preserving_proto_field_name=True) for service in found])


@group.command("ps")
@click.argument("names", nargs=-1, required=True, metavar="SERVICE...")
@click.option("-a", "--all", "everything", is_flag=True, help="Also tasks that have ended and were replaced.")
@listing_options
@click.pass_obj
def list_tasks(paths: Paths, names: tuple[str, ...], everything: bool, output: str, quiet: bool) -> None:
    """List the tasks of services: where they run, and in words why they do not."""
    with connect(paths) as control:
        ids = [control.find_service(name).id for name in names]
        rows = task_rows(control.tasks(service_ids=ids), control.nodes(), everything=everything)
    show(rows, TASK_COLUMNS, output=output, quiet=quiet)


@group.command()
@click.argument("targets", nargs=-1, required=True, metavar="SERVICE=REPLICAS...")
@convergence.waiting_options
@click.pass_obj
def scale(paths: Paths, targets: tuple[str, ...], detach: bool, timeout: float) -> None:
    """Change how many tasks services have: swarmvisor service scale web=5 db=1"""
    wanted: list[tuple[str, int]] = []
    for target in targets:
        name, _, count = target.partition("=")
        if not name or not count.isdigit():
            raise click.UsageError(f"{target!r} is not SERVICE=REPLICAS; write for example web=5")
        wanted.append((name, int(count)))
    with connect(paths) as control:
        scaled: list[str] = []
        for name, replicas in wanted:
            service = control.modify(lambda n=name, r=replicas: _scale(control, n, r))  # type: ignore[misc]
            scaled.append(service.id)
            click.echo(f"{service.spec.annotations.name} scaled to {replicas}")
        if not detach:
            for service_id in scaled:
                convergence.wait_service(control, service_id, timeout=timeout)


def _scale(control: Control, name: str, replicas: int) -> objects_pb2.Service:
    service = control.find_service(name)
    if service.spec.WhichOneof("mode") != "replicated":
        raise Refused(f"service {name} is not replicated, so it cannot be scaled")
    spec = specs_pb2.ServiceSpec()
    spec.CopyFrom(service.spec)
    spec.replicated.replicas = replicas
    request = api.UpdateServiceRequest(service_id=service.id, service_version=service.meta.version, spec=spec)
    updated: objects_pb2.Service = control.call("UpdateService", request).service
    return updated


@group.command("wait")
@click.argument("names", nargs=-1, required=True, metavar="SERVICE...")
@click.option("--timeout", type=float, default=convergence.DEFAULT_TIMEOUT, show_default=True, help="Seconds to wait.")
@click.pass_obj
def wait(paths: Paths, names: tuple[str, ...], timeout: float) -> None:
    """Wait until services run as they should: after `swarmvisor up`, or after changes made with --detach."""
    with connect(paths) as control:
        for service_id in [control.find_service(name).id for name in names]:
            convergence.wait_service(control, service_id, timeout=timeout)


@group.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="SERVICE...")
@convergence.waiting_options
@click.pass_obj
def remove(paths: Paths, names: tuple[str, ...], detach: bool, timeout: float) -> None:
    """Remove services and end their tasks."""
    with connect(paths) as control:
        removed: list[tuple[str, str]] = []
        for name in names:
            service = control.find_service(name)
            control.call("RemoveService", api.RemoveServiceRequest(service_id=service.id))
            removed.append((service.id, service.spec.annotations.name))
            click.echo(service.spec.annotations.name)
        if not detach:
            for service_id, name in removed:
                convergence.wait_gone(control, service_id, what=f"removal of {name}", timeout=timeout)
