"""`sidecar check` finds out whether Elasticsearch can create the index, and whether it accepts what will be sent."""

from __future__ import annotations

import json
import urllib.error
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.test_check import check

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.integration.harness import Harness

SERIES = {
    "settings": {"index.mode": "time_series", "index.routing_path": ["host"]},
    "mappings": {
        "properties": {"@timestamp": {"type": "date"}, "host": {"type": "keyword", "time_series_dimension": True}}
    },
}


@pytest.fixture
def series(bench: Harness) -> Iterator[str]:
    """An index template of time series, whose mode comes by a component; the name that it is for."""
    name = bench.index_name
    bench.es("PUT", f"/_component_template/{name}", {"template": SERIES})
    template = {"index_patterns": [f"{name}*"], "priority": 500, "data_stream": {}, "composed_of": [name]}
    bench.es("PUT", f"/_index_template/{name}", template)
    yield name
    for path in (f"_data_stream/{name}*", f"_index_template/{name}", f"_component_template/{name}"):
        with suppress(urllib.error.HTTPError):
            bench.es("DELETE", f"/{path}")


def refusal(bench: Harness, index: str) -> str:
    """Return the error type that Elasticsearch gives a document for an index."""
    lines = json.dumps({"index": {"_index": index}}).encode() + b"\n{}\n"
    (item,) = json.loads(bench.es("POST", "/_bulk", lines))["items"]
    kind: str = item["index"].get("error", {}).get("type", "")
    return kind


@pytest.mark.parametrize("index", ["Events", "a b", "a:b", "x" * 256])
def test_a_name_that_elasticsearch_refuses_is_a_problem(bench: Harness, index: str) -> None:
    """Every document would be; the way out of capitals is told."""
    assert refusal(bench, index) == "invalid_index_name_exception"
    (finding,) = check(bench, INDEX=index).about("very document is refused", "problem")
    assert "{field!lower}" in finding["fix"]


@pytest.mark.parametrize("template", ["Events-{type}", "logs-{now}", "NAME-{type|Unknown}"])
def test_a_template_that_never_gives_a_good_name_is_a_problem(bench: Harness, template: str) -> None:
    """By its own text, its default, or its format of a time. No other test's alias has such a name."""
    index = template.replace("NAME", bench.index_name)
    assert len(check(bench, INDEX=index).about("every document is refused", "problem")) == 1
    assert check(bench, INDEX=index.lower().replace("{now}", "{now:%Y}")).about("is refused", "problem") == []


def test_an_alias_may_have_capitals(bench: Harness) -> None:
    """Elasticsearch allows them there."""
    bench.create_index()
    alias = f"Alias-{bench.index_name}"
    bench.es("PUT", f"/{bench.index_name}/_alias/{alias}")
    assert refusal(bench, alias) == ""
    assert check(bench, INDEX=alias).about("is refused", "problem") == []
    assert check(bench, INDEX=f"Alias-{bench.index_name}{{type}}").about("is refused", "problem") == []


def test_a_time_series_takes_no_ids(bench: Harness, series: str) -> None:
    """Before it is there, by its template's component; when it is there; and for names that come from messages."""
    ids = {"ACTION": "create", "ID": "{header.id}", "INDEX": series}
    (finding,) = check(bench, **ids).about("makes its own ids", "problem")
    assert finding["fix"] == "set SIDECAR_ID=none"
    assert check(bench, **ids | {"ID": "none"}).about("time series", "problem") == []
    assert len(check(bench, **ids | {"INDEX": series + "-{type}"}).about("makes its own ids", "warning")) == 1
    (finding,) = check(bench, **ids | {"ID": "auto", "ROUTING": "{type}"}).about("refuses a routing", "problem")
    assert finding["where"] == f"index '{series}'"


def test_a_time_series_index_that_is_there_takes_no_ids(bench: Harness) -> None:
    """Its settings tell, without any template."""
    bounds = {
        "index.time_series.start_time": "2020-01-01T00:00:00Z",
        "index.time_series.end_time": "2040-01-01T00:00:00Z",
    }
    bench.es("PUT", f"/{bench.index_name}", {**SERIES, "settings": {**SERIES["settings"], **bounds}})
    assert len(check(bench).about("makes its own ids", "problem")) == 1
    assert check(bench, ID="none").about("makes its own ids") == []


def test_templates_that_elasticsearch_refuses_are_problems(bench: Harness, tmp_path: Path) -> None:
    """`run` would end at its start; nothing is installed by looking."""
    name = bench.index_name
    contents: dict[str, Any] = {
        f"{name}-component": {"template": {"mappings": {"properties": {"a": {"type": "no-such-type"}}}}},
        f"{name}-good": {"template": {"mappings": {"properties": {"b": {"type": "long"}}}}},
        name: {
            "index_patterns": [f"{name}*"],
            "priority": 500,
            "composed_of": [f"{name}-good"],
            "template": {"settings": {"number_of_shards": -3}},
        },
    }
    for file, content in contents.items():
        (tmp_path / f"{file}.json").write_text(json.dumps(content))
    applied = {"MAPPINGS_DIR": str(tmp_path), "MAPPINGS_APPLY": "true"}
    told = check(bench, **applied)
    component, index = told.about("Elasticsearch refuses it", "problem")
    assert "no-such-type" in component["what"]
    assert "number_of_shards" in index["what"]
    with pytest.raises(urllib.error.HTTPError):
        bench.es("GET", f"/_index_template/{name}")
    contents[f"{name}-component"] = contents[f"{name}-good"]
    contents[name]["template"] = {}
    for file, content in contents.items():
        (tmp_path / f"{file}.json").write_text(json.dumps(content))
    assert check(bench, **applied).about("Elasticsearch refuses it") == []
