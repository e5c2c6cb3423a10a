"""`sidecar check`: what settings alone give away, and how findings are told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path  # noqa: TC003 - pytest looks at the annotations of fixtures
from typing import Any, Protocol

import pytest
from click.testing import CliRunner, Result

from sidecar.cli import cli
from sidecar.cli.check import _forwarding_loop, as_json, as_text
from sidecar.config.settings import load
from sidecar.core.encoding.encoder import EncoderConfig
from sidecar.core.encoding.fields import Fields
from sidecar.core.encoding.template import Template
from sidecar.core.findings import Finding, Traits, by_severity, names_pattern, on_data_stream, on_time_series, traps
from sidecar.elasticsearch.check import permits
from tests.builders import without_settings

T = Template
PREFIX = "SIDECAR_"
GOOD: dict[str, Any] = {
    "prefetch": 6000,
    "batch_max_items": 1000,
    "bulk_concurrency": 4,
    "bulk_timeout_seconds": 20.0,
    "shutdown_timeout_seconds": 25.0,
}
STAMPED = Fields({"@timestamp": T("{now}")})
IDENTIFIED = EncoderConfig(index=T("logs"), id_mode="template", id=T("{header.id}"))


def found(encoder_config: EncoderConfig = IDENTIFIED, **changed: Any) -> list[tuple[str, str]]:
    """Return severity and place of what the settings give away."""
    return [
        (finding.severity, finding.where)
        for finding in traps(Traits(encoder_config=encoder_config, **(GOOD | changed)))
    ]


def test_settings_that_fit_give_nothing_away() -> None:
    """No finding without a reason."""
    assert found() == []


def test_a_prefetch_that_keeps_requests_waiting_is_told_with_the_sum() -> None:
    """As many batches as may be in flight, and the one that fills meanwhile."""
    assert found(prefetch=5000) == []
    (finding,) = traps(Traits(encoder_config=IDENTIFIED, **(GOOD | {"prefetch": 4999})))
    assert (finding.severity, finding.where) == ("warning", "SIDECAR_AMQP_PREFETCH")
    assert "1000 x (concurrency 4 + 1) = 5000" in finding.what
    assert "4999 is room for 4 full batches" in finding.what


def test_a_drain_shorter_than_a_request_is_told_with_both_numbers() -> None:
    """A request that is cut off may have been stored."""
    assert found(bulk_timeout_seconds=25.0) == []
    (finding,) = traps(Traits(encoder_config=IDENTIFIED, **(GOOD | {"bulk_timeout_seconds": 60.0})))
    assert (finding.severity, finding.where) == ("warning", "SIDECAR_SHUTDOWN_TIMEOUT")
    assert "25 s" in finding.what
    assert "60 s" in finding.what


def test_a_field_that_no_document_may_have_is_told() -> None:
    """With SIDECAR_ID={body._id} everything is refused; a text and a deletion hold no such field."""
    ids = {"index": T("logs"), "id_mode": "template"}
    assert found(EncoderConfig(**ids, id=T("{body._id}"))) == [("problem", "{body._id}")]
    assert found(EncoderConfig(**ids, id=T("{body._id}"), action=T("{type}"))) == [("warning", "{body._id}")]
    assert found(EncoderConfig(**ids, id=T("{body._id}"), action=T("delete"))) == []
    assert found(EncoderConfig(**ids, id=T("{body._id}"), content="text")) == []
    assert found(EncoderConfig(**ids, id=T("{body.o._id}{body._ids}"))) == []


@pytest.mark.parametrize("mode", ["auto", "none", "generated"])
def test_ids_that_do_not_come_from_the_message_are_noted(mode: Any) -> None:
    """A message that is delivered again after it was stored is stored again."""
    assert found(EncoderConfig(index=T("logs"), id_mode=mode)) == [("note", f"SIDECAR_ID={mode}")]


@pytest.mark.parametrize(
    ("index", "mode", "is_told"),
    [
        ("logs-{now:%Y.%m.%d}", "template", True),
        ("logs-{now:%Y.%m.%d}", "auto", True),
        ("logs-{now:%Y.%m.%d}", "none", False),
        ("logs-{timestamp:%Y.%m.%d}", "template", False),
        ("logs", "template", False),
    ],
)
def test_a_name_that_depends_on_the_clock_is_told_where_ids_are_to_make_it_once(
    index: str, mode: Any, is_told: bool
) -> None:
    """Redelivered after midnight, the document is in two indices."""
    document_id = T("{header.id}") if mode == "template" else None
    assert (
        ("warning", "SIDECAR_INDEX") in found(EncoderConfig(index=T(index), id_mode=mode, id=document_id))
    ) is is_told


@pytest.mark.parametrize(
    ("action", "severity"),
    [("create", "problem"), ("{header.action}", "warning"), ("index", None), ("delete", None)],
)
def test_a_version_beside_an_action_that_takes_none_is_told(action: str, severity: str | None) -> None:
    """Those messages are rejected."""
    encoder_config = EncoderConfig(
        index=T("logs"), id_mode="template", id=T("{header.id}"), action=T(action), version=T("{header.version}")
    )
    assert found(encoder_config) == ([(severity, "SIDECAR_VERSION")] if severity else [])


def test_a_version_beside_ids_that_are_made_here_is_told() -> None:
    """It orders writes of one document, of which there is only one."""
    encoder_config = EncoderConfig(index=T("logs"), id_mode="generated", version=T("{header.version}"))
    assert ("warning", "SIDECAR_VERSION") in found(encoder_config)


def test_nothing_can_be_folded_where_each_message_has_an_id_of_its_own() -> None:
    """Coalescing without ids does nothing, and whoever switched it on expects something."""
    for mode, said in (("none", True), ("generated", True), ("auto", False)):
        encoder_config = EncoderConfig(index=T("docs"), id_mode=mode, coalesce="latest")  # type: ignore[arg-type]
        assert (("warning", "SIDECAR_BATCH_COALESCE") in found(encoder_config)) is said


def test_discarding_rejects_is_noted() -> None:
    """They are kept nowhere."""
    assert found(on_reject="discard") == [("note", "SIDECAR_ON_REJECT")]


@pytest.mark.parametrize(
    ("action", "is_certain", "severities"),
    [
        ("create", True, []),
        ("index", True, ["problem"]),
        ("update", True, ["problem"]),
        ("delete", False, ["warning"]),
        ("{header.action|create}", True, ["warning"]),
    ],
)
def test_a_data_stream_takes_nothing_but_create(action: str, is_certain: bool, severities: list[str]) -> None:
    """All else is refused by Elasticsearch, document by document."""
    encoder_config = EncoderConfig(index=T("logs"), id_mode="none", action=T(action), fields=STAMPED)
    assert [
        finding.severity for finding in on_data_stream(encoder_config, "there", is_certain=is_certain)
    ] == severities


def test_a_data_stream_needs_a_timestamp() -> None:
    """Whether bodies have it isn't known; where the sidecar adds it, all is well."""
    encoder_config = EncoderConfig(index=T("logs"), id_mode="none", action=T("create"))
    (finding,) = on_data_stream(encoder_config, "there")
    assert (finding.severity, "@timestamp" in finding.what) == ("note", True)
    assert on_data_stream(replace(encoder_config, fields=STAMPED), "there") == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"id_mode": "none"}, []),
        ({"id_mode": "auto"}, ["ids"]),
        ({"id_mode": "generated"}, ["ids"]),
        ({"id_mode": "template", "id": T("{type}")}, ["ids"]),
        ({"id_mode": "none", "routing": T("{type}")}, ["routing"]),
        ({"id_mode": "template", "id": T("{type}"), "action": T("upsert")}, ["ids", "SIDECAR_ACTION"]),
    ],
)
def test_a_time_series_takes_neither_ids_nor_routing_nor_updates(changes: dict[str, Any], words: list[str]) -> None:
    """Every document would be refused, so each is a problem."""
    encoder_config = replace(EncoderConfig(index=T("metrics"), id_mode="none", action=T("create")), **changes)
    found = on_time_series(encoder_config, "there")
    assert [finding.severity for finding in found] == ["problem"] * len(words)
    assert all(word in finding.what for word, finding in zip(words, found, strict=True))


