"""The directories of tasks: the spec written before a start, all of it removed at the end. In a thread of its own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from procs.agent.dependencies import withdraw
from procs.agent.executor import Resolved
from swarm.errors import CorruptFile
from swarm.identity import ID_LENGTH
from swarm.paths import Paths
from swarm.workload import EXIT, SPEC, VERSION, WORK, TaskExit

_ID = re.compile(rf"[0-9a-z]{{{ID_LENGTH}}}")


class TaskFiles:
    """Access to `tasks/<id>/`."""

    def __init__(self, paths: Paths, memory: Path | None = None) -> None:
        """`memory`: where tasks get their secrets and configs, if anywhere."""
        self._paths = paths
        self._memory = memory
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="agent-files")

    async def prepare(self, tasks: Sequence[Resolved]) -> dict[str, str]:
        """Write the specs; per task an empty text, or what went wrong."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._prepare, tasks)

    async def remove(self, ids: Sequence[str]) -> dict[str, str]:
        """Remove the directories; per task an empty text, or what went wrong."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._remove, ids)

    async def withdraw(self, ids: Sequence[str]) -> dict[str, str]:
        """Remove the secrets and configs of tasks that have ended; per task an empty text, or what went wrong."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._withdraw, ids)

    async def leftovers(self) -> list[str]:
        """Ids of all tasks that have a directory."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._list)

    def exit(self, task_id: str) -> TaskExit | None:
        """How the task ended, if the workload wrote it down."""
        try:
            return TaskExit.load(self._paths.task(task_id) / EXIT)
        except FileNotFoundError:
            return None
        except CorruptFile as error:
            return TaskExit(task_id=task_id, boot_id="", why=f"how it ended is not known: {error.message}")

    def close(self) -> None:
        self._thread.shutdown(wait=True)

    def _prepare(self, tasks: Sequence[Resolved]) -> dict[str, str]:
        results = {}
        for task in tasks:
            try:
                self._write(task)
                results[task.spec.task_id] = ""
            except OSError as error:
                results[task.spec.task_id] = f"the task's directory could not be written: {error}"
        return results

    def _write(self, task: Resolved) -> None:
        """Replace the spec at once for every reader; not for a power cut, which ends the task anyway (no fsync: two
        of them a task would be most of what a start costs)."""
        directory = self._paths.task(task.spec.task_id)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if task.work_owner is not None:
            work = directory / WORK
            work.mkdir(mode=0o700, exist_ok=True)
            os.chown(work, *task.work_owner)
        if task.private is not None:
            task.private.write()
        temporary = directory / f".{SPEC}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            out.write(json.dumps({"version": VERSION, **asdict(task.spec)}).encode())
        os.rename(temporary, directory / SPEC)

    def _withdraw(self, ids: Sequence[str]) -> dict[str, str]:
        results = dict.fromkeys(ids, "")
        if self._memory is None:
            return results
        for task_id in ids:
            try:
                withdraw(self._memory / task_id)
            except OSError as error:
                results[task_id] = f"its secrets and configs could not be removed: {error}"
        return results

    def _remove(self, ids: Sequence[str]) -> dict[str, str]:
        results = self._withdraw(ids)
        for task_id in [task_id for task_id, error in results.items() if not error]:
            try:
                shutil.rmtree(self._paths.task(task_id))
            except FileNotFoundError:
                continue
            except OSError as error:
                results[task_id] = f"{self._paths.task(task_id)} could not be removed: {error}"
        return results

    def _list(self) -> list[str]:
        try:
            return [name for name in os.listdir(self._paths.tasks) if _ID.fullmatch(name)]
        except FileNotFoundError:
            return []
