"""Copies for the dead-letter and delay queues: published, confirmed, and only then is the original acked.

A route that takes no copies is a hold of its own: the originals stay, one copy at growing intervals finds out whether
the route is mended, and everything else goes on.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from sidecar.core.copies import copy_properties, dead_letter_headers, delay_headers
from sidecar.core.frames import properties_limit
from sidecar.core.pacing import backoff_seconds
from sidecar.errors import BrokerError
from sidecar.ports import Copy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from structlog.typing import FilteringBoundLogger

    from sidecar.core.account import Settled
    from sidecar.core.copies import Letter
    from sidecar.core.message import Message
    from sidecar.ports import BrokerSession

_AT_ONCE = 500


class Settler(Protocol):
    """What the copies' originals are settled by: the pipeline."""

    def acknowledge(self, messages: list[Message], verdict: Settled) -> None:
        """Ack messages, and count them as `verdict`."""
        ...

    def target(self, message: Message) -> tuple[str, str, bytes]:
        """Return action, index and id of a message, as far as they are known."""
        ...

    def copying_changed(self) -> None:
        """Take notice: something was settled, or a hold began or ended."""
        ...


class Route:
    """Where copies go.

    Args:
        exchange: for dead letters; empty for the default exchange.
        routing_key: for dead letters; None for ``<queue>.dead``.
        delay_min_seconds: the first pause after a refusal.
        delay_max_seconds: what pauses grow to.
    """

    def __init__(
        self, exchange: str, routing_key: str | None, delay_min_seconds: float, delay_max_seconds: float
    ) -> None:
        self.exchange = exchange.encode()
        self.routing_key = routing_key
        self.delay_min_seconds = delay_min_seconds
        self.delay_max_seconds = delay_max_seconds


class Copying:
    """Publishes copies of messages and settles their originals.

    Args:
        route: where they go.
        settler: settles the originals.
        log: where a hold is told.
        wall_clock: seconds since 1970.

    Attributes:
        held: why the route takes nothing, or None.
    """

    def __init__(
        self, route: Route, settler: Settler, log: FilteringBoundLogger, wall_clock: Callable[[], float]
    ) -> None:
        self.held: str | None = None
        self._route = route
        self._settler = settler
        self._log = log
        self._wall_clock = wall_clock
        self._session: BrokerSession | None = None
        self._letters: list[Letter] = []
        self._on_their_way = 0
        self._copies = 0
        self._wake = asyncio.Event()
        self._nothing_moves = asyncio.Event()  # no copy waits or is on its way, or the route takes none
        self._nothing_moves.set()

    @property
    def idle(self) -> bool:
        """Whether no copy waits or is on its way."""
        return not (self._letters or self._on_their_way)

    @property
    def on_their_way(self) -> bool:
        """Whether copies are published whose confirm isn't there yet."""
        return bool(self._on_their_way)

    def attach(self, session: BrokerSession) -> None:
        """Publish by `session` from now on."""
        self._session = session
        session.on_blocked = self._blocked

    def detach(self) -> None:
        """Note that the session was lost."""
        self._session = None
        self.held = None

    def forget_closed(self) -> None:
        """Forget letters whose originals the broker has again."""
        self._letters = [letter for letter in self._letters if not letter.message.ledger.closed]

    def add(self, letters: Iterable[Letter]) -> None:
        """Have copies published, in order."""
        self._letters += [letter for letter in letters if not letter.message.ledger.closed]
        self._nothing_moves.clear()
        self._wake.set()

    async def settled(self) -> None:
        """Wait until every copy is confirmed, or it is clear that none will be for now."""
        await self._nothing_moves.wait()

    async def run(self) -> None:
        """Publish until cancelled."""
        tries = 0
        while True:
            await self._wake.wait()
            self._wake.clear()
            session = self._session
            count = 1 if tries else _AT_ONCE  # while the route refuses, one copy finds out
            letters, self._letters = self._letters[:count], self._letters[count:]
            if session is None or not letters:
                self._nothing_moves.set()
                continue
            self._on_their_way = len(letters)
            try:
                refusals = await session.publish([self._copy(letter, session.frame_max) for letter in letters])
            except BrokerError as error:
                # The session is gone. Should the copies be why (RabbitMQ closes the channel over an exchange that isn't
                # there), the next session must live long enough to settle what is good.
                tries += 1
                self._nothing_moves.set()
                if tries > 1:
                    self._note(str(error))
                await self._pause(tries)
                continue
            finally:
                self._on_their_way = 0
            self._settle(letters, refusals)
            refusal = next((refusal for refusal in refusals if refusal is not None), None)
            tries = tries + 1 if refusal is not None else 0
            self._note(refusal)
            if tries or not self._letters:
                self._nothing_moves.set()
            if tries:
                await self._pause(tries)
            if self._letters:
                self._wake.set()
            self._settler.copying_changed()

    def _settle(self, letters: list[Letter], refusals: list[str | None]) -> None:
        # The end may have come while the copies were on their way: then the broker has the originals again.
        ours = [(letter, refusal) for letter, refusal in zip(letters, refusals, strict=True) if _is_open(letter)]
        for verdict in ("dead_letter", "delay"):
            taken = [letter.message for letter, refusal in ours if refusal is None and letter.verdict == verdict]
            if taken:
                self._settler.acknowledge(taken, verdict)
        self._letters = [letter for letter, refusal in ours if refusal is not None] + self._letters

    async def _pause(self, tries: int) -> None:
        await asyncio.sleep(backoff_seconds(tries, 1.0, self._route.delay_min_seconds, self._route.delay_max_seconds))

    def _blocked(self, reason: str | None) -> None:
        """Note that RabbitMQ is short of resources: copies wait at its door, and nothing needs to be done."""
        self._note(f"RabbitMQ takes no messages for now: {reason}" if reason is not None else None)

    def _note(self, refusal: str | None) -> None:
        if refusal == self.held:
            return
        self.held = refusal
        if refusal is None:
            self._log.info("dead_letters.resumed")
        else:
            self._nothing_moves.set()
            self._log.error("dead_letters.held", reason=refusal)
        self._settler.copying_changed()

    def _copy(self, letter: Letter, frame_max: int) -> Copy:
        message = letter.message
        action, index, document_id = self._settler.target(message)
        self._copies += 1
        token = b"%d" % self._copies
        now = self._wall_clock()
        if letter.delay_milliseconds:
            added = delay_headers(letter, token=token, document_id=document_id, now=now)
            exchange, routing_key = b"", f"{message.ledger.queue}.delay.{letter.delay_milliseconds}"
        else:
            added = dead_letter_headers(
                letter, token=token, action=action, index=index, document_id=document_id, failed_at=now
            )
            exchange = self._route.exchange
            routing_key = self._route.routing_key or f"{message.ledger.queue}.dead"
        properties = copy_properties(message.properties, added, properties_limit(frame_max))
        delay = (message.ledger.queue, letter.delay_milliseconds) if letter.delay_milliseconds else None
        return Copy(exchange, routing_key.encode(), properties, message.body, token, delay)


def _is_open(letter: Letter) -> bool:
    return letter.message.ledger.holds(letter.message)
