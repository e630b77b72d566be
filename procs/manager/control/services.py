"""Services (reference manager §5.4)."""

from __future__ import annotations

from typing import Any

from procs.manager.control.defaults import fill_defaults
from procs.manager.control.filters import labels_match, one_of, starts_with
from procs.manager.control.later import not_yet, refuse_unsupported
from procs.manager.control.ports import Ports, copied
from procs.manager.control.service_spec import check_service_spec
from procs.manager.status import already_exists, failed_precondition, invalid_argument, not_found, unimplemented
from procs.manager.store import Tx, by
from procs.manager.store.errors import NameConflict, NotExist
from procs.manager.store.naming import runtime_name
from swarm.api import control_pb2
from swarm.api.control_pb2 import ListServiceStatusesResponse, UpdateServiceRequest
from swarm.api.objects_pb2 import Service, Task
from swarm.api.types_pb2 import COMPLETE, RUNNING
from swarm.identity import new_id

# ruff: noqa: N802, ARG002  (gRPC's method names and arguments)


class ServiceMethods(Ports):
    """GetService, ListServices, CreateService, UpdateService, RemoveService, ListServiceStatuses."""

    async def GetService(self, request: control_pb2.GetServiceRequest, context: Any) -> control_pb2.GetServiceResponse:
        if not request.service_id:
            raise invalid_argument()
        service = self._store.get(Service, request.service_id)
        if service is None:
            raise not_found(f"service {request.service_id} not found")
        if request.insert_defaults:
            service = copied(service)
            fill_defaults(service.spec)
        return control_pb2.GetServiceResponse(service=service)

    async def ListServices(
        self, request: control_pb2.ListServicesRequest, context: Any
    ) -> control_pb2.ListServicesResponse:
        services = [service for service in self._store.find(Service) if _listed(service, request.filters)]
        return control_pb2.ListServicesResponse(services=services)

    async def CreateService(
        self, request: control_pb2.CreateServiceRequest, context: Any
    ) -> control_pb2.CreateServiceResponse:
        if not request.HasField("spec"):
            raise invalid_argument()
        check_service_spec(request.spec)
        refuse_unsupported(request.spec)
        service = Service(id=new_id())
        service.spec.CopyFrom(request.spec)
        service.spec_version.SetInParent()

        def write(tx: Tx) -> None:
            try:
                tx.create(service)
            except NameConflict as error:
                raise already_exists(
                    f"{error.message}: service {request.spec.annotations.name} already exists"
                ) from error

        await self._store.update(write, cause=f"CreateService {request.spec.annotations.name}")
        return control_pb2.CreateServiceResponse(service=service)

    async def UpdateService(
        self, request: control_pb2.UpdateServiceRequest, context: Any
    ) -> control_pb2.UpdateServiceResponse:
        if not request.service_id or not request.HasField("service_version") or not request.HasField("spec"):
            raise invalid_argument()
        check_service_spec(request.spec)
        service = await self._store.update(lambda tx: _update(tx, request), cause=f"UpdateService {request.service_id}")
        return control_pb2.UpdateServiceResponse(service=service)

    async def RemoveService(
        self, request: control_pb2.RemoveServiceRequest, context: Any
    ) -> control_pb2.RemoveServiceResponse:
        if not request.service_id:
            raise invalid_argument()

        def write(tx: Tx) -> None:
            try:
                tx.delete(Service, request.service_id)
            except NotExist as error:
                raise not_found(f"service {request.service_id} not found") from error

        await self._store.update(write, cause=f"RemoveService {request.service_id}")
        return control_pb2.RemoveServiceResponse()

    async def ListServiceStatuses(
        self, request: control_pb2.ListServiceStatusesRequest, context: Any
    ) -> ListServiceStatusesResponse:
        return ListServiceStatusesResponse(statuses=[self._status(service_id) for service_id in request.services])

    def _status(self, service_id: str) -> ListServiceStatusesResponse.ServiceStatus:
        """Counts of one service; zeros for one that never was (§5.4)."""
        status = ListServiceStatusesResponse.ServiceStatus(service_id=service_id)
        service = self._store.get(Service, service_id)
        mode = service.spec.WhichOneof("mode") if service is not None else None
        of_the_tasks = mode in ("global", "global_job")
        is_job = mode in ("replicated_job", "global_job")
        if service is not None and mode == "replicated":
            status.desired_tasks = service.spec.replicated.replicas
        elif service is not None and mode == "replicated_job":
            status.desired_tasks = service.spec.replicated_job.max_concurrent
        running = completed = desired = 0
        for task in self._store.find(Task, by.service(service_id)):
            if is_job and service is not None and task.job_iteration != service.job_status.job_iteration:
                continue
            state = task.status.state
            running += state == RUNNING
            completed += state == COMPLETE
            if of_the_tasks:
                waits = is_job and task.desired_state == COMPLETE and state != COMPLETE
                desired += task.desired_state == RUNNING or waits
        status.running_tasks, status.completed_tasks = running, completed
        if of_the_tasks:
            status.desired_tasks = desired
        return status


def _update(tx: Tx, request: UpdateServiceRequest) -> Service:
    """What UpdateService does in its transaction, in SwarmKit's order; the version is compared last."""
    stored = tx.get(Service, request.service_id)
    if stored is None:
        raise not_found(f"service {request.service_id} not found")
    new = request.spec
    if new.networks != stored.spec.networks and new.task.networks == stored.spec.task.networks:
        raise unimplemented("networks must be migrated to TaskSpec before being changed")
    if new.WhichOneof("mode") != stored.spec.WhichOneof("mode"):
        raise unimplemented("service mode change is not allowed")
    if new.annotations.name != stored.spec.annotations.name:
        raise unimplemented("renaming services is not supported")
    if request.rollback == UpdateServiceRequest.PREVIOUS:
        if not stored.HasField("previous_spec"):
            raise failed_precondition(f"service {stored.id} does not have a previous spec")
        raise not_yet("rollback (return to the previous spec)")
    refuse_unsupported(new)
    if new.task != stored.spec.task or new.endpoint != stored.spec.endpoint:
        raise not_yet(
            "a changed task (replacing the running tasks of a service; its labels and number of replicas can be "
            "changed, for anything else remove the service and create it anew)"
        )
    service = copied(stored)
    service.meta.version.CopyFrom(request.service_version)
    service.previous_spec.CopyFrom(stored.spec)
    service.previous_spec_version.CopyFrom(stored.spec_version)
    service.spec.CopyFrom(new)
    service.spec_version.CopyFrom(request.service_version)
    service.ClearField("update_status")
    tx.update(service)
    return service


def _listed(service: Service, filters: control_pb2.ListServicesRequest.Filters) -> bool:
    annotations = service.spec.annotations
    return (
        one_of(filters.names, annotations.name)
        and starts_with(filters.name_prefixes, annotations.name)
        and starts_with(filters.id_prefixes, service.id)
        and labels_match(filters.labels, annotations.labels)
        and (not filters.runtimes or runtime_name(service.spec.task) in filters.runtimes)
    )
