"""docs/operations.md against the code."""

from __future__ import annotations

import re

import pytest

from sidecar.cli import COMMANDS
from sidecar.config.settings import PREFIX, Settings
from sidecar.core.results.policy import ITEM_RULES, PUBLISH_RULES
from sidecar.core.stats.counters import SETTLED
from sidecar.observability.metrics import Metrics
from tests.builders import state
from tests.docs.settings_table import README
from tests.docs.test_readme import between
from tests.unit.test_metrics import busy_account

OPERATIONS = README.parent / "docs" / "operations.md"
TEXT = OPERATIONS.read_text(encoding="utf-8")


def test_every_setting_command_and_event_that_is_named_exists() -> None:
    """A reader copies them at three in the morning."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    assert set(re.findall(r"SIDECAR_[A-Z_]+[A-Z]", TEXT)) <= known
    assert set(re.findall(r"(?:\$ |`)sidecar ([a-z]+)", TEXT)) <= set(COMMANDS)
    events = set(re.findall(r"`([a-z_]+\.[a-z_]+)`", between("events")))
    # `http.` is also how settings of Elasticsearch begin.
    kinds = "|".join(sorted({event.partition(".")[0] for event in events} - {"http"}))
    assert set(re.findall(rf"`((?:{kinds})\.[a-z_]+)`", TEXT)) <= events


def test_every_metric_that_is_named_exists() -> None:
    """With or without its labels, its buckets or its count."""
    body, _ = Metrics(lambda: state(busy_account())).render("")
    told = set(re.findall(r"^(\w+)(?:\{|\s)", body.decode(), re.MULTILINE))
    told |= {name.removesuffix("_bucket") for name in told}
    assert set(re.findall(r"`((?:sidecar|process)_[a-z_]+)", TEXT)) <= told


@pytest.mark.parametrize("verdict", SETTLED)
def test_every_verdict_says_what_to_do(verdict: str) -> None:
    """Also those that need nothing done."""
    assert re.search(rf"^\| `{verdict}` \| .+ \| .+ \|$", TEXT, re.MULTILINE)


def test_every_reason_of_a_dead_letter_says_who_can_mend_it() -> None:
    """Of the table of verdicts, and of what never reaches a request."""
    reasons = {rule.reason for rule in (*ITEM_RULES, *PUBLISH_RULES) if rule.reason} | {
        "malformed", "missing-field", "too-large", "retries-exhausted", "index-not-allowed",
    }  # fmt: skip
    for reason in reasons:
        assert re.search(rf"^\| `{reason}` \| .+ \|$", TEXT, re.MULTILINE), reason
