"""An AMQP 0-9-1 server inside the test's own process, byte by byte, that misbehaves where it is told to.

It is for what stands between the product and the socket: connections, channels, declares, confirms, returns, alarms,
heartbeats, and the end of each of them at any byte. `tests.fakes.broker` is for the pipeline, behind the port.

Begin it on a free port, and ask it afterwards what was done and what was left open:

    async with AmqpServer() as server:
        server.declare("work")                                     # a queue; server.queues["work"]
        outlet = Outlet((server.url,), Topology(), Reach())
        assert await outlet.publish([copy]) == [None]
        await outlet.close()
    assert [message.body for message in server.queues["work"].ready] == [b"{}"]
    assert server.left_open() == []                                # every connection was closed in good order

Rules replace what it does with a method, or add to it. They apply in the order in which they were given, and count only
methods with the arguments that they name:

    server.on("basic.publish", refuse(403, "ACCESS_REFUSED - no"), skip=2, times=1)     # the third publish
    server.on("queue.declare", ignore, queue="work", passive=True)                      # is never answered
    server.on("basic.publish", drop, skip=4, times=1, after=True)                       # stores the fifth, then dies
    server.on("connection.open", end(530, "NOT_ALLOWED - vhost / is down"))

Confirms come one by one, unless another way is chosen:

    server.confirms = withheld                                     # then: server.channel().confirm(3, multiple=True)
    server.confirms = script({5: [nack(3), ack(2), nack(5), ack(4, multiple=True)]})    # after the fifth publish
    server.confirms = by_chance(random.Random(seed))               # some at once, multiple and single, out of order
    server.nacks = lambda publish: publish.body == b"bad"          # or queue.full = True
    A mandatory message without a queue is returned before its confirm.

The connection can be cut after so many bytes, counted from its beginning; `skip` leaves the first connections alone:

    server.cut(sent=1000)                                          # the client gets 1000 bytes and the end of file
    server.cut(received=1000, skip=1)                              # what follows is never looked at

Further: `frame_max`, `heartbeat_seconds`, `version`, `capabilities`, `users`, `vhosts`, `mechanisms`, before a client
connects; `AmqpServer(tls=context)`; `block` and `unblock`, `delete`, `publish`, `kill`, `refuse_connections`; `until`
waits for a condition, without polling; `log` and `methods` (what came), `published`, `acked`, `rejected`, and
`connections` with their channels; `complaints`, over which it closed
something by itself.

`tests.fakes.network.run` plays it and the product's own connections in virtual time, without sockets.
"""

from __future__ import annotations

import asyncio
import re
import struct
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from tests.fakes import amqp_methods as amqp
from tests.servers.wire import decode_properties, encode_properties, encode_table

if TYPE_CHECKING:
    import random
    import ssl
    from collections.abc import Callable

    from tests.fakes.amqp_methods import Method

NO_PROPERTIES = b"\0\0"
_GUARD = "x-stream-max-segment-size-bytes"  # compared for streams only
_COMPARED = (
    "x-expires", "x-message-ttl", "x-dead-letter-exchange", "x-dead-letter-routing-key", "x-dead-letter-strategy",
    "x-max-length", "x-max-length-bytes", "x-max-priority", "x-overflow", "x-single-active-consumer",
    "x-delivery-limit",
)  # fmt: skip
_CAPABILITIES = (
    "publisher_confirms", "exchange_exchange_bindings", "basic.nack", "consumer_cancel_notify", "connection.blocked",
    "consumer_priorities", "authentication_failure_close", "per_consumer_qos", "direct_reply_to",
)  # fmt: skip


# What happened ------------------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """A method that came, with the numbers of its connection (from 0) and channel."""

    connection: int
    channel: int
    method: Method


@dataclass(slots=True, eq=False)
class Publish:
    """A message that a client published.

    Attributes:
        tag: its number on its channel, from 1.
        routed: the names of the queues that took it.
        accepted: what it is confirmed with, unless a script says something else.
        confirmed: ``True`` by an ack, ``False`` by a nack, ``None`` not yet.
        returned: no queue took it.
        frame_bytes: the sizes of its body's frames, as a whole.
    """

    connection: int
    channel: int
    tag: int
    exchange: str
    routing_key: str
    mandatory: bool
    properties: bytes
    body: bytes
    frame_bytes: list[int]
    routed: list[str] = field(default_factory=list)
    accepted: bool = True
    confirmed: bool | None = None
    returned: bool = False


@dataclass(slots=True, eq=False)
class Stored:
    """A message in a queue."""

    exchange: str
    routing_key: str
    properties: bytes
    body: bytes
    publish: Publish | None = None
    deliveries: int = 0
    returns: int = 0


@dataclass(slots=True, eq=False)
class Queue:
    """A queue; `full` refuses each publish."""

    name: str
    durable: bool = True
    auto_delete: bool = False
    owner: Connection | None = None
    arguments: dict[Any, Any] = field(default_factory=dict)
    ready: deque[Stored] = field(default_factory=deque)
    full: bool = False

    @property
    def kind(self) -> str:
        """``classic``, ``quorum`` or ``stream``."""
        return str(self.arguments.get("x-queue-type", "classic"))


@dataclass(slots=True, eq=False)
class Exchange:
    """An exchange with its bindings: queue and routing key."""

    name: str
    kind: str
    durable: bool = True
    bindings: list[tuple[str, str]] = field(default_factory=list)

    def routes(self, key: str) -> list[str]:
        """Return the queues for a routing key."""
        return list(dict.fromkeys(queue for queue, pattern in self.bindings if self._matches(pattern, key)))

    def _matches(self, pattern: str, key: str) -> bool:
        if self.kind == "topic":
            words = (
                r"[^.]*" if word == "*" else ".*" if word == "#" else re.escape(word) for word in pattern.split(".")
            )
            return re.fullmatch(r"\.".join(words).replace(r"\..*", r"(\..*)?"), key) is not None
        return self.kind in {"fanout", "headers"} or pattern == key