def test_ids_and_routing_in_a_data_stream_are_told() -> None:
    """Ids hold within a backing index; a routing is refused."""
    encoder_config = EncoderConfig(
        index=T("logs"), id_mode="auto", action=T("create"), routing=T("{header.tenant}"), fields=STAMPED
    )
    whats = [finding.what for finding in on_data_stream(encoder_config, "there")]
    assert len(whats) == 2
    assert "routing" in whats[0]
    assert "rollover" in whats[1]


@pytest.mark.parametrize(
    ("template", "pattern"),
    [("logs", "logs"), ("logs-{type}-{now:%Y}", "logs-*-*"), ("{{x}}-{a}{b|c}", "{x}-*"), ("{type}", "*")],
)
def test_the_names_of_a_template_as_a_pattern(template: str, pattern: str) -> None:
    """Every field may be anything."""
    assert names_pattern(template) == pattern


@pytest.mark.parametrize(
    ("rule", "name", "may"),
    [
        ("true", "x", True),
        ("false", "x", False),
        ("+logs-*,-*", "logs-1", True),
        ("+logs-*,-*", "x", False),
        ("-logs-1,logs-*", "logs-1", False),
        ("logs-*", "x", False),
    ],
)
def test_which_indices_documents_may_create(rule: str, name: str, may: bool) -> None:
    """The first pattern that matches decides; none forbids."""
    assert permits(rule, name) is may


