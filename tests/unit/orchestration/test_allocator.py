"""NEW to PENDING (reference manager §8.1, §8.4)."""

from __future__ import annotations

from procs.manager.allocator.allocator import MESSAGE, NO_NETWORKS, Allocator
from swarm.api.objects_pb2 import Task
from swarm.api.types_pb2 import NEW, PENDING, REMOVE, RUNNING
from tests.unit.orchestration.world import World


def task(id_="x", *, desired=RUNNING, network=""):
    made = Task(id=id_, service_id="s", slot=1, desired_state=desired)
    made.status.message = "created"
    if network:
        made.spec.networks.add(target=network)
    return made


def test_a_task_without_networks_is_pending_at_once() -> None:
    w = World(Allocator())
    w.put(task())
    w.settle()
    status = w.get(Task, "x").status
    assert (status.state, status.message, status.timestamp.ToNanoseconds()) == (PENDING, MESSAGE, w.wall_ns)


def test_new_tasks_of_before_the_start_are_found() -> None:
    w = World()
    w.put(task())
    late = World(Allocator())
    late.tables = w.tables
    late.components[0].resync(late)
    late.settle()
    assert late.get(Task, "x").status.state == PENDING


def test_a_task_that_needs_a_network_says_so_once_and_stays_new() -> None:
    w = World(Allocator())
    w.put(task(network="n"))
    w.settle()
    status = w.get(Task, "x").status
    assert (status.state, status.message, status.err) == (NEW, "created", NO_NETWORKS)
    index = w.index
    w.replace(w.components[0], Allocator())
    w.settle()
    assert w.index == index


def test_a_task_that_shall_go_is_not_allocated() -> None:
    w = World(Allocator())
    w.put(task(desired=REMOVE))
    w.settle()
    assert w.get(Task, "x").status.state == NEW
