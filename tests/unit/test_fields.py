"""`sidecar.core.encoding.fields`: spliced into the bytes of a document, whose own values win."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar.core.encoding.encoder import BulkEncoder, EncoderConfig
from sidecar.core.encoding.fields import FieldNameError, Fields
from sidecar.core.encoding.template import Template
from tests.builders import long_string, message, properties

NOW = 1_700_000_000.0
TIMESTAMP = {"@timestamp": "{timestamp:%Y-%m-%dT%H:%M:%SZ}"}
RAW = properties(message_id=b"7", timestamp=1_600_000_000)
STAMP = b'"@timestamp":"2020-09-13T12:26:40Z"'


def encoder(fields: dict[str, str], **options: Any) -> BulkEncoder:
    """Return a composer that adds fields."""
    made = Fields({name: Template(text) for name, text in fields.items()})
    return BulkEncoder(EncoderConfig(**{"index": Template("docs"), "fields": made, **options}), lambda: "made")


def source(body: bytes, fields: dict[str, str], raw: bytes = RAW, **options: Any) -> bytes | None:
    """Return the document line that a body becomes."""
    one = message(body=body, raw=raw)
    accepted, rejections = encoder(fields, **options).encode([one], NOW)
    assert rejections == []
    assert accepted == [one]
    return one.source


@pytest.mark.parametrize(
    ("body", "rest"),
    [
        (b"{}", b"}"),
        (b"{ \t }", b" \t }"),
        (b'{"a":1e2}', b',"a":1e2}'),
        (b'{ "a":12345678901234567890123}', b', "a":12345678901234567890123}'),
        (b'{\n"a":1\n}\n', b', "a":1 }'),
        (b'{"a":1,"a":2}', b',"a":1,"a":2}'),
        (b'{"message":"\\"@timestamp\\""}', b',"message":"\\"@timestamp\\""}'),
        (b'{"deep":{"@timestamp":1}}', b',"deep":{"@timestamp":1}}'),
        (b'{"value":"@timestamp"}', b',"value":"@timestamp"}'),
        (b'{"list":["@timestamp"],"lone":"\\ud800"}', b',"list":["@timestamp"],"lone":"\\ud800"}'),
        (b'{"x":"\\u0040timestamp"}', b',"x":"\\u0040timestamp"}'),
    ],
)
def test_a_field_is_spliced_into_the_bytes(body: bytes, rest: bytes) -> None:
    """All else keeps its exact spelling, also where the name stands somewhere else in the document."""
    assert source(body, TIMESTAMP) == b"{" + STAMP + rest


@pytest.mark.parametrize(
    "body",
    [
        b'{"@timestamp":"mine"}',
        b'{"@timestamp":null}',
        b'{ "a":[1], "@timestamp" : 1e2}',
        b'{"\\u0040timestamp":1}',
        b'{"@\\u0074imestamp":1}',
        b'{"@times\\u0054AMP":1,"@timestam\\u0070":1}',
        b'{"@timestamp":"\\ud800"}',
        b'{"@timestamp":1}{"b":2}',
    ],
)
def test_the_documents_own_value_wins(body: bytes) -> None:
    """However it is spelled; two of one name would be refused. What is no JSON stays as it is for Elasticsearch."""
    assert source(body, TIMESTAMP) == body


def test_an_own_value_asks_for_nothing() -> None:
    """The template isn't looked at then: a publisher may set the one or the other."""
    assert source(b'{"@timestamp":1}', TIMESTAMP, raw=b"\0\0") == b'{"@timestamp":1}'


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("a/b", b'{"a\\/b":1}'),
        ('q"', b'{"q\\"":1}'),
        ("é", b'{"\\u00E9":1}'),
        ("é", '{"é":1}'.encode()),
        ("🎉", b'{"\\ud83c\\udf89":1}'),
        ("a\tb", b'{"a\\tb":1}'),
        ("a\\b", b'{"a\\\\b":1}'),
    ],
)
def test_names_that_can_be_spelled_in_several_ways_are_found(name: str, body: bytes) -> None:
    """JSON has shorthands besides \\u."""
    assert source(body, {name: "x"}) == body
    added = source(b"{}", {name: "x"})
    assert json.loads(added or b"") == {name: "x"}


