"""The guard: rejects in a row, counted by kind, before a request and after one."""

from __future__ import annotations

import sys

from sidecar.core.flow.reject_guard import ENCODED, Outcome, RejectGuard
from sidecar.core.wire.republish import Failure
from tests.builders import message

MISSING = Outcome("missing-field", "missing-field: the message has no header.tenant")
MALFORMED = Outcome("malformed", "malformed: the body is not JSON")


def letter(reason: str = "rejected", error_type: str = "") -> Failure:
    return Failure(message(), reason, "why", error_type=error_type)


def test_as_many_as_allowed_leave_before_a_request_and_no_more() -> None:
    """The room says how many may be encoded next, whatever becomes of them."""
    guard = RejectGuard(5)
    assert guard.room == 5
    guard.note([MISSING] * 3)
    assert guard.room == 2
    guard.note([MISSING] * 2)
    assert guard.room == 0
    assert not guard.may_leave(MISSING)


def test_a_message_that_was_encoded_ends_the_row() -> None:
    """It counts in the order of admission: what came before it doesn't matter any more."""
    guard = RejectGuard(5)
    guard.note([MISSING, MISSING, ENCODED, MISSING])
    assert guard.room == 4
    guard.note([MISSING, ENCODED])
    assert guard.room == 5
    assert not guard.counting


def test_each_kind_has_a_row_of_its_own() -> None:
    """The longest row leaves the room; another kind may still go, by itself."""
    guard = RejectGuard(3)
    guard.note([MISSING, MALFORMED, MISSING, MISSING])
    assert guard.room == 0
    assert guard.may_leave(MALFORMED)
    assert guard.may_leave(ENCODED)
    guard.let_one_go()
    assert guard.room == 1
    guard.note([MALFORMED])
    assert guard.room == 0


def test_a_full_row_that_is_released_counts_anew() -> None:
    """Releases are counted until a message was encoded: each needs one more message that can be."""
    guard = RejectGuard(2)
    for releases in (1, 2):
        guard.note([MISSING] * 2)
        guard.release()
        assert (guard.room, guard.releases) == (2, releases)
    guard.note([ENCODED])
    assert guard.releases == 0


def test_zero_lets_everything_go() -> None:
    """`SIDECAR_REJECT_GUARD=0`: off, at both places."""
    guard = RejectGuard(0)
    guard.note([MISSING] * 10)
    assert guard.room == sys.maxsize
    assert guard.may_leave(MISSING)
    letters = [letter()] * 10
    assert guard.split(letters) == (letters, [])


def test_what_answers_refuse_counts_until_something_is_stored() -> None:
    """By error type; by reason where there is none."""
    guard = RejectGuard(2)
    parsing, exhausted = letter(error_type="document_parsing_exception"), letter("retries-exhausted")
    assert guard.split([parsing, exhausted, parsing, parsing, exhausted]) == (
        [parsing, exhausted, parsing, exhausted],
        [parsing],
    )
    assert guard.refused(parsing) == 2
    guard.on_stored()
    assert guard.split([parsing]) == ([parsing], [])


def test_a_message_that_was_encoded_says_nothing_of_answers() -> None:
    """What can be encoded may still be refused, and what is stored may have been encoded long before."""
    guard = RejectGuard(2)
    guard.note([MISSING])
    guard.split([letter()])
    guard.note([ENCODED])
    assert guard.refused(letter()) == 1
    guard.note([MISSING])
    guard.on_stored()
    assert guard.room == 1


def test_a_limit_of_its_own_counts_in_the_same_row() -> None:
    """Messages for blocked targets go round the delay queue, with a limit that users don't set."""
    guard = RejectGuard(0)
    blocked = letter(error_type="cluster_block_exception")
    assert guard.split([blocked] * 3, 2) == ([blocked] * 2, [blocked])


def test_the_room_is_that_of_the_longest_row() -> None:
    """Rows of several kinds don't add up: each kind may be rejected as often as is allowed."""
    guard = RejectGuard(5)
    guard.note([Outcome("a"), Outcome("b"), Outcome("a"), Outcome("b"), Outcome("b")])
    assert guard.room == 2
