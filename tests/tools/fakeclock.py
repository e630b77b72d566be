"""A wall clock of their own for the processes of a test, to be stepped at will: Debian's libfaketime.

The monotonic clock stays as it is, as on a machine whose date is set. What the kernel tells of such a step
(`swarm.clock.ClockWatch`), a test must say itself.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

CI = "SWARMVISOR_CI"
_SHARED_MEMORY = Path("/dev/shm")


def need_faketime() -> Path:
    """The library. Skips where it is missing, and fails on CI."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not found:
        why = "a stepped clock for real processes needs libfaketime"
        if os.environ.get(CI):
            pytest.fail(why)
        pytest.skip(f"{why} (apt-get install faketime)")
    return found[0]


class FakeClock:
    """`environment` is for the processes; all of them see the same date."""

    def __init__(self, directory: Path) -> None:
        """Raises what `need_faketime` does."""
        self._file = directory / "clock"
        self._offset = 0
        self._litter = set(_litter())
        self.environment = {
            "LD_PRELOAD": str(need_faketime()),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            # Else it ends every timed wait for Python's interpreter lock at once, and threads spin.
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
            "NO_FAKE_STAT": "1",
        }
        self.step(0)

    def now(self) -> float:
        """Unix seconds, as the processes see them."""
        return time.time() + self._offset

    def step(self, seconds: int) -> None:
        """Set the clock forward, for all at once."""
        self._offset += seconds
        new = self._file.with_suffix(".new")
        new.write_text(f"{self._offset:+d}\n")
        new.rename(self._file)

    def close(self) -> None:
        """Remove what the library leaves of processes that were killed."""
        for path in set(_litter()) - self._litter:
            path.unlink(missing_ok=True)


def _litter() -> list[Path]:
    return [*_SHARED_MEMORY.glob("faketime_shm_*"), *_SHARED_MEMORY.glob("sem.faketime_sem_*")]
