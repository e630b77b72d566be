"""Filters, their order and their words (reference manager §7.2, §10.11)."""

from __future__ import annotations

import pytest

from procs.manager.scheduler.filters import FILTERS, Pipeline, needs_process
from procs.manager.scheduler.nodeset import NodeInfo
from swarm.api.objects_pb2 import Task
from swarm.api.specs_pb2 import NodeSpec
from swarm.api.types_pb2 import NodeStatus
from tests.unit.orchestration.world import NS, node


def info(*args, **kwargs) -> NodeInfo:
    made = NodeInfo(args[0])
    made.describe(node(*args, **kwargs))
    return made


def task(*, image="nginx", constraints=(), cpu=0.0, memory=0, platforms=(), max_replicas=0) -> Task:
    made = Task(id="t", service_id="s")
    made.spec.container.image = image
    made.spec.placement.constraints.extend(constraints)
    made.spec.placement.max_replicas = max_replicas
    for os_, architecture in platforms:
        made.spec.placement.platforms.add(os=os_, architecture=architecture)
    made.spec.resources.reservations.nano_cpus = int(cpu * NS)
    made.spec.resources.reservations.memory_bytes = memory
    return made


def passes(task_: Task, info_: NodeInfo) -> bool:
    return Pipeline(task_).passes(info_)


def test_the_order_is_swarmkits() -> None:
    assert [filter_.name for filter_ in FILTERS] == [
        "ready",
        "resources",
        "runtime",
        "constraints",
        "platform",
        "max_replicas",
    ]


@pytest.mark.parametrize(
    ("state", "availability", "suitable"),
    [
        (NodeStatus.READY, NodeSpec.ACTIVE, True),
        (NodeStatus.READY, NodeSpec.PAUSE, False),
        (NodeStatus.READY, NodeSpec.DRAIN, False),
        (NodeStatus.UNKNOWN, NodeSpec.ACTIVE, False),
        (NodeStatus.DOWN, NodeSpec.ACTIVE, False),
        (NodeStatus.DISCONNECTED, NodeSpec.ACTIVE, False),
    ],
)
def test_only_ready_and_active_nodes_get_tasks(state, availability, suitable) -> None:
    assert passes(task(), info("a", state=state, availability=availability)) == suitable


@pytest.mark.parametrize(
    ("cpu", "memory", "suitable"),
    [(2, 0, True), (2.1, 0, False), (0, 100, True), (0, 101, False), (2, 100, True), (1, 101, False)],
)
def test_reservations_must_be_available(cpu, memory, suitable) -> None:
    assert passes(task(cpu=cpu, memory=memory), info("a", cpu=2, memory=100)) == suitable


def test_without_reservations_a_full_node_will_do() -> None:
    assert passes(task(), info("a", cpu=0, memory=0))


def test_a_node_that_declares_no_resources_has_none() -> None:
    bare = info("a")
    bare.node.description.ClearField("resources")
    bare.describe(bare.node)
    assert not passes(task(cpu=1), bare)
    assert passes(task(), bare)


@pytest.mark.parametrize(
    ("image", "constraints", "needs"),
    [
        ("host", (), True),
        ("host:latest", (), True),
        ("hostess", (), False),
        ("nginx", (), False),
        ("nginx:host", (), False),
        ("registry/host", (), False),
        ("bundle", ("engine.labels.runtime==process",), True),
        ("bundle", ("Engine.Labels.Runtime == PROCESS",), True),
        ("bundle", ("engine.labels.runtime!=process",), False),
        ("bundle", ("engine.labels.runtime==docker",), False),
        ("bundle", ("engine.labels.runtime~process",), False),
    ],
)
def test_what_needs_a_node_that_runs_processes(image, constraints, needs) -> None:
    assert needs_process(task(image=image, constraints=constraints)) == needs


def test_label_and_plugin_together_make_a_node_that_runs_processes() -> None:
    label_only, plugin_only = info("a"), info("b")
    del label_only.node.description.engine.plugins[:]
    label_only.describe(label_only.node)
    plugin_only.node.description.engine.labels.clear()
    plugin_only.describe(plugin_only.node)
    assert [passes(task(image="host"), i) for i in (info("c"), label_only, plugin_only)] == [True, False, False]
    assert [passes(task(image="nginx"), i) for i in (label_only, plugin_only)] == [True, True]


