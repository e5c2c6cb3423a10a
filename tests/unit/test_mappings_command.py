"""``sidecar mappings`` and the installation at the start, against an Elasticsearch in the process."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any, cast

import pytest
from click.testing import CliRunner

from sidecar.cli import cli, indexing
from sidecar.cli.indexing import _install
from sidecar.elasticsearch import templates as index_templates
from sidecar.elasticsearch.client import Connection, ElasticsearchClient
from sidecar.errors import ConfigError, RefusedTemplateError
from tests.fakes.http_server import reply, running, running_in_thread
from tests.fakes.template_api import TemplateApi, error
from tests.pipeline.simulated_pipeline import Log

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from click.testing import Result
    from structlog.typing import FilteringBoundLogger

    from sidecar.core.stats.snapshot import NotReady
    from tests.fakes.http_server import HttpCluster

SECRET = "hunter2-is-a-secret"
STRANGER = reply(b"<html>", 404, headers={"x-elastic-product": ""})
CONTENTS: dict[str, dict[str, Any]] = {
    "shared": {
        "template": {"settings": {"number_of_replicas": 0, "index.refresh_interval": "5s"}},
        "_meta": {"version": 1},
    },
    "a common": {"template": {"mappings": {"properties": {"q": {"type": "keyword"}}}}},
    "events": {
        "index_patterns": ["events-*"],
        "composed_of": ["shared", "a common"],
        "data_stream": {},
        "version": 1,
        "template": {"mappings": {"dynamic": False, "properties": {"n": {"type": "long"}}}},
    },
    "customers": {"index_patterns": ["customers"], "composed_of": ["shared"], "priority": 7, "version": 3},
}
ORDER = [
    "component template a common",
    "component template shared",
    "index template customers",
    "index template events",
]
"""Components first, whatever their names."""


class Folder:
    """Templates in files, and the cluster that they are for."""

    def __init__(self, path: Path, cluster: HttpCluster, api: TemplateApi) -> None:
        self.path = path / "some templates"
        self.path.mkdir()
        self.cluster = cluster
        self.api = api
        self.contents: dict[str, dict[str, Any]] = json.loads(json.dumps(CONTENTS))

    def run(self, *arguments: str, **settings: str) -> Result:
        """Run the command with these contents."""
        for name, content in self.contents.items():
            (self.path / f"{name}.json").write_text(json.dumps(content))
        self.api.calls.clear()
        given = {"ELASTICSEARCH_URL": ",".join(self.cluster.urls), "MAPPINGS_DIR": str(self.path), **settings}
        inherited = {name: None for name in os.environ if name.startswith("SIDECAR_")}
        environment = {f"SIDECAR_{name}": text for name, text in given.items()}
        done = CliRunner().invoke(cli, ["mappings", *arguments], env=inherited | environment, catch_exceptions=False)
        assert SECRET not in done.output
        return done

    @property
    def puts(self) -> list[str]:
        """What was installed by the last command, in order."""
        return [f"{kind.replace('_', ' ')} {name}" for method, kind, name in self.api.calls if method == "PUT"]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    """A folder of templates, and two nodes of a cluster that has none."""
    api = TemplateApi()
    with running_in_thread(2, api) as cluster:
        yield Folder(tmp_path, cluster, api)


def states(done: Result) -> list[str]:
    """Return the lines that name templates."""
    return [line for line in done.stdout.splitlines() if not line.startswith("  ")]


def test_diff_tells_and_changes_nothing_and_apply_puts_right(folder: Folder) -> None:
    """Missing, installed in order, the same; the second time nothing is done; exit 1 only if something differs."""
    missing = folder.run("diff")
    assert (missing.exit_code, missing.stdout.splitlines()) == (1, [f"{name}: missing" for name in ORDER])
    assert folder.puts == []
    applied = folder.run("apply")
    assert (applied.exit_code, applied.stdout.splitlines()) == (0, [f"{name}: installed" for name in ORDER])
    assert folder.puts == ORDER
    assert {name: folder.api.kept[kind, name] for kind, name in folder.api.kept} == CONTENTS
    same = folder.run("diff")
    assert (same.exit_code, same.stdout.splitlines()) == (0, [f"{name}: same" for name in ORDER])
    again = folder.run("apply")
    assert (again.exit_code, again.stdout.splitlines()) == (0, [f"{name}: unchanged" for name in ORDER])
    assert folder.puts == []


def test_what_differs_is_named_on_both_sides_and_nothing_else_is_touched(folder: Folder) -> None:
    """The odd one is in the middle; by path, the cluster's before the folder's."""
    folder.run("apply")
    folder.contents["shared"]["template"]["settings"] = {
        "number_of_replicas": 2,
        "index": {"codec": "best_compression"},
    }
    different = folder.run("diff")
    assert different.exit_code == 1
    assert different.stdout.splitlines() == [
        f"{ORDER[0]}: same",
        f"{ORDER[1]}: different",
        "  + template.settings.index.codec: best_compression",
        "  - template.settings.index.number_of_replicas: 0",
        "  + template.settings.index.number_of_replicas: 2",
        "  - template.settings.index.refresh_interval: 5s",
        f"{ORDER[2]}: same",
        f"{ORDER[3]}: same",
    ]
    changed = folder.run("apply")
    assert changed.exit_code == 0
    assert states(changed) == [f"{one}: {'changed' if 'shared' in one else 'unchanged'}" for one in ORDER]
    assert folder.puts == [ORDER[1]]
    assert folder.api.kept["component_template", "shared"] == folder.contents["shared"]
    assert folder.run("diff").exit_code == 0


@pytest.mark.parametrize("name", ["shared", "customers"])
def test_a_higher_version_in_the_cluster_stays(folder: Folder, name: str) -> None:
    """It is told with our own, and counts as a difference; the others are put right all the same."""
    folder.run("apply")
    kind = "component" if name == "shared" else "index"
    kept = folder.api.kept[f"{kind}_template", name]
    newer = {**kept, "version": 9}
    folder.api.kept[f"{kind}_template", name] = newer
    del folder.api.kept["index_template", "events"]
    own = 1 if name == "shared" else 3
    differs = folder.run("diff")
    assert differs.exit_code == 1
    assert f"{kind} template {name}: the cluster has a higher version than {own}, which stays" in states(differs)
    assert "  - version: 9" in differs.stdout.splitlines()
    applied = folder.run("apply")
    assert applied.exit_code == 0
    stays = f"{kind} template {name}: left as it is: the cluster has a higher version than {own}, which stays"
    assert states(applied) == [
        stays if name in one else f"{one}: {'installed' if 'events' in one else 'unchanged'}" for one in ORDER
    ]
    assert folder.puts == [ORDER[3]]
    assert folder.api.kept[f"{kind}_template", name] == newer


def test_the_folder_of_the_option_goes_before_that_of_the_settings(folder: Folder, tmp_path: Path) -> None:
    """And only files that end in .json count."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "only.json").write_text(json.dumps({"template": {}}))
    (other / "README.md").write_text("no template")
    done = folder.run("diff", "--folder", str(other))
    assert done.stdout.splitlines() == ["component template only: missing"]


