"""Stores for the tests: real engines on temporary directories, and a clock turned by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from procs.manager.store import Store
from procs.manager.store.sqlite import SqliteEngine


@dataclass
class HandClock:
    """Time that moves only when a test says so."""

    seconds: float = 1_700_000_000.0

    def monotonic(self) -> float:
        return self.seconds

    def wall_ns(self) -> int:
        return int(self.seconds * 1_000_000_000)

    def turn(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "manager" / "store.db"


@pytest.fixture
async def store(database: Path, clock: HandClock) -> AsyncIterator[Store]:
    opened = await Store.open(SqliteEngine(database), clock=clock)
    yield opened
    await opened.close()
