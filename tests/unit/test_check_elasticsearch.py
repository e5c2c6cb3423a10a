"""`elasticsearch.check`: each finding by an answer of an Elasticsearch in the process, alone and beside others."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest.mock import patch
from urllib.parse import unquote

import pytest
from click.testing import CliRunner

from sidecar.amqp import check as amqp_check
from sidecar.cli import cli
from sidecar.core.encoding.encoder import EncoderConfig
from sidecar.core.encoding.fields import Fields
from sidecar.core.encoding.template import Template
from sidecar.elasticsearch import check as elastic_check
from sidecar.elasticsearch import templates as index_templates
from sidecar.elasticsearch.client import Connection
from tests.fakes.http_server import Act, reply, running, running_in_thread
from tests.fakes.template_api import error

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.core.findings import Finding
    from tests.fakes.http_server import HttpCluster, Received

T = Template
SECRET = "hunter2-is-a-secret"
STRANGER = reply(b"<html>", 404, headers={"x-elastic-product": ""})
STAMPED = Fields({"@timestamp": T("{now}")})
PRIVILEGES = ("index", "create_doc", "delete", "auto_configure", "create_index")
LOGS = "/_resolve/index/logs"
Answers = dict[str, Any]


def encoder_config(**changed: Any) -> EncoderConfig:
    """Return a recipe that nothing is wrong with."""
    return EncoderConfig(**{"index": T("logs"), "action": T("create"), "id_mode": "none", "fields": STAMPED, **changed})


def lacking(*missing: str, names: tuple[str, ...] = ("logs",), cluster: bool = True) -> Answers:
    """Return what Elasticsearch says of a user who lacks some privileges."""
    has = {privilege: privilege not in missing for privilege in PRIVILEGES}
    listed = {"username": "me", "index": dict.fromkeys(names, has), "cluster": {"manage_index_templates": cluster}}
    return {"POST /_security/user/_has_privileges": listed}


def named(kind: str, **detail: Any) -> Answers:
    """Return that the name is of some kind."""
    return {LOGS: {kind: [{"name": "logs-2"}, {"name": "logs", **detail}]}}


def templates(**found: dict[str, Any]) -> Answers:
    """Return that there are index templates."""
    listed = [{"name": name, "index_template": content} for name, content in found.items()]
    return {"/_index_template": {"index_templates": listed}}


def of_logs(setting: str, value: str, name: str = "logs") -> Answers:
    """Return a setting of an index; modes and blocks are asked for one after the other."""
    group = "index.blocks.*" if "blocks" in setting else setting
    return {f"/logs/_settings/{group}": {name: {"settings": {setting: value}}}}


MISSING = {LOGS: {}}
STREAM = named("data_streams")
FITTING: dict[str, Any] = {"index_patterns": ["logs*"], "priority": 1}
BY_TIME = {"template": {"settings": {"index": {"mode": "time_series"}}}}
DEFAULT: Answers = {
    "/": {"cluster_name": "c", "version": {"number": "9.5.0"}},
    **named("indices", attributes=["open"]),
    **templates(other={"index_patterns": ["metrics-*"]}),
    **lacking(),
    "POST /_index_template/_simulate_index/logs": {"template": {"settings": {"index": {"mode": "standard"}}}},
}


class Api:
    """A handler for `tests.fakes.http_server` that answers by method and path, without the query; GET needs no method.

    Attributes:
        answers: JSON, or a ready answer.
        asked: method, path and body of each request.
    """

    def __init__(self, answers: Answers) -> None:
        self.answers = DEFAULT | answers
        self.asked: list[tuple[str, str, bytes]] = []

    def __call__(self, request: Received) -> Act | bytes:
        path = unquote(request.path.partition("?")[0])
        self.asked.append((request.method, path, request.body))
        key = path if request.method == "GET" else f"{request.method} {path}"
        answer = self.answers.get(key, error(404, "not_found", "no"))
        return answer if isinstance(answer, bytes | Act) else reply(answer)


async def all_closed(cluster: HttpCluster) -> None:
    """Wait until no connection is open any more."""
    cluster.released.set()
    while cluster.open_connections:  # noqa: ASYNC110 - the limit is the caller's
        await asyncio.sleep(0.001)


def look(
    api: Api, made: EncoderConfig, installed: tuple[index_templates.IndexTemplate, ...] = (), **options: Any
) -> list[Finding]:
    """Return all that is found."""

    async def main() -> list[Finding]:
        async with asyncio.timeout(60), running(1, api) as cluster:
            found = await elastic_check.check(Connection(urls=cluster.urls, **options), made, templates=installed)
            await all_closed(cluster)
        return found

    return asyncio.run(main())


class Case(NamedTuple):
    """What Elasticsearch answers, and every finding: how bad, where, and words of what and mend."""

    answers: Answers
    expected: tuple[tuple[str, str, str, str], ...] = ()
    changed: dict[str, Any] = {}  # noqa: RUF012 - never written to


DELETING = {"action": T("delete"), "id_mode": "template", "id": T("{header.id}")}
SERIES = ("problem", "index 'logs'", "makes its own ids", "SIDECAR_ID=none")
ROLLOVER = ("after a rollover", "once is a must")
CASES: dict[str, Case] = {
    "all is well": Case({}),
    "security is off": Case({"POST /_security/user/_has_privileges": error(400, "x", "no handler")}),
    "lacks create": Case(
        lacking("create_doc"), (("problem", "index 'logs'", "'me' lacks create_doc there", "create_doc on 'logs'"),)
    ),
    "lacks what it doesn't need": Case(lacking("index", "delete", "create_index")),
    "lacks index and delete of any action": Case(
        lacking("index", "delete"),
        (
            ("problem", "index 'logs'", "lacks index there", "privilege index on 'logs'"),
            ("warning", "indices 'logs'", "lacks delete there", "privilege delete on 'logs'"),
        ),
        {"action": T("{type}"), "id_mode": "none"},
    ),
    "lacks delete": Case(
        lacking("delete"), (("problem", "index 'logs'", "lacks delete there", "delete on 'logs'"),), DELETING
    ),
    "may not create a missing index": Case(
        MISSING | lacking("auto_configure", "create_index") | templates(mine=FITTING),
        (
            ("problem", "index 'logs'", "lacks auto_configure there", "auto_configure on 'logs'"),
            ("note", "index 'logs'", "by the template 'mine'", "nothing needs to be done"),
        ),
    ),
    "may create it, though not with fields": Case(
        MISSING | lacking("auto_configure") | templates(mine=FITTING),
        (
            ("note", "index 'logs'", "an index that is missing isn't created", "auto_configure on 'logs'"),
            ("note", "index 'logs'", "by the template 'mine'", "nothing needs to be done"),
        ),
    ),
    "no new fields in an index": Case(
        lacking("auto_configure"), (("note", "index 'logs'", "lacks auto_configure there: an index", "auto_configure"),)
    ),
    "no new fields in a data stream": Case(
        STREAM | lacking("auto_configure"),
        (("warning", "data stream 'logs'", "a field that the mapping doesn't have comes", "close its mapping"),),
    ),
    "no new fields in a closed data stream": Case(
        STREAM | lacking("auto_configure") | {"/logs/_mapping": {".ds-1": {"mappings": {"dynamic": "strict"}}}}
    ),
    "one backing index is open": Case(
        STREAM
        | lacking("auto_configure")
        | {"/logs/_mapping": {".ds-1": {"mappings": {"dynamic": "false"}}, ".ds-2": {"mappings": {"dynamic": "true"}}}},
        (("warning", "data stream 'logs'", "a field that the mapping doesn't have comes", "close its mapping"),),
    ),
    "names that may not be written to": Case(
        lacking("create_doc", names=("logs-a*",)) | templates(mine=FITTING),
        (("warning", "indices 'logs-a*'", "lacks create_doc on some of the names", "narrow SIDECAR_INDEX_ALLOW"),),
        {"index": T("logs-{type}"), "index_allow": ("logs-a*", "logs-b*")},
    ),
    "can't be seen": Case(
        {LOGS: error(403, "security_exception", "no")},
        (("note", "index 'logs'", "can't be seen by this user", "as a user who may"),),
    ),
    "missing, no template": Case(
        MISSING, (("warning", "index 'logs'", "no index template matches", "sidecar mappings apply"),)
    ),
    "missing by 404": Case(
        {LOGS: error(404, "index_not_found_exception", "no")},
        (("warning", "index 'logs'", "no index template matches", "sidecar mappings apply"),),
    ),
    "missing, templates can't be seen": Case(MISSING | {"/_index_template": error(403, "security_exception", "no")}),
    "missing, the template of the highest priority counts": Case(
        MISSING
        | templates(
            low={**FITTING, "data_stream": {}},
            high={**FITTING, "priority": 9, "allow_auto_create": False},
            none={"index_patterns": ["logs"]},
            other={"index_patterns": ["metrics*"], "priority": 99},
        ),
        (("warning", "index 'logs'", "forbids that a document creates it", "SIDECAR_ON_INDEX_MISSING decides"),),
    ),
    "missing, and may not be created": Case(
        MISSING | {"/_cluster/settings": {"persistent": {"action": {"auto_create_index": "-logs,+*"}}}},
        (
            ("warning", "index 'logs'", "forbids that a document creates it", "permit its name there"),
            ("warning", "index 'logs'", "no index template matches", "create it with its mappings"),
        ),
    ),
    "missing, what is transient counts before what is persistent": Case(
        MISSING
        | templates(mine=FITTING)
        | {
            "/_cluster/settings": {
                "defaults": {"action": {"auto_create_index": "false"}},
                "persistent": {"action": {"auto_create_index": "false"}},
                "transient": {"action": {"auto_create_index": "true"}},
            }
        },
        (("note", "index 'logs'", "by the template 'mine'", "nothing"),),
    ),
    "missing, nothing to delete": Case(
        MISSING | templates(mine=FITTING),
        (
            ("warning", "index 'logs'", "nothing to delete", "SIDECAR_INDEX"),
            ("note", "index 'logs'", "by the template 'mine'", "nothing needs to be done"),
        ),
        DELETING,
    ),
    "missing, a name that is refused": Case(
        {"/_resolve/index/Logs": {}},
        (("problem", "index 'Logs'", "can't create it", "correct SIDECAR_INDEX"),),
        {"index": T("Logs")},
    ),
    "missing, to be a data stream": Case(
        MISSING | templates(mine={**FITTING, "data_stream": {}}),
        (
            ("note", "index 'logs'", "by the template 'mine'", "nothing"),
            ("problem", "data stream 'logs' (to be created by 'mine')", "SIDECAR_ACTION=index", "_ACTION=create"),
        ),
        {"action": T("index")},
    ),
    "missing, to be a time series": Case(
        MISSING
        | templates(mine=FITTING)
        | {"POST /_index_template/_simulate_index/logs": BY_TIME},
        (("note", "index 'logs'", "by the template 'mine'", "nothing"), SERIES),
        {"id_mode": "generated"},
    ),
    "an index of time series": Case(of_logs("index.mode", "time_series"), (SERIES,), {"id_mode": "generated"}),
    "a data stream of time series": Case(
        STREAM | of_logs("index.mode", "time_series", ".ds-logs-1"),
        (("problem", "data stream 'logs'", "makes its own ids", "SIDECAR_ID=none"),),
        {"id_mode": "generated"},
    ),
    "a data stream, and ids": Case(
        STREAM, (("warning", "data stream 'logs'", *ROLLOVER),), {"id_mode": "template", "id": T("{header.id}")}
    ),
    "names that may be data streams": Case(
        templates(mine={**FITTING, "data_stream": {}}) | lacking(names=("logs-*",)),
        (("warning", "data streams 'logs-*' (template 'mine')", "SIDECAR_ACTION=index", "SIDECAR_ACTION=create"),),
        {"index": T("logs-{type}"), "action": T("index")},
    ),
    "names without a template": Case(
        lacking(names=("logs-*",)),
        (("warning", "SIDECAR_INDEX (logs-*)", "no index template seems to match", "sidecar mappings apply"),),
        {"index": T("logs-{type}")},
    ),
    "names that may be time series": Case(
        templates(mine=FITTING)
        | lacking(names=("logs-*",))
        | {"POST /_index_template/_simulate_index/logs-x": BY_TIME},
        (("warning", "names 'logs-*' (template 'mine')", "makes its own ids", "SIDECAR_ID=none"),),
        {"index": T("logs-{type}"), "id_mode": "generated"},
    ),
    "names that are refused": Case(
        lacking(names=("Logs-*",)) | templates(mine={"index_patterns": ["Logs*"]}),
        (("problem", "SIDECAR_INDEX (Logs-*)", "every document is refused", "correct SIDECAR_INDEX"),),
        {"index": T("Logs-{type}")},
    ),
    "names of aliases": Case(
        lacking(names=("Logs-*",))
        | templates(mine={"index_patterns": ["Logs*"]})
        | {"/_resolve/index/Logs-*": {"aliases": [{"name": "Logs-a"}]}},
        (),
        {"index": T("Logs-{type}")},
    ),
    "an alias of one": Case(
        named("aliases", indices="a") | {"/_alias/logs": {"a": {"aliases": {"logs": {}}}}},
    ),
    "an alias of one that is not to be written to": Case(
        named("aliases", indices="a") | {"/_alias/logs": {"a": {"aliases": {"logs": {"is_write_index": False}}}}},
        (("problem", "alias 'logs'", "it stands for a, and none is its write index", "is_write_index"),),
    ),
    "an alias of two": Case(
        named("aliases", indices=["b", "a"])
        | {"/_alias/logs": {"b": {"aliases": {"logs": {}}}, "a": {"aliases": {"logs": {}}}}},
        (("problem", "alias 'logs'", "it stands for a, b, and none is its write index", "is_write_index"),),
    ),
    "an alias of two, one to be written to": Case(
        named("aliases", indices=["b", "a"])
        | {"/_alias/logs": {"b": {"aliases": {"logs": {}}}, "a": {"aliases": {"logs": {"is_write_index": True}}}}},
    ),
    "an alias of data streams": Case(
        named("aliases", indices=["x", ".ds-logs-1"]) | {"/_alias/logs": {}},
        (("problem", "alias 'logs'", "SIDECAR_ACTION=index", "SIDECAR_ACTION=create"),),
        {"action": T("index")},
    ),
    "closed": Case(
        named("indices", attributes=["closed"]), (("problem", "index 'logs'", "it is closed", "POST /logs/_open"),)
    ),
    "blocked": Case(
        of_logs("index.blocks.write", "true"),
        (("problem", "index 'logs'", "it has index.blocks.write", "PUT /logs/_settings"),),
    ),
    "read only": Case(
        of_logs("index.blocks.read_only", "true"),
        (("problem", "index 'logs'", "it has index.blocks.read_only:", "PUT /logs/_settings"),),
    ),
    "a block that is off": Case(of_logs("index.blocks.write", "false")),
    "a full disk": Case(
        of_logs("index.blocks.read_only_allow_delete", "true"),
        (("problem", "index 'logs'", "disk is nearly full", "make room on the disk"),),
    ),
    "a missing pipeline": Case(
        {"/_ingest/pipeline/enrich": error(404, "resource_not_found_exception", "no")},
        (("problem", "pipeline 'enrich'", "it doesn't exist", "unset SIDECAR_PIPELINE"),),
        {"pipeline": T("enrich")},
    ),
    "a pipeline": Case({"/_ingest/pipeline/enrich": {"enrich": {}}}, (), {"pipeline": T("enrich")}),
    "a pipeline that can't be seen": Case(
        {"/_ingest/pipeline/enrich": error(403, "security_exception", "no")}, (), {"pipeline": T("enrich")}
    ),
    "no pipeline": Case({}, (), {"pipeline": T("_none")}),
    "a failure store": Case(
        STREAM | {"/_data_stream/logs": {"data_streams": [{"name": "logs", "failure_store": {"enabled": True}}]}},
        (("note", "data stream 'logs'", "it has a failure store", "SIDECAR_ON_FAILURE_STORE"),),
    ),
    "several at once": Case(
        lacking("create_doc")
        | of_logs("index.blocks.write", "true")
        | of_logs("index.mode", "time_series")
        | {"/_ingest/pipeline/enrich": error(404, "resource_not_found_exception", "no")},
        (
            ("problem", "index 'logs'", "lacks create_doc", "create_doc"),
            ("problem", "index 'logs'", "index.blocks.write", "take the block off"),
            SERIES,
            ("problem", "pipeline 'enrich'", "it doesn't exist", "create it"),
        ),
        {"pipeline": T("enrich"), "id_mode": "generated"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CASES))
def test_each_answer_has_its_findings_and_no_others(name: str) -> None:
    """How bad, where, what and what to do; nothing is written or changed by looking."""
    case = CASES[name]
    api = Api(case.answers)
    found = look(api, encoder_config(**case.changed))
    told = [(finding.severity, finding.where, finding.what, finding.fix) for finding in found]
    assert len(found) == len(case.expected), told
    for (severity, where, what, fix), finding in zip(case.expected, found, strict=True):
        assert (finding.severity, finding.where) == (severity, where), told
        assert what in finding.what, told
        assert fix in finding.fix, told
    changing = [asked for asked in api.asked if asked[0] != "GET" and "/_has_privileges" not in asked[1]]
    assert all("_simulate" in path for _, path, _ in changing), changing


def test_privileges_are_asked_for_what_will_be_done() -> None:
    """What each action needs, on the names that are written to."""
    for action, needed in (("index", "index"), ("create", "create_doc"), ("update", "index"), ("delete", "delete")):
        api = Api({})
        look(api, encoder_config(action=T(action), id_mode="template", id=T("{header.id}")))
        (body,) = [json.loads(body) for _, path, body in api.asked if path.endswith("_has_privileges")]
        assert body == {"index": [{"names": ["logs"], "privileges": [needed, "auto_configure", "create_index"]}]}


# Templates of the sidecar's own --------------------------------------------------------------------------------------

OWN = (
    index_templates.IndexTemplate("shared", "component", {"template": {"mappings": {"a": 1}}}),
    index_templates.IndexTemplate("bad part", "component", {"template": {"mappings": {"b": 2}}}),
    index_templates.IndexTemplate(
        "x", "index", {"index_patterns": ["x"], "composed_of": ["shared", "theirs", "bad part"]}
    ),
    index_templates.IndexTemplate("y", "index", {"index_patterns": ["y"]}),
)


def test_templates_are_simulated_and_those_that_are_refused_are_told() -> None:
    """Each by itself, without components that aren't installed yet; a user who may not install any is told first."""
    refused = error(400, "illegal_argument_exception", "no such type")

    class Simulating(Api):
        def __call__(self, request: Received) -> Act | bytes:
            answer = super().__call__(request)
            if "/_simulate/" not in request.path:
                return answer
            content = json.loads(request.body)
            is_bad = content.get("template") == {"mappings": {"b": 2}} or content["index_patterns"] == ["x"]
            return refused if is_bad else reply({})

    api = Simulating(lacking(cluster=False))
    found = look(api, encoder_config(), OWN)
    assert [(finding.severity, finding.where) for finding in found] == [
        ("problem", "SIDECAR_MAPPINGS_APPLY"),
        ("problem", "component template 'bad part' (SIDECAR_MAPPINGS_DIR)"),
        ("problem", "index template 'x' (SIDECAR_MAPPINGS_DIR)"),
    ]
    assert "'me' lacks manage_index_templates" in found[0].what
    assert "Elasticsearch refuses it: no such type; the sidecar won't start" in found[1].what
    assert found[1].fix == "correct bad part.json"
    simulated = [(path, json.loads(body)) for _, path, body in api.asked if "/_simulate/" in path]
    assert len(simulated) == 4
    assert simulated[2] == ("/_index_template/_simulate/x", {"index_patterns": ["x"], "composed_of": ["theirs"]})
    names = [path.rpartition("/")[2] for path, _ in simulated[:2]]
    assert len(set(names)) == 2
    for (_, content), name, own in zip(simulated, names, OWN, strict=False):
        assert content == {"index_patterns": [name], "priority": 0, "template": own.content["template"]}
        assert name.startswith("sidecar-check-")
    # Not asked where none will be installed.
    api = Api(lacking(cluster=False))
    assert look(api, encoder_config()) == []
    assert not [path for _, path, _ in api.asked if "_simulate" in path]


