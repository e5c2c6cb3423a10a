"""The product's own connections against a byte-level server, in virtual time: from the socket up, and to every end."""

from __future__ import annotations

import asyncio
import random
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.amqp.confirms import REFUSED
from sidecar.amqp.connection import ConnectOptions, forget_leftovers
from sidecar.amqp.dead_letter_queue import open_dead_letter_queue
from sidecar.amqp.publisher import ReconnectingPublisher
from sidecar.amqp.publisher_connection import PublisherConnection, open_publisher_connection
from sidecar.amqp.session import Session, SessionOptions, open_session
from sidecar.amqp.topology import Seen, Topology
from sidecar.core.ledger import Settlement
from sidecar.core.wire.republish import TOKEN_HEADER
from sidecar.errors import BrokerError, QueueError
from sidecar.ports import NACK_BATCH, QUEUE_DURABLE_AFTER_SECONDS, OutboundMessage, Undeclared, Unroutable
from tests.builders import examples, long_string, properties
from tests.drawing import drew
from tests.fakes import network
from tests.fakes.amqp_methods import HEARTBEAT_FRAME
from tests.fakes.amqp_server import (
    AmqpServer,
    Exchange,
    ack,
    answer,
    by_chance,
    drop,
    each,
    end,
    ignore,
    nack,
    refuse,
    script,
    withheld,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from sidecar.amqp.connection import AmqpProtocol
    from sidecar.core.message import Message
    from tests.fakes.amqp_methods import Method
    from tests.fakes.amqp_server import Channel

FRAME_MAX = 4096
CLOSED = refuse(541, "INTERNAL_ERROR")


def play(scenario: Callable[[AmqpServer], Coroutine[Any, Any, None]], *, rng: random.Random | None = None) -> None:
    """Play with a server that offers small frames; what is nobody's exception fails the test."""
    strange: list[object] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            forget_leftovers(loop, context)

        loop.set_exception_handler(handle)
        loop.default_exception_handler = strange.append  # type: ignore[method-assign, assignment]
        async with AmqpServer() as server:
            server.returns_line_up = True  # as in quorum queues
            server.frame_max = FRAME_MAX
            await scenario(server)
            for (
                text
            ) in server.complaints:  # what a passive declare, or a guess at a queue's properties, is answered with
                assert text.startswith(("NOT_FOUND", "PRECONDITION_FAILED - inequivalent arg")), text

    network.run(main(), rng=rng)
    assert strange == []


def copies(*bodies: bytes, key: bytes = b"work", exchange: bytes = b"") -> list[OutboundMessage]:
    """Return messages with tokens, and all with one message id."""
    made = []
    for number, body in enumerate(bodies):
        token = b"t%d" % number
        raw = properties([(TOKEN_HEADER, long_string(token))], message_id=b"same", delivery_mode=2)
        made.append(OutboundMessage(exchange, key, raw, body, token))
    return made


def outlet_to(server: AmqpServer, **options: Any) -> ReconnectingPublisher:
    """Return an outlet."""
    return ReconnectingPublisher((server.url,), options.pop("topology", Topology()), ConnectOptions(), **options)


def known(outlet: ReconnectingPublisher) -> int | None:
    """Return the number of an outlet's connection, anew."""
    return outlet.connection


async def session_of(
    server: AmqpServer, received: list[Message] | None = None, seen: Seen | None = None, **topology: Any
) -> Session:
    """Return a session that may consume from ``work``."""
    chunks = received if received is not None else []
    connecting = SessionOptions(topology=Topology(**{"queues": ("work",), **topology}), seen=seen or Seen())
    return await open_session((server.url,), connecting, chunks.extend)


def hearing(protocol: AmqpProtocol | None) -> asyncio.Event:
    """Return what is set when the next bytes have come by a connection."""
    assert protocol is not None
    heard, take = asyncio.Event(), protocol.data_received

    def data_received(data: bytes) -> None:
        take(data)
        heard.set()

    protocol.data_received = data_received  # type: ignore[method-assign]
    return heard


def leftovers(producer: PublisherConnection) -> list[object]:
    """Return what a producer still holds for messages that were answered."""
    publisher = producer._channel
    assert publisher is not None
    return [*publisher._open, *publisher._tokens, *publisher._returns, *publisher._limits]


# Verdicts ------------------------------------------------------------------------------------------------------------


OUTCOMES = {"taken": None, "refused": REFUSED, "unroutable": "unroutable: 312 NO_ROUTE"}


@pytest.mark.draws("taken", "refused", "unroutable", "all alike", "large before small", "several calls")
@settings(max_examples=examples(60))
@given(
    batches=st.lists(
        st.lists(
            st.tuples(st.sampled_from(sorted(OUTCOMES)), st.sampled_from([0, 5, 4_088, 4_089, 20_000, 70_000])),
            min_size=1,
            max_size=8,
        ),
        min_size=1,
        max_size=3,
    ),
    seed=st.integers(0, 1_000),
)
def test_each_message_gets_its_own_verdict(batches: list[list[tuple[str, int]]], seed: int) -> None:
    """By position, whatever is confirmed how and when, in how many frames a body is, and with several calls at once.

    And nothing is kept of what was answered.
    """
    for batch in batches:
        for outcome, _ in batch:
            drew(outcome)
        drew("all alike", len({outcome for outcome, _ in batch}) == 1)
        drew("large before small", any(one[1] > 60_000 > other[1] for one, other in pairwise(batch)))
    drew("several calls", len(batches) > 1)

    async def scenario(server: AmqpServer) -> None:
        server.declare("work")
        server.confirms = by_chance(random.Random(seed))
        server.nacks = lambda publish: publish.body.startswith(b"refused")
        producer = await open_publisher_connection((server.url,), Topology())
        calls = []
        for number, batch in enumerate(batches):
            some = []
            for at, (outcome, size) in enumerate(batch):
                (copy,) = copies(outcome.encode().ljust(size, b"."), key=b"nowhere" if outcome[0] == "u" else b"work")
                token = b"%d-%d" % (number, at)
                raw = properties([(TOKEN_HEADER, long_string(token))], message_id=b"same")
                some.append(copy._replace(token=token, properties=raw))
            calls.append(asyncio.create_task(producer.publish(some)))
            await asyncio.sleep(0)
        found = [await call for call in calls]
        assert found == [[OUTCOMES[outcome] for outcome, _ in batch] for batch in batches]
        assert leftovers(producer) == []
        taken = [
            outcome.encode().ljust(size, b".") for batch in batches for outcome, size in batch if outcome == "taken"
        ]
        assert [message.body for message in server.queues["work"].ready] == taken
        assert all(size <= FRAME_MAX for publish in server.published for size in publish.frame_bytes)
        await producer.close()
        await asyncio.sleep(1)
        assert server.left_open() == []

    play(scenario, rng=random.Random(seed))


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ({5: [ack(5, multiple=True)]}, "+++++"),
        ({5: [ack(0, multiple=True)]}, "+++++"),
        ({5: [nack(0, multiple=True)]}, "-----"),
        ({5: [nack(3), ack(2), nack(5), ack(4, multiple=True)]}, "++-+-"),
        ({5: [ack(4), ack(5), ack(2), nack(3, multiple=True)]}, "-+-++"),
        ({1: [nack(1)], 2: [ack(2)], 4: [nack(4, multiple=True)], 5: [ack(5)]}, "-+--+"),
        ({2: [ack(2)], 3: [nack(3, multiple=True)], 5: [ack(5, multiple=True)]}, "-+-++"),
    ],
)
def test_confirms_in_every_order(steps: dict[int, list[Any]], expected: str) -> None:
    """Single and multiple, of all, out of order, and while the client still writes (its bodies are large)."""

    async def scenario(server: AmqpServer) -> None:
        server.declare("work")
        server.confirms = script(steps)
        producer = await open_publisher_connection((server.url,), Topology())
        verdicts = await producer.publish(copies(*(b"%d" % at * 70_000 for at in range(5))))
        assert "".join("+" if verdict is None else "-" for verdict in verdicts) == expected
        assert leftovers(producer) == []
        await producer.close()

    play(scenario)


