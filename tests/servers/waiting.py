"""Waiting for something to become true, with a deadline; and running coroutines."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

POLL_SECONDS = 0.05

T = TypeVar("T")


def wait_for(probe: Callable[[], T], *, seconds: float, what: str, poll_seconds: float = POLL_SECONDS) -> T:
    """Call a probe until it returns something true, and return that.

    Args:
        probe: An error of its own ends the wait.
        seconds: Time limit.
        what: What is waited for, for the message.
        poll_seconds: Time between two calls.

    Raises:
        AssertionError: it didn't in that time; the last value is named.
    """
    deadline = time.monotonic() + seconds
    while not (value := probe()):
        if time.monotonic() > deadline:
            message = f"{what}: not within {seconds:g} s; last seen: {value!r}"
            raise AssertionError(message)
        time.sleep(poll_seconds)
    return value


def run_coroutine(coroutine: Coroutine[object, object, T], *, seconds: float = 60.0) -> T:
    """Run a coroutine on a fresh plain asyncio loop in debug mode off, with a time limit.

    Raises:
        TimeoutError: it didn't end in that time.
    """

    async def limited() -> T:
        async with asyncio.timeout(seconds):
            return await coroutine

    with asyncio.Runner() as runner:
        return runner.run(limited())
