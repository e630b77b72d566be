"""Uncommitted changes over committed ones: what an `update` callback works on.

A `Layer` holds, for each kind, the objects changed since the committed tables and the ids that are hidden there. All
transactions of one group commit share a layer, one after another; one that fails is rolled back out of it alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from procs.manager.store.by import Selector
from procs.manager.store.engine import Delete, Operation, Put
from procs.manager.store.errors import AlreadyExists, NameConflict, NotExist, OutOfSequence, StoreError, TooLarge
from procs.manager.store.tables import KINDS, KINDS_BY_NAME, Entry, Kind, M, Msg, Table, check_selectors
from procs.manager.store.watch import Action, Event
from swarm.api import objects_pb2

SIDE = "/side/"
"""Prefix of the engine's keys of side records."""

MAX_BYTES = 6 * 1024 * 1024
"""Of one transaction's values. SwarmKit takes 1.5 MiB; an etcd request of ours takes 8."""
MAX_OPERATIONS = 8000
"""Of one transaction. An etcd transaction of ours takes 8192."""

Tables = dict[type[Any], Table]


def object_key(kind: Kind, id_: str) -> str:
    """The engine's key of an object: ids only, nothing that tells of its content."""
    return f"/{kind.name}/{id_}"


def find_in(table: Table, over: Table | None, hidden: set[str], selectors: tuple[Selector, ...]) -> list[Any]:
    """Objects of `table`, less `hidden`, plus those of `over`, that all `selectors` select; in id order."""
    below = _matching(table, selectors)
    if over is None:
        return [table.entries[id_].object for id_ in sorted(below)]
    above = _matching(over, selectors)
    found = {id_: table.entries[id_].object for id_ in below if id_ not in hidden}
    found.update((id_, over.entries[id_].object) for id_ in above)
    return [found[id_] for id_ in sorted(found)]


def _matching(table: Table, selectors: tuple[Selector, ...]) -> set[str] | frozenset[str] | dict[str, Entry]:
    if not selectors:
        return table.entries
    ids = table.select(selectors[0])
    for selector in selectors[1:]:
        ids = ids & table.select(selector)
    return ids


class Layer:
    """Changes of one kind that are not committed yet."""

    __slots__ = ("_indexed", "changed", "hidden", "table")

    def __init__(self, table: Table) -> None:
        self.table = table
        self.changed: dict[str, Entry] = {}
        self.hidden: set[str] = set()
        self._indexed: Table | None = None

    def indexed(self) -> Table:
        """What changed, with indexes: made when first asked for, since most transactions only get and put."""
        if self._indexed is None:
            self._indexed = Table()
            for id_, entry in self.changed.items():
                self._indexed.put(id_, entry)
        return self._indexed

    def get(self, id_: str) -> Entry | None:
        if id_ in self.hidden:
            return self.changed.get(id_)
        return self.table.entries.get(id_)

    def set(self, id_: str, entry: Entry | None) -> None:
        """The object is now `entry`, or gone."""
        self.hidden.add(id_)
        self._change(id_, entry)

    def unset(self, id_: str, entry: Entry | None, was_hidden: bool) -> None:
        """Undo one `set`."""
        if not was_hidden:
            self.hidden.discard(id_)
        self._change(id_, entry)

    def owner(self, key: tuple[str, Any]) -> str | None:
        """The id that has a unique key."""
        for id_ in self.indexed().having(key):
            return id_
        for id_ in self.table.having(key):
            if id_ not in self.hidden:
                return id_
        return None

    def _change(self, id_: str, entry: Entry | None) -> None:
        if entry is None:
            self.changed.pop(id_, None)
            if self._indexed is not None:
                self._indexed.remove(id_)
        else:
            self.changed[id_] = entry
            if self._indexed is not None:
                self._indexed.put(id_, entry)


class Layers:
    """What the transactions of one group have changed so far: objects and side records."""

    __slots__ = ("kinds", "side", "tables", "under_side")

    def __init__(self, tables: Tables, side: dict[str, bytes]) -> None:
        self.tables = tables
        self.kinds: dict[type[Any], Layer] = {}
        self.under_side = side
        self.side: dict[str, bytes | None] = {}

    def layer(self, type_: type[Any]) -> Layer:
        """The layer of a kind, made when first asked for."""
        layer = self.kinds.get(type_)
        if layer is None:
            layer = self.kinds[type_] = Layer(self.tables[type_])
        return layer


