"""`sidecar.core.stats.failures`: lines that a person can read, whatever the storm."""

from __future__ import annotations

import pytest

from sidecar.core.stats.failures import LINES_AT_ONCE, WINDOW_SECONDS, FailureKind, FailureThrottle, LogLine

BROKEN = FailureKind("dead_letter", "rejected", "document_parsing_exception")
OTHER = FailureKind("dead_letter", "malformed", "")


def note(
    failures: FailureThrottle, count: int, now: float, kind: FailureKind = BROKEN, document_id: str = "x"
) -> list[LogLine]:
    """Note failures of one batch."""
    return failures.note(kind, count, document_id, "why", now=now, wall=1_700_000_000.0 + now)


def test_the_first_batches_are_told_at_once_and_a_storm_in_summaries() -> None:
    """100,000 rejects in 1,000 batches of ten for 25 s: five lines, and no reject that isn't in one of them."""
    failures = FailureThrottle()
    lines: list[LogLine] = []
    for batch in range(1_000):
        now = batch * 0.025
        due = failures.due()
        if due is not None and due <= now:
            lines += failures.take(now)
        lines += note(failures, 100, now)
    lines += failures.take_all()
    assert sum(line.count for line in lines) == 100_000
    assert len(lines) == LINES_AT_ONCE + 3
    assert [line.over_seconds for line in lines] == [0.0] * LINES_AT_ONCE + [WINDOW_SECONDS] * 3
    assert failures.due() is None


def test_each_kind_has_lines_of_its_own() -> None:
    """A storm of one doesn't hide the first of another."""
    failures = FailureThrottle()
    for _ in range(10):
        note(failures, 5, 0.0)
    assert note(failures, 1, 0.1, OTHER) == [LogLine(OTHER, 1, "x", "why")]


def test_after_a_quiet_time_the_next_is_told_at_once() -> None:
    """What comes now and then is told each time."""
    failures = FailureThrottle()
    for at in range(20):
        assert len(note(failures, 1, at * (WINDOW_SECONDS + 0.1))) == 1


def test_nothing_waits_longer_than_a_window() -> None:
    """What was kept back is told when the window ends, also where nothing more comes."""
    failures = FailureThrottle()
    for _ in range(LINES_AT_ONCE):
        note(failures, 1, 0.0)
    assert failures.due() is None
    assert note(failures, 7, 1.0, document_id="late") == []
    assert failures.due() == WINDOW_SECONDS
    assert failures.take(WINDOW_SECONDS - 0.1) == []
    (line,) = failures.take(WINDOW_SECONDS)
    assert (line.count, line.example_id, line.over_seconds) == (7, "late", WINDOW_SECONDS)
    assert failures.take_all() == []


def test_groups_tell_the_latest_first() -> None:
    """With the count of all, the time and an id of the last."""
    failures = FailureThrottle()
    note(failures, 2, 0.0, document_id="a")
    note(failures, 3, 1.0, OTHER)
    note(failures, 4, 2.0, document_id="b")
    first, second = failures.groups()
    assert (first.kind, first.count, first.example_id, first.last_at) == (BROKEN, 6, "b", 1_700_000_002.0)
    assert (second.kind, second.count) == (OTHER, 3)


@pytest.mark.parametrize("per_kind", [1, 10])
def test_kinds_are_bounded_and_none_is_lost_untold(per_kind: int) -> None:
    """Whatever types there are: memory has a bound, and every failure is in a line."""
    failures = FailureThrottle()
    lines: list[LogLine] = []
    for number in range(500):
        for _ in range(per_kind):
            lines += note(failures, 1, float(number), FailureKind("dead_letter", "rejected", f"type-{number}"))
    lines += failures.take_all()
    assert len(failures.groups()) == 50
    assert sum(line.count for line in lines) == 500 * per_kind


def test_an_example_belongs_to_its_own_kind_and_a_summary_to_its_own_window() -> None:
    """Two kinds whose storms overlap: each has its counts, its last example, and its own end of the window."""
    failures = FailureThrottle()
    for at in range(LINES_AT_ONCE):
        note(failures, 1, float(at), document_id=f"broken-{at}")
        note(failures, 2, 4.0 + at, OTHER, document_id=f"other-{at}")
    for at, (kind, document_id) in enumerate([(BROKEN, "b"), (OTHER, "o"), (BROKEN, "b-last"), (OTHER, "o-last")]):
        failures.note(kind, 10 + at, document_id, f"why {document_id}", now=7.0 + at / 10, wall=0.0)
    assert failures.due() == WINDOW_SECONDS
    assert failures.take(WINDOW_SECONDS) == [LogLine(BROKEN, 10 + 12, "b-last", "why b-last", WINDOW_SECONDS)]
    assert failures.due() == 4.0 + WINDOW_SECONDS
    note(failures, 5, 11.0, document_id="b-again")
    assert failures.take(4.0 + WINDOW_SECONDS) == [LogLine(OTHER, 11 + 13, "o-last", "why o-last", WINDOW_SECONDS)]
    assert failures.due() == 2 * WINDOW_SECONDS, "ten seconds after the last line of the kind"
    assert failures.take(2 * WINDOW_SECONDS) == [LogLine(BROKEN, 5, "b-again", "why", WINDOW_SECONDS)]
    assert failures.due() is None
    assert [(group.kind, group.count) for group in failures.groups()] == [
        (BROKEN, LINES_AT_ONCE + 22 + 5), (OTHER, 2 * LINES_AT_ONCE + 24)
    ]  # fmt: skip


def test_after_a_storm_the_first_lines_of_the_next_are_told_at_once_again() -> None:
    """The window that a summary begins must pass without a failure."""
    failures = FailureThrottle()
    for _ in range(LINES_AT_ONCE + 1):
        note(failures, 1, 0.0)
    assert len(failures.take(WINDOW_SECONDS)) == 1
    assert note(failures, 1, 2 * WINDOW_SECONDS - 0.1) == [], "within the window of the summary"
    assert len(failures.take(2 * WINDOW_SECONDS)) == 1
    assert [len(note(failures, 1, 3 * WINDOW_SECONDS + at)) for at in range(LINES_AT_ONCE + 1)] == [1, 1, 1, 0]


def test_the_kind_that_is_forgotten_is_the_one_that_has_not_come_for_longest() -> None:
    """Not the first that ever came, nor the rarest."""
    failures = FailureThrottle()
    kinds = [FailureKind("dead_letter", "rejected", f"type-{number}") for number in range(51)]
    for at, kind in enumerate(kinds[:50]):
        note(failures, 9 if at == 1 else 1, float(at), kind)
    note(failures, 1, 60.0, kinds[0])
    note(failures, 1, 61.0, kinds[50])
    kept = {group.kind for group in failures.groups()}
    assert kinds[0] in kept
    assert kinds[1] not in kept
    assert len(kept) == 50
