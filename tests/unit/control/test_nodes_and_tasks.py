"""Nodes and tasks."""

from __future__ import annotations

import grpc
import pytest

from procs.manager.store.errors import OutOfSequence
from swarm.api.control_pb2 import (
    GetNodeRequest,
    GetTaskRequest,
    ListNodesRequest,
    ListTasksRequest,
    RemoveNodeRequest,
    RemoveTaskRequest,
    UpdateNodeRequest,
)
from swarm.api.objects_pb2 import Cluster, Node, Service, Task
from swarm.api.specs_pb2 import NodeSpec
from swarm.api.types_pb2 import COMPLETE, MANAGER, ORPHANED, RUNNING, SHUTDOWN, WORKER, NodeStatus, RaftMemberStatus
from swarm.pki.rootca import RootCA
from tests.unit.control.conftest import IA, NOT_FOUND, NOW, PRECONDITION, Api, a_node, a_spec


def update_of(node: Node, **changes: int) -> UpdateNodeRequest:
    request = UpdateNodeRequest(node_id=node.id, node_version=node.meta.version, spec=node.spec)
    for name, value in changes.items():
        setattr(request.spec, name, value)
    return request


async def test_requests_without_an_id_and_unknown_ids(api: Api) -> None:
    for method, request in {
        "GetNode": GetNodeRequest(),
        "UpdateNode": UpdateNodeRequest(),
        "RemoveNode": RemoveNodeRequest(),
        "GetTask": GetTaskRequest(),
        "RemoveTask": RemoveTaskRequest(),
    }.items():
        assert await api.refusal(method, request) == (IA, "invalid argument")
    assert await api.refusal("GetNode", GetNodeRequest(node_id="x")) == (NOT_FOUND, "node x not found")
    assert await api.refusal("UpdateNode", update_of(a_node("x"))) == (NOT_FOUND, "node x not found")
    assert await api.refusal("RemoveNode", RemoveNodeRequest(node_id="x")) == (NOT_FOUND, "node x not found")
    assert await api.refusal("GetTask", GetTaskRequest(task_id="x")) == (NOT_FOUND, "task x not found")
    assert await api.refusal("RemoveTask", RemoveTaskRequest(task_id="x")) == (NOT_FOUND, "task x not found")


@pytest.mark.parametrize("missing", ["node_id", "node_version", "spec"])
async def test_an_update_needs_id_version_and_spec(api: Api, missing: str) -> None:
    node = a_node("n1")
    await api.put(node)
    request = update_of(node)
    request.ClearField(missing)  # type: ignore[arg-type]
    assert await api.refusal("UpdateNode", request) == (IA, "invalid argument")


async def test_managers_carry_their_status_which_is_never_stored(api: Api) -> None:
    await api.put(a_node("m1", role=MANAGER), a_node("w1"))
    api.members.reachable = {"m1": True, "m2": False}
    shown = (await api.call("GetNode", GetNodeRequest(node_id="m1"))).node
    assert (shown.manager_status.raft_id, shown.manager_status.addr) == (1, "192.0.2.1:2377")
    assert shown.manager_status.leader
    assert shown.manager_status.reachability == RaftMemberStatus.REACHABLE
    listed = (await api.call("ListNodes", ListNodesRequest())).nodes
    assert [node.HasField("manager_status") for node in listed] == [True, False]
    assert not api.store.get(Node, "m1").HasField("manager_status")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        ({}, ["a", "b", "c"]),
        ({"names": ["host-a", "host-c"]}, ["a", "c"]),
        ({"names": ["HOST-A"]}, []),
        ({"name_prefixes": ["host-"]}, ["a", "b", "c"]),
        ({"id_prefixes": ["b", "c"], "names": ["host-b"]}, ["b"]),
        ({"labels": {"disk": ""}}, ["a"]),
        ({"node_labels": {"zone": "1"}}, ["b"]),
        ({"node_labels": {"zone": ""}, "roles": [MANAGER]}, ["b"]),
        ({"node_labels": {"disk": ""}}, []),
        ({"roles": [WORKER]}, ["a", "c"]),
        ({"roles": [WORKER, MANAGER]}, ["a", "b", "c"]),
        ({"memberships": [NodeSpec.PENDING]}, []),
    ],
    ids=str,
)
async def test_listing_nodes(api: Api, filters: dict[str, object], ids: list[str]) -> None:
    a, b, c = a_node("a"), a_node("b", role=MANAGER), a_node("c")
    a.description.engine.labels["disk"] = "ssd"
    b.spec.annotations.labels["zone"] = "1"
    await api.put(a, b, c)
    request = ListNodesRequest(filters=ListNodesRequest.Filters(**filters))  # type: ignore[arg-type]
    assert [node.id for node in (await api.call("ListNodes", request)).nodes] == ids