class Tx:
    """One transaction: reads see its own writes, and those of transactions queued before it."""

    def __init__(self, layers: Layers, index: int, now_ns: int) -> None:
        self.index = index
        """What objects written here get as `meta.version.index`."""
        self.events: list[Event] = []
        self.changes: list[tuple[type[Any], str, Entry | None]] = []
        """Kind, id, and what is stored there now (None: nothing), in order."""
        self.operations: dict[str, Operation] = {}
        self.size = 0
        """Bytes of the values written."""
        self._layers = layers
        self._undo: list[tuple[Layer, str, Entry | None, bool]] = []
        self._undo_side: list[tuple[str, bytes | None, bool]] = []
        self._now_ns = now_ns
        self._now: Timestamp | None = None

    # -- reading -----------------------------------------------------------------------------------

    def get(self, kind: type[M], id_: str) -> M | None:
        """The object, which is shared: copy it before changing it."""
        layer = self._layers.kinds.get(kind)
        entry = layer.get(id_) if layer is not None else self._layers.tables[kind].entries.get(id_)
        return None if entry is None else entry.object

    def find(self, kind: type[M], *selectors: Selector) -> list[M]:
        """Objects that all `selectors` select, in id order; shared, as in `get`. InvalidFind."""
        check_selectors(KINDS[kind], selectors)
        layer = self._layers.kinds.get(kind)
        if layer is None:
            return find_in(self._layers.tables[kind], None, set(), selectors)
        return find_in(layer.table, layer.indexed(), layer.hidden, selectors)

    def side(self, name: str) -> bytes | None:
        """A side record."""
        if name in self._layers.side:
            return self._layers.side[name]
        return self._layers.under_side.get(name)

    # -- writing -----------------------------------------------------------------------------------

    def create(self, obj: Msg) -> None:
        """Store a copy of `obj`, stamping `obj.meta`. NameConflict, AlreadyExists."""
        kind, layer = KINDS[type(obj)], self._layers.layer(type(obj))
        if not obj.id:
            raise ValueError(f"a {kind.name} without an id cannot be stored")
        unique = kind.unique_key(obj)
        if unique is not None and layer.owner(unique) is not None:
            raise NameConflict
        if kind.name == "extension":
            _check_extension_name(obj)
        if layer.get(obj.id) is not None:
            raise AlreadyExists
        self._check_resource_kind(obj)
        obj.meta.created_at.CopyFrom(self._timestamp())
        self._put(kind, layer, obj, None)

    def update(self, obj: Msg) -> None:
        """Replace the stored object by a copy of `obj`, stamping `obj.meta`. NameConflict, NotExist, OutOfSequence."""
        kind, layer = KINDS[type(obj)], self._layers.layer(type(obj))
        if kind.name == "extension":
            raise StoreError("extensions are immutable")
        unique = kind.unique_key(obj)
        if unique is not None and kind.name != "resource" and layer.owner(unique) not in (None, obj.id):
            raise NameConflict
        old = layer.get(obj.id)
        if old is None:
            raise NotExist
        if old.object is obj:
            raise ValueError(f"{kind.name} {obj.id}: stored objects are shared, change a copy")
        if old.object.meta.version.index != obj.meta.version.index:
            raise OutOfSequence
        self._check_resource_kind(obj)
        born = old.object.meta.created_at
        if obj.meta.created_at != born:
            obj.meta.created_at.CopyFrom(born)
        self._put(kind, layer, obj, old)

    def delete(self, kind: type[Msg], id_: str) -> None:
        """Remove an object. NotExist."""
        layer = self._layers.layer(kind)
        old = layer.get(id_)
        if old is None:
            raise NotExist
        if kind is objects_pb2.Extension:
            resources = self._layers.layer(objects_pb2.Resource)
            if resources.owner(("kind", old.object.annotations.name)) is not None:
                raise StoreError("cannot delete extension because objects of this type exist in the data store")
        self._add_operation(Delete(object_key(KINDS[kind], id_)))
        self._undo.append((layer, id_, layer.changed.get(id_), id_ in layer.hidden))
        layer.set(id_, None)
        self.changes.append((kind, id_, None))
        self.events.append(Event(Action.DELETE, old.object))

    def put_side(self, name: str, value: bytes) -> None:
        """Set a side record: something small that belongs to the store but is no object; no event tells of it."""
        self._add_operation(Put(SIDE + name, value, self.index))
        self._set_side(name, value)

    def delete_side(self, name: str) -> None:
        """Remove a side record, if it is there."""
        if self.side(name) is not None:
            self._add_operation(Delete(SIDE + name))
            self._set_side(name, None)

    def rewrite(self, keys: Iterable[str], bound: int) -> list[str]:
        """Write what stands under the engine's `keys` again as it is: nothing changes, so no event tells of it, but it
        lies sealed anew. Stops after `bound` bytes. Returns those passed by because nothing stands there."""
        absent = []
        for key in keys:
            if self.size >= bound:
                break
            value = self._stored(key)
            if value is None:
                absent.append(key)
            else:
                self._add_operation(Put(key, value, self.index))
        return absent

    # -- the store's side --------------------------------------------------------------------------

    def rollback(self) -> None:
        """Take all changes of this transaction out of the layers, last first."""
        for layer, id_, entry, was_hidden in reversed(self._undo):
            layer.unset(id_, entry, was_hidden)
        for name, value, was_there in reversed(self._undo_side):
            if was_there:
                self._layers.side[name] = value
            else:
                del self._layers.side[name]
        self.operations.clear()
        self.changes.clear()
        self.events.clear()

    def sides(self) -> Iterator[tuple[str, bytes | None]]:
        """Side records as this transaction leaves them; None: removed."""
        for key, operation in self.operations.items():
            if key.startswith(SIDE):
                yield key[len(SIDE) :], operation.value if isinstance(operation, Put) else None

    def _stored(self, key: str) -> bytes | None:
        """What stands under one of the engine's keys."""
        if key.startswith(SIDE):
            return self.side(key[len(SIDE) :])
        name, _, id_ = key[1:].partition("/")
        entry = self._layers.layer(KINDS_BY_NAME[name].type).get(id_)
        return None if entry is None else bytes(entry.object.SerializeToString())

    def _put(self, kind: Kind, layer: Layer, obj: Any, old: Entry | None) -> None:
        meta = obj.meta
        meta.version.index = self.index
        meta.updated_at.CopyFrom(self._timestamp())
        data = obj.SerializeToString()
        self._add_operation(Put(object_key(kind, obj.id), data, self.index))
        # The store's own copy: the caller may go on changing its object.
        stored = kind.type.FromString(data)
        id_ = obj.id
        self._undo.append((layer, id_, layer.changed.get(id_), id_ in layer.hidden))
        entry = kind.entry(stored)
        layer.set(id_, entry)
        self.changes.append((kind.type, id_, entry))
        if old is None:
            self.events.append(Event(Action.CREATE, stored))
        else:
            self.events.append(Event(Action.UPDATE, stored, old.object))

    def _set_side(self, name: str, value: bytes | None) -> None:
        side = self._layers.side
        self._undo_side.append((name, side.get(name), name in side))
        side[name] = value

    def _add_operation(self, operation: Operation) -> None:
        if isinstance(operation, Put):
            self.size += len(operation.value)
        if self.size > MAX_BYTES or len(self.operations) >= MAX_OPERATIONS:
            raise TooLarge
        self.operations[operation.key] = operation

    def _check_resource_kind(self, obj: Msg) -> None:
        if isinstance(obj, objects_pb2.Resource):
            extensions = self._layers.layer(objects_pb2.Extension)
            owner = extensions.owner(("name", obj.kind.lower()))
            entry = extensions.get(owner) if owner is not None else None
            if entry is None or entry.object.annotations.name != obj.kind:
                raise StoreError("object kind is unregistered")

    def _timestamp(self) -> Timestamp:
        if self._now is None:
            seconds, nanos = divmod(self._now_ns, 1_000_000_000)
            self._now = Timestamp(seconds=seconds, nanos=nanos)
        return self._now


def _check_extension_name(obj: Any) -> None:
    if obj.annotations.name in KINDS_BY_NAME:
        raise NameConflict