@dataclass(slots=True, eq=False)
class VirtualHost:
    """A virtual host with what was declared in it."""

    name: str
    queues: dict[str, Queue] = field(default_factory=dict)
    exchanges: dict[str, Exchange] = field(
        default_factory=lambda: {f"amq.{kind}": Exchange(f"amq.{kind}", kind) for kind in ("direct", "fanout", "topic")}
    )

    def routes(self, exchange: str, key: str) -> list[str]:
        """Return the queues for a message."""
        if not exchange:
            return [key] if key in self.queues else []
        return [queue for queue in self.exchanges[exchange].routes(key) if queue in self.queues]

    def forget(self, publish: Publish) -> None:
        """Take a message that is refused after all out of its queues."""
        for name in publish.routed:
            queue = self.queues.get(name)
            if queue is not None:
                queue.ready = deque(message for message in queue.ready if message.publish is not publish)
        publish.routed = []


@dataclass(slots=True, eq=False)
class Consumer:
    """A consumer of a queue."""

    channel: Channel
    tag: str
    queue: Queue
    prefetch: int
    no_ack: bool
    credit: int | None

    @property
    def has_room(self) -> bool:
        """Whether it gets another message."""
        held = sum(1 for delivery in self.channel.unacked.values() if delivery.consumer is self)
        return (not self.prefetch or held < self.prefetch) and (self.credit is None or self.credit > 0)


class Delivery(NamedTuple):
    """A message in a client's hands."""

    queue: Queue
    message: Stored
    consumer: Consumer | None


# Rules --------------------------------------------------------------------------------------------------------------


class Refusal(Exception):  # noqa: N818 - it is an answer
    """Closes the channel, or the connection."""

    def __init__(self, code: int, text: str, *, whole: bool = False) -> None:
        super().__init__(text)
        self.code, self.text, self.whole = code, text, whole


@dataclass(slots=True)
class _Rule:
    name: str
    act: Callable[[Channel, Method], None]
    where: dict[str, Any]
    skip: int
    times: int | None
    after: bool

    def applies(self, method: Method) -> bool:
        if method.name != self.name or any(method[name] != value for name, value in self.where.items()):
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.times is not None:
            self.times -= 1
            return self.times >= 0
        return True


def refuse(code: int, text: str) -> Callable[[Channel, Method], None]:
    """Return what closes the channel over a method."""

    def act(channel: Channel, method: Method) -> None:
        channel.close(code, text, method)

    return act


def end(code: int, text: str) -> Callable[[Channel, Method], None]:
    """Return what closes the connection over a method."""

    def act(channel: Channel, method: Method) -> None:
        channel.connection.close(code, text, method)

    return act


def ignore(_channel: Channel, _method: Method) -> None:
    """Answer nothing."""


def drop(channel: Channel, _method: Method) -> None:
    """Reset the connection."""
    channel.connection.drop()


def answer(name: str, **arguments: Any) -> Callable[[Channel, Method], None]:
    """Return what answers with another method."""
    return lambda channel, _: channel.send(name, **arguments)


# Confirms -----------------------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """A confirm in a script."""

    positive: bool
    tag: int
    multiple: bool


def ack(tag: int, *, multiple: bool = False) -> Answer:
    """Return a positive confirm."""
    return Answer(positive=True, tag=tag, multiple=multiple)


def nack(tag: int, *, multiple: bool = False) -> Answer:
    """Return a negative confirm."""
    return Answer(positive=False, tag=tag, multiple=multiple)


def each(channel: Channel) -> None:
    """Confirm each message when it comes."""
    for tag in list(channel.unconfirmed):
        channel.confirm(tag)


def withheld(_channel: Channel) -> None:
    """Confirm nothing."""


def script(steps: dict[int, list[Answer]]) -> Callable[[Channel], None]:
    """Return what confirms as written, by how many messages the channel has got."""

    def confirm(channel: Channel) -> None:
        for step in steps.get(channel.published, []):
            channel.confirm(step.tag, multiple=step.multiple, positive=step.positive)

    return confirm


def by_chance(rng: random.Random) -> Callable[[Channel], None]:
    """Return what confirms in any order and grouping: some at once, the others when nothing more comes for a moment."""

    def some(channel: Channel) -> None:
        while channel.unconfirmed and rng.random() < 0.7:
            tags = list(channel.unconfirmed)
            tag = rng.choice(tags)
            alike = {channel.unconfirmed[one].accepted for one in tags if one <= tag}
            channel.confirm(tag, multiple=len(alike) == 1 and rng.random() < 0.5)

    def rest(channel: Channel) -> None:
        while channel.unconfirmed and channel.open:
            some(channel)

    def confirm(channel: Channel) -> None:
        some(channel)
        asyncio.get_running_loop().call_later(rng.random() * 0.005, rest, channel)

    return confirm


# The server ---------------------------------------------------------------------------------------------------------


