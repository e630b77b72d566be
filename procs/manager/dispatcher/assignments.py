"""What one node must have: the difference between what was sent and what is true now. Pure.

Rules: reference agent-and-dispatcher §5.9. Better than it in one point (§10.3): whether a task's dependencies were
released is remembered, so they are withdrawn once, at the first sight of a state beyond RUNNING.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from swarm.api import dispatcher_pb2, objects_pb2, types_pb2

Change = dispatcher_pb2.AssignmentChange
Message = dispatcher_pb2.AssignmentsMessage

MAX_CHANGES = 100
"""Changes in one incremental message."""

_ASSIGNED = types_pb2.TaskState.ASSIGNED
_RUNNING = types_pb2.TaskState.RUNNING
_Publish = types_pb2.VolumePublishStatus

Lookup = Callable[[type[Any], str], Any]
"""An object by kind and id, None if there is none."""

_Dependency = tuple[type[Any], str]


class AssignmentSet:
    """The assignments of one stream. `lookup` reads the newest committed objects."""

    def __init__(self, node_id: str, lookup: Lookup) -> None:
        self._node_id = node_id
        self._lookup = lookup
        self._tasks: dict[str, objects_pb2.Task] = {}
        self._holds: dict[str, list[_Dependency]] = {}
        """Dependencies by the task or volume that holds them."""
        self._users: dict[_Dependency, set[str]] = {}
        self._volumes: dict[str, objects_pb2.Volume] = {}

    def complete(self, tasks: Iterable[objects_pb2.Task], volumes: Iterable[objects_pb2.Volume]) -> list[Change]:
        """The first message: everything the node must have, and with it that it must have nothing else."""
        changes: list[Change] = []
        for volume in volumes:
            changes += self.volume(volume.id, volume)
        for task in tasks:
            changes += self.task(task.id, task)
        return changes

    def task(self, task_id: str, task: objects_pb2.Task | None) -> list[Change]:
        """What changes for the node now that the task is as given; None: it was deleted."""
        if task is None:
            if self._tasks.pop(task_id, None) is None:
                return []
            removal = Change(action=Change.AssignmentAction.REMOVE)
            removal.assignment.task.id = task_id
            return [removal, *self._release(task_id)]
        state = task.status.state
        if state < _ASSIGNED:
            return []
        known = self._tasks.get(task_id)
        self._tasks[task_id] = task
        changes: list[Change] = []
        if known is None or state == _ASSIGNED or not _same(known, task):
            if known is None and state <= _RUNNING:
                changes += self._hold(task_id, dependencies(task))
            update = Change(action=Change.AssignmentAction.UPDATE)
            update.assignment.task.CopyFrom(task)
            changes.append(update)
        if state > _RUNNING:
            changes += self._release(task_id)
        return changes

    def volume(self, volume_id: str, volume: objects_pb2.Volume | None) -> list[Change]:
        """What changes for the node now that the cluster volume is as given; None: it was deleted."""
        published = None
        if volume is not None:
            published = next((p for p in volume.publish_status if p.node_id == self._node_id), None)
        known = self._volumes.pop(volume_id, None)
        if volume is None or published is None:
            return self._release(volume_id)
        self._volumes[volume_id] = volume
        match published.state:
            case _Publish.PUBLISHED:
                if known is not None and self._publish_state(known) == _Publish.PUBLISHED:
                    return []
                needed = [(objects_pb2.Secret, secret.secret) for secret in volume.spec.secrets]
                return [*self._hold(volume_id, needed), self._volume_change(volume, published, remove=False)]
            case _Publish.PENDING_NODE_UNPUBLISH:
                if known is not None and self._publish_state(known) == _Publish.PENDING_NODE_UNPUBLISH:
                    return []
                # The whole assignment: after a restart the node may not know the volume any more.
                return [self._volume_change(volume, published, remove=True)]
            case _:
                return self._release(volume_id)

    def _publish_state(self, volume: objects_pb2.Volume) -> int:
        return next(p.state for p in volume.publish_status if p.node_id == self._node_id)

    @staticmethod
    def _volume_change(volume: objects_pb2.Volume, published: Any, *, remove: bool) -> Change:
        action = Change.AssignmentAction.REMOVE if remove else Change.AssignmentAction.UPDATE
        change = Change(action=action)
        target = change.assignment.volume
        target.id = volume.id
        target.volume_id = volume.volume_info.volume_id
        target.driver.CopyFrom(volume.spec.driver)
        target.volume_context.update(volume.volume_info.volume_context)
        target.publish_context.update(published.publish_context)
        if volume.spec.HasField("access_mode"):
            target.access_mode.CopyFrom(volume.spec.access_mode)
        target.secrets.extend(volume.spec.secrets)
        return change

    def _hold(self, user: str, needed: Sequence[_Dependency]) -> list[Change]:
        """Send what `user` is the first to need. What does not exist is left out: the task says so on the node."""
        changes: list[Change] = []
        self._holds[user] = list(needed)
        for dependency in needed:
            users = self._users.setdefault(dependency, set())
            users.add(user)
            if len(users) > 1:
                continue
            kind, dependency_id = dependency
            found = self._lookup(kind, dependency_id)
            if found is not None:
                change = Change(action=Change.AssignmentAction.UPDATE)
                _slot(change, kind).CopyFrom(found)
                changes.append(change)
        return changes

    def _release(self, user: str) -> list[Change]:
        """Withdraw what nobody needs once `user` needs it no more."""
        changes: list[Change] = []
        for dependency in self._holds.pop(user, ()):
            users = self._users[dependency]
            users.discard(user)
            if not users:
                del self._users[dependency]
                change = Change(action=Change.AssignmentAction.REMOVE)
                _slot(change, dependency[0]).id = dependency[1]
                changes.append(change)
        return changes


def dependencies(task: objects_pb2.Task) -> list[_Dependency]:
    """Secrets and configs that the task refers to, each once, in the order of the spec."""
    found: dict[_Dependency, None] = {}
    for reference in task.spec.resource_references:
        if reference.resource_type == types_pb2.ResourceType.SECRET:
            found[objects_pb2.Secret, reference.resource_id] = None
        elif reference.resource_type == types_pb2.ResourceType.CONFIG:
            found[objects_pb2.Config, reference.resource_id] = None
    if task.spec.WhichOneof("runtime") == "container":
        for secret in task.spec.container.secrets:
            found[objects_pb2.Secret, secret.secret_id] = None
        for config in task.spec.container.configs:
            found[objects_pb2.Config, config.config_id] = None
    return list(found)


class Numbering:
    """The chain of one stream's messages: COMPLETE leads from "" to "1", each further one on by one."""

    def __init__(self) -> None:
        self._number = 0

    def complete(self, changes: Iterable[Change]) -> Message:
        """The absolute first message."""
        return self._message(Message.Type.COMPLETE, changes)

    def incremental(self, changes: Sequence[Change]) -> Iterator[Message]:
        """As many messages as the changes need; none for none."""
        for start in range(0, len(changes), MAX_CHANGES):
            yield self._message(Message.Type.INCREMENTAL, changes[start : start + MAX_CHANGES])

    def _message(self, kind: Message.Type.ValueType, changes: Iterable[Change]) -> Message:
        before = str(self._number) if self._number else ""
        self._number += 1
        return Message(type=kind, applies_to=before, results_in=str(self._number), changes=changes)


def _slot(change: Change, kind: type[Any]) -> Any:
    return change.assignment.secret if kind is objects_pb2.Secret else change.assignment.config


def _same(one: objects_pb2.Task, other: objects_pb2.Task) -> bool:
    """Equal but for status and meta, which the node knows better or need not know."""
    return _core(one) == _core(other)


def _core(task: objects_pb2.Task) -> objects_pb2.Task:
    core = objects_pb2.Task()
    core.CopyFrom(task)
    core.ClearField("status")
    core.ClearField("meta")
    return core
