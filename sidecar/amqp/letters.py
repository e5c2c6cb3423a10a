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

from sidecar.amqp.producer import open_producer
from sidecar.amqp.topology import Topology
from sidecar.amqp.wire import FAILURES, connect, end, never_called, open_first, pass_on_if_ours, reason, unopened
from sidecar.core import frames
from sidecar.core.ledger import Ledger
from sidecar.core.letters import read, renewed, replayed
from sidecar.core.properties import PropertiesError
from sidecar.errors import BrokerError
from sidecar.ports import ACKS_SECONDS, Copy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from aiormq.abc import AbstractChannel, AbstractConnection

    from sidecar.amqp.producer import Producer
    from sidecar.amqp.wire import Reach, Wire
    from sidecar.core.frames import Taken
    from sidecar.core.letters import Letter
    from sidecar.core.message import Message

LOOKING = 65_535
"""Letters unsettled at once where nothing is kept of them: as many as a consumer may have."""

WORKING = 200
"""Letters unsettled at once, beyond those that were passed over, where their bodies are kept until they are settled."""

MOST_WORKING = 5_000
RENEW_AT = 10
"""So often a letter is given back before it is renewed: half of RabbitMQ's own limit, which drops at the 21st time."""

_CONSUMERS_IN_ORDER = 32  # of one channel; RabbitMQ 3.10 gives back those of more in an order of its own
_SPARE_CONSUMERS = 8
_AT_ONCE = 200
_PARTS_PER_SECOND = 20  # at a limited rate: smooth enough to be called one
_QUIET_SECONDS = 0.5
_SILENT_SECONDS = 10.0
_OTHERS_SECONDS = 2.0
_LOOKS_FOR_NONE, _NONE_SECONDS = 3, 0.1
_RETURN_SECONDS = 10.0
_POLL_SECONDS = 0.02


class Verdict(Enum):
    """What is done with a letter that was taken."""

    LEAVE = "it goes back to where it was"
    TAKE = "it is worked on, and acked when that succeeds"
    STOP = "it goes back, and no more are wanted"


@dataclass(slots=True)
class Sifted:
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


class Box(Protocol):
    """What `sift` needs of `LetterBox`.

    Attributes:
        ready: how many letters there were at the beginning.
        ledger: of what was taken.
    """

    ready: int
    ledger: Ledger

    async def widen(self, letters: int) -> None:
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


class Post(Protocol):
    """What `Replay` needs of `LetterBox`."""

    @property
    def user(self) -> str | None:
        """Whom we log in as, where that is known."""
        ...

    @property
    def properties_limit(self) -> int:
        """How many bytes of properties fit into a frame."""
        ...

    async def publish(self, copies: list[Copy]) -> list[str | None]:
        """Publish mandatory copies and wait for each confirm."""
        ...


async def sift(
    box: Box,
    judge: Callable[[Letter, Message], Verdict],
    act: Callable[[list[tuple[Letter, Message]]], Awaitable[list[str | None]]] | None = None,
    *,
    window: int = LOOKING,
    at_once: int = _AT_ONCE,
    stop: asyncio.Event | None = None,
) -> Sifted:
    """Look at each letter that was there at the beginning, in order, and act on some.

    Nothing is kept of letters that were passed over, but that they are unsettled.

    Args:
        box: where they are.
        judge: says what is done with a letter.
        act: works on letters; says for each None when it may be acked, or why not. It may return fewer answers than
            it was given letters: it was asked to stop, and the others go back.
        window: letters unsettled beyond those passed over.
        at_once: given to `act` at most.
        stop: ends it early.

    Raises:
        BrokerError: the connection was lost; what was not acked is in its queue, and the last acks may be lost too.
    """
    sifted = Sifted()
    left = capacity = consumers = 0
    wanted = True
    while wanted and sifted.seen < box.ready:
        if left >= capacity:
            # All that may be unsettled is passed over. So whatever is delivered from now on comes after it.
            more = _more(window, left, consumers)
            await box.widen(more)
            capacity, consumers = capacity + more, consumers + 1
        chunk = await box.receive()
        if not chunk:
            sifted.missing = box.ready - sifted.seen
            break
        seen = sifted.seen
        taken: list[tuple[Letter, Message]] = []
        wanted = _judge(chunk[: box.ready - seen], judge, sifted, taken)
        left += sifted.seen - seen - len(taken)
        for part in _parts(taken, at_once):
            if act is None or (stop is not None and stop.is_set()):
                break
            left += await _act(box, act, part, sifted)
        if stop is not None and stop.is_set():
            sifted.stopped, wanted = True, False
    if sifted.done:
        await box.give_back()
    return sifted


