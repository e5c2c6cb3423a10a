"""Bugs that are planted into the product: a simulation that doesn't find them would be worth nothing."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.simulation.mutants import PLANTED, Planted
from tests.simulation.scenario import draw
from tests.simulation.world import play

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_SEEDS = 2_000
QUICK = ("multiple-over-a-hole", "no-order", "acked-before-the-confirm", "throttled-is-rejected")


@pytest.fixture
def quiet() -> Iterator[None]:
    """Broken programs leave broken tasks behind; asyncio needn't tell."""
    logger = logging.getLogger(asyncio.__name__)
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(before)


def seeds_until_found(bug: Planted) -> int:
    """Return how many days it takes until one goes wrong."""
    with bug.plant():
        for seed in range(MOST_SEEDS):
            played = play(draw(seed))
            if played.discrepancy is not None:
                assert played.discrepancy.rule != "fell", f"{bug.name} doesn't fit the product: {played.discrepancy}"
                print(f"{bug.name} ({bug.area}): after {seed + 1} seeds, {str(played.discrepancy)[:160]}")
                return seed + 1
    pytest.fail(f"{bug.name}: not found in {MOST_SEEDS} days: {bug.breaks}")


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.full) for name in PLANTED]
)
def test_a_planted_bug_is_found(name: str) -> None:
    """Each is found within 2,000 days; those that pass without it are the same."""
    assert seeds_until_found(PLANTED[name]) <= MOST_SEEDS


def test_bugs_are_planted_in_every_kind_of_rule() -> None:
    """At least twenty, and some for each of the rules by which nothing is lost."""
    areas = Counter(bug.area for bug in PLANTED.values())
    assert areas.total() >= 20
    assert {"ack", "epoch", "order", "retry", "halving", "confirm", "drain", "account", "refusal"} <= set(areas)
