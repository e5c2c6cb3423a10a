"""A small blocking AMQP 0-9-1 client: one socket, one channel, exact bytes in and out.

It writes and reads frames by itself. Fifty thousand messages are published and confirmed in a couple of seconds, and
what it sends and shows is neither validated nor tidied up.
"""

from __future__ import annotations

import socket
import struct
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import unquote, urlsplit

from tests.servers import wire

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable, Sequence

    from tests.servers.wire import DecodedProperties, Properties, Table

TIMEOUT_SECONDS = 30.0

_METHOD: Final = 1
_HEADER: Final = 2
_BODY: Final = 3
_HEARTBEAT: Final = 8
_FRAME_END: Final = b"\xce"
_FRAME_OVERHEAD: Final = 8
_CHANNEL: Final = 1
_CLASS_BASIC: Final = 60
_PORT: Final = 5672
_PREFETCH_ALL: Final = 0

# More unconfirmed messages than this are not sent; their acks fit into the receive buffer, so neither side waits for
# the other to read.
_WINDOW: Final = 4000
_SEND_BYTES: Final = 256 * 1024
_TAKE: Final = 5000
_RETURN_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.01

_CONNECTION_START: Final = (10, 10)
_CONNECTION_TUNE: Final = (10, 30)
_CONNECTION_OPEN_OK: Final = (10, 41)
_CONNECTION_CLOSE: Final = (10, 50)
_CONNECTION_CLOSE_OK: Final = (10, 51)
_CONNECTION_BLOCKED: Final = (10, 60)
_CONNECTION_UNBLOCKED: Final = (10, 61)
_CHANNEL_OPEN_OK: Final = (20, 11)
_CHANNEL_CLOSE: Final = (20, 40)
_CHANNEL_CLOSE_OK: Final = (20, 41)
_EXCHANGE_DECLARE_OK: Final = (40, 11)
_EXCHANGE_DELETE_OK: Final = (40, 21)
_QUEUE_DECLARE_OK: Final = (50, 11)
_QUEUE_BIND_OK: Final = (50, 21)
_QUEUE_PURGE_OK: Final = (50, 31)
_QUEUE_DELETE_OK: Final = (50, 41)
_QUEUE_UNBIND_OK: Final = (50, 51)
_BASIC_QOS_OK: Final = (60, 11)
_BASIC_CONSUME_OK: Final = (60, 21)
_BASIC_CANCEL: Final = (60, 30)
_BASIC_CANCEL_OK: Final = (60, 31)
_BASIC_RETURN: Final = (60, 50)
_BASIC_DELIVER: Final = (60, 60)
_BASIC_GET_OK: Final = (60, 71)
_BASIC_GET_EMPTY: Final = (60, 72)
_BASIC_ACK: Final = (60, 80)
_BASIC_NACK: Final = (60, 120)
_CONFIRM_SELECT_OK: Final = (85, 11)

Method = tuple[int, int]


class AmqpError(Exception):
    """The broker or the network said no."""


class ChannelClosedError(AmqpError):
    """The broker closed the channel; the client has opened a new one."""

    def __init__(self, code: int, text: str) -> None:
        """Keep the broker's reply code (404, 406, ...) and text."""
        super().__init__(f"{code} {text}")
        self.code = code
        self.text = text


class ConnectionClosedError(AmqpError):
    """The connection is gone: closed by the broker (with a code), or lost (code 0)."""

    def __init__(self, code: int, text: str) -> None:
        """Keep the broker's reply code and text."""
        super().__init__(f"{code} {text}")
        self.code = code
        self.text = text


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to publish. `raw_properties` (flags and values as they go over the wire) wins over `properties`."""

    body: bytes
    routing_key: str | bytes | None = None
    exchange: str | bytes | None = None
    properties: Properties = field(default_factory=dict)
    raw_properties: bytes | None = None

    def property_bytes(self) -> bytes:
        """Return property flags and values."""
        return wire.encode_properties(self.properties) if self.raw_properties is None else self.raw_properties


@dataclass(frozen=True, slots=True)
class Received:
    """A message that the broker delivered or returned. `tag` is 0 for one that was returned."""

    body: bytes
    raw_properties: bytes
    exchange: str | bytes
    routing_key: str | bytes
    redelivered: bool = False
    tag: int = 0
    reply_code: int = 0

    @property
    def properties(self) -> DecodedProperties:
        """The properties by name; the header table's bytes as well."""
        return wire.decode_properties(self.raw_properties)

    @property
    def headers(self) -> dict[str | bytes, wire.FieldValue]:
        """The header table by name."""
        return self.properties.headers

    @property
    def header_bytes(self) -> bytes:
        """The header table's exact bytes, without its length."""
        return self.properties.header_bytes

    @property
    def message_id(self) -> str | bytes | int | None:
        """The property of that name, or None."""
        return self.properties.values.get("message_id")


