"""``sidecar mappings`` and ``SIDECAR_MAPPINGS_APPLY`` against a real Elasticsearch."""

from __future__ import annotations

import json
import os
import urllib.error
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.harness import message
from tests.integration.process import run_sidecar

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from tests.integration.harness import Harness

SECONDS = 60.0


class Folder:
    """Templates of one test: a component, a data stream and an index of entities, all with names of its own."""

    def __init__(self, bench: Harness, path: Path) -> None:
        self.bench = bench
        self.path = path / "mappings"
        self.path.mkdir()
        name = bench.index_name
        self.component, self.stream, self.entities = f"{name}-added", f"a-{name}", f"b-{name}"
        self.contents: dict[str, dict[str, Any]] = {
            self.component: {
                "template": {
                    "settings": {"number_of_replicas": 0, "index.refresh_interval": "5s"},
                    "mappings": {"properties": {"@timestamp": {"type": "date"}, "queue": {"type": "keyword"}}},
                },
                "_meta": {"version": 1, "by": "a test"},
            },
            self.stream: {
                "index_patterns": [f"{name}-stream*"],
                "data_stream": {},
                "composed_of": [self.component],
                "priority": 500,
                "version": 1,
                "template": {"mappings": {"dynamic": False, "properties": {"n": {"type": "long", "coerce": False}}}},
            },
            self.entities: {
                "index_patterns": [f"{name}*"],
                "priority": 400,
                "version": 1,
                "template": {
                    "settings": {"index": {"number_of_shards": 1, "number_of_replicas": 0}},
                    "mappings": {"dynamic": "strict", "properties": {"n": {"type": "long"}}},
                },
            },
        }
        self.write()

    def write(self) -> None:
        for name, content in self.contents.items():
            (self.path / f"{name}.json").write_text(json.dumps(content))

    def command(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_")}
        given = {"SIDECAR_ELASTICSEARCH_URL": self.bench.elasticsearch.url, "SIDECAR_MAPPINGS_DIR": str(self.path)}
        return run_sidecar("mappings", *arguments, environment=inherited | given | settings, seconds=SECONDS)

    def remove(self) -> None:
        for path in (f"_data_stream/{self.bench.index_name}*", f"_index_template/{self.stream}",
                     f"_index_template/{self.entities}", f"_component_template/{self.component}"):  # fmt: skip
            try:
                self.bench.es("DELETE", f"/{path}")
            except urllib.error.HTTPError:
                continue


@pytest.fixture
def folder(bench: Harness, tmp_path: Path) -> Iterator[Folder]:
    """Return a folder of templates, which are removed from the cluster after the test."""
    made = Folder(bench, tmp_path)
    yield made
    made.remove()


def test_diff_and_apply_agree_and_apply_is_idempotent(folder: Folder) -> None:
    """Missing, installed, the same, changed, the same again; what changes is named; a higher version stays."""
    names = [folder.component, folder.stream, folder.entities]
    missing = folder.command("diff")
    assert (missing.returncode, missing.stderr) == (1, "")
    assert [line.rsplit(" ", 1)[1] for line in missing.stdout.splitlines()] == ["missing"] * 3
    applied = folder.command("apply")
    assert (applied.returncode, applied.stderr) == (0, "")
    assert [line.split(" ", 2)[2] for line in applied.stdout.splitlines()] == [f"{name}: installed" for name in names]
    same = folder.command("diff")
    assert (same.returncode, same.stderr) == (0, "")
    assert [line.split(" ", 2)[2] for line in same.stdout.splitlines()] == [f"{name}: same" for name in names]
    assert folder.command("apply").stdout.count(": unchanged") == 3

    entities = folder.contents[folder.entities]
    entities["template"]["mappings"]["properties"]["n"]["type"] = "keyword"
    entities["version"] = 2
    folder.write()
    different = folder.command("diff")
    assert different.returncode == 1
    assert different.stdout.splitlines()[2:] == [
        f"index template {folder.entities}: different",
        "  - template.mappings.properties.n.type: long",
        "  + template.mappings.properties.n.type: keyword",
        "  - version: 1",
        "  + version: 2",
    ]
    assert f"{folder.entities}: changed" in folder.command("apply").stdout
    assert folder.command("diff").returncode == 0

    entities["version"] = 1
    folder.write()
    assert "left as it is: the cluster has a higher version than 1" in folder.command("apply").stdout
    assert "version: 2" in folder.command("diff").stdout


def test_the_templates_that_come_with_it_are_taken(folder: Folder) -> None:
    """A data stream for events, an index for entities, and their component; the second time nothing changes."""
    mappings = str(Path(__file__).parents[2] / "mappings")
    names = ["component template sidecar", "index template customers", "index template events"]
    try:
        assert folder.command("apply", SIDECAR_MAPPINGS_DIR=mappings).returncode == 0
        again = folder.command("apply", SIDECAR_MAPPINGS_DIR=mappings)
        assert [line.partition(":")[0] for line in again.stdout.splitlines()] == names
        assert again.stdout.count(": unchanged") == 3
        folder.bench.es("PUT", "/customers-of-a-test/_doc/1", {"id": "1", "version": 1, "rabbitmq.queue": "q"})
        with pytest.raises(urllib.error.HTTPError, match="400"):
            folder.bench.es("PUT", "/customers-of-a-test/_doc/2", {"nickname": "T"})
        events = json.loads(folder.bench.es("POST", "/_index_template/_simulate_index/events"))
        fields = events["template"]["mappings"]["properties"]
        assert (fields["@timestamp"]["type"], fields["amount"]["type"]) == ("date", "double")
        assert fields["rabbitmq"]["properties"]["queue"]["type"] == "keyword"
    finally:
        for path in ("customers-of-a-test", "_index_template/customers", "_index_template/events",
                     "_component_template/sidecar"):  # fmt: skip
            with suppress(urllib.error.HTTPError):
                folder.bench.es("DELETE", f"/{path}")


def test_a_refusal_and_an_absence_end_with_the_reason(folder: Folder) -> None:
    """Exit status 1 and one line; nothing after the refused one is installed."""
    folder.contents[folder.component]["template"]["mappings"] = {"properties": {"x": {"type": "no-such-type"}}}
    folder.write()
    refused = folder.command("apply")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"doesn't take the component template {folder.component}: 400" in refused.stderr
    assert "no-such-type" in refused.stderr
    assert folder.command("diff").stdout.count(": missing") == 3
    away = folder.command("diff", SIDECAR_ELASTICSEARCH_URL="http://127.0.0.1:1")
    assert away.returncode == 1
    assert "no answer from Elasticsearch" in away.stderr


def test_the_sidecar_installs_them_before_it_consumes(folder: Folder, bench: Harness) -> None:
    """The first document finds the mapping, which refuses what it should."""
    bench.declare()
    bench.publish([message(b'{"n":1}', "good"), message(b'{"n":2,"unknown":true}', "bad")])
    sidecar = bench.sidecar(MAPPINGS_DIR=str(folder.path), MAPPINGS_APPLY="true")
    bench.wait_empty(SECONDS, sidecar)
    account = sidecar.terminate()
    assert (account["ack"], account["dead_letter"]) == (1, 1)
    applied = sidecar.events("mappings.applied")
    assert [(event["template"], event["was"]) for event in applied] == [
        (folder.component, "missing"), (folder.stream, "missing"), (folder.entities, "missing"),
    ]  # fmt: skip
    (letter,) = bench.dead_letters()
    assert letter.headers["sidecar-error-type"] == "strict_dynamic_mapping_exception"


def test_a_refused_template_ends_the_sidecar_with_the_reason(folder: Folder, bench: Harness) -> None:
    """Nothing good can come of going on without it: the messages stay in the queue."""
    folder.contents[folder.entities]["template"]["settings"] = {"index": {"number_of_shards": -3}}
    folder.write()
    bench.declare()
    bench.publish([message(b'{"n":1}', "good")])
    sidecar = bench.sidecar(MAPPINGS_DIR=str(folder.path), MAPPINGS_APPLY="true")
    assert sidecar.process.wait(SECONDS) == 1
    (event,) = sidecar.events("mappings.refused")
    assert f"doesn't take the index template {folder.entities}: 400" in event["reason"]
    assert not sidecar.events("amqp.connected")
    assert bench.count() == 1


def test_the_sidecar_waits_for_an_elasticsearch_that_is_away(folder: Folder, bench: Harness) -> None:
    """It is told once, and SIGTERM ends the waiting."""
    templates = {"MAPPINGS_DIR": str(folder.path), "MAPPINGS_APPLY": "true"}
    sidecar = bench.sidecar(**templates, ELASTICSEARCH_URL="http://127.0.0.1:1")
    sidecar.wait_for("elasticsearch.unreachable")
    assert sidecar.terminate()["received"] == 0
    assert len(sidecar.events("elasticsearch.unreachable")) == 1
    assert not sidecar.events("amqp.connected")
