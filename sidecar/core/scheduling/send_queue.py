"""What waits to be sent: complete batches and those that go again, joined or split into requests."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from sidecar.core.scheduling.batcher import Batch, drop_stale

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sidecar.core.message import Message


class SendQueue:
    """Batches on their way to Elasticsearch.

    What goes again has waited longest and goes first, as soon as its backoff is over; small batches that may be joined
    (`Batch.mendable`) share a request up to the limits.

    Args:
        max_items: messages in a request.
        max_bytes: bytes of a request's body; a single item above it goes alone.
        merges: whether small batches share a request at all.
    """

    def __init__(self, max_items: int, max_bytes: int, *, merges: bool = True) -> None:
        self.max_items = max_items
        self.max_bytes = max_bytes
        self._merges = merges
        self._new: deque[Batch] = deque()
        self._retries: list[Batch] = []

    def __len__(self) -> int:
        """Return the number of batches that wait."""
        return len(self._new) + len(self._retries)

    @property
    def items(self) -> int:
        """How many messages wait."""
        return sum(len(batch.messages) for batch in (*self._retries, *self._new))

    @property
    def only_waits(self) -> bool:
        """Whether nothing is left but messages that wait in place for targets that accept nothing."""
        return not self._new and all(batch.waits_for_target for batch in self._retries)

    def put(self, batches: Iterable[Batch]) -> None:
        """Add complete batches, oldest first."""
        self._new.extend(batches)

    def put_back(self, batch: Batch, *, first: bool = False) -> None:
        """Add a batch that goes again when its `ready_at` has come, before or behind those that are here."""
        self._retries.insert(0 if first else len(self._retries), batch)

    def ready_at(self) -> float | None:
        """Return when the next request can be made, in seconds of the loop's clock; None when nothing waits."""
        if self._new:
            return 0.0
        return min((batch.ready_at for batch in self._retries), default=None)

    def take(self, now: float) -> Batch | None:
        """Take the next request, or None when nothing is ready at `now`."""
        batch = self._next(now)
        if batch is None:
            return None
        if len(batch.messages) > 1 and batch.body_bytes > self.max_bytes:
            batch, rest = self._split_oversized(batch)
            if rest is not None:
                self._retries.insert(0, rest)
        elif self._merges and batch.mergeable and not batch.is_suspect:
            self._merge_small(batch, now)
        return batch

    def _next(self, now: float) -> Batch | None:
        for at, batch in enumerate(self._retries):
            if batch.ready_at <= now:
                return self._retries.pop(at)
        return self._new.popleft() if self._new else None

    def _split_oversized(self, batch: Batch) -> tuple[Batch, Batch | None]:
        """Split a batch that is larger than the limit became after it was made."""
        size, count = 0, 0
        for message in batch.messages:
            size += message.bulk_bytes
            if size > self.max_bytes and count:
                break
            count += 1
        first = batch.subset(batch.messages[:count])
        rest = batch.messages[count:]
        return first, batch.subset(rest) if rest else None

    def _merge_small(self, batch: Batch, now: float) -> None:
        for source in (self._retries, self._new):
            at = 0
            while at < len(source):
                other = source[at]
                fits = (
                    len(batch.messages) + len(other.messages) <= self.max_items
                    and batch.body_bytes + other.body_bytes <= self.max_bytes
                )
                joinable = other.mergeable and other.ready_at <= now and not other.is_suspect
                if not (fits and joinable):
                    at += 1
                    continue
                del source[at]
                batch.messages = batch.messages + other.messages
                batch.body_bytes += other.body_bytes
                batch.opened_at = min(batch.opened_at, other.opened_at)
                batch.tries = max(batch.tries, other.tries)
                batch.waits_for_target = batch.waits_for_target and other.waits_for_target

    def take_probe(self, jitter: float) -> Batch | None:
        """Take a single item to find out with it whether Elasticsearch is back: a different one each time.

        Args:
            jitter: a uniform number from 0 to 1. What was given back comes again in the same order, and were it always
                the first, an item that nobody survives could keep a hold up for ever.
        """
        waiting = len(self)
        if not waiting:
            return None
        # Any batch, fresh or not, and any item of it: what goes again may be at fault itself.
        place = jitter * waiting
        chosen = int(place)
        if chosen < len(self._new):
            batch = self._new[chosen]
            del self._new[chosen]
        else:
            batch = self._retries.pop(chosen - len(self._new))
        at = int((place - chosen) * len(batch.messages))
        probe = batch.subset([batch.messages[at]])
        probe.ready_at = 0.0
        if len(batch.messages) > 1:
            rest = batch.subset(batch.messages[:at] + batch.messages[at + 1 :])
            rest.ready_at = 0.0
            self._retries.append(rest)  # at the end, so that the next probe is another's item
        return probe

    def drop_closed(self) -> list[Message]:
        """Drop and return the messages whose epoch is over."""
        dropped: list[Message] = []
        for batch in (*self._retries, *self._new):
            dropped += drop_stale(batch)
        self._retries = [batch for batch in self._retries if batch.messages]
        self._new = deque(batch for batch in self._new if batch.messages)
        return dropped
