"""`sidecar.core.results.bulk`."""

from __future__ import annotations

import orjson
import pytest

from sidecar.core.results import bulk
from sidecar.core.results.bulk import Fault, Result
from tests.builders import message


def answer(*items: dict[str, object], errors: bool = True) -> bytes:
    """Return an answer as Elasticsearch writes it under our filter path."""
    return orjson.dumps({"errors": errors, "items": [{"index": item} for item in items]})


def test_the_path_names_the_index_as_data() -> None:
    """An index name can't leave its place in the path."""
    assert bulk.path("logs").startswith("/logs/_bulk?filter_path=errors,items.*.status,")
    assert bulk.path("a/../b?c#d").startswith("/a%2F..%2Fb%3Fc%23d/_bulk?")
    assert bulk.path(None).startswith("/_bulk?")
    assert "include_source_on_error=false" in bulk.path("logs")


def test_each_item_is_a_line_or_two_and_ends_in_a_line_break() -> None:
    """The last line too: Elasticsearch refuses the request otherwise."""
    first, second, third = message(body=b'{"a":1}'), message(), message(body=b'{"b":2}')
    first.action_line, third.action_line = b'{"index":{}}\n', b'{"create":{"_id":"3"}}\n'
    second.action_line, second.source = b'{"delete":{"_id":"2"}}\n', None
    assert bulk.body([first, second, third]) == (
        b'{"index":{}}\n{"a":1}\n{"delete":{"_id":"2"}}\n{"create":{"_id":"3"}}\n{"b":2}\n'
    )


def test_all_stored_is_told_without_a_parse() -> None:
    """Only when no errors are claimed and every item has a status."""
    assert bulk.all_stored(answer({"status": 201}, {"status": 200}, errors=False), 2)
    assert bulk.all_stored(b'{"errors": false,"items":[{"index":{"status":201}}]}', 1)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (answer({"status": 201}, errors=False), 2),
        (answer({"status": 201}, {"status": 201}, errors=False), 1),
        (answer({"status": 201}, errors=True), 1),
        (answer({"status": 201, "failure_store": "used"}, errors=False), 1),
        (b'{"errors":false}', 1),
        (b'{"took":1,"errors":false,"items":[{"index":{"status":201}}]}', 1),
        (b"", 1),
        (b"<html>200 OK</html>", 1),
    ],
)
def test_all_stored_is_never_said_on_a_doubt(text: bytes, count: int) -> None:
    """A count that differs, an error, a failure store or another form: `results` has to look."""
    assert not bulk.all_stored(text, count)


def test_results_belong_to_messages_by_position() -> None:
    """One bad item decides nothing about the others, nor shifts them."""
    found = bulk.results(
        answer(
            {"status": 201},
            {"status": 400, "error": {"type": "document_parsing_exception", "reason": "bad"}},
            {"status": 429, "error": {"type": "es_rejected_execution_exception", "reason": "full"}},
            {"status": 201, "failure_store": "used"},
            {"status": 201, "failure_store": "not_enabled"},
        ),
        5,
    )
    assert found == [
        Result(201),
        Result(400, "document_parsing_exception", "bad"),
        Result(429, "es_rejected_execution_exception", "full"),
        Result(201, failure_store=True),
        Result(201),
    ]


def test_a_not_found_without_error_is_a_result() -> None:
    """A delete of nothing has a status and no error at all."""
    assert bulk.results(b'{"errors":false,"items":[{"delete":{"status":404}}]}', 1) == [Result(404)]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"not json",
        b"[]",
        b'"items"',
        b'{"errors":false}',
        b'{"items":null}',
        b'{"items":[]}',
        b'{"items":["index"]}',
        b'{"items":[{"index":{"status":201}},{"index":{"status":201}}]}',
        b'{"items":[{"index":{}}]}',
        b'{"items":[{}]}',
        b'{"items":[{"index":{"status":201},"create":{"status":201}}]}',
        b'{"items":[{"index":null}]}',
        b'{"items":[{"index":{"status":"201"}}]}',
        b'{"items":[[1]]}',
        b'{"items":{"a":{"index":{"status":201}}}}',
        b'{"items":[{"index":{"status":201}}]',
    ],
)
def test_an_answer_of_another_count_or_form_is_an_unknown_outcome(text: bytes) -> None:
    """Never a guess: a skipped item would shift all later results."""
    assert bulk.results(text, 1) is None


def test_the_reason_holds_that_of_its_causes() -> None:
    """The useful one is often in ``caused_by``; repeated ones are told once."""
    error = {
        "type": "document_parsing_exception",
        "reason": "failed to parse field [age]",
        "caused_by": {
            "type": "illegal_argument_exception",
            "reason": "For input string",
            "caused_by": {"reason": "For input string"},
        },
    }
    found = bulk.results(answer({"status": 400, "error": error}), 1)
    assert found is not None
    assert found[0].reason == "failed to parse field [age]; caused by: For input string"


