"""One life of the connection to RabbitMQ: two connections, one to consume and one to publish dead letters.

They share their fate: when either is lost, the session is, and everything unsettled goes back to the queues. Publishing
has a connection of its own because a broker short of resources stops reading from connections that publish, and would
not see our acks either.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from sidecar.amqp.channels import refusal_of
from sidecar.amqp.confirms import ConfirmChannel, open_confirm_channel
from sidecar.amqp.connection import (
    FAILURES,
    ConnectOptions,
    close_quietly,
    connect,
    connect_error,
    never_called,
    open_any,
    reason,
    reraise_own_cancellation,
)
from sidecar.amqp.lease import Lease
from sidecar.amqp.queue_properties import major_version, read_properties, version
from sidecar.amqp.queue_rules import expires_seconds, queue_findings
from sidecar.amqp.topology import Seen, Topology, declare, declare_delay_queue, work_arguments
from sidecar.core.ledger import Ledger
from sidecar.core.wire import frames
from sidecar.errors import BrokerError, BrokerRefusedError, QueueError
from sidecar.ports import (
    ACK_FLUSH_SECONDS,
    NACK_BATCH,
    NACK_PAUSE_SECONDS,
    QUEUE_DURABLE_AFTER_SECONDS,
    Undeclared,
    Unroutable,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiormq.abc import AbstractChannel, AbstractConnection
    from yarl import URL

    from sidecar.amqp.connection import AmqpProtocol
    from sidecar.amqp.queue_properties import QueueProperties
    from sidecar.core.ledger import Settlement
    from sidecar.core.message import Message
    from sidecar.core.wire.frames import ParsedFrames
    from sidecar.ports import OutboundMessage, Receive

_CANCEL_SECONDS = 5.0
_NACK_IS_FREE_FROM = [4, 3]
_CREDIT_IGNORED_SINCE = 4  # RabbitMQ's major version; it ignores the consumer argument x-credit
_ORDERED_NACKS = 32
"""So many messages that come back by one command keep their order: as Erlang keeps that of a small map."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """How to reach RabbitMQ and what to consume; the meaning of each is that of the setting of its name.

    Attributes:
        seen: what existed on the broker in earlier sessions.
    """

    topology: Topology
    consumer_arguments: dict[str, object] = field(default_factory=dict)
    confirm_timeout_seconds: float = 30.0
    connect: ConnectOptions = field(default_factory=ConnectOptions)
    seen: Seen = field(default_factory=Seen)


class Session:
    """The port `sidecar.ports.BrokerSession` over aiormq and our own wire. Made by `open_session`."""

    def __init__(self, options: SessionOptions, receive: Receive) -> None:
        self.ledgers: list[Ledger] = []
        self.frame_max = 0
        self.warnings: list[str] = []
        self.recreated: list[str] = []
        self.on_blocked: Callable[[str | None], None] = _ignore
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._options = options
        self._receive = receive
        self._consuming: AbstractConnection | None = None
        self._publishing: AbstractConnection | None = None
        self._consume_protocol: AmqpProtocol | None = None
        self._publish_protocol: AmqpProtocol | None = None
        self._publisher: ConfirmChannel | None = None
        self._channels: dict[int, AbstractChannel] = {}
        self._observers: dict[int, asyncio.Future[object]] = {}  # of the ends of these channels
        self._consumer_tags: dict[int, str] = {}
        # Since when what is confirmed is safe: in the dead-letter queues, and in the delay queues that are known. From
        # the moment on that this session saw them first: another sidecar may just have created them.
        self._safe_at = 0.0
        self._delay_queues: dict[tuple[str, int], float] = {}
        self._acks_safe_at = 0.0
        self._blocked: str | None = None
        self._closing = False
        self._lease: Lease | None = None

    async def open(self, url: URL) -> None:
        """Connect, declare, and open the channels; nothing is consumed yet.

        Raises:
            BrokerError: RabbitMQ can't be reached, or refused something.
        """
        try:
            connecting = self._options
            self._consuming, self._consume_protocol = await connect(
                url, "consume", self._on_deliveries, self._lose, connecting.connect
            )
            self.frame_max = self._consume_protocol.parser.frame_max
            await declare(self._consuming, connecting.topology, connecting.seen)
            self.recreated, connecting.seen.recreated = connecting.seen.recreated, []
            self._safe_at = asyncio.get_running_loop().time() + QUEUE_DURABLE_AFTER_SECONDS
            self._lease = await self._inspect_queues(self._consuming)
            self._lease.begin(at_once=True)
            for queue in connecting.topology.queues:
                self.ledgers.append(await self._open_channel(self._consuming, self._consume_protocol, queue))
            self._publishing, self._publish_protocol = await connect(
                url, "publish", self._on_answers, self._lose, connecting.connect
            )
            self._publish_protocol.on_blocked = self._publishing_blocked
            await self._open_publisher(self._publishing, self._publish_protocol)
        except FAILURES as error:
            raise connect_error(error, url, self._options.connect) from error

    async def _open_publisher(self, connection: AbstractConnection, protocol: AmqpProtocol) -> ConfirmChannel:
        def refused(text: str) -> None:
            self._publisher = None
            publisher.refuse(f"RabbitMQ refused it: {text}")

        def closed(closing: asyncio.Future[object]) -> None:
            if self._publisher is publisher:  # otherwise RabbitMQ refused a copy, which costs the channel only
                self._channel_closed(closing)

        publisher, channel = await open_confirm_channel(
            connection, protocol, self._options.confirm_timeout_seconds, on_silence=self._lose, on_closed=refused
        )
        publisher.set_blocked(self._blocked)
        self._publisher = publisher
        channel.closing.add_done_callback(closed)
        return publisher

    async def _inspect_queues(self, connection: AbstractConnection) -> Lease:
        """Note warnings about the queues; return the lease that keeps them while nothing is consumed.

        Raises:
            QueueError: consuming from one of them would lose messages.
        """
        topology, major = self._options.topology, major_version(connection)
        kept: dict[str, float | None] = {}
        unknown: set[str] = set()
        for queue in topology.queues:
            properties = await read_properties(partial(refusal_of, connection), queue, work_arguments(topology))
            for finding in queue_findings(queue, properties, major) if properties is not None else []:
                if finding.severity == "problem":
                    raise QueueError(
                        "queue-refused", f"the {finding.where} can't be used: {finding.what}; {finding.fix}"
                    )
                if finding.severity == "warning":
                    self.warnings.append(f"the {finding.where}: {finding.what}; {finding.fix}")
            seconds = _expires_seconds(properties, topology)
            keeping_is_free = _keeping_is_free(properties, major)
            if seconds is not None or keeping_is_free:
                kept[queue] = seconds
            if properties is None and keeping_is_free:
                unknown.add(queue)
        return Lease(connection, kept, frozenset(unknown))

    async def _open_channel(self, connection: AbstractConnection, protocol: AmqpProtocol, queue: str) -> Ledger:
        channel = await connection.channel(publisher_confirms=False)
        observer = self._observers[channel.number] = channel.closing  # another one each time that it is asked for
        observer.add_done_callback(self._channel_closed)
        channel.on_consumer_cancel_callbacks.add(lambda _: self._lose(f"RabbitMQ cancelled the consumer of {queue!r}"))
        ledger = Ledger(queue, channel.number)
        protocol.parser.register_consumer(ledger)
        self._channels[channel.number] = channel
        return ledger

    # What comes in --------------------------------------------------------------------------------------------------

    def _on_deliveries(self, frames: ParsedFrames) -> None:
        messages: list[Message] = frames.messages
        if messages and not messages[0].ledger.closed:
            self._receive(messages)

    def _on_answers(self, frames: ParsedFrames) -> None:
        if self._publisher is not None:
            self._publisher.on_frames(frames.answers)

    def _publishing_blocked(self, reason: str | None) -> None:
        self._blocked = reason
        if self._publisher is not None:
            self._publisher.set_blocked(reason)
        self.on_blocked(reason)

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
            self._publisher.fail_pending(reason)

    # What goes out --------------------------------------------------------------------------------------------------

    async def consume(self, prefetch: int) -> None:
        """Begin to consume from all queues.

        Args:
            prefetch: how many deliveries of this consumer the broker leaves unsettled, in each channel.

        Raises:
            BrokerError: the session was lost, or the broker refused.
        """
        if self.lost.done():
            raise BrokerError(self.lost.result())
        try:
            lease = self._lease
            if lease is not None and not lease.overlaps:
                await lease.end()
            for ledger in self.ledgers:
                channel = self._channels[ledger.channel]
                await channel.basic_qos(prefetch_count=prefetch)  # counts for consumers that begin after it
                ok = await channel.basic_consume(
                    ledger.queue,
                    never_called,
                    arguments=self._options.consumer_arguments,  # type: ignore[arg-type]
                )
                self._consumer_tags[ledger.channel] = ok.consumer_tag or ""
            if lease is not None and lease.overlaps:
                await lease.end()
        except FAILURES as error:
            if isinstance(error, asyncio.CancelledError):
                # Who consumes now is not known, so nobody could be cancelled: only the session's end stops it.
                self._lose("cut off while consuming began")
            raise self._failed(error) from error

    async def cancel(self) -> None:
        """Stop the deliveries: when this returns, no more come.

        Raises:
            BrokerError: the session was lost.
        """
        if self.lost.done():
            raise BrokerError(self.lost.result())
        try:
            if self._lease is not None and self._lease.overlaps:
                await self._lease.overlap()
            for channel, tag in self._consumer_tags.items():
                await self._channels[channel].basic_cancel(tag, timeout=_CANCEL_SECONDS)
        except FAILURES as error:
            raise self._failed(error) from error
        self._consumer_tags.clear()
        if self._lease is not None:
            self._lease.begin(at_once=False)

    def settle(self, ledger: Ledger, settlements: list[Settlement]) -> None:
        """Write acks at once; void when the epoch is over or RabbitMQ has closed the channel."""
        protocol = self._consume_protocol
        if protocol is not None and settlements and ledger.is_writable:
            if len(settlements) > NACK_BATCH:
                self._acks_safe_at = asyncio.get_running_loop().time() + ACK_FLUSH_SECONDS
            protocol.write(
                b"".join(frames.ack(ledger.channel, tag, multiple=multiple) for tag, multiple in settlements)
            )

    def reject(self, ledger: Ledger, tag: int) -> None:
        """Have the queue's own dead-lettering take one delivery; void like acks."""
        if self._consume_protocol is not None and ledger.is_writable:
            self._consume_protocol.write(frames.reject(ledger.channel, tag))

    def pause(self) -> None:
        """Read no deliveries for now."""
        if self._consume_protocol is not None:
            self._consume_protocol.pause()

    def resume(self) -> None:
        """Read on."""
        if self._consume_protocol is not None:
            self._consume_protocol.resume()

    async def requeue(self, ledger: Ledger, tags: list[int]) -> None:
        """Have the broker take back single deliveries, in this order; void like acks."""
        if not ledger.closed:
            await self._nack(ledger, [(tag, False) for tag in tags])

    async def give_back(self, outstanding: list[tuple[Ledger, list[int]]]) -> None:
        """Have the broker take back all that is outstanding, in the order of delivery.

        From 4.3 on by ``basic.nack``, which costs no delivery of a quorum queue's limit. Before, that costs as much as
        the end of the channel does; and only the end keeps the order, since a quorum queue takes more than 32 messages
        that come back at once in no order at all (measured on 3.10.8).

        Raises:
            BrokerError: the session was lost, which comes to the same.
        """
        protocol, connection = self._consume_protocol, self._consuming
        if self.lost.done() or protocol is None or connection is None:
            raise BrokerError(self.lost.result() if self.lost.done() else "the session is closed")
        try:
            for ledger, tags in outstanding:
                if _nack_is_free(connection):
                    await self._nack(
                        ledger, [(tag, True) for tag in [*tags[_ORDERED_NACKS - 1 :: _ORDERED_NACKS], *tags[-1:]]]
                    )
                    self._follow(ledger, ledger.next_epoch())
                elif tags:
                    await self._acks_are_safe()
                    await self._end_channel(ledger)
                    self._follow(ledger, await self._open_channel(connection, protocol, ledger.queue))
                else:
                    self._follow(ledger, ledger.next_epoch())
        except FAILURES as error:
            raise self._failed(error) from error

    async def _nack(self, ledger: Ledger, settlements: list[tuple[int, bool]]) -> None:
        """Write nacks of single tags, or of all up to a tag, so slowly that a quorum queue keeps their order.

        It takes single commands in their order, and joins those that pile up.
        """
        protocol = self._consume_protocol
        settlements = list(dict.fromkeys(settlements))
        for at in range(0, len(settlements), NACK_BATCH):
            if at:
                await asyncio.sleep(NACK_PAUSE_SECONDS)
            if protocol is not None and not ledger.channel_closed:
                some = settlements[at : at + NACK_BATCH]
                nacks = (frames.nack(ledger.channel, tag, multiple=all_up_to, requeue=True) for tag, all_up_to in some)
                protocol.write(b"".join(nacks))

    async def _acks_are_safe(self) -> None:
        """Wait until RabbitMQ has passed on the acks of a channel that is about to end."""
        await asyncio.sleep(self._acks_safe_at - asyncio.get_running_loop().time())

    async def _end_channel(self, ledger: Ledger) -> None:
        channel = self._channels.pop(ledger.channel)
        self._observers.pop(ledger.channel).remove_done_callback(self._channel_closed)
        await channel.close()
        assert self._consume_protocol is not None
        self._consume_protocol.parser.unregister(ledger.channel)

    def _follow(self, ledger: Ledger, next_epoch: Ledger) -> None:
        assert self._consume_protocol is not None
        self.ledgers[self.ledgers.index(ledger)] = next_epoch
        self._consume_protocol.parser.register_consumer(next_epoch)

    async def publish(self, copies: list[OutboundMessage]) -> list[str | None]:
        """Publish mandatory copies and wait for the broker to confirm each.

        Returns:
            For each copy None when it is confirmed, otherwise why the broker didn't take it.

        Raises:
            BrokerError: the session was lost; what became of the copies is unknown.
        """
        refusals: dict[int, str | None] = {}
        delays = dict.fromkeys(copy.delay for copy in copies if copy.delay is not None)
        missing = {delay: await self.find_delay_queue(*delay) for delay in delays if delay not in self._delay_queues}
        safe_at = max([self._safe_at, *(self._delay_queues.get(delay, 0.0) for delay in delays)])
        await asyncio.sleep(safe_at - asyncio.get_running_loop().time())
        # RabbitMQ closes the channel if an exchange is missing: copies for other exchanges must not be on it then.
        by_exchange: dict[bytes, list[int]] = {}
        for at, copy in enumerate(copies):
            refusals[at] = missing.get(copy.delay) if copy.delay is not None else None
            if refusals[at] is None:
                by_exchange.setdefault(copy.exchange, []).append(at)
        for places in by_exchange.values():
            refusals |= zip(places, await self._publish([copies[at] for at in places]), strict=True)
        for at, copy in enumerate(copies):
            if copy.delay is not None and isinstance(refusals[at], Unroutable):  # the delay queue was deleted
                self._delay_queues.pop(copy.delay, None)
                name = copy.routing_key.decode()
                refusals[at] = Unroutable(f"the delay queue {name!r} was deleted, with its messages")
        return list(refusals.values())

    async def _publish(self, copies: list[OutboundMessage]) -> list[str | None]:
        """Publish copies on the channel, or on a new one if RabbitMQ closed it."""
        connection, protocol = self._publishing, self._publish_protocol
        if self.lost.done() or self._closing or connection is None or protocol is None:
            raise BrokerError(self.lost.result() if self.lost.done() else "the session is closed")
        try:
            publisher = self._publisher or await self._open_publisher(connection, protocol)
            return await publisher.publish(copies)
        except (*FAILURES, BrokerError) as error:
            raise self._failed(error) from error

    async def find_delay_queue(self, queue: str, milliseconds: int) -> Undeclared | None:
        """Create a delay queue if it is missing; return why that is refused, or None.

        Raises:
            BrokerError: the session was lost.
        """
        self._delay_queues.pop((queue, milliseconds), None)
        if self.lost.done() or self._publishing is None:
            raise BrokerError(self.lost.result() if self.lost.done() else "the session is closed")
        try:
            await declare_delay_queue(self._publishing, self._options.topology, queue, milliseconds)
        except BrokerRefusedError as refusal:
            return Undeclared(str(refusal))
        except (*FAILURES, BrokerError) as error:
            raise self._failed(error) from error
        self._delay_queues[queue, milliseconds] = asyncio.get_running_loop().time() + QUEUE_DURABLE_AFTER_SECONDS
        return None

    def _failed(self, error: BaseException) -> BrokerError:
        """Return what to raise; the session is over, for nobody knows what the broker does now."""
        translated = _translate(error)
        self._lose(str(translated))
        return translated

    async def close(self) -> None:
        """Close both connections; whatever is outstanding goes back to the queues."""
        self._closing = True
        self.resume()  # or the answer to the close would not be read
        if self._publisher is not None:
            self._publisher.fail_pending("the session was closed")
        try:
            if self._lease is not None:
                await self._lease.end()
            if not self.lost.done():
                await self._acks_are_safe()
            await close_quietly(self._publishing, self._publish_protocol)
            await close_quietly(self._consuming, self._consume_protocol)
        except asyncio.CancelledError:
            self.abort()
            raise

    def abort(self) -> None:
        """Drop both connections without a word."""
        if self._lease is not None:
            self._lease.abort()
        for protocol in (self._publish_protocol, self._consume_protocol):
            if protocol is not None:
                protocol.abort()


