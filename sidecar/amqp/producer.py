"""A connection that only publishes: for the load generator, for what is passed on, and for code of one's own.

Messages of one's own have no token (`sidecar.ports.Copy`). A return can't be told apart then, so it counts for all that
is unconfirmed at that moment.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sidecar.amqp.publisher import Publisher, open_publisher
from sidecar.amqp.topology import declare
from sidecar.amqp.wire import FAILURES, Reach, connect, end, open_first, unopened
from sidecar.errors import BrokerError
from sidecar.ports import DURABLE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiormq.abc import AbstractConnection
    from yarl import URL

    from sidecar.amqp.topology import Topology
    from sidecar.amqp.wire import Wire
    from sidecar.core.frames import Taken
    from sidecar.ports import Copy

CONFIRM_SECONDS = 30.0


class Producer:
    """A publishing connection. Made by `open_producer`.

    Args:
        topology: what to declare.
        reach: how to reach the broker.
        confirm_timeout_seconds: how long a confirm may take; the connection ends with one that takes longer.

    Attributes:
        frame_max: the largest frame that the broker takes, in bytes; 0 means no limit.
        lost: why it can't be used any more, or None.
        on_blocked: told why the broker takes nothing for now (a resource alarm), or None when it takes messages again.
    """

    def __init__(self, topology: Topology, reach: Reach, *, confirm_timeout_seconds: float = CONFIRM_SECONDS) -> None:
        self.frame_max = 0
        self.lost: str | None = None
        self.on_blocked: Callable[[str | None], None] = _nobody_cares
        self._topology = topology
        self._reach = reach
        self._confirm_timeout_seconds = confirm_timeout_seconds
        self._connection: AbstractConnection | None = None
        self._wire: Wire | None = None
        self._publisher: Publisher | None = None

    async def open(self, url: URL) -> None:
        """Connect, declare, and open the channel.

        Raises:
            BrokerError: RabbitMQ can't be reached, or refused something.
        """
        try:
            self._connection, self._wire = await connect(url, "produce", self._take, self._lose, self._reach)
            if await declare(self._connection, self._topology):
                await asyncio.sleep(DURABLE_SECONDS)
            self.frame_max = self._wire.inbound.frame_max
            self._wire.on_blocked = self._blocked
            self._publisher, channel = await open_publisher(
                self._connection,
                self._wire,
                self._confirm_timeout_seconds,
                on_silence=self._lose,
                on_closed=lambda text: self._lose(f"channel closed: {text}"),
            )
            channel.closing.add_done_callback(self._channel_closed)
        except FAILURES as error:
            raise unopened(error, url, self._reach) from error

    async def publish(self, messages: list[Copy]) -> list[str | None]:
        """Publish messages and wait for their confirms; see `Publisher.publish`. Several calls may be under way."""
        if self._publisher is None:
            raise BrokerError("the connection is closed")
        return await self._publisher.publish(messages)

    async def close(self) -> None:
        """Close the connection; what is unconfirmed then has an unknown fate."""
        if self._publisher is not None:
            self._publisher.lose("the connection was closed")
        await end(self._connection, self._wire)

    def abandon(self) -> None:
        """Drop the connection without a word."""
        if self._wire is not None:
            self._wire.abort()

    def _take(self, taken: Taken) -> None:
        if self._publisher is not None:
            self._publisher.answered(taken.answers)

    def _channel_closed(self, closing: asyncio.Future[object]) -> None:
        self._lose("channel closed" if closing.cancelled() else f"channel closed: {closing.exception()}")

    def _blocked(self, reason: str | None) -> None:
        if self._publisher is not None:
            self._publisher.block(reason)
        self.on_blocked(reason)

    def _lose(self, reason: str) -> None:
        self.lost = self.lost or reason
        if self._publisher is not None:
            self._publisher.lose(reason)


def _nobody_cares(_: str | None) -> None:
    """Until somebody does."""


async def open_producer(
    urls: tuple[str, ...],
    topology: Topology,
    reach: Reach | None = None,
    *,
    confirm_timeout_seconds: float = CONFIRM_SECONDS,
) -> Producer:
    """Open a producer with the first of `urls` that answers, and declare what is absent.

    Args:
        urls: of brokers.
        topology: what to declare.
        reach: how to reach them.
        confirm_timeout_seconds: see `Producer`.

    Raises:
        BrokerError: none of them answered; the text names each with its reason, without passwords.
    """
    return await open_first(
        urls, lambda: Producer(topology, reach or Reach(), confirm_timeout_seconds=confirm_timeout_seconds)
    )
