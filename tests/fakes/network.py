"""A network inside the test's own process, in virtual time: the product's real protocols, and no sockets.

What is written arrives later, in pieces of any size; a reader that pauses holds up its writer, as a full socket does.
`run` is for what needs no chance: each write arrives whole, a moment later.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

from tests.fakes import clock

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Coroutine, Iterable

Returned = TypeVar("Returned")
Protocol = TypeVar("Protocol", bound=asyncio.BaseProtocol)

_HIGH_WATER_BYTES = 64 * 1024
_LOW_WATER_BYTES = 16 * 1024
_SOCKET_BYTES = 32 * 1024


class _Socket:
    def __init__(self, port: int) -> None:
        self._port = port

    def getsockname(self) -> tuple[str, int]:
        """Return where it listens."""
        return "127.0.0.1", self._port


class _Listener:
    """What `create_server` returns."""

    def __init__(self, network: Network, port: int) -> None:
        self.sockets = [_Socket(port)]
        self._network = network
        self._port = port

    def close(self) -> None:
        """Listen no longer."""
        self._network.listening.pop(self._port, None)


class Transport(asyncio.Transport):
    """One end of a connection."""

    def __init__(self, network: Network, protocol: asyncio.BaseProtocol) -> None:
        super().__init__()
        self.peer: Transport
        self._network = network
        self._loop = network.loop
        self._protocol: Any = protocol
        self._unsent = bytearray()  # not yet in the socket
        self._arrived = bytearray()  # in the socket, not read yet
        self._on_its_way = 0
        self._paused = self._closing = self._lost = False
        self._writing_paused = False
        self._reads = False  # in a moment
        self._ended = self._told_end = False  # the other end says nothing more
        self._free_at = 0.0
        self._due: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return nothing: there is no socket."""
        return default

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return whom it belongs to."""
        return self._protocol  # type: ignore[no-any-return]

    def is_closing(self) -> bool:
        """Whether nothing more is written."""
        return self._closing

    # Writing -------------------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes."""
        if self._closing or not data:
            return
        self._unsent += data
        self._send()
        if len(self._unsent) > _HIGH_WATER_BYTES and not self._writing_paused:
            self._writing_paused = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        """Send bytes."""
        self.write(b"".join(list_of_data))

    def get_write_buffer_size(self) -> int:
        """Return how much the socket hasn't taken."""
        return len(self._unsent)

    def _send(self) -> None:
        """Have as much arrive as the other end's socket takes."""
        if self._lost:
            return
        room = _SOCKET_BYTES - len(self.peer._arrived) - self._on_its_way
        piece = bytes(self._unsent[: max(0, room)])
        if piece:
            del self._unsent[: len(piece)]
            for part in self._network.pieces(piece):
                self._on_its_way += len(part)
                self._later(self._arrive, part)
        if self._writing_paused and len(self._unsent) <= _LOW_WATER_BYTES:
            self._writing_paused = False
            self._loop.call_soon(self._protocol.resume_writing)
        if self._closing and not self._unsent:
            self._later(self.peer._end)
            self._lose(None)

    def _arrive(self, part: bytes) -> None:
        self._on_its_way -= len(part)
        self.peer._receive(part)

    def _later(self, act: Callable[..., None], *arguments: Any) -> None:
        """Have something happen at the other end, after all that was written before."""
        self._free_at = max(self._free_at, self._loop.time() + self._network.latency())
        self._due.append((act, arguments))
        self._loop.call_at(self._free_at, self._next)  # timers of one moment come in any order

    def _next(self) -> None:
        act, arguments = self._due.popleft()
        act(*arguments)

    def close(self) -> None:
        """Say nothing more, after what was written."""
        if not self._closing:
            self._closing = True
            self._send()

    def write_eof(self) -> None:
        """Close, for half a connection is none that anybody here needs."""
        self.close()

    def abort(self) -> None:
        """Reset the connection."""
        if not self._lost:
            self._closing = True
            self._unsent.clear()
            self._later(self.peer._reset)
            self._lose(None)

    def _reset(self) -> None:
        if not self._lost:
            self._read()
            self._lose(ConnectionResetError("Connection reset by peer"))

    def _lose(self, error: Exception | None) -> None:
        if not self._lost:
            self._lost = True
            self._closing = True
            if self._arrived:  # nobody reads it any more, and its writer has to know
                self._arrived.clear()
                self._later(self.peer._reset)
            self._loop.call_soon(self._protocol.connection_lost, error)

    # Reading -------------------------------------------------------------------------------------------------------

    def pause_reading(self) -> None:
        """Leave what comes in the socket."""
        self._paused = True

    def resume_reading(self) -> None:
        """Read on."""
        self._paused = False
        self._read_soon()

    def is_reading(self) -> bool:
        """Whether what comes is read."""
        return not self._paused

    def _receive(self, part: bytes) -> None:
        if self._lost:
            self._later(self.peer._reset)
            return
        self._arrived += part
        self._read_soon()

    def _read_soon(self) -> None:
        """Read a moment later: what comes by then is read at once with it."""
        if not self._reads:
            self._reads = True
            self._loop.call_at(self._loop.time() + self._network.delay(), self._read)

    def _read(self) -> None:
        self._reads = False
        if self._paused or self._lost:
            return
        if self._arrived:
            data = bytes(self._arrived)
            self._arrived.clear()
            self._protocol.data_received(data)
            self.peer._send()
        if self._ended and not self._told_end and not self._paused and not self._lost:
            self._told_end = True
            if not self._protocol.eof_received():
                self.close()

    def _end(self) -> None:
        self._ended = True
        self._read_soon()


