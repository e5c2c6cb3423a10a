"""Dead letters taken off their queue, and given back or acked: what ``sidecar dlq`` does on the network.

A look takes letters without acking them, and ends by closing the channel: RabbitMQ puts them back where they were.
(``basic.nack`` of more than 32 letters put them back in an order of its own on quorum queues of 3.10.8, and at the tail
on those without a delivery limit; the end of a channel kept the order on all kinds of queues.) On a quorum queue that
counts towards the delivery limit, so letters that were looked at often go to the tail of their own queue, as new ones,
all of them in turn: `renew`. See docs/decisions/0006-looking-at-dead-letters.md.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from aiormq.exceptions import ChannelNotFoundEntity
from yarl import URL

from sidecar.amqp.connection import (
    FAILURES,
    close_quietly,
    connect,
    connect_error,
    never_called,
    open_any,
    reason,
    reraise_own_cancellation,
)
from sidecar.amqp.publisher_connection import open_publisher_connection
from sidecar.amqp.topology import Topology
from sidecar.core.dead_letters.dead_letter import read, refreshed_properties, replay_properties
from sidecar.core.ledger import Ledger
from sidecar.core.wire import frames
from sidecar.core.wire.properties import PropertiesError
from sidecar.errors import BrokerError
from sidecar.ports import ACK_FLUSH_SECONDS, OutboundMessage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from aiormq.abc import AbstractChannel, AbstractConnection

    from sidecar.amqp.connection import AmqpProtocol, ConnectOptions
    from sidecar.amqp.publisher_connection import PublisherConnection
    from sidecar.core.dead_letters.dead_letter import DeadLetter
    from sidecar.core.message import Message
    from sidecar.core.wire.frames import ParsedFrames

SCAN_PREFETCH = 65_535
"""Letters unsettled at once where nothing is kept of them: as many as a consumer may have."""

REPLAY_PREFETCH = 200
"""Letters unsettled at once, beyond those that were passed over, where their bodies are kept until they are settled."""

MAX_REPLAY_PREFETCH = 5_000
REFRESH_AT_DELIVERIES = 10
"""So often a letter is given back before it is renewed: half of RabbitMQ's own limit, which drops at the 21st time."""

_CONSUMERS_IN_ORDER = 32  # of one channel; RabbitMQ 3.10 gives back those of more in an order of its own
_SPARE_CONSUMERS = 8
_REPLAY_BATCH = 200
_PARTS_PER_SECOND = 20  # at a limited rate: smooth enough to be called one
_QUIET_SECONDS = 0.5
_SILENT_SECONDS = 10.0
_OTHERS_SECONDS = 2.0
_LOOKS_FOR_NONE, _NONE_SECONDS = 3, 0.1
_RETURN_SECONDS = 10.0
_POLL_SECONDS = 0.02


class ScanAction(Enum):
    """What is done with a letter that was taken."""

    KEEP = "it goes back to where it was"
    TAKE = "it is worked on, and acked when that succeeds"
    STOP = "it goes back, and no more are wanted"


@dataclass(slots=True)
class ScanResult:
    """What came of letters that were taken.

    Attributes:
        seen: that were looked at.
        done: that were worked on and acked.
        refused: that were worked on in vain, and are in their queue as before.
        deliveries: the highest number of times that one was given back before.
        missing: that were there at the beginning, and did not come: somebody else took them.
        stopped: it ended before its end because it was asked to.
    """

    seen: int = 0
    done: int = 0
    refused: int = 0
    deliveries: int = 0
    missing: int = 0
    stopped: bool = False


class DeadLetterSource(Protocol):
    """What `sift` needs of `DeadLetterQueue`.

    Attributes:
        ready: how many letters there were at the beginning.
        ledger: of what was taken.
    """

    ready: int
    ledger: Ledger

    async def add_consumer(self, dead_letters: int) -> None:
        """Have so many more letters delivered, unsettled."""
        ...

    async def receive(self) -> list[Message]:
        """Return the next letters; none when there are no more."""
        ...

    def require_open(self) -> None:
        """Check that the letters taken are still unsettled.

        Raises:
            BrokerError: RabbitMQ has requeued them.
        """
        ...

    def acknowledge(self, messages: list[Message]) -> None:
        """Ack letters."""
        ...

    async def give_back(self) -> None:
        """Wait until RabbitMQ has the acks, and has requeued the other letters.

        Raises:
            BrokerError: RabbitMQ was lost: which acks it has is unknown.
        """
        ...


