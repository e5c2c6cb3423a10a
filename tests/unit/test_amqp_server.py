"""The AMQP server of the tests, as the product sees it: it does what its docstring says."""

from __future__ import annotations

import asyncio
import random
import ssl
from functools import partial
from typing import TYPE_CHECKING

import pytest
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity, ChannelPreconditionFailed
from yarl import URL

from sidecar.amqp.channels import refusal_of
from sidecar.amqp.connection import FAILURES, ConnectOptions, close_quietly, connect
from sidecar.amqp.publisher_connection import open_publisher_connection
from sidecar.amqp.queue_properties import read_properties
from sidecar.amqp.topology import Topology
from sidecar.ports import OutboundMessage, Unroutable
from tests.fakes.amqp_methods import SIGNATURES, Method, decode, encode
from tests.fakes.amqp_server import (
    AmqpServer,
    ack,
    answer,
    by_chance,
    drop,
    ignore,
    nack,
    refuse,
    script,
    withheld,
)
from tests.fakes.amqp_server import end as end_connection

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiormq.abc import AbstractChannel, AbstractConnection

    from sidecar.amqp.connection import AmqpProtocol

    Run = Callable[..., None]


async def opened(server: AmqpServer, **url: str) -> tuple[AbstractConnection, AmqpProtocol]:
    """Connect with the product's own code."""
    return await connect(URL(server.url).update_query(url), "test", lambda _: None, lambda _: None, ConnectOptions())


def declare(channel: AbstractChannel, *, name: str, passive: bool) -> Awaitable[object]:
    """Declare a classic queue."""
    return channel.queue_declare(name, passive=passive)


async def open_a_channel(server: AmqpServer) -> None:
    """Do what is cut."""
    connection, protocol = await opened(server)
    try:
        await connection.channel()
    finally:
        await close_quietly(connection, protocol)


VALUES = {
    "short": "kö", "long": b"\0\xff", "table": {"a": 1, "b": {"c": "d"}}, "bit": True, "octet": 9, "u16": 65_535,
    "u32": 4_000_000_000, "u64": 1 << 63,
}  # fmt: skip


@pytest.mark.parametrize("name", SIGNATURES)
def test_every_method_reads_as_it_was_written(name: str) -> None:
    """With every argument set, and with none."""
    arguments = {argument: VALUES[kind] for argument, kind in SIGNATURES[name].arguments}
    assert decode(encode(name, arguments)) == Method(name, arguments)
    assert decode(encode(name)).name == name


def test_methods_are_those_of_another_author() -> None:
    """Two who read the specification alike: each method of pamqp's that we have is encoded and decoded the same."""
    pamqp = pytest.importorskip("pamqp.commands")
    for name, signature in SIGNATURES.items():
        method = pamqp.INDEX_MAPPING.get(signature.class_id << 16 | signature.method_id)
        if method is None:
            continue
        theirs = method()
        theirs.validate = lambda: None
        theirs.unmarshal(encode(name)[4:])
        assert theirs.marshal() == encode(name)[4:], name


def test_a_client_comes_in_and_leaves(run: Run) -> None:
    """The whole handshake, and nothing left open."""

    async def scenario() -> None:
        async with AmqpServer() as server:
            connection, protocol = await opened(server, name="someone")
            (came,) = server.connections
            assert (came.name, came.user, came.mechanism, came.opened) == ("someone", "guest", "PLAIN", True)
            assert server.left_open() == ["connection 0 ('someone') is open"]
            await close_quietly(connection, protocol)
            await server.until(lambda: came.ended)
            assert server.left_open() == []

    run(scenario())


@pytest.mark.parametrize(
    ("path", "user", "says"), [("/", "guest:wrong", "ACCESS_REFUSED"), ("/elsewhere", "guest:guest", "vhost elsewhere")]
)
def test_strangers_stay_outside(run: Run, path: str, user: str, says: str) -> None:
    """By a wrong password or a virtual host that isn't there; the reason comes along."""

    async def scenario() -> None:
        async with AmqpServer() as server:
            url = URL(server.url.replace("://", f"://{user}@")).with_path(path)
            with pytest.raises(Exception, match=says):
                await connect(url, "test", lambda _: None, lambda _: None, ConnectOptions())

    run(scenario())


