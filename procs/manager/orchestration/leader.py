"""What runs on the leader to make tasks follow services, as one task group."""

from __future__ import annotations

import asyncio
import logging

from procs.manager.allocator.allocator import Allocator
from procs.manager.orchestration.component import Component, run
from procs.manager.orchestration.enforcer import ConstraintEnforcer
from procs.manager.orchestration.reaper import Reaper
from procs.manager.orchestration.replicated import Replicated
from procs.manager.orchestration.supervisor import RestartSupervisor
from procs.manager.scheduler.scheduler import Scheduler
from procs.manager.store import Store
from swarm.clock import Clock

_log = logging.getLogger(__name__)


def components() -> list[Component]:
    """A fresh one of each. Where one commit concerns several, they write in this order."""
    return [ConstraintEnforcer(), RestartSupervisor(), Replicated(), Allocator(), Scheduler(), Reaper()]


async def lead(store: Store, clock: Clock) -> None:
    """Run all components until cancelled. If one of them ends, all are cancelled and its error is raised (in an
    ExceptionGroup, as task groups do): the caller ends the term."""
    async with asyncio.TaskGroup() as group:
        for component in components():
            group.create_task(_named(component, store, clock), name=component.name)


async def _named(component: Component, store: Store, clock: Clock) -> None:
    try:
        await run(component, store, clock)
    except Exception as error:
        _log.error("component %s ended: %s", component.name, error)
        raise
