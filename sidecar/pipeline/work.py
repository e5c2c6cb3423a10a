"""The port between the pipeline and what messages are moved for.

A pipeline receives, gathers, paces, settles and drains. What a batch is good for, it doesn't know: that is a trade.
There are three: bulk requests to Elasticsearch (`sidecar.sinks.elasticsearch`), publishes to another exchange
(`sidecar.sinks.amqp`), and a program's own code (`sidecar.library`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable

    from structlog.typing import FilteringBoundLogger

    from sidecar.core.encoding.encoder import Rejection
    from sidecar.core.flow.limiter import SendLimiter
    from sidecar.core.flow.reject_guard import RejectGuard
    from sidecar.core.message import Message
    from sidecar.core.scheduling.batcher import Batch
    from sidecar.core.scheduling.send_queue import SendQueue
    from sidecar.core.stats.counters import Counters
    from sidecar.pipeline.settler import Settler


class Encoder(Protocol):
    """What prepares messages.

    Attributes:
        room_bytes: what may be held beside the bodies that came, in the next call; it may be exceeded by one.
        left: the messages of the last call that weren't looked at, since that was used up.
    """

    room_bytes: int
    left: list[Message]

    def encode(self, messages: Iterable[Message], now: float, /) -> tuple[list[Message], list[Rejection]]:
        """Prepare a chunk; return what goes on, and what never will, with reasons.

        Args:
            messages: the chunk.
            now: seconds since 1970.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Workplace:
    """What a pipeline gives to the work that it does.

    Attributes:
        settling: settles messages whose fate is known.
        send_queue: takes batches that go again.
        limiter: is told what the other side thinks of our pace, and of holds.
        guard: says which rejects are too many of a kind in a row.
        counters: where everything is counted.
        hold_changed: to be called when a hold began or ended.
        starved: says whether nothing more comes before something is settled.
        rng: the only source of chance.
        log: where state changes are told.
        wall_clock: seconds since 1970.
    """

    settling: Settler
    send_queue: SendQueue
    limiter: SendLimiter
    guard: RejectGuard
    counters: Counters
    hold_changed: Callable[[], None]
    starved: Callable[[], bool]
    rng: random.Random
    log: FilteringBoundLogger
    wall_clock: Callable[[], float]


class Work(Protocol):
    """What is done with batches."""

    async def carry_out(self, batch: Batch, *, probe: bool) -> None:
        """Do it, and see to the fate of each message: settled, or in the outbox again.

        Cut off (at the end of a drain), it leaves all messages as they are: the broker gets them back.

        Args:
            batch: of messages that nothing was decided about.
            probe: whether it is to find out whether a hold is over.
        """
        ...


class Sink(Protocol):
    """What messages are moved for."""

    async def check(self) -> str | None:
        """Return why work is in vain now, or None: nothing is consumed then."""
        ...

    def encoder(self, make_id: Callable[[], str]) -> Encoder:
        """Return what prepares messages.

        Args:
            make_id: gives ids that nobody else has.
        """
        ...

    def employ(self, place: Workplace) -> Work:
        """Return what does the work of one pipeline."""
        ...
