"""Counts of values by their size: one for each batch or request, never for each message."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)
ITEMS = (1.0, 10.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10_000.0, 50_000.0)
BYTES = tuple(float(1024 * 4**power) for power in range(9))
"""Bounds: of times, of messages in a batch, and of bytes (1 KiB to 64 MiB)."""
_RECENT = 256


class Histogram:
    """Values, counted in buckets.

    Args:
        bounds: the upper ends of the buckets, each included in its own; what is above the last has one more.

    Attributes:
        bounds: the same.
        counts: values in each bucket.
        total: the sum of all values.
    """

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self._recent: deque[float] = deque(maxlen=_RECENT)

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value
        self._recent.append(value)

    @property
    def count(self) -> int:
        """How many values there were, ever."""
        return sum(self.counts)

    def recent(self, *shares: float) -> list[float] | None:
        """Return those of the last 256 values that so large a share of them doesn't exceed; None without any."""
        values = sorted(self._recent)
        if not values:
            return None
        return [values[min(len(values) - 1, int(share * len(values)))] for share in shares]
