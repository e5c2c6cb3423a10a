"""What is remembered of items that were refused alone."""

from __future__ import annotations

import pytest

from sidecar.core.ledger import Ledger
from sidecar.core.message import Message
from sidecar.core.results.suspects import MAX_SUSPECTS, Suspects


def refused(body: bytes, *, line: bytes = b"{}\n", redelivered: bool) -> Message:
    """Return a message that was refused."""
    message = Message(Ledger("q", 1), 1, int(redelivered), b"\0\0", b"\0\0", body, len(body))
    message.action_line = line
    return message


def test_a_suspicion_outlasts_the_delivery() -> None:
    """What comes again is under suspicion since it was refused first."""
    suspects = Suspects()
    assert suspects.since(refused(b"x", redelivered=False), 3.0) == 3.0
    assert suspects.since(refused(b"x", redelivered=True), 50.0) == 3.0
    assert suspects.since(refused(b"x", redelivered=True), 90.0) == 3.0


def test_a_message_that_comes_for_the_first_time_is_not_one_that_was_here() -> None:
    """However alike they are: its own trial begins now."""
    suspects = Suspects()
    suspects.since(refused(b"x", redelivered=False), 3.0)
    assert suspects.since(refused(b"x", redelivered=False), 50.0) == 50.0
    assert suspects.since(refused(b"x", redelivered=True), 90.0) == 50.0


@pytest.mark.parametrize(("body", "line"), [(b"y", b"{}\n"), (b"x", b'{"_id":"y"}\n')])
def test_another_operation_is_another_suspect(body: bytes, line: bytes) -> None:
    """Document and action line tell them apart."""
    suspects = Suspects()
    suspects.since(refused(b"x", redelivered=True), 3.0)
    assert suspects.since(refused(body, line=line, redelivered=True), 50.0) == 50.0


def test_the_memory_has_a_bound_and_forgets_what_failed_longest_ago() -> None:
    """Each failure makes a suspect the newest again."""
    suspects = Suspects()
    for number in range(MAX_SUSPECTS):
        suspects.since(refused(b"%d" % number, redelivered=True), float(number))
    assert suspects.since(refused(b"0", redelivered=True), 200.0) == 0.0
    suspects.since(refused(b"one more", redelivered=True), 200.0)
    assert suspects.since(refused(b"0", redelivered=True), 300.0) == 0.0
    assert suspects.since(refused(b"2", redelivered=True), 300.0) == 2.0
    assert suspects.since(refused(b"1", redelivered=True), 300.0) == 300.0
