"""A connection that only publishes: for the load generator, and whoever else has messages of their own.

What is published here are not copies of deliveries: there is no token in them. A return can't be told apart then, so it
counts for everything that is unconfirmed at that moment; all goes by one route, where one as good as any is unroutable.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from aiormq.exceptions import AMQPError
from aiormq.tools import censor_url
from yarl import URL

from sidecar.amqp.publisher import Publisher, open_publisher
from sidecar.amqp.topology import Topology, declare
from sidecar.amqp.wire import Reach, Wire, connect
from sidecar.errors import BrokerError

if TYPE_CHECKING:
    from aiormq.abc import AbstractConnection

    from sidecar.core.frames import Taken
    from sidecar.ports import Copy

_FAILURES = (AMQPError, OSError, RuntimeError, asyncio.CancelledError)
"""What aiormq raises when a connection ends under a call; it also cancels what it waits for."""

_CLOSE_SECONDS = 5.0
_CONFIRM_SECONDS = 30.0


class Producer:
    """A publishing connection. Made by `open_producer`."""

    def __init__(self) -> None:
        self._connection: AbstractConnection | None = None
        self._wire: Wire | None = None
        self._publisher: Publisher | None = None

    async def open(self, url: URL, topology: Topology, reach: Reach) -> None:
        """Connect, declare, and open the channel.

        Raises:
            BrokerError: RabbitMQ can't be reached, or refused something.
        """
        try:
            self._connection, self._wire = await connect(url, "produce", self._take, self._lose, reach)
            await declare(self._connection, topology)
            self._publisher, channel = await open_publisher(self._connection, self._wire, _CONFIRM_SECONDS, self._lose)
            channel.closing.add_done_callback(self._channel_closed)
        except TimeoutError as error:
            raise BrokerError(f"{censor_url(url)}: no answer within {reach.timeout_seconds:g} s") from error
        except _FAILURES as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise  # ours: somebody stops us
            raise BrokerError(f"{censor_url(url)}: {error or type(error).__name__}") from error

    async def publish(self, messages: list[Copy]) -> list[str | None]:
        """Publish messages and wait for their confirms; see `Publisher.publish`. Several calls may be under way."""
        if self._publisher is None:
            raise BrokerError("the connection is closed")
        return await self._publisher.publish(messages)

    async def close(self) -> None:
        """Close the connection; what is unconfirmed then has an unknown fate."""
        if self._publisher is not None:
            self._publisher.lose("the connection was closed")
        if self._connection is not None:
            with suppress(*_FAILURES, TimeoutError):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await self._connection.close()
        if self._wire is not None:
            self._wire.abort()

    def _take(self, taken: Taken) -> None:
        if self._publisher is not None:
            self._publisher.answered(taken.answers)

    def _channel_closed(self, closing: asyncio.Future[object]) -> None:
        self._lose("channel closed" if closing.cancelled() else f"channel closed: {closing.exception()}")

    def _lose(self, reason: str) -> None:
        if self._publisher is not None:
            self._publisher.lose(reason)


async def open_producer(urls: tuple[str, ...], topology: Topology, reach: Reach | None = None) -> Producer:
    """Open a producer with the first of `urls` that answers, and declare what is absent.

    Args:
        urls: of brokers.
        topology: what to declare.
        reach: how to reach them.

    Raises:
        BrokerError: none of them answered; the text names each with its reason, without passwords.
    """
    failures = []
    for text in urls:
        producer = Producer()
        try:
            await producer.open(URL(text), topology, reach or Reach())
        except BrokerError as error:
            failures.append(str(error))
            await producer.close()
        else:
            return producer
    raise BrokerError("; ".join(failures))
