"""The floor: about the least that asyncio in pure Python can take for RabbitMQ → Elasticsearch.

Deliveries are read straight off the buffer, bodies go through as they are, one ack settles a batch. It promises
nothing: an answer with errors, a lost connection or a body in two frames ends it. A yardstick, not a pipeline.

Environment: FLOOR_AMQP (host:port), FLOOR_ES (URL), FLOOR_QUEUE, FLOOR_INDEX, FLOOR_BATCH (1000), FLOOR_IN_FLIGHT (2).
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
from collections import deque

from elasticsearch import AsyncElasticsearch
from pamqp import commands, frame

BATCH = int(os.environ.get("FLOOR_BATCH", "1000"))
IN_FLIGHT = int(os.environ.get("FLOOR_IN_FLIGHT", "2"))
INDEX = os.environ["FLOOR_INDEX"]
AGE_SECONDS = 1.0
CHANNEL = 1
DELIVER = b"\0\x3c\0\x3c"
FILTER = "errors,items.*.error"

SIZE = struct.Struct(">I")
TAG = struct.Struct(">Q")
# The properties that stand before message_id: their bits, and how long each is (0: a short string, -1: a table).
BEFORE = ((0x8000, 0), (0x4000, 0), (0x2000, -1), (0x1000, 1), (0x0800, 1), (0x0400, 0), (0x0200, 0), (0x0100, 0))
MESSAGE_ID = 0x0080


def consume() -> tuple[socket.socket, bytes]:
    """Connect, log in and begin to consume; return the socket, and what was read too much."""
    host, _, port = os.environ["FLOOR_AMQP"].partition(":")
    sock = socket.create_connection((host, int(port)))
    data = b""

    def reply() -> frame.FrameTypes:
        nonlocal data
        while True:
            used, _, value = frame.unmarshal(data) if len(data) > 7 else (0, 0, None)
            if used:
                data = data[used:]
                return value
            data += sock.recv(65536)

    def send(method: frame.FrameTypes, channel: int) -> None:
        sock.sendall(frame.marshal(method, channel))

    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(b"AMQP\0\0\x09\x01")
    reply()
    send(commands.Connection.StartOk({}, "PLAIN", "\0guest\0guest", "en_US"), 0)
    tune = reply()
    send(commands.Connection.TuneOk(tune.channel_max, tune.frame_max, 0), 0)
    send(commands.Connection.Open("/"), 0)
    reply()
    send(commands.Channel.Open(), CHANNEL)
    reply()
    send(commands.Basic.Qos(0, BATCH * (IN_FLIGHT + 2)), CHANNEL)
    reply()
    send(commands.Basic.Consume(0, os.environ["FLOOR_QUEUE"]), CHANNEL)
    reply()
    return sock, data


class Floor(asyncio.Protocol):
    """Takes deliveries off the stream, and has a batch of them sent at a time."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.clients = [AsyncElasticsearch(os.environ["FLOOR_ES"]) for _ in range(IN_FLIGHT)]
        self.rest = b""
        self.lines: list[bytes] = []
        self.items = self.tag = 0
        self.timer: asyncio.TimerHandle | None = None
        self.waiting: deque[tuple[bytes, int]] = deque()
        self.unacked: dict[int, bool] = {}  # last tags of batches in their order, and whether they are stored
        self.tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport, for the acks."""
        self.transport = transport

    def connection_lost(self, _: Exception | None) -> None:
        """Give up."""
        sys.exit("the connection was lost")

    def data_received(self, data: bytes) -> None:  # noqa: C901, PLR0912 - one loop: a call costs more than what it would do
        """Take the messages that are here whole: method, header and body in a frame each."""
        if self.rest:
            data = self.rest + data
        pos, end, add, size_at = 0, len(data), self.lines.extend, SIZE.unpack_from
        while end - pos > 7:
            header = pos + 8 + size_at(data, pos + 3)[0]
            if header > end:
                break
            if data[pos + 7 : pos + 11] != DELIVER:
                pos = header
                continue
            if header + 7 > end:
                break
            body = header + 8 + size_at(data, header + 3)[0]
            if body + 7 > end:
                break
            length = size_at(data, body + 3)[0]
            after = body + 8 + length
            if after > end:
                break
            if length != size_at(data, header + 15)[0]:
                sys.exit("a body in several frames")
            flags, at = data[header + 19] << 8 | data[header + 20], header + 21
            for bit, width in BEFORE:
                if flags & bit:
                    if width > 0:
                        at += width
                    else:
                        at += 4 + size_at(data, at)[0] if width else 1 + data[at]
            document_id = data[at + 1 : at + 1 + data[at]] if flags & MESSAGE_ID else b""
            add((b'{"index":{"_id":"', document_id, b'"}}\n', data[body + 7 : after - 1], b"\n"))
            self.tag = TAG.unpack_from(data, pos + 12 + data[pos + 11])[0]
            self.items += 1
            if self.items == BATCH:
                self.complete()
                add = self.lines.extend
            pos = after
        self.rest = data[pos:]
        if self.items and self.timer is None:
            self.timer = self.loop.call_later(AGE_SECONDS, self.complete)

    def complete(self) -> None:
        """Send what was gathered, now or as soon as a client is free."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.items:
            self.unacked[self.tag] = False
            self.waiting.append((b"".join(self.lines), self.tag))
            self.lines, self.items = [], 0
        while self.waiting and self.clients:
            task = self.loop.create_task(self.send(self.clients.pop(), *self.waiting.popleft()))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def send(self, client: AsyncElasticsearch, body: bytes, tag: int) -> None:
        """Send one request; ack everything up to the first batch that isn't stored."""
        answer = await client.bulk(index=INDEX, body=body, filter_path=FILTER)
        if answer["errors"]:
            sys.exit(f"an item failed: {next(filter(None, answer['items']))}")
        self.clients.append(client)
        self.unacked[tag] = True
        last = 0
        for stored in list(self.unacked):
            if not self.unacked[stored]:
                break
            del self.unacked[stored]
            last = stored
        if last:
            self.transport.write(frame.marshal(commands.Basic.Ack(last, multiple=True), CHANNEL))
        self.complete()


async def main() -> None:
    """Move messages until terminated."""
    sock, data = consume()
    sock.settimeout(0)
    _, floor = await asyncio.get_running_loop().create_connection(Floor, sock=sock)
    floor.data_received(data)
    await asyncio.Event().wait()


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:
        asyncio.run(main())
    else:
        uvloop.run(main())