@pytest.mark.parametrize(
    "body",
    [
        b'{"event":{"ingested":1}}',
        b'{"event.ingested":1}',
        b'{"event":"a text"}',
        b'{"event":[{}]}',
        b'{"event":null}',
    ],
)
def test_a_dot_is_a_way_into_objects(body: bytes) -> None:
    """As for Elasticsearch: what is there already, in whatever spelling, or stands in the way, wins."""
    assert source(body, {"event.ingested": "x"}) == body


@pytest.mark.parametrize("body", [b'{"event":{"other":1}}', b'{"events":{"ingested":1}}', b'{"ingested":1}'])
def test_a_dotted_field_is_added_beside_its_siblings(body: bytes) -> None:
    """Elasticsearch puts both into one object."""
    assert source(body, {"event.ingested": "x"}) == b'{"event.ingested":"x",' + body[1:]


def test_values_are_data_and_texts_always() -> None:
    """Numbers too; whatever bytes they hold. One that comes out empty adds no field, several keep their order."""
    odd = 'a"}\n{"delete":{"_id":"victim"}}\n\\ é'
    raw = properties([(b"odd", long_string(odd.encode())), (b"n", b"l" + (5).to_bytes(8, "big"))], priority=3)
    fields = {"b": "{header.odd}", "a": "{header.n}", "none": "{header.absent|}", "p": "p{priority}", "c": "constant"}
    line = source(b'{"x":1}', fields, raw=raw)
    assert line is not None
    assert b"\n" not in line
    assert list(json.loads(line).items()) == [("b", odd), ("a", "5"), ("p", "p3"), ("c", "constant"), ("x", 1)]


def test_a_value_that_is_absent_rejects_the_message() -> None:
    """As everywhere in templates; its neighbours are composed."""
    held = [message(1, raw=RAW), message(2), message(3, raw=RAW)]
    accepted, (reject,) = encoder(TIMESTAMP).encode(held, NOW)
    assert accepted == [held[0], held[2]]
    assert (reject.message, reject.reason, reject.detail) == (
        held[1],
        "missing-field",
        "the message has no timestamp",
    )


@pytest.mark.parametrize(
    ("action", "around"),
    [("create", b"%s"), ("update", b'{"doc":%s}'), ("upsert", b'{"doc":%s,"doc_as_upsert":true}')],
)
def test_fields_go_into_the_document_of_each_action(action: str, around: bytes) -> None:
    """Into ``doc``, not beside it; a deletion has none."""
    assert source(b'{"a":1}', TIMESTAMP, action=Template(action)) == around % (b"{" + STAMP + b',"a":1}')
    assert source(b'{"a":1}', TIMESTAMP, action=Template("delete")) is None


def test_fields_go_beside_text() -> None:
    """The text keeps its name where a field has the same."""
    assert source(b"hi", {"message": "x", "q": "{queue}"}, content="text") == b'{"q":"work","message":"hi"}'


def test_the_document_is_counted_in_memory() -> None:
    """It is another one than the body."""
    one = message(body=b"{}", raw=RAW)
    before = one.memory_bytes
    encoder(TIMESTAMP).encode([one], NOW)
    assert one.source is not None
    assert one.memory_bytes == before + len(one.source)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["_id"], "Elasticsearch's own"),
        ([""], "empty"),
        (["a..b"], "empty part"),
        ([".a"], "empty part"),
        (["a.b", "a"], "a.b would lie inside of a"),
        (["x", "a.b.c", "a.b"], "a.b.c would lie inside of a.b"),
    ],
)
def test_names_that_cannot_be_are_refused(names: list[str], says: str) -> None:
    """At the start, not by every document."""
    with pytest.raises(FieldNameError, match=says):
        Fields({name: Template("x") for name in names})
