"""Admission past the guard: messages wait in the order of the queue while too many rejects in a row were made.

Nothing overtakes what waits, so the order of operations on a document is kept, and a drain gives back an unbroken rest.
While they wait, copies of messages are encoded from time to time to find out whether admission may go on: the next
message can be encoded by now (code of the user's own works again), or others behind it can. Each message behind counts
once: the nth time that a full row is let go needs n of them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sidecar.core.guard import ENCODED, Outcome, kind_of
from sidecar.core.ledger import Ledger
from sidecar.core.message import Message
from sidecar.core.pacing import probe_pause_seconds

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from structlog.typing import FilteringBoundLogger

    from sidecar.core.compose import Reject
    from sidecar.core.guard import RejectGuard
    from sidecar.plan import Plan
    from sidecar.work import Composing

_LOOK_ITEMS = 1000
_PIECE_ITEMS = 100  # the loop has its turn in between: a user's own code may be slow


class Admission:
    """Says how many messages may be admitted, and holds the others.

    Args:
        plan: how messages are encoded.
        guard: counts the rejects.
        composer: encodes the copies; not the one that encodes what is admitted.
        dice: the only source of chance.
        log: where state changes are told.
        wall_clock: seconds since 1970.
        changed: is called when a hold began or ended.

    Attributes:
        held: why messages wait, or None.
        held_since: when the present hold began, or the last, in seconds of the loop's clock.
        try_at: when copies are encoded next, by the same clock.
        looks: how often copies were encoded and admission could not go on.
    """

    def __init__(
        self,
        plan: Plan,
        guard: RejectGuard,
        composer: Composing,
        *,
        dice: random.Random,
        log: FilteringBoundLogger,
        wall_clock: Callable[[], float],
        changed: Callable[[], None],
    ) -> None:
        self.held: str | None = None
        self.held_since = 0.0
        self.try_at = 0.0
        self.looks = 0
        self._guard = guard
        self._composer = composer
        self._prepare = plan.recipe.prepare
        self._splits = plan.recipe.has_parts
        self._has_signals = plan.recipe.batch_flush_when is not None
        self._room_bytes = plan.memory_limit_bytes
        self._most = plan.reject_guard
        self._far = plan.far
        self._dice = dice
        self._log = log
        self._wall_clock = wall_clock
        self._changed = changed
        self._failed_looks = 0  # in this hold
        self._try = asyncio.Event()

    def note(self, messages: list[Message], composed: list[Message], rejects: list[Reject]) -> None:
        """Note what encoding messages came to; most of the time all of them were encoded.

        Args:
            messages: that were looked at, in the order of their admission.
            composed: their documents.
            rejects: the others, with reasons.
        """
        if rejects or self._guard.counting:
            self._guard.note([one for one in self._outcomes(messages, composed, rejects) if one is not None])

    def _outcomes(
        self, messages: list[Message], composed: list[Message], rejects: list[Reject]
    ) -> list[Outcome | None]:
        """Return what became of each message; None if there was nothing to be stored of it.

        A message with several documents is encoded if one of them is: the answer to that one says more.
        """
        found: dict[int, Outcome] = {}
        for why in rejects:
            if why.reason:
                found[self._delivered(why.message)] = Outcome(kind_of(why.reason, why.error_type), _told(why))
        for message in composed:
            if not (self._has_signals and message.correlation.is_signal):
                found[self._delivered(message)] = ENCODED
        return [found.get(id(message)) for message in messages]

    def _delivered(self, message: Message) -> int:
        return id(message.parts.message if self._splits and message.parts is not None else message)

    # The hold --------------------------------------------------------------------------------------------------------

    async def look(self, waiting: list[Message]) -> bool:
        """Encode copies of messages that wait; return whether admission may go on, and hold if it may not.

        Args:
            waiting: in the order of their admission, at least one.
        """
        sample = waiting
        if len(waiting) > _LOOK_ITEMS:
            sample = [waiting[0], *self._dice.sample(waiting[1:], _LOOK_ITEMS - 1)]
        first: Outcome | None = None
        encoded = 0
        for at in range(0, len(sample), _PIECE_ITEMS):
            outcomes = await self._encode(sample[at : at + _PIECE_ITEMS])
            if at == 0:
                first = outcomes[0]
                if first is None or self._guard.may_leave(first):
                    self._guard.let_one_go()
                    self._end()
                    return True
            encoded += outcomes.count(ENCODED)
            if encoded > self._guard.releases:
                self._guard.release()
                self._end()
                return True
            await asyncio.sleep(0)
        assert first is not None
        self._hold(first)
        return False

    async def _encode(self, messages: list[Message]) -> list[Outcome | None]:
        """Return what encoding copies of messages comes to; the messages themselves stay as they are."""
        copies = [
            Message(
                Ledger(message.ledger.queue, message.ledger.channel),
                message.tag,
                message.redelivered,
                message.route,
                message.properties,
                message.body,
                0,
            )
            for message in messages
        ]
        if self._prepare is not None:
            await self._prepare(copies)
        self._composer.room_bytes = self._room_bytes
        composed, rejects = self._composer.compose(copies, self._wall_clock())
        return self._outcomes(copies, composed, rejects)

    def _hold(self, why: Outcome) -> None:
        now = self._now()
        self.looks += 1
        self._failed_looks += 1
        self.try_at = now + probe_pause_seconds(self._failed_looks, self._dice.random())
        if self.held is not None:
            return
        self.held_since = now
        self.held = (
            f"{self._most} messages in a row were rejected: {why.detail}. Fix the publishers or the settings, "
            "or let rejects go with SIDECAR_REJECT_GUARD=0"
        )
        self._log.warning(self._far.held, reason=self.held)
        self._changed()

    def _end(self) -> None:
        self._failed_looks = 0
        if self.held is not None:
            self.held = None
            self._log.info(self._far.resumed)
            self._changed()

    async def pause(self) -> None:
        """Wait until it is time for the next look."""
        timer = asyncio.get_running_loop().call_at(self.try_at, self._try.set)
        await self._try.wait()
        self._try.clear()
        timer.cancel()

    def try_now(self) -> None:
        """Look at once, whatever pause there is."""
        if self.held is not None:
            self._try.set()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _told(why: Reject) -> str:
    """Return the reason and the detail of a reject."""
    return f"{why.reason}: {why.detail}"
