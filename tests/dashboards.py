"""The expressions of `deploy/`: of the dashboard's panels, and of the alerts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "sidecar.json"
RULES = DEPLOY / "prometheus" / "rules.yaml"
_GRAFANA = {"$__rate_interval": "1m", "$__range": "5m", "$instance": ".*"}
"""What Grafana puts in the place of its variables, more or less."""


def dashboard() -> dict[str, Any]:
    """Return the dashboard."""
    whole: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return whole


def panels() -> list[dict[str, Any]]:
    """Return the panels that show something."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def shown() -> list[str]:
    """Return the dashboard's expressions, its annotations' included, with values in the place of variables."""
    targets = [target["expr"] for panel in panels() for target in panel["targets"]]
    targets += [annotation["expr"] for annotation in dashboard()["annotations"]["list"]]
    for name, value in _GRAFANA.items():
        targets = [expression.replace(name, value) for expression in targets]
    return list(dict.fromkeys(targets))


def rules() -> list[dict[str, Any]]:
    """Return the alerts."""
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> list[str]:
    """Return all expressions, each once."""
    return shown() + [rule["expr"] for rule in rules()]