def _judge(
    chunk: list[Message],
    judge: Callable[[Letter, Message], Verdict],
    sifted: Sifted,
    taken: list[tuple[Letter, Message]],
) -> bool:
    """Have letters judged, and add those that are worked on to `taken`; return whether more are wanted."""
    for message in chunk:
        letter = read(message, sifted.seen + 1)
        sifted.seen += 1
        sifted.deliveries = max(sifted.deliveries, letter.deliveries)
        verdict = judge(letter, message)
        if verdict is Verdict.TAKE:
            taken.append((letter, message))
        elif verdict is Verdict.STOP:
            return False
    return True


def _more(window: int, left: int, consumers: int) -> int:
    """Return how many more may be unsettled: few at a time, for their bodies are kept, while consumers suffice."""
    if consumers >= _CONSUMERS_IN_ORDER - _SPARE_CONSUMERS:
        return LOOKING
    return max(window, min(left, MOST_WORKING))


def _parts(taken: list[tuple[Letter, Message]], at_once: int) -> Iterator[list[tuple[Letter, Message]]]:
    rest = iter(taken)
    while part := list(islice(rest, at_once)):
        yield part


async def _act(
    box: Box,
    act: Callable[[list[tuple[Letter, Message]]], Awaitable[list[str | None]]],
    part: list[tuple[Letter, Message]],
    sifted: Sifted,
) -> int:
    """Work on letters and ack what succeeded; return how many go back."""
    box.require_open()  # otherwise they are in their queue again, and would be replayed once more by the next command
    answers = await act(part)
    done = [message for (_, message), answer in zip(part, answers, strict=False) if answer is None]
    box.acknowledge(done)
    sifted.done += len(done)
    sifted.refused += len(answers) - len(done)
    return len(part) - len(done)


class LetterBox:
    """A dead-letter queue that is looked at. Made by `open_letters`.

    Args:
        queue: its name.
        reach: how to reach the broker.

    Attributes:
        ready: how many letters there were at the beginning, or when they were last given back.
        ledger: of what was taken since.
        url: of the broker that answered.
    """

    def __init__(self, queue: str, reach: Reach) -> None:
        self.queue = queue
        self.ready = 0
        self.ledger = Ledger(queue, 0)
        self.url = URL()
        self._reach = reach
        self._connection: AbstractConnection | None = None
        self._wire: Wire | None = None
        self._channel: AbstractChannel | None = None
        self._consumers = 0
        self._acked = 0
        self._acks_safe_at = 0.0
        self._added = 0
        self._chunks: list[list[Message]] = []
        self._arrived = asyncio.Event()
        self._lost: str | None = None
        self._producer: Producer | None = None

    @property
    def user(self) -> str | None:
        """Whom we log in as, where that is known."""
        return None if self._reach.client_certificate and self.url.user is None else self.url.user or "guest"

    @property
    def properties_limit(self) -> int:
        """How many bytes of properties fit into a frame."""
        assert self._wire is not None
        return frames.properties_limit(self._wire.inbound.frame_max)

    async def open(self, url: URL) -> None:
        """Connect, and see what there is.

        Raises:
            BrokerError: RabbitMQ can't be reached or refused, or there is no such queue, or others consume from it.
        """
        self.url = url
        try:
            self._connection, self._wire = await connect(url, "dlq", self._take, self._lose, self._reach)
            await self._open_channel()
        except FAILURES as error:
            raise unopened(error, url, self._reach) from error
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
        assert self._wire is not None
        self._channel = channel = await self._connection.channel(publisher_confirms=False)
        channel.closing.add_done_callback(self._channel_closed)
        channel.on_consumer_cancel_callbacks.add(
            lambda _: self._lose(f"RabbitMQ cancelled the consumer of {self.queue!r}")
        )
        self.ledger = Ledger(self.queue, channel.number)
        self._wire.inbound.take_deliveries(self.ledger)
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

    def _take(self, taken: Taken) -> None:
        if taken.messages:
            self._chunks.append(taken.messages)
            self._arrived.set()

    def _channel_closed(self, closing: asyncio.Future[object]) -> None:
        self._lose("channel closed" if closing.cancelled() else f"channel closed: {closing.exception()}")

    def _lose(self, reason: str) -> None:
        if self._channel is not None and self._lost is None:
            self._lost = reason
            self._arrived.set()

    async def widen(self, letters: int) -> None:
        """Have so many more letters delivered, unsettled, by one more consumer.

        Consumers are told apart by numbers of equal length: RabbitMQ gives back in the order of their names.

        Raises:
            BrokerError: RabbitMQ refused, or was lost.
        """
        channel = self._channel
        assert channel is not None
        try:
            await channel.basic_qos(prefetch_count=min(letters, LOOKING))
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
        if self._wire is None or not messages or self.ledger.closed:
            return
        self._acked += self.ledger.store(messages)
        settlements = self.ledger.collect(singly=True)
        number = self.ledger.channel
        self._acks_safe_at = asyncio.get_running_loop().time() + ACKS_SECONDS
        self._wire.write(b"".join(frames.ack(number, tag, multiple=multiple) for tag, multiple in settlements))

    async def publish(self, copies: list[Copy]) -> list[str | None]:
        """Publish mandatory copies and wait for each confirm, on a connection of its own.

        Raises:
            BrokerError: that connection was lost; what became of the copies is unknown.
        """
        if self._producer is None:
            self._producer = await open_producer((str(self.url),), Topology(queues=(), declare=False), self._reach)
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
        channel, wire = self._channel, self._wire
        if channel is None or wire is None:
            return
        await asyncio.sleep(self._acks_safe_at - asyncio.get_running_loop().time())
        try:
            # Without cancelling first: what is on its way to a consumer that was cancelled comes back in any order.
            self._channel = None  # its end is no loss
            await channel.close()
            wire.inbound.release(channel.number)
            self.ledger.close()
            self._chunks.clear()
            self.ready = await self._wait_for(self.ready - self._acked + self._added)
            await self._open_channel()
        except FAILURES as error:
            raise self._translated(error) from error

    async def _wait_for(self, letters: int) -> int:
        """Wait until so many are ready, as long as they become more: somebody else may take some; return how many."""
        loop = asyncio.get_running_loop()
        most, deadline = -1, loop.time() + _RETURN_SECONDS
        while (ready := (await self._state())[0]) < letters and loop.time() < deadline:
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
        await end(self._connection, self._wire)

    def abandon(self) -> None:
        """Drop the connections without a word."""
        if self._producer is not None:
            self._producer.abandon()
        if self._wire is not None:
            self._wire.abort()

    def _translated(self, error: BaseException) -> BrokerError:
        pass_on_if_ours(error)
        return BrokerError(self._lost or reason(error))


