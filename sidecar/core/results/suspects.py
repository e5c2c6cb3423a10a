"""What was refused alone, remembered until it comes again: the proof against an item may outlast its delivery.

An item that spoils its request is blamed when it fails alone and another request has succeeded since. Where the others
are rare, a hold may be given up before one comes; without a memory the same trial would begin anew at each delivery,
until the broker drops the message for having come back too often.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidecar.core.message import Message

MAX_SUSPECTS = 100
"""Beyond that the oldest is forgotten, and tried anew."""


class Suspects:
    """When each of the messages that were refused alone was suspected first."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}  # by hash: no document is kept

    def since(self, message: Message, suspect_since: float) -> float:
        """Return since when a message is under suspicion, at this delivery or an earlier one, and remember it.

        Args:
            message: it was refused alone.
            suspect_since: since when at this delivery, in seconds of the loop's clock.
        """
        name = hash((message.action_line, message.source))
        before = self._since.pop(name, suspect_since)
        # A message that was never here before only looks like one that was.
        since = min(before, suspect_since) if message.redelivered else suspect_since
        self._since[name] = since
        if len(self._since) > MAX_SUSPECTS:
            del self._since[next(iter(self._since))]
        return since
