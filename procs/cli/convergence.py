"""Waiting until the swarm is as it was asked to be: what mutating verbs do unless told `--detach`.

`judge` is pure. The loop around it asks the manager again every `INTERVAL`: the control API of this release has no
Watch yet, so nothing can tell us sooner.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import click

from procs.cli.control import Control, short_name
from procs.cli.progress import Progress
from procs.cli.rows import DEAD, reason, state_name
from swarm.api import objects_pb2, types_pb2
from swarm.errors import SwarmvisorError, TimedOut

INTERVAL = 0.05
"""Seconds between looks for the first two seconds; ten times that later."""
DEFAULT_TIMEOUT = 60.0

STABLE = 0.5
"""Seconds for which the very same tasks must run before a service counts as up: a command that dies at once was
running for a moment too."""


@dataclass(frozen=True)
class Verdict:
    """How far it is: `done`, or why it never will be (`hopeless`), with one line for people."""

    done: bool
    line: str
    details: tuple[str, ...] = ()
    hopeless: str = ""
    settle: tuple[str, ...] = ()
    """Not empty: only done once it stayed so, with exactly these tasks, for `STABLE` seconds."""


def judge_service(service: objects_pb2.Service, tasks: Sequence[objects_pb2.Task]) -> Verdict:
    """Whether every replica of the *current* spec runs and nothing surplus is left of it."""
    desired = service.spec.replicated.replicas
    wanted = [t for t in tasks if t.desired_state <= types_pb2.RUNNING]
    running = [t for t in wanted if t.status.state == types_pb2.RUNNING]
    leaving = [t for t in tasks if t.desired_state > types_pb2.RUNNING and t.status.state < DEAD and t.node_id]
    waiting = sorted((t for t in wanted if t.status.state != types_pb2.RUNNING), key=lambda t: t.slot)
    slots = {t.slot for t in wanted}
    given_up = [
        newest
        for slot, newest in newest_by_slot(tasks).items()
        if slot not in slots and newest.desired_state == types_pb2.SHUTDOWN and newest.status.state >= DEAD
    ]
    line = f"{len(running)} of {desired} running"
    if leaving:
        line += f", {len(leaving)} stopping"
    failures = [t for t in tasks if t.status.state in (types_pb2.FAILED, types_pb2.REJECTED)]
    details = [f"{short_name(t)} is {state_name(t.status.state)}: {reason(t)}" for t in waiting if reason(t)]
    if waiting and failures:
        latest = max(failures, key=lambda t: t.meta.version.index)
        details.append(f"{short_name(latest)} {state_name(latest.status.state)} before: {latest.status.err}")
    hopeless = ""
    if given_up and not service_restarts(service) and len(slots) + len(given_up) >= desired:
        first = min(given_up, key=lambda t: t.slot)
        hopeless = f"{short_name(first)} {state_name(first.status.state)}: {first.status.err or first.status.message}"
    done = len(running) == desired and not waiting and not leaving
    return Verdict(done, line, tuple(details), hopeless, tuple(sorted(t.id for t in running)))


def newest_by_slot(tasks: Sequence[objects_pb2.Task]) -> dict[int, objects_pb2.Task]:
    """The newest task of each slot."""
    newest: dict[int, objects_pb2.Task] = {}
    for task in sorted(tasks, key=lambda t: (t.meta.created_at.seconds, t.meta.created_at.nanos, t.id)):
        newest[task.slot] = task
    return newest


def service_restarts(service: objects_pb2.Service) -> bool:
    """Whether ended tasks are replaced without end."""
    policy = service.spec.task.restart
    if not service.spec.task.HasField("restart"):
        return True
    return policy.condition == types_pb2.RestartPolicy.ANY and not policy.max_attempts


def judge_gone(tasks: Sequence[objects_pb2.Task]) -> Verdict:
    """Whether no task is left (a removed service, a drained node)."""
    return Verdict(not tasks, f"{len(tasks)} task{'s' if len(tasks) != 1 else ''} still there")


def wait(
    look: Callable[[], Verdict],
    *,
    what: str,
    timeout: float,
    remedy: str = "it goes on; look again with `swarmvisor service ps`",
) -> None:
    """Look until done. Raises TimedOut with what is missing, SwarmvisorError if it can never be done."""
    started = time.monotonic()
    deadline = started + timeout
    pause = threading.Event()
    settling: tuple[tuple[str, ...], float] = ((), started)
    with Progress() as tell:
        while True:
            verdict = look()
            if not verdict.done or verdict.settle != settling[0]:
                settling = (verdict.settle if verdict.done else (), time.monotonic())
            if verdict.done and (not verdict.settle or time.monotonic() - settling[1] >= STABLE):
                return
            if verdict.hopeless:
                raise SwarmvisorError(
                    f"{what} did not come up: {verdict.hopeless}", remedy="its restart policy gave up"
                )
            now = time.monotonic()
            if now >= deadline and not verdict.done:
                reasons = "; ".join(verdict.details)
                raise TimedOut(
                    f"{what} is not there after {timeout:g} s: {verdict.line}{': ' + reasons if reasons else ''}",
                    remedy=remedy,
                )
            tell("; ".join([f"{what}: {verdict.line}", *verdict.details[:3]]))
            pause.wait(min(INTERVAL if now - started < 2 else INTERVAL * 10, max(0.01, deadline - now)))


def wait_service(control: Control, service_id: str, *, timeout: float) -> None:
    """Wait until the service runs as its newest spec says."""

    def look() -> Verdict:
        service = control.find_service(service_id)
        return judge_service(service, control.tasks(service_ids=[service_id]))

    wait(look, what="service", timeout=timeout)


def wait_gone(control: Control, service_id: str, *, what: str, timeout: float) -> None:
    """Wait until a removed service has no task left."""
    wait(lambda: judge_gone(control.tasks(service_ids=[service_id])), what=what, timeout=timeout)


def wait_drained(control: Control, node_id: str, *, what: str, timeout: float) -> None:
    """Wait until nothing runs on a node any more."""

    def look() -> Verdict:
        return judge_gone([t for t in control.tasks(node_ids=[node_id]) if t.status.state < DEAD])

    wait(look, what=what, timeout=timeout)


def waiting_options(command: Callable[..., object]) -> Callable[..., object]:
    """`--detach` and `--timeout`, which every mutating verb has."""
    command = click.option(
        "--timeout", type=float, default=DEFAULT_TIMEOUT, show_default=True, help="Seconds to wait for the result."
    )(command)
    return click.option("-d", "--detach", is_flag=True, help="Return at once, without waiting for the result.")(command)
