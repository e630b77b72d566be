"""The swarm's root is replaced under a running service."""

from __future__ import annotations

import re

from swarm.pki.certificate import parse_bundle
from swarm.pki.pem import normalize_pems
from swarm.pki.rootca import RootCA
from tests.e2e.host import Host, eventually


def root_of(node: Host) -> str:
    return str(node.json("swarm", "ca")["root"])


def test_rotations_leave_tasks_and_session_alone_and_every_file_follows(node: Host) -> None:
    node.service("web", "sleep", "600", replicas=2)
    tasks, pids = node.pids("web"), {name: node.pid(name) for name in ("agent", "manager", "renewer", "coordinator")}
    before, token = root_of(node), node.ok("join-token", "worker", "-q")
    session = node.json("status")["agent"]["session_id"]
    after = node.ok("swarm", "ca", "--rotate", "--timeout", "60")
    assert after != before
    assert node.json("swarm", "ca")["rotation"] is None
    assert node.ok("join-token", "worker", "-q") != token
    eventually(lambda: node.paths.root_cert.read_bytes() == after.encode(), what="the new root on disk")
    assert node.paths.node_cert.read_bytes().count(b"BEGIN CERTIFICATE") == 2, "leaf and cross-signed root"
    own = RootCA.create()
    (node.root / "ca.pem").write_bytes(own.certs)
    (node.root / "ca.key").write_bytes(own.key_pem)
    files = ("--ca-cert", str(node.root / "ca.pem"), "--ca-key", str(node.root / "ca.key"))
    third = node.ok("swarm", "ca", "--rotate", *files, "--cert-expiry", "2h")
    assert normalize_pems(third.encode()) == own.certs
    node.expect_ready()
    assert node.pids("web") == tasks
    assert {name: node.pid(name) for name in pids} == pids
    eventually(lambda: node.json("status")["agent"]["session_id"] == session, what="the same session")
    leaf = parse_bundle(node.paths.node_cert.read_bytes())[0]
    assert leaf.not_after - leaf.not_before == 3 * 3600, "two hours, and the hour that it is backdated"


def test_what_cannot_be_a_root_is_refused_in_words(swarm: Host) -> None:
    (swarm.root / "ca.pem").write_bytes(RootCA.create().certs)
    (swarm.root / "ca.key").write_bytes(RootCA.create().key_pem)
    before = root_of(swarm)
    for args, said in (
        (("--ca-cert", str(swarm.root / "ca.pem")), "--ca-cert and --ca-key need --rotate"),
        (("--rotate", "--ca-key", str(swarm.root / "ca.key")), "--ca-key needs --ca-cert"),
        (("--cert-expiry", "59m"), "minimum certificate expiry time is: 1h0m0s"),
        (("--external-ca", "protocol=pigeon,url=x"), "unrecognized external CA protocol pigeon"),
        (
            ("--rotate", "--ca-cert", str(swarm.root / "ca.pem"), "--ca-key", str(swarm.root / "ca.key")),
            "certificate key mismatch",
        ),
        (("--rotate", "--ca-cert", str(swarm.root / "ca.pem")), "reachable external CA corresponding to the desired"),
    ):
        result = swarm.run("swarm", "ca", *args)
        assert result.code != 0
        assert said in result.err, result.err
        assert not re.search("Traceback", result.err)
    assert root_of(swarm) == before


def test_the_key_in_its_old_form_serves_and_a_valid_node_need_not_come_back(swarm: Host) -> None:
    swarm.ok("debug", "downgrade-key")
    assert swarm.paths.node_key.read_bytes().startswith(b"-----BEGIN EC PRIVATE KEY-----")
    again = swarm.run("debug", "downgrade-key")
    assert "already downgraded" in again.err
    swarm.kill("manager")
    eventually(lambda: swarm.json("node", "ls"), what="the manager reads the key in its old form")
    token = swarm.ok("join-token", "worker", "-q").strip()
    refused = swarm.run("rejoin", "--token", token, f"127.0.0.1:{swarm.port}")
    assert "has not expired" in refused.err
    swarm.ok("swarm", "update", "--cert-grace", "30d")
    wrong = swarm.run("swarm", "update", "--cert-grace", "soon")
    assert "is not a time span" in wrong.err
