"""An HTTP server in the process that misbehaves at any byte: several nodes on free loopback ports, one script.

It reads and writes raw bytes and shares no code with the client under test. A node counts what it received of each
request, so a test can judge whether a request was possibly applied, and by how many nodes.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import struct
import threading
from collections import deque
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable, Iterator

End = Literal["keep", "close", "reset", "hang"]
Framing = Literal["length", "chunked", "close"]

LOOPBACK = "127.0.0.1"
_ELASTICSEARCHS = "application/vnd.elasticsearch+json;compatible-with=8"
ROOT = {"name": "n", "cluster_name": "c", "version": {"number": "9.5.0"}}
_REASONS = {200: "OK", 302: "Found", 413: "Request Entity Too Large", 429: "Too Many Requests"}


@dataclass(slots=True)
class Received:
    """What a node received of one request.

    Attributes:
        node: the number of the node.
        connection: the number of the connection, over all nodes.
        raw: all bytes that were read.
        method: empty if the connection broke in the head; likewise `path`, `headers` and `body`.
        headers: by name in lower case.
        is_whole: the request was read to its end.
    """

    node: int
    connection: int
    raw: bytes = b""
    method: str = ""
    path: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_whole: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """What a node does with one request.

    Attributes:
        answer: raw bytes.
        read_bytes: ends the connection after it read so many bytes of the request.
        send_bytes: ends the connection after it sent so many bytes of the answer.
        end: what happens when that is over.
        answers_early: sends the answer when it has read the head, and the body afterwards.
        piece_bytes: sends the answer in pieces of this size.
        waits: answers not before `HttpCluster.released` is set.
    """

    answer: bytes = b""
    read_bytes: int | None = None
    send_bytes: int | None = None
    end: End = "keep"
    answers_early: bool = False
    piece_bytes: int = 0
    waits: bool = False


def reply(
    body: bytes | object = b"{}",
    status: int = 200,
    *,
    headers: dict[str, str] | None = None,
    framing: Framing = "length",
    version: str = "1.1",
    compress: bool = False,
) -> bytes:
    """Return the raw bytes of an answer: by default of Elasticsearch's.

    Args:
        body: bytes, or what is written as JSON.
        status: of HTTP.
        headers: in place of the default ones; an empty text leaves one out.
        framing: how the end of the body is told.
        version: of HTTP.
        compress: by gzip.
    """
    content = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()
    wanted = {
        "content-type": "application/vnd.elasticsearch+json;compatible-with=8",
        "x-elastic-product": "Elasticsearch",
    }
    if compress:
        content = gzip.compress(content, mtime=0)
        wanted["content-encoding"] = "gzip"
    if framing == "length":
        wanted["content-length"] = str(len(content))
    elif framing == "chunked":
        wanted["transfer-encoding"] = "chunked"
        half = len(content) // 2
        pieces = [piece for piece in (content[:half], content[half:]) if piece]
        content = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    wanted |= headers or {}
    lines = [f"HTTP/{version} {status} {_REASONS.get(status, 'Something')}"]
    lines += [f"{name}: {text}" for name, text in wanted.items() if text]
    return "\r\n".join([*lines, "", ""]).encode() + content


def stored(request: Received) -> bytes:
    """Answer as a healthy Elasticsearch: its root, and a success for each index operation of two lines."""
    if request.path == "/":
        return reply(ROOT)
    items = [{"index": {"status": 201}}] * (request.body.count(b"\n") // 2)
    return reply({"errors": False, "items": items})


class HttpCluster:
    """Nodes that answer by one script.

    Args:
        count: of nodes.
        handler: answers whatever the script has nothing for.
        context: makes them speak TLS.

    Attributes:
        script: what is done with the next requests, whichever node they come to.
        requests: everything that came, whole or not, in the order of arrival.
        connections: how many were accepted.
        hang_ups: nodes that accept connections and end them at once.
        released: set to end all that hangs.
    """

    def __init__(
        self,
        count: int = 1,
        handler: Callable[[Received], Act | bytes] = stored,
        *,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.script: deque[Act] = deque()
        self.requests: list[Received] = []
        self.connections = 0
        self.hang_ups: set[int] = set()
        self.released = asyncio.Event()
        self.handler = handler
        self._context = context
        self._servers: dict[int, asyncio.Server] = {}
        self._writers: dict[int, set[asyncio.StreamWriter]] = {}
        self._tasks: dict[asyncio.Task[None], int] = {}
        # Reserved by sockets that are bound and don't listen: a node that is down refuses, and nobody takes its port.
        self._reserved = [_reserve() for _ in range(count)]
        self.ports = [reserved.getsockname()[1] for reserved in self._reserved]

    @property
    def urls(self) -> tuple[str, ...]:
        """The URL of each node."""
        scheme = "https" if self._context is not None else "http"
        return tuple(f"{scheme}://{LOOPBACK}:{port}" for port in self.ports)

    @property
    def served(self) -> list[int]:
        """How many whole requests each node has received."""
        whole = [request.node for request in self.requests if request.is_whole]
        return [whole.count(node) for node in range(len(self.ports))]

    @property
    def open_connections(self) -> int:
        """How many there are now."""
        return sum(len(writers) for writers in self._writers.values())

    async def hang_up(self) -> None:
        """End all connections in good order, idle or not."""
        await self._end_tasks(list(self._tasks))

    async def up(self, node: int) -> None:
        """Have a node accept connections."""

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.get_running_loop().create_task(self._serve(node, reader, writer))
            self._tasks[task] = node
            task.add_done_callback(self._tasks.pop)

        self._servers[node] = await asyncio.start_server(
            accept, LOOPBACK, self.ports[node], ssl=self._context, reuse_port=True
        )

    async def down(self, node: int) -> None:
        """Have a node refuse connections, and reset those that it has."""
        server = self._servers.pop(node, None)
        if server is not None:
            server.close()
        for writer in self._writers.get(node, set()):
            _reset(writer)
        await self._end_tasks([task for task, served in self._tasks.items() if served == node])

    async def close(self) -> None:
        """End everything."""
        self.released.set()
        for node in list(self._servers):
            await self.down(node)
        for reserved in self._reserved:
            reserved.close()

    @staticmethod
    async def _end_tasks(tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # clients in this loop hear of it

    async def _serve(self, node: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = self.connections
        self.connections += 1
        writers = self._writers.setdefault(node, set())
        writers.add(writer)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                if node not in self.hang_ups:
                    while await self._one(Received(node, number), reader, writer):
                        pass
        finally:
            writers.discard(writer)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _one(self, request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serve a request; return whether the connection lives on."""
        request.raw = await reader.read(1)
        if not request.raw:
            return False
        self.requests.append(request)
        scripted = self.script.popleft() if self.script else None
        if scripted is not None and scripted.read_bytes is not None:
            await _read(request, reader, up_to=scripted.read_bytes)
            return await self._end(scripted.end, writer)
        await _read_head(request, reader)
        if scripted is not None and scripted.answers_early:
            await _send(scripted, writer)
            await _read_body(request, reader)
            return await self._end(scripted.end, writer)
        await _read_body(request, reader)
        made = scripted or self.handler(request)
        act = made if isinstance(made, Act) else Act(answer=made)
        if act.waits:
            await self.released.wait()
        await _send(act, writer)
        return await self._end(act.end, writer)

    async def _end(self, end: End, writer: asyncio.StreamWriter) -> bool:
        if end == "hang":
            await self.released.wait()
        elif end == "reset":
            _reset(writer)
        return end == "keep"


