"""The end of a connection."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest
from aiormq.exceptions import AMQPConnectionError
from yarl import URL

from sidecar.amqp.connection import AmqpProtocol, ConnectOptions, TlsPortError, close_quietly, connect, forget_leftovers

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiormq.abc import AbstractConnection


class Lasting(asyncio.Transport):
    """A transport that doesn't know yet that its other end has gone, as uvloop's."""

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        raise AssertionError("there is nothing to be read any more")

    resume_reading = pause_reading


class Endless:
    """A connection whose close is never answered, and its wire."""

    def __init__(self) -> None:
        self.closing = asyncio.Event()
        self.aborted = False

    async def close(self) -> None:
        self.closing.set()
        await asyncio.Event().wait()

    def abort(self) -> None:
        self.aborted = True


def test_who_is_cancelled_while_closing_stays_cancelled() -> None:
    """A cancellation of ours is not one of aiormq's: a reconnect that went on after it would hold up the drain."""

    async def main() -> None:
        endless = Endless()
        closing = asyncio.create_task(close_quietly(cast("AbstractConnection", endless), cast("AmqpProtocol", endless)))
        await endless.closing.wait()
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert endless.aborted

    asyncio.run(main())


@pytest.mark.parametrize(
    "gone",
    [lambda protocol: protocol.eof_received(), lambda protocol: protocol.connection_lost(None)],
    ids=["eof", "lost"],
)
def test_who_reads_on_when_the_broker_has_gone_reads_nothing(gone: Callable[[AmqpProtocol], object]) -> None:
    """A session that is closed reads on first, for the answer to that; but there may be nobody left to answer."""

    async def main() -> None:
        lost: list[str] = []
        protocol = AmqpProtocol(lambda _: None, lost.append)
        protocol.connection_made(Lasting())
        gone(protocol)
        protocol.pause()
        protocol.resume()
        protocol.connection_lost(None)
        assert lost[-1] == "connection closed by RabbitMQ"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("scheme", "answer", "kind", "says"),
    [
        ("amqp", b"\x15\x03\x03\0\x02\x02\x0a", TlsPortError, "use amqps://"),
        ("amqp", b"", TlsPortError, "amqps://"),
        ("amqps", b"AMQP\0\0\x09\x01", AMQPConnectionError, "doesn't speak TLS"),
    ],
)
def test_a_scheme_that_is_not_that_of_the_port_is_told(
    run: Callable[..., None], scheme: str, answer: bytes, kind: type[Exception], says: str
) -> None:
    """A port with TLS answers with an alert of TLS or not at all, one without it in plain."""

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(64)
        writer.write(answer)
        writer.close()

    async def try_it() -> None:
        server = await asyncio.start_server(reply, "127.0.0.1", 0)
        url = URL(f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
        with pytest.raises(kind, match=says):
            await connect(url, "test", lambda _: None, lambda _: None, ConnectOptions(timeout_seconds=10))
        server.close()

    run(try_it())


def test_a_task_of_a_dropped_connection_writes_no_traceback(
    run: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever used the connection knows; any other exception is told as ever."""

    async def lose(error: Exception) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(forget_leftovers)
        loop.call_exception_handler({"message": "unhandled exception", "exception": error})

    run(lose(AMQPConnectionError("lost")))
    assert caplog.records == []
    run(lose(ZeroDivisionError()))
    assert len(caplog.records) == 1