@pytest.mark.parametrize(
    ("constraint", "suitable"),
    [
        ("node.id==A", True),
        ("node.id!=a", False),
        ("node.hostname==a", True),
        ("node.labels.disk==SSD", True),
        ("node.labels.Disk==ssd", False),
        ("node.labels.none!=x", True),
        ("engine.labels.runtime==process", True),
        ("node.platform.arch==amd64", False),  # no aliases here
        ("node.platform.arch==x86_64", True),
        ("node.role==worker", True),
        ("node.unknown==x", False),
        ("node.unknown!=x", False),
        ("nonsense", False),
    ],
)
def test_constraints(constraint, suitable) -> None:
    assert passes(task(constraints=(constraint,)), info("a", labels={"disk": "ssd"})) == suitable


def test_all_constraints_must_hold() -> None:
    labelled = info("a", labels={"disk": "ssd"})
    assert passes(task(constraints=("node.id==a", "node.labels.disk==ssd")), labelled)
    assert not passes(task(constraints=("node.id==a", "node.labels.disk==hdd")), labelled)


@pytest.mark.parametrize(
    ("platforms", "suitable"),
    [
        ((), True),
        ((("linux", "amd64"),), True),  # the node says x86_64
        ((("linux", "x86_64"),), True),
        ((("linux", ""),), True),
        ((("", "amd64"),), True),
        ((("linux", "arm64"),), False),
        ((("windows", "amd64"),), False),
        ((("windows", "amd64"), ("linux", "amd64")), True),
    ],
)
def test_platforms(platforms, suitable) -> None:
    assert passes(task(platforms=platforms), info("a")) == suitable


def test_a_node_without_platform_suits_no_task_that_names_one() -> None:
    bare = info("a")
    bare.node.description.ClearField("platform")
    assert not passes(task(platforms=(("", ""),)), bare)


def test_max_replicas_counts_active_tasks_of_the_service_on_the_node() -> None:
    full, other = info("a"), info("b")
    full.active_of["s"] = 2
    other.active_of["else"] = 9
    assert not passes(task(max_replicas=2), full)
    assert passes(task(max_replicas=3), full)
    assert passes(task(max_replicas=1), other)


@pytest.mark.parametrize(
    ("task_", "bad", "words"),
    [
        (task(), {"availability": NodeSpec.DRAIN}, "node% not available for new tasks"),
        (task(cpu=99), {}, "insufficient resources on node%"),
        (task(image="host"), {"process": False}, "no process runtime on node%"),
        (task(constraints=("node.id==x",)), {}, "scheduling constraints not satisfied on node%"),
        (task(platforms=(("plan9", ""),)), {}, "unsupported platform on node%"),
    ],
)
def test_the_words(task_, bad, words) -> None:
    nodes = [info(f"n{n}", **bad) for n in range(3)]
    assert Pipeline(task_).explain(nodes[:1]) == words.replace("node%", "1 node")
    assert Pipeline(task_).explain(nodes) == words.replace("node%", "3 nodes")


def test_the_words_of_max_replicas_have_no_number() -> None:
    full = info("a")
    full.active_of["s"] = 1
    assert Pipeline(task(max_replicas=1)).explain([full]) == "max replicas per node limit exceed"


def test_most_nodes_first_then_filter_order_and_each_node_counts_once() -> None:
    drained = {"availability": NodeSpec.DRAIN}
    nodes = [info("a", **drained), info("b", **drained, cpu=0), info("c", cpu=0)]
    assert (
        Pipeline(task(cpu=1)).explain(nodes) == "2 nodes not available for new tasks; insufficient resources on 1 node"
    )
    assert (
        Pipeline(task(cpu=1, image="host")).explain([info("a", process=False), info("b", cpu=0)])
        == "insufficient resources on 1 node; no process runtime on 1 node"
    )
    assert Pipeline(task()).explain([]) == ""