@asynccontextmanager
async def running(
    count: int = 1, handler: Callable[[Received], Act | bytes] = stored, *, context: ssl.SSLContext | None = None
) -> AsyncIterator[HttpCluster]:
    """Run nodes in this loop."""
    cluster = HttpCluster(count, handler, context=context)
    try:
        for node in range(count):
            await cluster.up(node)
        yield cluster
    finally:
        await cluster.close()


@contextmanager
def running_in_thread(
    count: int = 1, handler: Callable[[Received], Act | bytes] = stored, *, context: ssl.SSLContext | None = None
) -> Iterator[HttpCluster]:
    """Run nodes in a loop of their own, for programs that have one themselves."""
    ready: deque[tuple[HttpCluster, asyncio.AbstractEventLoop, asyncio.Event]] = deque()
    started = threading.Event()

    async def main() -> None:
        async with running(count, handler, context=context) as cluster:
            over = asyncio.Event()
            ready.append((cluster, asyncio.get_running_loop(), over))
            started.set()
            await over.wait()

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    assert started.wait(60.0), "the server has not started"
    cluster, loop, over = ready[0]
    try:
        yield cluster
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(60.0)


def _reserve() -> socket.socket:
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reserved.bind((LOOPBACK, 0))
    return reserved


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection by a reset instead of in good order."""
    bare = writer.get_extra_info("socket")
    if bare is not None:
        with suppress(OSError):
            bare.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _read(request: Received, reader: asyncio.StreamReader, *, up_to: int) -> None:
    while len(request.raw) < up_to:
        piece = await reader.read(up_to - len(request.raw))
        if not piece:
            return
        request.raw += piece


async def _read_head(request: Received, reader: asyncio.StreamReader) -> None:
    request.raw += await reader.readuntil(b"\r\n\r\n")
    first, *lines = request.raw.decode("latin-1").rstrip("\r\n").split("\r\n")
    request.method, request.path, _ = first.split(" ")
    for line in lines:
        name, _, text = line.partition(":")
        request.headers[name.strip().lower()] = text.strip()


async def _read_body(request: Received, reader: asyncio.StreamReader) -> None:
    request.body = await reader.readexactly(int(request.headers.get("content-length", "0")))
    request.raw += request.body
    request.is_whole = True


async def _send(act: Act, writer: asyncio.StreamWriter) -> None:
    answer = act.answer if act.send_bytes is None else act.answer[: act.send_bytes]
    size = act.piece_bytes or max(1, len(answer))
    for start in range(0, len(answer), size):
        writer.write(answer[start : start + size])
        await writer.drain()
        if act.piece_bytes:
            await asyncio.sleep(0)