def test_an_error_that_is_only_text_is_a_reason_without_type() -> None:
    """Elasticsearch says some things so."""
    assert bulk.fault(405, b'{"error":"Incorrect HTTP method","status":405}') == Fault(405, "", "Incorrect HTTP method")


def test_a_fault_tells_what_the_request_was_refused_for() -> None:
    """By the type and reason of the error."""
    body = b'{"error":{"root_cause":[],"type":"x_content_parse_exception","reason":"[1:2] bad"},"status":400}'
    assert bulk.fault(400, body) == Fault(400, "x_content_parse_exception", "[1:2] bad")


@pytest.mark.parametrize("text", [b"", b"<html>", b"{}", b"[]", b"null", b"17"])
def test_a_fault_that_is_not_elasticsearchs_has_no_type(text: bytes) -> None:
    """A proxy's page blames no item."""
    assert bulk.fault(400, text).error_type == ""


# blank: reasons as Elasticsearch 8 and 9 word them, with a document text in them -----------------------------------


@pytest.mark.parametrize(
    ("reason", "document", "secret", "kept"),
    [
        (
            ("[1:8] failed to parse field [age] of type [long] in document with id '7'. "
            "Preview of field's value: 'hunter2'; caused by: For input string: \"hunter2\""),
            b'{"age":"hunter2"}',
            "hunter2",
            ["field [age]", "type [long]", "id '7'"],
        ),
        (
            ("[1:9] failed to parse field [born] of type [date] in document with id '7'. Preview of field's value: "
            "'hunter2'; caused by: failed to parse date field [hunter2] with format "
            "[strict_date_optional_time||epoch_millis]; caused by: Failed to parse with all enclosed parsers"),
            b'{"born":"hunter2"}',
            "hunter2",
            ["field [born]", "[strict_date_optional_time||epoch_millis]", "Failed to parse with all enclosed parsers"],
        ),
        (
            "Failed to parse value [hunter2] as only [true] or [false] are allowed.",
            b'{"flag":"hunter2"}',
            "hunter2",
            ["[true]", "[false]"],
        ),
        ("'hunter2' is not an IP string literal.", b'{"ip":"hunter2"}', "hunter2", ["is not an IP"]),
        (
            "Numeric value (98765432109876543210) out of range of long (-9223372036854775808 - 9223372036854775807)",
            b'{"n":98765432109876543210}',
            "98765432109876543210",
            ["out of range of long"],
        ),
        (
            "Unrecognized token 'hunter2': was expecting (JSON String, Number, Array, Object or token)",
            b'{"a":hunter2}',
            "hunter2",
            [],
        ),
        (
            "failed to parse field [a]. Preview of field's value: 'it's hunter2'",
            b'{"a":"it\'s hunter2"}',
            "hunter2",
            ["field [a]"],
        ),
        (
            "failed to parse field [a]. Preview of field's value: '{b=hunter2}'",
            b'{"a":{"b":"hunter2"}}',
            "hunter2",
            ["field [a]"],
        ),
        ("failed on [caf\u00e9 hunter2]", b'{"a":"caf\\u00e9 hunter2"}', "hunter2", ["failed on"]),
        ('failed on [say "hunter2"]', b'{"a":"say \\"hunter2\\""}', "hunter2", ["failed on"]),
        (
            "Text '" + "hunter2" * 9 + "h...' could not be parsed at index 0",
            b'{"born":"' + b"hunter2" * 20 + b'"}',
            "hunter2",
            ["could not be parsed at index 0"],
        ),
        (
            ('Document contains at least one immense term in field="name" (whose UTF8 encoding is longer than the max '
            "length 32766), all of which were skipped. The prefix of the first immense term is: '[104, 117, 110, 116]"
            "...', original message: bytes can be at most 32766 in length; got 40000"),
            b'{"name":"hunt"}',
            "104, 117",
            ['field="name"', "original message: bytes can be at most 32766 in length; got 40000"],
        ),
        ("unsupported symbol [h] in geohash [hunter2]", b'{"at":"hunter2"}', "hunter2", ["in geohash"]),
    ],
)  # fmt: skip
def test_no_value_of_the_document_survives_in_a_reason(
    reason: str, document: bytes, secret: str, kept: list[str]
) -> None:
    """Dead letters' headers and logs go where documents may not; what helps to understand is kept."""
    blanked = bulk.redact(reason, document)
    assert secret not in blanked
    assert [words for words in kept if words not in blanked] == []


@pytest.mark.parametrize(
    "reason",
    [
        "mapper [age] cannot be changed from type [long] to [text]",
        "object mapping for [age] tried to parse field [age] as object, but found a concrete value",
        "mapping set to strict, dynamic introduction of [age] within [_doc] is not allowed",
        "Duplicate field 'age'",
        "failed to parse field [age] of type [long] in document with id '7'",
        'immense term in field="age" was skipped',
        "Limit of total fields [1000] has been exceeded while adding new fields [1]",
        "pipeline with id [age] does not exist",
        "no such index [age]",
    ],
)
def test_names_of_fields_survive(reason: str) -> None:
    """Without them nobody could mend the mapping; the names are in the document too, as its keys."""
    assert bulk.redact(reason, b'{"age":"hunter2"}') == reason


