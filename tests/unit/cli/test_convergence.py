"""When a mutating verb considers its result to be there, hopeless, or under way."""

from __future__ import annotations

from procs.cli import convergence
from procs.cli.convergence import judge_gone, judge_service
from swarm.api import objects_pb2, types_pb2


def service(replicas: int, *, condition: int = types_pb2.RestartPolicy.ANY, attempts: int = 0) -> objects_pb2.Service:
    made = objects_pb2.Service(id="s")
    made.spec.replicated.replicas = replicas
    made.spec.task.restart.condition = condition  # type: ignore[assignment]
    made.spec.task.restart.max_attempts = attempts
    return made


def task(slot: int, state: int, desired: int = types_pb2.RUNNING, *, err: str = "", age: int = 0) -> objects_pb2.Task:
    made = objects_pb2.Task(id=f"t{slot}-{state}-{age}", slot=slot, node_id="n", service_id="s")
    made.service_annotations.name = "web"
    made.status.state = state  # type: ignore[assignment]
    made.status.err = err
    made.desired_state = desired  # type: ignore[assignment]
    made.meta.created_at.seconds = made.meta.version.index = 1000 - age
    return made


RUNNING, SHUTDOWN = types_pb2.RUNNING, types_pb2.SHUTDOWN
NONE = types_pb2.RestartPolicy.NONE


def test_done_when_every_replica_runs() -> None:
    assert judge_service(service(2), [task(1, RUNNING), task(2, RUNNING)]).done


def test_not_done_while_a_surplus_task_still_stops() -> None:
    verdict = judge_service(service(1), [task(1, RUNNING), task(2, RUNNING, types_pb2.REMOVE)])
    assert not verdict.done
    assert verdict.line == "1 of 1 running, 1 stopping"


def test_a_pending_task_says_why() -> None:
    held = task(1, types_pb2.PENDING, err="no suitable node (insufficient resources on 1 node)")
    verdict = judge_service(service(1), [held])
    assert verdict.details == ("web.1 is pending: no suitable node (insufficient resources on 1 node)",)
    assert not verdict.hopeless


def test_a_flapping_task_names_its_last_failure_but_is_not_hopeless() -> None:
    ended = task(1, types_pb2.FAILED, SHUTDOWN, err="task: non-zero exit (7)", age=1)
    verdict = judge_service(service(1), [ended, task(1, types_pb2.READY, types_pb2.READY)])
    assert not verdict.hopeless
    assert "web.1 failed before: task: non-zero exit (7)" in verdict.details


def test_hopeless_when_the_policy_never_replaces() -> None:
    ended = task(1, types_pb2.FAILED, SHUTDOWN, err="task: non-zero exit (7)")
    verdict = judge_service(service(1, condition=NONE), [ended])
    assert verdict.hopeless == "web.1 failed: task: non-zero exit (7)"


def test_not_hopeless_while_the_orchestrator_still_owes_a_slot() -> None:
    ended = task(1, types_pb2.FAILED, SHUTDOWN, err="x")
    assert not judge_service(service(3, condition=NONE), [ended, task(2, types_pb2.STARTING)]).hopeless


def test_scaled_to_none_is_done_when_the_last_has_stopped() -> None:
    assert judge_service(service(0), []).done
    assert not judge_service(service(0), [task(1, RUNNING, types_pb2.REMOVE)]).done
    assert judge_service(service(0), [task(1, types_pb2.SHUTDOWN, types_pb2.REMOVE)]).done


def test_gone_when_no_task_is_left() -> None:
    assert judge_gone([]).done
    assert judge_gone([task(1, RUNNING)]).line == "1 task still there"


def test_newest_by_slot_goes_by_creation() -> None:
    older, newer = task(1, types_pb2.FAILED, age=5), task(1, types_pb2.RUNNING, age=1)
    assert convergence.newest_by_slot([newer, older]) == {1: newer}
