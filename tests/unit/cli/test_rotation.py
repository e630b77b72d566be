"""How far a rotation is, and the nodes that it waits for, in words."""

from __future__ import annotations

import click
import pytest

from procs.cli import rotation
from procs.cli.externalca import ExternalCA
from swarm.api import objects_pb2, types_pb2
from swarm.pki.rootca import RootCA

OLD, NEW = RootCA.create(), RootCA.create()


def node(name: str, issuer: RootCA, state: int = types_pb2.NodeStatus.READY) -> objects_pb2.Node:
    made = objects_pb2.Node(id=f"id-{name}")
    made.description.hostname = name
    made.status.state = state  # type: ignore[assignment]
    made.description.tls_info.cert_issuer_subject = issuer.pool[0].subject
    made.description.tls_info.cert_issuer_public_key = issuer.pool[0].public_key
    return made


def cluster(*, rotating: bool = True) -> objects_pb2.Cluster:
    made = objects_pb2.Cluster(id="c")
    made.root_ca.ca_cert = OLD.certs
    if rotating:
        made.root_ca.root_rotation.ca_cert = NEW.certs
    return made


def test_each_blocking_node_is_named_with_what_is_known_of_it() -> None:
    told = node("told", OLD)
    told.certificate.status.state = types_pb2.IssuanceStatus.ROTATE
    refused = node("refused", OLD)
    refused.certificate.status.state = types_pb2.IssuanceStatus.FAILED
    refused.certificate.status.err = "no"
    waits = node("waits", OLD)
    waits.certificate.status.state = types_pb2.IssuanceStatus.RENEW
    waits.certificate.status.err = "nobody answers"
    silent = objects_pb2.Node(id="never-said")
    silent.status.state = types_pb2.NodeStatus.READY
    down = node("gone", OLD, types_pb2.NodeStatus.DOWN)
    stand = rotation.stand(cluster(), [node("a", NEW), told, refused, waits, silent, down])
    assert (stand.running, stand.line) == (True, "1 of 6 nodes")
    assert stand.blocking == (
        "told was told and has not asked yet",
        "refused was refused a certificate: no",
        "waits waits for the swarm's CA: nobody answers",
        "never-said has not followed yet",
        "gone is down: start it, or `swarmvisor node rm` it",
    )
    assert stand.row(cluster())["rotation"] == {"followed": 1, "total": 6, "blocking": list(stand.blocking)}


def test_without_a_rotation_nobody_blocks() -> None:
    stand = rotation.stand(cluster(rotating=False), [node("a", OLD)])
    assert (stand.running, stand.blocking) == (False, ())
    assert stand.row(cluster(rotating=False))["rotation"] is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("protocol=cfssl,junk", "invalid field 'junk' must be a key=value pair"),
        ("protocol=pigeon,url=x", "unrecognized external CA protocol pigeon"),
        ("url=https://x", "the external-ca option needs a protocol= parameter"),
        ("protocol=cfssl", "the external-ca option needs a url= parameter"),
        ("", "the external-ca option needs a protocol= parameter"),
    ],
)
def test_an_external_ca_that_is_none(text: str, said: str) -> None:
    with pytest.raises(click.BadParameter, match=said):
        ExternalCA().convert(text, None, None)


def test_an_external_ca_with_options() -> None:
    found = ExternalCA().convert("protocol=CFSSL,url=https://x:1/sign,label=a", None, None)
    assert (found.url, dict(found.options)) == ("https://x:1/sign", {"label": "a"})
