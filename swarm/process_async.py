"""`swarm.process.run` for bodies that are coroutines: renewer, agent and manager."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import signal
import traceback
from collections.abc import Awaitable, Callable, Sequence
from types import FrameType
from typing import Any

from swarm import process
from swarm.exits import ExitCode
from swarm.process import Context

_STDERR = 2


def run_async(
    name: str,
    description: str,
    body: Callable[[Context, asyncio.Event], Awaitable[ExitCode]],
    argv: Sequence[str] | None = None,
    *,
    needs_node: bool = True,
) -> int:
    """As `process.run`; the event is set on SIGTERM and SIGINT.

    SIGUSR1 writes the await chains of all tasks beside the stacks of all threads. With `needs_node`, a process of a
    directory without node.toml waits until it is asked to stop (the coordinator says `uninitialized` on the bus).
    """

    def main(context: Context) -> ExitCode:
        return asyncio.run(_main(context, body, needs_node))

    return process.run(name, description, main, argv)


async def _main(
    context: Context, body: Callable[[Context, asyncio.Event], Awaitable[ExitCode]], needs_node: bool
) -> ExitCode:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def asked(number: signal.Signals) -> None:
        stop.set()
        context.stop.ask()
        loop.remove_signal_handler(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked, number)
    # Again, now chained to the loop's own handler: threads from C at once, then the tasks when the loop turns.
    faulthandler.unregister(signal.SIGUSR1)
    loop.add_signal_handler(signal.SIGUSR1, show_tasks, context.log)
    faulthandler.register(signal.SIGUSR1, file=_STDERR, all_threads=True, chain=True)
    if needs_node and not context.paths.node_toml.exists():
        context.log.info("%s is absent: nothing to do until `swarmvisor init`", context.paths.node_toml)
        await stop.wait()
        return ExitCode.DONE
    return await body(context, stop)


def show_tasks(log: logging.Logger) -> None:
    """Write every asyncio task of the running loop, with where it waits, to the log."""
    tasks = sorted(asyncio.all_tasks(), key=lambda t: t.get_name())
    lines: list[str] = []
    for task in tasks:
        lines.append(f"task {task.get_name()}")
        for frame, number in await_chain(task):
            summary = traceback.extract_stack(frame, limit=1)[0]
            lines.append(f"  {summary.filename}:{number} {summary.name}: {summary.line}")
    log.warning("%d asyncio tasks:", len(tasks), extra={"trailer": lines})


def await_chain(task: asyncio.Task[Any]) -> list[tuple[FrameType, int]]:
    """Frames from the task's own coroutine to the one that waits: `Task.get_stack` stops at the first."""
    chain: list[tuple[FrameType, int]] = []
    waiter: Any = task.get_coro()
    while waiter is not None:
        for prefix in ("cr", "gi", "ag"):
            frame = getattr(waiter, f"{prefix}_frame", None)
            if frame is not None:
                chain.append((frame, frame.f_lineno))
                awaited = "gi_yieldfrom" if prefix == "gi" else f"{prefix}_await"
                waiter = getattr(waiter, awaited)
                break
        else:
            return chain
    return chain