class ReplayTarget(Protocol):
    """What `Replay` needs of `DeadLetterQueue`."""

    @property
    def user(self) -> str | None:
        """Whom we log in as, where that is known."""
        ...

    @property
    def properties_limit(self) -> int:
        """How many bytes of properties fit into a frame."""
        ...

    async def publish(self, copies: list[OutboundMessage]) -> list[str | None]:
        """Publish mandatory copies and wait for each confirm."""
        ...


async def scan(
    source: DeadLetterSource,
    judge: Callable[[DeadLetter, Message], ScanAction],
    act: Callable[[list[tuple[DeadLetter, Message]]], Awaitable[list[str | None]]] | None = None,
    *,
    window: int = SCAN_PREFETCH,
    at_once: int = _REPLAY_BATCH,
    stop: asyncio.Event | None = None,
) -> ScanResult:
    """Look at each letter that was there at the beginning, in order, and act on some.

    Nothing is kept of letters that were passed over, but that they are unsettled.

    Args:
        source: where they are.
        judge: says what is done with a letter.
        act: works on letters; says for each None when it may be acked, or why not. It may return fewer answers than
            it was given letters: it was asked to stop, and the others go back.
        window: letters unsettled beyond those passed over.
        at_once: given to `act` at most.
        stop: ends it early.

    Raises:
        BrokerError: the connection was lost; what was not acked is in its queue, and the last acks may be lost too.
    """
    sifted = ScanResult()
    left = capacity = consumers = 0
    wanted = True
    while wanted and sifted.seen < source.ready:
        if left >= capacity:
            # All that may be unsettled is passed over. So whatever is delivered from now on comes after it.
            more = _more(window, left, consumers)
            await source.add_consumer(more)
            capacity, consumers = capacity + more, consumers + 1
        chunk = await source.receive()
        if not chunk:
            sifted.missing = source.ready - sifted.seen
            break
        seen = sifted.seen
        frames: list[tuple[DeadLetter, Message]] = []
        wanted = _judge(chunk[: source.ready - seen], judge, sifted, frames)
        left += sifted.seen - seen - len(frames)
        for part in _parts(frames, at_once):
            if act is None or (stop is not None and stop.is_set()):
                break
            left += await _act(source, act, part, sifted)
        if stop is not None and stop.is_set():
            sifted.stopped, wanted = True, False
    if sifted.done:
        await source.give_back()
    return sifted


def _judge(
    chunk: list[Message],
    judge: Callable[[DeadLetter, Message], ScanAction],
    result: ScanResult,
    frames: list[tuple[DeadLetter, Message]],
) -> bool:
    """Have letters judged, and add those that are worked on to `frames`; return whether more are wanted."""
    for message in chunk:
        dead_letter = read(message, result.seen + 1)
        result.seen += 1
        result.deliveries = max(result.deliveries, dead_letter.deliveries)
        verdict = judge(dead_letter, message)
        if verdict is ScanAction.TAKE:
            frames.append((dead_letter, message))
        elif verdict is ScanAction.STOP:
            return False
    return True


def _more(window: int, left: int, consumers: int) -> int:
    """Return how many more may be unsettled: few at a time, for their bodies are kept, while consumers suffice."""
    if consumers >= _CONSUMERS_IN_ORDER - _SPARE_CONSUMERS:
        return SCAN_PREFETCH
    return max(window, min(left, MAX_REPLAY_PREFETCH))


def _parts(frames: list[tuple[DeadLetter, Message]], at_once: int) -> Iterator[list[tuple[DeadLetter, Message]]]:
    rest = iter(frames)
    while part := list(islice(rest, at_once)):
        yield part


async def _act(
    source: DeadLetterSource,
    act: Callable[[list[tuple[DeadLetter, Message]]], Awaitable[list[str | None]]],
    part: list[tuple[DeadLetter, Message]],
    result: ScanResult,
) -> int:
    """Work on letters and ack what succeeded; return how many go back."""
    source.require_open()  # otherwise they are in their queue again, and the next command would replay them too
    answers = await act(part)
    done = [message for (_, message), answer in zip(part, answers, strict=False) if answer is None]
    source.acknowledge(done)
    result.done += len(done)
    result.refused += len(answers) - len(done)
    return len(part) - len(done)


