"""The end of a connection."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest

from sidecar.amqp.wire import end

if TYPE_CHECKING:
    from aiormq.abc import AbstractConnection

    from sidecar.amqp.wire import Wire


class Endless:
    """A connection whose close is never answered, and its wire."""

    def __init__(self) -> None:
        self.closing = asyncio.Event()
        self.aborted = False

    async def close(self) -> None:
        self.closing.set()
        await asyncio.Event().wait()

    def abort(self) -> None:
        self.aborted = True


def test_who_is_cancelled_while_closing_stays_cancelled() -> None:
    """A cancellation of ours is not one of aiormq's: a reconnect that went on after it would hold up the drain."""

    async def main() -> None:
        endless = Endless()
        closing = asyncio.create_task(end(cast("AbstractConnection", endless), cast("Wire", endless)))
        await endless.closing.wait()
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert endless.aborted

    asyncio.run(main())