async def renew(
    box: LetterBox, on_progress: Callable[[int], None] | None = None, stop: asyncio.Event | None = None
) -> Sifted:
    """Move all letters that are there to the tail of their queue, in order, so that their deliveries count anew.

    Each copy is confirmed before its letter is acked. An end in the middle leaves letters in the order of a cut pack of
    cards, and at worst some of them twice.

    Args:
        box: the queue, with nothing taken.
        on_progress: called with how many were moved.
        stop: ends it early.

    Raises:
        BrokerError: RabbitMQ was lost.
    """
    copies = 0
    moved = 0

    async def move(part: list[tuple[Letter, Message]]) -> list[str | None]:
        nonlocal copies, moved
        answers: list[str | None] = []
        made = []
        for _, message in part:
            copies += 1
            token = b"%d" % copies
            try:
                properties = renewed(message, token=token, limit_bytes=box.properties_limit)
            except PropertiesError:
                properties = message.properties  # the broker vouches for what it delivers
            made.append(Copy(b"", box.queue.encode(), properties, message.body, token))
        answers = await box.publish(made)
        moved += answers.count(None)
        if on_progress is not None:
            on_progress(moved)
        return answers

    return await sift(box, lambda _, __: Verdict.TAKE, move, window=WORKING, stop=stop)


class Replay:
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
        post: Post,
        *,
        rate: float = 0.0,
        stop: asyncio.Event | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        self.queues: Counter[str] = Counter()
        self.expiring = 0
        self.refusals: Counter[tuple[str, str]] = Counter()
        self.at_once = min(_AT_ONCE, max(1, int(rate / _PARTS_PER_SECOND))) if rate else _AT_ONCE
        self._post = post
        self._rate = rate
        self._stop = stop or asyncio.Event()
        self._on_progress = on_progress
        self._began: float | None = None
        self._sent = 0

    async def act(self, part: list[tuple[Letter, Message]]) -> list[str | None]:
        """Publish letters, when it is their time; see `sift`.

        Raises:
            BrokerError: RabbitMQ was lost.
        """
        await self._pace()
        if self._stop.is_set():
            return []
        answers: list[str | None] = [None] * len(part)
        copies: list[Copy] = []
        places: list[int] = []
        for at, (letter, message) in enumerate(part):
            self._sent += 1
            token = b"%d" % self._sent
            try:
                properties = replayed(message, letter, token=token, user=self._post.user)
            except PropertiesError as error:
                answers[at] = f"its properties are malformed: {error}"
                continue
            if len(properties) > self._post.properties_limit:
                answers[at] = f"its headers have {len(properties):,} bytes, more than fit into RabbitMQ's frame"
                continue
            copies.append(Copy(b"", letter.queue.encode(), properties, message.body, token))
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

    def _note(self, part: list[tuple[Letter, Message]], answers: list[str | None]) -> None:
        for (letter, _), answer in zip(part, answers, strict=True):
            if answer is None:
                self.queues[letter.queue] += 1
                self.expiring += letter.expires
            else:
                self.refusals[letter.queue, answer] += 1
        if self._on_progress is not None:
            self._on_progress(self.queues.total())


async def open_letters(urls: tuple[str, ...], queue: str, reach: Reach) -> LetterBox:
    """Open a dead-letter queue at the first of `urls` that answers.

    Raises:
        BrokerError: none of them did; the text names each with its reason, without passwords.
    """
    return await open_first(urls, lambda: LetterBox(queue, reach))
