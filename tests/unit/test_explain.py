"""`sidecar explain`: the very bytes that `run` sends, and the verdicts of the table."""

from __future__ import annotations

import gzip
import json
from pathlib import Path  # noqa: TC003 - pytest looks at the annotations of fixtures
from typing import Any, Protocol

import pytest
from click.testing import CliRunner, Result

from sidecar.cli import cli
from sidecar.cli.explain import COURSES
from sidecar.cli.run import pipeline_config
from sidecar.config.settings import PREFIX, load
from sidecar.core.encoding.encoder import BulkEncoder
from sidecar.core.results import bulk
from sidecar.core.results.policy import ITEM_RULES, Disposition, RequestOutcome, ResultClass, Rule
from sidecar.errors import ConfigError
from tests.builders import long_string, message, properties, without_settings


class Explained(Protocol):
    """Runs the command in an environment of nothing but what is given."""

    def __call__(self, body: bytes, *arguments: str, **settings: str) -> Result:
        """Run it."""
        ...


@pytest.fixture
def explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Explained:
    """Return a runner that nothing on this machine has an influence on."""
    monkeypatch.chdir(tmp_path)
    nothing = without_settings()

    def run(body: bytes, *arguments: str, **settings: str) -> Result:
        environment = {PREFIX + name: value for name, value in {"INDEX": "logs", **settings}.items()}
        return CliRunner().invoke(cli, ["explain", *arguments], env=nothing | environment, input=body)

    return run


def as_json(result: Result, *, exit_code: int = 0) -> dict[str, Any]:
    """Return what the format ``json`` says."""
    assert (result.exit_code, result.stderr) == (exit_code, ""), result.output
    told: dict[str, Any] = json.loads(result.stdout)
    return told


def sent_by_run(settings: dict[str, str], made: Any) -> tuple[str, bytes]:
    """Return path and body of the request that the parts of `run` make of a message."""
    full = {PREFIX + name: value for name, value in {"INDEX": "logs", "AMQP_QUEUE": "work", **settings}.items()}
    encoder_config = pipeline_config(load(full)).encoder_config
    accepted, rejections = BulkEncoder(encoder_config, lambda: "made").encode([made], 1_700_000_000.0)
    assert rejections == []
    return bulk.path(encoder_config.path_index), bulk.body(accepted)


SAMPLES = [
    (b'{"a":1}', {}),
    (b'{"a":1e2,"b":12345678901234567890123,"c":"\xc3\xa9\\u00e9"}', {}),
    (b'  {\n "a": 1\r\n}\n', {"ACTION": "create"}),
    (b'{"a":1}', {"ACTION": "update", "ID": "{header.tenant}-{message_id}"}),
    (b'{"a":1}', {"ACTION": "upsert", "ROUTING": "{header.tenant}", "PIPELINE": "clean"}),
    (b"anything at all", {"ACTION": "delete"}),
    (b'{"v":7}', {"VERSION": "{body.v}", "VERSION_TYPE": "external_gte"}),
    (b'{"a":1}', {"INDEX": "{routing_key}-{exchange}-{timestamp:%Y.%m}", "ACTION": "{header.action|create}"}),
    (b'{"a":1}', {"INDEX": "{app_id}-{queue}-{type}", "ID": "none"}),
    (b'{"a":1e2}', {"FIELDS": '{"@timestamp": "{timestamp}", "a": "x", "q.n": "{header.tenant}"}'}),
    (b'a\n"text"', {"CONTENT": "text", "ACTION": "upsert", "FIELDS": '{"t": "{type}"}'}),
]