@pytest.mark.parametrize("with_token", [True, False])
def test_a_return_is_for_whoever_has_its_token(with_token: bool) -> None:
    """The middle one is unroutable. Without a token nobody knows which: all unconfirmed ones count."""

    async def scenario(server: AmqpServer) -> None:
        server.declare("work")
        server.confirms = script({1: [ack(1)], 4: [ack(4, multiple=True)]})
        producer = await open_publisher_connection((server.url,), Topology())
        some = copies(b"a", b"b", b"c", b"d")
        some[2] = some[2]._replace(routing_key=b"nowhere")
        if not with_token:
            some = [one._replace(token=b"") for one in some]
        verdicts = await producer.publish(some)
        assert [verdict is None for verdict in verdicts] == [True, with_token, False, with_token]
        assert isinstance(verdicts[2], Unroutable)
        await producer.close()

    play(scenario)


# Ends ----------------------------------------------------------------------------------------------------------------


async def publish_something(server: AmqpServer) -> None:
    """Publish over three frames."""
    outlet = outlet_to(server)
    try:
        assert await outlet.publish(copies(b"x" * 9_000, b"y")) == [None, None]
    finally:
        await outlet.close()


async def consume_something(server: AmqpServer) -> None:
    """Consume, settle, publish a dead letter, and close."""
    received: list[Message] = []
    session = await session_of(server, received)
    try:
        await session.consume(10)
        publishing = await session.publish(copies(b"dead", key=b"work.dead"))
        assert publishing == [None]
        await session.cancel()
        await session.give_back([(ledger, [1, 2]) for ledger in session.ledgers])
    finally:
        await session.close()


def cut_everywhere(act: Callable[[AmqpServer], Awaitable[None]], *, connection: int, side: str) -> int:
    """Cut a connection at the ends of its frames and beside them; return how many cuts were noticed.

    Each ends as a success or as a `BrokerError`, never in another way.
    """
    marks: list[int] = []

    async def once(server: AmqpServer) -> None:
        server.declare("work")
        for body in (b"1", b"2"):
            server.publish("work", body)
        server.declare("work.dead")
        await act(server)
        await asyncio.sleep(1)
        marks.extend(getattr(server.connections[connection], f"{side}_marks"))

    play(once)
    noticed = 0
    for mark in sorted({at + beside for at in marks for beside in (-1, 0, 1) if at + beside >= 0}):

        async def cut(server: AmqpServer, mark: int = mark) -> None:
            nonlocal noticed
            server.cut(skip=connection, **{side: mark})
            server.declare("work")
            for body in (b"1", b"2"):
                server.publish("work", body)
            server.declare("work.dead")
            try:
                await act(server)
            except BrokerError:
                noticed += 1
            await asyncio.sleep(200)
            assert [one.number for one in server.connections if one.ended is None] == [], f"after {mark} bytes"

        play(cut)
    return noticed


@pytest.mark.parametrize("side", ["sent", "received"])
@pytest.mark.parametrize(
    ("act", "connection"), [(publish_something, 0), (consume_something, 0), (consume_something, 1)]
)
def test_a_connection_may_end_at_every_byte(
    act: Callable[[AmqpServer], Awaitable[None]], connection: int, side: str
) -> None:
    """At the end of each frame and one byte beside it: whoever waits gets a BrokerError, and nothing is left open."""
    assert cut_everywhere(act, connection=connection, side=side) >= 10


@pytest.mark.parametrize(
    "method",
    ["connection.tune-ok", "connection.open", "channel.open", "queue.declare", "basic.qos", "basic.consume",
     "confirm.select", "basic.publish", "basic.cancel"],
)  # fmt: skip
@pytest.mark.parametrize("act", [drop, end(320, "CONNECTION_FORCED"), CLOSED])
def test_whatever_ends_over_any_method_is_a_broker_error(method: str, act: Callable[..., None]) -> None:
    """The connection is reset, closed with a reason, or only the channel is."""

    async def scenario(server: AmqpServer) -> None:
        server.declare("work")
        server.declare("work.dead")
        # Without its channel a copy is refused, as such: that is a verdict, and the session lives.
        server.on(method, drop if act is CLOSED and method == "basic.publish" else act)
        with pytest.raises(BrokerError):
            await publish_and_consume(server)
        await asyncio.sleep(1)
        assert [one.number for one in server.connections if one.ended is None] == []

    play(scenario)


async def publish_and_consume(server: AmqpServer) -> None:
    """Do both; a copy that is refused is an error as well."""
    await consume_something(server)
    raise AssertionError("it went well")