REFUSED = error(403, "security_exception", "action [x] is unauthorized")
AWAY = reply({}, 503)
ODD = [
    reply(b"not json"),
    reply([1]),
    reply({"component_templates": []}),
    reply({"component_templates": [{"name": "shared"}]}),
    reply({"component_templates": [{"name": "shared", "component_template": 1}]}),
]


def test_one_that_is_refused_ends_it_with_the_reason(folder: Folder) -> None:
    """Those before it are installed, nothing behind it is; exit 1, and one line."""
    folder.api.refusals["PUT", "customers"] = error(400, "illegal_argument_exception", "no such type")
    done = folder.run("apply")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "sidecar: Elasticsearch doesn't take the index template customers: 400 no such type\n"
    assert folder.puts == ORDER[:3]
    assert ("index_template", "events") not in folder.api.kept
    folder.api.refusals = {("GET", "shared"): REFUSED}
    for command in ("diff", "apply"):
        done = folder.run(command)
        assert (done.exit_code, done.stdout) == (1, "")
        assert "doesn't show the component template shared: 403 action [x] is unauthorized" in done.stderr
        assert folder.puts == []


@pytest.mark.parametrize("method", ["GET", "PUT"])
@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_who_is_not_there_yet_refuses_nothing(folder: Folder, method: str, status: int) -> None:
    """It may pass by itself: exit 1 here, another try at the start of the sidecar."""
    folder.api.refusals[method, "shared"] = reply({}, status)
    done = folder.run("apply")
    assert (done.exit_code, done.stderr) == (1, f"sidecar: Elasticsearch answered {status}: it is not there yet\n")
    assert folder.puts == [ORDER[0], ORDER[1]][: 1 if method == "GET" else 2]


@pytest.mark.parametrize("answer", range(len(ODD)))
def test_an_answer_in_another_format_is_told(folder: Folder, answer: int) -> None:
    """It is taken neither for a missing template nor for an equal one."""
    folder.api.refusals["GET", "shared"] = ODD[answer]
    done = folder.run("apply")
    assert done.exit_code == 1
    assert "not in Elasticsearch's format" in done.stderr
    assert folder.puts == [ORDER[0]]


def test_a_proxys_404_is_no_missing_template(folder: Folder) -> None:
    """Who answers is found out before anything is asked; nothing is installed there."""
    folder.cluster.handler = lambda _: STRANGER
    done = folder.run("apply")
    assert done.exit_code == 1
    assert "is not Elasticsearch" in done.stderr
    assert folder.puts == []
    assert {request.method for request in folder.cluster.requests} == {"GET", "POST"}