@pytest.mark.parametrize(("body", "settings"), SAMPLES)
def test_the_bytes_are_those_that_run_sends(explained: Explained, body: bytes, settings: dict[str, str]) -> None:
    """Path and body, whatever the settings take from the message."""
    made = message(
        1,
        body,
        raw=properties(
            [(b"tenant", long_string(b'a"b'))],
            message_id=b'i"d\xc3\xa9',
            type=b"order",
            app_id=b"shop",
            timestamp=1_700_000_000_123,
        ),
        route=b"\x02ex\x03key",
    )
    path, request = sent_by_run(settings, made)
    options = [
        '--message-id=i"dé', "--type=order", "--app-id=shop", "--timestamp=1700000000123", '--header=tenant=a"b',
        "--exchange=ex", "--routing-key=key",
    ]  # fmt: skip
    result = explained(body, *options, AMQP_QUEUE="work", **settings)
    assert result.exit_code == 0, result.output
    assert result.stdout_bytes == f"POST {path}\n\n".encode() + request
    told = as_json(explained(body, *options, "--format=json", AMQP_QUEUE="work", **settings))
    assert told == {"accepted": True, "method": "POST", "path": path, "body": request.decode()}


def test_the_body_may_stand_in_a_file(explained: Explained, tmp_path: Path) -> None:
    """Named, or ``-`` for standard input."""
    (tmp_path / "body.json").write_bytes(b'{"from":"file"}')
    assert as_json(explained(b"", "body.json", "--format=json"))["body"] == '{"index":{}}\n{"from":"file"}\n'
    assert as_json(explained(b"{}", "-", "--format=json"))["body"] == '{"index":{}}\n{}\n'


def test_only_the_index_need_be_set(explained: Explained) -> None:
    """No queue is consumed here; where its name matters, it is asked for."""
    assert explained(b"{}").exit_code == 0
    for template in ("{queue}", "{routing_key}"):
        refused = explained(b"{}", INDEX=template)
        assert refused.exit_code == 2
        assert "--queue" in refused.stderr
    assert '"_index":"work"' in explained(b"{}", "--queue=work", INDEX="{queue}").stdout
    assert '"_index":"work"' in explained(b"{}", "--queue=work", INDEX="{routing_key}").stdout
    assert '"_index":"first"' in explained(b"{}", INDEX="{queue}", AMQP_QUEUE="first,second").stdout
    assert '"_index":"key"' in explained(b"{}", "--routing-key=key", INDEX="{routing_key}").stdout


def test_an_id_made_here_has_the_shape_of_those_of_run(explained: Explained) -> None:
    """128 bits as hexadecimal digits, others each time."""
    one, two = (as_json(explained(b"{}", "--format=json", ID="generated"))["body"] for _ in range(2))
    assert one != two
    assert len(json.loads(one.split("\n")[0])["index"]["_id"]) == 32


@pytest.mark.parametrize(
    ("body", "settings", "reason"),
    [
        (b"[1]", {}, "malformed"),
        (b"", {}, "malformed"),
        (b'{"a":"\xff"}', {}, "malformed"),
        (b'{"a":1},"upsert":{"x":1}', {"ACTION": "update", "ID": "{sha256}"}, "malformed"),
        (b'{"_id":"7"}', {"ID": "{body._id}"}, "malformed"),
        (b'{"t":"soon"}', {"INDEX": "logs-{body.t:%Y|none}"}, "malformed"),
        (b"{,}", {"INDEX": "logs-{body.t|none}"}, "malformed"),
        (b"{}", {"INDEX": "{header.absent}"}, "missing-field"),
        (b"{}", {"ACTION": "delete"}, "missing-field"),
        (b"{}", {"INDEX": "{app_id|.secret}"}, "index-not-allowed"),
    ],
)
def test_a_reject_says_why_and_exits_with_1(
    explained: Explained, body: bytes, settings: dict[str, str], reason: str
) -> None:
    """Nothing is shown of a request that would never be made, not even with an answer to it."""
    result = explained(body, "--status=200", AMQP_QUEUE="work", **settings)
    assert (result.exit_code, result.stderr) == (1, "")
    assert result.stdout.startswith(f"rejected before any request: {reason}: ")
    assert result.stdout.endswith(f"dead-lettered to 'work.dead': {reason}\n")
    told = as_json(explained(body, "--format=json", AMQP_QUEUE="work", **settings), exit_code=1)
    assert told["accepted"] is False
    assert told["reject"]["reason"] == reason
    assert told["reject"]["detail"]