async def test_a_node_that_never_described_itself_matches_no_name(api: Api) -> None:
    bare = Node(id="bare")
    await api.put(bare)
    request = ListNodesRequest()
    request.filters.name_prefixes.append("")
    assert not (await api.call("ListNodes", request)).nodes
    assert len((await api.call("ListNodes", ListNodesRequest())).nodes) == 1


async def test_draining_sticks_and_an_old_version_is_refused(api: Api) -> None:
    node = a_node("n1")
    await api.put(node)
    request = update_of(node, availability=NodeSpec.DRAIN)
    updated = (await api.call("UpdateNode", request)).node
    assert updated.spec.availability == NodeSpec.DRAIN
    assert updated.meta.version.index > node.meta.version.index
    with pytest.raises(OutOfSequence):
        await api.call("UpdateNode", request)


async def test_with_one_manager_a_promotion_is_refused_with_the_remedy(api: Api, many: Api) -> None:
    node = a_node("w1")
    await api.put(node)
    code, text = await api.refusal("UpdateNode", update_of(node, desired_role=MANAGER))
    assert code == PRECONDITION
    assert text.startswith("node w1 cannot be promoted: this swarm keeps its state in a SQLite file")
    promoted = (await many.call("UpdateNode", update_of(node, desired_role=MANAGER))).node
    assert promoted.spec.desired_role == MANAGER


async def test_demotions_are_checked_in_order(many: Api) -> None:
    managers = [a_node(f"m{n}", role=MANAGER) for n in range(3)]
    await many.put(managers[0])
    demote = [update_of(node, desired_role=WORKER) for node in managers]
    assert await many.refusal("UpdateNode", demote[0]) == (
        PRECONDITION,
        "attempting to demote the last manager of the swarm: m0 is 1 of 1; promote another node first",
    )
    await many.put(*managers[1:])
    demote = [update_of(node, desired_role=WORKER) for node in managers]
    code, text = await many.refusal("UpdateNode", demote[0])
    assert code == NOT_FOUND
    assert text.startswith("can't find manager in raft memberlist: m0 is none of its 0 members; ")
    many.members.reachable = {"m0": True, "m1": True, "m2": False}
    code, text = await many.refusal("UpdateNode", demote[0])
    assert code == PRECONDITION
    assert text.startswith(
        "can't remove member from the raft: this would result in a loss of quorum: "
        "of the 2 managers that would stay 1 can be reached, and 2 are needed; bring unreachable ones back"
    )
    assert (await many.call("UpdateNode", demote[2])).node.spec.desired_role == WORKER
    many.members.reachable = {"m0": True, "m1": True}
    assert (await many.call("UpdateNode", demote[1])).node.spec.desired_role == WORKER


async def test_what_keeps_a_node_from_being_removed(api: Api, cluster: Cluster) -> None:
    await api.put(a_node("m1", role=MANAGER), a_node("w1"), a_node("w2", state=NodeStatus.DOWN))
    api.members.reachable = {"m1": True}
    for force in (False, True):
        assert await api.refusal("RemoveNode", RemoveNodeRequest(node_id="m1", force=force)) == (
            PRECONDITION,
            (
                "node m1 is a cluster manager and is a member of the raft cluster. "
                "It must be demoted to worker before removal"
            ),
        )
    assert await api.refusal("RemoveNode", RemoveNodeRequest(node_id="w1")) == (
        PRECONDITION,
        "node w1 is not down and can't be removed",
    )
    assert await api.refusal("RemoveNode", RemoveNodeRequest(node_id="w2")) == (
        grpc.StatusCode.INTERNAL,
        "could not fetch cluster object",
    )
    await api.put(cluster)
    await api.call("RemoveNode", RemoveNodeRequest(node_id="w2"))
    await api.call("RemoveNode", RemoveNodeRequest(node_id="w1", force=True))
    assert [node.id for node in api.store.find(Node)] == ["m1"]