def test_what_a_lost_connection_left_open_is_published_by_the_next() -> None:
    """The outlet opens another one, with the frames that it offers, and forgets what it knew of the first."""

    async def scenario(server: AmqpServer) -> None:
        server.declare("work")
        outlet = outlet_to(server, confirm_timeout_seconds=5.0)
        assert known(outlet) is None
        assert await outlet.publish(copies(b"1")) == [None]
        assert (known(outlet), outlet.frame_max) == (1, FRAME_MAX)
        server.block("low on disk")
        await asyncio.sleep(1)
        assert outlet.blocked == "RabbitMQ takes no messages for now: low on disk"
        assert await outlet.check() == outlet.blocked
        server.alarm = None
        server.kill()
        await asyncio.sleep(1)
        assert known(outlet) is None
        server.frame_max = 8192
        assert await outlet.check() is None
        assert (known(outlet), outlet.frame_max) == (2, 8192)
        assert await outlet.publish(copies(b"2" * 9_000)) == [None]
        assert server.published[-1].frame_bytes == [8192, 9_000 - 8184 + 8]
        server.confirms = withheld
        began = asyncio.get_running_loop().time()
        with pytest.raises(BrokerError):
            await outlet.publish(copies(b"3"))
        assert 5 <= asyncio.get_running_loop().time() - began < 6
        assert known(outlet) is None
        await asyncio.sleep(0.1)
        assert server.connections[1].ended == "closed", "it isn't used any more"
        server.confirms = by_chance(random.Random(2))
        assert await outlet.publish(copies(b"4")) == [None]
        await outlet.close()
        await asyncio.sleep(1)
        assert server.left_open() == []
        assert len(server.connections) == 3

    play(scenario)


@pytest.mark.parametrize("method", ["connection.tune-ok", "connection.open", "channel.open", "confirm.select"])
@pytest.mark.parametrize("turns", range(8))
def test_who_is_cancelled_while_the_connection_is_lost_stays_cancelled(method: str, turns: int) -> None:
    """In any turn of the loop after the loss: aiormq raises the loss in its place, and a drain would wait for ever."""

    async def scenario(server: AmqpServer) -> None:
        server.on(method, ignore)
        opening = asyncio.create_task(outlet_to(server).open())
        await server.until(lambda: server.methods(method))
        client: Any = server.connections[0].transport
        client.peer._reset()
        for _ in range(turns):
            await asyncio.sleep(0)
        if opening.cancel():
            await asyncio.wait([opening], timeout=60)
            assert opening.cancelled()
        else:
            assert opening.exception() is not None

    play(scenario)


def test_several_calls_open_one_connection() -> None:
    """Also when the first of them has to find out that the old one is lost."""

    async def scenario(server: AmqpServer) -> None:
        server.declare("work")
        outlet = outlet_to(server)
        for number in (1, 2):
            found = await asyncio.gather(*(outlet.publish(copies(b"%d" % at)) for at in range(5)))
            assert found == [[None]] * 5
            assert len(server.connections) == number
            server.kill()
            await asyncio.sleep(1)
        await outlet.close()

    play(scenario)


def test_publishes_that_fail_late_keep_the_connection_that_was_opened_meanwhile() -> None:
    """However many fail with a connection, and however they take turns with those that open the next: one is open."""

    async def scenario(server: AmqpServer) -> None:
        server.declare("work")
        outlet = outlet_to(server)
        server.confirms = withheld
        producer = await outlet.open()
        publish = producer.publish

        async def publish_late(messages: list[OutboundMessage]) -> list[str | None]:
            try:
                return await publish(messages)
            finally:
                await asyncio.sleep(30)  # its turn comes late

        failing = [asyncio.create_task(outlet.publish(copies(b"at once")))]
        await asyncio.sleep(1)
        producer.publish = publish_late  # type: ignore[method-assign]
        failing += [asyncio.create_task(outlet.publish(copies(b"%d" % at))) for at in range(4)]
        await asyncio.sleep(1)
        server.kill()
        await asyncio.sleep(1)
        server.confirms = by_chance(random.Random(1))
        assert await outlet.publish(copies(b"next")) == [None]
        successor = known(outlet)
        server.block("low on disk")
        await asyncio.sleep(1)
        blocked = outlet.blocked
        found = await asyncio.gather(*failing, return_exceptions=True)
        assert [type(one) for one in found] == [BrokerError] * 5
        assert (known(outlet), outlet.blocked) == (successor, blocked)
        assert blocked is not None
        server.unblock()
        assert await outlet.publish(copies(b"after")) == [None]
        assert known(outlet) == successor
        assert [one.ended for one in server.connections].count(None) == 1
        await outlet.close()
        await asyncio.sleep(1)
        assert server.left_open() == []

    play(scenario)


def test_the_next_url_is_tried_and_all_reasons_are_told() -> None:
    """Without passwords."""

    async def scenario(server: AmqpServer) -> None:
        server.declare("work")
        dead = "amqp://me:secret@127.0.0.1:1/"
        outlet = ReconnectingPublisher((dead, server.url), Topology(), ConnectOptions())
        assert await outlet.publish(copies(b"1")) == [None]
        await outlet.close()
        with pytest.raises(BrokerError, match="Connect call failed") as caught:
            await ReconnectingPublisher((dead, dead.replace(":1/", ":2/")), Topology(), ConnectOptions()).open()
        assert "secret" not in str(caught.value)
        assert str(caught.value).count("127.0.0.1:") >= 2

    play(scenario)


# Alarms, silence, heartbeats -----------------------------------------------------------------------------------------


def test_an_alarm_stops_time_and_what_was_written_is_confirmed_after_it() -> None:
    """It may last for hours: nothing is published twice, and a second alarm after it counts anew."""

    async def scenario(server: AmqpServer) -> None:
        server.declare("work")
        told: list[str | None] = []
        producer = await open_publisher_connection((server.url,), Topology(), confirm_timeout_seconds=5.0)
        producer.on_blocked = told.append
        assert await producer.publish(copies(b"1")) == [None]
        for number in (2, 3):
            server.confirms = withheld
            before = asyncio.create_task(producer.publish(copies(b"before %d" % number)))
            await asyncio.sleep(3)
            server.block("low on memory")
            await asyncio.sleep(0.1)
            during = asyncio.create_task(producer.publish(copies(b"during %d" % number)))
            await asyncio.sleep(4_000)
            assert not before.done()
            assert len(server.published) == 2 * number - 2
            server.unblock()
            await asyncio.sleep(4)
            server.channel().confirm(0, multiple=True)
            assert await before == await during == [None]
        assert told == ["low on memory", None] * 2
        assert len(server.published) == 5
        silent = asyncio.create_task(producer.publish(copies(b"silent")))
        await asyncio.sleep(4.9)
        assert not silent.done()
        with pytest.raises(BrokerError, match="unconfirmed"):
            await silent
        assert producer.lost == "RabbitMQ didn't confirm a message within 5 s"
        await producer.close()

    play(scenario)


