"""Days of messages that hold several documents. A failure names its seed: ``play_split(seed)`` plays it again."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.builders import THOROUGHNESS
from tests.simulation.runner import failures
from tests.simulation.splitting import SplitWorld, draw_split
from tests.simulation.trace import told
from tests.simulation.world import Played, World, play

DAYS = 80
LOOKED_FOR = {
    "dead: some of several", "dead: all", "dead: empty", "dead: broken", "dead: raises", "dead: true conflict",
    "conflict with itself", "conflict", "delayed: one of several", "delayed: alone",
}  # fmt: skip


def play_split(seed: int, *, telling: bool = False) -> tuple[Played, SplitWorld]:
    """Play the day of a seed; return what came of it, and its world."""
    worlds: list[SplitWorld] = []

    def world_of(*arguments: object, **options: object) -> World:
        worlds.append(SplitWorld(*arguments, **options))  # type: ignore[arg-type]
        return worlds[0]

    return play(draw_split(seed), telling=telling, world_of=world_of), worlds[0]


def test_no_day_of_documents_goes_wrong() -> None:
    """Each document is stored once or to blame, each message settled once by all of them, and nothing remains.

    What the rules speak of does happen on these days.
    """
    seen: Counter[str] = Counter()

    def play_and_look(seed: int) -> Played:
        played, world = play_split(seed)
        seen.update(world.judge.seen)
        return played

    assert not failures(play_and_look, range(DAYS))
    assert seen.keys() >= LOOKED_FOR


@pytest.mark.full
@pytest.mark.parametrize("block", range(20 * THOROUGHNESS))
def test_no_day_of_many_goes_wrong(block: int) -> None:
    """Two thousand days and more."""
    assert not failures(lambda seed: play_split(seed)[0], range(100 * block, 100 * (block + 1)))


def test_a_day_of_documents_repeats_itself() -> None:
    """The same seed gives the same story."""
    assert told(play_split(4, telling=True)[0]) == told(play_split(4, telling=True)[0])