async def test_removing_a_node_blacklists_its_certificate_and_orphans_its_tasks(
    api: Api, cluster: Cluster, root: RootCA
) -> None:
    cluster.blacklisted_certificates["old"].expiry.seconds = NOW - 7 * 24 * 3600 - 1
    cluster.blacklisted_certificates["recent"].expiry.seconds = NOW - 7 * 24 * 3600
    cluster.blacklisted_certificates["for ever"].SetInParent()
    node = a_node("w1", state=NodeStatus.DOWN)
    node.certificate.certificate = root.certs
    unreadable = a_node("w2", state=NodeStatus.DOWN)
    unreadable.certificate.certificate = b"junk"
    tasks = [Task(id=f"t{n}", node_id="w1") for n in range(3)]
    tasks[0].status.state = RUNNING
    tasks[0].status.container.pid = 5
    tasks[1].status.state = COMPLETE
    tasks[2].node_id = "elsewhere"
    await api.put(cluster, node, unreadable, *tasks)
    await api.call("RemoveNode", RemoveNodeRequest(node_id="w1"))
    await api.call("RemoveNode", RemoveNodeRequest(node_id="w2"))
    stored = api.store.get(Cluster, "cluster")
    assert stored is not None
    listed = stored.blacklisted_certificates
    assert set(listed) == {"recent", "for ever", "w1", "w2"}
    assert listed["w1"].expiry.seconds > NOW
    assert not listed["w2"].HasField("expiry")
    orphan, complete, other = (api.store.get(Task, f"t{n}") for n in range(3))
    assert orphan is not None
    assert orphan.status.state == ORPHANED
    assert orphan.status.message == "Task belonged to a node that has been deleted"
    assert orphan.status.timestamp.seconds == NOW
    assert not orphan.status.HasField("container")
    assert (complete, other) == (tasks[1], tasks[2])


# -- tasks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        ({}, ["t1", "t2", "t3"]),
        ({"names": ["web.1.t1"]}, ["t1"]),
        ({"names": ["WEB.1.t1"]}, []),
        ({"name_prefixes": ["web.", "named"]}, ["t1", "t2", "t3"]),
        ({"id_prefixes": ["t1", "t2"], "node_ids": ["n2"]}, ["t2"]),
        ({"labels": {"tier": "front"}}, ["t1"]),
        ({"service_ids": ["s1"]}, ["t1", "t2"]),
        ({"service_ids": ["s1", "s2"], "desired_states": [SHUTDOWN]}, ["t2"]),
        ({"node_ids": ["n1"]}, ["t1", "t3"]),
        ({"desired_states": [RUNNING, SHUTDOWN]}, ["t1", "t2"]),
        ({"runtimes": ["container"]}, ["t1", "t2"]),
        ({"runtimes": ["special"]}, ["t3"]),
        ({"up_to_date": True}, ["t1"]),
    ],
    ids=str,
)
async def test_listing_tasks(api: Api, filters: dict[str, object], ids: list[str]) -> None:
    service = Service(id="s1", spec=a_spec())
    t1 = Task(id="t1", service_id="s1", slot=1, node_id="n1", desired_state=RUNNING, spec=service.spec.task)
    t1.service_annotations.name = "web"
    t1.service_annotations.labels["tier"] = "front"
    t2 = Task(id="t2", service_id="s1", node_id="n2", desired_state=SHUTDOWN)
    t2.annotations.name = "named"
    t2.spec.container.image = "other"
    t3 = Task(id="t3", service_id="s2", slot=3, node_id="n1")
    t3.service_annotations.name = "web"
    t3.spec.generic.kind = "Special"
    await api.put(service, t1, t2, t3)
    request = ListTasksRequest(filters=ListTasksRequest.Filters(**filters))  # type: ignore[arg-type]
    assert [task.id for task in (await api.call("ListTasks", request)).tasks] == ids


async def test_tasks_of_an_older_spec_version_are_up_to_date_while_their_spec_is_the_same(api: Api) -> None:
    service = Service(id="s1", spec=a_spec())
    service.spec_version.index = 9
    same = Task(id="same", service_id="s1", spec=service.spec.task)
    same.spec_version.index = 5
    stamped = Task(id="stamped", service_id="s1")
    stamped.spec.container.image = "other"
    stamped.spec_version.index = 9
    await api.put(service, same, stamped)
    request = ListTasksRequest()
    request.filters.up_to_date = True
    assert [task.id for task in (await api.call("ListTasks", request)).tasks] == ["same", "stamped"]


async def test_a_task_is_read_and_removed_at_once_whatever_its_state(api: Api) -> None:
    task = Task(id="t1")
    task.status.state = RUNNING
    await api.put(task)
    assert (await api.call("GetTask", GetTaskRequest(task_id="t1"))).task == task
    await api.call("RemoveTask", RemoveTaskRequest(task_id="t1"))
    assert api.store.find(Task) == []
