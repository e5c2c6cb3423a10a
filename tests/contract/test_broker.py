"""What the pipeline relies on in a broker session, held against the simulated and the real one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from sidecar.core.ledger import Settlement
from sidecar.core.wire.properties import header, join, split, table, text_value
from sidecar.core.wire.republish import TOKEN_HEADER
from sidecar.errors import BrokerError, QueueError
from sidecar.ports import OutboundMessage
from tests.fakes.broker import NO_PROPERTIES, REFUSED, properties

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.core.message import Message
    from sidecar.ports import BrokerSession
    from tests.contract.backends import BrokerSide

ODD_HEADERS = table([
    (b"number", b"l" + (-5).to_bytes(8, "big", signed=True)),
    (b"not text", b"S\0\0\0\x02\xff\xfe"),
    (b"flag", b"t\x01"),
    (b"flag", b"t\x00"),
])  # fmt: skip
_QUIET_SECONDS = 0.3
_PATIENCE_SECONDS = 20.0
_EXPIRES_SECONDS = 3.0


class Caught(list["Message"]):
    """Messages as they arrived."""

    def receive(self, chunk: list[Message]) -> None:
        """Take a chunk."""
        self.extend(chunk)

    @property
    def bodies(self) -> list[bytes]:
        """The bodies, in order."""
        return [message.body for message in self]

    async def until(self, count: int) -> None:
        """Wait until there are so many."""
        await until(lambda: len(self) >= count)
        assert len(self) == count, self.bodies


async def until(condition: Callable[[], object]) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110 - the condition is about a list, which tells nobody
            await asyncio.sleep(0.01)


async def publish(broker: BrokerSide, bodies: list[bytes], raw: bytes = NO_PROPERTIES) -> None:
    """Publish into the queue, confirmed."""
    session = await broker.open(lambda _: None)
    key = broker.queue.encode()
    copies = [OutboundMessage(b"", key, raw, body, b"%d" % at) for at, body in enumerate(bodies)]
    assert await session.publish(copies) == [None] * len(bodies)
    await session.close()


async def consuming(broker: BrokerSide, prefetch: int = 1_000) -> tuple[BrokerSession, Caught]:
    """Open a session that consumes; return it, and what arrives."""
    caught = Caught()
    session = await broker.open(caught.receive)
    await session.consume(prefetch)
    return session, caught


def numbered(count: int) -> list[bytes]:
    """Return bodies that tell their places."""
    return [b"%d" % number for number in range(count)]


def test_deliveries_come_in_order_with_tags_from_1(broker: BrokerSide) -> None:
    """Each is in its ledger when it arrives."""

    async def scenario() -> None:
        await publish(broker, numbered(500))
        session, caught = await consuming(broker)
        await caught.until(500)
        assert caught.bodies == numbered(500)
        assert [message.tag for message in caught] == list(range(1, 501))
        assert not any(message.redelivered for message in caught)
        (ledger,) = session.ledgers
        assert ledger.outstanding == 500
        assert caught[0].exchange == b""
        assert caught[0].routing_key == broker.queue.encode()
        await session.close()

    broker.play(scenario)


def test_no_more_is_delivered_than_the_prefetch_leaves_unsettled(broker: BrokerSide) -> None:
    """An ack makes room for as many as it covers."""

    async def scenario() -> None:
        await publish(broker, numbered(10))
        session, caught = await consuming(broker, prefetch=4)
        await caught.until(4)
        await asyncio.sleep(_QUIET_SECONDS)
        await caught.until(4)
        session.settle(session.ledgers[0], [Settlement(2, multiple=True)])
        await caught.until(6)
        await asyncio.sleep(_QUIET_SECONDS)
        await caught.until(6)
        session.settle(session.ledgers[0], [Settlement(4, multiple=False)])
        await caught.until(7)
        await session.close()

    broker.play(scenario)


def test_what_was_not_acked_comes_again_in_order_and_says_so(broker: BrokerSide) -> None:
    """After a close: acked ones are gone (a multiple covers all up to its tag, a single ack one), others come first."""

    async def scenario() -> None:
        await publish(broker, numbered(10))
        session, caught = await consuming(broker, prefetch=6)
        await caught.until(6)
        session.settle(session.ledgers[0], [Settlement(2, multiple=True), Settlement(4, multiple=False)])
        await caught.until(9)
        await session.close()
        session, again = await consuming(broker)
        await again.until(7)
        assert again.bodies == [b"2", b"4", b"5", b"6", b"7", b"8", b"9"]
        assert [bool(message.redelivered) for message in again] == [True] * 6 + [False]
        await session.close()

    broker.play(scenario)


def test_a_redelivery_counts_in_a_header(broker: BrokerSide) -> None:
    """A quorum queue adds ``x-delivery-count``; the other headers keep their bytes."""

    async def scenario() -> None:
        own = table([(b"own", text_value("stays"))])
        raw = join({"headers": len(own).to_bytes(4, "big") + own})
        await publish(broker, [b"one"], raw)
        session, caught = await consuming(broker)
        await caught.until(1)
        assert header(caught[0].properties, b"x-delivery-count") is None
        await session.close()
        session, again = await consuming(broker)
        await again.until(1)
        assert header(again[0].properties, b"own") == text_value("stays")
        count = header(again[0].properties, b"x-delivery-count")
        assert count is not None
        assert int.from_bytes(count[1:], "big") == 1
        await session.close()

    broker.play(scenario)


@pytest.mark.parametrize("count", [6, 33, 1_000])
def test_what_is_given_back_comes_again_in_order(broker: BrokerSide, count: int) -> None:
    """However many: at the head of the queue, in the order of delivery; what was acked before stays acked."""

    async def scenario() -> None:
        await publish(broker, numbered(count + 4))
        session, caught = await consuming(broker, prefetch=count)
        await caught.until(count)
        await session.cancel()
        (ledger,) = session.ledgers
        session.settle(ledger, [Settlement(1, multiple=True), Settlement(3, multiple=False)])
        ledger.close()
        await session.give_back([(ledger, [2, *range(4, count + 1)])])
        await session.close()
        session, again = await consuming(broker, prefetch=2_000)
        await again.until(count + 2)
        assert again.bodies == [body for body in numbered(count + 4) if body not in (b"0", b"2")]
        assert [bool(message.redelivered) for message in again] == [True] * (count - 2) + [False] * 4
        await session.close()

    broker.play(scenario)


def test_consuming_again_leaves_what_is_outstanding_alone(broker: BrokerSide) -> None:
    """What an earlier consumer brought stays to be settled, and takes no room in the next one's prefetch."""

    async def scenario() -> None:
        await publish(broker, numbered(10))
        session, caught = await consuming(broker, prefetch=3)
        await caught.until(3)
        await session.cancel()
        await session.consume(4)
        await caught.until(7)
        await asyncio.sleep(_QUIET_SECONDS)
        await caught.until(7)
        assert caught.bodies == numbered(7)
        session.settle(session.ledgers[0], [Settlement(2, multiple=True)])
        await asyncio.sleep(_QUIET_SECONDS)
        await caught.until(7)
        session.settle(session.ledgers[0], [Settlement(5, multiple=True)])
        await caught.until(9)
        await session.close()

    broker.play(scenario)