# Nodes ---------------------------------------------------------------------------------------------------------------


def look_at_nodes(handler: Callable[[Received], Act | bytes], prepare: Callable[[HttpCluster], Any]) -> Any:
    """Check a cluster of three nodes; return the findings and the URLs."""

    async def main() -> Any:
        async with asyncio.timeout(60), running(3, handler) as cluster:
            await prepare(cluster)
            connection = Connection(urls=cluster.urls, username="me", password=SECRET, timeout_seconds=0.5)
            with patch.object(
                elastic_check._Node, "close", autospec=True, side_effect=elastic_check._Node.close
            ) as close:
                found = await elastic_check.check(connection, encoder_config())
            assert close.await_count == len(cluster.urls)
            await all_closed(cluster)
            return found, cluster

    return asyncio.run(main())


@pytest.mark.parametrize("well", [(), (0,), (1,), (2,), (0, 2)])
def test_each_node_that_cannot_be_used_is_told_and_the_first_good_one_is_asked(well: tuple[int, ...]) -> None:
    """Warnings while another does the work; problems if there is none. Without the login."""
    api = Api(MISSING)

    def handler(request: Received) -> Act | bytes:
        return api(request) if request.node in well else STRANGER

    async def prepare(_: HttpCluster) -> None:
        pass

    found, cluster = look_at_nodes(handler, prepare)
    strange = [finding for finding in found if "is not Elasticsearch" in finding.what]
    assert [finding.where for finding in strange] == [
        f"Elasticsearch {url}" for node, url in enumerate(cluster.urls) if node not in well
    ]
    assert {finding.severity for finding in strange} == {"warning" if well else "problem"}
    assert len(found) - len(strange) == bool(well)
    assert {request.node for request in cluster.requests if request.path != "/" and "_bulk" not in request.path} == set(
        well[:1]
    )
    assert SECRET not in repr(found)
    assert {request.headers["authorization"] for request in cluster.requests} == {
        "Basic bWU6aHVudGVyMi1pcy1hLXNlY3JldA=="
    }