class Channel:
    """A channel of a connection; number 0 is the connection itself.

    Attributes:
        open: it was opened, and neither side has closed it.
        confirming: it is in confirm mode.
        published: how many messages came on it.
        unconfirmed: what came in confirm mode and is not confirmed, by tag.
        unacked: what was delivered and is not settled, by tag.
        consumers: by their tags.
        confirmed_at: when a confirm was sent last, in seconds of the loop's clock.
        closing: the server has closed it; nothing is looked at until the client agrees.
    """

    def __init__(self, connection: Connection, number: int) -> None:
        self.connection = connection
        self.number = number
        self.open = True
        self.closing = False
        self.confirming = False
        self.published = 0
        self.unconfirmed: dict[int, Publish] = {}
        self.unacked: dict[int, Delivery] = {}
        self.consumers: dict[str, Consumer] = {}
        self.prefetch = 0
        self.confirmed_at = 0.0
        self._next_tag = 1
        self._content: _Content | None = None

    @property
    def server(self) -> AmqpServer:
        return self.connection.server

    def send(self, name: str, **arguments: Any) -> None:
        """Send a method."""
        self.connection.send(amqp.frame(amqp.METHOD, self.number, amqp.encode(name, arguments)))

    def close(self, code: int, text: str, method: Method | None = None) -> None:
        """Close the channel, as after an error of the client's."""
        if self.open:
            self.closing = True
            self.end()
            self.send("channel.close", code=code, text=text, **_numbers(method))

    def cancel(self, tag: str) -> None:
        """Cancel a consumer, as when its queue was deleted."""
        del self.consumers[tag]
        self.send("basic.cancel", consumer_tag=tag)

    def confirm(self, tag: int, *, multiple: bool = False, positive: bool | None = None) -> None:
        """Confirm a message, or all up to it (`multiple`; tag 0: all); by default with what became of it."""
        if not self.open:
            return
        covered = [one for one in self.unconfirmed if one == tag or (multiple and (one < tag or not tag))]
        if positive is None:
            positive = all(self.unconfirmed[one].accepted for one in covered)
        for one in covered:
            publish = self.unconfirmed.pop(one)
            publish.confirmed = positive
            if not positive:
                self.connection.vhost.forget(publish)
        self.confirmed_at = asyncio.get_running_loop().time()
        self.send("basic.ack" if positive else "basic.nack", tag=tag, multiple=multiple)

    def deliver(self, consumer: Consumer, message: Stored) -> None:
        """Deliver a message to a consumer."""
        tag, self._next_tag = self._next_tag, self._next_tag + 1
        message.deliveries += 1
        if not consumer.no_ack:
            self.unacked[tag] = Delivery(consumer.queue, message, consumer)
        if consumer.credit is not None:
            consumer.credit -= 1
        self._send_content(
            "basic.deliver",
            _delivered_properties(consumer.queue, message),
            message.body,
            consumer_tag=consumer.tag,
            tag=tag,
            redelivered=message.deliveries > 1,
            exchange=message.exchange,
            routing_key=message.routing_key,
        )

    def _send_content(self, name: str, properties: bytes, body: bytes, **arguments: Any) -> None:
        header = struct.pack(">HHQ", amqp.BASIC, 0, len(body)) + properties
        frames = [
            amqp.frame(amqp.METHOD, self.number, amqp.encode(name, arguments)),
            amqp.frame(amqp.HEADER, self.number, header),
        ]
        step = (self.connection.frame_max or 1 << 30) - amqp.FRAME_OVERHEAD
        frames += [amqp.frame(amqp.BODY, self.number, body[at : at + step]) for at in range(0, len(body), step)]
        self.connection.send(b"".join(frames))

    def end(self) -> None:
        """Forget the channel: what is unacked goes back, its consumers are gone."""
        self.open = False
        consumers, self.consumers = list(self.consumers.values()), {}
        self.give_back(list(self.unacked))
        for consumer in consumers:
            self.server.left(consumer.queue, self.connection.vhost)

    def give_back(self, tags: list[int]) -> None:
        """Put deliveries back to the heads of their queues, in order; see `AmqpServer.returns_line_up`."""
        insert_after = self.server.returns_line_up
        for tag in sorted(tags, reverse=not insert_after):
            delivery = self.unacked.pop(tag)
            delivery.message.returns += 1
            ready = delivery.queue.ready
            behind = (at for at, message in enumerate(ready) if not message.returns)
            ready.insert(next(behind, len(ready)) if insert_after else 0, delivery.message)
        self.server.pump()

    # What comes --------------------------------------------------------------------------------------------------

    def take(self, kind: int, payload: bytes) -> None:
        """Take a frame.

        Raises:
            Refusal: the channel or the connection is to be closed over it.
        """
        if kind == amqp.METHOD:
            if self._content is not None:
                raise Refusal(505, "UNEXPECTED_FRAME - expected content header, got method", whole=True)
            method = amqp.decode(payload)
            if method.name == "basic.publish":
                self._content = _Content(method)
            else:
                self.server.perform(self, method)
            return
        if self._content is None:
            raise Refusal(505, "UNEXPECTED_FRAME - expected method, got content", whole=True)
        if self._content.take(kind, payload):
            content, self._content = self._content, None
            self.published += 1
            self.publish = Publish(
                self.connection.number,
                self.number,
                self.published,
                content.method["exchange"],
                content.method["routing_key"],
                content.method["mandatory"],
                content.properties,
                b"".join(content.parts),
                [len(part) + amqp.FRAME_OVERHEAD for part in content.parts],
            )
            self.server.published.append(self.publish)
            self.server.perform(self, content.method)

    # What is done -------------------------------------------------------------------------------------------------

    def do(self, method: Method) -> None:
        """Do what a method says, as RabbitMQ does.

        Raises:
            Refusal: the channel or the connection is to be closed over it.
        """
        handler = getattr(self, "_" + re.sub(r"[.-]", "_", method.name), None)
        if handler is None:
            raise Refusal(540, f"NOT_IMPLEMENTED - {method.name}", whole=True)
        handler(method)

    def _channel_flow(self, method: Method) -> None:
        self.send("channel.flow-ok", active=method["active"])

    def _channel_flow_ok(self, _: Method) -> None:
        """Do nothing."""

    def _channel_close(self, _: Method) -> None:
        self.end()
        self.server.on_left(self)
        self.connection.channels.pop(self.number, None)
        self.send("channel.close-ok")

    def _confirm_select(self, _: Method) -> None:
        self.confirming = True
        self.send("confirm.select-ok")

    def _exchange_declare(self, method: Method) -> None:
        vhost, name = self.connection.vhost, method["exchange"]
        found = vhost.exchanges.get(name)
        if found is None and method["passive"]:
            raise Refusal(404, f"NOT_FOUND - no exchange '{name}' in vhost '{vhost.name}'")
        if found is not None and not method["passive"] and found.kind != method["type"]:
            raise Refusal(
                406,
                f"PRECONDITION_FAILED - inequivalent arg 'type' for exchange '{name}' in vhost '{vhost.name}': "
                f"received '{method['type']}' but current is '{found.kind}'",
            )
        if found is None and not isinstance(method["arguments"].get("alternate-exchange", ""), str):
            raise Refusal(406, f"PRECONDITION_FAILED - invalid arg 'alternate-exchange' for exchange '{name}'")
        if found is None:
            vhost.exchanges[name] = Exchange(name, method["type"], method["durable"])
        if not method["nowait"]:
            self.send("exchange.declare-ok")

    def _exchange_unbind(self, method: Method) -> None:
        self._exchange(method["source"])
        self._exchange(method["destination"])
        self.send("exchange.unbind-ok")

    def _exchange_delete(self, method: Method) -> None:
        self.connection.vhost.exchanges.pop(method["exchange"], None)
        self.send("exchange.delete-ok")

    def _queue_declare(self, method: Method) -> None:
        vhost = self.connection.vhost
        name = method["queue"] or f"amq.gen-{len(vhost.queues)}"
        queue = vhost.queues.get(name)
        if queue is not None:
            self._check_owner(queue)
        if method["passive"]:
            queue = self._queue(name)
        elif queue is None:
            queue = self._new_queue(name, method)
        else:
            _compare(queue, method, vhost)
        consumers = sum(1 for consumer in self.server.consumers() if consumer.queue is queue)
        if not method["nowait"]:
            self.send("queue.declare-ok", queue=name, messages=len(queue.ready), consumers=consumers)

    def _new_queue(self, name: str, method: Method) -> Queue:
        arguments = method["arguments"]
        if arguments.get(_GUARD, 1) < 0:
            raise Refusal(406, f"PRECONDITION_FAILED - invalid arg '{_GUARD}' for queue '{name}' in vhost '/'")
        if arguments.get("x-message-ttl", 0) < 0:
            raise Refusal(406, f"PRECONDITION_FAILED - invalid arg 'x-message-ttl' for queue '{name}' in vhost '/'")
        owner = self.connection if method["exclusive"] else None
        queue = Queue(name, method["durable"], method["auto_delete"], owner, arguments)
        self.connection.vhost.queues[name] = queue
        return queue

    def _queue(self, name: str) -> Queue:
        vhost = self.connection.vhost
        if name not in vhost.queues:
            raise Refusal(404, f"NOT_FOUND - no queue '{name}' in vhost '{vhost.name}'")
        self._check_owner(vhost.queues[name])
        return vhost.queues[name]

    def _check_owner(self, queue: Queue) -> None:
        if queue.owner is not None and queue.owner is not self.connection:
            raise Refusal(
                405,
                f"RESOURCE_LOCKED - cannot obtain exclusive access to locked queue '{queue.name}' in vhost "
                f"'{self.connection.vhost.name}'",
            )

    def _exchange(self, name: str) -> Exchange:
        vhost = self.connection.vhost
        if name not in vhost.exchanges:
            raise Refusal(404, f"NOT_FOUND - no exchange '{name}' in vhost '{vhost.name}'")
        return vhost.exchanges[name]

    def _queue_bind(self, method: Method) -> None:
        self._queue(method["queue"])
        binding = (method["queue"], method["routing_key"])
        exchange = self._exchange(method["exchange"])
        if binding not in exchange.bindings:
            exchange.bindings.append(binding)
        if not method["nowait"]:
            self.send("queue.bind-ok")

    def _queue_unbind(self, method: Method) -> None:
        bindings = self._exchange(method["exchange"]).bindings
        if (method["queue"], method["routing_key"]) in bindings:
            bindings.remove((method["queue"], method["routing_key"]))
        self.send("queue.unbind-ok")

    def _queue_purge(self, method: Method) -> None:
        queue = self._queue(method["queue"])
        count = len(queue.ready)
        queue.ready.clear()
        self.send("queue.purge-ok", messages=count)

    def _queue_delete(self, method: Method) -> None:
        vhost, name = self.connection.vhost, method["queue"]
        count = len(vhost.queues[name].ready) if name in vhost.queues else 0
        self.server.delete(name, vhost.name)
        self.send("queue.delete-ok", messages=count)

    def _basic_qos(self, method: Method) -> None:
        self.prefetch = method["prefetch_count"]
        self.send("basic.qos-ok")

    def _basic_consume(self, method: Method) -> None:
        queue = self._queue(method["queue"])
        tag = method["consumer_tag"] or f"amq.ctag-{self.connection.number}-{self.number}-{len(self.server.log)}"
        if not isinstance(method["arguments"].get("x-priority", 0), int):
            raise Refusal(406, "PRECONDITION_FAILED - invalid arg 'x-priority'")
        if tag in self.consumers:
            raise Refusal(530, f"NOT_ALLOWED - attempt to reuse consumer tag '{tag}'", whole=True)
        credit = None
        if int(self.server.version.split(".")[0]) < 4:  # later ones ignore it
            credit = method["arguments"].get("x-credit", {}).get("credit")
        self.consumers[tag] = Consumer(self, tag, queue, self.prefetch, method["no_ack"], credit)
        if not method["nowait"]:
            self.send("basic.consume-ok", consumer_tag=tag)
        self.server.pump()

    def _basic_cancel(self, method: Method) -> None:
        consumer = self.consumers.pop(method["consumer_tag"], None)
        if not method["nowait"]:
            self.send("basic.cancel-ok", consumer_tag=method["consumer_tag"])
        if consumer is not None:
            self.server.left(consumer.queue, self.connection.vhost)

    def _basic_cancel_ok(self, _: Method) -> None:
        """Do nothing."""

    def _basic_get(self, method: Method) -> None:
        queue = self._queue(method["queue"])
        if not queue.ready:
            self.send("basic.get-empty")
            return
        message = queue.ready.popleft()
        message.deliveries += 1
        tag, self._next_tag = self._next_tag, self._next_tag + 1
        if not method["no_ack"]:
            self.unacked[tag] = Delivery(queue, message, None)
        self._send_content(
            "basic.get-ok",
            _delivered_properties(queue, message),
            message.body,
            tag=tag,
            redelivered=message.deliveries > 1,
            exchange=message.exchange,
            routing_key=message.routing_key,
            messages=len(queue.ready),
        )

    def _basic_publish(self, _: Method) -> None:
        publish, vhost = self.publish, self.connection.vhost
        if publish.exchange and publish.exchange not in vhost.exchanges:
            raise Refusal(404, f"NOT_FOUND - no exchange '{publish.exchange}' in vhost '{vhost.name}'")
        routes = vhost.routes(publish.exchange, publish.routing_key)
        publish.accepted = not self.server.nacks(publish) and not any(vhost.queues[name].full for name in routes)
        publish.returned = not routes and publish.mandatory
        if publish.returned:
            self._send_content(
                "basic.return",
                publish.properties,
                publish.body,
                code=312,
                text="NO_ROUTE",
                exchange=publish.exchange,
                routing_key=publish.routing_key,
            )
        if publish.accepted:
            publish.routed = routes
            for name in routes:
                vhost.queues[name].ready.append(
                    Stored(publish.exchange, publish.routing_key, publish.properties, publish.body, publish)
                )
        self.server.on_published(publish)
        if self.confirming:
            self.unconfirmed[publish.tag] = publish
            self.server.confirms(self)
        self.connection.publishes = True
        self.connection.feel_alarm()
        self.server.pump()

    def _settled(self, method: Method) -> list[int]:
        tag, multiple = method["tag"], method.arguments.get("multiple", False)
        tags = [one for one in self.unacked if one == tag or (multiple and (one < tag or not tag))]
        if not tags and (tag or not multiple):
            raise Refusal(406, f"PRECONDITION_FAILED - unknown delivery tag {tag}")
        return tags

    def _basic_ack(self, method: Method) -> None:
        for tag in self._settled(method):
            self.server.acked.append(self.unacked.pop(tag).message)
        self.server.pump()

    def _basic_nack(self, method: Method) -> None:
        tags = self._settled(method)
        if method["requeue"]:
            self.give_back(tags)
            return
        for tag in tags:
            self.server.rejected.append(self.unacked.pop(tag).message)
        self.server.pump()

    _basic_reject = _basic_nack

    # The connection's own ------------------------------------------------------------------------------------------

    def _connection_start_ok(self, method: Method) -> None:
        self.connection.log_in(method)

    def _connection_tune_ok(self, method: Method) -> None:
        self.connection.tuned(method)

    def _connection_open(self, method: Method) -> None:
        self.connection.enter(method["vhost"])

    def _connection_close(self, _: Method) -> None:
        self.send("connection.close-ok")
        self.connection.ended = "closed"
        self.connection.hang_up()

    def _connection_close_ok(self, _: Method) -> None:
        self.connection.hang_up()

    def _connection_update_secret(self, _: Method) -> None:
        self.send("connection.update-secret-ok")


