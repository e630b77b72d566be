from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from procs.agent.database import Acknowledge, Database, DeleteTask, PutSession, PutTask, SessionRow, TaskRow
from swarm.api import objects_pb2, types_pb2
from swarm.errors import CorruptFile


def row(task_id: str = "a", *, state: int = types_pb2.RUNNING, version: int = 1) -> TaskRow:
    status = types_pb2.TaskStatus(state=state, message="started")  # type: ignore[arg-type]
    return TaskRow(task_id, objects_pb2.Task(id=task_id, slot=2), status, version, 0, "boot/1/2", 42, 99, False)


def opened(path: Path, *changes: object) -> Database:
    database = Database(path)
    database.write(changes)  # type: ignore[arg-type]
    return database


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "worker" / "agent.db"


def test_everything_written_is_there_again(path: Path) -> None:
    session = SessionRow("node", "session", "manager", "192.0.2.1:2377")
    opened(path, PutTask(row("b")), PutTask(row("a")), PutSession(session)).close()
    again = Database(path)
    assert again.load() == (session, [row("a"), row("b")])
    again.close()
    assert path.stat().st_mode & 0o077 == 0


def test_a_new_database_is_empty_and_opening_twice_changes_nothing(path: Path) -> None:
    Database(path).close()
    again = Database(path)
    assert again.load() == (SessionRow(), [])
    again.close()
    assert [name for name in os.listdir(path.parent) if name.startswith(".tmp")] == []


def test_acknowledging_never_goes_back_and_deleting_forgets(path: Path) -> None:
    database = opened(path, PutTask(row("a", version=5)), Acknowledge("a", 4), Acknowledge("a", 3))
    assert database.load()[1][0].acknowledged == 4
    database.write([DeleteTask("a"), DeleteTask("never"), Acknowledge("a", 9)])
    assert database.load()[1] == []
    database.close()


def test_a_failing_batch_changes_nothing(path: Path) -> None:
    database = opened(path, PutTask(row("a")))
    bad = row("b")
    bad.version = None  # type: ignore[assignment]
    with pytest.raises(sqlite3.IntegrityError):
        database.write([DeleteTask("a"), PutTask(bad)])
    assert database.load()[1] == [row("a")]
    database.close()


def damage_header(data: bytes) -> bytes:
    return b"junk" * 25 + data[100:]


def damage_pages(data: bytes) -> bytes:
    return data[:100] + os.urandom(4096)[:3996] + data[4096:]


@pytest.mark.parametrize(
    "damage", [damage_header, damage_pages, lambda _: b"", lambda data: data[:1000], lambda _: b"not a database at all"]
)
def test_a_damaged_file_is_refused_with_a_remedy_and_left_as_it_is(path: Path, damage: object) -> None:
    opened(path, *(PutTask(row(f"t{n}")) for n in range(50))).close()
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    before = path.read_bytes()
    with pytest.raises(CorruptFile) as caught:
        Database(path).load()
    assert str(path) in caught.value.message
    assert "move it away" in caught.value.remedy
    assert path.read_bytes() == before


def test_a_row_that_is_no_task_is_refused(path: Path) -> None:
    opened(path, PutTask(row("a"))).close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE tasks SET status = x'ffffffff'")
    connection.commit()
    connection.close()
    database = Database(path)
    with pytest.raises(CorruptFile, match=r"agent\.db"):
        database.load()
    database.close()


def test_a_database_of_another_program_or_release_is_refused(path: Path) -> None:
    path.parent.mkdir()
    for pragma, why in (("user_version = 1", "not a database of the agent"), ("user_version = 9", "schema 9")):
        connection = sqlite3.connect(path)
        connection.execute(f"PRAGMA {pragma}")
        if "9" in pragma:
            connection.execute(f"PRAGMA application_id = {0x53564147}")
        connection.close()
        with pytest.raises(CorruptFile, match=why):
            Database(path)