@pytest.mark.parametrize("action", ["index", "update"])
def test_a_name_that_elasticsearch_refuses_is_a_warning(explained: Explained, action: str) -> None:
    """Also where no template looks into the body: everything would come back as an error."""
    settings = {"AMQP_QUEUE": "work", "ACTION": action, "ID": "{sha256}"}
    warning = "the document has the field _id, which Elasticsearch refuses inside a document"
    assert warning in explained(b'{"_id":"7"}', **settings).stdout
    assert as_json(explained(b'{"_id":"7"}', "--format=json", **settings))["warning"].startswith(warning)
    assert "warning" not in explained(b'{"o":{"_id":"7"}}', **settings).stdout


def test_a_date_out_of_the_body_is_shown(explained: Explained) -> None:
    """As the index that it names."""
    result = explained(b'{"@timestamp":"2026-12-01T01:00:00+02:00"}', INDEX="logs-{body.@timestamp:%Y.%m.%d}")
    assert '"_index":"logs-2026.11.30"' in result.stdout


@pytest.mark.parametrize("rule", ITEM_RULES, ids=lambda rule: f"{min(rule.statuses)}-{rule.result_class.value}")
def test_every_row_of_the_table_can_be_asked_for(explained: Explained, rule: Rule) -> None:
    """Each status and error type of each row gives that row, and says what is done."""
    action = min(rule.actions, default="index")
    for status in sorted(rule.statuses)[:3]:
        for error_type in rule.error_types or {"some_exception"}:
            options = [f"--status={status}", f"--error-type={error_type}", "--message-id=1", "--format=json"]
            told = as_json(explained(b"{}", *options, ACTION=action))["verdict"]
            if status == 503:
                assert told["rule"] == "throttled"  # a row above
            else:
                assert (told["rule"], told["why"]) == (rule.result_class.value, rule.why)
            assert told["done"]


@pytest.mark.parametrize(
    ("status", "error_type", "options", "settings", "fate"),
    [
        (200, "", (), {}, Disposition.STORED),
        (404, "", (), {"ACTION": "delete"}, Disposition.STORED),
        (404, "index_not_found_exception", (), {}, Disposition.DEAD_LETTER),
        (404, "index_not_found_exception", (), {"ON_INDEX_MISSING": "delay"}, Disposition.DELAY),
        (404, "index_not_found_exception", (), {"ON_INDEX_MISSING": "hold"}, Disposition.RETRY_UNTIL_ROUTABLE),
        (403, "security_exception", (), {}, Disposition.DELAY),
        (403, "security_exception", (), {"ON_INDEX_BLOCKED": "dead-letter"}, Disposition.DEAD_LETTER),
        (409, "x", (), {"ACTION": "create"}, Disposition.STORED),
        (409, "x", (), {"ACTION": "create", "ON_CONFLICT": "dead-letter"}, Disposition.DEAD_LETTER),
        (409, "x", ("--redelivered",), {"ACTION": "create", "ON_CONFLICT": "dead-letter"}, Disposition.STORED),
        (409, "x", (), {"ACTION": "update"}, Disposition.RETRY),
        (409, "x", (), {"ACTION": "upsert"}, Disposition.RETRY),
        (429, "x", (), {}, Disposition.THROTTLED),
        (500, "x", (), {}, Disposition.RETRY),
        (500, "x", (), {"RETRY_MAX_ATTEMPTS": "1"}, Disposition.DEAD_LETTER),
        (500, "x", (), {"RETRY_MAX_ATTEMPTS": "1", "ID": "none"}, Disposition.DELAY),
        (418, "unheard_of", (), {}, Disposition.DEAD_LETTER),
    ],
)
def test_what_is_done_depends_on_the_settings(
    explained: Explained,
    status: int,
    error_type: str,
    options: tuple[str, ...],
    settings: dict[str, str],
    fate: Disposition,
) -> None:
    """Rule, settings and the message's own history are put together as in `run`."""
    arguments = (f"--status={status}", f"--error-type={error_type}", "--message-id=1", "--format=json", *options)
    assert as_json(explained(b"{}", *arguments, **settings))["verdict"]["fate"] == fate.value


