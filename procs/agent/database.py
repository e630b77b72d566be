"""`worker/agent.db`: what the agent must know again after it was killed (DESIGN §5, §8).

Assigned tasks with their newest status, which of these the manager has acknowledged, the process that runs each, and
the session to resume. SQLite, WAL, `synchronous=FULL`; every commit carries whatever has queued up meanwhile, so that a
thousand statuses cost a handful of fsyncs. All access is from one thread; `Database` itself has no asyncio in it.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from swarm.api import objects_pb2, types_pb2
from swarm.errors import CorruptFile
from swarm.files import fsync_directory

APPLICATION_ID = 0x53564147
"""`SVAG` in the header of the file."""
SCHEMA_VERSION = 1
_SCHEMA = f"""
CREATE TABLE session (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    node_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    manager_id TEXT NOT NULL,
    manager_addr TEXT NOT NULL
) STRICT;
CREATE TABLE tasks (
    id TEXT PRIMARY KEY,
    task BLOB NOT NULL,
    status BLOB NOT NULL,
    version INTEGER NOT NULL,
    acknowledged INTEGER NOT NULL,
    instance TEXT NOT NULL,
    pid INTEGER NOT NULL,
    start_ticks INTEGER NOT NULL,
    removing INTEGER NOT NULL
) STRICT;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""


@dataclass(frozen=True)
class SessionRow:
    """The session to resume."""

    node_id: str = ""
    session_id: str = ""
    manager_id: str = ""
    manager_addr: str = ""


@dataclass
class TaskRow:
    """One assigned task as it is stored."""

    id: str
    task: objects_pb2.Task
    """As assigned, with an empty status."""
    status: types_pb2.TaskStatus
    version: int = 0
    """Counts changes of `status`."""
    acknowledged: int = 0
    """The newest version that a manager has taken."""
    instance: str = ""
    """Which workload supervisord was asked to start it (`runtime.Instance.name`), empty: none yet."""
    pid: int = 0
    start_ticks: int = 0
    removing: bool = False
    """No longer assigned: its process and files are being removed, then the row goes."""


@dataclass(frozen=True)
class PutTask:
    """Write the whole row."""

    row: TaskRow


@dataclass(frozen=True)
class Acknowledge:
    """A manager has taken this version of the status."""

    id: str
    version: int


@dataclass(frozen=True)
class DeleteTask:
    """Forget the task."""

    id: str


@dataclass(frozen=True)
class PutSession:
    """Remember the session."""

    row: SessionRow


Change = PutTask | Acknowledge | DeleteTask | PutSession


class Database:
    """The open file. Raises CorruptFile (naming file and remedy) when it cannot be used, and leaves it as it is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            _create(path)
        self._connection = self._open()

    def load(self) -> tuple[SessionRow, list[TaskRow]]:
        """Everything, tasks in the order of their ids."""
        try:
            found = self._connection.execute(
                "SELECT node_id, session_id, manager_id, manager_addr FROM session"
            ).fetchone()
            rows = self._connection.execute(
                "SELECT id, task, status, version, acknowledged, instance, pid, start_ticks, removing"
                " FROM tasks ORDER BY id"
            ).fetchall()
            return SessionRow(*found) if found else SessionRow(), [_row(fields) for fields in rows]
        except (sqlite3.DatabaseError, DecodeError) as error:
            raise self._corrupt(error) from error

    def write(self, changes: Iterable[Change]) -> None:
        """Make all changes durable in one transaction; all or none on an error (sqlite3.Error)."""
        with self._connection:
            for change in changes:
                self._apply(change)

    def close(self) -> None:
        self._connection.close()

    def _apply(self, change: Change) -> None:
        execute = self._connection.execute
        match change:
            case PutTask(row):
                execute(
                    "INSERT OR REPLACE INTO tasks"
                    " (id, task, status, version, acknowledged, instance, pid, start_ticks, removing)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        row.id,
                        row.task.SerializeToString(),
                        row.status.SerializeToString(),
                        row.version,
                        row.acknowledged,
                        row.instance,
                        row.pid,
                        row.start_ticks,
                        int(row.removing),
                    ),
                )
            case Acknowledge(task_id, version):
                execute("UPDATE tasks SET acknowledged = max(acknowledged, ?) WHERE id = ?", (version, task_id))
            case DeleteTask(task_id):
                execute("DELETE FROM tasks WHERE id = ?", (task_id,))
            case PutSession(row):
                execute(
                    "INSERT OR REPLACE INTO session (one, node_id, session_id, manager_id, manager_addr)"
                    " VALUES (1, ?, ?, ?, ?)",
                    (row.node_id, row.session_id, row.manager_id, row.manager_addr),
                )

    def _open(self) -> sqlite3.Connection:
        try:
            # check_same_thread: opened by the thread that starts the agent, used by its one writer thread after that.
            connection = sqlite3.connect(self.path, check_same_thread=False)
        except sqlite3.DatabaseError as error:
            raise self._corrupt(error) from error
        try:
            # Read before anything is written, so that a file that is not ours is left as it is.
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if application != APPLICATION_ID:
                raise self._corrupt("not a database of the agent")
            if version != SCHEMA_VERSION:
                raise self._corrupt(f"schema {version}, this release reads schema {SCHEMA_VERSION}")
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise self._corrupt(verdict)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
        except sqlite3.DatabaseError as error:
            connection.close()
            raise self._corrupt(error) from error
        except CorruptFile:
            connection.close()
            raise
        return connection

    def _corrupt(self, why: object) -> CorruptFile:
        return CorruptFile(
            self.path,
            f"cannot be used as the agent's database: {why}",
            remedy="restore it, or move it away and run `swarmvisor up`: running tasks are adopted again by their ids",
        )


def _create(path: Path) -> None:
    """Make the empty database under another name first: a file of that name is then whole, whenever we are killed."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".tmp-{path.name}", dir=path.parent)
    os.close(descriptor)
    try:
        connection = sqlite3.connect(temporary)
        try:
            connection.executescript(_SCHEMA)
        finally:
            connection.close()
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    fsync_directory(path.parent)


def _row(fields: tuple[str, bytes, bytes, int, int, str, int, int, int]) -> TaskRow:
    task_id, task, status, version, acknowledged, instance, pid, start_ticks, removing = fields
    return TaskRow(
        id=task_id,
        task=objects_pb2.Task.FromString(task),
        status=types_pb2.TaskStatus.FromString(status),
        version=version,
        acknowledged=acknowledged,
        instance=instance,
        pid=pid,
        start_ticks=start_ticks,
        removing=bool(removing),
    )