@pytest.mark.parametrize("count", [33, 1_000])
def test_giving_back_by_nacks(broker: BrokerSide, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """As from RabbitMQ 4.3 on: all come again, on the same channel; two commands keep their order on any version."""
    monkeypatch.setattr("sidecar.amqp.session._nack_is_free", lambda _: True)

    async def scenario() -> None:
        await publish(broker, numbered(count))
        session, caught = await consuming(broker, prefetch=count)
        await caught.until(count)
        await session.cancel()
        (ledger,) = session.ledgers
        ledger.close()
        await session.give_back([(ledger, list(range(1, count + 1)))])
        await session.consume(count)
        await caught.until(2 * count)
        assert [message.tag for message in caught[count:]] == list(range(count + 1, 2 * count + 1))
        assert sorted(caught.bodies[count:]) == sorted(numbered(count))
        if count < 64:
            assert caught.bodies[count:] == numbered(count)
        await session.close()

    broker.play(scenario)


@pytest.mark.parametrize("count", [6, 200])
def test_single_deliveries_go_back_in_order_and_the_others_stay(broker: BrokerSide, count: int) -> None:
    """``nack`` of some: they come again before what was never delivered; the rest is settled as ever."""

    async def scenario() -> None:
        await publish(broker, numbered(count + 2))
        session, caught = await consuming(broker, prefetch=count)
        await caught.until(count)
        await session.cancel()
        await session.requeue(session.ledgers[0], list(range(3, count + 1)))
        session.settle(session.ledgers[0], [Settlement(2, multiple=True)])
        await session.consume(count + 10)
        await caught.until(2 * count)
        assert caught.bodies[count:] == numbered(count + 2)[2:]
        assert [message.tag for message in caught] == list(range(1, 2 * count + 1))
        assert [bool(message.redelivered) for message in caught[count:]] == [True] * (count - 2) + [False] * 2
        await session.close()

    broker.play(scenario)


def test_what_comes_after_a_return_belongs_to_another_ledger(broker: BrokerSide) -> None:
    """So that a late result of the first delivery isn't taken for one of the second."""

    async def scenario() -> None:
        await publish(broker, numbered(4))
        session, caught = await consuming(broker)
        await caught.until(4)
        await session.cancel()
        (first,) = session.ledgers
        first.close()
        await session.give_back([(first, [1, 2, 3, 4])])
        (second,) = session.ledgers
        assert second is not first
        session.settle(first, [Settlement(4, multiple=True)])
        await session.consume(10)
        await caught.until(8)
        assert caught.bodies[4:] == numbered(4)
        assert {message.ledger for message in caught[4:]} == {second}
        session.settle(second, [Settlement(caught[-1].tag, multiple=True)])
        await session.close()
        session, again = await consuming(broker)
        await asyncio.sleep(_QUIET_SECONDS)
        assert not again
        await session.close()

    broker.play(scenario)


def test_what_came_back_too_often_is_dropped(broker: BrokerSide) -> None:
    """A delivery limit of 2 allows three deliveries; the others aren't counted with it."""

    async def scenario() -> None:
        broker.delivery_limit = 2
        await publish(broker, numbered(2))
        session, caught = await consuming(broker)
        await caught.until(2)
        for tag in (1, 3, 4):
            await session.requeue(session.ledgers[0], [tag])
            await asyncio.sleep(_QUIET_SECONDS)
        await caught.until(4)
        assert caught.bodies == [b"0", b"1", b"0", b"0"]
        await session.close()
        session, again = await consuming(broker)
        await again.until(1)
        assert again.bodies == [b"1"]
        await session.close()

    broker.play(scenario)


def test_what_is_rejected_is_gone(broker: BrokerSide) -> None:
    """``basic.reject`` without requeue, where no dead-lettering is set up; the neighbours stay."""

    async def scenario() -> None:
        await publish(broker, numbered(3))
        session, caught = await consuming(broker)
        await caught.until(3)
        (ledger,) = session.ledgers
        ledger.mark_settled(caught[1])
        session.reject(ledger, 2)
        await session.close()
        session, again = await consuming(broker)
        await again.until(2)
        assert again.bodies == [b"0", b"2"]
        await session.close()

    broker.play(scenario)


def test_consumers_share_a_queue_and_inherit_from_each_other(broker: BrokerSide) -> None:
    """Each gets what its prefetch allows; what one leaves unsettled at its end comes to the other, as redelivered."""

    async def scenario() -> None:
        await publish(broker, numbered(10))
        first, mine = await consuming(broker, prefetch=5)
        await mine.until(5)
        second, others = await consuming(broker, prefetch=100)
        await others.until(5)
        assert sorted(mine.bodies + others.bodies) == numbered(10)
        first.settle(first.ledgers[0], [Settlement(1, multiple=False)])
        await first.close()
        await others.until(9)
        assert others.bodies[5:] == mine.bodies[1:]
        assert [bool(message.redelivered) for message in others] == [False] * 5 + [True] * 4
        await second.close()

    broker.play(scenario)


def test_a_delayed_copy_comes_back_to_its_queue(broker: BrokerSide) -> None:
    """By a queue that is made for it; confirmed like any other copy, and delivered as new when its time has come."""

    async def scenario() -> None:
        session, caught = await consuming(broker)
        delay = f"{broker.queue}.delay.300".encode()
        raw = properties(message_id="id-1")
        began_at = asyncio.get_running_loop().time()
        assert await session.publish([OutboundMessage(b"", delay, raw, b"later", b"1", (broker.queue, 300))]) == [None]
        await caught.until(1)
        assert asyncio.get_running_loop().time() - began_at > 0.25
        (message,) = caught
        assert (message.body, message.redelivered, message.exchange) == (b"later", 0, b"")
        assert message.routing_key == broker.queue.encode()
        assert split(message.properties)["message_id"] == split(raw)["message_id"]
        await session.close()

    broker.play(scenario)


def test_a_queue_that_is_deleted_costs_the_session(broker: BrokerSide) -> None:
    """The broker cancels the consumer; what was delivered is settled by nobody any more."""

    async def scenario() -> None:
        await publish(broker, numbered(2))
        session, caught = await consuming(broker)
        await caught.until(2)
        await broker.delete()
        async with asyncio.timeout(_PATIENCE_SECONDS):
            assert "cancelled" in await asyncio.shield(session.lost)
        await session.close()
        with pytest.raises(QueueError, match="was there and is gone"):
            await consuming(broker)  # it isn't made anew
        await broker.declare()
        session, again = await consuming(broker)
        await asyncio.sleep(_QUIET_SECONDS)
        assert not again
        await session.close()

    broker.play(scenario)


def test_a_queue_that_expires_is_kept_while_nothing_is_consumed(broker: BrokerSide) -> None:
    """Before the first consumer and after one was cancelled; nothing that waits there is handed out or lost."""

    async def scenario() -> None:
        await broker.declare(expires_seconds=_EXPIRES_SECONDS)
        caught = Caught()
        session = await broker.open(caught.receive)
        await asyncio.sleep(3 * _EXPIRES_SECONDS)
        await publish(broker, numbered(2))
        await session.consume(1)
        await caught.until(1)
        await session.cancel()
        await asyncio.sleep(3 * _EXPIRES_SECONDS)
        await session.consume(10)
        await caught.until(2)
        assert not any(message.redelivered for message in caught)
        await session.close()
        await asyncio.sleep(3 * _EXPIRES_SECONDS)
        assert not await broker.is_there()

    broker.play(scenario)


def test_nothing_arrives_while_reading_is_paused(broker: BrokerSide) -> None:
    """It lies on the wire, and arrives when reading goes on; acks are written all the same."""

    async def scenario() -> None:
        await publish(broker, numbered(20))
        session, caught = await consuming(broker, prefetch=10)
        await caught.until(10)
        session.pause()
        session.settle(session.ledgers[0], [Settlement(10, multiple=True)])
        await asyncio.sleep(_QUIET_SECONDS)
        assert len(caught) == 10
        session.resume()
        await caught.until(20)
        assert caught.bodies == numbered(20)
        session.pause()
        await session.close()  # nobody waits for an answer that isn't read

    broker.play(scenario)


@pytest.mark.parametrize("tag", [99, 1])
@pytest.mark.parametrize("multiple", [False, True])
def test_an_ack_of_a_tag_that_is_not_outstanding_costs_the_session(
    broker: BrokerSide,
    tag: int,
    multiple: bool,
) -> None:
    """Never delivered, or acked already: 406; what was outstanding goes back."""

    async def scenario() -> None:
        await publish(broker, numbered(3))
        session, caught = await consuming(broker)
        await caught.until(3)
        session.settle(session.ledgers[0], [Settlement(1, multiple=False)])
        session.settle(session.ledgers[0], [Settlement(tag, multiple=multiple)])
        async with asyncio.timeout(_PATIENCE_SECONDS):
            reason = await asyncio.shield(session.lost)
        assert "unknown delivery tag" in reason
        await session.close()
        session, again = await consuming(broker)
        await again.until(2)
        assert again.bodies == [b"1", b"2"]
        await session.close()

    broker.play(scenario)


def test_unroutable_copies_are_refused_each_by_itself(broker: BrokerSide) -> None:
    """Equal ``message_id``s, several calls in flight, routable ones in between: none is taken for another."""

    async def scenario() -> None:
        session, caught = await consuming(broker)

        def copies(first: int) -> list[OutboundMessage]:
            made = []
            for number in range(first, first + 20):
                token = b"%d" % number
                content = table([(TOKEN_HEADER, text_value(token))])
                raw = join({"headers": len(content).to_bytes(4, "big") + content, "message_id": b"\x04same"})
                key = broker.queue.encode() if number % 3 else b"nowhere-" + broker.queue.encode()
                made.append(OutboundMessage(b"", key, raw, token, token))
            return made

        parts = await asyncio.gather(*(session.publish(copies(first)) for first in (0, 20, 40)))
        refusals = [refusal for part in parts for refusal in part]
        assert [refusal is None for refusal in refusals] == [number % 3 != 0 for number in range(60)]
        assert {refusal for refusal in refusals if refusal is not None} == {"unroutable: 312 NO_ROUTE"}
        await caught.until(40)
        assert sorted(caught.bodies) == sorted(b"%d" % number for number in range(60) if number % 3)
        await session.close()

    broker.play(scenario)


def test_a_full_queue_refuses_copies(broker: BrokerSide) -> None:
    """``basic.nack`` is a refusal, not a confirm; the session lives on."""

    async def scenario() -> None:
        full = (await broker.fill()).encode()
        session, caught = await consuming(broker)
        key = broker.queue.encode()
        copies = [
            OutboundMessage(b"", name, NO_PROPERTIES, b"x", b"%d" % at) for at, name in enumerate((full, key, full))
        ]
        assert await session.publish(copies) == [REFUSED, None, REFUSED]
        await caught.until(1)
        assert not session.lost.done()
        await session.close()

    broker.play(scenario)


def test_a_missing_exchange_refuses_only_its_own_copies(broker: BrokerSide) -> None:
    """RabbitMQ closes the channel (404). The session goes on, and so do copies for other exchanges."""

    async def scenario() -> None:
        session, _ = await consuming(broker)
        for token in (b"1", b"3"):
            missing = OutboundMessage(b"no-such-exchange", b"x", NO_PROPERTIES, b"x", token)
            known = OutboundMessage(b"", broker.queue.encode(), NO_PROPERTIES, b"x", b"2")
            refusal, stored = await session.publish([missing, known])
            assert refusal is not None
            assert "no exchange" in refusal
            assert stored is None
        assert not session.lost.done()
        await session.close()

    broker.play(scenario)


def test_after_a_cancel_nothing_more_is_delivered(broker: BrokerSide) -> None:
    """Not even when acks make room."""

    async def scenario() -> None:
        await publish(broker, numbered(10))
        session, caught = await consuming(broker, prefetch=5)
        await caught.until(5)
        await session.cancel()
        count = len(caught)
        session.settle(session.ledgers[0], [Settlement(5, multiple=True)])
        await asyncio.sleep(_QUIET_SECONDS)
        assert len(caught) == count == 5
        await session.close()
        session, again = await consuming(broker)
        await again.until(5)
        assert again.bodies == numbered(10)[5:]
        await session.close()

    broker.play(scenario)


@pytest.mark.parametrize("turns", range(6))
def test_a_cancel_holds_though_the_consume_was_cut_off(broker: BrokerSide, turns: int) -> None:
    """SIGTERM may come while consuming begins: after `cancel` nothing arrives, or the session says that it is lost."""

    async def scenario() -> None:
        await publish(broker, numbered(10))
        caught = Caught()
        session = await broker.open(caught.receive)
        begin = asyncio.create_task(session.consume(5))
        for _ in range(turns):
            await asyncio.sleep(0)
        begin.cancel()
        await asyncio.wait([begin])
        try:
            await session.cancel()
        except BrokerError:
            await session.close()
            return
        count = len(caught)
        (ledger,) = session.ledgers
        ledger.close()
        await session.give_back([(ledger, list(range(1, count + 1)))])
        await asyncio.sleep(_QUIET_SECONDS)
        assert len(caught) == count, "deliveries after the cancel"
        await session.close()

    broker.play(scenario)


@pytest.mark.parametrize("size", [0, 1, 131_063, 131_064, 131_065, 400_000, 3_000_000])
def test_bodies_of_any_size_arrive_whole(broker: BrokerSide, size: int) -> None:
    """None, one frame, exactly one frame, several frames; small ones before and behind keep their places."""

    async def scenario() -> None:
        body = (b"0123456789abcdef" * (size // 16 + 1))[:size]
        await publish(broker, [b"before", body, b"behind"])
        session, caught = await consuming(broker)
        await caught.until(3)
        assert caught.bodies == [b"before", body, b"behind"]
        await session.close()

    broker.play(scenario)


@pytest.mark.parametrize(
    "raw",
    [
        NO_PROPERTIES,
        properties(message_id="id-1", app_id="producer", content_type="application/json"),
        join({"timestamp": (1_700_000_000_123).to_bytes(8, "big")}),
        join({"message_id": b"\x03\xff\xfe\xfd"}),
        join({"headers": len(ODD_HEADERS).to_bytes(4, "big") + ODD_HEADERS}),
    ],
    ids=["none", "strings", "milliseconds", "id that is not UTF-8", "headers"],
)  # fmt: skip
def test_properties_keep_their_bytes(broker: BrokerSide, raw: bytes) -> None:
    """What was published is what is delivered, to the byte."""

    async def scenario() -> None:
        await publish(broker, [b"x"], raw)
        session, caught = await consuming(broker)
        await caught.until(1)
        assert caught[0].properties == raw
        await session.close()

    broker.play(scenario)


def test_a_closed_session_says_so(broker: BrokerSide) -> None:
    """Publishing and giving back fail; settling is void; closing again does nothing."""

    async def scenario() -> None:
        await publish(broker, numbered(3))
        session, caught = await consuming(broker)
        await caught.until(3)
        await session.close()
        with pytest.raises(BrokerError):
            await session.publish([OutboundMessage(b"", broker.queue.encode(), NO_PROPERTIES, b"x", b"1")])
        session.settle(session.ledgers[0], [Settlement(1, multiple=True)])
        with pytest.raises(BrokerError):
            await session.give_back([(session.ledgers[0], [1, 2, 3])])
        await session.close()
        session, again = await consuming(broker)
        await again.until(3)
        await session.close()

    broker.play(scenario)
