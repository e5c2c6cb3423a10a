"""`sidecar.pipeline.waking`: whatever was set wakes who waits, whenever that was."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.pipeline.waking import wait_until
from tests import invariants
from tests.fakes.clock import run


@pytest.mark.parametrize("moment", [None, 60.0])
def test_what_was_set_while_nobody_waited_ends_the_next_wait_at_once(moment: float | None) -> None:
    """Who steps on isn't waiting; what happens meanwhile is looked at afterwards, and once."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        event = asyncio.Event()
        event.set()
        began = loop.time()
        async with asyncio.timeout(30.0):
            await wait_until(event, moment)
        assert loop.time() == began
        loop.call_at(began + 7.0, event.set)
        async with asyncio.timeout(30.0):
            await wait_until(event, moment)
        assert loop.time() == began + 7.0
        assert not event.is_set()
        assert not invariants.timers(loop)

    run(scenario())


def test_at_the_moment_it_wakes_by_itself_and_the_next_wait_is_a_new_one() -> None:
    """A moment that has passed is no reason to wait; without one only the event ends it."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        event = asyncio.Event()
        for moment in (5.0, 5.0, 9.0):
            await wait_until(event, moment)
            assert loop.time() == pytest.approx(moment)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3_600.0):
                await wait_until(event, None)
        assert not invariants.timers(loop)

    run(scenario())
