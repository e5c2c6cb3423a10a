"""Bad days of `sidecar dlq` from seeds. A failure names its seed."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.builders import THOROUGHNESS
from tests.simulation.dead_letters import FAULTS, METHODS, Command, Day, DeadLetter, draw, play

SEEDS_IN_A_TEST = 8


def _wrong(seeds: range) -> list[str]:
    return [f"seed {seed}: {problem}" for seed in seeds for problem in play(draw(seed))]


@pytest.mark.parametrize("block", range(4 * THOROUGHNESS))
def test_no_day_goes_wrong(block: int) -> None:
    """Nothing is lost, replayed twice, acked unconfirmed or out of order; figures and exit status are true."""
    seeds = range(block * SEEDS_IN_A_TEST, (block + 1) * SEEDS_IN_A_TEST)
    assert not (wrong := _wrong(seeds)), "\n".join(wrong)


@pytest.mark.full
@pytest.mark.parametrize("block", range(20))
def test_no_day_of_many_goes_wrong(block: int) -> None:
    """A thousand days."""
    assert not (wrong := _wrong(range(1000 + 50 * block, 1050 + 50 * block))), "\n".join(wrong)


def _day(command: Command, fault: str) -> Day:
    """Return a day with letters of several kinds, of which the first, one in the middle and the last are skipped."""
    queues = ("", "work", "other", "work", "gone", "work", "work", "full", "other", "work", "")
    letters = [
        DeadLetter(number, queue, "rejected", "mapper", "logs", 3 if number == 5 else 0, False, number == 6, 0)
        for number, queue in enumerate(queues)
    ]
    return Day(1, "quorum", letters, [command], [fault], window=3, at_once=2, arrivals=0, stolen=0)


@pytest.mark.parametrize("skip", [0, 1, 3])
@pytest.mark.parametrize("act", ["refuse", "end", "drop", "drop-after"])
@pytest.mark.parametrize("name", ["replay", "purge"])
def test_the_broker_may_fail_at_any_method(name: str, act: str, skip: int) -> None:
    """It refuses, closes the connection or dies, before or after it did what it was asked, at each step."""
    wrong = {method: play(_day(Command(name), f"{act}:{method}:{skip}")) for method in METHODS}
    assert not any(wrong.values()), wrong


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 6, 7])
def test_skipped_letters_leave_the_limit_to_others(limit: int) -> None:
    """Wherever they are: at the beginning, in the middle, in front of the last one."""
    assert not (wrong := play(_day(Command("replay", limit=limit), ""))), wrong


def test_a_day_repeats_itself() -> None:
    """The same seed gives the same day, so that a failure can be looked at again."""
    for seed in (3, 11):
        assert draw(seed) == draw(seed)
        assert play(draw(seed)) == play(draw(seed))


def test_days_have_everything_that_can_go_wrong() -> None:
    """In the seeds that are played here: each fault, and each command with each of its options."""
    days: list[Day] = [draw(seed) for seed in range(4 * SEEDS_IN_A_TEST, 1000)]
    faults = Counter(fault for day in days for fault in day.faults)
    assert all(faults[fault] > 10 for fault in FAULTS)
    words = Counter(word for day in days for command in day.commands for word in command.line)
    options = (
        "--reason",
        "--error-type",
        "--index",
        "--id",
        "--limit",
        "--max-replays",
        "--rate",
        "--dry-run",
        "--yes",
    )
    assert all(words[word] > 10 for word in ("list", "show", "replay", "purge", *options))
