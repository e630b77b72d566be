"""Certificates of one hour and a clock that is stepped: a week of renewals without a gap in service (issue 3 §5.4)."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import socket
import ssl
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from ipc import topics
from ipc.aio import AsyncBus, Value
from tests.e2e.host import Host, eventually, new_host
from tests.tools.fakeclock import FakeClock
from tests.tools.scratch import scratch

MINUTE, HOUR = 60, 3600
DAY, DAYS = 24 * HOUR, 7
OLD = 80 * DAY
"""Seconds after which the 90 days of a new swarm's first certificate are to be renewed, and not over."""
STEPS = (45 * MINUTE, 57 * MINUTE)
"""A certificate of one hour is to be renewed within 36 minutes (reference/node-and-ca §7.1), and over after 60."""
DEADLINE = 30.0
HEARD = ("certificate", "agent", "manager", "node.changes")


class Member:
    """One node: its certificates and sessions, and whatever its processes said that was no service."""

    def __init__(self, host: Host, bus: AsyncBus) -> None:
        self.host = host
        self._bus = bus
        self._renewer = host.pid("renewer")
        self._followed: Value | None = None
        self.fingerprints: set[str] = set()
        self.sessions: set[str] = set()
        self.gaps: list[Any] = []

    async def watch(self) -> None:
        async for value in self._bus.updates():
            match value.body:
                case topics.Agent(state="ready" | "connected", session_id=session):
                    self.sessions.add(session)
                case topics.Certificate(state="valid", attempt=0, fingerprint=fingerprint):
                    self.fingerprints.add(fingerprint)
                case topics.Manager(state="ready") | topics.NodeChanges():
                    pass
                case gap:
                    self.gaps.append(gap)

    def fingerprint(self) -> str:
        """Of its certificate, as last said."""
        value = self._bus.last("certificate")
        return "" if value is None else str(value.body.fingerprint)

    async def stepped(self, date: float) -> None:
        """Tell the renewer what the kernel tells it of a clock that was set (SIGHUP does as `swarm.clock.ClockWatch`);
        until it has a certificate of `date`, and the agent's session has moved to that."""
        os.kill(self._renewer, signal.SIGHUP)
        await self._bus.wait("certificate", lambda v: v.body.not_after > date + HOUR - MINUTE, DEADLINE)
        await self._bus.wait("node.changes", lambda v: v.body.under.fingerprint == self.fingerprint(), DEADLINE)
        await self._bus.wait("agent", lambda v: v.body.state == "ready", DEADLINE)

    def serves_with(self) -> str:
        """Fingerprint of the certificate that a manager shows to whoever connects."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with (
            socket.create_connection(("127.0.0.1", self.host.port), DEADLINE) as plain,
            context.wrap_socket(plain) as tls,
        ):
            return hashlib.sha256(tls.getpeercert(binary_form=True) or b"").hexdigest()


@pytest.fixture
def clock() -> Iterator[FakeClock]:
    with scratch() as directory:
        clock = FakeClock(directory)
        yield clock
        clock.close()


@pytest.fixture
def swarm(clock: FakeClock) -> Iterator[tuple[Host, Host]]:
    """A manager and a worker whose certificates are of one hour."""
    with ExitStack() as stack:
        manager, worker = (stack.enter_context(contextmanager(new_host)()) for _ in range(2))
        for host in (manager, worker):
            host.environment.update(clock.environment)
        manager.init()
        manager.ok("swarm", "ca", "--cert-expiry", "1h")
        clock.step(OLD)
        manager.kill("renewer", signal.SIGHUP)
        eventually(
            lambda: manager.json("status")["certificate"]["not_after"] < clock.now() + 2 * HOUR, what="an hour's"
        )
        token = manager.ok("join-token", "worker", "-q").strip()
        worker.ok("join", "--token", token, "--hostname", "node2", f"127.0.0.1:{manager.port}")
        yield manager, worker


def began(pid: int) -> str:
    """When a process began, in the kernel's words: tells it from a later one with its pid."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


@pytest.mark.timeout(300)
async def test_a_week_of_hourly_certificates_passes_without_a_gap_in_service(
    clock: FakeClock, swarm: tuple[Host, Host]
) -> None:
    manager = swarm[0]
    manager.service("web", "sleep", "600", replicas=4)
    tasks = {pid: began(pid) for pid in manager.pids("web")}
    pace = random.Random(7)
    async with AsyncExitStack() as stack:
        members = []
        for host in swarm:
            bus = await stack.enter_async_context(AsyncBus(host.paths.bus, None, HEARD))
            await bus.wait("node.changes", lambda _: True, DEADLINE)
            await bus.wait("agent", lambda v: v.body.state == "ready", DEADLINE)
            members.append(Member(host, bus))
        watches = [asyncio.create_task(member.watch(), name="watch") for member in members]
        for day in range(DAYS):
            midnight = clock.now() + DAY
            while clock.now() < midnight:
                clock.step(pace.randint(*STEPS))
                await asyncio.gather(*(member.stepped(clock.now()) for member in members))
                await asyncio.to_thread(
                    eventually, lambda: members[0].serves_with() == members[0].fingerprint(), what="the new certificate"
                )
                assert {pid: began(pid) for pid in tasks} == tasks
            nodes = await asyncio.to_thread(manager.json, "node", "ls")
            assert [row["status"] for row in nodes] == ["ready", "ready"], f"day {day}"
    await asyncio.gather(*watches)
    for member in members:
        assert member.gaps == [], member.host.logs()
        assert len(member.sessions) == 1, "the session of the first day is that of the last"
        assert len(member.fingerprints) >= DAYS * DAY / STEPS[1]