def test_refusals_close_the_channel_and_not_the_connection(run: Run) -> None:
    """Missing, different, forbidden; the next channel works."""

    async def scenario() -> None:
        async with AmqpServer() as server:
            server.declare("there", x_expires=60_000)
            connection, protocol = await opened(server)
            server.on("queue.declare", refuse(403, "ACCESS_REFUSED - no"), queue="forbidden")
            for name, passive, kind in (
                ("absent", True, ChannelNotFoundEntity),
                ("there", False, ChannelPreconditionFailed),
                ("forbidden", True, ChannelAccessRefused),
            ):
                refusal = await refusal_of(connection, partial(declare, name=name, passive=passive))
                assert isinstance(refusal, kind)
            found = await read_properties(lambda act: refusal_of(connection, act), "there")
            assert found is not None
            assert found.arguments == {"x-queue-type": "quorum", "x-expires": 60_000}
            await close_quietly(connection, protocol)

    run(scenario())


def test_messages_are_consumed_and_come_back(run: Run) -> None:
    """Within the prefetch; what isn't settled is redelivered at the head, and counted in a quorum queue."""

    async def scenario() -> None:
        async with AmqpServer() as server:
            queue = server.declare("work")
            for body in (b"1", b"2", b"3"):
                server.publish("work", body)
            connection, protocol = await opened(server)
            channel = await connection.channel(publisher_confirms=False)
            got: asyncio.Queue[object] = asyncio.Queue()
            await channel.basic_qos(prefetch_count=2)
            await channel.basic_consume("work", got.put)
            first, second = await got.get(), await got.get()
            assert [message.body for message in queue.ready] == [b"3"]
            await channel.basic_ack(first.delivery_tag)  # type: ignore[attr-defined]
            assert (await got.get()).body == b"3"  # type: ignore[attr-defined]
            assert second.body == b"2"  # type: ignore[attr-defined]
            assert [message.body for message in server.acked] == [b"1"]
            await channel.close()
            assert [message.body for message in queue.ready] == [b"2", b"3"]
            channel = await connection.channel(publisher_confirms=False)
            again = await channel.basic_get("work")
            assert again.redelivered
            assert again.header.properties.headers == {"x-delivery-count": 1}
            await close_quietly(connection, protocol)

    run(scenario())


def test_rules_count_what_they_name() -> None:
    """The second declare of one queue, and no other."""
    server = AmqpServer()
    seen = []
    server.on("queue.declare", lambda _, method: seen.append(method["queue"]), skip=1, times=1, queue="a")
    for name in ("a", "b", "a", "a"):
        method = Method("queue.declare", {"queue": name})
        rule = next((rule for rule in server._rules if rule.applies(method)), None)
        if rule is not None:
            rule.act(None, method)  # type: ignore[arg-type]
    assert seen == ["a"]


@pytest.mark.parametrize("side", ["sent", "received"])
@pytest.mark.parametrize("size", [0, 1, 8, 100, 300])
def test_a_connection_is_cut_at_the_byte(run: Run, side: str, size: int) -> None:
    """Whoever connects notices, at each moment of the handshake; the next one comes through."""

    async def scenario() -> None:
        async with AmqpServer() as server:
            server.cut(**{side: size})
            with pytest.raises(FAILURES):
                await open_a_channel(server)
            cut = server.connections[0]
            assert getattr(cut, f"{side}_bytes") >= size
            assert side != "sent" or cut.sent_bytes == size
            await close_quietly(*await opened(server))

    run(scenario())


