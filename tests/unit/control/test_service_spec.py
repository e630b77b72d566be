"""Every validation of a service's spec: what is wrong, and the code and text that say so (reference manager §5.4)."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest

from procs.manager.control.later import unsupported
from swarm.api.control_pb2 import CreateServiceRequest, UpdateServiceRequest
from swarm.api.objects_pb2 import Service
from swarm.api.specs_pb2 import EndpointSpec, ServiceSpec
from swarm.api.types_pb2 import Mount, PortConfig, UpdateConfig
from tests.unit.control.conftest import IA, UNIMPLEMENTED, UNKNOWN, Api, a_spec

Change = Callable[[ServiceSpec], object]
NAME = "name must be valid as a DNS name component"
SECRET = "malformed secret reference"
CONFIG = "malformed config reference"


def no_runtime(spec: ServiceSpec) -> None:
    spec.task.ClearField("container")


def secrets(*references: tuple[str, str, str | None]) -> Change:
    def change(spec: ServiceSpec) -> None:
        for id_, name, file in references:
            made = spec.task.container.secrets.add(secret_id=id_, secret_name=name)
            if file is not None:
                made.file.name = file
                made.file.SetInParent()

    return change


def configs(*references: tuple[str, str, str | None], credential: str = "", runtime: str = "") -> Change:
    def change(spec: ServiceSpec) -> None:
        for id_, name, file in references:
            made = spec.task.container.configs.add(config_id=id_, config_name=name)
            if file is not None:
                made.file.name = file
                made.file.SetInParent()
        if runtime:
            spec.task.container.configs.add(config_id=runtime, config_name=runtime).runtime.SetInParent()
        if credential:
            spec.task.container.privileges.credential_spec.config = credential

    return change


def mounts(*targets: str) -> Change:
    return lambda spec: [spec.task.container.mounts.add(target=target) for target in targets]


def generic(kind: str, url: str | None = None, value: bytes = b"") -> Change:
    def change(spec: ServiceSpec) -> None:
        spec.task.generic.kind = kind
        if url is not None:
            spec.task.generic.payload.type_url = url
            spec.task.generic.payload.value = value
            spec.task.generic.payload.SetInParent()

    return change


def ports(*published: tuple[int, int, int], mode: int = 0) -> Change:
    def change(spec: ServiceSpec) -> None:
        spec.endpoint.mode = mode  # type: ignore[assignment]
        for port, protocol, publish in published:
            spec.endpoint.ports.add(published_port=port, protocol=protocol, publish_mode=publish)  # type: ignore[arg-type]

    return change


def job(spec: ServiceSpec) -> None:
    spec.replicated_job.total_completions = 1
    spec.update.parallelism = 1


def health(field: str, nanos: int = 1) -> Change:
    return lambda spec: setattr(getattr(spec.task.container.healthcheck, field), "nanos", nanos)


def setting(path: str, value: object) -> Change:
    def change(spec: ServiceSpec) -> None:
        *parents, last = path.split(".")
        target: object = spec
        for parent in parents:
            target = getattr(target, parent)
        if isinstance(value, list):
            getattr(target, last).extend(value)
        else:
            setattr(target, last, value)

    return change


WRONG: dict[str, tuple[Change, grpc.StatusCode, str]] = {
    "no name": (setting("annotations.name", ""), IA, "meta: name must be provided"),
    "name with a dot": (setting("annotations.name", "a.b"), IA, NAME),
    "name with a slash": (setting("annotations.name", "n/me"), IA, NAME),
    "name with an ampersand": (setting("annotations.name", "n&me"), IA, NAME),
    "name starting with _": (setting("annotations.name", "_nam"), IA, NAME),
    "name ending with -": (setting("annotations.name", "nam-"), IA, NAME),
    "name with a newline": (setting("annotations.name", "name\n"), IA, NAME),
    "name of 64": (setting("annotations.name", "a" * 64), IA, "name must be 63 characters or fewer"),
    "bad and long name": (setting("annotations.name", "a" * 5000 + "!"), IA, NAME),
    "little cpu limit": (
        setting("task.resources.limits.nano_cpus", 999_999),
        IA,
        "invalid cpu value 0.000999999: Must be at least 0.001",
    ),
    "tiny cpu reservation": (
        setting("task.resources.reservations.nano_cpus", 1),
        IA,
        "invalid cpu value 1e-09: Must be at least 0.001",
    ),
    "negative cpu": (
        setting("task.resources.limits.nano_cpus", -2_500_000_000),
        IA,
        "invalid cpu value -2.5: Must be at least 0.001",
    ),
    "little memory": (
        setting("task.resources.reservations.memory_bytes", 4194303),
        IA,
        "invalid memory value 4194303: Must be at least 4MiB",
    ),
    "negative memory": (
        setting("task.resources.limits.memory_bytes", -1),
        IA,
        "invalid memory value -1: Must be at least 4MiB",
    ),
    "negative restart delay": (
        setting("task.restart.delay.seconds", -1),
        IA,
        "TaskSpec: restart-delay cannot be negative",
    ),
    "negative restart window": (
        setting("task.restart.window.nanos", -1),
        IA,
        "TaskSpec: restart-window cannot be negative",
    ),
    "endless restart delay": (
        setting("task.restart.delay.seconds", 10**12),
        UNKNOWN,
        "duration: seconds:1000000000000: seconds out of range",
    ),
    "constraint key": (setting("task.placement.constraints", ["a=b==c"]), UNKNOWN, "key 'a=b' is invalid"),
    "constraint value": (setting("task.placement.constraints", ["node.id== "]), UNKNOWN, "value '' is invalid"),
    "constraint operator": (
        setting("task.placement.constraints", ["node.id"]),
        UNKNOWN,
        "constraint expected one operator from ==, !=",
    ),
    "secret without id": (secrets(("", "n", "f")), IA, SECRET),
    "secret without name": (secrets(("i", "", "f")), IA, SECRET),
    "secret without target": (secrets(("i", "n", None)), IA, f"{SECRET}, no target provided"),
    "secret without file name": (
        secrets(("i", "n", "")),
        IA,
        "malformed file secret reference, invalid target file name provided",
    ),
    "two secrets in one file": (
        secrets(("i", "n", "f"), ("j", "m", "f")),
        IA,
        "secret references 'n' and 'm' have a conflicting target: 'f'",
    ),
    "one secret twice in one file": (
        secrets(("i", "n", "f"), ("i", "n", "f")),
        IA,
        "secret references 'n' and 'n' have a conflicting target: 'f'",
    ),
    "config without id": (configs(("", "n", "f")), IA, CONFIG),
    "config without target": (configs(("i", "n", None)), IA, f"{CONFIG}, no target provided"),
    "config without file name": (
        configs(("i", "n", "")),
        IA,
        "malformed file config reference, invalid target file name provided",
    ),
    "two configs in one file": (
        configs(("i", "n", "f"), ("j", "m", "f")),
        IA,
        "config references 'n' and 'm' have a conflicting target: 'f'",
    ),
    "credential spec of an unknown config": (
        configs(("i", "n", "f"), credential="i"),
        IA,
        "CredentialSpec references config 'i', but that config isn't in config references with RuntimeTarget",
    ),
    "no runtime": (no_runtime, IA, "TaskSpec: missing runtime"),
    "attachment runtime": (
        setting("task.attachment.container_id", "c"),
        UNIMPLEMENTED,
        "RuntimeSpec: unimplemented runtime in service spec",
    ),
    "no image": (setting("task.container.image", ""), IA, "ContainerSpec: image reference must be provided"),
    "junk image": (
        setting("task.container.image", "busybox###"),
        IA,
        'ContainerSpec: "busybox###" is not a valid repository/tag',
    ),
    "mount twice": (mounts("/a", "/b", "/a"), IA, "ContainerSpec: duplicate mount point: /a"),
    **{
        f"short {field}": (
            health(field),
            IA,
            f"ContainerSpec: {field.title().replace('_', '')} in HealthConfig cannot be less than 1ms",
        )
        for field in ("interval", "timeout", "start_period", "start_interval")
    },
    "negative retries": (
        setting("task.container.healthcheck.retries", -1),
        IA,
        "ContainerSpec: Retries in HealthConfig cannot be negative",
    ),
    "short generic kind": (generic("ab"), IA, 'Generic runtime: Invalid name "ab"'),
    "reserved generic kind": (generic("Container"), IA, 'Generic runtime: "Container" is a reserved name'),
    "generic without payload": (generic("abc"), IA, "Generic runtime is missing payload"),
    "generic without type": (generic("abc", "", b"x"), IA, "Generic runtime is missing payload type"),
    "generic with empty payload": (generic("abc", "u"), IA, "Generic runtime has an empty payload"),
    "no mode": (lambda spec: spec.ClearField("replicated"), IA, "Unrecognized service mode"),
    "negative replicas": (
        setting("replicated.replicas", 2**64 - 1),
        IA,
        "Number of replicas must be non-negative",
    ),
    "negative concurrency": (
        setting("replicated_job.max_concurrent", 2**63),
        IA,
        "Maximum concurrent jobs must not be negative",
    ),
    "negative completions": (
        setting("replicated_job.total_completions", 2**63),
        IA,
        "Total completed jobs must not be negative",
    ),
    "job with update config": (job, IA, "Jobs may not have an update config"),
    "negative update delay": (
        setting("update.delay.seconds", -1),
        IA,
        "TaskSpec: update-delay cannot be negative",
    ),
    "negative update monitor": (
        setting("update.monitor.seconds", -1),
        IA,
        "TaskSpec: update-monitor cannot be negative",
    ),
    "failure ratio above 1": (
        setting("update.max_failure_ratio", 1.5),
        IA,
        "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1",
    ),
    "failure ratio below 0": (
        setting("update.max_failure_ratio", -0.5),
        IA,
        "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1",
    ),
    "failure ratio that is no number": (
        setting("update.max_failure_ratio", float("nan")),
        IA,
        "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1",
    ),
    "dnsrr with an ingress port": (
        ports((80, 0, PortConfig.INGRESS), mode=EndpointSpec.DNSRR),
        IA,
        "EndpointSpec: port published with ingress mode can't be used with dnsrr mode",
    ),
    "one port twice": (
        ports((80, 0, PortConfig.INGRESS), (80, 0, PortConfig.HOST)),
        IA,
        "EndpointSpec: duplicate published ports provided",
    ),
}

LATER: dict[str, tuple[Change, str]] = {
    "global": (lambda spec: getattr(spec, "global").SetInParent(), "mode.global (only replicated services run)"),
    "job": (setting("replicated_job.total_completions", 1), "mode.replicated_job (only replicated services run)"),
    "global job": (lambda spec: spec.global_job.SetInParent(), "mode.global_job (only replicated services run)"),
    "update order": (
        setting("update.order", UpdateConfig.START_FIRST),
        "update (an update config other than the default)",
    ),
    "rollback action": (
        setting("rollback.failure_action", UpdateConfig.CONTINUE),
        "rollback (an update config other than the default)",
    ),
    "service networks": (lambda spec: spec.networks.add(target="n"), "networks (attachment to networks)"),
    "task networks": (lambda spec: spec.task.networks.add(target="n"), "task.networks (attachment to networks)"),
    "ports": (ports((80, 0, PortConfig.HOST)), "endpoint.ports (published ports)"),
    "preferences": (
        lambda spec: spec.task.placement.preferences.add(),
        "task.placement.preferences (placement preferences)",
    ),
    "max replicas": (
        setting("task.placement.max_replicas", 1),
        "task.placement.max_replicas (a bound of replicas per node)",
    ),
    "log driver": (setting("task.log_driver.name", "syslog"), "task.log_driver (log drivers)"),
    "resource references": (
        lambda spec: spec.task.resource_references.add(resource_id="x"),
        "task.resource_references (references to resources)",
    ),
    "generic resources": (
        lambda spec: spec.task.resources.reservations.generic.add(),
        "task.resources.generic (generic resources)",
    ),
    "secrets": (secrets(("i", "../n", "/f"), ("i", "../n", "g")), "task.container.secrets (secrets)"),
    "configs": (configs(runtime="c", credential="c"), "task.container.configs (configs)"),
    "credential spec": (
        setting("task.container.privileges.credential_spec.file", "x"),
        "task.container.privileges.credential_spec (credential specs)",
    ),
    "cluster volume": (
        lambda spec: spec.task.container.mounts.add(type=Mount.CLUSTER, target="/a"),
        "task.container.mounts (cluster volumes)",
    ),
    "template in env": (
        setting("task.container.env", ["A={{.Task.ID}}"]),
        "task.container.env (templates)",
    ),
    "template in hostname": (
        setting("task.container.hostname", "{{.Node.Hostname}}"),
        "task.container.hostname (templates)",
    ),
    "template in a mount": (
        lambda spec: spec.task.container.mounts.add(source="{{.Task.Slot}}", target="/a"),
        "task.container.mounts (templates)",
    ),
}

RIGHT: dict[str, Change] = {
    "smallest": lambda spec: None,
    "no resources": setting("task.resources.limits.nano_cpus", 0),
    "smallest resources": setting("task.resources.reservations.memory_bytes", 4194304),
    "no replicas": setting("replicated.replicas", 0),
    "default update config": lambda spec: spec.update.CopyFrom(UpdateConfig(parallelism=1)),
    "constraints": setting("task.placement.constraints", ["node.role==manager", "node.labels.disk != ssd"]),
    "braces": setting("task.container.env", ["A={}"]),
    "mounts": mounts("/a", "/b"),
    "health check": health("interval", 1_000_000),
    "generic runtime": generic("special", "u", b"x"),
    **{f"name {name}": setting("annotations.name", name) for name in ("name", "n-me", "n_me", "n--d", "a", "a" * 63)},
}


@pytest.mark.parametrize("case", WRONG)
async def test_what_is_wrong_is_refused_at_create_and_update(api: Api, case: str) -> None:
    change, code, text = WRONG[case]
    spec = a_spec()
    change(spec)
    assert await api.refusal("CreateService", CreateServiceRequest(spec=spec)) == (code, text)
    update = UpdateServiceRequest(service_id="unknown", spec=spec)
    update.service_version.SetInParent()
    assert await api.refusal("UpdateService", update) == (code, text)
    assert api.store.count(Service) == 0


@pytest.mark.parametrize("case", LATER)
async def test_what_is_not_there_yet_is_refused_by_name(api: Api, case: str) -> None:
    change, what = LATER[case]
    spec = a_spec()
    change(spec)
    text = f"{what}: this version of Swarmvisor does not support that yet"
    assert await api.refusal("CreateService", CreateServiceRequest(spec=spec)) == (UNIMPLEMENTED, text)


@pytest.mark.parametrize("case", RIGHT)
async def test_what_is_right_is_stored_as_it_was_given(api: Api, case: str) -> None:
    spec = a_spec()
    RIGHT[case](spec)
    service = (await api.call("CreateService", CreateServiceRequest(spec=spec))).service
    assert service.spec == spec
    assert api.store.get(type(service), service.id) == service
    assert list(unsupported(spec)) == []
