"""A wall clock of their own for the processes of a test, to be stepped at will.

The monotonic clock stays as it is, as on a machine whose date is set. What the kernel tells of such a step
(`swarm.clock.ClockWatch`), a test must say itself.

Not libfaketime: while one thread of a process has it look at its file, another may see the machine's own date, and half
a year's difference for a microsecond is a certificate that is not valid yet.
"""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import subprocess
import time
from pathlib import Path

import pytest

CI = "SWARMVISOR_CI"
SOURCE = Path(__file__).with_name("fakeclock.c")
_OFFSET = struct.Struct("@q")


def need_compiler() -> str:
    """A C compiler. Skips where there is none, and fails on CI."""
    found = shutil.which("tcc") or shutil.which("cc")
    if found is None:
        why = "a stepped clock for real processes needs a C compiler"
        if os.environ.get(CI):
            pytest.fail(why)
        pytest.skip(f"{why} (apt-get install tcc)")
    return found


class FakeClock:
    """`environment` is for the processes; all of them see the same date."""

    def __init__(self, directory: Path) -> None:
        """Raises what `need_compiler` does."""
        library, shared = directory / "fakeclock.so", directory / "clock"
        subprocess.run([need_compiler(), "-shared", "-fPIC", "-o", library, SOURCE], check=True)
        shared.write_bytes(_OFFSET.pack(0))
        with shared.open("r+b") as file:
            self._offset = mmap.mmap(file.fileno(), _OFFSET.size)
        self.environment = {"LD_PRELOAD": str(library), "SWARMVISOR_FAKE_CLOCK": str(shared)}

    def now(self) -> float:
        """Unix seconds, as the processes see them."""
        return time.time() + float(_OFFSET.unpack(self._offset)[0])

    def step(self, seconds: int) -> None:
        """Set the clock forward, for all at once."""
        self._offset[:] = _OFFSET.pack(_OFFSET.unpack(self._offset)[0] + seconds)

    def close(self) -> None:
        """For whoever made it."""
        self._offset.close()