@dataclass(slots=True)
class Published:
    """What became of published messages: positions (from 0) of those refused, and those that came back unroutable."""

    count: int = 0
    nacked: list[int] = field(default_factory=list)
    returned: list[Received] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class QueueState:
    """What a passive declare says of a queue: ready messages (not those that a consumer holds), consumers."""

    ready: int
    consumers: int


@dataclass(frozen=True, slots=True)
class _Frame:
    method: Method
    payload: bytes
    message: tuple[bytes, bytes] | None = None


class Amqp:
    """A connection with one channel. Not for use by several threads.

    Use it as a context manager, or call `close`.
    """

    def __init__(
        self, url: str, *, timeout_seconds: float = TIMEOUT_SECONDS, tls: ssl.SSLContext | None = None
    ) -> None:
        """Connect, log in and open a channel.

        Raises:
            AmqpError: the broker refused.
            OSError: nobody listens there.
        """
        self._buffer = bytearray()
        self._at = 0
        self._deliveries: deque[Received] = deque()
        self._returned: list[Received] = []
        self._confirms: deque[tuple[bool, int, bool]] = deque()
        self._confirming = False
        self._published = 0
        self._frame_max = 0
        self._consumer = 0
        self.cancelled: list[str] = []
        parts = urlsplit(url)
        host = parts.hostname or "localhost"
        plain = socket.create_connection((host, parts.port or _PORT), timeout=timeout_seconds)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = plain if tls is None else tls.wrap_socket(plain, server_hostname=host)
        try:
            username, password = unquote(parts.username or "guest"), unquote(parts.password or "guest")
            self._log_in(username, password, _virtual_host(parts.path))
            self._open_channel()
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self) -> Self:
        """Return the open connection."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self.close()

    def close(self) -> None:
        """Close the connection in good order, or just the socket where the broker is gone."""
        try:
            self._send(10, 50, struct.pack(">H", 200) + wire.short_string("") + b"\0\0\0\0", channel=0)
            self._wait_for(_CONNECTION_CLOSE_OK)
        except (AmqpError, OSError):
            pass
        finally:
            self.socket.close()

    def abort(self) -> None:
        """Drop the connection without a word, as a client does that is killed."""
        self.socket.close()

    # -- topology --------------------------------------------------------------------------------------------------

    def declare_queue(
        self, name: str, arguments: Table | None = None, *, durable: bool = True, passive: bool = False, **flags: bool
    ) -> QueueState:
        """Declare a queue. Flags: `exclusive`, `auto_delete`.

        Raises:
            ChannelClosedError: it doesn't exist (404, passive), or exists with other arguments (406).
        """
        bits = passive | durable << 1 | flags.get("exclusive", False) << 2 | flags.get("auto_delete", False) << 3
        payload = b"\0\0" + wire.short_string(name) + bytes([bits]) + wire.encode_table(arguments or {})
        reply = self._call(50, 10, payload, _QUEUE_DECLARE_OK)
        return QueueState(*struct.unpack_from(">II", reply, 1 + reply[0]))

    def queue_state(self, name: str) -> QueueState | None:
        """Return how many messages are ready in a queue and how many consumers it has, or None if it doesn't exist."""
        try:
            return self.declare_queue(name, passive=True, durable=False)
        except ChannelClosedError as error:
            if error.code == 404:
                return None
            raise

    def count(self, name: str) -> int:
        """Return how many messages of a queue are ready; those that a consumer holds are not counted.

        Raises:
            ChannelClosedError: the queue doesn't exist (404).
        """
        return self.declare_queue(name, passive=True, durable=False).ready

    def delete_queue(self, name: str) -> int:
        """Delete a queue and return how many messages it held; one that doesn't exist is no error."""
        return _number(self._call(50, 40, b"\0\0" + wire.short_string(name) + b"\0", _QUEUE_DELETE_OK))

    def purge(self, name: str) -> int:
        """Remove the ready messages of a queue and return their number."""
        return _number(self._call(50, 30, b"\0\0" + wire.short_string(name) + b"\0", _QUEUE_PURGE_OK))

    def declare_exchange(
        self, name: str, kind: str = "direct", arguments: Table | None = None, *, durable: bool = True
    ) -> None:
        """Declare an exchange.

        Raises:
            ChannelClosedError: it exists with other arguments (406).
        """
        head = b"\0\0" + wire.short_string(name) + wire.short_string(kind)
        self._call(40, 10, head + bytes([durable << 1]) + wire.encode_table(arguments or {}), _EXCHANGE_DECLARE_OK)

    def delete_exchange(self, name: str) -> None:
        """Delete an exchange; one that doesn't exist is no error."""
        self._call(40, 20, b"\0\0" + wire.short_string(name) + b"\0", _EXCHANGE_DELETE_OK)

    def bind(self, queue: str, exchange: str, routing_key: str = "", arguments: Table | None = None) -> None:
        """Bind a queue to an exchange."""
        names = wire.short_string(queue) + wire.short_string(exchange) + wire.short_string(routing_key)
        self._call(50, 20, b"\0\0" + names + b"\0" + wire.encode_table(arguments or {}), _QUEUE_BIND_OK)

    def unbind(self, queue: str, exchange: str, routing_key: str = "", arguments: Table | None = None) -> None:
        """Remove a binding."""
        names = wire.short_string(queue) + wire.short_string(exchange) + wire.short_string(routing_key)
        self._call(50, 50, b"\0\0" + names + wire.encode_table(arguments or {}), _QUEUE_UNBIND_OK)

    # -- publishing ------------------------------------------------------------------------------------------------

    def publish(
        self,
        messages: Iterable[Outgoing | bytes],
        *,
        exchange: str | bytes = "",
        routing_key: str | bytes = "",
        mandatory: bool = True,
    ) -> Published:
        """Publish messages, pipelined, and wait until the broker has confirmed or refused all of them.

        Args:
            messages: Bytes alone are a body without properties.
            exchange: For messages that name none.
            routing_key: For messages that name none; with the default exchange, the queue.
            mandatory: Have unroutable messages returned.

        Raises:
            AmqpError: the channel or the connection was closed meanwhile.
            TimeoutError: the broker didn't answer within the connection's time limit.
        """
        if not self._confirming:
            self._call(85, 10, b"\0", _CONFIRM_SELECT_OK)
            self._confirming, self._published = True, 0
        report = Published()
        waiting: dict[int, int] = {}
        out = bytearray()
        for message in messages:
            outgoing = message if isinstance(message, Outgoing) else Outgoing(message)
            self._published += 1
            waiting[self._published] = report.count
            report.count += 1
            out += self._publish_frames(outgoing, exchange, routing_key, mandatory=mandatory)
            if len(out) >= _SEND_BYTES or len(waiting) >= _WINDOW:
                self._flush(out)
            if len(waiting) >= _WINDOW:
                self._await_confirms(waiting, report, _WINDOW // 2)
        self._flush(out)
        self._await_confirms(waiting, report, 0)
        report.returned, self._returned = self._returned, []
        return report

    def _publish_frames(
        self, message: Outgoing, exchange: str | bytes, routing_key: str | bytes, *, mandatory: bool
    ) -> bytes:
        target = exchange if message.exchange is None else message.exchange
        key = routing_key if message.routing_key is None else message.routing_key
        method = b"\0\x3c\0\x28\0\0" + wire.short_string(target) + wire.short_string(key) + bytes([mandatory])
        header = struct.pack(">HHQ", _CLASS_BASIC, 0, len(message.body)) + message.property_bytes()
        parts = [_frame(_METHOD, method), _frame(_HEADER, header)]
        step = self._frame_max - _FRAME_OVERHEAD
        parts += [_frame(_BODY, message.body[at : at + step]) for at in range(0, len(message.body), step)]
        return b"".join(parts)

    def _flush(self, out: bytearray) -> None:
        try:
            self.socket.sendall(out)
        except TimeoutError:
            raise
        except OSError as error:
            self._read_farewell(error)
        out.clear()

    def _await_confirms(self, waiting: dict[int, int], report: Published, at_most: int) -> None:
        """Read acks and nacks until no more than so many messages are unconfirmed."""
        while len(waiting) > at_most:
            while not self._confirms:
                self._dispatch(self._read())
            acked, tag, multiple = self._confirms.popleft()
            # Tags were added in rising order, so those that a multiple ack covers stand first.
            tags = _up_to(waiting, tag) if multiple else [tag]
            for one in tags:
                position = waiting.pop(one)
                if not acked:
                    report.nacked.append(position)

    # -- reading queues --------------------------------------------------------------------------------------------

    def get(self, queue: str, *, ack: bool = True) -> Received | None:
        """Take one message, or None where the queue is empty; with ``ack=False`` it is left to `ack` and `nack`."""
        payload = b"\0\0" + wire.short_string(queue) + bytes([ack])
        frame = self._request(60, 70, payload, _BASIC_GET_OK, _BASIC_GET_EMPTY)
        if frame.method == _BASIC_GET_EMPTY or frame.message is None:
            return None
        tag, redelivered = struct.unpack_from(">QB", frame.payload)
        exchange, at = _short(frame.payload, 9)
        routing_key, _ = _short(frame.payload, at)
        properties, body = frame.message
        return Received(body, properties, exchange, routing_key, bool(redelivered), tag)

    def peek(self, queue: str, limit: int = 100) -> list[Received]:
        """Return the first messages of a queue and give them back.

        On a quorum queue each look counts towards the delivery limit (20 by default): the 21st one deletes the message.
        """
        before = self.count(queue)
        seen: list[Received] = []
        while len(seen) < limit and (message := self.get(queue, ack=False)) is not None:
            seen.append(message)
        if seen:
            self.nack(seen[-1].tag, multiple=True)
            # The broker answers questions before it takes messages back: until then a count would be too small.
            deadline = time.monotonic() + _RETURN_SECONDS
            while self.count(queue) < before and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
        return seen

    def drain(self, queue: str, *, limit: int | None = None) -> list[Received]:
        """Remove the ready messages of a queue and return them, tens of thousands a second.

        Args:
            queue: Its name.
            limit: At most so many; the others stay where they are.
        """
        taken: list[Received] = []
        while limit is None or len(taken) < limit:
            ready = self.count(queue)
            wanted = ready if limit is None else min(ready, limit - len(taken))
            if wanted == 0:
                break
            taken += self._take(queue, wanted)
        return taken

    def _take(self, queue: str, wanted: int) -> list[Received]:
        """Consume so many messages, at most `_TAKE` at a time, and ack them."""
        wanted = min(wanted, _TAKE)
        # Nothing is acked before the consumer has ended, so the prefetch count keeps the broker from sending more.
        self.qos(wanted)
        consumer = self.consume(queue)
        taken = [self.next_delivery() for _ in range(wanted)]
        self.cancel(consumer)
        self.ack(taken[-1].tag, multiple=True)
        self.qos()
        return taken

    def qos(self, prefetch: int = _PREFETCH_ALL) -> None:
        """Limit the unacked messages of consumers that are started from now on; 0 is no limit."""
        self._call(60, 10, struct.pack(">IHB", 0, prefetch, 0), _BASIC_QOS_OK)

    def consume(self, queue: str, arguments: Table | None = None) -> str:
        """Start a consumer that acks by itself, and return its tag; read its messages by `next_delivery`."""
        self._consumer += 1
        tag = f"test-{self._consumer}"
        payload = b"\0\0" + wire.short_string(queue) + wire.short_string(tag) + b"\0"
        self._call(60, 20, payload + wire.encode_table(arguments or {}), _BASIC_CONSUME_OK)
        return tag

    def cancel(self, consumer: str) -> None:
        """End a consumer; deliveries that were under way stay to be read."""
        self._call(60, 30, wire.short_string(consumer) + b"\0", _BASIC_CANCEL_OK)

    def next_delivery(self, *, timeout_seconds: float | None = None) -> Received:
        """Return the next message of the consumers.

        Raises:
            TimeoutError: none came within that time (by default the connection's limit).
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while not self._deliveries:
            self._dispatch(self._read(deadline))
        return self._deliveries.popleft()

    def ack(self, tag: int, *, multiple: bool = False) -> None:
        """Acknowledge a delivery, or all up to it."""
        self._send(60, 80, struct.pack(">QB", tag, multiple))

    def nack(self, tag: int, *, multiple: bool = False, requeue: bool = True) -> None:
        """Give a delivery back, or all up to it; or reject it to the queue's dead-letter exchange."""
        self._send(60, 120, struct.pack(">QB", tag, multiple | requeue << 1))

    # -- frames ----------------------------------------------------------------------------------------------------

    def _log_in(self, username: str, password: str, virtual_host: str) -> None:
        self.socket.sendall(b"AMQP\x00\x00\x09\x01")
        self._wait_for(_CONNECTION_START)
        capabilities: Table = {"publisher_confirms": True, "consumer_cancel_notify": True, "basic.nack": True}
        client: Table = {"product": "tests", "capabilities": {**capabilities, "authentication_failure_close": True}}
        answer = wire.long_string(f"\0{username}\0{password}".encode())
        start_ok = wire.encode_table(client) + wire.short_string("PLAIN") + answer + wire.short_string("en_US")
        self._send(10, 11, start_ok, channel=0)
        channels, self._frame_max = struct.unpack_from(">HI", self._wait_for(_CONNECTION_TUNE))
        # No heartbeats: a test may look away for as long as it likes.
        self._send(10, 31, struct.pack(">HIH", channels, self._frame_max, 0), channel=0)
        self._send(10, 40, wire.short_string(virtual_host) + b"\0\0", channel=0)
        self._wait_for(_CONNECTION_OPEN_OK)

    def _open_channel(self) -> None:
        self._confirming = False
        self._confirms.clear()
        self._deliveries.clear()
        self._send(20, 10, b"\0")
        self._wait_for(_CHANNEL_OPEN_OK)

    def _send(self, class_id: int, method_id: int, payload: bytes, *, channel: int = _CHANNEL) -> None:
        frame = _frame(_METHOD, struct.pack(">HH", class_id, method_id) + payload, channel)
        try:
            self.socket.sendall(frame)
        except TimeoutError:
            raise
        except OSError as error:
            self._read_farewell(error)

    def _call(self, class_id: int, method_id: int, payload: bytes, *expected: Method) -> bytes:
        return self._request(class_id, method_id, payload, *expected).payload

    def _request(self, class_id: int, method_id: int, payload: bytes, *expected: Method) -> _Frame:
        self._send(class_id, method_id, payload)
        return self._await(*expected)

    def _wait_for(self, method: Method) -> bytes:
        return self._await(method).payload

    def _await(self, *expected: Method) -> _Frame:
        while (frame := self._read()).method not in expected:
            self._dispatch(frame)
        return frame

    def _dispatch(self, frame: _Frame) -> None:
        """Put aside what came without being asked for.

        Raises:
            AmqpError: the broker closed channel or connection.
        """
        payload = frame.payload
        if frame.method in (_BASIC_ACK, _BASIC_NACK):
            tag, bits = struct.unpack(">QB", payload)
            self._confirms.append((frame.method == _BASIC_ACK, tag, bool(bits & 1)))
        elif frame.method == _BASIC_DELIVER and frame.message is not None:
            _, at = _short(payload, 0)
            tag, redelivered = struct.unpack_from(">QB", payload, at)
            exchange, at = _short(payload, at + 9)
            routing_key, _ = _short(payload, at)
            properties, body = frame.message
            self._deliveries.append(Received(body, properties, exchange, routing_key, bool(redelivered), tag))
        elif frame.method == _BASIC_RETURN and frame.message is not None:
            _, at = _short(payload, 2)
            exchange, at = _short(payload, at)
            routing_key, _ = _short(payload, at)
            properties, body = frame.message
            code = struct.unpack_from(">H", payload)[0]
            self._returned.append(Received(body, properties, exchange, routing_key, reply_code=code))
        elif frame.method == _BASIC_CANCEL:
            self.cancelled.append(str(_short(payload, 0)[0]))
        elif frame.method == _CHANNEL_CLOSE:
            self._send(20, 41, b"")
            self._open_channel()
            raise ChannelClosedError(*_reason(payload))
        elif frame.method == _CONNECTION_CLOSE:
            self.socket.close()
            raise ConnectionClosedError(*_reason(payload))
        elif frame.method not in (_CONNECTION_BLOCKED, _CONNECTION_UNBLOCKED, _CHANNEL_CLOSE_OK):
            message = f"unexpected method {frame.method}"
            raise AmqpError(message)

    def _read_farewell(self, error: OSError) -> None:
        """Read why the broker hung up, which it said before writing failed.

        Raises:
            AmqpError: always.
        """
        try:
            while True:
                self._dispatch(self._read())
        except OSError:
            raise ConnectionClosedError(0, str(error)) from error

    def _read(self, deadline: float | None = None) -> _Frame:
        """Return the next method, with header and body where it has them."""
        kind, payload = self._frame(deadline)
        while kind == _HEARTBEAT:
            kind, payload = self._frame(deadline)
        method: Method = struct.unpack_from(">HH", payload)
        if method not in (_BASIC_DELIVER, _BASIC_GET_OK, _BASIC_RETURN):
            return _Frame(method, payload[4:])
        # The deadline is for the beginning of a message: giving up inside one would lose it.
        _, header = self._frame(None)
        length = struct.unpack_from(">Q", header, 4)[0]
        parts: list[bytes] = []
        while length > 0:
            _, part = self._frame(None)
            parts.append(part)
            length -= len(part)
        return _Frame(method, payload[4:], (header[12:], b"".join(parts)))

    def _frame(self, deadline: float | None) -> tuple[int, bytes]:
        self._fill(7, deadline)
        kind, _, size = struct.unpack_from(">BHI", self._buffer, self._at)
        self._fill(size + _FRAME_OVERHEAD, deadline)
        start = self._at + 7
        payload = bytes(self._buffer[start : start + size])
        self._at = start + size + 1
        return kind, payload

    def _fill(self, size: int, deadline: float | None) -> None:
        """Read until so many bytes are there; a time-out leaves what was read, for the next try."""
        while len(self._buffer) - self._at < size:
            if self._at:
                del self._buffer[: self._at]
                self._at = 0
            before = self.socket.gettimeout()
            if deadline is not None:
                self.socket.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self.socket.recv(max(65_536, size))
            finally:
                if deadline is not None:
                    self.socket.settimeout(before)
            if not data:
                raise ConnectionClosedError(0, "the broker closed the connection without a word")
            self._buffer += data


def _frame(kind: int, payload: bytes, channel: int = _CHANNEL) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + _FRAME_END


def _short(payload: bytes, at: int) -> tuple[str | bytes, int]:
    end = at + 1 + payload[at]
    return wire.as_text(payload[at + 1 : end]), end


def _number(payload: bytes) -> int:
    value: int = struct.unpack(">I", payload)[0]
    return value


def _reason(payload: bytes) -> tuple[int, str]:
    text, _ = _short(payload, 2)
    return struct.unpack_from(">H", payload)[0], str(text)


def _virtual_host(path: str) -> str:
    return unquote(path[1:]) or "/"


def _up_to(tags: Iterable[int], last: int) -> Sequence[int]:
    """Return the leading tags up to one, of tags in rising order."""
    covered: list[int] = []
    for tag in tags:
        if tag > last:
            break
        covered.append(tag)
    return covered
