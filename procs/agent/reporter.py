"""Which statuses still have to reach the manager, without I/O: at most one per task, merged, in order, never backwards.

The sender takes a batch, and says afterwards whether it arrived. What did not arrive is put back unless something newer
is waiting; so each task's newest status arrives at least once and later ones never before earlier ones
(reference agent-and-dispatcher §2.10, made batches per its §10.3).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from swarm.api import types_pb2

MAX_UPDATES = 1000
"""Statuses in one request."""
MAX_BYTES = 3 << 20
"""Bytes of statuses in one request: managers take 4 MiB."""


@dataclass(frozen=True)
class Report:
    """One status on its way: `version` names it in the agent's database."""

    task_id: str
    status: types_pb2.TaskStatus
    version: int


class ReportQueue:
    """Statuses waiting to be sent, and the batch on its way."""

    def __init__(self) -> None:
        self._waiting: dict[str, Report] = {}
        self._sending: dict[str, Report] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._sending)

    @property
    def ready(self) -> bool:
        """Something waits and nothing is on its way (one sender keeps the order)."""
        return bool(self._waiting) and not self._sending

    def put(self, report: Report) -> None:
        """Report this status, unless one waits whose state is higher."""
        waiting = self._waiting.get(report.task_id)
        if waiting is None or report.status.state >= waiting.status.state:
            self._waiting[report.task_id] = report

    def take(self, limit: int = MAX_UPDATES) -> list[Report]:
        """The oldest waiting statuses; they are on their way until `arrived` or `failed`."""
        if self._sending:
            raise ValueError("a batch is on its way already")
        size = 0
        for task_id, report in list(itertools.islice(self._waiting.items(), limit)):
            size += report.status.ByteSize() + len(task_id)
            if size > MAX_BYTES and self._sending:
                break
            self._sending[task_id] = self._waiting.pop(task_id)
        return list(self._sending.values())

    def arrived(self) -> list[Report]:
        """The batch reached the manager; returns what is acknowledged thereby."""
        acknowledged = list(self._sending.values())
        self._sending = {}
        return acknowledged

    def failed(self) -> None:
        """The batch did not reach the manager for sure: back to the front, unless something newer waits."""
        newer, self._waiting = self._waiting, self._sending
        self._sending = {}
        for report in newer.values():
            self.put(report)

    def restart(self, reports: Iterable[Report]) -> None:
        """A new session: what waits is kept, and these are reported (again) as well."""
        if self._sending:
            self.failed()
        for report in reports:
            self.put(report)

    def forget(self, task_id: str) -> None:
        """No status is sent for a removed task."""
        self._waiting.pop(task_id, None)
        self._sending.pop(task_id, None)
