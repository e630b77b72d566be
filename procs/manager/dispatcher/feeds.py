"""One watch of the store for all streams: each stream has a feed that says *look again*, never what to see.

A feed names the objects to look at anew; the stream reads their newest committed state. So a slow client costs a set of
ids, coalesces by itself, and an old event can do no harm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

from procs.manager.status import Status, permission_denied
from procs.manager.store import Action, Commit
from swarm.api import objects_pb2


class Shows(Enum):
    """What a stream is about."""

    NODE = "node"
    TASKS = "tasks"


class Feed:
    """What happened for one stream since it last looked."""

    def __init__(self, shows: Shows, node_id: str, session_id: str) -> None:
        self.shows = shows
        self.node_id = node_id
        self.session_id = session_id
        self.ended: Status | None = None
        """Why the stream must end, once it must."""
        self._tasks: set[str] = set()
        self._volumes: set[str] = set()
        self._wake = asyncio.Event()

    def look(self) -> None:
        """Something that every session shows has changed."""
        self._wake.set()

    def look_at_task(self, task_id: str) -> None:
        self._tasks.add(task_id)
        self._wake.set()

    def look_at_volume(self, volume_id: str) -> None:
        self._volumes.add(volume_id)
        self._wake.set()

    def end(self, reason: Status) -> None:
        """The stream must end with `reason`; the first one counts."""
        self.ended = self.ended or reason
        self._wake.set()

    async def wait(self) -> None:
        """Until there is something to look at, or the stream must end."""
        await self._wake.wait()
        self._wake.clear()

    def take(self) -> tuple[list[str], list[str]]:
        """Ids of tasks and of volumes to look at, sorted; they count as seen."""
        tasks, volumes = sorted(self._tasks), sorted(self._volumes)
        self._tasks.clear()
        self._volumes.clear()
        return tasks, volumes


class Feeds:
    """All feeds, by node."""

    def __init__(self) -> None:
        self._by_node: dict[str, set[Feed]] = {}

    @contextmanager
    def open(self, shows: Shows, node_id: str, session_id: str) -> Iterator[Feed]:
        """A feed for as long as the block runs."""
        feed = Feed(shows, node_id, session_id)
        self._by_node.setdefault(node_id, set()).add(feed)
        try:
            yield feed
        finally:
            feeds = self._by_node[node_id]
            feeds.discard(feed)
            if not feeds:
                del self._by_node[node_id]

    def route(self, commit: Commit) -> list[str]:
        """Tell the feeds what a commit means for them; return the ids of nodes that it deleted."""
        deleted: list[str] = []
        for event in commit.events:
            match event.object:
                case objects_pb2.Task() as task:
                    for feed in self._of(task.node_id, Shows.TASKS):
                        feed.look_at_task(task.id)
                case objects_pb2.Node() as node if event.action is Action.DELETE:
                    deleted.append(node.id)
                    self.end(node.id, permission_denied(f"Permission denied: node {node.id} was removed from swarm"))
                case objects_pb2.Node() as node:
                    for feed in self._of(node.id, Shows.NODE):
                        feed.look()
                case objects_pb2.Volume() as volume:
                    nodes = {p.node_id for o in (volume, event.old) if o is not None for p in o.publish_status}
                    for node_id in nodes:
                        for feed in self._of(node_id, Shows.TASKS):
                            feed.look_at_volume(volume.id)
        return deleted

    def look_all(self) -> None:
        """Something that every session shows has changed."""
        for node_id in self._by_node:
            for feed in self._of(node_id, Shows.NODE):
                feed.look()

    def _of(self, node_id: str, shows: Shows) -> list[Feed]:
        return [feed for feed in self._by_node.get(node_id, ()) if feed.shows is shows]

    def end(self, node_id: str, reason: Status, *, but: str | None = None) -> None:
        """End the streams of a node, except those of session `but`."""
        for feed in self._by_node.get(node_id, ()):
            if feed.session_id != but:
                feed.end(reason)

    def end_all(self, reason: Status) -> None:
        for node_id in list(self._by_node):
            self.end(node_id, reason)