async def hear_confirms(server: AmqpServer) -> Callable[[], object]:
    """Have a connection get a confirm from time to time, and nothing else."""
    producer = await outlet_to(server).open()
    for number in range(60):
        await asyncio.sleep(20)
        assert await producer.publish(copies(b"%d" % number)) == [None]
    return lambda: producer.lost


async def hear_deliveries(server: AmqpServer) -> Callable[[], object]:
    """Have one get a delivery from time to time."""
    session = await session_of(server)
    await session.consume(1_000)
    for number in range(60):
        server.publish("work", b"%d" % number)
        for _ in range(20):
            server.connections[1].send(HEARTBEAT_FRAME)
            await asyncio.sleep(1)
    return session.lost.done


async def hear_one_message(server: AmqpServer) -> Callable[[], object]:
    """Have one get a large message, piece by piece, by a slow network."""
    received: list[Message] = []
    session = await session_of(server, received)
    await session.consume(1_000)
    await asyncio.sleep(1)
    consuming, pieces = server.connections[0], list[bytes]()
    send = consuming.send
    consuming.send = pieces.append  # type: ignore[method-assign]
    server.publish("work", b"x" * 100_000)
    await asyncio.sleep(1)
    data = b"".join(pieces)
    for at in range(0, len(data), 2_000):
        send(data[at : at + 2_000])
        for _ in range(20):
            server.connections[1].send(HEARTBEAT_FRAME)
            await asyncio.sleep(1)
    consuming.send = send  # type: ignore[method-assign]
    assert [len(one.body) for one in received] == [100_000]
    return session.lost.done


async def hear_heartbeats(server: AmqpServer) -> Callable[[], object]:
    """Have one get heartbeats alone."""
    producer = await outlet_to(server).open()
    for _ in range(60):
        server.connections[0].send(HEARTBEAT_FRAME)
        await asyncio.sleep(20)
    return lambda: producer.lost


@pytest.mark.parametrize("hear", [hear_confirms, hear_deliveries, hear_one_message, hear_heartbeats])
def test_a_connection_that_gets_anything_is_alive_and_one_that_gets_nothing_is_dead(
    hear: Callable[[AmqpServer], Awaitable[Callable[[], object]]],
) -> None:
    """RabbitMQ sends no heartbeats while it sends other frames, of whatever kind; each is a sign of life."""

    async def scenario(server: AmqpServer) -> None:
        server.declare("work")
        server.sends_heartbeats = False
        lost = await hear(server)
        assert not lost()
        await asyncio.sleep(250)
        assert lost()

    play(scenario)


@pytest.mark.parametrize(
    ("there", "seconds"),
    [(("a", "b"), 0), (("b",), QUEUE_DURABLE_AFTER_SECONDS), (("a",), QUEUE_DURABLE_AFTER_SECONDS)],
)
def test_whoever_creates_a_queue_waits_until_it_is_durable(there: tuple[str, ...], seconds: float) -> None:
    """Whichever of several it is; before that nothing is published."""

    async def scenario(server: AmqpServer) -> None:
        for name in there:
            server.declare(name)
        began = asyncio.get_running_loop().time()
        producer = await open_publisher_connection(
            (server.url,), Topology(queues=("a", "b"), dead_letter_exchange="amq.direct")
        )
        assert seconds <= asyncio.get_running_loop().time() - began < seconds + 0.5
        assert await producer.publish(copies(b"1", key=b"a")) == [None]
        await producer.close()

    play(scenario)


def test_a_channel_that_is_closed_with_nothing_on_its_way_is_noticed() -> None:
    """The next message goes by another connection, at once; a producer says why it can't be used."""

    async def scenario(server: AmqpServer) -> None:
        server.declare("work")
        outlet = outlet_to(server)
        producer = await outlet.open()
        server.channel().close(541, "INTERNAL_ERROR")
        await asyncio.sleep(1)
        assert "INTERNAL_ERROR" in str(producer.lost)
        assert known(outlet) is None
        with pytest.raises(BrokerError, match="INTERNAL_ERROR"):
            await producer.publish(copies(b"1"))
        began = asyncio.get_running_loop().time()
        assert await outlet.publish(copies(b"2")) == [None]
        assert asyncio.get_running_loop().time() - began < 1
        await outlet.close()

    play(scenario)


def test_what_the_server_said_last_is_why_the_connection_was_lost() -> None:
    """Also if something else comes between that and the end."""

    async def scenario(server: AmqpServer) -> None:
        server.declare("work")
        server.on("connection.close-ok", ignore)
        session = await session_of(server)
        connection = server.connections[0]
        connection.close(320, "CONNECTION_FORCED - by an operator")
        connection.send(HEARTBEAT_FRAME)
        await server.until(lambda: server.methods("connection.close-ok"))
        connection.send(HEARTBEAT_FRAME)
        await asyncio.sleep(0.1)
        connection.hang_up()
        await asyncio.sleep(1)
        assert session.lost.result() == "RabbitMQ closed the connection: 320 CONNECTION_FORCED - by an operator"
        await session.close()

    play(scenario)


@pytest.mark.parametrize("cancelled", [True, False])
def test_closing_doesnt_wait_for_a_socket_that_takes_nothing(cancelled: bool) -> None:
    """In an alarm the server reads nothing: what was written stays in the socket, and the close behind it."""

    async def scenario(server: AmqpServer) -> None:
        server.declare("work")
        producer = await open_publisher_connection((server.url,), Topology())
        server.connections[0].stop_reading()
        publishing = asyncio.create_task(producer.publish(copies(*[b"x" * 70_000] * 20)))
        await asyncio.sleep(1)
        began = asyncio.get_running_loop().time()
        closing = asyncio.create_task(producer.close())
        if cancelled:
            await asyncio.sleep(1)
            closing.cancel()
        await asyncio.wait([closing], timeout=60)
        assert closing.done()
        assert closing.cancelled() is cancelled
        assert asyncio.get_running_loop().time() - began < (2 if cancelled else 6)
        with pytest.raises(BrokerError):
            await publishing

    play(scenario)


# Sessions ------------------------------------------------------------------------------------------------------------


