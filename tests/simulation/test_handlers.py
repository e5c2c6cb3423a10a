"""Days of the library's consumers. A failure names its seed: ``play_handlers(seed)`` plays it again."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.builders import THOROUGHNESS
from tests.simulation.handlers import play_handlers
from tests.simulation.runner import failures
from tests.simulation.trace import told

if TYPE_CHECKING:
    from tests.simulation.world import Played

DAYS = 60
LOOKED_FOR = {
    "ack", "dead-letter", "delay", "requeue", "discard", "raise", "cancel", "none", "short", "long", "hang",
    "requeued", "dead: reason", "dead: exception", "dead: no", "dead: retries",
}  # fmt: skip


def test_no_day_of_a_consumer_goes_wrong() -> None:
    """Each message ends by the verdict of its position or by a default, once, and every ending is a drain.

    What the rules speak of does happen on these days.
    """
    seen: Counter[str] = Counter()

    def play_and_look(seed: int) -> Played:
        played, world = play_handlers(seed)
        seen.update(world.judge.seen)
        return played

    assert not failures(play_and_look, range(DAYS))
    assert seen.keys() >= LOOKED_FOR


@pytest.mark.full
@pytest.mark.parametrize("block", range(20 * THOROUGHNESS))
def test_no_day_of_many_consumers_goes_wrong(block: int) -> None:
    """Two thousand days and more."""
    assert not failures(lambda seed: play_handlers(seed)[0], range(100 * block, 100 * (block + 1)))


def test_a_day_of_a_consumer_repeats_itself() -> None:
    """The same seed gives the same story."""
    assert told(play_handlers(4, telling=True)[0]) == told(play_handlers(4, telling=True)[0])
