"""What is known of each task's process right now, and looking again where nobody tells.

Two things are not told by anyone: a process that its dying supervisor takes along (PDEATHSIG) has no pidfd of ours, and
a word of the plug-in may be lost. Both are looked for again, ever less often, only while something is amiss.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Mapping

from procs.agent.entry import Entry
from procs.agent.files import TaskFiles
from procs.agent.plugin import SETTLE, Plugin
from procs.agent.processes import UNKNOWN, Instance, Lost, Observation, Phase, Processes, judge, start_ticks
from swarm.backoff import Backoff, BackoffPolicy
from swarm.clock import Clock

RECHECK = BackoffPolicy(base=0.02, factor=1.5, cap=1.0)
"""Between two looks at processes that should be ending by themselves."""
ORPHAN_GRACE = 2.0
"""Seconds after which a process that outlived its supervisor is killed by us."""


class Watcher:
    """Observes entries of `entries`; calls `poke` for those that are worth another look."""

    def __init__(
        self,
        entries: Mapping[str, Entry],
        poke: Callable[[Entry], None],
        *,
        plugin: Plugin,
        processes: Processes,
        files: TaskFiles,
        clock: Clock,
        log: logging.Logger,
    ) -> None:
        self._entries = entries
        self._poke = poke
        self._plugin = plugin
        self._processes = processes
        self._files = files
        self._clock = clock
        self._log = log
        self._recheck: asyncio.TimerHandle | None = None
        self._backoff = Backoff(RECHECK, uniform=lambda _, bound: bound)
        self._settle: asyncio.TimerHandle | None = None

    def observe(self, entry: Entry) -> Observation:
        """What is known of the process of a task."""
        known = self._processes.observe(entry.id)
        if known is not None:
            return known
        if entry.starting or entry.awaiting:
            return UNKNOWN
        row = entry.row
        seen = judge(
            Lost(row.id, row.instance, row.pid, row.start_ticks),
            attached=self._plugin.attached,
            current=self._plugin.current,
            exit_file=lambda: self._files.exit(row.id),
        )
        if seen.phase is Phase.UNKNOWN and self._plugin.attached:
            self._recheck_later()
        return seen

    def word_expected(self) -> None:
        """A task was started and its topic must come; take a snapshot if it does not within SETTLE."""
        if self._settle is None:
            self._settle = asyncio.get_running_loop().call_later(SETTLE, self._settled)

    def close(self) -> None:
        for timer in (self._recheck, self._settle):
            if timer is not None:
                timer.cancel()

    def _settled(self) -> None:
        self._settle = None
        if any(entry.awaiting for entry in self._entries.values()):
            self._plugin.look_again()

    def _recheck_later(self) -> None:
        if self._recheck is None:
            self._recheck = asyncio.get_running_loop().call_later(self._backoff.failed(), self._look)

    def _look(self) -> None:
        self._recheck = None
        if self._plugin.instance is None:
            self._plugin.look_again()
        now = self._clock.monotonic()
        for entry in list(self._entries.values()):
            if entry.machine is None or entry.machine.operation is not None:
                self._end_orphan(entry, now)
                self._poke(entry)
        if self._recheck is None:
            self._backoff.reset()

    def _end_orphan(self, entry: Entry, now: float) -> None:
        row = entry.row
        instance = Instance.parse(row.instance)
        known = entry.id in self._processes
        if known or instance is None or instance.alive() or not row.pid or start_ticks(row.pid) != row.start_ticks:
            entry.lost_since = 0.0
        elif not entry.lost_since:
            entry.lost_since = now
        elif now - entry.lost_since >= ORPHAN_GRACE:
            self._log.warning("task %s outlived its supervisor; killing pid %d", row.id, row.pid)
            os.kill(row.pid, signal.SIGKILL)
