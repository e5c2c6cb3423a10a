"""Days on which something was found. What isn't mended yet is excused elsewhere, and looked at strictly here."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simulation.day import Day
from tests.simulation.world import play

PLANS = Path(__file__).parent / "plans"
KNOWN = {
    "worn-out-by-holds": "what is at fault, and alone, is given back until the broker drops it",
}


def _plans() -> list[object]:
    return [
        pytest.param(path, id=path.stem, marks=_known(path.stem) if path.stem in KNOWN else ())
        for path in sorted(PLANS.glob("*.json"))
    ]


def _known(name: str) -> pytest.MarkDecorator:
    return pytest.mark.xfail(strict=False, reason=f"known: {KNOWN[name]}")


@pytest.mark.parametrize("path", _plans())
def test_what_was_found_once(path: Path) -> None:
    """The day, as small as it was made, goes well; no known weakness is excused."""
    played = play(Day.from_json(path.read_text()), strict=True)
    assert played.discrepancy is None
