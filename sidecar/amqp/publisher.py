"""A publishing connection that is opened when it is needed, and again when it was lost."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sidecar.amqp.publisher_connection import CONFIRM_SECONDS, open_publisher_connection
from sidecar.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.amqp.connection import ConnectOptions
    from sidecar.amqp.publisher_connection import PublisherConnection
    from sidecar.amqp.topology import Topology
    from sidecar.ports import OutboundMessage


class ReconnectingPublisher:
    """The port `sidecar.ports.Outlet` over one `PublisherConnection` at a time.

    Args:
        urls: of brokers, tried in turn.
        topology: what to declare each time.
        connect_options: how to reach them.
        confirm_timeout_seconds: how long a confirm may take; the connection ends with one that takes longer.

    Attributes:
        frame_max: see the port.
        blocked: see the port.
        on_blocked: see the port.
        connection: see the port.
    """

    def __init__(
        self,
        urls: tuple[str, ...],
        topology: Topology,
        connect_options: ConnectOptions,
        *,
        confirm_timeout_seconds: float = CONFIRM_SECONDS,
    ) -> None:
        self.frame_max = 0
        self.blocked: str | None = None
        self.on_blocked: Callable[[], None] = _ignore
        self._urls = urls
        self._topology = topology
        self._connect_options = connect_options
        self._confirm_timeout_seconds = confirm_timeout_seconds
        self._publisher: PublisherConnection | None = None
        self._opened = 0  # connections, so far
        self._opening = asyncio.Lock()  # its waiters have their turn in the order in which they came

    @property
    def connection(self) -> int | None:
        """The number of the connection; None while there is none."""
        return self._opened if self._publisher is not None and self._publisher.lost is None else None

    async def publish(self, copies: list[OutboundMessage]) -> list[str | None]:
        """Publish mandatory messages, in order, and wait for each confirm. Several calls may be under way.

        Raises:
            BrokerError: the broker can't be reached, or was lost; what became of the messages is unknown.
        """
        producer = await self.open()
        try:
            return await producer.publish(copies)
        except BrokerError:
            await self._drop(producer)
            raise

    async def check(self) -> str | None:
        """Return why publishing is in vain now, or None."""
        try:
            await self.open()
        except BrokerError as error:
            return str(error)
        return self.blocked

    async def open(self) -> PublisherConnection:
        """Return the connection; another one where that was lost, perhaps long ago and with nothing on its way.

        Raises:
            BrokerError: the broker can't be reached, or refuses something.
        """
        async with self._opening:
            if self._publisher is not None and self._publisher.lost is not None:
                await self._drop(self._publisher)
            if self._publisher is None:
                producer = await open_publisher_connection(
                    self._urls,
                    self._topology,
                    self._connect_options,
                    confirm_timeout_seconds=self._confirm_timeout_seconds,
                )
                producer.on_blocked = self._note_blocked
                self.frame_max = producer.frame_max
                self._publisher = producer
                self._opened += 1
            return self._publisher

    def _note_blocked(self, reason: str | None) -> None:
        self.blocked = f"RabbitMQ takes no messages for now: {reason}" if reason is not None else None
        self.on_blocked()

    async def _drop(self, publisher: PublisherConnection) -> None:
        if self._publisher is publisher:
            self._publisher = None
            self.blocked = None  # another connection is told anew, by its first message
        await publisher.close()

    async def close(self) -> None:
        """Close the connection; what is unconfirmed then has an unknown fate."""
        if self._publisher is not None:
            await self._drop(self._publisher)


def _ignore() -> None:
    """Until somebody does."""
