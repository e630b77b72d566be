"""SIGKILL of a process in the middle of writing to its store: what it acknowledged is there, nothing is half there."""

from __future__ import annotations

import asyncio
import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from procs.manager.datakey import KeyRing, Rotation
from procs.manager.store import Store
from procs.manager.store.sealing import SealedEngine, Sealer
from procs.manager.store.sqlite import SqliteEngine
from swarm.api import objects_pb2 as objects
from swarm.clock import SystemClock
from swarm.paths import Paths
from swarm.pki.dek import PENDING
from swarm.pki.keyfile import KeyFile
from tests.tools.authority import Authority

ROUNDS = 50
ROTATIONS = 6

WRITER = """
import asyncio, os, sys
from pathlib import Path
from procs.manager.store import Store
from procs.manager.store.sqlite import SqliteEngine
from swarm.api import objects_pb2 as objects
from swarm.clock import SystemClock

async def write_on(store, lane):
    number = len([task for task in store.find(objects.Task) if task.id.startswith(f"{lane}-")]) // 2
    while True:
        def write(tx):
            for half in "ab":
                task = objects.Task(id=f"{lane}-{number:06}{half}")
                task.spec.container.args.append("x" * 3000)
                tx.create(task)
            tx.put_side(f"newest-{lane}", str(number).encode())
        await store.update(write)
        os.write(1, f"{lane}-{number:06}\\n".encode())
        number += 1

async def main():
    store = await Store.open(SqliteEngine(Path(sys.argv[1])), clock=SystemClock())
    os.write(1, b"open\\n")
    await asyncio.gather(*(write_on(store, lane) for lane in range(4)))

asyncio.run(main())
"""


ROTATOR = """
import asyncio, os, sys
from pathlib import Path
from procs.manager import datakey
from procs.manager.datakey import KeyRing, Rotation
from procs.manager.store import Store
from procs.manager.store.sealing import SealedEngine, Sealer
from procs.manager.store.sqlite import SqliteEngine
from swarm.api import objects_pb2 as objects
from swarm.clock import SystemClock
from swarm.paths import Paths
from swarm.pki.dek import NEEDS_ROTATION
from swarm.pki.keyfile import KeyFile

datakey.BATCH = 7
paths = Paths(Path(sys.argv[1]), Path(sys.argv[1]) / "r")

async def write_on(store):
    number = store.count(objects.Task)
    while True:
        task = objects.Task(id=f"{number:06}")
        task.spec.container.args.append("x" * 300)
        await store.update(lambda tx: tx.create(task))
        os.write(1, f"{number:06}\\n".encode())
        number += 1
        await asyncio.sleep(0.002)

async def rotate_on(rotation):
    while True:
        await rotation.rotate()
        os.write(1, b"rotated\\n")
        await asyncio.to_thread(
            KeyFile.of(paths).view_and_update_headers, lambda present: {**present, NEEDS_ROTATION: "true"}
        )

async def main():
    ring, file = KeyRing(paths), paths.manager / "store.db"
    keys = ring.read(store_exists=file.exists())
    sealer = Sealer("cluster", keys.current, [keys.pending] if keys.pending else [])
    engine = SealedEngine(SqliteEngine(file), sealer)
    store = await Store.open(engine, clock=SystemClock())
    os.write(1, b"open\\n")
    await asyncio.gather(write_on(store), rotate_on(Rotation(ring, engine, store)))

asyncio.run(main())
"""


def run_and_kill(path: Path, after: float, script: str = WRITER) -> tuple[bool, list[str]]:
    """Start a writer, kill it `after` seconds after its store is open (or before that, if negative); what it said."""
    writer = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    said = b""
    deadline = time.monotonic() + 20
    kill_at = None if after >= 0 else time.monotonic() + 0.3 - after
    while kill_at is None or time.monotonic() < kill_at:
        assert time.monotonic() < deadline, "the writer never opened its store"
        wait = 0.05 if kill_at is None else max(0.0, kill_at - time.monotonic())
        if select.select([writer.stdout], [], [], wait)[0]:
            said += os.read(writer.stdout.fileno(), 65536)
            assert said, "the writer ended by itself"
        if kill_at is None and said.startswith(b"open\n"):
            kill_at = time.monotonic() + after
    writer.send_signal(signal.SIGKILL)
    said += writer.stdout.read()
    writer.wait()
    writer.stdout.close()
    lines = said.decode().split("\n")[:-1]
    return lines[:1] == ["open"], lines[1:]


@pytest.mark.timeout(180)
def test_fifty_kills_lose_no_acknowledged_write_and_leave_no_half(tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    dice = random.Random(seed)
    path = tmp_path / "store.db"
    acknowledged: set[str] = set()

    async def check() -> None:
        store = await Store.open(SqliteEngine(path), clock=SystemClock())
        ids = {task.id for task in store.find(objects.Task)}
        whole = {id_[:-1] for id_ in ids}
        assert ids == {id_ + half for id_ in whole for half in "ab"}, f"half a transaction (seed {seed})"
        assert acknowledged <= whole, f"lost {acknowledged - whole} (seed {seed})"
        for lane in range(4):
            mine = sorted(int(id_.partition("-")[2]) for id_ in whole if id_.startswith(f"{lane}-"))
            assert mine == list(range(len(mine))), f"a gap in lane {lane} (seed {seed})"
            newest = store.side(f"newest-{lane}")
            assert (int(newest) if newest else -1) == len(mine) - 1
        await store.close()

    for number in range(ROUNDS):
        _, lines = run_and_kill(path, dice.uniform(0.0, 0.08) if number % 10 else dice.uniform(-0.2, 0.0))
        acknowledged.update(lines)
        if number % 5 == 4:
            asyncio.run(check())
    assert len(acknowledged) > ROUNDS


@pytest.mark.timeout(180)
def test_killed_while_its_data_key_is_replaced_the_store_opens_and_has_all_that_was_acknowledged(
    tmp_path: Path,
) -> None:
    seed = random.randrange(10**6)
    dice = random.Random(seed)
    paths = Paths(tmp_path / "s", tmp_path / "r")
    Authority().bootstrap(paths)
    acknowledged: set[str] = set()
    rotated = pending = 0
    for _ in range(ROTATIONS):
        opened, lines = run_and_kill(paths.state, dice.uniform(0.0, 0.4), ROTATOR)
        assert opened
        acknowledged.update(line for line in lines if line != "rotated")
        rotated += lines.count("rotated")
        pending += PENDING in KeyFile.of(paths).read_headers()[0]
    assert rotated
    assert pending, f"never killed in the middle (seed {seed})"

    async def check() -> None:
        ring, file = KeyRing(paths), paths.manager / "store.db"
        keys = ring.read(store_exists=True)
        engine = SealedEngine(SqliteEngine(file), Sealer("cluster", keys.current, [keys.pending or keys.current]))
        store = await Store.open(engine, clock=SystemClock())
        ids = {task.id for task in store.find(objects.Task)}
        assert acknowledged <= ids, f"lost {acknowledged - ids} (seed {seed})"
        await Rotation(ring, engine, store).rotate()
        await store.close()
        store = await Store.open(
            SealedEngine(SqliteEngine(file), Sealer("cluster", ring.read(store_exists=True).current)),
            clock=SystemClock(),
        )
        assert {task.id for task in store.find(objects.Task)} == ids
        await store.close()

    asyncio.run(check())