PROBLEM = Finding("problem", "queue 'q'", "it is\naway", "bring it back")
NOTE = Finding("note", "index 'i'", "so it is", "nothing")


def test_the_worst_come_first_and_each_once() -> None:
    """Two queues may share their dead letters."""
    assert by_severity([NOTE, PROBLEM, NOTE]) == [PROBLEM, NOTE]


def test_text_has_a_line_for_what_and_one_for_the_mend() -> None:
    """Each stays on its line, whatever a server said."""
    assert as_text([PROBLEM, NOTE]).splitlines() == [
        "problem  queue 'q': it is away",
        "         -> bring it back",
        "note     index 'i': so it is",
        "         -> nothing",
        "1 problem, 1 note",
    ]
    assert as_text([]) == "nothing found\n"


def test_json_says_the_same() -> None:
    """For programs."""
    told = json.loads(as_json([PROBLEM, NOTE]))
    assert (told["ok"], told["problems"], told["warnings"], told["notes"]) == (False, 1, 0, 1)
    assert told["findings"][0] == PROBLEM.as_dict()
    assert json.loads(as_json([NOTE]))["ok"] is True


class Run(Protocol):
    """Runs the command in an environment of nothing but what is given."""

    def __call__(self, **settings: str) -> Result:
        """Run it."""
        ...


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Return a runner that nothing on this machine has an influence on."""
    monkeypatch.chdir(tmp_path)
    nothing = without_settings()

    def run(**settings: str) -> Result:
        given = {PREFIX + name: text for name, text in settings.items()}
        return CliRunner().invoke(cli, ["check"], env=nothing | given)

    return run


def test_files_for_tls_that_cannot_be_used_are_told_for_both_sides(checked: Run, tmp_path: Path) -> None:
    """As bad settings, before either server is spoken to."""
    no_certificate = tmp_path / "ca.pem"
    no_certificate.write_text("no certificate")
    result = checked(
        AMQP_QUEUE="q", INDEX="i", AMQP_CA_FILE=str(no_certificate), ELASTICSEARCH_CA_FILE=str(no_certificate)
    )
    problems = getattr(result.exception, "problems", [])
    assert [problem.partition(" ")[0] for problem in problems] == [
        "SIDECAR_AMQP_CA_FILE",
        "SIDECAR_ELASTICSEARCH_CA_FILE",
    ]


def test_bad_settings_are_all_told_before_anything_is_looked_at(checked: Run) -> None:
    """As for every other command."""
    result = checked(AMQP_QUEUE="q", BATCH_MAX_ITEMS="many", AMQP_URL="http://user:hunter2@x/")
    problems = getattr(result.exception, "problems", [])
    assert len(problems) == 3
    assert "hunter2" not in "".join(problems)


def test_a_hold_longer_than_the_consumer_timeout_is_told() -> None:
    """The broker would close the channel, and deliver everything again."""
    assert found(hold_max_seconds=1799.0) == []
    assert found(hold_max_seconds=1800.0) == [("warning", "SIDECAR_HOLD_MAX")]


def test_memory_that_has_no_room_for_the_requests_is_told_with_the_sum() -> None:
    """Batches would be completed by pressure, smaller than configured."""
    assert found(memory_limit_bytes=25 * 1024 * 1024) == []
    (finding,) = traps(Traits(encoder_config=IDENTIFIED, **(GOOD | {"memory_limit_bytes": 25 * 1024 * 1024 - 1})))
    assert finding.where == "SIDECAR_MEMORY_LIMIT"
    assert "5 x 5,242,880 = 26,214,400" in finding.what


def test_what_is_about_documents_is_no_trap_of_another_exchange() -> None:
    """Where messages are only passed on, there are no ids, versions or indices to trip over."""
    passing_on = EncoderConfig(index=T("{routing_key}-{now}"), action=T("publish"), id_mode="auto")
    assert found(passing_on) == []
    assert found(passing_on, on_reject="discard") == [("note", "SIDECAR_ON_REJECT")]


@pytest.mark.parametrize(
    ("exchange", "url", "is_warned"),
    [("events", "", True), ("events", "amqp://elsewhere", False), ("others", "", False), ("", "", False)],
)
def test_an_exchange_that_messages_are_taken_from_and_published_to_is_told(
    exchange: str, url: str, is_warned: bool
) -> None:
    """On the same broker alone: bindings may bring each message back."""
    given = {
        "SINK": "amqp", "AMQP_QUEUE": "work", "AMQP_EXCHANGE": "events", "AMQP_ROUTING_KEYS": "a",
        "SINK_EXCHANGE": exchange, "SINK_ROUTING_KEY": "b", **({"SINK_AMQP_URL": url} if url else {}),
    }  # fmt: skip
    settings = load({PREFIX + name: text for name, text in given.items()})
    findings = _forwarding_loop(settings)
    assert [finding.where for finding in findings] == (["SIDECAR_SINK_EXCHANGE"] if is_warned else [])
