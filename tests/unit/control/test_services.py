"""Services: create, read, update, remove, list, statuses."""

from __future__ import annotations

import pytest

from procs.manager.store.errors import OutOfSequence
from swarm.api.control_pb2 import (
    CreateServiceRequest,
    GetServiceRequest,
    ListServicesRequest,
    ListServiceStatusesRequest,
    RemoveServiceRequest,
    UpdateServiceRequest,
)
from swarm.api.objects_pb2 import Service, Task
from swarm.api.specs_pb2 import ServiceSpec
from swarm.api.types_pb2 import COMPLETE, FAILED, RUNNING, SHUTDOWN, RestartPolicy, UpdateStatus
from tests.unit.control.conftest import EXISTS, IA, NOT_FOUND, PRECONDITION, UNIMPLEMENTED, Api, a_spec

NOT_YET = ": this version of Swarmvisor does not support that yet"


async def create(api: Api, name: str = "web") -> Service:
    spec = a_spec()
    spec.annotations.name = name
    return (await api.call("CreateService", CreateServiceRequest(spec=spec))).service


def update_of(service: Service, spec: ServiceSpec | None = None) -> UpdateServiceRequest:
    request = UpdateServiceRequest(service_id=service.id, service_version=service.meta.version)
    request.spec.CopyFrom(spec if spec is not None else service.spec)
    return request


async def test_a_created_service_has_id_version_and_an_empty_spec_version(api: Api) -> None:
    service = await create(api)
    assert len(service.id) == 25
    assert service.meta.version.index == api.store.index
    assert service.HasField("spec_version")
    assert service.spec_version.index == 0


async def test_requests_without_what_they_need_are_refused(api: Api) -> None:
    for method, request in {
        "CreateService": CreateServiceRequest(),
        "GetService": GetServiceRequest(),
        "RemoveService": RemoveServiceRequest(),
        "UpdateService": UpdateServiceRequest(),
    }.items():
        assert await api.refusal(method, request) == (IA, "invalid argument")
    whole = update_of(await create(api))
    for missing in ("service_id", "service_version", "spec"):
        request = UpdateServiceRequest()
        request.CopyFrom(whole)
        request.ClearField(missing)  # type: ignore[arg-type]
        assert await api.refusal("UpdateService", request) == (IA, "invalid argument")


async def test_an_unknown_service_is_not_found(api: Api) -> None:
    text = "service nowhere not found"
    assert await api.refusal("GetService", GetServiceRequest(service_id="nowhere")) == (NOT_FOUND, text)
    assert await api.refusal("RemoveService", RemoveServiceRequest(service_id="nowhere")) == (NOT_FOUND, text)
    service = await create(api)
    service.id = "nowhere"
    assert await api.refusal("UpdateService", update_of(service)) == (NOT_FOUND, text)


async def test_a_name_in_use_is_refused_in_any_case_of_letters(api: Api) -> None:
    await create(api)
    spec = a_spec()
    spec.annotations.name = "WEB"
    assert await api.refusal("CreateService", CreateServiceRequest(spec=spec)) == (
        EXISTS,
        "name conflicts with an existing object: service WEB already exists",
    )


async def test_scaling_and_labels_keep_the_previous_spec_and_the_version_it_came_from(api: Api) -> None:
    service = await create(api)
    spec = ServiceSpec()
    spec.CopyFrom(service.spec)
    spec.replicated.replicas = 20
    spec.annotations.labels["tier"] = "front"
    stored = api.store.get(Service, service.id)
    assert stored is not None

    def pause(tx: object) -> Service:
        paused = Service()
        paused.CopyFrom(stored)
        paused.update_status.state = UpdateStatus.PAUSED
        tx.update(paused)  # type: ignore[attr-defined]
        return paused

    paused = await api.store.update(pause)
    updated = (await api.call("UpdateService", update_of(paused, spec))).service
    assert updated.spec == spec
    assert updated.previous_spec == service.spec
    assert updated.spec_version == paused.meta.version
    assert updated.previous_spec_version == service.spec_version
    assert not updated.HasField("update_status")
    assert updated.meta.version.index > paused.meta.version.index
    assert api.store.get(Service, service.id) == updated