async def open_session(urls: tuple[str, ...], options: SessionOptions, receive: Receive) -> Session:
    """Open a session with the first of `urls` that answers.

    Raises:
        BrokerError: none of them did; the text names each with its reason, without passwords.
    """
    return await open_any(urls, lambda: Session(options, receive))


def _nack_is_free(connection: AbstractConnection) -> bool:
    """Whether a nack costs a message no delivery of a quorum queue's limit."""
    return version(connection) >= _NACK_IS_FREE_FROM


def _expires_seconds(properties: QueueProperties | None, topology: Topology) -> float | None:
    """Return after how long a queue expires, by its own arguments or by the configured ones; None: unknown."""
    found = expires_seconds(properties) if properties is not None else None
    configured = topology.queue_arguments.get("x-expires")
    return found if found is not None else configured / 1000 if isinstance(configured, int) else None


def _keeping_is_free(properties: QueueProperties | None, major: int) -> bool:
    """Whether a lease costs nothing, so that it is taken even if only an invisible policy may expire the queue.

    RabbitMQ 4 would deliver a message to it. With a single active consumer, other sidecars would get no messages.
    """
    single = properties is not None and properties.arguments.get("x-single-active-consumer") is True
    return 0 < major < _CREDIT_IGNORED_SINCE and not single


def _ignore(_: str | None) -> None:
    """Until somebody does."""


def _translate(error: BaseException) -> BrokerError:
    reraise_own_cancellation(error)
    return BrokerError(reason(error))
