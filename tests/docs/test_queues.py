"""The page about queue properties against the tests that show each of its rows."""

from __future__ import annotations

import re
from pathlib import Path

from tests.integration.test_queue_properties import ROWS

TEXT = (Path(__file__).parents[2] / "docs" / "queues.md").read_text(encoding="utf-8")


def test_every_row_is_shown_on_a_real_broker() -> None:
    """With what `sidecar check` says, in the same order."""
    table = TEXT.partition("<!-- queues -->")[2].partition("<!-- /queues -->")[0]
    rows = re.findall(r"^\| (.+?) \| .+ \| (\w+)[^|]*\|$", table, re.MULTILINE)
    assert rows == [(name, row.severity or "nothing") for name, row in ROWS.items()]
