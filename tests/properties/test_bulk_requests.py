"""`core.encoding.encoder` and `sidecar.core.results.bulk`: the request, parsed again, is exactly the messages."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sidecar.core.results import bulk
from sidecar.core.results.bulk import Result
from tests.builders import encoder, examples, long_string, message, properties
from tests.drawing import drew, how_many

VICTIM = b'{"delete":{"_id":"victim"}}'
SMUGGLERS = [
    b'{"a":1}\n' + VICTIM + b"\n{}",
    b'{"a":1}\r\n{"index":{"_id":"victim"}}\r\n{"b":2}',
    b'{"a":"\n' + VICTIM + b'\n"}',
    b"{}\n{}",
    b"{\n}",
    b'{"a":\n[1,\n2]\n}',
    b'{"a":1}\x0b' + VICTIM,
    b'{"a":1}\xe2\x80\xa8' + VICTIM,
    b'{"a":1}\xc2\x85' + VICTIM,
    b'"}}\n' + VICTIM + b'\n{"',
    b'{"a":"\xff\n"}',
]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(st.text(max_size=5), values, max_size=4)


def written(value: Any, indent: int | None, ascii_only: bool, around: str) -> bytes:
    """Return JSON as some producer may write it."""
    return (around + json.dumps(value, indent=indent, ensure_ascii=ascii_only) + around).encode(errors="surrogatepass")


documents = st.builds(
    written, objects, st.sampled_from([None, 0, 2]), st.booleans(), st.sampled_from(["", " ", "\r\n"])
)
bodies = documents | st.binary(max_size=30) | st.sampled_from(SMUGGLERS) | st.builds(
    lambda first, glue, second: first + glue + second, documents, st.sampled_from([b"\n", b",", b"\r"]), documents
)  # fmt: skip
ids = st.binary(max_size=40) | st.text(max_size=60).map(lambda text: text.encode(errors="replace")) | st.sampled_from(
    [b"", b'"}}\n' + VICTIM + b"\n", b"\\", b'\\"', b"\n", b"\xff", b"a" * 255, b'x","_index":"o', b'x","routing":"r']
)  # fmt: skip


@pytest.mark.draws(
    "no messages", "one messages", "several messages", "all are taken", "all are refused", "some are refused",
    "lines within a document", "space around a document", "an id with a quote", "an id that isn't UTF-8",
    "an empty id", "the same id twice", "a document that isn't ASCII",
)  # fmt: skip
@settings(max_examples=examples(120))
@given(st.lists(st.tuples(bodies, st.none() | ids), max_size=6), st.sampled_from(["index", "create"]), st.booleans())
@example([(body, b"i") for body in SMUGGLERS], "index", True)
def test_a_request_is_exactly_its_messages(
    sent: list[tuple[bytes, bytes | None]], action: str, with_message_id: bool
) -> None:
    """No body, id or header can add a line or a field: each message is one action and one document, or a reject."""
    held = [
        message(
            tag,
            body,
            raw=properties(
                [(b"h", long_string(body))], **({"message_id": document_id} if document_id is not None else {})
            ),
        )
        for tag, (body, document_id) in enumerate(sent, 1)
    ]
    encoded, rejections = encoder(action, with_message_id=with_message_id).encode(held, 0.0)
    assert sorted([one.tag for one in encoded] + [reject.message.tag for reject in rejections]) == [
        one.tag for one in held
    ]
    drew(how_many(len(sent), "messages"))
    drew("some are refused" if encoded and rejections else "all are refused" if rejections else "all are taken", sent)
    idents = [document_id for _, document_id in sent if document_id is not None and with_message_id]
    drew("an id with a quote", any(b'"' in document_id for document_id in idents))
    drew(
        "an id that isn't UTF-8",
        any(document_id.decode(errors="ignore").encode() != document_id for document_id in idents),
    )
    drew("an empty id", b"" in idents)
    drew("the same id twice", len(set(idents)) < len(idents))
    drew("a document that isn't ASCII", any(one.source and not one.source.isascii() for one in encoded))
    request = bulk.body(encoded)
    assert request.endswith(b"\n") or not encoded
    lines = request.split(b"\n")[:-1]
    assert len(lines) == 2 * len(encoded)
    assert len(request) == sum(one.bulk_bytes for one in encoded)
    for one, line, source in zip(encoded, lines[::2], lines[1::2], strict=True):
        body, document_id = sent[one.tag - 1]
        parameters: dict[str, str] = {"_id": document_id.decode()} if document_id and with_message_id else {}
        assert json.loads(line, object_pairs_hook=list) == [(action, list(parameters.items()))]
        assert one.document_key == (document_id or None if with_message_id else None)
        drew("space around a document", body.strip() != body)
        drew("lines within a document", b"\n" in body.strip())
        if b"\n" in body.strip():
            assert json.loads(source) == json.loads(body)
            assert source == body.strip(b" \t\r\n").replace(b"\n", b" ")
        else:
            assert source in (body, body.strip(b" \t\r\n"))
        source.decode()


@pytest.mark.draws(
    "no members", "one members", "several members", "nested", "not ASCII", "an escape", "several lines",
    "space around",
)  # fmt: skip
@settings(max_examples=examples(150))
@given(objects, st.sampled_from([None, 0, 2]), st.booleans(), st.sampled_from(["", " ", "\n"]))
def test_every_document_that_is_one_is_accepted_and_means_the_same(
    value: dict[str, Any], indent: int | None, ascii_only: bool, around: str
) -> None:
    """However it is laid out; its numbers and texts keep their spelling."""
    body = written(value, indent, ascii_only, around)
    drew(how_many(len(value), "members"))
    drew("nested", any(isinstance(one, dict | list) and one for one in value.values()))
    drew("not ASCII", not body.isascii())
    drew("an escape", b"\\" in body)
    drew("several lines", b"\n" in body.strip())
    drew("space around", around)
    encoded, rejections = encoder("index", with_message_id=True).encode([message(body=body)], 0.0)
    assert rejections == []
    source = encoded[0].source
    assert source is not None
    assert json.loads(source) == value
    assert source.split() == body.split()


statuses = st.sampled_from([200, 201, 400, 404, 409, 429, 503])
item_results = st.builds(
    Result, statuses, st.sampled_from(["", "some_exception"]), st.text(max_size=10), st.booleans()
).map(lambda one: one if one.error_type else one._replace(reason=""))

stored = st.sampled_from([Result(200), Result(201)])


@pytest.mark.draws(
    "no items", "one items", "several items", "all stored", "one too many", "one too few", "an error",
    "in a failure store", "in no failure store", "an error among successes",
)  # fmt: skip
@settings(max_examples=examples(150))
@given(
    st.lists(item_results, max_size=8) | st.lists(stored, max_size=3),
    st.sampled_from([0, 0, 0, 0, 1, -1]),
    st.sampled_from(["index", "create", "update", "delete"]),
)
def test_an_answer_gives_each_item_its_own_result_or_none_at_all(
    given_results: list[Result], beyond: int, action: str
) -> None:
    """By position; and an answer to another number of items answers nobody."""
    count = max(0, len(given_results) + beyond)
    items: list[dict[str, Any]] = []
    errors = [bool(one.error_type) for one in given_results]
    drew(how_many(len(given_results), "items"))
    drew("one too many" if count < len(given_results) else "one too few", count != len(given_results))
    drew("an error", any(errors))
    drew("an error among successes", len(set(errors)) > 1)
    drew("in a failure store", any(one.failure_store for one in given_results))
    drew("in no failure store", not all(one.failure_store for one in given_results))
    for one in given_results:
        item: dict[str, Any] = {"status": one.status}
        if one.error_type:
            item["error"] = {"type": one.error_type, "reason": one.reason}
        if one.failure_store or one.error_type:
            item["failure_store"] = "used" if one.failure_store else "not_enabled"
        items.append({action: item})
    answer = orjson.dumps({"errors": any(one.error_type for one in given_results), "items": items})
    found = bulk.results(answer, count)
    assert found == (given_results if count == len(given_results) else None)
    all_stored = all(one.status in {200, 201} and not one.error_type and not one.failure_store for one in given_results)
    assert bulk.all_stored(answer, count) == (all_stored and count == len(given_results))
    drew("all stored", all_stored and given_results)


somethings = st.sampled_from(
    [None, 201, 429, True, "text", [], {}, [None], {"index": None}, {"index": {}}, {"a": 1, "b": 2}]
)
outcomes = st.dictionaries(
    st.sampled_from(["index", "create", "odd"]),
    st.dictionaries(
        st.sampled_from(["status", "error", "failure_store"]),
        somethings | st.dictionaries(st.sampled_from(["type", "reason", "caused_by"]), somethings, max_size=3),
        max_size=3,
    )
    | st.just({"status": 201}),
    max_size=2,
)
answers = st.builds(
    lambda errors, items: {"errors": errors, "items": items},
    st.booleans(),
    st.lists(
        st.sampled_from([{"index": {"status": 201}}, {"create": {"status": 429, "error": "text"}}]) | outcomes,
        max_size=3,
    ),
)
nearly = st.dictionaries(
    st.sampled_from(["errors", "items", "error", "status"]), somethings | st.lists(outcomes | somethings, max_size=3)
) | st.builds(lambda errors, items: {"errors": errors, "items": items}, somethings, st.lists(outcomes, max_size=3))


@pytest.mark.draws(
    "not JSON", "JSON without items", "as many items", "another number of items", "results", "items that are none",
)  # fmt: skip
@settings(max_examples=examples(200))
@given(
    st.binary(max_size=40)
    | (objects | nearly | answers | st.lists(nearly)).map(lambda value: json.dumps(value).encode()),
    st.sampled_from([0, 0, 0, 1, -1]),
)
def test_any_answer_whatever_is_results_or_an_unknown_outcome(answer: bytes, beyond: int) -> None:
    """A proxy's page, half an answer, something else that is JSON: never an exception.

    `bulk.all_stored` trusts what begins like a success: see the property before.
    """
    try:
        value: Any = json.loads(answer)
    except ValueError:
        value = None
    items = value.get("items") if isinstance(value, dict) else None
    count = max(0, (len(items) if isinstance(items, list) else 1) + beyond)
    found = bulk.results(answer, count)
    drew("not JSON" if value is None else "JSON without items", not isinstance(items, list))
    if isinstance(items, list):
        drew("as many items" if len(items) == count else "another number of items")
        drew("results" if found else "items that are none", len(items) == count > 0)
    assert found is None or len(found) == count
    assert bulk.fault(400, answer).status == 400


# Reasons -------------------------------------------------------------------------------------------------------------

FIELDS = ["age", "born", "user.name", "größe", "text"]
secrets = (
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=12, max_size=30)
    | st.text("ab '\"[](){}\\é", min_size=12, max_size=30)
    | st.integers(300, 1500).map(lambda size: "one long value " * (size // 15) + "end")
).map(lambda text: f"<{text.replace('; caused by: ', '')}>")
REASONS = [
    (
        "[1:8] failed to parse field [{field}] of type [long] in document with id 'x'. "
        "Preview of field's value: '{value}'; caused by: For input string: \"{value}\""
    ),
    (
        "failed to parse field [{field}] of type [date]; caused by: failed to parse date field [{value}] with format "
        "[strict_date_optional_time||epoch_millis]"
    ),
    "failed to parse field [{field}]: Failed to parse value [{value}] as only [true] or [false] are allowed.",
    "field [{field}]: '{value}' is not an IP string literal.",
    'field [{field}]: could not read "{value}"',
    "field [{field}]: value ({value}) out of range",
    "mapper [{field}] cannot be changed from type [long] to [text]; caused by: [{value}]",
    "mapping set to strict, dynamic introduction of [{field}] within [_doc] is not allowed, got '{value}'",
]


@pytest.mark.draws(
    *(f"reason {number}" for number in range(len(REASONS))),
    "a nested value",
    "an escaped value",
    "quotes in the value",
    "brackets in the value",
    "a field that isn't ASCII",
)
@settings(max_examples=examples(300))
@given(st.sampled_from(REASONS), st.sampled_from(FIELDS), secrets, st.booleans(), st.booleans())
@example(REASONS[3], "age", "it's hunter2's secret", True, False)
@example(REASONS[2], "age", "[a] hunter2 (b) 'c'", True, False)
@example(REASONS[4], "age", 'say "hunter2" \\ twice', True, True)
def test_no_quoted_value_of_the_document_survives_and_field_names_do(
    reason: str, field: str, secret: str, ascii_only: bool, nested: bool
) -> None:
    """However the value is escaped in the document, and whatever quotes and brackets it holds itself."""
    drew(f"reason {REASONS.index(reason)}")
    drew("a nested value", nested)
    drew("an escaped value", ascii_only and not secret.isascii())
    drew("quotes in the value", "'" in secret or '"' in secret)
    drew("brackets in the value", any(mark in secret for mark in "[]()"))
    drew("a field that isn't ASCII", not field.isascii())
    value: object = [{"deep": secret}] if nested else secret
    document = json.dumps({field: value}, ensure_ascii=ascii_only).encode()
    blanked = bulk.redact(reason.format(field=field, value=secret), document)
    assert secret not in blanked
    assert secret[2:-2] not in blanked
    assert f"[{field}]" in blanked
    assert len(blanked.encode()) <= 1024


@pytest.mark.draws("quotes something", "quotes nothing", "a document", "no document", "over 1 KiB")
@settings(max_examples=examples(150))
@given(
    st.text(max_size=60)
    | st.text("a'\"[]() …é", max_size=60)
    | st.text("a'[é…", min_size=1, max_size=9).map(lambda text: text * 300),
    st.binary(max_size=40) | documents,
)
def test_blanking_is_never_an_exception(reason: str, document: bytes) -> None:
    """Whatever Elasticsearch says, about whatever document."""
    drew("quotes something" if any(mark in reason for mark in "'\"[(") else "quotes nothing")
    drew("a document" if document.strip()[:1] == b"{" else "no document")
    drew("over 1 KiB", len(reason.encode()) > 1024)
    assert len(bulk.redact(reason, document).encode()) <= 1024
