"""`docker service logs --follow`, running beside a test."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.e2e.host import eventually
from tests.interop.dockerd import Dockerd


class Follower:
    """A `docker service logs --follow` under way, and the lines it has printed."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.lines: list[str] = []
        self._process = process
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.rstrip("\n"))

    def close(self) -> None:
        self._process.terminate()
        self._thread.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process.wait()

    def expect(self, *lines: str) -> None:
        eventually(lambda: set(lines) <= set(self.lines), what=f"{lines} in the log: {self.lines}")


@contextmanager
def following(dockerd: Dockerd, service: str, *options: str) -> Iterator[Follower]:
    follower = Follower(dockerd.follow("service", "logs", "--follow", "--raw", *options, service))
    try:
        yield follower
    finally:
        follower.close()
