"""Waits for something to happen, but not longer than until a given moment."""

from __future__ import annotations

import asyncio


async def wait_until(event: asyncio.Event, moment: float | None) -> None:
    """Wait until an event is set, and clear it. At a given moment it is set anyway.

    Args:
        event: that others set.
        moment: in seconds of the loop's clock; None: never.
    """
    timer = asyncio.get_running_loop().call_at(moment, event.set) if moment is not None else None
    try:
        await event.wait()
    finally:
        if timer is not None:
            timer.cancel()
    event.clear()
