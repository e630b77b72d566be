"""A Docker Swarm for the tests, and a node of ours in it. Without dockerd they skip, and on CI fail."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

from tests.conftest import SHARED
from tests.e2e.host import Host, new_host
from tests.interop.dockerd import CI, Dockerd, a_dockerd, missing


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/interop" in str(item.path) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(120))


@dataclass
class Member:
    """A node of ours in a Docker Swarm."""

    host: Host
    node_id: str


NewDockerd = Callable[[], Iterator[Dockerd]]


def need_docker() -> None:
    """Skip, or fail where everything must be there."""
    absent = missing()
    if absent or os.geteuid() != 0:
        why = f"a real Docker Swarm needs root and {', '.join(absent)}" if absent else "a real Docker Swarm needs root"
        if os.environ.get(CI):
            pytest.fail(why)
        pytest.skip(f"{why} (apt-get install docker.io)")


@pytest.fixture(scope="session")
def dockerd() -> Iterator[Dockerd]:
    need_docker()
    yield from a_dockerd()


@contextmanager
def a_member(dockerd: Dockerd, hostname: str, *options: str, shared: bool = False) -> Iterator[Member]:
    with ExitStack() as stack:
        host = stack.enter_context(contextmanager(new_host)())
        if shared:
            host.environment[SHARED] = "1"
        yield Member(host, dockerd.join(host, hostname, *options))


@pytest.fixture(scope="session")
def member(dockerd: Dockerd) -> Iterator[Member]:
    """The node that most tests run their services on."""
    with a_member(dockerd, "processes", "--label", "zone=a", "--generic-resource", "ssd=2", shared=True) as found:
        yield found


@pytest.fixture
def service(dockerd: Dockerd, request: pytest.FixtureRequest) -> Iterator[str]:
    """A name for a service, which is removed in the end."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name.removeprefix("test_"))[:60].strip("-")
    yield name
    dockerd.run("service", "rm", name)


@pytest.fixture
def other_dockerd() -> Iterator[Dockerd]:
    """A Docker Swarm that a test may turn upside down."""
    need_docker()
    yield from a_dockerd()