async def test_an_update_on_an_old_version_is_out_of_sequence(api: Api) -> None:
    service = await create(api)
    await api.call("UpdateService", update_of(service))
    with pytest.raises(OutOfSequence, match="^update out of sequence$"):
        await api.call("UpdateService", update_of(service))


async def test_what_an_update_may_not_change(api: Api) -> None:
    service = await create(api)
    renamed, global_, networked, task, restart, rollback = (update_of(service) for _ in range(6))
    renamed.spec.annotations.name = "other"
    getattr(global_.spec, "global").SetInParent()
    networked.spec.networks.add(target="n")
    task.spec.task.force_update = 1
    restart.spec.task.restart.condition = RestartPolicy.NONE
    rollback.rollback = UpdateServiceRequest.PREVIOUS
    refusals = [
        await api.refusal("UpdateService", request)
        for request in (renamed, global_, networked, task, restart, rollback)
    ]
    assert refusals[:3] == [
        (UNIMPLEMENTED, "renaming services is not supported"),
        (UNIMPLEMENTED, "service mode change is not allowed"),
        (UNIMPLEMENTED, "networks must be migrated to TaskSpec before being changed"),
    ]
    for code, text in refusals[3:5]:
        assert code == UNIMPLEMENTED
        assert text.startswith("a changed task (replacing the running tasks of a service;")
        assert text.endswith(NOT_YET)
    assert refusals[5] == (PRECONDITION, f"service {service.id} does not have a previous spec")

    updated = (await api.call("UpdateService", update_of(service))).service
    rollback.service_version.CopyFrom(updated.meta.version)
    assert await api.refusal("UpdateService", rollback) == (
        UNIMPLEMENTED,
        f"rollback (return to the previous spec){NOT_YET}",
    )


async def test_a_removed_service_is_gone_and_its_name_free(api: Api) -> None:
    service = await create(api)
    await api.call("RemoveService", RemoveServiceRequest(service_id=service.id))
    assert api.store.find(Service) == []
    await create(api)


async def test_defaults_are_shown_when_asked_for_and_never_stored(api: Api) -> None:
    service = await create(api)
    plain = (await api.call("GetService", GetServiceRequest(service_id=service.id))).service
    assert plain == service
    spec = (await api.call("GetService", GetServiceRequest(service_id=service.id, insert_defaults=True))).service.spec
    assert spec.task.container.stop_grace_period.seconds == 10
    assert spec.task.container.HasField("pull_options")
    assert spec.task.container.HasField("dns_config")
    assert spec.task.HasField("resources")
    assert spec.task.restart.condition == RestartPolicy.ANY
    assert spec.task.restart.delay.seconds == 5
    assert spec.task.HasField("placement")
    for config in (spec.update, spec.rollback):
        assert (config.parallelism, config.monitor.seconds, config.max_failure_ratio) == (1, 5, 0)
    assert api.store.get(Service, service.id) == service


