"""`sidecar.elasticsearch.templates` against a cluster made of a dictionary."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from sidecar.elasticsearch import templates as index_templates
from sidecar.elasticsearch.templates import IndexTemplate, TemplateDiff, normalized
from sidecar.errors import ConfigError, RefusedTemplateError, SinkError
from sidecar.ports import Answer

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

COMPONENT = {"template": {"mappings": {"properties": {"@timestamp": {"type": "date"}}}}, "_meta": {"version": 2}}
INDEX = {"index_patterns": ["x-*"], "composed_of": ["shared"], "template": {"settings": {"number_of_shards": 1}}}


class Cluster:
    """Keeps templates, and what was asked."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.status: dict[str, int] = {}  # by method

    async def ask(self, method: str, path: str, body: bytes | None = None) -> Answer:
        self.asked.append(f"{method} {path}")
        if (status := self.status.get(method, 200)) != 200:
            error = {"reason": "no", "caused_by": {"reason": "since"}}
            return Answer(status, orjson.dumps({"error": error, "status": status}), 0.0)
        if method == "PUT":
            self.kept[path] = orjson.loads(body or b"")
            return Answer(200, b'{"acknowledged":true}', 0.0)
        if path not in self.kept:
            return Answer(404, b"{}", 0.0)
        kind, name = path.strip("/").split("/")
        kind = kind.removeprefix("_")
        listed = {f"{kind}s": [{"name": name, kind: self.kept[path]}]}
        return Answer(200, orjson.dumps(listed), 0.0)


def settings(content: dict[str, Any]) -> dict[str, Any]:
    """Return a template with settings."""
    return {"template": {"settings": content}}


def run(coroutine: Coroutine[object, object, list[TemplateDiff]]) -> list[tuple[str, str]]:
    """Return names and states."""
    return [(change.template.name, change.state) for change in asyncio.run(coroutine)]


def folder(path: Path, **files: object) -> Path:
    """Return a folder of JSON files."""
    for name, content in files.items():
        (path / f"{name}.json").write_bytes(content if isinstance(content, bytes) else orjson.dumps(content))
    return path


def test_components_come_before_the_templates_that_need_them(tmp_path: Path) -> None:
    """Whatever their names; what is no JSON file is left alone."""
    (tmp_path / "README.md").write_text("not a template")
    found = index_templates.load(folder(tmp_path, a_index=INDEX, z_shared=COMPONENT, b_shared=COMPONENT))
    assert [(one.name, one.kind) for one in found] == [
        ("b_shared", "component"),
        ("z_shared", "component"),
        ("a_index", "index"),
    ]


def test_every_file_that_is_no_template_is_told(tmp_path: Path) -> None:
    """All at once; and a folder without any is a mistake."""
    with pytest.raises(ConfigError) as caught:
        index_templates.load(folder(tmp_path, a=b"{", b=[], c={"mappings": {}}, good=INDEX))
    problems = caught.value.problems
    assert [problem.split(": ")[0].rsplit("/", 1)[1] for problem in problems] == ["a.json", "b.json", "c.json"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="has no templates"):
        index_templates.load(tmp_path / "empty")


def test_apply_installs_in_order_and_the_second_time_nothing(tmp_path: Path) -> None:
    """Idempotent: what is the same isn't touched."""
    templates = index_templates.load(folder(tmp_path, x=INDEX, shared=COMPONENT))
    cluster = Cluster()
    assert run(index_templates.compare(cluster.ask, templates)) == [("shared", "missing"), ("x", "missing")]
    assert cluster.kept == {}
    assert run(index_templates.apply(cluster.ask, templates)) == [("shared", "missing"), ("x", "missing")]
    puts = [asked for asked in cluster.asked if asked.startswith("PUT")]
    assert puts == ["PUT /_component_template/shared", "PUT /_index_template/x"]
    cluster.asked.clear()
    assert run(index_templates.apply(cluster.ask, templates)) == [("shared", "same"), ("x", "same")]
    assert not [asked for asked in cluster.asked if asked.startswith("PUT")]