def test_each_way_to_be_away_has_its_words() -> None:
    """Refused, broken, silent: one finding each."""

    async def prepare(cluster: HttpCluster) -> None:
        await cluster.down(0)
        cluster.hang_ups = {1}

    found, _ = look_at_nodes(lambda _: Act(end="hang"), prepare)
    refused, broken, silent = found
    assert "can't be reached: Cannot connect" in refused.what
    assert "can't be reached: Server disconnected" in broken.what or "reset" in broken.what
    assert "can't be reached: Connection timed out" in silent.what
    assert {finding.severity for finding in found} == {"problem"}
    assert all("SIDECAR_ELASTICSEARCH_URL" in finding.fix for finding in found)


@pytest.mark.parametrize("number", [0, 1, 2, 3, 4])
def test_a_check_that_breaks_off_is_told_with_all_that_was_found_before(number: int) -> None:
    """An answer that doesn't come, or is in no format, hides nothing that is known already."""
    odd = (Act(answer=b"HTTP/1.1 2", end="close"), reply({"index_templates": [{}]}), reply({"indices": [1]}))
    first = (
        "/_index_template",
        LOGS,
        "/logs/_settings/index.blocks.*",
        "/logs/_settings/index.mode",
        "/_ingest/pipeline/p",
    )
    answers: Answers = {first[number]: odd[0]}
    if number in (0, 1):
        answers = {first[number]: odd[number + 1]}
    found = look(Api(lacking("create_doc") | answers), encoder_config(pipeline=T("p")))
    assert found[-1].severity == "problem"
    assert "the check " in found[-1].what
    assert ("format" in found[-1].what) == (number in (0, 1))
    assert len([finding for finding in found if "lacks create_doc" in finding.what]) == (number > 1)