def test_a_session_consumes_settles_and_leaves_nothing_open() -> None:
    """Tags of one channel, prefetch, multiple acks, rejects, requeues in order; and all of it again by a second one."""

    async def scenario(server: AmqpServer) -> None:
        queue = server.declare("work")
        for number in range(9):
            server.publish("work", b"%d" % number)
        received: list[Message] = []
        seen = Seen()
        for attempt in (0, 1):
            del received[:]
            session = await session_of(server, received, seen)
            await session.consume(6)
            await asyncio.sleep(1)
            bodies = [message.body for message in received]
            assert bodies == ([b"0", b"1", b"2", b"3", b"4", b"5"] if not attempt else [b"1", b"5", b"6", b"7", b"8"])
            assert [message.tag for message in received] == list(range(1, len(bodies) + 1))
            (ledger,) = session.ledgers
            if not attempt:
                session.settle(
                    ledger, [Settlement(1, multiple=True), Settlement(3, multiple=False), Settlement(5, multiple=False)]
                )
                session.reject(ledger, 4)
                await asyncio.sleep(1)
                assert [message.body for message in received][6:] == [b"6", b"7", b"8"]
                await session.cancel()
                await session.requeue(ledger, [2, 6, 7])
                await asyncio.sleep(1)
                assert [message.body for message in queue.ready] == [b"1", b"5", b"6"]
            await session.close()
            await asyncio.sleep(1)
            assert server.left_open() == []
        assert [message.body for message in server.acked] == [b"0", b"2", b"4"]
        assert [message.body for message in server.rejected] == [b"3"]

    play(scenario)


@pytest.mark.parametrize(
    ("happens", "says"),
    [
        (lambda server: server.delete("work"), "cancelled the consumer of 'work'"),
        (lambda server: server.connections[0].channels[_consuming(server)].close(406, "timed out"), "timed out"),
        (lambda server: server.connections[0].close(320, "CONNECTION_FORCED"), "320 CONNECTION_FORCED"),
        (lambda server: server.connections[1].close(320, "CONNECTION_FORCED"), "320 CONNECTION_FORCED"),
        (lambda server: server.connections[0].drop(), "connection"),
        (lambda server: server.connections[1].drop(), "connection"),
        (lambda server: server.connections[0].hang_up(), "connection"),
        (lambda server: server.connections[0].send(b"nonsense"), "not AMQP"),
        (lambda server: server.channel().close(504, "CHANNEL_ERROR"), None),
    ],
)
def test_a_session_ends_with_either_connection_and_says_why(
    happens: Callable[[AmqpServer], None], says: str | None
) -> None:
    """Both share their fate; only the channel that publishes may be opened again."""

    async def scenario(server: AmqpServer) -> None:
        server.declare("work")
        server.declare("work.dead")
        session = await session_of(server)
        await session.consume(10)
        happens(server)
        await asyncio.sleep(1)
        if says is None:
            assert not session.lost.done()
            assert await session.publish(copies(b"dead", key=b"work.dead")) == [None]
        else:
            assert says in session.lost.result()
            for attempt in (session.publish(copies(b"1")), session.consume(1), session.cancel(), session.give_back([])):
                with pytest.raises(BrokerError):
                    await attempt
        await session.close()
        await asyncio.sleep(200)
        assert [one.number for one in server.connections if one.ended is None] == []

    play(scenario)


def _consuming(server: AmqpServer) -> int:
    return next(number for number, channel in server.connections[0].channels.items() if channel.consumers)


def test_nothing_more_is_written_to_a_consuming_channel_that_rabbitmq_has_closed() -> None:
    """Acks, rejects and nacks at any moment from the close on: a frame on a closed channel costs the connection."""

    async def scenario(server: AmqpServer) -> None:
        server.declare("work")
        for _ in range(40):
            server.publish("work", b"{}")
        received: list[Message] = []
        session = await session_of(server, received)
        await session.consume(40)
        await asyncio.sleep(1)
        (ledger,) = session.ledgers
        requeued = asyncio.create_task(session.requeue(ledger, list(range(1, 31))))  # slowly
        await asyncio.sleep(0)
        server.connections[0].channels[_consuming(server)].close(406, "PRECONDITION_FAILED - timed out")
        for tag in range(31, 36):
            for _ in range(20):  # one may come in any turn of the loop between the close and its end
                session.settle(ledger, [Settlement(tag, multiple=False)])
                session.reject(ledger, tag + 5)
                await session.requeue(ledger, [tag])
                await asyncio.sleep(0)
            await asyncio.sleep(0.001)
        await requeued
        await asyncio.sleep(1)
        assert "timed out" in session.lost.result()
        assert server.acked == server.rejected == []
        assert len(server.queues["work"].ready) == 40
        await session.close()

    play(scenario)


@pytest.mark.parametrize("turns", range(12))
def test_nothing_more_is_written_to_a_publishing_channel_that_rabbitmq_has_closed(turns: int) -> None:
    """Whoever publishes so many turns of the loop after the close has another channel."""

    async def scenario(server: AmqpServer) -> None:
        server.declare("work")
        server.declare("work.dead")
        session = await session_of(server)
        heard = hearing(session._publish_protocol)
        server.on("basic.publish", refuse(406, "PRECONDITION_FAILED - no"), times=1, skip=1)
        server.confirms = withheld
        refused = asyncio.create_task(session.publish(copies(b"1", b"2", b"3", key=b"work.dead")))
        await heard.wait()
        server.confirms = each
        for _ in range(turns):
            await asyncio.sleep(0)
        assert await session.publish(copies(b"next", key=b"work.dead")) == [None]
        assert await refused == ["RabbitMQ refused it: PRECONDITION_FAILED - no"] * 3
        assert not session.lost.done()
        await session.close()

    play(scenario)


@pytest.mark.parametrize("turns", range(6))
def test_dead_letters_of_a_channel_that_rabbitmq_has_closed_do_not_count_as_acked(turns: int) -> None:
    """They are in their queue again: whoever acks them is told so, from the close on."""

    async def scenario(server: AmqpServer) -> None:
        server.declare("work.dead")
        server.publish("work.dead", b"{}")
        box = await open_dead_letter_queue((server.url,), "work.dead", ConnectOptions())
        await box.add_consumer(1)
        letters = await box.receive()
        heard = hearing(box._protocol)
        server.connections[0].channels[_consuming(server)].close(406, "PRECONDITION_FAILED - timed out")
        await heard.wait()
        for _ in range(turns):
            await asyncio.sleep(0)
        with pytest.raises(BrokerError, match="channel closed"):
            box.acknowledge(letters)
        await box.close()

    play(scenario)