class _Content:
    """A message of which not all frames are here yet."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.properties: bytes = b""
        self.size = -1
        self.parts: list[bytes] = []

    def take(self, kind: int, payload: bytes) -> bool:
        """Take a frame; return whether the message is complete.

        Raises:
            Refusal: it is not the one that is due.
        """
        if (kind == amqp.HEADER) is (self.size >= 0):
            raise Refusal(505, "UNEXPECTED_FRAME - a content header and body in the wrong order", whole=True)
        if kind == amqp.HEADER:
            class_id, _, self.size = struct.unpack_from(">HHQ", payload)
            self.properties = payload[12:]
            decode_properties(self.properties)
            if class_id != amqp.BASIC:
                raise Refusal(501, "FRAME_ERROR - a content header of another class", whole=True)
        else:
            self.parts.append(payload)
        have = sum(map(len, self.parts))
        if have > self.size:
            raise Refusal(501, "FRAME_ERROR - a message longer than its header says", whole=True)
        return have == self.size


def _numbers(method: Method | None) -> dict[str, int]:
    if method is None:
        return {"class_id": 0, "method_id": 0}
    signature = amqp.SIGNATURES[method.name]
    return {"class_id": signature.class_id, "method_id": signature.method_id}


def _delivered_properties(queue: Queue, message: Stored) -> bytes:
    """Return the properties of a delivery: a quorum queue counts in them how often the message came back."""
    if queue.kind != "quorum" or not message.returns:
        return message.properties
    found = decode_properties(message.properties)
    count = encode_table({"x-delivery-count": message.returns})[4:]
    return encode_properties({**found.values, "headers": found.header_bytes + count})


def _described(value: object) -> str:
    if value is None:
        return "none"
    kind = {bool: "bool", int: "signedint"}.get(type(value), "longstr")
    if isinstance(value, int) and abs(value) >= 1 << 31:
        kind = "long"
    return f"the value '{str(value).lower() if isinstance(value, bool) else value}' of type '{kind}'"


def _compare(queue: Queue, method: Method, vhost: VirtualHost) -> None:
    """Compare a declare with the queue that is there.

    Raises:
        Refusal: it differs.
    """

    def differ(name: str, received: str, current: str) -> None:
        raise Refusal(
            406,
            f"PRECONDITION_FAILED - inequivalent arg '{name}' for queue '{queue.name}' in vhost '{vhost.name}': "
            f"received {received} but current is {current}",
        )

    arguments = method["arguments"]
    kind = str(arguments.get("x-queue-type", "classic"))
    if kind != queue.kind:
        differ("x-queue-type", f"'{kind}'", f"'{queue.kind}'")
    flags = {"durable": queue.durable, "auto_delete": queue.auto_delete, "exclusive": queue.owner is not None}
    for flag, current in flags.items():
        if method[flag] != current:
            differ(flag, f"'{str(method[flag]).lower()}'", f"'{str(current).lower()}'")
    for name in (*_COMPARED, *((_GUARD,) if queue.kind == "stream" else ())):
        if arguments.get(name) != queue.arguments.get(name):
            differ(name, _described(arguments.get(name)), _described(queue.arguments.get(name)))


@dataclass(slots=True)
class _Cut:
    sent: int | None
    received: int | None
    skip: int


class Connection(asyncio.Protocol):
    """A client's connection.

    Attributes:
        number: from 0, in the order in which they came.
        channels: those that are open or being closed, by number; 0 is the connection itself.
        opened: it got through the login and into a virtual host.
        ended: ``closed`` in good order by the client, ``server`` by us, ``dropped`` by the client; None while it lasts.
        user: who logged in.
        mechanism: how.
        client_properties: what the client told of itself.
        heartbeats: how many came.
        received_bytes: in all.
        sent_bytes: in all.
        sent_marks: how many it were after each method or message.
        received_marks: how many it were after each frame.
        publishes: a message was published on it.
        blocked: it was told of an alarm, and nothing is read from it.
    """

    def __init__(self, server: AmqpServer) -> None:
        self.server = server
        self.number = len(server.connections)
        self.channels: dict[int, Channel] = {}
        self.opened = False
        self.ended: str | None = None
        self.user: str | None = None
        self.mechanism: str | None = None
        self.client_properties: dict[Any, Any] = {}
        self.frame_max = 0
        self.heartbeat_seconds = 0
        self.heartbeats = 0
        self.received_bytes = 0
        self.sent_bytes = 0
        self.sent_marks: list[int] = []
        self.received_marks: list[int] = []
        self.publishes = False
        self.blocked = False
        self.transport: asyncio.Transport
        self.vhost: VirtualHost
        self._cut = server.next_cut()
        self._closing = False
        self._greeted = False
        self._reading = True
        self._buffer = b""
        self._heard_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def name(self) -> str:
        """What the client calls the connection."""
        return str(self.client_properties.get("connection_name", ""))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = transport  # type: ignore[assignment]
        self.channels[0] = Channel(self, 0)
        self.server.changed()

    def data_received(self, data: bytes) -> None:
        """Take bytes, up to where the connection is cut."""
        if self.ended:
            return
        before, self.received_bytes = self.received_bytes, self.received_bytes + len(data)
        limit = self._cut.received if self._cut is not None else None
        self._buffer += data if limit is None else data[: max(0, limit - before)]
        self._heard_at = asyncio.get_running_loop().time()
        self._go_on()
        if limit is not None and self.received_bytes >= limit and not self.ended:
            self.drop()
        self.server.changed()

    def connection_lost(self, exc: Exception | None) -> None:
        """End: everything goes back."""
        self._end("dropped")
        self.server.changed()

    def send(self, data: bytes) -> None:
        """Send bytes, up to where the connection is cut."""
        if self.ended == "server" or self.transport.is_closing():
            return
        limit = self._cut.sent if self._cut is not None else None
        if limit is not None and self.sent_bytes + len(data) >= limit:
            data = data[: limit - self.sent_bytes]
            self.sent_bytes = limit
            self.transport.write(data)
            self.hang_up()
            return
        self.sent_bytes += len(data)
        self.sent_marks.append(self.sent_bytes)
        self.transport.write(data)

    def close(self, code: int, text: str, method: Method | None = None) -> None:
        """Close the connection, as after an error of the client's or when the node shuts down."""
        self._closing = True
        self.channels[0].send("connection.close", code=code, text=text, **_numbers(method))

    def hang_up(self) -> None:
        """End the stream after what was sent."""
        self._end(self.ended or "server")
        self.transport.close()

    def drop(self) -> None:
        """Reset the connection."""
        self._end(self.ended or "server")
        self.transport.abort()

    def _end(self, how: str) -> None:
        if self.ended is None or (how == "closed" and self._timer is not None):
            self.ended = how
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        channels, self.channels = list(self.channels.values()), {}
        self.channels_at_end = [channel.number for channel in channels if channel.number and channel.open]
        for channel in channels:
            if channel.open:
                channel.end()
                if how != "server":
                    self.server.on_left(channel)
        if self.opened:
            for queue in list(self.vhost.queues.values()):
                if queue.owner is self:
                    self.server.delete(queue.name, self.vhost.name)

    def stop_reading(self) -> None:
        """Leave what comes in the socket, until `read_on`."""
        self._reading = False
        self.transport.pause_reading()

    def read_on(self) -> None:
        """Read again."""
        self._reading = True
        self.transport.resume_reading()
        self._go_on()

    def feel_alarm(self) -> None:
        """Block the connection if there is an alarm: RabbitMQ reads nothing more from who publishes."""
        if self.server.alarm is not None and self.publishes and not self.blocked and not self.ended:
            self.blocked = True
            if self.client_properties.get("capabilities", {}).get("connection.blocked"):
                self.channels[0].send("connection.blocked", reason=self.server.alarm)
            self.stop_reading()

    def end_alarm(self) -> None:
        """Unblock the connection."""
        if self.blocked and not self.ended:
            self.blocked = False
            self.channels[0].send("connection.unblocked")
            self.read_on()

    # Frames ----------------------------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Take the whole frames that are there."""
        if not self._greeted:
            if len(self._buffer) < len(amqp.PROTOCOL_HEADER):
                return
            self._greet()
        while self._reading and not self.ended and len(self._buffer) >= 7:
            kind, number, size = struct.unpack_from(">BHI", self._buffer)
            if self.frame_max and size + amqp.FRAME_OVERHEAD > self.frame_max:
                text = f"FRAME_ERROR - type {kind}, a frame of {size} bytes, max_frame_size={self.frame_max}"
                self.server.complaints.append(text)
                self.close(501, text)
                self._buffer = b""
                return
            if len(self._buffer) < size + amqp.FRAME_OVERHEAD:
                return
            payload, last = self._buffer[7 : 7 + size], self._buffer[7 + size : 8 + size]
            self._buffer = self._buffer[8 + size :]
            self.received_marks.append(self.received_bytes - len(self._buffer))
            if last != amqp.FRAME_END:
                self.server.complaints.append("FRAME_ERROR - a frame without its end")
                self.close(501, self.server.complaints[-1])
                return
            self._take(kind, number, payload)

    def _greet(self) -> None:
        greeting, self._buffer = self._buffer[:8], self._buffer[8:]
        self._greeted = True
        if greeting != amqp.PROTOCOL_HEADER:
            self.send(amqp.PROTOCOL_HEADER)
            self.hang_up()
            return
        server = self.server
        properties: dict[str, Any] = {
            "product": "RabbitMQ",
            "version": server.version,
            "cluster_name": server.cluster_name,
            **({"capabilities": server.capabilities} if server.capabilities is not None else {}),
        }
        self.channels[0].send(
            "connection.start",
            version_minor=9,
            server_properties=properties,
            mechanisms=" ".join(server.mechanisms),
            locales="en_US",
        )

    def _take(self, kind: int, number: int, payload: bytes) -> None:
        if kind == amqp.HEARTBEAT:
            self.heartbeats += 1
            return
        channel = self.channels.get(number)
        method = amqp.decode(payload) if kind == amqp.METHOD else None
        if method is not None and method.name == "channel.close-ok":
            self.channels.pop(number, None)
            self.server.note(self.number, number, method)
            return
        if self._closing and (method is None or method.name not in {"connection.close-ok", "connection.close"}):
            return
        if channel is not None and channel.closing:
            if method is not None and method.name == "channel.close":
                channel.send("channel.close-ok")
            return
        try:
            if channel is None:
                self._open_channel(number, method)
            else:
                channel.take(kind, payload)
        except Refusal as refusal:
            self.server.complaints.append(refusal.text)
            if refusal.whole or channel is None or not number:
                self.close(refusal.code, refusal.text, method)
            else:
                channel.close(refusal.code, refusal.text, method)

    def _open_channel(self, number: int, method: Method | None) -> None:
        if method is None or method.name != "channel.open" or not self.opened:
            raise Refusal(504, "CHANNEL_ERROR - expected 'channel.open'", whole=True)
        if self.server.channel_max and number > self.server.channel_max:
            raise Refusal(530, f"NOT_ALLOWED - number of channels opened on connection: {number}", whole=True)
        channel = Channel(self, number)

        def open_it(*_: object) -> None:
            self.channels[number] = channel
            channel.send("channel.open-ok")

        self.server.perform(channel, method, open_it)

    # The handshake -------------------------------------------------------------------------------------------------

    def log_in(self, method: Method) -> None:
        """Check who it is.

        Raises:
            Refusal: nobody knows.
        """
        self.client_properties = method["client_properties"]
        self.mechanism = method["mechanism"]
        response: bytes = method["response"]
        if self.mechanism == "EXTERNAL":
            certificate: Any = self.transport.get_extra_info("peercert") or {}
            names = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
            self.user = names[0] if names else None
            welcome = self.user in self.server.users
        else:
            _, self.user, password = response.decode().split("\0")
            welcome = self.server.users.get(self.user) == password
        if self.mechanism not in self.server.mechanisms or not welcome:
            raise Refusal(
                403,
                f"ACCESS_REFUSED - Login was refused using authentication mechanism {self.mechanism}. "
                "For details see the broker logfile.",
                whole=True,
            )
        server = self.server
        self.channels[0].send(
            "connection.tune",
            channel_max=server.channel_max,
            frame_max=server.frame_max,
            heartbeat=server.heartbeat_seconds,
        )

    def tuned(self, method: Method) -> None:
        """Note what the client agreed to."""
        self.frame_max = method["frame_max"]
        self.heartbeat_seconds = method["heartbeat"]
        if self.heartbeat_seconds:
            self._timer = asyncio.get_running_loop().call_later(self.heartbeat_seconds / 2, self._beat)

    def enter(self, vhost: str) -> None:
        """Enter a virtual host.

        Raises:
            Refusal: it doesn't exist.
        """
        if vhost not in self.server.vhosts:
            raise Refusal(530, f"NOT_ALLOWED - vhost {vhost} not found", whole=True)
        self.vhost = self.server.vhosts[vhost]
        self.opened = True
        self.channels[0].send("connection.open-ok")

    def _beat(self) -> None:
        """Send a heartbeat, and end the connection when none came for two intervals."""
        loop = asyncio.get_running_loop()
        if self.server.sends_heartbeats:
            self.send(amqp.HEARTBEAT_FRAME)
        if self._reading and loop.time() - self._heard_at > 2 * self.heartbeat_seconds:
            self.drop()
            return
        self._timer = loop.call_later(self.heartbeat_seconds / 2, self._beat)


