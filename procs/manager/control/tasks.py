"""Tasks (reference manager §5.3)."""

from __future__ import annotations

from typing import Any

from procs.manager.control.filters import labels_match, one_of, starts_with
from procs.manager.control.ports import Ports
from procs.manager.status import invalid_argument, not_found
from procs.manager.store import Tx, by
from procs.manager.store.errors import NotExist
from procs.manager.store.naming import runtime_name, task_name
from swarm.api import control_pb2
from swarm.api.objects_pb2 import Service, Task

# ruff: noqa: N802, ARG002  (gRPC's method names and arguments)


class TaskMethods(Ports):
    """GetTask, ListTasks, RemoveTask."""

    async def GetTask(self, request: control_pb2.GetTaskRequest, context: Any) -> control_pb2.GetTaskResponse:
        if not request.task_id:
            raise invalid_argument()
        task = self._store.get(Task, request.task_id)
        if task is None:
            raise not_found(f"task {request.task_id} not found")
        return control_pb2.GetTaskResponse(task=task)

    async def ListTasks(self, request: control_pb2.ListTasksRequest, context: Any) -> control_pb2.ListTasksResponse:
        filters = request.filters
        if filters.service_ids:
            candidates = self._store.find(Task, by.any_of(*map(by.service, filters.service_ids)))
        elif filters.node_ids:
            candidates = self._store.find(Task, by.any_of(*map(by.node, filters.node_ids)))
        else:
            candidates = self._store.find(Task)
        return control_pb2.ListTasksResponse(tasks=[task for task in candidates if self._listed(task, filters)])

    async def RemoveTask(self, request: control_pb2.RemoveTaskRequest, context: Any) -> control_pb2.RemoveTaskResponse:
        if not request.task_id:
            raise invalid_argument()

        def write(tx: Tx) -> None:
            try:
                tx.delete(Task, request.task_id)
            except NotExist as error:
                raise not_found(f"task {request.task_id} not found") from error

        await self._store.update(write, cause=f"RemoveTask {request.task_id}")
        return control_pb2.RemoveTaskResponse()

    def _listed(self, task: Task, filters: control_pb2.ListTasksRequest.Filters) -> bool:
        return (
            one_of(filters.service_ids, task.service_id)
            and one_of(filters.node_ids, task.node_id)
            and one_of(filters.desired_states, task.desired_state)
            and starts_with(filters.id_prefixes, task.id)
            and labels_match(filters.labels, task.service_annotations.labels)
            and (not filters.names or task_name(task) in filters.names)
            and (not filters.name_prefixes or starts_with(filters.name_prefixes, task_name(task)))
            and (not filters.runtimes or runtime_name(task.spec) in filters.runtimes)
            and (not filters.up_to_date or self._up_to_date(task))
        )

    def _up_to_date(self, task: Task) -> bool:
        """Whether the task is what its service wants now (§6.2, for specs that cannot change their placement yet)."""
        service = self._store.get(Service, task.service_id)
        if service is None:
            return False
        versioned = task.HasField("spec_version") and service.HasField("spec_version")
        if versioned and task.spec_version == service.spec_version:
            return True
        same_endpoint = not task.HasField("endpoint") or task.endpoint.spec == service.spec.endpoint
        return task.spec == service.spec.task and same_endpoint
