"""Somebody sets the wall clock of the machine: the kernel tells, and the renewer looks at its dates again."""

from __future__ import annotations

import ctypes
import os
import struct
from contextlib import closing

import pytest

from swarm.clock import ClockWatch
from tests.integration.renewer_node import a_node
from tests.tools.fakeclock import FakeClock
from tests.tools.scratch import scratch

_ADJ_SETOFFSET = 0x0100
_TIMEX_SIZE, _SECONDS_AT = 208, 72
"""Of struct timex (adjtimex(2)), and in it of `time`."""
DAY = 24 * 3600


def nudge_clock() -> None:
    """Set this machine's clock a microsecond forward and back, which the kernel tells as any other step."""
    libc = ctypes.CDLL(None, use_errno=True)
    for seconds, microseconds in ((0, 1), (-1, 999_999)):
        timex = ctypes.create_string_buffer(_TIMEX_SIZE)
        struct.pack_into("@I", timex, 0, _ADJ_SETOFFSET)
        struct.pack_into("@qq", timex, _SECONDS_AT, seconds, microseconds)
        if libc.adjtimex(timex) < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))


@pytest.fixture
def may_set_clock() -> None:
    try:
        nudge_clock()
    except PermissionError:
        pytest.skip("only who may set this machine's clock (CAP_SYS_TIME) can show what its kernel tells then")


@pytest.mark.usefixtures("may_set_clock")
def test_the_kernel_tells_each_time_that_the_clock_was_set() -> None:
    with closing(ClockWatch()) as watch:
        assert not watch.was_set()
        for _ in range(2):
            nudge_clock()
            assert watch.was_set()
            assert not watch.was_set()


@pytest.mark.usefixtures("may_set_clock")
async def test_a_node_that_starts_with_a_wrong_date_is_back_when_its_clock_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with a_node() as node:
        await node.start()
        held = await node.certificate()
        await node.stop()
        with scratch() as directory, closing(FakeClock(directory)) as clock:
            for name, value in clock.environment.items():
                monkeypatch.setenv(name, value)
            clock.step(-3 * DAY)
            await node.start()
            said = await node.certificate(lambda c: c.state != "none")
            assert (said.state, "not valid before" in said.why) == ("failed", True), said.why
            clock.step(3 * DAY)
            nudge_clock()
            again = await node.certificate(lambda c: c.state == "valid")
            assert again.fingerprint == held.fingerprint
            await node.stop()
