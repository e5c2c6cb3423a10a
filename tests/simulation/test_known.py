"""Days on which something was found, as small as they were made: regression tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simulation.scenario import Day
from tests.simulation.world import play

PLANS = sorted((Path(__file__).parent / "plans").glob("*.json"))


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in PLANS])
def test_what_was_found_once(path: Path) -> None:
    """The day goes well."""
    played = play(Day.from_json(path.read_text()))
    assert played.discrepancy is None
