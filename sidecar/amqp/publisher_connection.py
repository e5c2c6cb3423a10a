"""A connection that only publishes: for the load generator, for what is passed on, and for code of one's own.

Messages of one's own have no token (`sidecar.ports.Copy`). A return can't be told apart then, so it counts for all that
is unconfirmed at that moment.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sidecar.amqp.confirms import ConfirmChannel, open_confirm_channel
from sidecar.amqp.connection import FAILURES, ConnectOptions, close_quietly, connect, connect_error, open_any
from sidecar.amqp.topology import declare
from sidecar.errors import BrokerError
from sidecar.ports import QUEUE_DURABLE_AFTER_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiormq.abc import AbstractConnection
    from yarl import URL

    from sidecar.amqp.connection import AmqpProtocol
    from sidecar.amqp.topology import Topology
    from sidecar.core.wire.frames import ParsedFrames
    from sidecar.ports import OutboundMessage

CONFIRM_SECONDS = 30.0


class PublisherConnection:
    """A publishing connection. Made by `open_publisher_connection`.

    Args:
        topology: what to declare.
        connect_options: how to reach the broker.
        confirm_timeout_seconds: how long a confirm may take; the connection ends with one that takes longer.

    Attributes:
        frame_max: the largest frame that the broker takes, in bytes; 0 means no limit.
        lost: why it can't be used any more, or None.
        on_blocked: told why the broker takes nothing for now (a resource alarm), or None when it takes messages again.
    """

    def __init__(
        self, topology: Topology, connect_options: ConnectOptions, *, confirm_timeout_seconds: float = CONFIRM_SECONDS
    ) -> None:
        self.frame_max = 0
        self.lost: str | None = None
        self.on_blocked: Callable[[str | None], None] = _ignore
        self._topology = topology
        self._connect_options = connect_options
        self._confirm_timeout_seconds = confirm_timeout_seconds
        self._connection: AbstractConnection | None = None
        self._protocol: AmqpProtocol | None = None
        self._channel: ConfirmChannel | None = None

    async def open(self, url: URL) -> None:
        """Connect, declare, and open the channel.

        Raises:
            BrokerError: RabbitMQ can't be reached, or refused something.
        """
        try:
            self._connection, self._protocol = await connect(
                url, "produce", self._on_frames, self._on_lost, self._connect_options
            )
            if await declare(self._connection, self._topology):
                await asyncio.sleep(QUEUE_DURABLE_AFTER_SECONDS)
            self.frame_max = self._protocol.parser.frame_max
            self._protocol.on_blocked = self._on_blocked
            self._channel, channel = await open_confirm_channel(
                self._connection,
                self._protocol,
                self._confirm_timeout_seconds,
                on_silence=self._on_lost,
                on_closed=lambda text: self._on_lost(f"channel closed: {text}"),
            )
            channel.closing.add_done_callback(self._channel_closed)
        except FAILURES as error:
            raise connect_error(error, url, self._connect_options) from error

    async def publish(self, messages: list[OutboundMessage]) -> list[str | None]:
        """Publish messages and wait for their confirms; see `Publisher.publish`. Several calls may be under way."""
        if self._channel is None:
            raise BrokerError("the connection is closed")
        return await self._channel.publish(messages)

    async def close(self) -> None:
        """Close the connection; what is unconfirmed then has an unknown fate."""
        if self._channel is not None:
            self._channel.fail_pending("the connection was closed")
        await close_quietly(self._connection, self._protocol)

    def abort(self) -> None:
        """Drop the connection without a word."""
        if self._protocol is not None:
            self._protocol.abort()

    def _on_frames(self, frames: ParsedFrames) -> None:
        if self._channel is not None:
            self._channel.on_frames(frames.answers)

    def _channel_closed(self, closing: asyncio.Future[object]) -> None:
        self._on_lost("channel closed" if closing.cancelled() else f"channel closed: {closing.exception()}")

    def _on_blocked(self, reason: str | None) -> None:
        if self._channel is not None:
            self._channel.set_blocked(reason)
        self.on_blocked(reason)

    def _on_lost(self, reason: str) -> None:
        self.lost = self.lost or reason
        if self._channel is not None:
            self._channel.fail_pending(reason)


def _ignore(_: str | None) -> None:
    """Until somebody does."""


async def open_publisher_connection(
    urls: tuple[str, ...],
    topology: Topology,
    connect_options: ConnectOptions | None = None,
    *,
    confirm_timeout_seconds: float = CONFIRM_SECONDS,
) -> PublisherConnection:
    """Open a producer with the first of `urls` that answers, and declare what is absent.

    Args:
        urls: of brokers.
        topology: what to declare.
        connect_options: how to reach them.
        confirm_timeout_seconds: see `PublisherConnection`.

    Raises:
        BrokerError: none of them answered; the text names each with its reason, without passwords.
    """
    return await open_any(
        urls,
        lambda: PublisherConnection(
            topology, connect_options or ConnectOptions(), confirm_timeout_seconds=confirm_timeout_seconds
        ),
    )
