"""Random bad days. A failure names its seed; ``pytest -k 'bad_day and 137'`` plays that day again, exactly."""

from __future__ import annotations

import pytest

from tests.builders import examples
from tests.pipeline.chaos import BadDay
from tests.pipeline.world import World, play


def live_through(seed: int) -> World:
    """Play a day and return the world after it."""
    day = BadDay(seed)
    return play(day.world, day.pass_by)


@pytest.mark.parametrize("seed", range(examples(200)))
def test_nothing_is_lost_on_a_bad_day(seed: int) -> None:
    """Nothing lost, nothing acked unstored, no document twice with ids, order kept, the account adds up, all ends."""
    live_through(seed)


@pytest.mark.parametrize("seed", [1, 7, 42])
def test_a_day_repeats_itself_exactly(seed: int) -> None:
    """The same seed gives the same requests at the same times, and the same log: a failure can be looked at again."""
    first, second = live_through(seed), live_through(seed)
    assert first.elastic.requests == second.elastic.requests
    assert first.log.events == second.log.events
    assert first.pipeline.account.summary() == second.pipeline.account.summary()