class Network:
    """Connects what is on one loop.

    Args:
        loop: of the clients and servers.
        rng: cuts what is written into pieces, and delays it; None: whole, and always for the same time.
        latency_seconds: the least and the most that a piece takes.

    Attributes:
        listening: the servers by port.
        ports: those that are free.
    """

    def __init__(
        self,
        loop: NetworkLoop,
        rng: random.Random | None = None,
        latency_seconds: tuple[float, float] = (0.0001, 0.002),
    ) -> None:
        self.loop = loop
        self.listening: dict[int, Callable[[], asyncio.BaseProtocol]] = {}
        self.ports = itertools.count(50_000)
        self._rng = rng
        self._latency_seconds = latency_seconds

    def latency(self) -> float:
        """Return how long the next piece takes, in seconds."""
        return self._latency_seconds[0] if self._rng is None else self._rng.uniform(*self._latency_seconds)

    def delay(self) -> float:
        """Return how long what has arrived lies in the socket, in seconds."""
        return 0.0 if self._rng is None else self._rng.choice((0.0, 0.0, self._rng.uniform(*self._latency_seconds)))

    def pieces(self, data: bytes) -> list[bytes]:
        """Return what arrives at once of something that is written."""
        if self._rng is None or self._rng.random() < 0.7:
            return [data]
        cuts = sorted({0, len(data), *(self._rng.randrange(len(data)) for _ in range(self._rng.choice((1, 3))))})
        return [data[start:end] for start, end in itertools.pairwise(cuts)]

    async def connect(self, factory: Callable[[], Protocol], port: int) -> tuple[Transport, Protocol]:
        """Connect to a server.

        Raises:
            ConnectionRefusedError: nobody listens.
        """
        await asyncio.sleep(self.latency())
        if port not in self.listening:
            raise ConnectionRefusedError(111, f"Connect call failed ('127.0.0.1', {port})")
        mine, theirs = factory(), self.listening[port]()
        near, far = Transport(self, mine), Transport(self, theirs)
        near.peer, far.peer = far, near
        theirs.connection_made(far)
        mine.connection_made(near)
        return near, mine


class NetworkLoop(clock.VirtualLoop):
    """A virtual loop with a network of its own.

    Attributes:
        network: may be replaced before anything connects.
    """

    def __init__(self) -> None:
        super().__init__()
        self.network = Network(self)

    async def create_connection(  # type: ignore[override]
        self, protocol_factory: Callable[[], Protocol], host: str, port: int, *, ssl: object = None
    ) -> tuple[Transport, Protocol]:
        """Connect inside the process."""
        assert ssl is None, "there is no TLS here: use sockets"
        return await self.network.connect(protocol_factory, port)

    async def create_server(  # type: ignore[override]
        self, protocol_factory: Callable[[], asyncio.BaseProtocol], host: str, port: int = 0, *, ssl: object = None
    ) -> _Listener:
        """Listen inside the process; port 0 is any that is free."""
        assert ssl is None, "there is no TLS here: use sockets"
        port = port or next(self.network.ports)
        self.network.listening[port] = protocol_factory
        return _Listener(self.network, port)


def run(
    main: Coroutine[object, object, Returned],
    *,
    rng: random.Random | None = None,
    watcher: Callable[[], None] | None = None,
) -> Returned:
    """Run a coroutine in virtual time, on a loop with a network.

    Args:
        main: what to run.
        rng: see `Network`.
        watcher: called between any two turns of the loop.

    Raises:
        Stuck: it waits for something that never happens.
    """
    loop = NetworkLoop()
    loop.network = Network(loop, rng)
    return clock.run(main, watcher=watcher, loop=loop)
