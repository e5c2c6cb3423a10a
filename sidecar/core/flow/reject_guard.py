"""Counts rejects in a row. Too many of one kind start a hold, so that no cause empties a queue into the dead letters.

There are two counts, because a message can be rejected at two stages. A reject before the request counts until a later
message can be encoded; a reject by the answer to a request counts until a document is stored. Encoding runs ahead of
storing by up to a whole prefetch, so only an encoded message ends a row of rejects before the request.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sidecar.core.wire.republish import Failure


class Outcome(NamedTuple):
    """The result of encoding a message.

    Attributes:
        kind: of the reject; empty if the message was encoded.
        detail: why it was rejected, in a sentence without document text.
    """

    kind: str = ""
    detail: str = ""


ENCODED = Outcome()


def kind_of(reason: str, error_type: str) -> str:
    """Return the kind of a reject: its error type, or its reason if it has none."""
    return error_type or reason


class RejectGuard:
    """Counts rejects in a row by kind, and decides which exceed the limit.

    Args:
        max_rejects: of one kind in a row that may leave; 0: any number.

    Attributes:
        releases: how often a full row was started anew because a message behind it could be encoded.
    """

    def __init__(self, max_rejects: int) -> None:
        self.releases = 0
        self._max_rejects = max_rejects
        self._unencoded: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._one_more = False

    # Before a request ------------------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """How many messages may be encoded next without exceeding the limit; 0: the next one must wait."""
        if not self._unencoded or not self._max_rejects:
            return self._max_rejects or sys.maxsize
        return max(self._max_rejects - max(self._unencoded.values()), int(self._one_more))

    @property
    def counting(self) -> bool:
        """Whether a row of rejects before the request is open."""
        return bool(self._unencoded)

    def note(self, outcomes: Iterable[Outcome]) -> None:
        """Count the results of encoding messages, in the order of their admission."""
        self._one_more = False
        for outcome in outcomes:
            if outcome.kind:
                self._unencoded[outcome.kind] += 1
            else:
                self._unencoded.clear()
                self.releases = 0

    def may_leave(self, outcome: Outcome) -> bool:
        """Whether a message with this outcome may go on: it was encoded, or its kind has room in the row."""
        return not outcome.kind or not self._max_rejects or self._unencoded[outcome.kind] < self._max_rejects

    def let_one_go(self) -> None:
        """Allow one message that is known not to exceed the limit."""
        self._one_more = True

    def release(self) -> None:
        """Start the row again: messages that can be encoded wait behind the rejects."""
        self._unencoded.clear()
        self.releases += 1

    # After a request -------------------------------------------------------------------------------------------------

    def on_stored(self) -> None:
        """Note that a document was stored, which ends the row of rejects by answers."""
        self._refused.clear()

    def split(self, failures: list[Failure], limit: int | None = None) -> tuple[list[Failure], list[Failure]]:
        """Split the rejects of an answer into those that may leave and those beyond the limit of their kind.

        Args:
            failures: of the rejected messages.
            limit: instead of the limit for rejects; 0: any number.
        """
        limit = self._max_rejects if limit is None else limit
        passed: list[Failure] = []
        guarded: list[Failure] = []
        for failure in failures:
            kind = kind_of(failure.reason, failure.error_type)
            if limit and self._refused[kind] >= limit:
                guarded.append(failure)
            else:
                self._refused[kind] += 1
                passed.append(failure)
        return passed, guarded

    def refused(self, failure: Failure) -> int:
        """Return how many rejects of the same kind came in a row."""
        return self._refused[kind_of(failure.reason, failure.error_type)]
