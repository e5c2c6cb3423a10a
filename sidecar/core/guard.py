"""Counts rejects in a row: too many of one kind are a hold, or one cause would empty a queue into the dead letters.

There are two rows, because a message may be rejected at two places. A reject before the request counts until a later
message can be encoded; a reject by the answer to a request counts until a document is stored. Encoding runs ahead of
storing by up to a whole prefetch, so only messages that were encoded can end a row of rejects before the request.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sidecar.core.copies import Letter


class Outcome(NamedTuple):
    """What encoding a message came to.

    Attributes:
        kind: of the reject; empty if the message was encoded.
        detail: of the reject: a sentence for people, without document text.
    """

    kind: str = ""
    detail: str = ""


ENCODED = Outcome()


def kind_of(reason: str, error_type: str) -> str:
    """Return the kind of a reject: its error type, or its reason if it has none."""
    return error_type or reason


class RejectGuard:
    """Counts rejects in a row by their kind, and says which are too many.

    Args:
        most: rejects of one kind in a row that may leave; 0: any number.

    Attributes:
        releases: how often a row was full, and more rejects were let go all the same, since a message was encoded.
    """

    def __init__(self, most: int) -> None:
        self.releases = 0
        self._most = most
        self._unencoded: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._one_more = False

    # Before a request ------------------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """How many messages may be encoded next, so that no row becomes too long; 0: the next one must wait."""
        if not self._unencoded or not self._most:
            return self._most or sys.maxsize
        return max(self._most - max(self._unencoded.values()), int(self._one_more))

    @property
    def counting(self) -> bool:
        """Whether a row of rejects before the request is open."""
        return bool(self._unencoded)

    def note(self, outcomes: Iterable[Outcome]) -> None:
        """Note what encoding messages came to, in the order of their admission."""
        self._one_more = False
        for outcome in outcomes:
            if outcome.kind:
                self._unencoded[outcome.kind] += 1
            else:
                self._unencoded.clear()
                self.releases = 0

    def may_leave(self, outcome: Outcome) -> bool:
        """Whether a message with this outcome may go on: it was encoded, or its kind has room in the row."""
        return not outcome.kind or not self._most or self._unencoded[outcome.kind] < self._most

    def let_one_go(self) -> None:
        """Allow one message: it is known not to make a row too long."""
        self._one_more = True

    def release(self) -> None:
        """Begin the row anew: messages that can be encoded wait behind the rejects."""
        self._unencoded.clear()
        self.releases += 1

    # After a request -------------------------------------------------------------------------------------------------

    def stored(self) -> None:
        """Note that something was stored: it ends the row of what answers refuse."""
        self._refused.clear()

    def split(self, letters: list[Letter], most: int | None = None) -> tuple[list[Letter], list[Letter]]:
        """Split what an answer refused into what may leave and what may not, since too many of its kind came in a row.

        Args:
            letters: of what was refused.
            most: another limit than that for rejects; 0: any number.
        """
        most = self._most if most is None else most
        passed: list[Letter] = []
        guarded: list[Letter] = []
        for letter in letters:
            kind = kind_of(letter.reason, letter.error_type)
            if most and self._refused[kind] >= most:
                guarded.append(letter)
            else:
                self._refused[kind] += 1
                passed.append(letter)
        return passed, guarded

    def refused(self, letter: Letter) -> int:
        """Return how many of the kind of `letter` were refused in a row."""
        return self._refused[kind_of(letter.reason, letter.error_type)]
