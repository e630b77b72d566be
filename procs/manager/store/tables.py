"""The ten kinds of objects, their indexes and what one may ask of them (reference manager §2.1), and a table of one.

An object has a fixed set of *keys*, pairs of index and value, computed once when it is written; a table keeps, for
each key, the ids that have it. Prefixes are answered by looking through all keys.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from procs.manager.store.by import AnyOf, Selector, Where
from procs.manager.store.errors import InvalidFind
from procs.manager.store.naming import task_name
from swarm.api import objects_pb2, specs_pb2, types_pb2

Msg = (
    objects_pb2.Node
    | objects_pb2.Service
    | objects_pb2.Task
    | objects_pb2.Network
    | objects_pb2.Cluster
    | objects_pb2.Secret
    | objects_pb2.Config
    | objects_pb2.Resource
    | objects_pb2.Extension
    | objects_pb2.Volume
)
M = TypeVar("M", bound=Msg)

Key = tuple[str, Hashable]
"""Index and value."""


class Entry(NamedTuple):
    """A stored object with its keys."""

    object: Any
    keys: frozenset[Key]


@dataclass(frozen=True)
class Kind:
    """One type of object."""

    name: str
    """Lower-case singular: part of the key in the engine, and the kind of the Watch API."""
    type: type[Any]
    keys: Callable[[Any], list[Key]]
    exact: frozenset[str]
    """Indexes that may be asked for a value."""
    prefix: frozenset[str]
    """Indexes that may be asked for a prefix."""
    unique_name: bool = True

    def entry(self, obj: Any) -> Entry:
        return Entry(obj, frozenset(self.keys(obj)))

    def unique_key(self, obj: Any) -> Key | None:
        """The key that no other object of this kind may have."""
        if not self.unique_name:
            return None
        annotations = obj.annotations if self.name in ("resource", "extension") else obj.spec.annotations
        return ("name", annotations.name.lower())


def _custom(annotations: types_pb2.Annotations, prefix: str = "") -> list[Key]:
    if not annotations.indices:
        return []
    return [("custom", f"{prefix}{entry.key}|{entry.val}") for entry in annotations.indices]


def _named(annotations: types_pb2.Annotations) -> list[Key]:
    return [("name", annotations.name.lower()), *_custom(annotations)]


def _task_spec_keys(spec: specs_pb2.TaskSpec) -> list[Key]:
    runtime = spec.WhichOneof("runtime")
    keys: list[Key] = []
    if runtime is not None:
        keys.append(("runtime", spec.generic.kind.lower() if runtime == "generic" else runtime))
    if runtime == "container":
        container = spec.container
        keys.extend(("secret", reference.secret_id) for reference in container.secrets)
        keys.extend(("config", reference.config_id) for reference in container.configs)
    return keys


def _node(node: objects_pb2.Node) -> list[Key]:
    keys = _custom(node.spec.annotations)
    if node.HasField("description"):
        keys.append(("name", node.description.hostname.lower()))
    elif node.certificate.csr:
        keys.append(("joining", node.certificate.csr))
    keys.append(("role", node.role))
    keys.append(("membership", node.spec.membership))
    return keys


def _service(service: objects_pb2.Service) -> list[Key]:
    spec = service.spec
    networks = spec.task.networks or spec.networks
    return [
        *_named(spec.annotations),
        *_task_spec_keys(spec.task),
        *(("network", attachment.target) for attachment in networks),
    ]


def _task(task: objects_pb2.Task) -> list[Key]:
    spec = task.spec
    return [
        ("name", task_name(task).lower()),
        ("service", task.service_id),
        ("node", task.node_id),
        ("slot", (task.service_id, task.slot)),
        ("desired_state", task.desired_state),
        ("observed_state", task.status.state),
        *_task_spec_keys(spec),
        *(("network", attachment.target) for attachment in spec.networks),
        *(("volume", volume.id) for volume in task.volumes),
        *_custom(task.annotations),
    ]


def _volume(volume: objects_pb2.Volume) -> list[Key]:
    return [*_named(volume.spec.annotations), ("group", volume.spec.group), ("driver", volume.spec.driver.name)]


def _resource(resource: objects_pb2.Resource) -> list[Key]:
    annotations = resource.annotations
    return [
        ("name", annotations.name.lower()),
        ("kind", resource.kind),
        *_custom(annotations, f"{resource.kind}|"),
    ]


def _kind(
    type_: type[Any],
    keys: Callable[[Any], list[Key]],
    *more: str,
    unique_name: bool = True,
    prefix: tuple[str, ...] = ("id", "name", "custom"),
) -> Kind:
    return Kind(
        name=type_.DESCRIPTOR.name.lower(),
        type=type_,
        keys=keys,
        exact=frozenset({"name", "custom", *more}),
        prefix=frozenset(prefix),
        unique_name=unique_name,
    )


_ALL = (
    _kind(objects_pb2.Node, _node, "role", "membership", "joining", unique_name=False),
    _kind(objects_pb2.Service, _service, "runtime", "network", "secret", "config"),
    _kind(
        objects_pb2.Task,
        _task,
        *("runtime", "service", "node", "slot", "desired_state", "observed_state"),
        *("network", "secret", "config", "volume"),
        unique_name=False,
    ),
    _kind(objects_pb2.Network, lambda o: _named(o.spec.annotations)),
    _kind(objects_pb2.Cluster, lambda o: _named(o.spec.annotations)),
    _kind(objects_pb2.Secret, lambda o: _named(o.spec.annotations)),
    _kind(objects_pb2.Config, lambda o: _named(o.spec.annotations)),
    _kind(objects_pb2.Resource, _resource, "kind"),
    _kind(objects_pb2.Extension, lambda o: _named(o.annotations), prefix=("id", "custom")),
    _kind(objects_pb2.Volume, _volume, "group", "driver"),
)

KINDS: dict[type[Any], Kind] = {kind.type: kind for kind in _ALL}
"""By protobuf type."""

KINDS_BY_NAME: dict[str, Kind] = {kind.name: kind for kind in _ALL}

_NONE: frozenset[str] = frozenset()


class Table:
    """Objects of one kind by id and by key."""

    __slots__ = ("entries", "index")

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.index: dict[Key, set[str]] = {}

    def put(self, id_: str, entry: Entry) -> None:
        old = self.entries.get(id_)
        self.entries[id_] = entry
        if old is None:
            self._add(id_, entry.keys)
        elif old.keys != entry.keys:
            self._drop(id_, old.keys - entry.keys)
            self._add(id_, entry.keys - old.keys)

    def remove(self, id_: str) -> None:
        """Forget an object, if it is here."""
        old = self.entries.pop(id_, None)
        if old is not None:
            self._drop(id_, old.keys)

    def having(self, key: Key) -> set[str] | frozenset[str]:
        """Ids with exactly this key; not to be changed by the caller."""
        return self.index.get(key, _NONE)

    def select(self, selector: Selector) -> set[str] | frozenset[str]:
        """Ids that a checked selector selects; not to be changed by the caller."""
        if isinstance(selector, AnyOf):
            return frozenset().union(*(self.select(part) for part in selector.parts))
        if not selector.prefix:
            return self.having((selector.index, selector.value))
        start = str(selector.value)
        if selector.index == "id":
            return {id_ for id_ in self.entries if id_.startswith(start)}
        return frozenset().union(
            *(
                ids
                for (index, value), ids in self.index.items()
                if index == selector.index and str(value).startswith(start)
            )
        )

    def _add(self, id_: str, keys: frozenset[Key]) -> None:
        index = self.index
        for key in keys:
            ids = index.get(key)
            if ids is None:
                index[key] = {id_}
            else:
                ids.add(id_)

    def _drop(self, id_: str, keys: frozenset[Key]) -> None:
        index = self.index
        for key in keys:
            ids = index[key]
            if len(ids) == 1:
                del index[key]
            else:
                ids.discard(id_)


def check_selectors(kind: Kind, selectors: tuple[Selector, ...]) -> None:
    """InvalidFind if `kind` cannot be asked for one of `selectors`."""
    for selector in _leaves(selectors):
        if selector.index not in (kind.prefix if selector.prefix else kind.exact):
            raise InvalidFind


def _leaves(selectors: tuple[Selector, ...]) -> Iterator[Where]:
    for selector in selectors:
        if isinstance(selector, AnyOf):
            yield from selector.parts
        else:
            yield selector
