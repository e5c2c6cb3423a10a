"""A TCP proxy before a server: it cuts, stalls and loses answers when it is told to, and counts HTTP requests."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from devstack.processes import LOOPBACK, free_port

if TYPE_CHECKING:
    from collections.abc import Coroutine

_CHUNK_BYTES = 65_536
_CALL_SECONDS = 10.0
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close without a farewell, as a server does that was killed
_HEAD_END = b"\r\n\r\n"
_LENGTH = b"content-length:"


class Request(NamedTuple):
    """An HTTP request, as its head shows it; one that found no server has neither method nor path.

    Attributes:
        at: when it came, by the monotonic clock, in seconds.
    """

    at: float
    method: str
    path: str
    body_bytes: int


class _Heads:
    """Finds the heads of requests in the bytes of one connection: bodies are skipped by their length."""

    def __init__(self, found: list[Request]) -> None:
        self._found = found
        self._buffer = b""
        self._body_left = 0

    def feed(self, data: bytes) -> None:
        skipped = min(self._body_left, len(data))
        self._body_left -= skipped
        self._buffer += data[skipped:]
        while not self._body_left and _HEAD_END in self._buffer:
            head, _, rest = self._buffer.partition(_HEAD_END)
            method, path, *_ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(_LENGTH)]
            length = int(lengths[0][len(_LENGTH) :]) if lengths else 0
            self._found.append(Request(time.monotonic(), method, path, length))
            skipped = min(length, len(rest))
            self._body_left = length - skipped
            self._buffer = rest[skipped:]


class Proxy:
    """Passes connections on to a server of this machine, from a thread of its own.

    Args:
        url: of the server; a connection that it refuses is reset.
        http: whether it speaks HTTP, so that requests are to be counted.

    Attributes:
        port: where it listens.
        requests: those that came, connections that found no server among them.
    """

    def __init__(self, url: str, *, http: bool = False) -> None:
        parts = urlsplit(url)
        self.port = free_port()
        self.requests: list[Request] = []
        self._target = (parts.hostname or LOOPBACK, parts.port or 0)
        self._http = http
        self._connections: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._listening: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._flows = asyncio.Event()
        self._answers_flow = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy-{self.port}", daemon=True)
        self._thread.start()
        self.lift()

    def count(self, since: float, until: float) -> int:
        """Return how many requests came in a time of the monotonic clock."""
        return sum(since <= request.at <= until for request in self.requests)

    def drop(self) -> None:
        """Reset the connections that are open; new ones are welcome."""
        self._call(self._drop())

    def cut(self) -> None:
        """Reset the connections that are open, and refuse new ones."""
        self._call(self._cut())

    def stall(self) -> None:
        """Pass nothing on in either direction; connections stay open, and new ones are accepted."""
        self._call(self._hold(self._flows))

    def lose_answers(self) -> None:
        """Pass on what clients say, and nothing of what the server says."""
        self._call(self._hold(self._answers_flow))

    def lift(self) -> None:
        """Let everything flow again; what was stalled comes late."""
        self._call(self._lift())

    def close(self) -> None:
        """End it for good."""
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CALL_SECONDS)
        self._loop.close()

    # In the thread ---------------------------------------------------------------------------------------------------

    def _call(self, coroutine: Coroutine[object, object, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_CALL_SECONDS)

    async def _lift(self) -> None:
        self._flows.set()
        self._answers_flow.set()
        if self._listening is None:
            self._listening = await asyncio.start_server(self._serve, LOOPBACK, self.port)

    async def _hold(self, gate: asyncio.Event) -> None:
        gate.clear()

    async def _drop(self) -> None:
        for writer in list(self._connections):
            _reset(writer)

    async def _cut(self) -> None:
        if self._listening is not None:
            self._listening.close()
            self._listening = None
        await self._drop()

    async def _end(self) -> None:
        await self._cut()
        for pump in self._pumps:
            pump.cancel()
        if self._pumps:
            await asyncio.wait(self._pumps)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._target)
        except OSError:
            if self._http:
                self.requests.append(Request(time.monotonic(), "", "", 0))
            _reset(writer)
            return
        self._connections |= {writer, server_writer}
        heads = _Heads(self.requests) if self._http else None
        pumps = {
            asyncio.create_task(self._pump(reader, server_writer, heads, (self._flows,))),
            asyncio.create_task(self._pump(server_reader, writer, None, (self._flows, self._answers_flow))),
        }
        self._pumps |= pumps
        # Where one side has ended, nothing more is to be said: no protocol of ours goes on half-closed.
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        await asyncio.wait(pumps)
        self._pumps -= pumps
        self._connections -= {writer, server_writer}
        for end in (writer, server_writer):
            end.close()

    @staticmethod
    async def _pump(
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        heads: _Heads | None,
        gates: tuple[asyncio.Event, ...],
    ) -> None:
        try:
            while data := await reader.read(_CHUNK_BYTES):
                if heads is not None:
                    heads.feed(data)
                for gate in gates:
                    await gate.wait()
                writer.write(data)
                await writer.drain()
        except OSError:
            pass  # one side has gone: that is what ends a connection


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
