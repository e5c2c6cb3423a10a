"""Room for messages that wait in place for their target: no I/O, no clock.

A message whose target takes nothing waits unacknowledged if no delay queue takes it. It takes up prefetch and memory
then, and with it all that waits behind it on the same document. Others have to have room beside them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sidecar.core.message import Message


class WaitingRoom:
    """The messages that wait in place.

    Args:
        most_messages: that may wait, with those behind them.
        most_bytes: that they may hold, without those behind them.
    """

    def __init__(self, most_messages: int, most_bytes: int) -> None:
        self._most_messages = most_messages
        self._most_bytes = most_bytes
        self._messages = self._bytes = 0
        self._waiting: dict[Message, tuple[int, int]] = {}  # how many deliveries each keeps open, and its bytes

    def __len__(self) -> int:
        """Return how many messages wait, without those behind them."""
        return len(self._waiting)

    def admit(self, message: Message) -> bool:
        """Whether a message may wait, or wait on; if not, it leaves."""
        self.leave([message])
        count, size_bytes = self._weight(message), message.held_bytes
        if self._messages + count > self._most_messages or self._bytes + size_bytes > self._most_bytes:
            return False
        self._waiting[message] = count, size_bytes
        self._messages += count
        self._bytes += size_bytes
        return True

    def leave(self, messages: Iterable[Message]) -> None:
        """Note that messages don't wait any more, if they did."""
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
        """Return how many deliveries a message keeps open: itself, those that it covers, and those behind it."""
        count = 0
        at: Message | None = message
        while at is not None and count <= self._most_messages:
            count += 1 + (len(at.cover.messages) if at.cover is not None else 0)
            at = at.follower
        return count
