"""A simulated RabbitMQ: queues, channels with prefetch, redelivery, epochs, confirms and returns.

It stands behind the port `sidecar.ports.BrokerSession`, in virtual time, and is as strict as the real one: an ack of a
tag that isn't outstanding costs the session. What it does beyond RabbitMQ's documentation was measured on the real one.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING

from sidecar.amqp.topology import Seen
from sidecar.core.ledger import Ledger
from sidecar.core.message import Message
from sidecar.core.wire.properties import headers, join, number_value, split, table
from sidecar.errors import BrokerError, QueueError
from sidecar.ports import Undeclared, Unroutable

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Iterable

    from sidecar.core.ledger import Settlement
    from sidecar.ports import OutboundMessage, Receive

NO_PROPERTIES = b"\0\0"
NO_ROUTE = Unroutable("unroutable: 312 NO_ROUTE")
UNDECLARED = Undeclared("RabbitMQ refused to declare the queue: ACCESS_REFUSED")
REFUSED = "RabbitMQ refused it (basic.nack): the queue is full or unavailable"
_DELIVERY_COUNT = b"x-delivery-count"
_STUCK_SECONDS = 30.0
_LEASE_SECONDS = 1.0
_EXPIRY_LOOK_SECONDS = 0.5


def properties(**short_strings: str) -> bytes:
    """Return a property set with short strings (``message_id``, ``app_id``, …), raw."""
    return join({name: bytes([len(text.encode())]) + text.encode() for name, text in short_strings.items()})


@dataclass(slots=True, eq=False)
class Stored:
    """A message as the broker keeps it.

    Attributes:
        number: of its publishing, from 0, in all queues.
        deliveries: how often it was handed out.
        returns: how often it came back unsettled, as ``x-delivery-count`` says.
        acked_at: when its ack was written, in seconds; None while it never was.
    """

    number: int
    exchange: bytes
    routing_key: bytes
    properties: bytes
    body: bytes
    deliveries: int = 0
    returns: int = 0
    acked_at: float | None = None

    @property
    def route(self) -> bytes:
        """Exchange and routing key as ``basic.deliver`` carries them."""
        return bytes([len(self.exchange)]) + self.exchange + bytes([len(self.routing_key)]) + self.routing_key

    def delivered_properties(self) -> bytes:
        """Return the properties with which it is delivered: from the second time on a quorum queue counts in them."""
        if not self.returns:
            return self.properties
        values = split(self.properties)
        content = headers(self.properties) + table([(_DELIVERY_COUNT, number_value(self.returns))])
        return join({**values, "headers": len(content).to_bytes(4, "big") + content})


@dataclass(slots=True)
class Queue:
    """A quorum queue.

    Attributes:
        ready: what waits for a consumer, the next first.
        full: publishing into it is refused (``overflow: reject-publish``).
        silent: publishing into it is never confirmed.
        delivery_limit: how often a message may come back before it is dropped; None: for ever.
        dropped: what came back too often.
        expires_seconds: it is deleted with its messages when it has no consumer for so long; None: never.
        used_at: when it last had a consumer.
    """

    name: str
    ready: deque[Stored] = field(default_factory=deque)
    full: bool = False
    silent: bool = False
    delivery_limit: int | None = None
    dropped: list[Stored] = field(default_factory=list)
    expires_seconds: float | None = None
    used_at: float = 0.0

    def take_back(self, returned: list[Stored]) -> None:
        """Put messages back at the head, in their order."""
        kept: list[Stored] = []
        for message in returned:
            message.returns += 1
            spent = self.delivery_limit is not None and message.returns > self.delivery_limit
            (self.dropped if spent else kept).append(message)
        self.ready.extendleft(reversed(kept))


class Broker:
    """The node: its queues and the sessions that it has.

    Args:
        rng: the only source of chance: sizes of chunks, latencies.
        latency_seconds: the least and the most that anything on the wire takes, one way.
        chunk_items: the least and the most messages that arrive at once.

    Attributes:
        queues: by name.
        delayed: the bodies in the delay queues, each with how often it is there.
        sessions: all that there ever were, the last of them the newest.
        down: connections are refused.
        alarm: why publishes are not taken now; None: they are.
        exchanges: direct ones, by name: the queue of each routing key.
        on_ack: told of each message whose ack was written.
        on_publish: told of each copy that was stored.
        on_delay: told of each copy that a delay queue took.
        on_deliver: told of each chunk that a client received.
        on_return: told of each message that came back, and why: ``nack``, or ``lost`` with its channel.
        on_lost: told of each session that was lost, and why.
        delays_full: the delay queues take nothing.
        delays_undeclarable: the delay queues, by milliseconds, that can't be declared; None among them: any.
        consumer_timeout_seconds: a delivery that stays unsettled for so long costs its channel; None: it may.
        on_vanished: told of each queue that is about to be deleted with its messages, and whether it has expired.
    """

    def __init__(
        self,
        rng: random.Random,
        *,
        latency_seconds: tuple[float, float] = (0.0001, 0.002),
        chunk_items: tuple[int, int] = (1, 400),
    ) -> None:
        self.queues: dict[str, Queue] = {}
        self.delayed: Counter[bytes] = Counter()
        self.rejected: list[Stored] = []
        self.exchanges: dict[bytes, dict[bytes, str]] = {}
        self.sessions: list[SimulatedSession] = []
        self.down = False
        self.alarm: str | None = None
        self._alarm_ended: asyncio.Future[None] | None = None
        self.on_ack: Callable[[Stored], None] | None = None
        self.on_publish: Callable[[str, Stored], None] | None = None
        self.on_delay: Callable[[OutboundMessage], None] | None = None
        self.on_deliver: Callable[[SimulatedSession, list[Stored]], None] | None = None
        self.on_return: Callable[[Stored, str], None] | None = None
        self.on_lost: Callable[[SimulatedSession, str], None] | None = None
        self.delays_full = False
        self.delays_undeclarable: set[int | None] = set()
        self.consumer_timeout_seconds: float | None = None
        self.turn = 0
        self.on_vanished: Callable[[Queue, bool], None] | None = None
        self._dice = rng
        self._latency_seconds = latency_seconds
        self._chunk_items = chunk_items
        self._published = 0

    def raise_alarm(self, reason: str = "low on memory") -> None:
        """Take no publishes any more, as RabbitMQ does when it runs short of resources."""
        if self.alarm is None:
            self._alarm_ended = asyncio.get_running_loop().create_future()
        self.alarm = reason

    def end_alarm(self) -> None:
        """Take publishes again, those that wait first."""
        self.alarm = None
        if self._alarm_ended is not None:
            _resolve(self._alarm_ended)
        for session in self.sessions:
            session.unblocked()

    @property
    def takes_all(self) -> bool:
        """Whether it accepts connections, copies for any delay queue, and publishes to any other queue."""
        refuses = any(queue.full or queue.silent for queue in self.queues.values())
        return not (refuses or self.down or self.alarm or self.delays_full or self.delays_undeclarable)

    def undeclarable(self, milliseconds: int) -> bool:
        """Whether a delay queue can't be declared."""
        return bool(self.delays_undeclarable & {None, milliseconds})

    async def alarm_ended(self) -> None:
        """Wait until publishes are taken."""
        if self.alarm is not None and self._alarm_ended is not None:
            await asyncio.shield(self._alarm_ended)

    def latency(self) -> float:
        """Return how long the next thing on a wire takes, in seconds."""
        return self._dice.uniform(*self._latency_seconds)

    def chunk(self) -> int:
        """Return how many messages arrive together next."""
        return self._dice.randint(*self._chunk_items)

    def declare(self, name: str) -> Queue:
        """Return the queue of that name, made where it is absent."""
        if name not in self.queues:
            self.queues[name] = Queue(name)
        return self.queues[name]

    def expire_after(self, name: str, seconds: float) -> None:
        """Have a queue expire when it has no consumer for so long (``x-expires``)."""
        queue = self.declare(name)
        queue.expires_seconds = seconds
        queue.used_at = asyncio.get_running_loop().time()
        self._look_for_expiry(queue)

    def _look_for_expiry(self, queue: Queue) -> None:
        if self.queues.get(queue.name) is not queue:
            return
        loop = asyncio.get_running_loop()
        if self.down or any(session.keeps(queue.name) for session in self.sessions):
            queue.used_at = loop.time()
        elif queue.expires_seconds is not None and loop.time() >= queue.used_at + queue.expires_seconds:
            self.delete(queue.name, expired=True)
            return
        loop.call_later(_EXPIRY_LOOK_SECONDS, self._look_for_expiry, queue)

    def delete(self, name: str, *, expired: bool = False) -> None:
        """Delete a queue with its messages; consumers of it are cancelled by the broker."""
        if self.on_vanished is not None:
            self.on_vanished(self.queues[name], expired)
        del self.queues[name]
        for session in self.sessions:
            session.queue_gone(name)

    def bind(self, exchange: str, routing_key: str, queue: str) -> None:
        """Bind a queue to a direct exchange, made where it is absent."""
        self.exchanges.setdefault(exchange.encode(), {})[routing_key.encode()] = queue

    def publish(
        self, queue: str, body: bytes, properties: bytes = NO_PROPERTIES, *, exchange: bytes = b"", key: bytes = b""
    ) -> Stored:
        """Put a message into a queue, as a publisher elsewhere does."""
        stored = Stored(self._published, exchange, key or queue.encode(), properties, body)
        self._published += 1
        self.queues[queue].ready.append(stored)
        self.pump()
        return stored

    def pump(self) -> None:
        """Have the consumers served that something is there for, in turn: who was served comes last the next time."""
        live = [session for session in self.sessions if not session.over]
        if len(live) == 1:
            live[0].pump()
            return
        live.sort(key=lambda session: session.served)
        for session in live:
            session.pump()

    def route(self, exchange: bytes, routing_key: bytes) -> Queue | None:
        """Return where a publish goes, or None when it is unroutable.

        Raises:
            KeyError: the exchange doesn't exist.
        """
        if not exchange:
            return self.queues.get(routing_key.decode(errors="replace"))
        name = self.exchanges[exchange].get(routing_key)
        return self.queues.get(name) if name is not None else None

    def unsettled(self, name: str) -> list[Stored]:
        """Return what is in consumers' hands, session by session."""
        return [
            message
            for session in self.sessions
            for channel in session.channels
            if channel.ledger.queue == name
            for message in channel.outstanding.values()
        ]

    def open_queue(self, name: str, seen: Seen, created: Callable[[], None] | None) -> None:
        """Declare a work queue for a session.

        Raises:
            QueueError: it was seen before, and is gone.
        """
        if name not in self.queues:
            if seen.knows("simulated", name):
                raise QueueError("queue-gone", f"the queue {name!r} was there and is gone")
            if created is not None:
                created()
        self.declare(name)
        seen.note("simulated", name)

    def connector(
        self,
        queues: Iterable[str],
        *,
        confirm_timeout_seconds: float = 30.0,
        created: Callable[[], None] | None = None,
        seen: Seen | None = None,
    ) -> Callable[[Receive], Awaitable[SimulatedSession]]:
        """Return what opens sessions, as `pipeline.app.App` wants it; queues and dead-letter queues are declared.

        A queue that an earlier session of the same connector saw isn't declared again.
        """
        names = tuple(queues)
        known = seen if seen is not None else Seen()

        async def connect(receive: Receive) -> SimulatedSession:
            await asyncio.sleep(self.latency())
            if self.down:
                raise BrokerError("connection refused")
            for name in names:
                self.open_queue(name, known, created)
                self.declare(f"{name}.dead")
            await asyncio.sleep(self.latency())
            session = SimulatedSession(self, names, receive, confirm_timeout_seconds)
            self.sessions.append(session)
            return session

        return connect