def test_a_missing_exchange_refuses_only_what_goes_there() -> None:
    """Mixed with others: verdicts are by position, and the session lives."""

    async def scenario(server: AmqpServer) -> None:
        server.declare("work")
        server.declare("work.dead")
        session = await session_of(server)
        good, bad, lost = copies(b"good", b"bad", b"lost", key=b"work.dead")
        for _ in (1, 2):
            verdicts = await session.publish(
                [
                    good,
                    bad._replace(exchange=b"nowhere"),
                    lost._replace(routing_key=b"none"),
                    good._replace(token=b"t9"),
                ]
            )
            assert [verdict is None for verdict in verdicts] == [True, False, False, True]
            assert "no exchange 'nowhere'" in str(verdicts[1])
            assert not isinstance(verdicts[1], Unroutable)
            assert isinstance(verdicts[2], Unroutable)
        assert not session.lost.done()
        await session.close()

    play(scenario)


def test_delay_queues_are_created_once_and_again_when_they_are_gone() -> None:
    """Each before its first copy, so early that what it confirms is safe; a refusal is for its own copies only."""

    async def scenario(server: AmqpServer) -> None:
        server.declare("work")
        session = await session_of(server)
        loop = asyncio.get_running_loop()

        def delayed(milliseconds: int, body: bytes, token: bytes) -> OutboundMessage:
            (copy,) = copies(body, key=b"work.delay.%d" % milliseconds)
            raw = properties([(TOKEN_HEADER, long_string(token))])
            return copy._replace(delay=("work", milliseconds), token=token, properties=raw)

        refused = refuse(403, "ACCESS_REFUSED - no")
        server.on("queue.declare", refused, queue="work.delay.20000", passive=False)
        began = loop.time()
        verdicts = await session.publish([delayed(10_000, b"1", b"1"), delayed(20_000, b"2", b"2"),
                                          delayed(40_000, b"3", b"3")])  # fmt: skip
        assert QUEUE_DURABLE_AFTER_SECONDS <= loop.time() - began < QUEUE_DURABLE_AFTER_SECONDS + 1
        assert [verdict is None for verdict in verdicts] == [True, False, True]
        assert isinstance(verdicts[1], Undeclared)
        assert server.queues["work.delay.10000"].arguments == {
            "x-queue-type": "quorum", "x-delivery-limit": 1_000_000_000, "x-message-ttl": 10_000,
            "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "work",
            "x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish",
        }  # fmt: skip
        declares = len(server.methods("queue.declare"))
        began = loop.time()
        assert await session.publish([delayed(10_000, b"4", b"4")]) == [None]
        assert len(server.methods("queue.declare")) == declares
        assert loop.time() - began < 0.1
        server.delete("work.delay.10000")
        (verdict,) = await session.publish([delayed(10_000, b"5", b"5")])
        assert isinstance(verdict, Unroutable)
        assert "work.delay.10000" in verdict
        assert "deleted" in verdict
        assert await session.publish([delayed(10_000, b"6", b"6")]) == [None]
        assert [message.body for message in server.queues["work.delay.10000"].ready] == [b"6"]
        await session.close()

    play(scenario)


def delayed(milliseconds: int) -> OutboundMessage:
    """Return a copy for a delay queue of ``work``."""
    (copy,) = copies(b"later", key=b"work.delay.%d" % milliseconds)
    return copy._replace(delay=("work", milliseconds))


@pytest.mark.parametrize("others", [(), (10_000,), (20_000,)], ids=["alone", "beside a known one", "beside a new one"])
@pytest.mark.parametrize("found_by", ["a probe", "another copy"])
def test_nothing_is_published_to_a_young_delay_queue_whoever_created_it(found_by: str, others: tuple[int, ...]) -> None:
    """A killed broker forgets what is in it: what comes after a probe, or beside the copy before, waits as well."""

    async def scenario(server: AmqpServer) -> None:
        server.declare("work")
        session = await session_of(server)
        loop = asyncio.get_running_loop()
        assert await session.publish([delayed(10_000)]) == [None]  # old when the next one appears
        await asyncio.sleep(60.0)
        published = len(server.published)
        began = loop.time()
        first = None
        if found_by == "a probe":
            assert await session.find_delay_queue("work", 40_000) is None
        else:
            first = asyncio.create_task(session.publish([delayed(40_000)]))
            await asyncio.sleep(QUEUE_DURABLE_AFTER_SECONDS / 2)
        publishing = asyncio.create_task(session.publish([delayed(each) for each in (*others, 40_000)]))
        await asyncio.sleep(began + QUEUE_DURABLE_AFTER_SECONDS - 0.1 - loop.time())
        assert len(server.published) == published
        assert set(await publishing) == {None}
        assert loop.time() - began >= QUEUE_DURABLE_AFTER_SECONDS
        if first is not None:
            assert await first == [None]
        await session.close()

    play(scenario)


@pytest.mark.parametrize("at", range(5))
def test_a_connection_that_is_lost_under_a_declare_is_not_told_as_refused(at: int) -> None:
    """While a session is opened (declares, and the guess at properties), and while it creates a delay queue."""

    async def scenario(server: AmqpServer) -> None:
        server.declare("work")
        server.declare("work.dead")
        server.on("queue.declare", drop, skip=at, times=1)
        with pytest.raises(BrokerError) as failed:  # noqa: PT012 - each step may be the one
            session = await session_of(server)
            await session.find_delay_queue("work", 10_000)
        assert "refused" not in str(failed.value)
        assert "reset" in str(failed.value)

    play(scenario)


def test_a_dead_letter_is_not_published_before_its_queue_is_durable() -> None:
    """RabbitMQ forgets what is in a queue that is younger than a second, when it is killed."""

    async def scenario(server: AmqpServer) -> None:
        session = await session_of(server)
        declared_at = asyncio.get_running_loop().time()
        publishing = asyncio.create_task(session.publish(copies(b"dead", key=b"work.dead")))
        await asyncio.sleep(QUEUE_DURABLE_AFTER_SECONDS - 0.5)
        assert server.published == []
        assert await publishing == [None]
        assert asyncio.get_running_loop().time() - declared_at >= QUEUE_DURABLE_AFTER_SECONDS - 0.1
        await session.close()

    play(scenario)


