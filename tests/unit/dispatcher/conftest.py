from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from procs.manager.store import Store
from procs.manager.store.sqlite import SqliteEngine
from swarm.clock import SystemClock


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await Store.open(SqliteEngine(tmp_path / "store.db"), clock=SystemClock())
    yield opened
    await opened.close()
