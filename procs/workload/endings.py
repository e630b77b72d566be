"""Writes `tasks/<id>/exit`, durably and beside supervisord's loop.

A durable write is two fsyncs, some milliseconds each on a busy disk, and a thousand tasks may end at once: the loop
publishes an end at once and leaves the file to this thread. The file matters to who starts after us; while we live,
our snapshot says the same.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

from swarm.workload import TaskExit

RETRY = 5.0
"""Seconds after a write that failed (a full disk)."""


class Endings:
    """The ends that are not on disk yet. All methods may be called from supervisord's loop; none waits for long."""

    def __init__(self, path: Callable[[str], Path]) -> None:
        """`path` names the exit file of a task."""
        self._path = path
        self._changed = threading.Condition()
        self._waiting: dict[str, TaskExit] = {}
        self._writing = ""
        self._closing = False
        self._thread: threading.Thread | None = None
        self.troubles: deque[str] = deque(maxlen=100)
        """What went wrong, for the loop to log: supervisor's logger is not made for threads."""

    def write(self, end: TaskExit) -> None:
        """Have `end` written soon."""
        with self._changed:
            self._waiting[end.task_id] = end
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="endings", daemon=True)
                self._thread.start()

    def forget(self, tasks: Iterable[str]) -> None:
        """The directories of these tasks are about to be removed: after this returned nothing is written into them."""
        wanted = set(tasks)
        with self._changed:
            for task_id in wanted & self._waiting.keys():
                del self._waiting[task_id]
            # one write under way at most, some milliseconds
            self._changed.wait_for(lambda: self._writing not in wanted)

    def close(self, deadline: float) -> list[str]:
        """Write what is left, within `deadline` seconds. Returns the ids that could not be written."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(deadline)
        with self._changed:
            return sorted({*self._waiting, *([self._writing] if self._writing else [])})

    def _run(self) -> None:
        while (end := self._next()) is not None:
            failed = ""
            try:
                end.save(self._path(end.task_id))
            except OSError as error:
                failed = f"{self._path(end.task_id)}: cannot be written: {error.strerror}"
            with self._changed:
                self._writing = ""
                self._changed.notify_all()
                if failed:
                    self.troubles.append(failed)
                    self._waiting.setdefault(end.task_id, end)
                    if self._closing:
                        return
                    self._changed.wait_for(lambda: self._closing, RETRY)

    def _next(self) -> TaskExit | None:
        """The oldest end, waiting for one; None when closing and nothing is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            if not self._waiting:
                return None
            self._writing = next(iter(self._waiting))
            return self._waiting.pop(self._writing)
