"""What failed lately, by kind, and which lines of it a person can read: no I/O, no clock.

A broken mapping fails 100,000 messages for one reason. The first batches of a kind are told at once, one line each;
then one line for all that came within ten seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

WINDOW_SECONDS = 10.0
LINES_AT_ONCE = 3
_MAX_KINDS = 50


class FailureKind(NamedTuple):
    """What failures have in common.

    Attributes:
        verdict: what became of the messages: ``dead_letter``, ``delay``, ``discard`` or ``ack``.
        reason: as in the header ``sidecar-reason``.
        error_type: Elasticsearch's; empty where it was never asked.
    """

    verdict: str
    reason: str
    error_type: str


@dataclass(frozen=True, slots=True)
class LogLine:
    """What is to be told now.

    Attributes:
        count: messages since the last line of the kind.
        over_seconds: the time in which they came; 0 for those of one batch.
    """

    kind: FailureKind
    count: int
    example_id: str
    detail: str
    over_seconds: float = 0.0


@dataclass(slots=True)
class FailureGroup:
    """The failures of a kind.

    Attributes:
        count: messages, ever.
        last_at: in seconds since 1970.
        example_id: the id of one of the last, as far as it is known.
        detail: a sentence about it, without document text.
    """

    kind: FailureKind
    count: int = 0
    last_at: float = 0.0
    example_id: str = ""
    detail: str = ""
    unlogged: int = 0
    lines: int = 0
    window_until: float = 0.0


class FailureThrottle:
    """The failures of each kind, and when they are told."""

    def __init__(self) -> None:
        self._groups: dict[FailureKind, FailureGroup] = {}

    def groups(self) -> list[FailureGroup]:
        """Return the groups, that of the latest failure first."""
        return sorted(self._groups.values(), key=lambda group: group.last_at, reverse=True)

    def note(
        self, kind: FailureKind, count: int, example_id: str, detail: str, *, now: float, wall: float
    ) -> list[LogLine]:
        """Note messages of one batch; return what is to be told at once.

        Args:
            kind: of all of them.
            count: how many they are.
            example_id: the id of one of them.
            detail: a sentence about it.
            now: in seconds of the loop's clock.
            wall: in seconds since 1970.
        """
        lines = []
        group = self._groups.get(kind)
        if group is None:
            lines = self._make_room()
            group = self._groups[kind] = FailureGroup(kind)
        group.count += count
        group.last_at, group.example_id, group.detail = wall, example_id, detail
        if now >= group.window_until and not group.unlogged:
            group.window_until, group.lines = now + WINDOW_SECONDS, 0
        if group.lines < LINES_AT_ONCE:
            group.lines += 1
            return [*lines, LogLine(kind, count, example_id, detail)]
        group.unlogged += count
        return lines

    def due(self) -> float | None:
        """Return when `take` has something to tell, in seconds of the loop's clock; None when nothing is left."""
        return min((group.window_until for group in self._groups.values() if group.unlogged), default=None)

    def take(self, now: float) -> list[LogLine]:
        """Return a line for each kind whose time has come; the next is ten seconds later, as long as it goes on."""
        lines = []
        for group in self._groups.values():
            if group.unlogged and now >= group.window_until:
                lines.append(_summary(group))
                group.window_until = now + WINDOW_SECONDS
        return lines

    def take_all(self) -> list[LogLine]:
        """Return a line for each kind that has something left to tell: the end is near."""
        return [_summary(group) for group in self._groups.values() if group.unlogged]

    def _make_room(self) -> list[LogLine]:
        """Forget the kind that hasn't come for longest, where there are too many; it is told first."""
        if len(self._groups) < _MAX_KINDS:
            return []
        oldest = min(self._groups.values(), key=lambda group: group.last_at)
        del self._groups[oldest.kind]
        return [_summary(oldest)] if oldest.unlogged else []


def _summary(group: FailureGroup) -> LogLine:
    line = LogLine(group.kind, group.unlogged, group.example_id, group.detail, WINDOW_SECONDS)
    group.unlogged = 0
    return line