@pytest.mark.parametrize("marks", ["''", '""', "[]", "()"])
def test_what_stands_behind_a_long_quote_is_kept(marks: str) -> None:
    """Quotes are looked for before the cut: in an item, and in an error of text alone."""
    secret = "".join(f"{number} of all, " for number in range(500))
    text = f"failed to parse {marks[0]}{secret}{marks[1]} as a number"
    (result,) = bulk.results(answer({"status": 400, "error": {"type": "t", "reason": text}}), 1) or ()
    (bare,) = bulk.results(answer({"status": 400, "error": text}), 1) or ()
    for reason in (result.reason, bare.reason, bulk.fault(400, orjson.dumps({"error": text})).reason):
        for document in (orjson.dumps({"a": secret}), b"not JSON " + secret.encode()):
            assert bulk.redact(reason, document) == f"failed to parse {marks[0]}…{marks[1]} as a number"


def test_a_reason_is_at_most_a_kibibyte() -> None:
    """Measured in bytes, and never cut inside a character."""
    blanked = bulk.redact("é" * 2000, b"{}")
    assert blanked == "é" * 512
    assert len(bulk.redact("x" + "é" * 2000, b"{}").encode()) == 1023


def test_a_reason_may_quote_half_a_surrogate_pair() -> None:
    """Elasticsearch quotes field names of documents as they are; one of them must not make an answer unreadable."""
    text = rb'{"errors":true,"items":[{"index":{"status":400,"error":{"type":"t","reason":"field [\ud800]"}}}]}'
    (result,) = bulk.results(text, 1) or ()
    assert (result.status, result.error_type) == (400, "t")
    assert result.reason.encode()
    fault = bulk.fault(400, rb'{"error":{"type":"t","reason":"field [\udfff]"},"status":400}')
    assert fault.error_type == "t"
    assert fault.reason.encode()


def test_a_fault_without_a_type_has_none() -> None:
    """It isn't made up: a request refused for no named reason is nobody's item's fault."""
    assert bulk.fault(400, b'{"error":{"reason":"bad"}}') == Fault(400, "", "bad")
    assert bulk.fault(400, b"<html>") == Fault(400, "", "the answer is not one of Elasticsearch's")


@pytest.mark.parametrize(
    ("written", "meant"),
    [(rb"\n", "\n"), (rb"\t", "\t"), (rb"\r", "\r"), (rb"\b", "\b"), (rb"\f", "\f"), (rb"\/", "/"), (rb"\u0041", "A")],
)
def test_what_the_document_writes_with_escapes_is_blanked_as_well(written: bytes, meant: str) -> None:
    """Elasticsearch quotes the value, not the bytes; part of it is enough."""
    document = b'{"a":"one ' + written + b' two three"}'
    assert bulk.redact(f"failed to parse [one {meant} two]", document) == "failed to parse […]"


@pytest.mark.parametrize("document", [rb'{"a":"\ud800 one two"}', b'{"a":"\xff \\n one two"}'])
def test_a_document_that_is_no_text_is_looked_through_all_the_same(document: bytes) -> None:
    """Half a surrogate pair, or bytes that are no UTF-8: what stands beside them is found."""
    assert bulk.redact("failed to parse [one two]", document) == "failed to parse […]"
    assert bulk.redact("failed to parse [three]", document) == "failed to parse [three]"


@pytest.mark.parametrize("marks", ["''", '""', "[]", "()"])
@pytest.mark.parametrize("document", [{"a": "{}"}, {"a": ["b", {"c": "{}"}], "d": 1}, {"a": "{}", "b": ["c"]}])
def test_a_value_with_quotes_in_it_is_blanked_as_a_whole(document: dict[str, object], marks: str) -> None:
    """Taken for several quoted words, it would leave what stands between them."""
    value = """it's (what) "he" [said] to us"""
    text = orjson.dumps(document).replace(b"{}", orjson.dumps(value)[1:-1])
    reason = f"failed to parse {marks[0]}{value}{marks[1]}"
    assert bulk.redact(reason, text) == f"failed to parse {marks[0]}…{marks[1]}"


def test_a_value_of_one_letter_is_blanked() -> None:
    """It may be somebody's answer."""
    assert bulk.redact("failed to parse [y]", b'{"a":"y"}') == "failed to parse […]"


@pytest.mark.parametrize("items", [1, 3])
def test_a_delete_of_nothing_stores_nothing_though_it_is_no_error(items: int) -> None:
    """It counts as `noop`, whatever its neighbours did: so the results must be looked at."""
    stored = b'{"index":{"status":201}},' * (items - 1)
    answer = b'{"errors":false,"items":[%s{"delete":{"status":404}}]}' % stored
    assert not bulk.all_stored(answer, items)
    assert bulk.all_stored(answer.replace(b"404", b"200"), items)