# The command ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "status", "last"),
    [
        ({}, 0, "nothing found"),
        (MISSING, 0, "1 warning"),
        (lacking("index"), 1, "1 problem"),
        ({"/": STRANGER, "POST /logs/_bulk": STRANGER}, 1, "1 problem"),
    ],
)
@pytest.mark.parametrize("form", ["text", "json"])
def test_the_command_tells_findings_and_ends_by_the_worst(
    monkeypatch: pytest.MonkeyPatch, answers: Answers, status: int, last: str, form: str
) -> None:
    """0 without a problem, 1 with one; for people and for programs."""

    async def nothing(*_: Any, **__: Any) -> list[Finding]:
        return []

    monkeypatch.setattr(amqp_check, "check", nothing)
    with running_in_thread(1, Api(answers)) as cluster:
        environment = {
            "SIDECAR_AMQP_URL": "amqp://127.0.0.1:1", "SIDECAR_AMQP_QUEUE": "q", "SIDECAR_INDEX": "logs",
            "SIDECAR_ID": "{header.id}", "SIDECAR_ELASTICSEARCH_URL": cluster.urls[0],
        }  # fmt: skip
        done = CliRunner().invoke(cli, ["check", "--format", form], env=environment, catch_exceptions=False)
    assert done.exit_code == status, done.output
    if form == "text":
        assert done.stdout.splitlines()[-1] == last
    else:
        told = json.loads(done.stdout)
        assert told["ok"] == (status == 0)
        assert len(told["findings"]) == sum(told[name] for name in ("problems", "warnings", "notes"))
