"""A simulated publishing connection to a simulated RabbitMQ, behind the port `sidecar.ports.Outlet`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sidecar.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.ports import OutboundMessage
    from tests.fakes.broker import Broker, SimulatedSession


class SimulatedOutlet:
    """Publishes to a broker, by a session at a time that is opened when it is needed, as the real one does.

    Args:
        broker: to publish to.

    Attributes:
        calls: how many messages were published at once, each time.
        opened: how often a session was opened.
    """

    def __init__(self, broker: Broker) -> None:
        self.frame_max = 0
        self.blocked: str | None = None
        self.on_blocked: Callable[[], None] = lambda: None
        self.calls: list[int] = []
        self.opened = 0
        self._broker = broker
        self._connect = broker.connector(())
        self._session: SimulatedSession | None = None
        self._opening = asyncio.Lock()

    @property
    def connection(self) -> int | None:
        """The number of the session; None while there is none."""
        session = self._session
        return self.opened if session is not None and not (session.over or session.lost.done()) else None

    async def publish(self, copies: list[OutboundMessage]) -> list[str | None]:
        """Publish messages and wait for the broker to confirm each."""
        session = await self._open()
        self.calls.append(len(copies))
        try:
            return await session.publish(copies)
        except BrokerError:
            self._session = None
            raise

    async def check(self) -> str | None:
        """Return why publishing is in vain now, or None."""
        try:
            await self._open()
        except BrokerError as error:
            return str(error)
        return self.blocked

    async def _open(self) -> SimulatedSession:
        async with self._opening:
            session = self._session
            if session is None or session.over or session.lost.done():
                session = await self._connect(lambda _: None)
                session.reopens = False  # its connection ends with the channel
                session.on_blocked = self._note_blocked
                self.opened += 1
                self.frame_max = session.frame_max
                self._session = session
            return session

    def _note_blocked(self, reason: str | None) -> None:
        self.blocked = f"RabbitMQ takes no messages for now: {reason}" if reason is not None else None
        self.on_blocked()

    async def close(self) -> None:
        """Close the connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def lose(self, reason: str = "connection reset by peer") -> None:
        """Break the connection, if there is one: what is on its way is lost, in either direction."""
        if self._session is not None:
            self._session.lose(reason)