class DeadLetterQueue:
    """A dead-letter queue that is looked at. Made by `open_dead_letter_queue`.

    Args:
        queue: its name.
        connect_options: how to reach the broker.

    Attributes:
        ready: how many letters there were at the beginning, or when they were last given back.
        ledger: of what was taken since.
        url: of the broker that answered.
    """

    def __init__(self, queue: str, connect_options: ConnectOptions) -> None:
        self.queue = queue
        self.ready = 0
        self.ledger = Ledger(queue, 0)
        self.url = URL()
        self._connect_options = connect_options
        self._connection: AbstractConnection | None = None
        self._protocol: AmqpProtocol | None = None
        self._channel: AbstractChannel | None = None
        self._consumers = 0
        self._acked = 0
        self._acks_safe_at = 0.0
        self._added = 0
        self._chunks: list[list[Message]] = []
        self._arrived = asyncio.Event()
        self._lost: str | None = None
        self._producer: PublisherConnection | None = None

    @property
    def user(self) -> str | None:
        """Whom we log in as, where that is known."""
        return None if self._connect_options.client_certificate and self.url.user is None else self.url.user or "guest"

    @property
    def properties_limit(self) -> int:
        """How many bytes of properties fit into a frame."""
        assert self._protocol is not None
        return frames.properties_limit(self._protocol.parser.frame_max)

    async def open(self, url: URL) -> None:
        """Connect, and see what there is.

        Raises:
            BrokerError: RabbitMQ can't be reached or refused, or there is no such queue, or others consume from it.
        """
        self.url = url
        try:
            self._connection, self._protocol = await connect(url, "dlq", self._take, self._lose, self._connect_options)
            await self._open_channel()
        except FAILURES as error:
            raise connect_error(error, url, self._connect_options) from error
        await self._count_all()

    async def _count_all(self) -> None:
        deadline = asyncio.get_running_loop().time() + _OTHERS_SECONDS
        self.ready, others = await self._state()
        for _ in range(_LOOKS_FOR_NONE):
            if self.ready or others:
                break
            await asyncio.sleep(_NONE_SECONDS)  # a quorum queue whose leader is busy counts as empty
            self.ready, others = await self._state()
        while others:  # one that has just ended is counted a little longer
            if asyncio.get_running_loop().time() >= deadline:
                raise BrokerError(
                    f"{others} other consumer(s) take letters from {self.queue!r}, perhaps another sidecar dlq: wait"
                    " until they are done, or stop them"
                )
            await asyncio.sleep(_POLL_SECONDS)
            self.ready, others = await self._state()

    async def _open_channel(self) -> None:
        assert self._connection is not None
        assert self._protocol is not None
        self._channel = channel = await self._connection.channel(publisher_confirms=False)
        channel.closing.add_done_callback(self._channel_closed)
        channel.on_consumer_cancel_callbacks.add(
            lambda _: self._lose(f"RabbitMQ cancelled the consumer of {self.queue!r}")
        )
        self.ledger = Ledger(self.queue, channel.number)
        self._protocol.parser.register_consumer(self.ledger)
        self._consumers = self._acked = self._added = 0

    async def _state(self) -> tuple[int, int]:
        """Return how many letters are ready, and how many consumers there are."""
        assert self._connection is not None
        try:
            channel = await self._connection.channel(publisher_confirms=False)
            answer = await channel.queue_declare(self.queue, passive=True)
            await channel.close()
        except ChannelNotFoundEntity as error:
            raise BrokerError(
                f"the queue {self.queue!r} doesn't exist; --queue names another (sidecar run creates <queue>.dead)"
            ) from error
        except FAILURES as error:
            raise self._translated(error) from error
        return answer.message_count or 0, answer.consumer_count or 0

    # What comes in --------------------------------------------------------------------------------------------------

    def _take(self, frames: ParsedFrames) -> None:
        if frames.messages:
            self._chunks.append(frames.messages)
            self._arrived.set()

    def _channel_closed(self, closing: asyncio.Future[object]) -> None:
        self._lose("channel closed" if closing.cancelled() else f"channel closed: {closing.exception()}")

    def _lose(self, reason: str) -> None:
        if self._channel is not None and self._lost is None:
            self._lost = reason
            self._arrived.set()

    async def add_consumer(self, dead_letters: int) -> None:
        """Have so many more letters delivered, unsettled, by one more consumer.

        Consumers are told apart by numbers of equal length: RabbitMQ gives back in the order of their names.

        Raises:
            BrokerError: RabbitMQ refused, or was lost.
        """
        channel = self._channel
        assert channel is not None
        try:
            await channel.basic_qos(prefetch_count=min(dead_letters, SCAN_PREFETCH))
            tag = f"dlq.{self._consumers:04}"
            await channel.basic_consume(self.queue, never_called, consumer_tag=tag)
        except FAILURES as error:
            raise self._translated(error) from error
        self._consumers += 1

    async def receive(self) -> list[Message]:
        """Return the next letters; none when none came for long, and there are none.

        Raises:
            BrokerError: RabbitMQ was lost, or has letters and doesn't deliver them.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        while not self._chunks:
            self._arrived.clear()
            if self._lost is not None:
                raise BrokerError(self._lost)
            try:
                async with asyncio.timeout(_QUIET_SECONDS):
                    await self._arrived.wait()
            except TimeoutError:
                if loop.time() - began < _SILENT_SECONDS or self._chunks:
                    continue
                ready, _ = await self._state()
                if not ready:
                    return []
                if not self._chunks:
                    raise BrokerError(
                        f"RabbitMQ has {ready:,} letters in {self.queue!r} and delivers none: does another consumer"
                        " have the queue for itself, or is a node away?"
                    ) from None
        return self._chunks.pop(0)

    # What goes out --------------------------------------------------------------------------------------------------

    def require_open(self) -> None:
        """Check that the letters taken are still unsettled.

        Raises:
            BrokerError: the channel is gone: they are in their queue again.
        """
        if self._lost is not None or self.ledger.channel_closed:
            raise BrokerError(self._lost or "channel closed")

    def acknowledge(self, messages: list[Message]) -> None:
        """Ack letters.

        Raises:
            BrokerError: the channel is gone: they are in their queue again.
        """
        self.require_open()
        if self._protocol is None or not messages or self.ledger.closed:
            return
        self._acked += self.ledger.mark_stored(messages)
        settlements = self.ledger.take_acks(individually=True)
        number = self.ledger.channel
        self._acks_safe_at = asyncio.get_running_loop().time() + ACK_FLUSH_SECONDS
        self._protocol.write(b"".join(frames.ack(number, tag, multiple=multiple) for tag, multiple in settlements))

    async def publish(self, copies: list[OutboundMessage]) -> list[str | None]:
        """Publish mandatory copies and wait for each confirm, on a connection of its own.

        Raises:
            BrokerError: that connection was lost; what became of the copies is unknown.
        """
        if self._producer is None:
            self._producer = await open_publisher_connection(
                (str(self.url),), Topology(queues=(), declare=False), self._connect_options
            )
        answers = await self._producer.publish(copies)
        own = self.queue.encode()
        self._added += sum(
            answer is None and copy.routing_key == own and not copy.exchange
            for copy, answer in zip(copies, answers, strict=True)
        )
        return answers

    async def give_back(self) -> None:
        """Have the queue take back what is unsettled, in its order, and wait until it has it; then begin anew.

        Raises:
            BrokerError: RabbitMQ was lost; it takes back all the same.
        """
        self.require_open()
        channel, protocol = self._channel, self._protocol
        if channel is None or protocol is None:
            return
        await asyncio.sleep(self._acks_safe_at - asyncio.get_running_loop().time())
        try:
            # Without cancelling first: what is on its way to a consumer that was cancelled comes back in any order.
            self._channel = None  # its end is no loss
            await channel.close()
            protocol.parser.unregister(channel.number)
            self.ledger.close()
            self._chunks.clear()
            self.ready = await self._wait_for(self.ready - self._acked + self._added)
            await self._open_channel()
        except FAILURES as error:
            raise self._translated(error) from error

    async def _wait_for(self, dead_letters: int) -> int:
        """Wait until so many are ready, as long as they become more: somebody else may take some; return how many."""
        loop = asyncio.get_running_loop()
        most, deadline = -1, loop.time() + _RETURN_SECONDS
        while (ready := (await self._state())[0]) < dead_letters and loop.time() < deadline:
            if ready > most:
                most, deadline = ready, loop.time() + _RETURN_SECONDS
            await asyncio.sleep(_POLL_SECONDS)
        return ready

    async def begin_again(self) -> None:
        """Give back what was taken, and count anew."""
        await self.give_back()
        await self._count_all()

    async def close(self) -> None:
        """Give back what is unsettled, and close the connections."""
        with suppress(BrokerError):
            await self.give_back()
        if self._producer is not None:
            await self._producer.close()
        self._channel = None
        await close_quietly(self._connection, self._protocol)

    def abort(self) -> None:
        """Drop the connections without a word."""
        if self._producer is not None:
            self._producer.abort()
        if self._protocol is not None:
            self._protocol.abort()

    def _translated(self, error: BaseException) -> BrokerError:
        reraise_own_cancellation(error)
        return BrokerError(self._lost or reason(error))


async def refresh_queue(
    source: DeadLetterQueue, on_progress: Callable[[int], None] | None = None, stop: asyncio.Event | None = None
) -> ScanResult:
    """Move all letters that are there to the tail of their queue, in order, so that their deliveries count anew.

    Each copy is confirmed before its letter is acked. An end in the middle leaves letters in the order of a cut pack of
    cards, and at worst some of them twice.

    Args:
        source: the queue, with nothing taken.
        on_progress: called with how many were moved.
        stop: ends it early.

    Raises:
        BrokerError: RabbitMQ was lost.
    """
    copies = 0
    moved = 0

    async def move(part: list[tuple[DeadLetter, Message]]) -> list[str | None]:
        nonlocal copies, moved
        answers: list[str | None] = []
        made = []
        for _, message in part:
            copies += 1
            token = b"%d" % copies
            try:
                properties = refreshed_properties(message, token=token, limit_bytes=source.properties_limit)
            except PropertiesError:
                properties = message.properties  # the broker vouches for what it delivers
            made.append(OutboundMessage(b"", source.queue.encode(), properties, message.body, token))
        answers = await source.publish(made)
        moved += answers.count(None)
        if on_progress is not None:
            on_progress(moved)
        return answers

    return await scan(source, lambda _, __: ScanAction.TAKE, move, window=REPLAY_PREFETCH, stop=stop)


class Replayer:
    """Publishes letters to the queues that they came from.

    Args:
        post: publishes, and logs in as somebody.
        rate: letters a second; 0: as many as it takes.
        stop: ends it early.
        on_progress: called with how many were published.

    Attributes:
        queues: how many letters are in which queue again.
        refusals: the others, by queue and why.
        expiring: of those published, that expire again.
    """

    def __init__(
        self,
        post: ReplayTarget,
        *,
        rate: float = 0.0,
        stop: asyncio.Event | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        self.queues: Counter[str] = Counter()
        self.expiring = 0
        self.refusals: Counter[tuple[str, str]] = Counter()
        self.at_once = min(_REPLAY_BATCH, max(1, int(rate / _PARTS_PER_SECOND))) if rate else _REPLAY_BATCH
        self._post = post
        self._rate = rate
        self._stop = stop or asyncio.Event()
        self._on_progress = on_progress
        self._began: float | None = None
        self._sent = 0

    async def act(self, part: list[tuple[DeadLetter, Message]]) -> list[str | None]:
        """Publish letters, when it is their time; see `sift`.

        Raises:
            BrokerError: RabbitMQ was lost.
        """
        await self._pace()
        if self._stop.is_set():
            return []
        answers: list[str | None] = [None] * len(part)
        copies: list[OutboundMessage] = []
        places: list[int] = []
        for at, (dead_letter, message) in enumerate(part):
            self._sent += 1
            token = b"%d" % self._sent
            try:
                properties = replay_properties(message, dead_letter, token=token, user=self._post.user)
            except PropertiesError as error:
                answers[at] = f"its properties are malformed: {error}"
                continue
            if len(properties) > self._post.properties_limit:
                answers[at] = f"its headers have {len(properties):,} bytes, more than fit into RabbitMQ's frame"
                continue
            copies.append(OutboundMessage(b"", dead_letter.queue.encode(), properties, message.body, token))
            places.append(at)
        for at, answer in zip(places, await self._post.publish(copies), strict=True):
            answers[at] = answer
        self._note(part, answers)
        return answers

    async def _pace(self) -> None:
        loop = asyncio.get_running_loop()
        if self._began is None:
            self._began = loop.time()
        pause = self._began + self._sent / self._rate - loop.time() if self._rate else 0.0
        if pause > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause)

    def _note(self, part: list[tuple[DeadLetter, Message]], answers: list[str | None]) -> None:
        for (dead_letter, _), answer in zip(part, answers, strict=True):
            if answer is None:
                self.queues[dead_letter.queue] += 1
                self.expiring += dead_letter.expires
            else:
                self.refusals[dead_letter.queue, answer] += 1
        if self._on_progress is not None:
            self._on_progress(self.queues.total())


async def open_dead_letter_queue(urls: tuple[str, ...], queue: str, connect_options: ConnectOptions) -> DeadLetterQueue:
    """Open a dead-letter queue at the first of `urls` that answers.

    Raises:
        BrokerError: none of them did; the text names each with its reason, without passwords.
    """
    return await open_any(urls, lambda: DeadLetterQueue(queue, connect_options))
