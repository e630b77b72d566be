"""Placement constraints (reference manager §7.3)."""

from __future__ import annotations

import pytest

from procs.manager.constraints import all_match, parse
from swarm.api.objects_pb2 import Node
from swarm.api.types_pb2 import MANAGER
from swarm.errors import BadInput

NODE = Node(id="n1", role=MANAGER)
NODE.description.hostname = "Alpha"
NODE.description.platform.os = "linux"
NODE.description.platform.architecture = "x86_64"
NODE.description.engine.labels["runtime"] = "process"
NODE.spec.annotations.labels["Disk"] = "ssd"
NODE.spec.annotations.labels["empty"] = ""
NODE.status.addr = "192.0.2.7"
BARE = Node(id="n2")


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("node.id", "constraint expected one operator from ==, !="),
        ("node.id=x", "constraint expected one operator from ==, !="),
        ("", "constraint expected one operator from ==, !="),
        ("==x", "key '' is invalid"),
        ("a==x", "key 'a' is invalid"),
        ("1a==x", "key '1a' is invalid"),
        ("no de==x", "key 'no de' is invalid"),
        ("node.id==", "value '' is invalid"),
        ("node.id==a,b", "value 'a,b' is invalid"),
        ("node.id==a==b", "value 'a==b' is invalid"),
        ("node.id!=a==b", "key 'node.id!=a' is invalid"),
        ("node.id==é", "value 'é' is invalid"),
    ],
)
def test_what_does_not_parse(expression: str, text: str) -> None:
    with pytest.raises(BadInput) as refusal:
        parse([expression])
    assert refusal.value.message == text


@pytest.mark.parametrize(
    ("expression", "here", "bare"),
    [
        ("node.id==N1", True, False),
        ("node.id != n1", False, True),
        ("NODE.HOSTNAME==alpha", True, False),
        ("node.hostname!=alpha", False, True),
        ("node.role==manager", True, False),
        ("node.role!=manager", False, True),
        ("node.role==worker", False, True),
        ("node.platform.os==Linux", True, False),
        ("node.platform.arch==amd64", False, False),
        ("node.platform.arch==x86_64", True, False),
        ("node.labels.Disk==SSD", True, False),
        ("node.labels.disk==ssd", False, False),
        ("node.labels.disk!=ssd", True, True),
        ("node.labels.empty!=x", True, True),
        ("Engine.Labels.runtime==process", True, False),
        ("engine.labels.missing!=x", True, True),
        ("node.ip==192.0.2.7", True, False),
        ("node.ip!=192.0.2.7", False, True),
        ("node.ip==::ffff:192.0.2.7", True, False),
        ("node.ip==192.0.2.0/24", True, False),
        ("node.ip==192.0.2.9/24", True, False),
        ("node.ip!=192.0.2.0/24", False, True),
        ("node.ip==2001:db8::/32", False, False),
        ("node.ip==nonsense", False, False),
        ("node.ip!=nonsense", False, False),
        ("node.colour==red", False, False),
        ("node.colour!=red", False, False),
        ("node.labels.==x", False, False),
    ],
)
def test_matching(expression: str, here: bool, bare: bool) -> None:
    (constraint,) = parse([expression])
    assert (constraint.matches(NODE), constraint.matches(BARE)) == (here, bare)


def test_all_constraints_must_hold() -> None:
    assert all_match(parse(["node.role==manager", "node.labels.Disk==ssd"]), NODE)
    assert not all_match(parse(["node.role==manager", "node.labels.Disk==hdd"]), NODE)
    assert all_match([], BARE)
