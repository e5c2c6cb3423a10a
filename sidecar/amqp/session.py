"""One life of the connection to RabbitMQ: two connections, one to consume and one to publish dead letters.

They share their fate: when either is lost, the session is, and everything unsettled goes back to the queues. Publishing
has a connection of its own because a broker short of resources stops reading from connections that publish, and would
not see our acks either.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiormq.exceptions import AMQPError
from aiormq.tools import censor_url
from yarl import URL

from sidecar.amqp.publisher import Publisher, open_publisher
from sidecar.amqp.topology import Topology, declare, declare_delay_queue
from sidecar.amqp.wire import Reach, connect
from sidecar.core import frames
from sidecar.core.ledger import Ledger
from sidecar.errors import BrokerError

if TYPE_CHECKING:
    from aiormq.abc import AbstractChannel, AbstractConnection

    from sidecar.amqp.wire import Wire
    from sidecar.core.frames import Taken
    from sidecar.core.ledger import Settlement
    from sidecar.core.message import Message
    from sidecar.ports import Copy, Receive

_FAILURES = (AMQPError, OSError, RuntimeError, asyncio.CancelledError)
"""What aiormq raises when a connection ends under a call; it also cancels what it waits for."""

_CLOSE_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Connecting:
    """How to reach RabbitMQ and what to consume; the meaning of each is that of the setting of its name."""

    topology: Topology
    prefetch: int
    consumer_arguments: dict[str, object] = field(default_factory=dict)
    confirm_timeout_seconds: float = 30.0
    reach: Reach = field(default_factory=Reach)


class Session:
    """The port `sidecar.ports.BrokerSession` over aiormq and our own wire. Made by `open_session`."""

    def __init__(self, connecting: Connecting, receive: Receive) -> None:
        self.ledgers: list[Ledger] = []
        self.prefetch = connecting.prefetch
        self.frame_max = 0
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._connecting = connecting
        self._receive = receive
        self._consuming: AbstractConnection | None = None
        self._publishing: AbstractConnection | None = None
        self._consume_wire: Wire | None = None
        self._publish_wire: Wire | None = None
        self._publisher: Publisher | None = None
        self._channels: dict[int, AbstractChannel] = {}
        self._consumer_tags: dict[int, str] = {}
        self._delay_queues: dict[tuple[str, int], None] = {}  # those that are known to be there
        self._closing = False

    async def open(self, url: URL) -> None:
        """Connect, declare, and open the channels; nothing is consumed yet.

        Raises:
            BrokerError: RabbitMQ can't be reached, or refused something.
        """
        try:
            connecting = self._connecting
            self._consuming, self._consume_wire = await connect(
                url, "consume", self._take_deliveries, self._lose, connecting.reach
            )
            self.frame_max = self._consume_wire.inbound.frame_max
            await declare(self._consuming, self._connecting.topology)
            for queue in self._connecting.topology.queues:
                await self._open_channel(self._consuming, self._consume_wire, queue)
            self._publishing, self._publish_wire = await connect(
                url, "publish", self._take_answers, self._lose, connecting.reach
            )
            self._publisher, channel = await open_publisher(
                self._publishing, self._publish_wire, connecting.confirm_timeout_seconds, self._lose
            )
            channel.closing.add_done_callback(self._channel_closed)
        except _FAILURES as error:
            raise _translate(error, url) from error

    async def _open_channel(self, connection: AbstractConnection, wire: Wire, queue: str) -> None:
        channel = await connection.channel(publisher_confirms=False)
        channel.closing.add_done_callback(self._channel_closed)
        channel.on_consumer_cancel_callbacks.add(lambda _: self._lose(f"RabbitMQ cancelled the consumer of {queue!r}"))
        ledger = Ledger(queue, channel.number)
        wire.inbound.take_deliveries(ledger)
        self.ledgers.append(ledger)
        self._channels[channel.number] = channel
        await channel.basic_qos(prefetch_count=self.prefetch)

    # What comes in --------------------------------------------------------------------------------------------------

    def _take_deliveries(self, taken: Taken) -> None:
        messages: list[Message] = taken.messages
        if messages and not messages[0].ledger.closed:
            self._receive(messages)

    def _take_answers(self, taken: Taken) -> None:
        if self._publisher is not None:
            self._publisher.answered(taken.answers)

    def _channel_closed(self, closing: asyncio.Future[object]) -> None:
        if closing.cancelled():
            self._lose("channel closed")
        else:
            self._lose(f"channel closed: {closing.exception()}")

    def _lose(self, reason: str) -> None:
        if self._closing or self.lost.done():
            return
        self.lost.set_result(reason)
        if self._publisher is not None:
            self._publisher.lose(reason)

    # What goes out --------------------------------------------------------------------------------------------------

    async def consume(self) -> None:
        """Begin to consume from all queues.

        Raises:
            BrokerError: the session was lost, or the broker refused.
        """
        try:
            for ledger in self.ledgers:
                ok = await self._channels[ledger.channel].basic_consume(
                    ledger.queue,
                    _never_called,
                    arguments=self._connecting.consumer_arguments,  # type: ignore[arg-type]
                )
                self._consumer_tags[ledger.channel] = ok.consumer_tag or ""
        except _FAILURES as error:
            if isinstance(error, asyncio.CancelledError):
                # Who consumes now is not known, so nobody could be cancelled: only the session's end stops it.
                self._lose("cut off while consuming began")
            raise _translate(error, None) from error

    async def cancel(self) -> None:
        """Stop the deliveries: when this returns, no more come.

        Raises:
            BrokerError: the session was lost.
        """
        if self.lost.done():
            raise BrokerError(self.lost.result())
        try:
            for channel, tag in self._consumer_tags.items():
                await self._channels[channel].basic_cancel(tag, timeout=_CLOSE_SECONDS)
        except (*_FAILURES, TimeoutError) as error:
            raise _translate(error, None) from error
        self._consumer_tags.clear()

    def settle(self, ledger: Ledger, settlements: list[Settlement]) -> None:
        """Write acks at once; void when the epoch is over."""
        wire = self._consume_wire
        if wire is not None and settlements and not ledger.closed:
            wire.write(b"".join(frames.ack(ledger.channel, tag, multiple=multiple) for tag, multiple in settlements))

    def reject(self, ledger: Ledger, tag: int) -> None:
        """Have the queue's own dead-lettering take one delivery; void when the epoch is over."""
        if self._consume_wire is not None and not ledger.closed:
            self._consume_wire.write(frames.reject(ledger.channel, tag))

    def give_back(self, ledger: Ledger) -> None:
        """Have the broker take back all that is outstanding in the ledger's channel, in the order of delivery."""
        if self._consume_wire is not None and not ledger.closed:
            self._consume_wire.write(frames.nack(ledger.channel, 0, multiple=True, requeue=True))

    async def publish(self, copies: list[Copy]) -> list[str | None]:
        """Publish mandatory copies and wait for the broker to confirm each; see `Publisher.publish`."""
        if self._publisher is None or self._publishing is None:
            raise BrokerError("the session is closed")
        for queue, milliseconds in dict.fromkeys(copy.delay for copy in copies if copy.delay is not None):
            if (queue, milliseconds) not in self._delay_queues:
                await self._declare_delay_queue(self._publishing, queue, milliseconds)
        return await self._publisher.publish(copies)

    async def _declare_delay_queue(self, connection: AbstractConnection, queue: str, milliseconds: int) -> None:
        try:
            await declare_delay_queue(connection, self._connecting.topology, queue, milliseconds)
        except _FAILURES as error:
            raise _translate(error, None) from error
        self._delay_queues[queue, milliseconds] = None

    async def close(self) -> None:
        """Close both connections; whatever is outstanding goes back to the queues."""
        self._closing = True
        if self._publisher is not None:
            self._publisher.lose("the session was closed")
        for connection in (self._publishing, self._consuming):
            if connection is not None:
                with suppress(*_FAILURES, TimeoutError):
                    async with asyncio.timeout(_CLOSE_SECONDS):
                        await connection.close()
        self.abandon()

    def abandon(self) -> None:
        """Drop both connections without a word."""
        for wire in (self._publish_wire, self._consume_wire):
            if wire is not None:
                wire.abort()


async def open_session(urls: tuple[str, ...], connecting: Connecting, receive: Receive) -> Session:
    """Open a session with the first of `urls` that answers.

    Raises:
        BrokerError: none of them did; the text names each with its reason, without passwords.
    """
    failures = []
    for text in urls:
        session = Session(connecting, receive)
        try:
            await session.open(URL(text))
        except BrokerError as error:
            failures.append(str(error))
        except TimeoutError:
            failures.append(f"{censor_url(URL(text))}: no answer within {connecting.reach.timeout_seconds:g} s")
        except asyncio.CancelledError:
            session.abandon()
            raise
        else:
            return session
        await session.close()
    raise BrokerError("; ".join(failures))


async def _never_called(_: object) -> None:
    """Deliveries are taken off the wire before aiormq sees them."""


def _translate(error: BaseException, url: URL | None) -> BrokerError:
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        raise error  # ours: somebody stops us
    where = f"{censor_url(url)}: " if url is not None else ""
    return BrokerError(f"{where}{error or type(error).__name__}")
