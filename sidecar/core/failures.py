"""What failed lately, by kind, and which lines of it a person can read: no I/O, no clock.

A broken mapping fails 100,000 messages for one reason. The first batches of a kind are told at once, one line each;
then one line for all that came within ten seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

WINDOW_SECONDS = 10.0
LINES_AT_ONCE = 3
_MOST_KINDS = 50


class Kind(NamedTuple):
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
class Line:
    """What is to be told now.

    Attributes:
        count: messages since the last line of the kind.
        over_seconds: the time in which they came; 0 for those of one batch.
    """

    kind: Kind
    count: int
    example_id: str
    detail: str
    over_seconds: float = 0.0


@dataclass(slots=True)
class Group:
    """The failures of a kind.

    Attributes:
        count: messages, ever.
        last_at: in seconds since 1970.
        example_id: the id of one of the last, as far as it is known.
        detail: a sentence about it, without document text.
    """

    kind: Kind
    count: int = 0
    last_at: float = 0.0
    example_id: str = ""
    detail: str = ""
    untold: int = 0
    lines: int = 0
    window_until: float = 0.0


class Failures:
    """The failures of each kind, and when they are told."""

    def __init__(self) -> None:
        self._groups: dict[Kind, Group] = {}

    def groups(self) -> list[Group]:
        """Return the groups, that of the latest failure first."""
        return sorted(self._groups.values(), key=lambda group: group.last_at, reverse=True)

    def note(self, kind: Kind, count: int, example_id: str, detail: str, *, now: float, wall: float) -> list[Line]:
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
            group = self._groups[kind] = Group(kind)
        group.count += count
        group.last_at, group.example_id, group.detail = wall, example_id, detail
        if now >= group.window_until and not group.untold:
            group.window_until, group.lines = now + WINDOW_SECONDS, 0
        if group.lines < LINES_AT_ONCE:
            group.lines += 1
            return [*lines, Line(kind, count, example_id, detail)]
        group.untold += count
        return lines

    def due(self) -> float | None:
        """Return when `take` has something to tell, in seconds of the loop's clock; None when nothing is left."""
        return min((group.window_until for group in self._groups.values() if group.untold), default=None)

    def take(self, now: float) -> list[Line]:
        """Return a line for each kind whose time has come; the next is ten seconds later, as long as it goes on."""
        lines = []
        for group in self._groups.values():
            if group.untold and now >= group.window_until:
                lines.append(_summary(group))
                group.window_until = now + WINDOW_SECONDS
        return lines

    def take_all(self) -> list[Line]:
        """Return a line for each kind that has something left to tell: the end is near."""
        return [_summary(group) for group in self._groups.values() if group.untold]

    def _make_room(self) -> list[Line]:
        """Forget the kind that hasn't come for longest, where there are too many; it is told first."""
        if len(self._groups) < _MOST_KINDS:
            return []
        oldest = min(self._groups.values(), key=lambda group: group.last_at)
        del self._groups[oldest.kind]
        return [_summary(oldest)] if oldest.untold else []


def _summary(group: Group) -> Line:
    line = Line(group.kind, group.untold, group.example_id, group.detail, WINDOW_SECONDS)
    group.untold = 0
    return line