def test_nobody_there_is_told_without_the_login(folder: Folder) -> None:
    """Exit 1."""
    done = folder.run("diff", ELASTICSEARCH_URL=f"http://me:{SECRET}@127.0.0.1:1")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("sidecar: no answer from Elasticsearch: Cannot connect to host 127.0.0.1:1")


def test_the_login_goes_with_every_request(folder: Folder) -> None:
    """And all nodes may be asked."""
    folder.run("apply", ELASTICSEARCH_API_KEY="id:key")
    assert {request.headers["authorization"] for request in folder.cluster.requests} == {"ApiKey aWQ6a2V5"}
    assert all(folder.cluster.served)


def test_files_that_cannot_be_used_are_all_named(folder: Folder) -> None:
    """In one error, which ends the command with 2, and nobody is asked."""
    (folder.path / "unreadable.json").mkdir()
    folder.contents["neither"] = {"mappings": {}}
    (folder.path / "broken.json").write_text("{")
    with pytest.raises(ConfigError) as caught:
        folder.run("apply")
    assert [problem.rsplit("/", 1)[1].split(": ")[:2] for problem in caught.value.problems] == [
        ["broken.json", "is not JSON"],
        ["neither.json", "is no template"],
        ["unreadable.json", "can't be read (Is a directory)"],
    ]
    assert folder.cluster.requests == []


# At the start of the sidecar -----------------------------------------------------------------------------------------


def start(
    handler: Any, contents: dict[str, Any], before: Any = None, stop_at: int = 10_000
) -> tuple[Log, list[NotReady | None]]:
    """Install at the start, with nodes that answer so; `stop_at` tells after how many tries it is told to stop."""
    log = Log()
    told: list[NotReady | None] = []

    async def main() -> None:
        async with asyncio.timeout(60), running(2, handler) as cluster:
            sink = ElasticsearchClient(Connection(urls=cluster.urls))
            stop = asyncio.Event()

            def tell(not_ready: NotReady | None) -> None:
                told.append(not_ready)
                if before is not None and len(told) == 3:
                    before(cluster)
                if len(told) == stop_at:
                    stop.set()

            templates = [
                index_templates.IndexTemplate(name, "index" if "index_patterns" in content else "component", content)
                for name, content in contents.items()
            ]
            try:
                await _install(templates, sink, cast("FilteringBoundLogger", log), stop, tell)
            finally:
                await sink.close()

    asyncio.run(main())
    return log, told


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other at once."""
    monkeypatch.setattr(indexing, "_MAPPINGS_PAUSE_SECONDS", 0.001)


def test_each_template_that_is_installed_at_the_start_is_logged() -> None:
    """With what it was before; it is told last that nothing is missing any more."""
    api = TemplateApi()
    api.kept["component_template", "a common"] = {"template": {}}
    contents = {name: CONTENTS[name] for name in ("a common", "shared", "events")}
    log, told = start(api, contents)
    assert log.named("mappings.applied") == [
        {"kind": "component", "template": "a common", "was": "different"},
        {"kind": "component", "template": "shared", "was": "missing"},
        {"kind": "index", "template": "events", "was": "missing"},
    ]
    assert told == [None]
    assert start(TemplateApi(), {})[1] == [None]


def test_the_start_waits_for_an_elasticsearch_that_is_away() -> None:
    """It tries again until it is there, logs it once, and is not ready for a reason meanwhile."""
    api = TemplateApi()

    def come_back(cluster: HttpCluster) -> None:
        cluster.handler = api

    log, told = start(lambda _: AWAY, {"shared": CONTENTS["shared"]}, come_back)
    assert len(log.named("elasticsearch.unreachable")) == 1
    assert "answered 503" in str(log.named("elasticsearch.unreachable")[0]["reason"])
    assert [not_ready is None for not_ready in told] == [False, False, False, True]
    assert {str(not_ready.reason) for not_ready in told if not_ready is not None} == {"waiting-for-elasticsearch"}
    assert [event["template"] for event in log.named("mappings.applied")] == ["shared"]


def test_the_start_ends_when_it_is_told_to_stop() -> None:
    """However long Elasticsearch is away."""
    log, told = start(lambda _: AWAY, {"shared": CONTENTS["shared"]}, stop_at=5)
    assert len(told) == 6
    assert told[-1] is None
    assert log.named("mappings.applied") == []


def test_a_template_that_is_refused_ends_the_start() -> None:
    """Trying again would change nothing."""
    api = TemplateApi()
    api.refusals["PUT", "shared"] = error(400, "x", "because")
    with pytest.raises(RefusedTemplateError, match="shared: 400 because"):
        start(api, {"shared": CONTENTS["shared"]})
