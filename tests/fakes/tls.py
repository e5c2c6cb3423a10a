"""Servers behind TLS that say just enough to log in: a RabbitMQ and an Elasticsearch, in the process of the test."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from pamqp import commands, frame
from pamqp.header import ProtocolHeader

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable

    Speak = Callable[["Acceptor", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

_BROKEN = (OSError, EOFError)  # ssl.SSLError is an OSError


class Acceptor:
    """What a server saw of its clients.

    Attributes:
        port: on 127.0.0.1.
        heard: the bytes that clients sent, after the handshake.
        clients: common names of the certificates of clients that were let in; empty where one showed none.
        logins: how clients logged in.
    """

    def __init__(self) -> None:
        self.port = 0
        self.heard = b""
        self.clients: list[str] = []
        self.logins: list[str] = []

    def note_client(self, writer: asyncio.StreamWriter) -> None:
        """Note whose certificate the client has shown."""
        shown = writer.get_extra_info("peercert") or {}
        self.clients.append(next((value for ((_, value),) in shown.get("subject", ())), ""))


@asynccontextmanager
async def listening(speak: Speak, context: ssl.SSLContext | None) -> AsyncIterator[Acceptor]:
    """Listen on a free port, with TLS if there is a context."""
    acceptor = Acceptor()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(*_BROKEN):
            await speak(acceptor, reader, writer)
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    acceptor.port = server.sockets[0].getsockname()[1]
    try:
        yield acceptor
    finally:
        server.close()


async def speak_amqp(acceptor: Acceptor, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Let a client log in, whoever it is, and say goodbye."""

    def send(method: Any) -> None:
        writer.write(frame.marshal(method, 0))

    async def receive() -> Any:
        data = await reader.readexactly(7)
        data += await reader.readexactly(int.from_bytes(data[3:], "big") + 1)
        acceptor.heard += data
        return frame.unmarshal(data)[2]

    acceptor.heard += await reader.readexactly(len(ProtocolHeader().marshal()))
    acceptor.note_client(writer)
    capabilities: Any = {"publisher_confirms": True, "basic.nack": True, "connection.blocked": True}
    send(commands.Connection.Start(0, 9, {"capabilities": capabilities}, "PLAIN EXTERNAL", "en_US"))
    start_ok = await receive()
    acceptor.logins.append(" ".join([start_ok.mechanism, *start_ok.response.split("\0")[1:]]))
    send(commands.Connection.Tune(2047, 131_072, 60))
    while not isinstance(await receive(), commands.Connection.Open):
        pass
    send(commands.Connection.OpenOk())
    while not isinstance(await receive(), commands.Connection.Close):
        pass
    send(commands.Connection.CloseOk())
    await writer.drain()


async def speak_http(acceptor: Acceptor, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say yes to one request, as Elasticsearch."""
    head = await reader.readuntil(b"\r\n\r\n")
    acceptor.heard += head
    acceptor.note_client(writer)
    lines = head.decode().lower().split("\r\n")
    names = dict(line.split(": ", 1) for line in lines[1:] if line)
    acceptor.logins.append(names.get("authorization", ""))
    writer.write(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-elastic-product: Elasticsearch\r\n"
        b"content-length: 2\r\nconnection: close\r\n\r\n{}"
    )
    await writer.drain()