def test_giving_back_ends_the_channel_before_4_3_and_nacks_from_then_on() -> None:
    """In the order of delivery, and what comes next counts from one on a channel, or goes on."""

    async def scenario(server: AmqpServer) -> None:
        for version in ("3.10.8", "4.3.0"):
            server.version = version
            queue = server.declare("work")
            for number in range(40):
                server.publish("work", b"%d" % number)
            received: list[Message] = []
            session = await session_of(server, received)
            await session.consume(40)
            await asyncio.sleep(1)
            (ledger,) = session.ledgers
            session.settle(ledger, [Settlement(3, multiple=True)])
            await session.cancel()
            await session.give_back([(ledger, list(range(4, 41)))])
            await asyncio.sleep(1)
            assert [message.body for message in queue.ready] == [b"%d" % number for number in range(3, 40)]
            (next_ledger,) = session.ledgers
            assert next_ledger is not ledger
            del received[:]
            await session.consume(5)
            await asyncio.sleep(1)
            assert [message.body for message in received] == [b"3", b"4", b"5", b"6", b"7"]
            assert received[0].ledger is next_ledger
            await session.cancel()
            await session.consume(6)
            await asyncio.sleep(1)
            assert len(received) > 5
            session.settle(next_ledger, [Settlement(received[0].tag, multiple=False)])
            await asyncio.sleep(1)
            assert server.acked[-1].body == b"3"
            assert not session.lost.done()
            await session.close()
            await asyncio.sleep(1)
            assert server.left_open() == []
            del server.queues["work"]

    play(scenario)


@pytest.mark.parametrize("first", [1, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 31, 32, 33, 63, 64, 65, 96, 97, 32 * NACK_BATCH + 1])
def test_no_command_gives_back_more_messages_than_keep_their_order(count: int, first: int) -> None:
    """A quorum queue takes 32 at once in their order, and more in none; each tag is covered once."""

    async def scenario(server: AmqpServer) -> None:
        server.version = "4.3.0"
        server.declare("work")
        for number in range(first - 1 + count):
            server.publish("work", b"%d" % number)
        received: list[Message] = []
        session = await session_of(server, received)
        await session.consume(1_000)
        await asyncio.sleep(1)
        (ledger,) = session.ledgers
        session.settle(ledger, [Settlement(tag, multiple=False) for tag in range(1, first)])
        await session.cancel()
        await session.give_back([(ledger, [message.tag for message in received[first - 1 :]])])
        await asyncio.sleep(1)
        nacks = server.methods("basic.nack")
        assert all(nack["multiple"] and nack["requeue"] for nack in nacks)
        ends = [first - 1, *(nack["tag"] for nack in nacks)]
        covered = [end - start for start, end in pairwise(ends)]
        assert sum(covered) == count
        assert all(0 < some <= 32 for some in covered)
        assert len(covered) == -(-count // 32)
        assert [message.body for message in server.queues["work"].ready] == [
            b"%d" % n for n in range(first - 1, first - 1 + count)
        ]
        await session.close()

    play(scenario)


# Topology ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "there", "says"),
    [
        ({"declare": False}, (), "'work' doesn't exist"),
        ({"declare": False}, ("work",), "'work.dead' doesn't exist"),
        ({"declare": False}, ("work", "work.dead"), None),
        ({"declares_work": False}, (), "doesn't exist yet"),
        ({"declares_work": False}, ("work",), None),
        ({}, (), None),
        ({"dead_letter_exchange": "dlx"}, ("work",), "'dlx' doesn't exist"),
        ({"dead_letter_routing_key": "graves"}, ("work", "graves"), None),
        ({"exchange": "shop", "publishes": True, "declare": False}, ("work", "work.dead"), "'shop' doesn't exist"),
        ({"exchange": "shop", "publishes": True, "declares_work": False}, ("work",), "'shop' doesn't exist"),
        ({"exchange": "shop", "routing_keys": ("a", "b")}, (), None),
    ],
)
def test_what_is_declared_and_what_must_be_there(
    options: dict[str, Any], there: tuple[str, ...], says: str | None
) -> None:
    """Each way of ``SIDECAR_AMQP_DECLARE``; what exists is left as it is, whatever its arguments."""

    async def scenario(server: AmqpServer) -> None:
        for name in there:
            server.declare(name, x_max_length=5)
        if says is not None:
            with pytest.raises(BrokerError, match=says):
                await session_of(server, **options)
            assert set(server.queues) - {"work.dead"} == set(there) - {"work.dead"}
            return
        session = await session_of(server, **options)
        dead = options.get("dead_letter_routing_key", "work.dead")
        assert set(server.queues) == {"work", dead}
        for name, queue in server.queues.items():
            made = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000_000}
            assert queue.arguments == ({"x-queue-type": "quorum", "x-max-length": 5} if name in there else made)
            assert queue.durable
        if "exchange" in options:
            assert server.vhosts["/"].exchanges["shop"].bindings == [("work", "a"), ("work", "b")]
        await session.close()

    play(scenario)


@pytest.mark.parametrize("was_there", [False, True])
def test_a_work_queue_that_is_gone_is_not_created_again_and_a_dead_letter_queue_is(was_there: bool) -> None:
    """In the life of a process, by cluster, whoever created it; a second queue that is there doesn't change that."""

    async def scenario(server: AmqpServer) -> None:
        seen = Seen()
        if was_there:
            server.declare("work")
        session = await session_of(server, seen=seen)
        assert session.recreated == []
        await session.close()
        del server.queues["work.dead"]
        session = await session_of(server, seen=seen)
        (told,) = session.recreated
        assert "'work.dead' was deleted" in told
        await session.close()
        del server.queues["work"]
        with pytest.raises(QueueError, match="is gone, with its messages") as caught:
            await session_of(server, seen=seen)
        assert caught.value.reason == "queue-gone"
        assert "work" not in server.queues
        server.declare("work")
        session = await session_of(server, seen=seen)
        assert session.recreated == []
        await session.close()
        del server.queues["work"]
        server.cluster_name = "another"
        await (await session_of(server, seen=seen)).close()

    play(scenario)