@pytest.mark.parametrize(
    ("there", "state"),
    [
        ({"_meta": {"version": 2}, "template": {"settings": {"number_of_shards": 3}}}, "different"),
        ({"_meta": {"version": 1}, "template": {}}, "different"),
        ({"_meta": {"version": 3}, "template": {}}, "newer"),
        ({"version": 3, "template": {}}, "newer"),
        ({"template": {}}, "different"),
    ],
)
def test_a_higher_version_is_never_lowered(there: dict[str, Any], state: str) -> None:
    """An older release that starts once more must not undo a newer one; all else is put right."""
    cluster = Cluster()
    cluster.kept["/_component_template/shared"] = there
    template = IndexTemplate("shared", "component", COMPONENT)
    assert run(index_templates.apply(cluster.ask, [template])) == [("shared", state)]
    assert cluster.kept["/_component_template/shared"] == (there if state == "newer" else COMPONENT)


def test_any_version_is_higher_than_none() -> None:
    """A template of the folder that says none counts as 0."""
    cluster = Cluster()
    cluster.kept["/_component_template/shared"] = {"version": 1, "template": {}}
    template = IndexTemplate("shared", "component", {"template": {"settings": {"number_of_shards": 1}}})
    assert run(index_templates.apply(cluster.ask, [template])) == [("shared", "newer")]


def test_the_name_of_a_template_is_data_in_the_path() -> None:
    """It can't leave its place there, whatever the file is called."""
    cluster = Cluster()
    run(index_templates.apply(cluster.ask, [IndexTemplate("a?b#c %41", "component", COMPONENT)]))
    path = "/_component_template/a%3Fb%23c%20%2541"
    assert cluster.asked == [f"GET {path}", f"PUT {path}"]


def test_a_difference_is_named_by_path_on_both_sides() -> None:
    """And nothing else."""
    cluster = Cluster()
    cluster.kept["/_index_template/x"] = INDEX | {
        "priority": 7,
        "template": {"settings": {"index": {"number_of_shards": "2"}}},
    }
    (change,) = asyncio.run(index_templates.compare(cluster.ask, [IndexTemplate("x", "index", INDEX)]))
    assert change.actual == {"priority": "7", "template.settings.index.number_of_shards": "2"}
    assert change.expected == {"template.settings.index.number_of_shards": "1"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (settings({"number_of_replicas": 0}), settings({"index": {"number_of_replicas": "0"}})),
        (settings({"index.refresh_interval": "5s"}), settings({"index": {"refresh_interval": "5s"}})),
        ({"data_stream": {}}, {"data_stream": {"hidden": False, "allow_custom_routing": False}}),
        ({"index_patterns": ["a"]}, {"index_patterns": ["a"], "composed_of": [], "priority": None}),
        ({"template": {"mappings": {"dynamic": True}}}, {"template": {"mappings": {"dynamic": "true"}}}),
        ({"version": 1}, {"version": 1, "created_date_millis": 5, "modified_date": "now"}),
    ],
)
def test_spellings_of_the_same_are_the_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Elasticsearch gives back another one than it was given."""
    assert normalized(one) == normalized(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"data_stream": {}}, {}),
        ({"data_stream": {}}, {"data_stream": {"hidden": True}}),
        ({"index_patterns": ["a", "b"]}, {"index_patterns": ["a"]}),
        ({"template": {"mappings": {"dynamic": True}}}, {"template": {"mappings": {"dynamic": "strict"}}}),
    ],
)
def test_what_differs_differs(one: dict[str, Any], other: dict[str, Any]) -> None:
    """One spelling doesn't mean that all is one."""
    assert normalized(one) != normalized(other)


def test_a_refusal_says_why_and_an_absence_is_another_thing() -> None:
    """The one will not pass by itself, the other will."""
    template = IndexTemplate("x", "index", INDEX)
    cluster = Cluster()
    cluster.status = {"PUT": 400}
    with pytest.raises(RefusedTemplateError, match="doesn't take the index template x: 400 no; caused by: since"):
        asyncio.run(index_templates.apply(cluster.ask, [template]))
    cluster.status = {"GET": 403}
    with pytest.raises(RefusedTemplateError, match="doesn't show the index template x: 403"):
        asyncio.run(index_templates.compare(cluster.ask, [template]))
    cluster.status = {"GET": 503}
    with pytest.raises(SinkError):
        asyncio.run(index_templates.compare(cluster.ask, [template]))