@pytest.mark.parametrize(
    ("choice", "fate", "done"), [("ack", "stored", "acked"), ("dead-letter", "dead_letter", "failure-store")]
)
def test_what_a_failure_store_took_can_be_asked_for(explained: Explained, choice: str, fate: str, done: str) -> None:
    """Elasticsearch answers 201 then, so a status alone doesn't say it."""
    told = as_json(explained(b"{}", "--failure-store", "--format", "json", ON_FAILURE_STORE=choice))["verdict"]
    assert (told["status"], told["rule"], told["fate"]) == (201, "failure_store", fate)
    assert done in told["done"]
    assert explained(b"{}", "--failure-store", "--status", "400").exit_code == 2


def test_what_follows_the_last_attempt_is_told(explained: Explained) -> None:
    """Only where attempts count."""
    failed = as_json(explained(b"{}", "--status=500", "--format=json"))["verdict"]
    assert (failed["fate"], failed["then"]) == ("again", "delay")
    assert failed["rule"] == ResultClass.RETRYABLE.value
    assert "then" not in as_json(explained(b"{}", "--status=429", "--format=json"))["verdict"]
    assert "and after the last: dead-lettered" in explained(b"{}", "--status=500", "--message-id=1").stdout
    only = as_json(explained(b"{}", "--status=500", "--format=json", RETRY_MAX_ATTEMPTS="1"))["verdict"]
    assert (only["fate"], "then" in only) == ("delay", False)


@pytest.mark.parametrize("action", ["update", "{type}"])
def test_a_result_is_told_by_the_action_wherever_that_comes_from(explained: Explained, action: str) -> None:
    """A conflict of an update counts as an attempt, that of an index operation doesn't."""
    told = as_json(explained(b"{}", "--status=409", "--type=update", "--message-id=1", "--format=json", ACTION=action))
    assert told["verdict"]["rule"] == ResultClass.RETRYABLE.value


@pytest.mark.parametrize(
    ("settings", "done"),
    [
        ({}, "dead-lettered to 'work.dead': rejected"),
        ({"ON_REJECT": "discard"}, "discarded: rejected"),
        ({"ON_REJECT": "broker"}, "rejected, for the queue's own dead-letter exchange to take: rejected"),
        (
            {"DEAD_LETTER_EXCHANGE": "dlx", "DEAD_LETTER_ROUTING_KEY": "bad"},
            "dead-lettered to the exchange 'dlx' with the routing key 'bad': rejected",
        ),
    ],
)
def test_where_a_reject_goes(explained: Explained, settings: dict[str, str], done: str) -> None:
    """As it is configured."""
    told = as_json(explained(b"{}", "--status=400", "--format=json", AMQP_QUEUE="work", **settings))
    assert told["verdict"]["done"] == done


@pytest.mark.parametrize(
    ("status", "error_type", "reason", "course"),
    [
        (503, "", "", RequestOutcome.OUTCOME_UNKNOWN),
        (200, "", "", RequestOutcome.OUTCOME_UNKNOWN),
        (429, "x", "", RequestOutcome.THROTTLED),
        (413, "", "", RequestOutcome.SPLIT_SIZE),
        (400, "x_content_parse_exception", "", RequestOutcome.BISECT),
        (400, "illegal_argument_exception", "unrecognized parameter: [x]", RequestOutcome.HOLD),
        (401, "security_exception", "", RequestOutcome.HOLD),
    ],
)
def test_an_answer_to_the_whole_request(
    explained: Explained, status: int, error_type: str, reason: str, course: RequestOutcome
) -> None:
    """With ``--request``; each course is told in a sentence."""
    arguments = [f"--status={status}", f"--error-type={error_type}", f"--error-reason={reason}", "--request"]
    told = as_json(explained(b"{}", *arguments, "--format=json"))["request"]
    assert (told["rule"], told["done"]) == (course.value, COURSES[course])
    assert COURSES[course] in explained(b"{}", *arguments).stdout
    assert COURSES.keys() == set(RequestOutcome)


