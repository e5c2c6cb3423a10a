"""Admission control of the reject guard: messages wait in the order of the queue after too many rejects in a row.

No message overtakes those that wait. So the order of the operations on a document is kept, and a drain gives back all
messages from one point on. While they wait, copies of them are encoded from time to time (a probe). Admission goes on
if the next message can be encoded, for instance because the user's own code works again, or if messages behind it can.
Each message behind counts once: the nth release of a full row needs n of them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sidecar.core.flow.limiter import probe_pause_seconds
from sidecar.core.flow.reject_guard import ENCODED, Outcome, kind_of
from sidecar.core.ledger import Ledger
from sidecar.core.message import Message
from sidecar.pipeline.waking import wait_until

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from structlog.typing import FilteringBoundLogger

    from sidecar.core.encoding.encoder import Rejection
    from sidecar.core.flow.reject_guard import RejectGuard
    from sidecar.pipeline.config import PipelineConfig
    from sidecar.pipeline.work import Encoder

_PROBE_ITEMS = 1000
_PROBE_CHUNK_ITEMS = 100  # the event loop runs in between, because the user's own code may be slow


class Admission:
    """Holds messages back while the guard admits none, and probes whether admission may go on.

    Args:
        config: how messages are encoded.
        guard: counts the rejects.
        encoder: encodes the copies; it must not be the one that encodes admitted messages.
        rng: the only source of chance.
        log: for the start and the end of a hold.
        wall_clock: seconds since 1970.
        changed: called when a hold began or ended.

    Attributes:
        held: why messages wait, or None.
        held_since: when the present or last hold began, in seconds of the loop's clock.
        probe_at: when the next probe is due, by the same clock.
        probes: how many failed.
    """

    def __init__(
        self,
        config: PipelineConfig,
        guard: RejectGuard,
        encoder: Encoder,
        *,
        rng: random.Random,
        log: FilteringBoundLogger,
        wall_clock: Callable[[], float],
        changed: Callable[[], None],
    ) -> None:
        self.held: str | None = None
        self.held_since = 0.0
        self.probe_at = 0.0
        self.probes = 0
        self._guard = guard
        self._encoder = encoder
        self._prepare = config.encoder_config.prepare
        self._splits = config.encoder_config.splits
        self._has_signals = config.encoder_config.batch_flush_when is not None
        self._room_bytes = config.memory_limit_bytes
        self._max_rejects = config.reject_guard
        self._far = config.far
        self._rng = rng
        self._log = log
        self._wall_clock = wall_clock
        self._changed = changed
        self._failed_probes = 0  # in this hold
        self._try = asyncio.Event()

    def observe(self, messages: list[Message], encoded: list[Message], rejections: list[Rejection]) -> None:
        """Count the results of encoding messages; most of the time all of them were encoded.

        Args:
            messages: in the order of their admission.
            encoded: their documents.
            rejections: the messages that were rejected, with reasons.
        """
        if rejections or self._guard.counting:
            self._guard.note([one for one in self._outcomes(messages, encoded, rejections) if one is not None])

    def _outcomes(
        self, messages: list[Message], encoded: list[Message], rejections: list[Rejection]
    ) -> list[Outcome | None]:
        """Return the result for each message; None for one without a document.

        A message with several documents counts as encoded if one of them is: the answer to that one decides.
        """
        found: dict[int, Outcome] = {}
        for why in rejections:
            if why.reason:
                found[self._delivered(why.message)] = Outcome(kind_of(why.reason, why.error_type), _describe(why))
        for message in encoded:
            if not (self._has_signals and message.correlation.is_signal):
                found[self._delivered(message)] = ENCODED
        return [found.get(id(message)) for message in messages]

    def _delivered(self, message: Message) -> int:
        return id(message.split.message if self._splits and message.split is not None else message)

    # The hold --------------------------------------------------------------------------------------------------------

    async def probe(self, waiting: list[Message]) -> bool:
        """Encode copies of messages that wait. Return whether admission may go on; start or extend the hold if not.

        Args:
            waiting: in the order of their admission, at least one.
        """
        sample = waiting
        if len(waiting) > _PROBE_ITEMS:
            sample = [waiting[0], *self._rng.sample(waiting[1:], _PROBE_ITEMS - 1)]
        first: Outcome | None = None
        encoded = 0
        for at in range(0, len(sample), _PROBE_CHUNK_ITEMS):
            outcomes = await self._encode(sample[at : at + _PROBE_CHUNK_ITEMS])
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
        """Return the results of encoding copies of messages; the messages themselves are not changed."""
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
        self._encoder.room_bytes = self._room_bytes
        encoded, rejections = self._encoder.encode(copies, self._wall_clock())
        return self._outcomes(copies, encoded, rejections)

    def _hold(self, why: Outcome) -> None:
        now = self._now()
        self.probes += 1
        self._failed_probes += 1
        self.probe_at = now + probe_pause_seconds(self._failed_probes, self._rng.random())
        if self.held is not None:
            return
        self.held_since = now
        self.held = (
            f"{self._max_rejects} messages in a row were rejected: {why.detail}. Fix the publishers or the settings, "
            "or let rejects go with SIDECAR_REJECT_GUARD=0"
        )
        self._log.warning(self._far.held, reason=self.held)
        self._changed()

    def _end(self) -> None:
        self._failed_probes = 0
        if self.held is not None:
            self.held = None
            self._log.info(self._far.resumed)
            self._changed()

    async def pause(self) -> None:
        """Wait until the next probe is due."""
        await wait_until(self._try, self.probe_at)

    def probe_now(self) -> None:
        """Probe at once instead of after the pause."""
        if self.held is not None:
            self._try.set()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _describe(why: Rejection) -> str:
    """Return the reason and the detail of a reject."""
    return f"{why.reason}: {why.detail}"
