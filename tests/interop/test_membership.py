"""What a Docker Swarm does with its members, done to a node of ours: promoted, removed, its tokens and root rotated."""

from __future__ import annotations

import re
from contextlib import contextmanager

from tests.e2e.host import Host, alive, eventually, new_host
from tests.interop.conftest import a_member
from tests.interop.dockerd import Dockerd
from tests.interop.follower import following

COUNT = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.2; done"


def converged(dockerd: Dockerd) -> bool:
    """Whether no node needs another certificate and the swarm has one root again."""
    status = dockerd.docker("node", "ls", "--format", "{{.Status}} {{.TLSStatus}}").splitlines()
    return set(status) == {"Ready Ready"} and "Root Rotation In Progress: true" not in dockerd.docker("info")


def fingerprint(host: Host) -> bytes:
    return host.paths.node_cert.read_bytes()


def test_the_node_lives_through_a_rotation_of_dockers_root(other_dockerd: Dockerd) -> None:
    dockerd = other_dockerd
    with a_member(dockerd, "rotating") as member:
        dockerd.service("counting", "sh", "-c", COUNT)
        (task,) = dockerd.running("counting", 1)
        process = task["Status"]["ContainerStatus"]["PID"]
        old_root = member.host.paths.root_cert.read_bytes()
        with following(dockerd, "counting") as follower:
            follower.expect("line 3")
            for _ in range(2):
                before = fingerprint(member.host)
                dockerd.docker("swarm", "ca", "--rotate", "--detach")
                eventually(lambda old=before: fingerprint(member.host) != old, what="a certificate under the new root")
                eventually(lambda: converged(dockerd), what="the rotation is complete")
            eventually(
                lambda: (
                    member.host.paths.root_cert.read_bytes().decode().strip() == dockerd.docker("swarm", "ca").strip()
                ),
                what="the node trusts the new root alone",
            )
            assert member.host.paths.root_cert.read_bytes() != old_root
            dockerd.expect_node(member.node_id, "ready")
            assert alive(process)
            # the sessions were other ones, and what was followed went on where it stood
            last = len(follower.lines)
            follower.expect(f"line {last + 5}")
            assert follower.lines == [f"line {n}" for n in range(1, len(follower.lines) + 1)]
        dockerd.docker("service", "scale", "--detach", "counting=2")
        assert process in {t["Status"]["ContainerStatus"]["PID"] for t in dockerd.running("counting", 2)}
        with contextmanager(new_host)() as late:
            # its managers speak TLS as grpc does not, from the very first handshake
            dockerd.expect_node(dockerd.join(late, "late"), "ready")
        member.host.ok("down")
        member.host.ok("up")
        dockerd.expect_node(member.node_id, "ready")


def test_a_promoted_node_stays_a_worker_and_says_so_without_looping(other_dockerd: Dockerd) -> None:
    dockerd = other_dockerd
    with a_member(dockerd, "promoted") as member:
        host = member.host
        dockerd.service("steady", "sleep", "1000")
        (task,) = dockerd.running("steady", 1)
        before, session = fingerprint(host), host.json("status")["agent"]["session_id"]
        dockerd.docker("node", "promote", member.node_id)
        step = eventually(lambda: host.json("status")["node"]["step"], what="the node says what it cannot do")
        assert "its managers are Docker's and this node cannot join their raft: it goes on as a worker" in step
        assert dockerd.docker("node", "inspect", "--format", "{{.Spec.Role}}", member.node_id) == "manager"
        dockerd.docker("service", "scale", "--detach", "steady=2")
        dockerd.running("steady", 2)
        assert host.state() == "ready"
        assert fingerprint(host) == before
        assert host.json("status")["agent"]["session_id"] == session
        assert host.pid("manager") == 0
        told = (host.paths.logs / "coordinator.log").read_text()
        assert len(re.findall(r"msg=\"the swarm promoted this node, but its managers are Docker's", told)) == 1
        assert "start the manager" not in told

        # a renewal meanwhile brings a manager's certificate: still no manager
        dockerd.docker("swarm", "ca", "--rotate", "--detach")
        eventually(lambda: fingerprint(host) != before, what="another certificate")
        eventually(lambda: converged(dockerd), what="the rotation is complete")
        dockerd.expect_node(member.node_id, "ready")
        eventually(lambda: host.state() == "ready", what="ready with that certificate too")
        assert host.pid("manager") == 0
        assert alive(task["Status"]["ContainerStatus"]["PID"])

        # Docker demotes members of its raft only (reference manager §4): the way back that `status` names
        assert "can't find manager in raft memberlist" in dockerd.run("node", "demote", member.node_id).stderr
        assert "`docker node rm --force`" in step
        dockerd.docker("node", "rm", "--force", member.node_id)
        eventually(lambda: host.state() == "failed", what="the removed node says so")
        host.ok("leave", "--force")
        dockerd.expect_node(dockerd.join(host, "promoted"), "ready")


def test_a_removed_node_says_so_and_may_come_again_as_another(dockerd: Dockerd) -> None:
    with a_member(dockerd, "removed", "--label", "short=lived") as member:
        assert "is not down and can't be removed" in dockerd.run("node", "rm", member.node_id).stderr
        member.host.ok("down")
        dockerd.expect_node(member.node_id, "down")
        dockerd.docker("node", "rm", member.node_id)
        member.host.run("up", "--timeout", "1")
        eventually(lambda: member.host.state() == "failed", what="the removed node says so")
        assert f"node {member.node_id} was removed from the swarm" in member.host.json("status")["node"]["cause"]
        member.host.ok("leave", "--force")
        again = dockerd.join(member.host, "removed")
        assert again != member.node_id
        dockerd.expect_node(again, "ready")
        dockerd.run("node", "rm", "--force", again)


def test_a_rotated_token_is_refused_and_the_new_one_taken(dockerd: Dockerd) -> None:
    old = dockerd.token()
    dockerd.docker("swarm", "join-token", "--rotate", "--quiet", "worker")
    with contextmanager(new_host)() as host:
        refused = host.run("join", "--token", old, "--hostname", "late", dockerd.addr)
        assert refused.code != 0
        assert "token" in refused.err
        node_id = dockerd.join(host, "late")
        dockerd.expect_node(node_id, "ready")
        dockerd.run("node", "rm", "--force", node_id)
