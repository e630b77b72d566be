"""The protobuf package docker.swarmkit.v1 is field for field what peers put on the wire."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor

from tests.tools import proto

WIRE: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "fixtures" / "wire" / "docker.swarmkit.v1.json").read_text()
)
PACKAGE = "docker.swarmkit.v1."
SCALARS = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_FLOAT: "float",
    FieldDescriptor.TYPE_DOUBLE: "double",
}


def load(name: str) -> FileDescriptor:
    return importlib.import_module(f"swarm.api.{name.removesuffix('.proto')}_pb2").DESCRIPTOR


def messages(descriptor: FileDescriptor | Descriptor) -> dict[str, Descriptor]:
    found: dict[str, Descriptor] = {}
    children = (
        descriptor.message_types_by_name.values() if isinstance(descriptor, FileDescriptor) else descriptor.nested_types
    )
    for child in children:
        if not child.GetOptions().map_entry:
            found[child.full_name.removeprefix(PACKAGE)] = child
            found.update(messages(child))
    return found


def enums(descriptor: FileDescriptor) -> dict[str, EnumDescriptor]:
    found = dict(descriptor.enum_types_by_name)
    for name, message in messages(descriptor).items():
        found.update({f"{name}.{enum.name}": enum for enum in message.enum_types})
    return found


def type_name(field: FieldDescriptor) -> str:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = (field.message_type.fields_by_name[n] for n in ("key", "value"))
        return f"map<{type_name(key)},{type_name(value)}>"
    if field.message_type is not None:
        return field.message_type.full_name.removeprefix(PACKAGE)
    if field.enum_type is not None:
        return field.enum_type.full_name.removeprefix(PACKAGE)
    return SCALARS[field.type]


def describe(field: FieldDescriptor) -> dict[str, Any]:
    is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
    out: dict[str, Any] = {"n": field.number, "name": field.name, "type": type_name(field)}
    if field.is_repeated and not is_map:
        out["repeated"] = True
    if field.containing_oneof is not None:
        out["oneof"] = field.containing_oneof.name
    return out


@pytest.mark.parametrize("name", WIRE)
def test_every_message_has_exactly_the_fields_of_the_wire(name: str) -> None:
    ours = {n: [describe(f) for f in m.fields] for n, m in messages(load(name)).items()}
    theirs = WIRE[name]["messages"]
    assert set(ours) == set(theirs)
    for message, fields in theirs.items():
        assert sorted(ours[message], key=lambda f: f["n"]) == sorted(fields, key=lambda f: f["n"]), message


@pytest.mark.parametrize("name", WIRE)
def test_every_enum_has_exactly_the_values_of_the_wire(name: str) -> None:
    ours = {n: {v.name: v.number for v in e.values} for n, e in enums(load(name)).items()}
    assert ours == WIRE[name]["enums"]


@pytest.mark.parametrize("name", WIRE)
def test_every_rpc_has_the_types_and_streams_of_the_wire(name: str) -> None:
    ours = {
        service.name: {
            method.name: {
                "request": method.input_type.full_name.removeprefix(PACKAGE),
                "response": method.output_type.full_name.removeprefix(PACKAGE),
                "client_stream": method.client_streaming,
                "server_stream": method.server_streaming,
            }
            for method in service.methods
        }
        for service in load(name).services_by_name.values()
    }
    theirs = {
        service: {rpc: {k: v for k, v in entry.items() if k != "roles"} for rpc, entry in rpcs.items()}
        for service, rpcs in WIRE[name]["services"].items()
    }
    assert ours == theirs


def test_repeated_enums_are_not_packed_as_go_peers_send_them() -> None:
    repeated = [
        field
        for name in WIRE
        for message in messages(load(name)).values()
        for field in message.fields
        if field.is_repeated and field.enum_type is not None
    ]
    assert repeated
    assert [field.full_name for field in repeated if field.is_packed] == []


def test_generated_code_is_current(tmp_path: Path) -> None:
    proto.generate(tmp_path)
    fresh = {p.relative_to(tmp_path): p.read_text() for p in tmp_path.rglob("*_pb2*")}
    committed = {
        p.relative_to(proto.ROOT): p.read_text()
        for p in (proto.ROOT / "swarm" / "api").iterdir()
        if re.search(r"_pb2(_grpc)?\.pyi?$", p.name)
    }
    assert set(fresh) == set(committed)
    assert [str(p) for p in fresh if fresh[p] != committed[p]] == [], "run `make proto`"
