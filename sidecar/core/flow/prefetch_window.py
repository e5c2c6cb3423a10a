"""How much the broker may send: the memory limit, and the prefetch that fits into it.

A prefetch counts messages and memory counts bytes, so the mean size of what came says what the next consumer may ask
for; what comes all the same is stopped at the socket, by whoever reads `Window.full`.
"""

from __future__ import annotations

MESSAGE_BYTES = 1024
"""What the objects of a message take besides its bytes, as measured under CPython 3.11, rounded up."""
_ROOM_SHARE = 0.5
_GROWTH = 4
_MIN_ITEMS = 10
"""With a batch of one, an item that Elasticsearch doesn't survive would be alone, and look like an outage."""
_MEMORY_OF_MEAN = 1000  # messages


class PrefetchWindow:
    """The bounds of what is held at once.

    Args:
        limit_bytes: of all messages held.
        max_items: the prefetch as configured.
        batch_items: a full batch: the window after a hold.
    """

    def __init__(self, limit_bytes: int, max_items: int, batch_items: int) -> None:
        self._limit_bytes = limit_bytes
        self._max_items = max_items
        self._batch_items = batch_items
        self._allowed_items = max_items
        self._mean_bytes = 0.0

    def observe(self, items: int, size_bytes: int) -> None:
        """Learn from messages that came: how large they are, in the mean."""
        mean = size_bytes / items
        # The first chunk is all there is to know; later ones count as much as the messages that they bring.
        weight = min(1.0, items / _MEMORY_OF_MEAN) if self._mean_bytes else 1.0
        self._mean_bytes += (mean - self._mean_bytes) * weight

    def full(self, held_bytes: int, held_items: int) -> bool:
        """Whether nothing more may come in now. One message always may, however large it is."""
        return held_items > 0 and held_bytes + held_items * MESSAGE_BYTES >= self._limit_bytes

    def room_bytes(self, held_bytes: int, held_items: int) -> int:
        """Return how much more may be held."""
        return max(0, self._limit_bytes - held_bytes - held_items * MESSAGE_BYTES)

    def has_headroom(self, held_bytes: int, held_items: int) -> bool:
        """Whether so much was settled that it is worth while to go on: not after each single message."""
        return held_bytes + held_items * MESSAGE_BYTES <= self._limit_bytes * _ROOM_SHARE

    def shrink(self) -> None:
        """Allow one batch only: what comes after a hold comes carefully."""
        self._allowed_items = min(max(self._batch_items, _MIN_ITEMS), self._max_items)

    def grow(self) -> None:
        """Allow more, up to what is configured."""
        self._allowed_items = min(self._max_items, self._allowed_items * _GROWTH)

    def should_grow(self, prefetch: int, held_bytes: int, held_items: int) -> bool:
        """Whether a new consumer could have so much more than `prefetch` that it is worth the change."""
        wanted = self.prefetch(held_bytes, held_items)
        return wanted >= 2 * prefetch or prefetch < wanted == self._max_items

    def prefetch(self, held_bytes: int, held_items: int) -> int:
        """Return how many more messages the broker may send to a new consumer, so that all fits into the limit."""
        if not self._mean_bytes:
            return self._allowed_items
        room = self._limit_bytes - held_bytes - held_items * MESSAGE_BYTES
        return max(1, min(self._allowed_items, int(room / (self._mean_bytes + MESSAGE_BYTES))))