def test_any_property_can_be_given(explained: Explained) -> None:
    """Numbers as numbers, texts as texts; repeated headers as they come."""
    options = ("--property=priority=5", "--property=user_id=me", "--header=k=first", "--header=k=second=2")
    result = explained(b"{}", *options, INDEX="logs-{priority}-{user_id}-{header.k}")
    assert '"_index":"logs-5-me-first"' in result.stdout


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--error-type=x"], "--status"),
        (["--request"], "--status"),
        (["--header=novalue"], "NAME=VALUE"),
        (["--property=colour=red"], "no property"),
        (["--property=headers=x"], "--header"),
        (["--property=priority=256"], "0 to 255"),
        (["--timestamp=yesterday"], "whole number"),
        (["--type=a", "--property=type=b"], "twice"),
        (["--message-id=" + "x" * 256], "256 bytes"),
        (["--status=1000"], "--status"),
    ],
)
def test_wrong_usage_is_told_in_a_sentence(explained: Explained, arguments: list[str], hint: str) -> None:
    """Exit status 2, and nothing on standard output."""
    result = explained(b"{}", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert hint in result.stderr


def test_bad_settings_are_all_told(explained: Explained) -> None:
    """As by `run`."""
    result = explained(b"{}", INDEX="{nothing}", ACTION="eat")
    assert isinstance(result.exception, ConfigError)
    assert len(result.exception.problems) == 2


def test_what_was_compressed_is_shown_as_it_is_sent(explained: Explained) -> None:
    """And what isn't what it says it is, is refused as by `run`."""
    gzipped = "--property", "content_encoding=gzip"
    told = as_json(explained(gzip.compress(b'{"a":1e2}'), *gzipped, "--format", "json"))
    assert told["body"] == '{"index":{}}\n{"a":1e2}\n'
    told = as_json(explained(b'{"a":1e2}', *gzipped, "--format", "json"), exit_code=1)
    assert told["reject"]["reason"] == "malformed"


GROUPS = {"BATCH_KEY": "{correlation_id}", "BATCH_COMPLETE_COUNT": "{header.size|}", "BATCH_FLUSH_WHEN": "{type|}"}


def test_the_group_of_a_message_is_shown(explained: Explained) -> None:
    """Its key, the size of the set, and whether it completes it."""
    arguments = ("--correlation-id", "set-7", "--header", "size=250")
    told = as_json(explained(b"{}", *arguments, "--format", "json", **GROUPS))
    assert told["group"] == {"key": "set-7", "complete_count": 250, "completes": False}
    shown = explained(b"{}", *arguments, "--type", "end", **GROUPS).stdout
    assert "belongs to the group 'set-7', which is complete with 250 messages, and completes it" in shown
    assert "group" not in explained(b"{}").stdout


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_message_of_several_documents_completes_its_group_with_the_last(explained: Explained, count: int) -> None:
    """As `run` does, however many there are: the last of one is the first as well."""
    groups = {"BATCH_KEY": "{correlation_id}", "BATCH_FLUSH_WHEN": "{type|}", "SPLIT": "array"}
    body = json.dumps([{"n": item} for item in range(count)]).encode()
    arguments = ("--correlation-id", "k", "--message-id", "m", "--format", "json")
    assert as_json(explained(body, *arguments, "--type", "end", **groups))["group"]["completes"]
    assert not as_json(explained(body, *arguments, **groups))["group"]["completes"]


def test_a_signal_is_told_as_one(explained: Explained) -> None:
    """Nothing would be sent of it; with a body it would."""
    arguments = ("--correlation-id", "set-7", "--type", "end")
    told = as_json(explained(b"", *arguments, "--format", "json", **GROUPS))
    assert told["signal"] is True
    assert "body" not in told
    result = explained(b"", *arguments, **GROUPS)
    assert (result.exit_code, result.stdout) == (0, "a signal: it completes its group, is acked and not stored\n")
    assert "signal" not in as_json(explained(b"{}", *arguments, "--format", "json", **GROUPS))


@pytest.mark.parametrize(("body", "signal"), [(b"", True), (b" \n", True), (b"{}", False)])
def test_a_deletion_is_no_signal_though_it_has_no_body(explained: Explained, body: bytes, signal: bool) -> None:
    """What the body of a deletion is has never mattered; without a flush message an empty body is no document."""
    flush = ("--type", "end", "--message-id", "7", "--correlation-id", "k", "--format", "json")
    assert ("signal" in as_json(explained(body, *flush, **GROUPS))) == signal
    for action in ("delete", "{header.none|delete}"):
        told = as_json(explained(body, *flush, **GROUPS, ACTION=action))
        assert told["body"].startswith('{"delete"')
        assert told["group"]["completes"]
    assert as_json(explained(body, *flush[2:], **GROUPS), exit_code=0 if body == b"{}" else 1)


def test_the_queue_is_asked_for_where_a_field_or_a_key_needs_it(explained: Explained) -> None:
    """Otherwise the bytes shown were others than those of `run`."""
    for settings in ({"FIELDS": '{"q": "{queue}"}'}, {"BATCH_KEY": "{queue}"}):
        result = explained(b"{}", **settings)
        assert result.exit_code == 2
        assert "the settings ask for queue" in result.stderr


def test_each_document_of_a_message_is_shown(explained: Explained) -> None:
    """Its id is that of the message and its place; one that is refused is told by its place."""
    result = explained(b'[{"a":1},{"b":2}]', "--message-id", "m", SPLIT="array")
    assert '{"index":{"_id":"m-0"}}\n{"a":1}\n{"index":{"_id":"m-1"}}\n{"b":2}\n' in result.stdout
    result = explained(b'[{"a":1},7]', "--message-id", "m", SPLIT="array")
    assert result.exit_code == 1
    assert "malformed: document 1 of 2: the body is not a JSON object" in result.stdout


SINK = {"SINK": "amqp", "INDEX": "", "SINK_EXCHANGE": "staging", "SINK_ROUTING_KEY": "{header.tenant}.new"}


def test_what_would_be_published_is_shown(explained: Explained) -> None:
    """Exchange, routing key, properties and headers as they would arrive, and the body."""
    arguments = ("--header", "tenant=a", "--message-id", "m", "--exchange", "shop", "--routing-key", "k")
    told = as_json(explained(b"{}", *arguments, "--format", "json", **SINK))
    assert (told["method"], told["exchange"], told["routing_key"]) == ("PUBLISH", "staging", "a.new")
    assert told["properties"] == {"delivery_mode": 2, "message_id": "m"}
    assert {name: told["headers"][name] for name in ("tenant", "sidecar-exchange", "sidecar-routing-key")} == {
        "tenant": "a", "sidecar-exchange": "shop", "sidecar-routing-key": "k",
    }  # fmt: skip
    assert told["body"] == "{}"
    plain = explained(b"\xff\x00", *arguments, **SINK)
    assert plain.exit_code == 0
    assert plain.stdout_bytes.startswith(b"PUBLISH to the exchange 'staging': 'a.new'\n\nproperties {")
    assert plain.stdout_bytes.endswith(b"\n\n\xff\x00\n")


def test_what_would_not_be_published_is_a_reject(explained: Explained) -> None:
    """Exit status 1, with the reason; and answers of Elasticsearch's have no place here."""
    result = explained(b"{", "--header", "tenant=a", **SINK, SINK_ENVELOPE="json")
    assert result.exit_code == 1
    assert "rejected before any request: malformed" in result.stdout
    result = explained(b"{}", "--status", "400", **SINK)
    assert result.exit_code == 2
    assert "--status is Elasticsearch's" in result.stderr
