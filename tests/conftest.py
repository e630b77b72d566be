"""What holds for every test: it leaves no process, socket, thread or cgroup behind."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from tests.tools.scratch import scratch

MARK = f"SWARMVISOR_TEST_RUN={os.getpid()}"
"""In the environment of everything that a test starts (but not of tasks, whose environment is exact)."""

SHARED = "SWARMVISOR_TEST_SHARED"
"""In the environment of a node that several tests share; what runs in it must be gone when the run ends."""

SETTLE = 3.0
"""Seconds that what was told to end gets to be gone."""


settings.register_profile("ci", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])


def pytest_configure() -> None:
    # A user's runs explore; CI must answer the same for the same tree.
    settings.load_profile("ci" if os.environ.get("SWARMVISOR_CI") else "here")
    name, value = MARK.split("=")
    os.environ[name] = value
    # grpc.aio opens its poller's sockets once per process; not a leak of the first test that uses it.
    grpc.aio.init_grpc_aio()


class ByPlace(LoadScopeScheduling):
    """Which tests run in one process, one after another: a module's, for it may share a node; all with a dockerd."""

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return "tests/interop" if module.startswith("tests/interop/") else module


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByPlace:
    return ByPlace(config, log)


PLACES = ("interop", "faults", "e2e", "integration", "unit")
"""In the order in which they start: what takes long and mostly waits first, so that the short ones fill the end."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: PLACES.index(item.nodeid.split("/")[1]))


def marked_processes(*, shared: bool = False) -> dict[int, str]:
    """Live processes (not zombies reaped elsewhere) that descend from this run: pid to command line.

    With `shared`, those of shared nodes too.
    """
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            if MARK.encode() in environment and (shared or f"{SHARED}=1".encode() not in environment):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # ended while we looked, or not ours to read
            continue
    return found


def own_sockets() -> set[str]:
    """Inodes of the sockets that this process holds."""
    found: set[str] = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(entry)
        except OSError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


def own_threads() -> set[threading.Thread]:
    """Threads of this process that somebody must end: not grpc's, which live as long as the process."""
    return {
        thread
        for thread in threading.enumerate()
        if "grpc" not in type(thread).__module__ and not thread.name.startswith(("grpc", "Thread-grpc"))
    }


def settled(leaks: Callable[[], object]) -> object:
    """What `leaks` still finds once everything had time to end."""
    deadline = time.monotonic() + SETTLE
    found = leaks()
    while found and time.monotonic() < deadline:
        gc.collect()
        threading.Event().wait(0.02)
        found = leaks()
    return found


@pytest.fixture(scope="session", autouse=True)
def nothing_left_at_the_end() -> Iterator[None]:
    yield
    left = settled(lambda: marked_processes(shared=True))
    assert not left, f"processes left running: {left}"


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    processes, sockets, threads = set(marked_processes()), own_sockets(), own_threads()
    yield
    left = settled(lambda: {pid: line for pid, line in marked_processes().items() if pid not in processes})
    assert not left, f"processes left running: {left}"
    assert not settled(lambda: own_threads() - threads), "threads left running"
    assert not settled(lambda: own_sockets() - sockets), "sockets left open"


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A temporary directory whose path is short enough for Unix sockets."""
    with scratch() as path:
        yield path
