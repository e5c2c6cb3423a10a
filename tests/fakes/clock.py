"""An event loop whose time is virtual: it jumps to the next timer whenever nothing is ready.

Nothing ever sleeps, and a run is the same every time: what happens depends on the order of timers and callbacks only.
A program that waits for something that can never happen doesn't hang: `Stuck` says so, and names what waits.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

Returned = TypeVar("Returned")

_DAY_SECONDS = 86_400.0
_MOST_TURNS = 5_000_000


class Stuck(Exception):  # noqa: N818 - it is what a person would call it
    """Everybody waits and no timer is left, or the program goes on and on without an end."""


class _Jump:
    """Takes the place of the loop's selector: no files are watched, time is moved on instead."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[object]:
        self._loop.turn(timeout)
        return []

    def close(self) -> None:
        """Nothing is open."""


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop without files, threads and real time.

    Attributes:
        watchers: called between any two turns of the loop: what must hold at every moment is checked there.
        limit_seconds: virtual time at which a run is considered endless.
    """

    def __init__(self) -> None:
        super().__init__()
        self.watchers: list[Callable[[], None]] = []
        self.limit_seconds = _DAY_SECONDS
        self._now = 0.0
        self._turns = 0
        self._selector = _Jump(self)  # asyncio's own loops hand their selector over in just this way

    def time(self) -> float:
        """Return the virtual time in seconds, from 0."""
        return self._now

    def turn(self, timeout: float | None) -> None:
        """Move the time on by what the loop would have waited.

        Raises:
            Stuck: it would have waited for ever, or the run doesn't end.
        """
        for watcher in self.watchers:
            watcher()
        self._turns += 1
        if self._ready:  # type: ignore[attr-defined] # a watcher woke somebody up: that comes first
            return
        if timeout is None:
            raise Stuck(f"nothing is scheduled any more at {self._now:.3f} s; waiting: {self._waiting()}")
        if timeout > 0:
            due: float = self._scheduled[0].when()  # type: ignore[attr-defined] # exact, where adding would round
            self._now = max(self._now, due)
        if self._now > self.limit_seconds or self._turns > _MOST_TURNS:
            raise Stuck(f"no end in sight at {self._now:.3f} s, after {self._turns} turns; waiting: {self._waiting()}")

    def _waiting(self) -> str:
        # Sorted by name: the set's own order is that of addresses, which differ from run to run.
        return "; ".join(sorted(f"{task.get_name()} {task.get_coro()!r}" for task in asyncio.all_tasks(self)))

    def _process_events(self, event_list: list[object]) -> None:
        """No files, no events."""

    def _write_to_self(self) -> None:
        """No threads to wake the loop up."""


def run(
    main: Coroutine[object, object, Returned],
    *,
    watcher: Callable[[], None] | None = None,
    loop: VirtualLoop | None = None,
) -> Returned:
    """Run a coroutine in virtual time and return its result.

    Args:
        main: what to run.
        watcher: called between any two turns of the loop.
        loop: on which; it is closed at the end.

    Raises:
        Stuck: it waits for something that never happens.
    """
    loop = loop if loop is not None else VirtualLoop()
    if watcher is not None:
        loop.watchers.append(watcher)
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(main)
    finally:
        loop.watchers.clear()
        _end(loop)


def _end(loop: VirtualLoop) -> None:
    """Cancel what is left, without letting it hide what went wrong."""
    try:
        left = sorted(asyncio.all_tasks(loop), key=lambda task: task.get_name())
        for task in left:
            task.cancel()
        if left:
            with suppress(Stuck, RuntimeError):  # the loop was just about to stop
                loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        asyncio.set_event_loop(None)
        loop.close()
