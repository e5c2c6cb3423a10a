"""The network of the tests: bytes arrive whole and in order, however cut; a full socket holds up its writer."""

from __future__ import annotations

import asyncio
import random
from itertools import pairwise
from typing import cast

import pytest

from tests.fakes import network


class Peer(asyncio.Protocol):
    """Notes what happens to it."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.ended: list[object] = []
        self.writing: list[bool] = []
        self.transport: network.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("network.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.got.append(data)

    def eof_received(self) -> None:
        self.ended.append("eof")

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.append(type(exc))

    def pause_writing(self) -> None:
        self.writing.append(False)

    def resume_writing(self) -> None:
        self.writing.append(True)


async def connected() -> tuple[Peer, Peer]:
    """Return both ends of a connection."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, network.NetworkLoop)
    far = Peer()
    server = await loop.create_server(lambda: far, "127.0.0.1")
    _, near = await loop.create_connection(Peer, "127.0.0.1", server.sockets[0].getsockname()[1])
    server.close()
    with pytest.raises(ConnectionRefusedError):
        await loop.create_connection(Peer, "127.0.0.1", server.sockets[0].getsockname()[1])
    return near, far


@pytest.mark.parametrize("seed", range(10))
def test_bytes_arrive_in_order(seed: int) -> None:
    """In pieces that are others than those written."""

    async def scenario() -> None:
        near, far = await connected()
        sent = [bytes([number % 251]) * (number * 37) for number in range(1, 200)]
        for piece in sent:
            near.transport.write(piece)
        near.transport.close()
        await asyncio.sleep(10)
        assert b"".join(far.got) == b"".join(sent)
        assert far.got != sent
        assert far.ended == ["eof", type(None)]
        assert near.ended == [type(None)]

    network.run(scenario(), rng=random.Random(seed))


def test_a_reader_that_pauses_holds_up_its_writer() -> None:
    """As a socket that is full; and lets it go on when it reads again."""

    async def scenario() -> None:
        near, far = await connected()
        far.transport.pause_reading()
        for _ in range(100):
            near.transport.write(bytes(10_000))
            await asyncio.sleep(0.1)
        assert near.writing == [False]
        assert not far.got
        far.transport.resume_reading()
        await asyncio.sleep(1)
        assert near.writing == [False, True]
        assert sum(map(len, far.got)) == 1_000_000

    network.run(scenario())


def test_a_reset_loses_what_is_not_sent() -> None:
    """And the other end learns of it after what arrived before."""

    async def scenario() -> None:
        near, far = await connected()
        near.transport.write(b"before")
        near.transport.abort()
        near.transport.write(b"after")
        await asyncio.sleep(1)
        assert (far.got, far.ended) == ([b"before"], [ConnectionResetError])
        assert near.ended == [type(None)]

    network.run(scenario())


def test_latency_is_never_the_same_and_never_overtakes() -> None:
    """With chance; without it each write takes the same time."""

    async def scenario() -> None:
        near, far = await connected()
        loop = asyncio.get_running_loop()
        moments: list[float] = []
        far.data_received = lambda _: moments.append(loop.time())  # type: ignore[method-assign, assignment]
        for _ in range(50):
            near.transport.write(b"x")
            await asyncio.sleep(0.01)
        assert moments == sorted(moments)
        assert len({round(after - before, 6) for before, after in pairwise(moments)}) > 10

    network.run(scenario(), rng=random.Random(1))