async def test_defaults_fill_only_what_is_missing(api: Api) -> None:
    spec = a_spec()
    spec.task.restart.condition = RestartPolicy.NONE
    spec.task.container.stop_grace_period.seconds = 1
    spec.update.SetInParent()
    service = (await api.call("CreateService", CreateServiceRequest(spec=spec))).service
    shown = (await api.call("GetService", GetServiceRequest(service_id=service.id, insert_defaults=True))).service.spec
    assert shown.task.restart.condition == RestartPolicy.NONE
    assert shown.task.restart.delay.seconds == 5
    assert shown.task.container.stop_grace_period.seconds == 1
    assert (shown.update.parallelism, shown.update.monitor.seconds) == (0, 5)


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ({}, ["api", "db", "web"]),
        ({"names": ["web", "db"]}, ["db", "web"]),
        ({"names": ["WEB"]}, []),
        ({"name_prefixes": ["a", "w"]}, ["api", "web"]),
        ({"name_prefixes": ["a", "w"], "names": ["web", "db"]}, ["web"]),
        ({"labels": {"tier": ""}}, ["api", "web"]),
        ({"labels": {"tier": "front"}}, ["web"]),
        ({"labels": {"tier": "", "other": ""}}, []),
        ({"runtimes": ["container"]}, ["db", "web"]),
        ({"runtimes": ["special"]}, ["api"]),
    ],
    ids=str,
)
async def test_listing_ors_within_a_filter_and_ands_between(
    api: Api, filters: dict[str, object], names: list[str]
) -> None:
    for name, tier in (("web", "front"), ("db", None), ("api", "back")):
        spec = a_spec()
        spec.annotations.name = name
        if tier:
            spec.annotations.labels["tier"] = tier
        if name == "api":
            spec.task.generic.kind = "Special"
            spec.task.generic.payload.type_url = spec.task.generic.kind
            spec.task.generic.payload.value = b"x"
        await api.call("CreateService", CreateServiceRequest(spec=spec))
    request = ListServicesRequest(filters=ListServicesRequest.Filters(**filters))  # type: ignore[arg-type]
    response = await api.call("ListServices", request)
    assert sorted(service.spec.annotations.name for service in response.services) == names
    ids = [service.id for service in response.services]
    assert ids == sorted(ids)


async def test_listing_by_prefixes_of_ids(api: Api) -> None:
    services = [await create(api, name) for name in ("a", "b", "c")]
    request = ListServicesRequest()
    request.filters.id_prefixes.extend(service.id[:20] for service in services[:2])
    response = await api.call("ListServices", request)
    assert {service.id for service in response.services} == {service.id for service in services[:2]}


def a_task(id_: str, service: str, state: int, desired: int = RUNNING, iteration: int | None = None) -> Task:
    task = Task(id=id_, service_id=service, desired_state=desired)  # type: ignore[arg-type]
    task.status.state = state  # type: ignore[assignment]
    if iteration is not None:
        task.job_iteration.index = iteration
    return task


async def test_statuses_come_in_request_order_with_zeros_for_the_unknown(api: Api) -> None:
    over = await create(api, "over")
    job = Service(id="job")
    job.spec.annotations.name = "job"
    job.spec.replicated_job.max_concurrent = 2
    job.job_status.job_iteration.index = 1
    everywhere = Service(id="everywhere")
    everywhere.spec.annotations.name = "everywhere"
    getattr(everywhere.spec, "global").SetInParent()
    await api.put(
        job,
        everywhere,
        *(a_task(f"o{n}", over.id, RUNNING) for n in range(3)),
        a_task("o9", over.id, FAILED, SHUTDOWN),
        a_task("j1", "job", RUNNING, COMPLETE, 1),
        a_task("j2", "job", COMPLETE, COMPLETE, 1),
        a_task("j3", "job", RUNNING, COMPLETE, 0),
        a_task("e1", "everywhere", RUNNING),
        a_task("e2", "everywhere", FAILED),
        a_task("g1", "gone", RUNNING),
    )
    ids = ["unknown", over.id, "job", "everywhere", "gone", over.id]
    response = await api.call("ListServiceStatuses", ListServiceStatusesRequest(services=ids))
    found = [(s.service_id, s.desired_tasks, s.running_tasks, s.completed_tasks) for s in response.statuses]
    assert found == [
        ("unknown", 0, 0, 0),
        (over.id, 2, 3, 0),
        ("job", 2, 1, 1),
        ("everywhere", 2, 1, 0),
        ("gone", 0, 1, 0),
        (over.id, 2, 3, 0),
    ]


async def test_changing_a_response_does_not_change_the_store(api: Api) -> None:
    service = await create(api)
    response = await api.call("GetService", GetServiceRequest(service_id=service.id))
    response.service.spec.annotations.name = "changed"
    stored = api.store.get(Service, service.id)
    assert stored is not None
    assert stored.spec.annotations.name == "web"
