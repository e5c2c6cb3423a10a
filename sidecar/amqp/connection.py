"""Between the socket and aiormq: a protocol of ours that sees the bytes first.

aiormq offers `transport_factory` for this. What `FrameParser` takes for us never reaches aiormq; the rest does, frame
by frame, so that RPCs, heartbeats and closes work as ever on the same connection.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import aiormq
from aiormq.connection import TransportFactory
from aiormq.exceptions import (
    AMQPConnectionError,
    AMQPError,
    AuthenticationError,
    ConnectionNotAllowed,
    InvalidFrameError,
)
from aiormq.tools import censor_url
from yarl import URL

from sidecar import tls
from sidecar.amqp.methods import leave_names_to_the_broker
from sidecar.core.wire import frames
from sidecar.core.wire.frames import HEARTBEAT, FrameParser
from sidecar.errors import BrokerError, ProtocolError, QueueError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiormq.abc import AbstractConnection

    from sidecar.core.wire.frames import ParsedFrames

# What it has to say about a lost connection we say ourselves, once and with the reason; its debug lines hold bodies.
logging.getLogger("aiormq").setLevel(logging.CRITICAL)
leave_names_to_the_broker()

FAILURES = (AMQPError, OSError, RuntimeError, asyncio.CancelledError)
"""What aiormq raises when a connection ends under a call; it also cancels what it waits for. A time-out is an
OSError."""

SPEAKS_TLS = "the port speaks TLS: use amqps:// instead of amqp://"
_SAYS_NOTHING = (
    "the server closed the connection without an answer: does the port belong to RabbitMQ, and does it speak TLS "
    "(amqps:// instead of amqp://)?"
)
_NOT_ALLOWED = "530 "
_TLS_ALERT = b"\x15\x03"
_CLOSE_SECONDS = 5.0
_HEARTBEAT_SECONDS = 5.0
_UNLIMITED = 1 << 40
_HOW_TO_LOG_IN = (
    "logging in by certificate takes its plug-in rabbitmq_auth_mechanism_ssl, EXTERNAL among its auth_mechanisms, and a"
    " certificate of ours; or put user and password into the URL"
)


class TlsPortError(AMQPConnectionError):
    """``amqp://`` leads to a port that speaks TLS, or seems to."""


class _Reader(asyncio.StreamReader):
    """A stream whose end aiormq always meets as an error of the connection.

    It asks first whether the stream is at its end. If that came with the last frame, it raises a bare `Exception` in
    all that waits for an answer, which nobody can tell from a bug.
    """

    def at_eof(self) -> bool:
        """Return False: whoever reads on learns that the connection is lost."""
        return False