class _Channel:
    """A consuming channel: both views of what is outstanding, for an ack takes its time to the broker."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.consuming = False
        self.next_tag = 1
        self.coming: deque[list[tuple[int, Stored]]] = deque()
        self.outstanding: dict[int, Stored] = {}  # the broker's view, in order of tags
        self.unacked: dict[int, Stored] = {}  # what the client may still settle: without the acks on the wire
        self.first_tag = 1  # of the present consumer: what came before doesn't count towards its prefetch

    @property
    def consumers_own(self) -> list[int]:
        """The tags that count towards the present consumer's prefetch."""
        return [tag for tag in self.outstanding if tag >= self.first_tag]


class SimulatedSession:
    """The port `sidecar.ports.BrokerSession`; made by `Broker.connector`."""

    def __init__(
        self, broker: Broker, queues: tuple[str, ...], receive: Receive, confirm_timeout_seconds: float
    ) -> None:
        self.reopens = True  # the publishing channel, when it was closed
        self.prefetch = 0
        self.frame_max = 131_072
        self.warnings: list[str] = []
        self.recreated: list[str] = []
        self.on_blocked: Callable[[str | None], None] = lambda _: None
        self.paused = False
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.ledgers = [Ledger(queue, number) for number, queue in enumerate(queues, start=1)]
        self.channels = [_Channel(ledger) for ledger in self.ledgers]
        self.acks = 0
        self.closes = 0  # how often whoever opened it asked for its end
        self._broker = broker
        self._receive = receive
        self._confirm_timeout_seconds = confirm_timeout_seconds
        self._protocol: deque[Callable[[], None]] = deque()
        self._wire_free_at = 0.0
        self._publishing: list[asyncio.Future[None]] = []
        self._ended = False
        self.served = 0  # the turn in which it was served last
        self._blocked = False
        self._unread: deque[Callable[[], None]] = deque()
        self._lease_from = 0.0
        self._stuck: asyncio.TimerHandle

    @property
    def over(self) -> bool:
        """Whether it was lost or closed."""
        return self._ended

    def keeps(self, name: str) -> bool:
        """Whether it has a consumer of a queue: its own, or the one that only keeps the queue."""
        if self._ended:
            return False
        leases = asyncio.get_running_loop().time() >= self._lease_from
        return any(channel.ledger.queue == name and (channel.consuming or leases) for channel in self.channels)

    # Deliveries ------------------------------------------------------------------------------------------------------

    async def consume(self, prefetch: int) -> None:
        """Begin to consume from all queues."""
        self._check()
        await self._round_trip()
        self.prefetch = prefetch
        for channel in self.channels:
            if channel.ledger.queue not in self._broker.queues:
                self.lose(f"404 NOT_FOUND - no queue '{channel.ledger.queue}'")
            self._check()
            assert not channel.consuming, "two consumers on one channel"
            channel.consuming = True
            channel.first_tag = channel.next_tag
        self.pump()

    def pause(self) -> None:
        """Read nothing more; a broker that can't write for half a minute resets the connection."""
        self.paused = True
        self._stuck = asyncio.get_running_loop().call_later(_STUCK_SECONDS, self.lose, "connection reset by peer")

    def resume(self) -> None:
        """Read on: what came in the meantime is there at once."""
        if self.paused:
            self.paused = False
            self._stuck.cancel()
            unread, self._unread = self._unread, deque()
            for act in unread:
                self._write(act)

    async def cancel(self) -> None:
        """Stop the deliveries; what is on the wire arrives before this returns."""
        self._check()
        for channel in self.channels:
            channel.consuming = False
        self._lease_from = asyncio.get_running_loop().time() + _LEASE_SECONDS
        await self._round_trip()
        self._check()

    async def _round_trip(self) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._write(lambda: self._read(lambda: _resolve(done)))
        await self._or_lost(done)
        self._check()

    async def _or_lost(self, done: asyncio.Future[None]) -> None:
        """Wait until something is done, or the session is lost."""
        waiting: list[asyncio.Future[None] | asyncio.Future[str]] = [done, self.lost]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)

    def _check(self) -> None:
        if self.lost.done():
            raise BrokerError(self.lost.result())
        if self._ended:
            raise BrokerError("the session is closed")

    def pump(self) -> None:
        """Send what there is and what the prefetch leaves room for; called by the broker."""
        if self._ended:
            return
        for channel in self.channels:
            queue = self._broker.queues.get(channel.ledger.queue)
            room = self.prefetch - len(channel.consumers_own)
            if queue is None or not channel.consuming or channel.coming or not queue.ready or room <= 0:
                continue
            count = min(room, len(queue.ready), self._broker.chunk())
            chunk = []
            for _ in range(count):
                message = queue.ready.popleft()
                message.deliveries += 1
                channel.outstanding[channel.next_tag] = message
                chunk.append((channel.next_tag, message))
                channel.next_tag += 1
            channel.coming.append(chunk)
            self._broker.turn += 1
            self.served = self._broker.turn
            self._write(lambda channel=channel: self._read(lambda: self._arrive(channel)))  # type: ignore[misc]

    def _arrive(self, channel: _Channel) -> None:
        chunk = channel.coming.popleft()
        ledger = channel.ledger
        messages = []
        for tag, stored in chunk:
            assert tag == ledger.next_tag
            ledger.next_tag = tag + 1
            redelivered = int(stored.deliveries > 1)
            raw = stored.delivered_properties()
            held_bytes = len(raw) + len(stored.body)
            messages.append(Message(ledger, tag, redelivered, stored.route, raw, stored.body, held_bytes))
            channel.unacked[tag] = stored
        ledger.open_new()
        if not ledger.closed:
            if self._broker.on_deliver is not None:
                self._broker.on_deliver(self, [stored for _, stored in chunk])
            self._receive(messages)
        if self._broker.consumer_timeout_seconds is not None:
            seconds = self._broker.consumer_timeout_seconds
            asyncio.get_running_loop().call_later(seconds, self._lose_patience, channel, chunk)
        self.pump()

    def _lose_patience(self, channel: _Channel, chunk: list[tuple[int, Stored]]) -> None:
        if not self._ended and any(channel.outstanding.get(tag) is stored for tag, stored in chunk):
            self.lose("406 PRECONDITION_FAILED - delivery acknowledgement timed out")

    def _write(self, act: Callable[[], None]) -> None:
        """Have something happen at the other end of the wire, after everything that was written before."""
        loop = asyncio.get_running_loop()
        self._protocol.append(act)
        self._wire_free_at = max(self._wire_free_at, loop.time() + self._broker.latency())
        loop.call_at(self._wire_free_at, self._next_on_wire)

    def _next_on_wire(self) -> None:
        if self._protocol:
            self._protocol.popleft()()

    def _read(self, act: Callable[[], None]) -> None:
        """Have something happen here, where it is read: not while nothing is."""
        if self.paused:
            self._unread.append(act)
        else:
            act()

    # Settlements -----------------------------------------------------------------------------------------------------

    def _channel(self, ledger: Ledger) -> _Channel:
        return next(channel for channel in self.channels if channel.ledger is ledger)

    def settle(self, ledger: Ledger, settlements: list[Settlement]) -> None:
        """Write acks; each takes effect when it arrives, unless the session is lost before."""
        if self._ended or ledger.closed:
            return
        channel = self._channel(ledger)
        now = asyncio.get_running_loop().time()
        for tag, multiple in settlements:
            self.acks += 1
            covered = list(takewhile(tag.__ge__, channel.unacked)) if multiple else [tag]
            if tag not in channel.unacked:
                self._write(lambda tag=tag: self.lose(f"406 PRECONDITION_FAILED - unknown delivery tag {tag}"))  # type: ignore[misc]
                return
            for known in covered:
                message = channel.unacked.pop(known)
                message.acked_at = now
                if self._broker.on_ack is not None:
                    self._broker.on_ack(message)
            self._write(lambda covered=covered: self._acked(channel, covered))  # type: ignore[misc]

    def _acked(self, channel: _Channel, tags: list[int]) -> None:
        for tag in tags:
            if channel.outstanding.pop(tag, None) is None:
                self.lose(f"406 PRECONDITION_FAILED - unknown delivery tag {tag}")
                return
        self._broker.pump()

    def reject(self, ledger: Ledger, tag: int) -> None:
        """``basic.reject`` without requeue: the queue's own dead-lettering takes the message, or nobody does."""
        if self._ended or ledger.closed:
            return
        channel = self._channel(ledger)
        del channel.unacked[tag]
        self._write(lambda: self._broker.rejected.append(channel.outstanding.pop(tag)))

    async def requeue(self, ledger: Ledger, tags: list[int]) -> None:
        """``basic.nack(requeue)`` of each: they go to the head of the queue, in this order."""
        if self._ended or ledger.closed or not tags:
            return
        channel = self._channel(ledger)
        for tag in tags:
            del channel.unacked[tag]
        self._write(lambda: self._take_some_back(channel, tags))
        await asyncio.sleep(0.02)  # so that it takes time, as with the real one

    def _take_some_back(self, channel: _Channel, tags: list[int]) -> None:
        returned = [channel.outstanding.pop(tag) for tag in tags]
        self._tell_returned(returned, "nack")
        queue = self._broker.queues.get(channel.ledger.queue)
        if queue is not None:
            queue.take_back(returned)
        self._broker.pump()

    async def give_back(self, outstanding: list[tuple[Ledger, list[int]]]) -> None:
        """Everything outstanding goes to the head of the queue, in order."""
        self._check()
        for ledger, tags in outstanding:
            channel = self._channel(ledger)
            assert list(channel.unacked) == tags
            channel.unacked.clear()
            self._write(lambda channel=channel: self._take_back(channel, "nack"))  # type: ignore[misc]
            next_ledger = ledger.next_epoch()
            self.ledgers[self.ledgers.index(ledger)] = next_ledger
            channel.ledger = next_ledger
        await self._round_trip()

    def _tell_returned(self, returned: list[Stored], why: str) -> None:
        if self._broker.on_return is not None:
            for message in returned:
                self._broker.on_return(message, why)

    def _take_back(self, channel: _Channel, why: str) -> None:
        returned = list(channel.outstanding.values())
        self._tell_returned(returned, why)
        channel.outstanding.clear()
        channel.unacked.clear()
        queue = self._broker.queues.get(channel.ledger.queue)
        if queue is not None:
            queue.take_back(returned)
        self._broker.pump()

    # Copies ----------------------------------------------------------------------------------------------------------

    async def publish(self, copies: list[OutboundMessage]) -> list[str | None]:
        """Publish mandatory copies and wait for the broker to confirm each."""
        self._check()
        while self._broker.alarm is not None:
            self._blocked = True
            self.on_blocked(self._broker.alarm)
            ended = asyncio.ensure_future(self._broker.alarm_ended())
            await asyncio.wait([ended, self.lost], return_when=asyncio.FIRST_COMPLETED)
            ended.cancel()
            self._check()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        refusals: list[str | None] = [None] * len(copies)
        answered: list[int] = []
        for at, copy in enumerate(copies):
            self._write(lambda at=at, copy=copy: self._take_copy(copy, at, refusals, answered, done))  # type: ignore[misc]
        self._publishing.append(done)
        try:
            async with asyncio.timeout(self._confirm_timeout_seconds):
                await done
        except TimeoutError:
            self.lose(f"RabbitMQ didn't confirm a dead letter within {self._confirm_timeout_seconds:g} s")
            raise BrokerError("unconfirmed") from None
        finally:
            self._publishing.remove(done)
        return refusals

    def _take_copy(
        self,
        copy: OutboundMessage,
        at: int,
        refusals: list[str | None],
        answered: list[int],
        done: asyncio.Future[None],
    ) -> None:
        if copy.delay is not None:
            refusals[at] = self._delay(copy)
            self._write(lambda: self._confirm(at, refusals, answered, done))
            return
        try:
            queue = self._broker.route(copy.exchange, copy.routing_key)
        except KeyError:  # RabbitMQ closes the channel, and copies for other exchanges are not on it
            refusal = f"404 NOT_FOUND - no exchange '{copy.exchange.decode(errors='replace')}' in vhost '/'"
            if not self.reopens:
                self.lose(refusal)
                return
            refusals[at] = f"RabbitMQ refused it: {refusal}"
            self._write(lambda: self._confirm(at, refusals, answered, done))
            return
        if queue is not None and queue.silent:
            return
        if queue is None:
            refusals[at] = NO_ROUTE
        elif queue.full:
            refusals[at] = REFUSED
        else:
            stored = self._broker.publish(
                queue.name, copy.body, copy.properties, exchange=copy.exchange, key=copy.routing_key
            )
            if self._broker.on_publish is not None:
                self._broker.on_publish(queue.name, stored)
        self._write(lambda: self._confirm(at, refusals, answered, done))

    async def find_delay_queue(self, queue: str, milliseconds: int) -> Undeclared | None:
        """Look for a delay queue; it is created when a copy comes."""
        await self._round_trip()
        return UNDECLARED if self._broker.undeclarable(milliseconds) else None

    def _delay(self, copy: OutboundMessage) -> str | None:
        """Keep a copy in its delay queue, from which it comes back by the default exchange; or return a refusal."""
        assert copy.delay is not None
        name, milliseconds = copy.delay
        if self._broker.undeclarable(milliseconds):
            return UNDECLARED
        if self._broker.delays_full:
            return REFUSED
        assert copy.routing_key == f"{name}.delay.{milliseconds}".encode()
        self._broker.delayed[copy.body] += 1
        if self._broker.on_delay is not None:
            self._broker.on_delay(copy)

        def come_back() -> None:
            if name not in self._broker.queues:  # dead-lettered at least once: it waits there until there is a route
                asyncio.get_running_loop().call_later(1.0, come_back)
                return
            self._broker.delayed[copy.body] -= 1
            if not self._broker.delayed[copy.body]:
                del self._broker.delayed[copy.body]
            self._broker.publish(name, copy.body, copy.properties)

        asyncio.get_running_loop().call_later(milliseconds / 1000, come_back)
        return None

    @property
    def publishing(self) -> bool:
        """Whether copies are on their way that the broker hasn't confirmed yet."""
        return bool(self._publishing)

    def confirm_all(self) -> None:
        """Have the confirms of all copies on their way arrive now."""
        for done in self._publishing:
            _resolve(done)

    @staticmethod
    def _confirm(at: int, refusals: list[str | None], answered: list[int], done: asyncio.Future[None]) -> None:
        answered.append(at)
        if len(answered) == len(refusals):
            _resolve(done)

    # The end ---------------------------------------------------------------------------------------------------------

    def lose(self, reason: str) -> None:
        """End the session as a broken connection does: what was on the wire is lost, acks included."""
        if not self.lost.done() and not self._ended:
            self.lost.set_result(reason)
            if self._broker.on_lost is not None:
                self._broker.on_lost(self, reason)
        self._end(reason)

    def _end(self, reason: str) -> None:
        if self._ended:
            return
        self._ended = True
        self.paused = False
        self._protocol.clear()
        self._unread.clear()
        for done in self._publishing:
            if not done.done():
                done.set_exception(BrokerError(reason))
        for channel in self.channels:
            channel.consuming = False
            channel.coming.clear()
            self._take_back(channel, "lost")

    def unblocked(self) -> None:
        """Tell that publishes are taken again, where it was told that they weren't."""
        if self._blocked and not self._ended:
            self._blocked = False
            self.on_blocked(None)

    def queue_gone(self, name: str) -> None:
        """Note that the broker deleted a queue: it cancels the consumer, which is the end of a session."""
        if self.keeps(name):
            self.lose(f"RabbitMQ cancelled the consumer of {name!r}")

    async def close(self) -> None:
        """Close in order: what was written before arrives before; the rest goes back to the queues."""
        self.closes += 1
        if self._ended:
            return
        for done in self._publishing:
            if not done.done():
                done.set_exception(BrokerError("the session was closed"))
        closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._write(lambda: _resolve(closed))
        await self._or_lost(closed)
        self._end("the session was closed")


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
