"""The counts that must add up: received = ack + delay + requeue + dead_letter + discard + stale + in flight."""

from __future__ import annotations

from collections import Counter
from typing import Literal

Settled = Literal["ack", "delay", "requeue", "dead_letter", "discard", "stale"]
SETTLED: tuple[Settled, ...] = ("ack", "delay", "requeue", "dead_letter", "discard", "stale")


class Account:
    """What came in and what became of it, and how the work was done.

    Attributes:
        received: messages, by queue.
        settled: messages, by queue and verdict.
        documents: items of bulk answers, by outcome.
        batches: completed batches, by what completed them.
        requests: bulk requests, by outcome.
        retries: messages that went again, by reason.
        splits: requests that were halved, by reason.
    """

    def __init__(self) -> None:
        self.received: Counter[str] = Counter()
        self.settled: Counter[tuple[str, Settled]] = Counter()
        self.documents: Counter[str] = Counter()
        self.batches: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.retries: Counter[str] = Counter()
        self.splits: Counter[str] = Counter()

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

    def work(self) -> dict[str, dict[str, int]]:
        """Return how the work was done, as it is told at the end."""
        return {
            "documents": dict(self.documents),
            "batches": dict(self.batches),
            "requests": dict(self.requests),
            "retries": dict(self.retries),
            "splits": dict(self.splits),
        }
