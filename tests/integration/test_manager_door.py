"""The remote API's listening socket: it moves while others are connected, and stays where it is if it cannot."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from procs.manager.door import Door
from procs.manager.gateway.front import Front
from procs.manager.gateway.tls import server_context
from swarm.errors import BadInput, Refused
from swarm.nodeconfig import NodeConfig
from tests.tools.authority import Authority


def at(addr: str, advertise: str = "") -> NodeConfig:
    return NodeConfig(listen_addr=addr, advertise_addr=advertise)


def answers(addr: str) -> bool:
    host, _, port = addr.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    authority = Authority()
    held = authority.issue("manager")
    made = Front({}, tmp_path / "inner", server_context(held.certificate_pem, held.key_pem, held.root_pem))
    yield made
    await made.close()


@pytest.fixture
def door(front: Front) -> Iterator[Door]:
    made = Door(at("127.0.0.1:0"))
    made.serve(front)
    yield made
    made.close()


@pytest.fixture
def taken() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as held:
        yield f"127.0.0.1:{held.getsockname()[1]}"


async def test_the_old_address_answers_for_a_while_after_a_move(door: Door) -> None:
    before = door.addresses.bound
    with socket.create_server(("127.0.0.1", 0)) as probe:
        free = f"127.0.0.1:{probe.getsockname()[1]}"
    found = door.move(at(free, "192.0.2.7:99"))
    assert (found.bound, found.advertised, found.configured) == (free, "192.0.2.7:99", f"{free} 192.0.2.7:99")
    assert await asyncio.to_thread(answers, found.bound)
    assert await asyncio.to_thread(answers, before)


async def test_only_the_advertised_address_may_change(door: Door) -> None:
    before = door.addresses
    assert door.move(at("127.0.0.1:0", "192.0.2.7:0")).bound == before.bound
    assert door.addresses.advertised == f"192.0.2.7:{before.bound.rpartition(':')[2]}"


async def test_another_host_on_the_same_port_is_a_move_too(door: Door) -> None:
    port = door.addresses.bound.rpartition(":")[2]
    found = door.move(at(f"0.0.0.0:{port}"))
    assert (found.bound, found.advertised) == (f"0.0.0.0:{port}", f"0.0.0.0:{port}")
    assert await asyncio.to_thread(answers, f"127.0.0.1:{port}")


async def test_what_cannot_be_listened_on_changes_nothing(door: Door, taken: str) -> None:
    before = door.addresses
    port = before.bound.rpartition(":")[2]
    for config in (at(taken), at(f"192.0.2.1:{port}"), at("127.0.0.1:1", ":0")):
        with pytest.raises((Refused, BadInput)):
            door.move(config)
        assert door.addresses == before
        assert await asyncio.to_thread(answers, before.bound)