class AmqpServer:
    """See the module.

    Args:
        tls: speaks TLS; for a login by certificate, EXTERNAL must be among `mechanisms`.

    Attributes:
        url: of the default virtual host, with the default user; ``amqps`` with `tls`.
        connections: all that there ever were.
        log: every method that came, but for publishes, which are in `published`.
        acked: messages that were acked, in order.
        rejected: messages that were rejected or nacked without requeue, in order.
        complaints: the texts with which it closed a channel or connection, but for what rules and tests closed.
        on_left: told of each channel that a client closed, or left with its connection.
        on_published: told of each message that came, before it is confirmed.
        returns_line_up: what comes back goes behind what came back earlier, not to the head of its queue.
        alarm: why publishes are not taken; None: they are.
        frame_max: that is offered, in bytes; 0 means no limit.
        heartbeat_seconds: that is offered; a client may choose another one.
        sends_heartbeats: otherwise it is silent.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self.connections: list[Connection] = []
        self.log: list[Entry] = []
        self.published: list[Publish] = []
        self.acked: list[Stored] = []
        self.rejected: list[Stored] = []
        self.complaints: list[str] = []
        self.on_published: Callable[[Publish], None] = lambda _: None
        self.on_left: Callable[[Channel], None] = lambda _: None
        self.returns_line_up = False
        self.alarm: str | None = None
        self.version = "3.10.8"
        self.cluster_name = "rabbit@test"
        self.capabilities: dict[str, bool] | None = dict.fromkeys(_CAPABILITIES, True)
        self.mechanisms: tuple[str, ...] = ("PLAIN", "AMQPLAIN")
        self.users: dict[str, str] = {"guest": "guest"}
        self.vhosts = {"/": VirtualHost("/")}
        self.frame_max = 131_072
        self.channel_max = 2047
        self.heartbeat_seconds = 60
        self.sends_heartbeats = True
        self.confirms: Callable[[Channel], None] = each
        self.nacks: Callable[[Publish], bool] = lambda _: False
        self.port = 0
        self._tls = tls
        self._rules: list[_Rule] = []
        self._cuts: list[_Cut] = []
        self._server: asyncio.Server | None = None
        self._waiting: list[tuple[Callable[[], object], asyncio.Future[None]]] = []
        self._pumping = False

    async def __aenter__(self) -> Self:
        await self.accept_connections()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse_connections()
        self.kill()

    @property
    def url(self) -> str:
        scheme = "amqps" if self._tls is not None else "amqp"
        return f"{scheme}://localhost:{self.port}/" if self._tls is not None else f"{scheme}://127.0.0.1:{self.port}/"

    # To arrange ------------------------------------------------------------------------------------------------------

    @property
    def queues(self) -> dict[str, Queue]:
        """The queues of the default virtual host."""
        return self.vhosts["/"].queues

    def declare(self, name: str, **arguments: Any) -> Queue:
        """Declare a quorum queue, as somebody else does; `arguments` with ``_`` for ``-``."""
        named = {"x_queue_type": "quorum", **arguments}
        queue = Queue(name, arguments={name.replace("_", "-"): value for name, value in named.items()})
        self.queues[name] = queue
        return queue

    def bind(self, exchange: str, routing_key: str, queue: str, *, kind: str = "direct") -> None:
        """Bind a queue to an exchange, which is made if it is absent."""
        self.vhosts["/"].exchanges.setdefault(exchange, Exchange(exchange, kind)).bindings.append((queue, routing_key))

    def publish(
        self, queue: str, body: bytes, properties: bytes = NO_PROPERTIES, *, exchange: str = "", key: str | None = None
    ) -> None:
        """Put a message into a queue, as somebody else does."""
        routing_key = key if key is not None else queue
        self.queues[queue].ready.append(Stored(exchange, routing_key, properties, body))
        self.pump()

    def on(
        self,
        name: str,
        act: Callable[[Channel, Method], None],
        *,
        skip: int = 0,
        times: int | None = None,
        after: bool = False,
        **where: Any,
    ) -> None:
        """Have a method answered in another way.

        Args:
            name: of the method.
            act: `refuse`, `end`, `drop`, `ignore`, `answer`, or a function of the test's own.
            skip: leave the first ones alone.
            times: how often; None: always.
            after: do what the method says first.
            where: arguments that it must have.
        """
        self._rules.append(_Rule(name, act, where, skip, times, after))

    def cut(self, *, sent: int | None = None, received: int | None = None, skip: int = 0) -> None:
        """Cut the next connection (`skip`: one after it) when so many bytes were sent or received."""
        self._cuts.append(_Cut(sent, received, skip))

    def block(self, reason: str = "low on memory") -> None:
        """Raise an alarm: connections that have published, or that publish next, are blocked."""
        self.alarm = reason
        for connection in self.connections:
            connection.feel_alarm()

    def unblock(self) -> None:
        """End the alarm."""
        self.alarm = None
        for connection in self.connections:
            connection.end_alarm()

    def delete(self, name: str, vhost: str = "/") -> None:
        """Delete a queue with its messages; consumers of it are cancelled."""
        queue = self.vhosts[vhost].queues.pop(name, None)
        for consumer in self.consumers():
            if consumer.queue is queue:
                consumer.channel.cancel(consumer.tag)

    def kill(self) -> None:
        """Reset all connections."""
        for connection in self.connections:
            if not connection.ended or not connection.transport.is_closing():
                connection.drop()

    async def refuse_connections(self) -> None:
        """Listen no longer; connections that are there stay."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def accept_connections(self) -> None:
        """Listen, again on the same port."""
        loop = asyncio.get_running_loop()
        host = "localhost" if self._tls is not None else "127.0.0.1"
        self._server = await loop.create_server(self.new_connection, host, self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    # To ask ----------------------------------------------------------------------------------------------------------

    def methods(self, name: str) -> list[Method]:
        """Return all methods of a name that came."""
        return [entry.method for entry in self.log if entry.method.name == name]

    def channel(self, *, confirming: bool = True) -> Channel:
        """Return the newest open channel, in confirm mode or not."""
        found = [
            channel
            for connection in self.connections
            for number, channel in connection.channels.items()
            if number and channel.open and channel.confirming is confirming
        ]
        return found[-1]

    def consumers(self) -> list[Consumer]:
        """Return all consumers."""
        return [
            consumer
            for connection in self.connections
            for channel in connection.channels.values()
            for consumer in channel.consumers.values()
        ]

    def left_open(self) -> list[str]:
        """Return a sentence for each thing that a client left open, or dropped without closing it."""
        left = []
        for connection in self.connections:
            where = f"connection {connection.number} ({connection.name!r})"
            if connection.ended is None:
                left.append(f"{where} is open")
            elif connection.ended == "dropped":
                left.append(f"{where} was dropped without a close")
            for channel in connection.channels.values():
                if channel.number and channel.open:
                    held = f"{len(channel.consumers)} consumers, {len(channel.unacked)} unacked"
                    left.append(f"{where}: channel {channel.number} is open, with {held}")
        return left

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition holds; it is looked at after everything that came."""
        if condition():
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((condition, done))
        await done

    # Inside ----------------------------------------------------------------------------------------------------------

    def new_connection(self) -> Connection:
        """Return the protocol of a new connection."""
        connection = Connection(self)
        self.connections.append(connection)
        return connection

    def next_cut(self) -> _Cut | None:
        """Return where the next connection is cut."""
        if not self._cuts:
            return None
        if self._cuts[0].skip:
            self._cuts[0].skip -= 1
            return None
        return self._cuts.pop(0)

    def note(self, connection: int, channel: int, method: Method) -> None:
        """Note what came."""
        self.log.append(Entry(connection, channel, method))

    def perform(self, channel: Channel, method: Method, do: Callable[[Method], None] | None = None) -> None:
        """Do what a method says, or what a rule says instead."""
        if method.name != "basic.publish":
            self.note(channel.connection.number, channel.number, method)
        rule = next((rule for rule in self._rules if rule.applies(method)), None)
        if rule is None or rule.after:
            (do or channel.do)(method)
        if rule is not None:
            rule.act(channel, method)

    def pump(self) -> None:
        """Deliver what there is room for, to the consumers of a queue in turn."""
        if self._pumping:
            return
        self._pumping = True
        moved = True
        while moved:
            moved = False
            for consumer in self.consumers():
                if consumer.queue.ready and consumer.has_room and not consumer.channel.connection.ended:
                    consumer.channel.deliver(consumer, consumer.queue.ready.popleft())
                    moved = True
        self._pumping = False

    def left(self, queue: Queue, vhost: VirtualHost) -> None:
        """Delete an auto-delete queue that its last consumer has left."""
        if queue.auto_delete and not any(consumer.queue is queue for consumer in self.consumers()):
            self.delete(queue.name, vhost.name)

    def changed(self) -> None:
        """Wake up who waits for a condition that holds now."""
        for condition, done in list(self._waiting):
            if done.done():
                self._waiting.remove((condition, done))
            elif condition():
                done.set_result(None)
