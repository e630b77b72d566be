"""When a look at a node has seen all there is to see."""

from __future__ import annotations

from typing import Any, cast

from ipc.bus import Bus
from ipc.envelope import Alive, Value
from ipc.subscriber import Held, Interest
from ipc.topics import Agent
from procs.cli.observed import _all_said


class Ear:
    """What `_all_said` asks of a bus."""

    def __init__(self) -> None:
        self.held = Held(Interest.parse(["agent"]))

    def values(self) -> dict[str, Value]:
        return self.held.values

    def complete(self, owner: str) -> bool:
        return self.held.complete(owner)


def test_an_agent_that_has_bound_its_socket_and_said_nothing_yet_is_waited_for() -> None:
    ear = Ear()
    bus = cast("Bus", cast("Any", ear))
    ear.held.digest(Alive("agent", 1, 1, 0, {}))
    assert ear.complete("agent")
    assert not _all_said(bus, {"agent"})
    ear.held.offer(Value("agent", "agent", 1, 1, 1, 0, "", Agent("waiting")))
    assert _all_said(bus, {"agent"})
