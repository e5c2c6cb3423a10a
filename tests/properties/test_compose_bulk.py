"""`sidecar.core.compose` and `sidecar.core.bulk`: the request, parsed again, is exactly the messages."""

from __future__ import annotations

import json
from typing import Any

import orjson
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sidecar.core import bulk
from sidecar.core.bulk import Result
from tests.builders import composer, examples, long_string, message, properties

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
            raw=properties([(b"h", long_string(body))], **({"message_id": ident} if ident is not None else {})),
        )
        for tag, (body, ident) in enumerate(sent, 1)
    ]
    composed, rejects = composer(action, with_message_id=with_message_id).compose(held, 0.0)
    assert sorted([one.tag for one in composed] + [reject.message.tag for reject in rejects]) == [
        one.tag for one in held
    ]
    request = bulk.body(composed)
    assert request.endswith(b"\n") or not composed
    lines = request.split(b"\n")[:-1]
    assert len(lines) == 2 * len(composed)
    assert len(request) == sum(one.bulk_bytes for one in composed)
    for one, line, source in zip(composed, lines[::2], lines[1::2], strict=True):
        body, ident = sent[one.tag - 1]
        parameters: dict[str, str] = {"_id": ident.decode()} if ident and with_message_id else {}
        assert json.loads(line, object_pairs_hook=list) == [(action, list(parameters.items()))]
        assert one.key == (ident or None if with_message_id else None)
        if b"\n" in body.strip():
            assert json.loads(source) == json.loads(body)
            assert source == body.strip(b" \t\r\n").replace(b"\n", b" ")
        else:
            assert source in (body, body.strip(b" \t\r\n"))
        source.decode()


@settings(max_examples=examples(150))
@given(objects, st.sampled_from([None, 0, 2]), st.booleans(), st.sampled_from(["", " ", "\n"]))
def test_every_document_that_is_one_is_accepted_and_means_the_same(
    value: dict[str, Any], indent: int | None, ascii_only: bool, around: str
) -> None:
    """However it is laid out; its numbers and texts keep their spelling."""
    body = written(value, indent, ascii_only, around)
    composed, rejects = composer("index", with_message_id=True).compose([message(body=body)], 0.0)
    assert rejects == []
    source = composed[0].source
    assert source is not None
    assert json.loads(source) == value
    assert source.split() == body.split()


statuses = st.sampled_from([200, 201, 400, 404, 409, 429, 503])
item_results = st.builds(
    Result, statuses, st.sampled_from(["", "some_exception"]), st.text(max_size=10), st.booleans()
).map(lambda one: one if one.error_type else one._replace(reason=""))


@settings(max_examples=examples(150))
@given(st.lists(item_results, max_size=8), st.integers(0, 9), st.sampled_from(["index", "create", "update", "delete"]))
def test_an_answer_gives_each_item_its_own_result_or_none_at_all(
    given_results: list[Result], count: int, action: str
) -> None:
    """By position; and an answer to another number of items answers nobody."""
    items: list[dict[str, Any]] = []
    for one in given_results:
        item: dict[str, Any] = {"status": one.status}
        if one.error_type:
            item["error"] = {"type": one.error_type, "reason": one.reason}
        if one.failure_store:
            item["failure_store"] = "used"
        items.append({action: item})
    answer = orjson.dumps({"errors": any(one.error_type for one in given_results), "items": items})
    found = bulk.results(answer, count)
    assert found == (given_results if count == len(given_results) else None)
    if bulk.all_stored(answer, count):
        assert count == len(given_results)
        assert not any(one.error_type or one.failure_store for one in given_results)
    elif given_results and not any(one.error_type or one.failure_store for one in given_results):
        assert count != len(given_results)


@settings(max_examples=examples(200))
@given(st.binary(max_size=40) | objects.map(lambda value: json.dumps(value).encode()), st.integers(0, 3))
def test_any_answer_whatever_is_results_or_an_unknown_outcome(answer: bytes, count: int) -> None:
    """A proxy's page, half an answer, something else that is JSON: never an exception."""
    found = bulk.results(answer, count)
    assert found is None or len(found) == count
    assert bulk.fault(400, answer).status == 400
    assert not bulk.all_stored(answer, count) or bulk.results(answer, count) is not None


# Reasons -------------------------------------------------------------------------------------------------------------

FIELDS = ["age", "born", "user.name", "größe", "text"]
secrets = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=12, max_size=30).filter(
    lambda text: "; caused by: " not in text and text.strip() == text
)
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


@settings(max_examples=examples(300))
@given(st.sampled_from(REASONS), st.sampled_from(FIELDS), secrets, st.booleans(), st.booleans())
@example(REASONS[3], "age", "it's hunter2's secret", True, False)
@example(REASONS[2], "age", "[a] hunter2 (b) 'c'", True, False)
@example(REASONS[4], "age", 'say "hunter2" \\ twice', True, True)
def test_no_quoted_value_of_the_document_survives_and_field_names_do(
    reason: str, field: str, secret: str, ascii_only: bool, nested: bool
) -> None:
    """However the value is escaped in the document, and whatever quotes and brackets it holds itself."""
    value: object = [{"deep": secret}] if nested else secret
    document = json.dumps({field: value}, ensure_ascii=ascii_only).encode()
    blanked = bulk.blank(reason.format(field=field, value=secret), document)
    assert secret not in blanked
    assert secret[2:-2] not in blanked
    assert f"[{field}]" in blanked
    assert len(blanked.encode()) <= 1024


@settings(max_examples=examples(150))
@given(st.text(max_size=60), st.binary(max_size=40) | documents)
def test_blanking_is_never_an_exception(reason: str, document: bytes) -> None:
    """Whatever Elasticsearch says, about whatever document."""
    assert len(bulk.blank(reason, document).encode()) <= 1024
