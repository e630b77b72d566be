"""Nodes for the end-to-end tests: a bare host, a fresh one-node swarm, and one shared by the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import SHARED
from tests.e2e.host import Host, new_host


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/e2e" in str(item.path) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(180))


@pytest.fixture
def host() -> Iterator[Host]:
    yield from new_host()


@pytest.fixture
def node(host: Host) -> Host:
    host.init()
    return host


@pytest.fixture(scope="module")
def swarm() -> Iterator[Host]:
    for host in new_host():
        host.environment[SHARED] = "1"
        host.init()
        yield host