@pytest.mark.parametrize("created", [False, True], ids=["there before", "created by us"])
@pytest.mark.parametrize("name", ["work", "other"])
def test_a_queue_that_vanishes_is_noticed_whoever_created_it(name: str, created: bool) -> None:
    """A work queue isn't created again; what else was lost is told, once: dead-letter queues and exchanges."""
    options: dict[str, Any] = {"exchange": "shop", "queues": ("work", "other")}

    async def scenario(server: AmqpServer) -> None:
        queues, exchanges = server.queues, server.vhosts["/"].exchanges
        if not created:
            exchanges["shop"] = Exchange("shop", "direct")
            for one in ("work", "work.dead", "other", "other.dead"):
                server.declare(one)
        seen = Seen()
        session = await session_of(server, seen=seen, **options)
        assert session.recreated == []
        await session.close()
        for gone, from_where, is_told in (
            (f"{name}.dead", queues, f"the dead-letter queue '{name}.dead' was deleted"),
            ("shop", exchanges, "the exchange 'shop' was deleted"),
        ):
            del from_where[gone]
            session = await session_of(server, seen=seen, **options)
            (told,) = session.recreated
            assert told.startswith(is_told)
            assert gone in from_where
            await session.close()
            session = await session_of(server, seen=seen, **options)
            assert session.recreated == []
            await session.close()
        del queues[name]
        with pytest.raises(QueueError, match=f"{name}.*is gone, with its messages"):
            await session_of(server, seen=seen, **options)
        assert name not in queues

    play(scenario)


# Leases --------------------------------------------------------------------------------------------------------------


def test_a_queue_that_expires_has_a_consumer_until_and_after_it_is_consumed() -> None:
    """With no credit (RabbitMQ 3); it gives way to the consumer, and comes back after it was cancelled."""

    async def scenario(server: AmqpServer) -> None:
        server.declare("work", x_expires=60_000)
        server.publish("work", b"1")
        received: list[Message] = []
        session = await session_of(server, received)
        for _ in (1, 2):
            await asyncio.sleep(5)
            (lease,) = server.consumers()
            assert (lease.tag, lease.credit, lease.channel.unacked) == ("sidecar-lease", 0, {})
            await session.consume(10)
            await asyncio.sleep(5)
            (consumer,) = server.consumers()
            assert consumer.tag != "sidecar-lease"
            await session.cancel()
            assert server.consumers() == []
        await session.close()
        await asyncio.sleep(1)
        assert server.left_open() == []
        assert [message.body for message in received] == [b"1"]

    play(scenario)


@pytest.mark.parametrize("late", ["first", "second"])
def test_no_queue_whose_properties_are_unknown_is_left_by_its_last_consumer(late: str) -> None:
    """RabbitMQ would delete one that is auto-delete: of several, each has its lease before its consumer goes."""

    async def scenario(server: AmqpServer) -> None:
        host = server.vhosts["/"]
        for name in ("first", "second"):
            server.declare(name).auto_delete = True
            server.on("queue.declare", refuse(403, "ACCESS_REFUSED"), queue=name, passive=False)
        connecting = SessionOptions(topology=Topology(queues=("first", "second")), seen=Seen())
        session = await open_session((server.url,), connecting, lambda _: None)
        await asyncio.sleep(5)

        def take_long(channel: Channel, method: Method) -> None:
            asyncio.get_running_loop().call_later(1.0, channel._basic_consume, method)

        server.on("basic.consume", take_long, queue=late, consumer_tag="sidecar-lease")
        for _ in (1, 2):
            await session.consume(10)
            await asyncio.sleep(5)
            await session.cancel()
            assert {"first", "second"} <= set(host.queues)
            assert sorted(consumer.queue.name for consumer in server.consumers()) == ["first", "second"]
        await session.close()

    play(scenario)


def test_a_lease_that_the_server_ends_begins_again_and_a_message_of_it_goes_back() -> None:
    """RabbitMQ 4 delivers one to it; a consumer timeout costs its channel."""

    async def scenario(server: AmqpServer) -> None:
        server.version = "4.1.0"
        queue = server.declare("work", x_expires=60_000)
        for body in (b"1", b"2"):
            server.publish("work", body)
        received: list[Message] = []
        session = await session_of(server, received)
        await asyncio.sleep(1)
        (lease,) = server.consumers()
        assert [message.body for message in queue.ready] == [b"2"]
        lease.channel.close(406, "PRECONDITION_FAILED - delivery acknowledgement timed out")
        await asyncio.sleep(5)
        (again,) = server.consumers()
        assert again.tag == "sidecar-lease"
        assert again.channel is not lease.channel
        await session.consume(10)
        await asyncio.sleep(1)
        assert [message.body for message in received] == [b"1", b"2"]
        await session.close()
        await asyncio.sleep(1)
        assert server.left_open() == []

    play(scenario)


def test_the_message_of_a_lease_goes_back_before_the_session_ends() -> None:
    """By a nack, which costs nothing from 4.3 on: the end of its channel would count towards a delivery limit."""

    async def scenario(server: AmqpServer) -> None:
        server.version = "4.3.0"
        queue = server.declare("work", x_expires=60_000)
        server.publish("work", b"1")
        session = await session_of(server)
        await asyncio.sleep(1)
        assert not queue.ready
        await session.close()
        (back,) = server.methods("basic.nack")
        assert (back["tag"], back["multiple"], back["requeue"]) == (0, True, True)
        assert [message.body for message in queue.ready] == [b"1"]

    play(scenario)


def test_a_channel_that_is_opened_in_an_alarm_waits_for_its_end() -> None:
    """Its predecessor was closed over a missing exchange, and the server has told of the alarm only once."""

    async def scenario(server: AmqpServer) -> None:
        server.declare("work")
        server.declare("work.dead")
        session = await session_of(server)
        (copy,) = copies(b"1", key=b"work.dead")
        assert await session.publish([copy]) == [None]
        publishing = server.connections[1]
        publishing.channels[0].send("connection.blocked", reason="low on disk")
        server.channel().close(404, "NOT_FOUND - no exchange")
        await asyncio.sleep(1)
        waiting = asyncio.create_task(session.publish([copy]))
        await asyncio.sleep(100)
        assert not waiting.done()
        assert len(server.published) == 1
        publishing.channels[0].send("connection.unblocked")
        assert await waiting == [None]
        await session.close()

    play(scenario)


def test_a_server_that_is_none_is_told() -> None:
    """Without capabilities it isn't RabbitMQ; an answer out of turn is a broker error as well."""

    async def scenario(server: AmqpServer) -> None:
        server.capabilities = None
        with pytest.raises(BrokerError, match="names no capabilities"):
            await outlet_to(server).open()
        server.capabilities = {}
        server.on("connection.open", answer("channel.open-ok"))
        with pytest.raises(BrokerError):
            await outlet_to(server).open()

    play(scenario)
