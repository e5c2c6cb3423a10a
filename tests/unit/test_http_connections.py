"""What the server of probes does with connections, byte by byte over a real socket."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from sidecar.core.stats.counters import Counters
from sidecar.observability.http import open_server
from sidecar.observability.metrics import Metrics
from sidecar.observability.status import StaticInfo, Status
from tests.builders import state

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PATHS = ("/", "/status", "/metrics", "/livez", "/startupz", "/readyz")


class Client:
    """One connection, on which bytes are written and answers read."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def write(self, data: bytes) -> None:
        """Write bytes as they are."""
        self._writer.write(data)

    async def answer(self, *, head: bool = False) -> tuple[int, dict[str, str], bytes]:
        """Read one answer: status, headers and body."""
        first, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        length = 0 if head else int(headers.get("content-length", 0))
        return int(first.split()[1]), headers, await self._reader.readexactly(length)

    async def is_closed(self) -> bool:
        """Wait until the server closed the connection; whether nothing came before."""
        return await self._reader.read() == b""

    def close(self) -> None:
        """Go away."""
        self._writer.close()


def play(scenario: Callable[[Callable[[], Awaitable[Client]]], Awaitable[None]]) -> None:
    """Play a scenario with a server, given what connects to it; then the server closes within two seconds."""

    async def main() -> None:
        told = state(Counters())
        status = Status(lambda: told, StaticInfo(("work",), {}), clock=lambda: 0.0, wall_clock=lambda: 0.0)
        server, address = await open_server(("127.0.0.1", 0), status, Metrics(lambda: told))
        port = int(address.rpartition(":")[2])
        clients: list[Client] = []

        async def connect() -> Client:
            clients.append(Client(*await asyncio.open_connection("127.0.0.1", port)))
            return clients[-1]

        try:
            await scenario(connect)
        finally:
            async with asyncio.timeout(5.0):
                await server.close()
            for client in clients:
                client.close()
        with pytest.raises(OSError, match=r"."):
            await asyncio.open_connection("127.0.0.1", port)

    asyncio.run(asyncio.wait_for(main(), 20.0))


def get(path: str, *, method: str = "GET", close: bool = False) -> bytes:
    """Return a request."""
    more = "connection: close\r\n" if close else ""
    return f"{method} {path} HTTP/1.1\r\nhost: here\r\n{more}\r\n".encode()


def test_a_connection_serves_one_request_after_the_other_until_it_is_to_be_closed() -> None:
    """Also those that are written before the first is answered; an unknown path ends nothing."""

    async def scenario(connect: Callable[[], Awaitable[Client]]) -> None:
        client = await connect()
        client.write(get("/livez") + get("/nothing") + get("/readyz"))
        assert [(await client.answer())[0] for _ in range(3)] == [200, 404, 200]
        client.write(get("/status", close=True))
        assert (await client.answer())[0] == 200
        assert await client.is_closed()

    play(scenario)


@pytest.mark.parametrize("path", PATHS)
def test_head_tells_the_length_and_sends_no_body(path: str) -> None:
    """What comes next on the connection is the next answer."""

    async def scenario(connect: Callable[[], Awaitable[Client]]) -> None:
        client = await connect()
        client.write(get(path, method="HEAD") + get("/livez"))
        status, headers, _ = await client.answer(head=True)
        assert status == 200
        assert int(headers["content-length"]) > 0
        assert (await client.answer())[2] == b'{"live":true}\n'

    play(scenario)


@pytest.mark.parametrize(
    "bad",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),  # a TLS handshake
        b"GET /livez HTTP/9.9\r\n\r\n",
        b"\x00\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nbad header\r\n\r\n",
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: here\r\nx: " + b"y" * 20_000 + b"\r\n\r\n",
    ],
)
def test_bytes_that_are_no_request_end_their_connection_and_no_other(
    bad: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Others are answered before and after, and nobody can fill the log in this way."""

    async def scenario(connect: Callable[[], Awaitable[Client]]) -> None:
        other, client = await connect(), await connect()
        other.write(get("/livez"))
        assert (await other.answer())[0] == 200
        client.write(bad + b"\r\n\r\n")
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            status, headers, _ = await client.answer()
            assert status == 400
            assert headers.get("connection", "close") == "close"
        other.write(get("/readyz"))
        assert (await other.answer())[0] == 200
        third = await connect()
        third.write(get("/livez"))
        assert (await third.answer())[0] == 200

    play(scenario)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_slow_clients_and_those_that_go_away_keep_nobody_waiting() -> None:
    """Half a request, a request whose answer nobody reads, and a connection without a word; the end waits for none."""

    async def scenario(connect: Callable[[], Awaitable[Client]]) -> None:
        half, _, gone, unread = await connect(), await connect(), await connect(), await connect()
        half.write(get("/status")[:20])
        gone.write(get("/metrics"))
        gone.close()
        unread.write(get("/") * 200)
        client = await connect()
        for _ in range(3):
            client.write(get("/livez"))
            async with asyncio.timeout(5.0):
                assert (await client.answer())[0] == 200
        half.write(get("/status")[20:])
        assert (await half.answer())[0] == 200

    play(scenario)


def test_a_fault_of_our_own_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """What is kept quiet is no more than what others write."""

    async def main() -> None:
        told = state(Counters())
        broken = Status(lambda: told, StaticInfo((), {"index": object()}), clock=lambda: 0.0, wall_clock=lambda: 0.0)
        server, address = await open_server(("127.0.0.1", 0), broken, Metrics(lambda: told))
        client = Client(*await asyncio.open_connection("127.0.0.1", int(address.rpartition(":")[2])))
        client.write(get("/status"))
        assert (await client.answer())[0] == 500
        client.close()
        await server.close()

    asyncio.run(asyncio.wait_for(main(), 20.0))
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