def test_what_it_is_told_of_confirms_is_what_it_sends(run: Run) -> None:
    """Scripts, chance and silence; each through a channel of the product's."""

    async def scenario() -> None:
        async with AmqpServer() as server:
            server.declare("work")
            copies = [OutboundMessage(b"", b"work", b"\0\0", b"%d" % at, b"") for at in range(5)]
            producer = await open_publisher_connection((server.url,), Topology())
            server.confirms = script({5: [nack(3), ack(2), nack(5), ack(4, multiple=True)]})
            verdicts = await producer.publish(copies)
            assert [verdict is None for verdict in verdicts] == [True, True, False, True, False]
            assert [message.body for message in server.queues["work"].ready] == [b"0", b"1", b"3"]
            server.confirms = by_chance(random.Random(1))
            server.nacks = lambda publish: publish.body == b"2"
            verdicts = await producer.publish(copies)
            assert [verdict is None for verdict in verdicts] == [True, True, False, True, True]
            lost = [copies[0], copies[1]._replace(routing_key=b"nowhere")]
            server.confirms = withheld
            task = asyncio.create_task(producer.publish(lost))
            await server.until(lambda: len(server.published) == 12)
            channel = server.channel()
            channel.confirm(0, multiple=True)
            assert isinstance((await task)[1], Unroutable)
            await producer.close()
            assert server.left_open() == []

    run(scenario())


def test_an_alarm_stops_who_publishes(run: Run) -> None:
    """It is told, nothing more of it is read, and what it wrote meanwhile is taken afterwards."""

    async def scenario() -> None:
        async with AmqpServer() as server:
            connection, protocol = await opened(server)
            heard: list[str | None] = []
            protocol.on_blocked = heard.append
            channel = await connection.channel(publisher_confirms=False)
            server.declare("work")
            server.block("low on disk")
            await channel.basic_publish(b"1", routing_key="work")
            await server.until(lambda: server.published)
            await channel.basic_publish(b"2", routing_key="work")
            assert len(server.published) == 1
            server.unblock()
            await server.until(lambda: len(server.published) == 2)
            await close_quietly(connection, protocol)
            assert heard == ["low on disk", None]

    run(scenario())


def test_tls_and_a_login_by_certificate_are_for_who_has_a_context(run: Run) -> None:
    """Without one on this side, the port speaks plain text, which a TLS client notices."""

    async def scenario() -> None:
        async with AmqpServer() as server:
            context = ssl.create_default_context()
            with pytest.raises(Exception, match="TLS"):
                await connect(
                    URL(server.url).with_scheme("amqps"),
                    "test",
                    lambda _: None,
                    lambda _: None,
                    ConnectOptions(tls=context),
                )

    run(scenario())


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (drop, None),
        (end_connection(320, "CONNECTION_FORCED - broker forced connection closure"), "CONNECTION_FORCED"),
        (answer("channel.close", code=541, text="INTERNAL_ERROR"), "INTERNAL_ERROR"),
    ],
)
def test_a_rule_ends_what_it_is_told_to_end(run: Run, act: Callable[..., None], says: str | None) -> None:
    """At the method that it names."""

    async def scenario() -> None:
        async with AmqpServer() as server:
            server.on("basic.qos", act)
            lost: list[str] = []
            connection, protocol = await connect(URL(server.url), "test", lambda _: None, lost.append, ConnectOptions())
            channel = await connection.channel(publisher_confirms=False)
            with pytest.raises((Exception, asyncio.CancelledError), match=says):
                await channel.basic_qos(prefetch_count=1)
            await close_quietly(connection, protocol)

    run(scenario())


def test_what_is_ignored_is_never_answered(run: Run) -> None:
    """A client waits, and the server knows of it."""

    async def scenario() -> None:
        async with AmqpServer() as server:
            server.on("basic.qos", ignore)
            connection, protocol = await opened(server)
            channel = await connection.channel(publisher_confirms=False)
            asking = asyncio.create_task(channel.basic_qos(prefetch_count=1))
            await server.until(lambda: server.methods("basic.qos"))
            assert not asking.done()
            asking.cancel()
            await close_quietly(connection, protocol)

    run(scenario())
