"""Days of forwarding. A failure names its seed; ``python -m tests.simulation --kind forwarding --seed N`` tells it."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

import pytest

from tests.builders import THOROUGHNESS
from tests.simulation.forwarding import play_forwarding
from tests.simulation.forwarding_mutants import PLANTED
from tests.simulation.forwarding_scenario import FAR_FAULTS, NEAR_FAULTS, ForwardingDay, draw_forwarding
from tests.simulation.runner import failures
from tests.simulation.shrink import shrink
from tests.simulation.trace import told

DAYS_IN_A_TEST = 20
TESTS = 2 * THOROUGHNESS
MOST_SEEDS = 600
QUICK = ("too-large-shifts-verdicts", "multiple-is-single", "still-says-gzip", "tokens-are-kept")


@pytest.mark.parametrize("block", range(TESTS))
def test_no_day_of_forwarding_goes_wrong(block: int) -> None:
    """Nothing lost, acked unpublished, blamed for a neighbour, changed, out of order, stuck or left open."""
    seeds = range(block * DAYS_IN_A_TEST, (block + 1) * DAYS_IN_A_TEST)
    assert not (wrong := failures(lambda seed: play_forwarding(draw_forwarding(seed)), seeds)), "\n".join(wrong)


@pytest.mark.full
def test_days_of_forwarding_are_not_hollow() -> None:
    """Every kind of fault is drawn, and what the rules speak of does happen."""
    looked_for = (
        "in nowhere", "in refused", "is killed", "closes the channel", "copy of", "in work.delay.", "reason=too-large",
        "reason=malformed", "reason=missing-field", "reason=unroutable", "reason=retries-exhausted",
        "takes no messages for now", "unconfirmed", "connection lost before what was confirmed was safe",
        "no exchange 'far'", "Connect call failed", "amqp.given_back", "sink.throttled", "sink.resumed",
    )  # fmt: skip
    faults: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    missing = ["everything"]
    for seed in range(1_000):
        day = draw_forwarding(seed)
        faults.update(fault.kind for fault in day.faults)
        for _, _, what in play_forwarding(day, telling=True).trace:
            seen.update(phrase for phrase in looked_for if phrase in what)
        missing = [kind for kind in (*FAR_FAULTS, *NEAR_FAULTS) if not faults[kind]]
        missing += [phrase for phrase in looked_for if not seen[phrase]]
        if not missing:
            break
    assert not missing


def test_a_day_of_forwarding_repeats_itself_and_survives_being_written_down() -> None:
    """Told or not, and from its plan as JSON."""
    for seed in (3, 36, 60, 99):
        day = draw_forwarding(seed)
        assert ForwardingDay.from_json(day.as_json()) == day
        silent, telling, again = (play_forwarding(day, telling=some) for some in (False, True, True))
        assert (silent.seconds, silent.requests) == (telling.seconds, telling.requests)
        assert telling.trace == again.trace


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.full) for name in PLANTED]
)
def test_a_bug_that_is_planted_into_forwarding_is_found(name: str) -> None:
    """Each within some hundred days; those that pass without it are the same."""
    logger = logging.getLogger(asyncio.__name__)
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with PLANTED[name].plant():
            for seed in range(MOST_SEEDS):
                found = play_forwarding(draw_forwarding(seed)).discrepancy
                if found is not None:
                    print(f"{name}: after {seed + 1} seeds, {str(found)[:160]}")
                    return
    finally:
        logger.setLevel(before)
    pytest.fail(f"not found in {MOST_SEEDS} days: {PLANTED[name].breaks}")


def test_a_failing_day_of_forwarding_is_made_small_and_told() -> None:
    """What a person gets to read of a failure is a few messages, no fault that doesn't matter, and a trace."""
    with PLANTED["too-large-shifts-verdicts"].plant():
        day = next(day for day in map(draw_forwarding, range(200)) if play_forwarding(day).discrepancy is not None)
        found = play_forwarding(day).discrepancy
        assert found is not None
        small = shrink(day, found.rule, play=play_forwarding)  # type: ignore[type-var]
        story = told(play_forwarding(small, telling=True))  # type: ignore[arg-type]
    assert len(small.messages) <= 5
    assert not small.faults
    assert "DISCREPANCY" in story
