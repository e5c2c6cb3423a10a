"""The counts that must add up: received = ack + delay + requeue + dead_letter + discard + stale + in flight."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from sidecar.core.stats.histogram import BYTES, ITEMS, SECONDS, Histogram

Settled = Literal["ack", "delay", "requeue", "dead_letter", "discard", "stale"]
SETTLED: tuple[Settled, ...] = ("ack", "delay", "requeue", "dead_letter", "discard", "stale")


class Counters:
    """What came in and what became of it, and how the work was done.

    Attributes:
        received: messages, by queue.
        settled: messages, by queue and verdict.
        documents: items of bulk answers, by action and outcome.
        batches: completed batches, by what completed them.
        batched: the messages in them, likewise.
        requests: bulk requests, by outcome.
        retries: messages that went again, by reason.
        splits: requests that were halved, by reason.
        coalesced: operations that a later one on the same document took the place of before they were sent.
        sessions: with the broker, one after the other.
        batch_items: messages of completed batches.
        batch_bytes: what they take in a request's body.
        bulk_seconds: how long requests took, those without an answer included.
        queue_wait_seconds: from publishing to the batch, of the first message of each batch that says when it was
            published.
        end_to_end_seconds: until it was stored, of the first message of each request: since it was published where it
            says so, otherwise since it came to its batch.
    """

    def __init__(self) -> None:
        self.received: Counter[str] = Counter()
        self.settled: Counter[tuple[str, Settled]] = Counter()
        self.documents: Counter[tuple[str, str]] = Counter()
        self.batches: Counter[str] = Counter()
        self.batched: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.retries: Counter[str] = Counter()
        self.splits: Counter[str] = Counter()
        self.coalesced = 0
        self.sessions = 0
        self.batch_items = Histogram(ITEMS)
        self.batch_bytes = Histogram(BYTES)
        self.bulk_seconds = Histogram(SECONDS)
        self.queue_wait_seconds = Histogram(SECONDS)
        self.end_to_end_seconds = Histogram(SECONDS)

    def settle(self, queue: str, verdict: Settled, count: int = 1) -> None:
        """Count messages of `queue` as settled."""
        if count:
            self.settled[queue, verdict] += count

    @property
    def in_flight(self) -> int:
        """Messages that were received and not settled."""
        return self.received.total() - self.settled.total()

    def total(self, verdict: Settled) -> int:
        """Return how many messages of all queues were settled so."""
        return sum(count for (_, settled), count in self.settled.items() if settled == verdict)

    def summary(self) -> dict[str, int]:
        """Return the account as it is told at the end."""
        verdicts: dict[str, int] = {verdict: self.total(verdict) for verdict in SETTLED}
        return {"received": self.received.total()} | verdicts | {"in_flight": self.in_flight}

    def outcomes(self) -> dict[str, int]:
        """Return how many documents had each outcome, whatever the action."""
        outcomes: Counter[str] = Counter()
        for (_, outcome), count in self.documents.items():
            outcomes[outcome] += count
        return dict(outcomes)

    def complete(self, trigger: str, items: int, size_bytes: int) -> None:
        """Count a batch that is complete."""
        self.batches[trigger] += 1
        self.batched[trigger] += items
        self.batch_items.observe(items)
        self.batch_bytes.observe(size_bytes)

    def work(self) -> dict[str, dict[str, int]]:
        """Return how the work was done, as it is told at the end."""
        return {
            "documents": self.outcomes(),
            "batches": dict(self.batches),
            "requests": dict(self.requests),
            "retries": dict(self.retries),
            "splits": dict(self.splits),
        }
