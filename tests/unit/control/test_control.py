"""The whole surface: every method is there, and those of later versions say so; texts and grammars."""

from __future__ import annotations

import pytest

from procs.manager.control import ControlService
from procs.manager.control.gotext import quoted, shortest
from procs.manager.control.reference import is_image_reference
from swarm.api import control_pb2, control_pb2_grpc
from swarm.api.objects_pb2 import Network
from tests.unit.control.conftest import IA, NOT_FOUND, UNIMPLEMENTED, Api

METHODS = [method.name for method in control_pb2.DESCRIPTOR.services_by_name["Control"].methods]
LATER = [
    *("CreateNetwork", "RemoveNetwork"),
    *(f"{verb}{noun}" for noun in ("Secret", "Config") for verb in ("Get", "Create", "Update", "Remove")),
    *("GetExtension", "CreateExtension", "RemoveExtension"),
    *("GetResource", "CreateResource", "UpdateResource", "RemoveResource"),
    *("GetVolume", "CreateVolume", "UpdateVolume", "RemoveVolume"),
]
EMPTY = ["ListSecrets", "ListConfigs", "ListResources", "ListVolumes"]


def test_all_43_methods_are_ours() -> None:
    assert len(METHODS) == 43
    for method in METHODS:
        assert getattr(ControlService, method) is not getattr(control_pb2_grpc.ControlServicer, method), method


@pytest.mark.parametrize("method", LATER)
async def test_methods_of_later_versions_are_refused_by_name(api: Api, method: str) -> None:
    request = getattr(control_pb2, f"{method}Request")()
    assert await api.refusal(method, request) == (
        UNIMPLEMENTED,
        f"{method}: this version of Swarmvisor does not support that yet",
    )


@pytest.mark.parametrize("method", EMPTY)
async def test_what_cannot_exist_yet_lists_as_nothing(api: Api, method: str) -> None:
    request = getattr(control_pb2, f"{method}Request")()
    assert await api.call(method, request) == getattr(control_pb2, f"{method}Response")()


async def test_networks_can_be_looked_at(api: Api) -> None:
    network = Network(id="net1")
    network.spec.annotations.name = "ingress"
    await api.put(network)
    get = control_pb2.GetNetworkRequest
    assert (await api.call("GetNetwork", get(network_id="net1"))).network == network
    assert await api.refusal("GetNetwork", get()) == (IA, "invalid argument")
    assert await api.refusal("GetNetwork", get(network_id="x")) == (NOT_FOUND, "network x not found")
    request = control_pb2.ListNetworksRequest()
    request.filters.names.append("ingress")
    assert list((await api.call("ListNetworks", request)).networks) == [network]
    request.filters.labels["a"] = ""
    assert list((await api.call("ListNetworks", request)).networks) == []


@pytest.mark.parametrize(
    "text",
    [
        *("host", "host:latest", "nginx", "nginx:1.25", "a/b", "a/b/c:tag_1.x-y", "localhost/a", "localhost:5000/a"),
        *("registry.example/a_b/c__d/e---f", "registry.example:443/x:T", "[2001:db8::1]:5000/a", "Registry/a"),
        "nginx@sha256:" + "a" * 64,
        "nginx:1@sha256:" + "0" * 64,
        "x:" + "t" * 128,
        "a" * 63,
        "a" * 200,
    ],
)
def test_image_references(text: str) -> None:
    assert is_image_reference(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "busybox###", "UPPER", "a/B", "a//b", "/a", "a/", "-a", "a-", "a:", "a:-t", "a b", "host\n", "a..b"),
        *("a@", "a@sha256:abc", "a@md5:" + "a" * 32, "a@sha256:" + "A" * 64, "x:" + "t" * 129, "https://a/b"),
        "f" * 64,
        "a" * 256,
        "a" * 100_000 + "!",
    ],
)
def test_what_is_no_image_reference(text: str) -> None:
    assert not is_image_reference(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0.0, "0"), (0.001, "0.001"), (0.0001, "0.0001"), (0.00001, "1e-05"), (1.5e-9, "1.5e-09"), (-2.5, "-2.5")),
        *((100000.0, "100000"), (1000000.0, "1e+06"), (-1234567.0, "-1.234567e+06"), (12.0, "12")),
    ],
)
def test_numbers_are_written_as_go_writes_them(value: float, text: str) -> None:
    assert shortest(value) == text


def test_texts_are_quoted_as_go_quotes_them() -> None:
    assert quoted('a"b\nc') == '"a\\"b\\nc"'
