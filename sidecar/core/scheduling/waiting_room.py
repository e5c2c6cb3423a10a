"""Limits the messages that wait in place for their target: no I/O, no clock.

A message whose target is blocked waits unacknowledged if its delay queue refuses messages. With all messages that wait
behind it for the same document it occupies prefetch and memory, and other messages need a share of both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sidecar.core.message import Message


class WaitingRoom:
    """The messages that wait in place.

    Args:
        max_messages: that may wait, including those behind them.
        max_bytes: that they may hold, without those behind them.
    """

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._messages = self._bytes = 0
        self._waiting: dict[Message, tuple[int, int]] = {}  # how many deliveries each keeps open, and its bytes

    def __len__(self) -> int:
        """Return how many messages wait, without those behind them."""
        return len(self._waiting)

    def admit(self, message: Message) -> bool:
        """Whether a message may start or continue to wait; if not, it is removed."""
        self.leave([message])
        count, size_bytes = self._weight(message), message.memory_bytes
        if self._messages + count > self._max_messages or self._bytes + size_bytes > self._max_bytes:
            return False
        self._waiting[message] = count, size_bytes
        self._messages += count
        self._bytes += size_bytes
        return True

    def leave(self, messages: Iterable[Message]) -> None:
        """Remove messages that no longer wait; others are ignored."""
        if not self._waiting:
            return
        for message in messages:
            count, size_bytes = self._waiting.pop(message, (0, 0))
            self._messages -= count
            self._bytes -= size_bytes

    def drop_closed(self) -> None:
        """Forget messages whose epoch is over."""
        self.leave([message for message in self._waiting if message.ledger.closed])

    def _weight(self, message: Message) -> int:
        """Return how many deliveries a message keeps open: its own, those coalesced into it, and those behind it."""
        count = 0
        at: Message | None = message
        while at is not None and count <= self._max_messages:
            count += 1 + (len(at.coalesced.messages) if at.coalesced is not None else 0)
            at = at.next_for_document
        return count
