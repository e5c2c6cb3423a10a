"""How `sidecar check` finds out whether a data stream has a failure store, or would have one."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest

from sidecar.elasticsearch.check import _has_failure_store, _Reply, _Target

if TYPE_CHECKING:
    from sidecar.elasticsearch.check import _Node


class Cluster:
    """Answers what is asked of it by path; anything else isn't there."""

    def __init__(self, **answers: dict[str, Any]) -> None:
        self.answers = {"/" + name.replace("__", "/"): content for name, content in answers.items()}

    async def ask(self, _method: str, path: str) -> _Reply:
        """Answer."""
        content = self.answers.get(path.partition("?")[0])
        return _Reply(404 if content is None else 200, content or {})


def options(enabled: bool | None) -> dict[str, Any]:
    """Return a template's content that says whether there is a failure store."""
    return {"template": {"data_stream_options": {"failure_store": {"enabled": enabled}}} if enabled is not None else {}}


def streams(name: str, *, own: bool | None = None, **more: Any) -> _Target:
    """Return a target that a template makes data streams of."""
    template = {"index_patterns": ["*"], "data_stream": {}, **options(own), **more}
    return _Target(name, is_constant=True, kind="missing", templates={"t": template})


BY_DEFAULT = {"defaults": {"data_streams": {"failure_store": {"enabled": ["logs-*-*"]}}}}


@pytest.mark.parametrize(
    ("cluster", "target", "has_one"),
    [
        (Cluster(), streams("logs-a-b", own=True), True),
        (Cluster(), streams("logs-a-b"), False),
        (Cluster(_cluster__settings=BY_DEFAULT), streams("logs-a-b"), True),
        (Cluster(_cluster__settings=BY_DEFAULT), streams("logs-*-b"), True),
        (Cluster(_cluster__settings=BY_DEFAULT), streams("events"), False),
        (Cluster(_cluster__settings=BY_DEFAULT), streams("logs-a-b", own=False), False),
        (
            Cluster(
                _component_template__a={"component_templates": [{"component_template": options(enabled=True)}]},
                _component_template__b={"component_templates": [{"component_template": options(enabled=False)}]},
            ),
            streams("events", composed_of=["b", "a"]),
            True,
        ),
        (
            Cluster(_data_stream__s={"data_streams": [{"name": "s", "failure_store": {"enabled": False}}]}),
            replace(streams("s", own=True), kind="data stream"),
            False,
        ),
        (Cluster(), _Target("i", is_constant=True, kind="missing", templates={}), False),
    ],
)
def test_whether_there_is_a_failure_store(cluster: Cluster, target: _Target, has_one: bool) -> None:
    """The data stream says it; before it is there its template, the last component of it, or the cluster's default."""
    assert asyncio.run(_has_failure_store(cast("_Node", cluster), target)) is has_one
