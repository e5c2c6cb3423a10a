"""The README against the code."""

from __future__ import annotations

import re
from pathlib import Path

import sidecar
from sidecar.cli import COMMANDS
from sidecar.cli.config import readme_table
from sidecar.config.settings import PREFIX, Settings
from sidecar.core.results.policy import ITEM_RULES, PUBLISH_RULES
from sidecar.core.stats.counters import Counters
from sidecar.observability.metrics import Metrics
from tests.builders import state
from tests.docs.settings_table import README, in_readme

TEXT = README.read_text(encoding="utf-8")


def test_the_table_of_settings_is_that_of_the_code() -> None:
    """Every setting with its default and its meaning, and none that isn't there."""
    assert in_readme(TEXT) == readme_table(), "run: python -m tests.docs.settings_table"


def test_every_setting_that_is_named_exists() -> None:
    """A reader copies names from anywhere in the text."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    assert set(re.findall(r"SIDECAR_[A-Z_]+[A-Z]", TEXT)) <= known


def test_every_command_that_is_named_exists() -> None:
    """What stands in a code block after `sidecar` is a command or an option."""
    named = set(re.findall(r"(?:^|`)sidecar ([a-z]+)", TEXT, re.MULTILINE))
    assert named <= set(COMMANDS)
    assert named == set(COMMANDS)


def test_every_reason_of_the_verdict_table_is_explained() -> None:
    """A dead letter's reason can be looked up; one that waits doesn't get one."""
    reasons = {rule.reason for rule in ITEM_RULES if rule.result_class.name == "DEAD_LETTER"}
    reasons |= {rule.reason for rule in PUBLISH_RULES if rule.reason}
    for reason in (*reasons, "malformed", "too-large", "retries-exhausted"):
        assert f"dead letter `{reason}`" in TEXT, reason


def between(name: str) -> str:
    """Return what stands between two marks."""
    return TEXT.partition(f"<!-- {name} -->")[2].partition(f"<!-- /{name} -->")[0]


def test_the_table_of_metrics_is_that_of_the_code() -> None:
    """Every metric with its labels, and none that isn't there."""
    account = Counters()
    account.documents["index", "success"] += 1
    account.retries["failed"] += 1
    account.splits["refused"] += 1
    body, _ = Metrics(lambda: state(account)).render("")
    found: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^(sidecar_\w+)(?:\{(.*)\})? ", body.decode(), re.MULTILINE):
        if name.endswith(("_count", "_sum")):
            continue
        found[name.removesuffix("_bucket")] = set(re.findall(r'(\w+)="', labels)) - {"le"}
    rows = re.findall(r"^\| `(\w+)` \| (.*?) ?\| ", between("metrics"), re.MULTILINE)
    assert {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows} == found


def test_the_table_of_log_events_is_that_of_the_code() -> None:
    """Whoever greps for an event finds it explained."""
    logged: set[str] = set()
    for path in Path(sidecar.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        logged.update(re.findall(r'log\.(?:debug|info|warning|error|exception)\(\s*"([a-z_.]+)"', text))
        logged.update(re.findall(r'"((?:items|elasticsearch|sink|handler)\.[a-z_]+)"', text))
    told = set(re.findall(r"`([a-z_]+\.[a-z_]+)`", between("events")))
    assert told == logged
