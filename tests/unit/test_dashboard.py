"""The dashboard and the alerts against what the sidecar tells, and against the runbook."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from sidecar.core.results.policy import OUTCOMES
from sidecar.core.stats.counters import SETTLED
from sidecar.observability.metrics import REQUEST_OUTCOMES, TRIGGERS, Metrics
from tests.builders import state
from tests.dashboards import DASHBOARD, RULES, dashboard, expressions, panels, rules
from tests.docs.settings_table import README
from tests.unit.test_metrics import busy_account

RUNBOOK = README.parent / "docs" / "operations.md"
OF_PROMETHEUS = {"instance", "job"}
VALUES = {
    "verdict": set(SETTLED),
    "trigger": set(TRIGGERS),
    "outcome": {*REQUEST_OUTCOMES, "success", *OUTCOMES.values()},
    "reason": {"throttled", "failed", "unanswered", "delayed", "too_large", "refused"},
}
_NAME = re.compile(r"\b((?:sidecar|process)_[a-z_]+)\b(?:\{([^}]*)\})?")
_LABEL = re.compile(r'(\w+)\s*(?:=~|!=|!~|=)\s*"([^"]*)"')
_BY = re.compile(r"\b(?:by|without|on)\s*\(([^)]*)\)")


@pytest.fixture(scope="module")
def told() -> dict[str, set[str]]:
    """Return the labels of each metric that a scrape has."""
    body, _ = Metrics(lambda: state(busy_account())).render("")
    found: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^(\w+)(?:\{(.*)\})? ", body.decode(), re.MULTILINE):
        found[name] = set(re.findall(r'(\w+)="', labels))
    return found


@pytest.mark.parametrize("expression", expressions())
def test_every_metric_that_is_asked_for_is_told_with_these_labels(expression: str, told: dict[str, set[str]]) -> None:
    """A panel that shows nothing, or an alert that never fires, looks as if all were well."""
    metrics = _NAME.findall(expression)
    assert metrics
    labels: set[str] = set()
    for name, selector in metrics:
        assert name in told, name
        labels |= told[name]
        for label, value in _LABEL.findall(selector):
            assert label in told[name] | OF_PROMETHEUS, f"{name}{{{label}}}"
            assert label in OF_PROMETHEUS or value in VALUES[label], f'{name}{{{label}="{value}"}}'
    for grouping in _BY.findall(expression):
        assert {name.strip() for name in grouping.split(",")} <= labels | OF_PROMETHEUS, grouping


def test_every_alert_says_what_to_do_in_a_section_of_its_own() -> None:
    """Whoever is woken at three in the morning follows a link."""
    sections = re.findall(r"^### (\w+)$", RUNBOOK.read_text(encoding="utf-8"), re.MULTILINE)
    named = [rule["alert"] for rule in rules()]
    assert len(set(named)) == len(named)
    assert [name for name in sections if name.startswith("Sidecar")] == named, "one section an alert, in their order"
    for rule in rules():
        assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert {"summary", "description"} <= set(rule["annotations"])


def test_every_alert_has_a_unit_test_in_which_it_fires() -> None:
    """`promtool` runs them where Prometheus is there; that they exist can be seen anywhere."""
    fired: set[str] = set()
    for test in yaml.safe_load(RULES.with_name("rules.test.yaml").read_text(encoding="utf-8"))["tests"]:
        for one in test["promql_expr_test"]:
            fired.update(re.findall(r'alertname="(\w+)"', " ".join(sample["labels"] for sample in one["exp_samples"])))
    assert fired == {rule["alert"] for rule in rules()}


def test_the_dashboard_can_be_imported_anywhere() -> None:
    """Each panel has a place, a title and a data source that is chosen when it is looked at."""
    whole = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    variables = {one["name"]: one["type"] for one in whole["templating"]["list"]}
    assert variables == {"datasource": "datasource", "instance": "query"}
    assert "__inputs" not in whole
    idents = [panel["id"] for panel in whole["panels"]]
    assert len(set(idents)) == len(idents)
    taken: set[tuple[int, int]] = set()
    for panel in whole["panels"]:
        assert panel["title"]
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} lies over another panel"
        assert place["x"] + place["w"] <= 24
        taken |= cells
    for panel in panels():
        assert panel["datasource"]["uid"] == "${datasource}"
        targets: list[dict[str, Any]] = panel["targets"]
        assert targets
        assert len({target["refId"] for target in targets}) == len(targets)
        assert all(target["datasource"]["uid"] == "${datasource}" for target in targets)
    assert dashboard()["uid"]