class AmqpProtocol(asyncio.StreamReaderProtocol):
    """The protocol on a connection's transport.

    Args:
        on_frames: gets what was taken out of a piece of the stream, synchronously.
        on_lost: gets the reason once the connection can't be used any more.

    Attributes:
        parser: says what is taken.
        close_reason: what RabbitMQ said when it closed the connection.
        heard: the first bytes of the stream.
        writer: asyncio's writer on the same transport, for its flow control.
        on_blocked: gets the reason why RabbitMQ takes no publishes (a resource alarm), or None when it does again.
    """

    def __init__(self, on_frames: Callable[[ParsedFrames], None], on_lost: Callable[[str], None]) -> None:
        loop = asyncio.get_running_loop()
        # Without a limit the reader never pauses the transport: pausing has one owner, and that is not aiormq.
        self.reader = _Reader(limit=_UNLIMITED, loop=loop)
        super().__init__(self.reader, loop=loop)
        self.parser = FrameParser()
        self.writer: asyncio.StreamWriter | None = None
        self.on_blocked: Callable[[str | None], None] | None = None
        self._on_frames = on_frames
        self._on_lost = on_lost
        self._passed_at = loop.time()
        self._transport: asyncio.Transport | None = None
        self._clock = loop.time
        self._closing: str | None = None
        self.heard = b""
        self._ended = False  # the broker says nothing more; its transport may not know yet
        self.close_reason: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport: acks and copies are written to it directly."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transports are none by inheritance
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Take what is ours, pass the rest on."""
        if self._closing is not None:
            return
        if not self.heard:
            self.heard = data
            if data.startswith(_TLS_ALERT):
                self._end_by(SPEAKS_TLS)
                return
        try:
            taken = self.parser.feed(data)
        except ProtocolError as error:
            self._end_by(f"RabbitMQ sent something that is not AMQP: {error}")
            return
        if taken.passthrough:
            self._look_at_passed(taken.passthrough)
            super().data_received(taken.passthrough)
        is_ours = bool(taken.messages or taken.answers)
        if is_ours:
            self._on_frames(taken)
        if is_ours or self.parser.is_mid_message:
            # RabbitMQ sends no heartbeats while it sends anything else. aiormq, which sees none of this, would take the
            # connection for dead after three heartbeats.
            now = self._clock()
            if now - self._passed_at > _HEARTBEAT_SECONDS:
                self._passed_at = now
                super().data_received(HEARTBEAT)

    def _end_by(self, reason: str) -> None:
        self._closing = reason
        self.abort()

    def _look_at_passed(self, passed: bytes) -> None:
        self.close_reason = frames.close_reason(passed) or self.close_reason
        if self.on_blocked is not None:
            for reason in frames.blocked(passed):
                self.on_blocked(reason)

    def eof_received(self) -> bool:
        """Note that the broker says nothing more."""
        self._ended = True
        return bool(super().eof_received())

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell what happened; aiormq learns of it in its own way."""
        self._ended = True
        super().connection_lost(exc)
        lost = f"connection lost: {exc}" if exc else "connection closed by RabbitMQ"
        said = f"RabbitMQ closed the connection: {self.close_reason}" if self.close_reason else None
        self._on_lost(self._closing or said or lost)

    def write(self, due: bytes | list[bytes]) -> None:
        """Write whole frames. Between two frames of aiormq's they are always in place: it writes whole ones too."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if isinstance(due, bytes):
            transport.write(due)
        else:
            transport.writelines(due)

    async def drain(self) -> None:
        """Wait until the socket has taken most of what was written.

        Raises:
            ConnectionError: the connection was lost.
        """
        if self.writer is not None:
            await self.writer.drain()

    def pause(self) -> None:
        """Read nothing more for now."""
        transport = self._readable()
        if transport is not None:
            transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        transport = self._readable()
        if transport is not None:
            transport.resume_reading()
            self._passed_at = self._clock()
            super().data_received(HEARTBEAT)  # nothing was heard for a while, and that was our doing

    def _readable(self) -> asyncio.Transport | None:
        """Return the transport, as long as something may come by it."""
        transport = self._transport
        return None if transport is None or self._ended or transport.is_closing() else transport

    def abort(self) -> None:
        """Drop the connection at once."""
        if self._transport is not None:
            self._transport.abort()


class AmqpTransportFactory(TransportFactory):
    """Gives aiormq a stream behind a `Wire`.

    Args:
        on_frames: see `Wire`.
        on_lost: see `Wire`.
        connect_timeout_seconds: how long to wait for the TCP and TLS handshakes.

    Attributes:
        protocol: the protocol of the connection, once there is one.
    """

    def __init__(
        self,
        on_frames: Callable[[ParsedFrames], None],
        on_lost: Callable[[str], None],
        *,
        connect_timeout_seconds: float = 10.0,
    ) -> None:
        self._on_frames = on_frames
        self._on_lost = on_lost
        self._connect_timeout_seconds = connect_timeout_seconds
        self.protocol: AmqpProtocol | None = None

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:  # noqa: ANN401
        """Connect, with TLS for ``amqps``.

        Raises:
            AMQPConnectionError: no connection could be made.
        """
        provider = kwargs.pop("ssl_context_provider")
        context = await provider.get_context() if url.scheme == "amqps" else None
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_seconds):
                transport, wire = await loop.create_connection(
                    lambda: AmqpProtocol(self._on_frames, self._on_lost), url.host or "", url.port or 0, ssl=context
                )
        except TimeoutError as error:
            raise AMQPConnectionError(f"no connection within {self._connect_timeout_seconds:g} s") from error
        except OSError as error:
            explained = isinstance(error, ssl.SSLError) or not error.args
            raise AMQPConnectionError(*((tls.explain(error),) if explained else error.args)) from error
        self.protocol = wire
        wire.writer = asyncio.StreamWriter(transport, wire, wire.reader, loop)
        return wire.reader, wire.writer


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectOptions:
    """How to reach a broker, but for its URL.

    Attributes:
        timeout_seconds: for the TCP and TLS handshakes, and again for that of AMQP.
        tls: for ``amqps``; without it the system's authorities are trusted.
        client_certificate: `tls` has a certificate of our own: where the URL has no login, that is the login.
    """

    timeout_seconds: float = 10.0
    tls: ssl.SSLContext | None = None
    client_certificate: bool = False


async def connect(
    url: URL,
    purpose: str,
    on_frames: Callable[[ParsedFrames], None],
    on_lost: Callable[[str], None],
    options: ConnectOptions,
) -> tuple[AbstractConnection, AmqpProtocol]:
    """Open a connection whose stream we see first.

    Args:
        url: of the broker.
        purpose: tells the connection from others in the broker's list of them.
        on_frames: see `Wire`.
        on_lost: see `Wire`.
        options: how.

    Raises:
        AMQPError, OSError, TimeoutError: it can't be reached, or refuses the login or the virtual host.
    """
    factory = AmqpTransportFactory(on_frames, on_lost, connect_timeout_seconds=options.timeout_seconds)
    named = url if "name" in url.query else url.update_query(name=f"sidecar {purpose}")
    if options.client_certificate and url.scheme == "amqps" and url.user is None and "auth" not in url.query:
        named = named.update_query(auth="external")
    connection = aiormq.Connection(named, context=options.tls, transport_factory=factory)
    try:
        async with asyncio.timeout(options.timeout_seconds):
            await connection.connect()
    except AuthenticationError as error:
        raise AuthenticationError(f"RabbitMQ offers {error.args[0]}: {_HOW_TO_LOG_IN}") from error
    except InvalidFrameError as error:
        # aiormq expected another frame than the one that says why, over a virtual host that isn't there for instance.
        reason = factory.protocol.close_reason if factory.protocol is not None else None
        kind = ConnectionNotAllowed if reason is not None and reason.startswith(_NOT_ALLOWED) else AMQPConnectionError
        raise kind(f"RabbitMQ closed the connection: {reason or error}") from error
    except AMQPConnectionError as error:
        made = factory.protocol
        if url.scheme == "amqp" and made is not None and (not made.heard or made.heard.startswith(_TLS_ALERT)):
            raise TlsPortError(SPEAKS_TLS if made.heard else _SAYS_NOTHING) from error
        raise
    wire = factory.protocol
    assert wire is not None
    if not isinstance(connection.server_properties.get("capabilities"), dict):
        await close_quietly(connection, wire)
        raise AMQPConnectionError("the server isn't RabbitMQ: it names no capabilities")
    wire.parser.frame_max = connection.connection_tune.frame_max or 0
    return connection, wire


class Openable(Protocol):
    """What stands on connections of its own."""

    async def open(self, url: URL) -> None:
        """Connect.

        Raises:
            BrokerError: it can't be reached, or refuses something.
        """
        ...

    async def close(self) -> None:
        """Close what was opened."""
        ...

    def abort(self) -> None:
        """Drop what was opened without a word."""
        ...


_Opened = TypeVar("_Opened", bound=Openable)


async def open_any(urls: tuple[str, ...], make: Callable[[], _Opened]) -> _Opened:
    """Return what `make` makes, opened at the first of `urls` that answers.

    Raises:
        BrokerError: none of them did; the text names each with its reason, without passwords.
    """
    failures: list[BrokerError] = []
    for text in urls:
        made = make()
        try:
            await made.open(URL(text))
        except BrokerError as error:
            failures.append(error)
            await made.close()
        except asyncio.CancelledError:
            made.abort()
            raise
        else:
            return made
    reasons = "; ".join(dict.fromkeys(map(str, failures)))
    queue_error = next((error for error in failures if isinstance(error, QueueError)), None)
    raise BrokerError(reasons) if queue_error is None else QueueError(queue_error.reason, reasons)


async def close_quietly(connection: AbstractConnection | None, wire: AmqpProtocol | None) -> None:
    """Close a connection in good order; drop it where that takes too long, or where who closes it is cancelled."""
    # aiormq may wait for a socket that takes nothing, also when it is cancelled: so nobody waits for aiormq.
    closing = asyncio.ensure_future(connection.close()) if connection is not None else None
    try:
        if closing is not None:
            await asyncio.wait([closing], timeout=_CLOSE_SECONDS)
    finally:
        if wire is not None:
            wire.abort()
        if closing is not None:
            closing.add_done_callback(_note_end)
            closing.cancel()


def _note_end(closing: asyncio.Future[None]) -> None:
    """Retrieve how a close ended: whoever used the connection was told why it is lost."""
    if not closing.cancelled():
        closing.exception()


def reraise_own_cancellation(error: BaseException) -> None:
    """Raise a cancellation of our own.

    aiormq cancels what waits for a connection that ends, too; and if both happen at once, it raises the end.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError from error


def forget_leftovers(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Handle what no task awaits: of connections that were dropped while aiormq closed a channel, nothing is told.

    Whoever used the connection was told why. At the end asyncio would write the traceback of such a task.

    Args:
        loop: whose handler this is.
        context: what happened.
    """
    if not isinstance(context.get("exception"), AMQPError):
        loop.default_exception_handler(context)


def reason(error: BaseException) -> str:
    """Return what an error says, or what it is called where it says nothing."""
    return str(error) or type(error).__name__


def connect_error(error: BaseException, url: URL, options: ConnectOptions) -> BrokerError:
    """Return what to raise where a connection couldn't be opened; a cancellation of our own goes on as it is."""
    reraise_own_cancellation(error)
    why = f"no answer within {options.timeout_seconds:g} s" if isinstance(error, TimeoutError) else reason(error)
    return BrokerError(f"{censor_url(url)}: {why}")


async def never_called(_: object) -> None:
    """Deliveries are taken off the wire before aiormq, which wants somebody to call, sees them."""
