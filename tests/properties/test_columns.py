"""`core.encoding.columns` and `lines`: a chunk composed at once is what its messages are, composed one by one."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.encoding.encoder import BulkEncoder, EncoderConfig
from sidecar.core.encoding.fields import Fields
from sidecar.core.encoding.template import Template, TemplateContext
from tests.builders import examples, ledger, long_string, message, origin, properties
from tests.drawing import drew, how_many

if TYPE_CHECKING:
    from sidecar.core.message import Message

NOW = 1_700_000_000.0
texts = st.sampled_from(
    [b"", b"a", b"A b", b'q"', b"\xc3\xa9", b"\xc3\x89", b"\xff", b"\n", b"10", b"007", b"0", b"x" * 200, b"_up"]
)
raw_values = (
    texts.map(long_string)
    | st.sampled_from(
        [b"V", b"t\1", b"b\xff", b"l" + bytes(7) + b"\7", b"d" + bytes(8), b"x\0\0\0\1\xfe", b"S\0\0\0\x09a"]
    )
    | st.just(b"F\0\0\0\x09\1aS\0\0\0\2bc")
)
headers = st.lists(st.tuples(st.sampled_from([b"h", b"g", b"hh", b"v", b"h!b", b"other"]), raw_values), max_size=4)
remembered = st.sampled_from([
    [(b"sidecar-retry-count", b"l" + bytes(8)), *origin()],
    origin(),
    [(b"sidecar-retry-count", b"l" + bytes(8)), (b"sidecar-exchange", long_string(b"first"))],
    [(b"sidecar-received-at", long_string(b"2020-02-03T04:05:06.000Z"))],
])  # fmt: skip
short_values = st.fixed_dictionaries(
    {},
    optional={
        "message_id": texts,
        "content_type": st.sampled_from([b"a", b"application/json"]),
        "content_encoding": st.sampled_from([b"", b"UTF-8", b"deflate", b"zstd"]),
        "correlation_id": texts,
        "type": texts,
        "priority": st.integers(0, 9),
        "timestamp": st.sampled_from([0, 1_600_000_000, 1_600_000_000_000, 1_600_000_000_000_000, 2**63]),
    },
)
bodies = st.sampled_from([
    b"{}", b"{ }", b'{"h":"own","k":"v","n":7,"o":{"k":1}}', b'{"k":null,"n":-1,"o":[{"k":"in"}]}',
    b'{"k":[1],"n":1e2,"o":3}', b'{"k":true,"n":12345678901234567890123}', '{"k":"\u00e9","n":"007"}'.encode(),
    b'{"k":"\xff"}', b' {"k":"around"}\n', b'{"a":\n1}', b'{"a":\n}', b"[1]", b"", b"text", b'{"k":}',
    zlib.compress(b'{"k":"packed","n":1}'), b'{"\\u0068":1}',
    b'{"k":"\\ud83d","n":1}', b'{"x":"\\ud83d","k":"beside","n":2}', b'\xef\xbb\xbf{"k":"marked"}', b'{"k":"c"/*"*/}',
    b'{"o.k":"dotted","n":18446744073709551616}', b'{"o":{"k":null},"o.k":"both"}', b'{"o":[],"o.k":4}',
    b'{"_id":"own","k":"v"}', b'{"x":"_id","k":"\\"_id"}', b'{"k":"2026-11-30T23:30:00-02:00","n":1600000000000000}',
])  # fmt: skip
sent = st.tuples(
    st.sampled_from([b"{}", b'{"h":"own","k":"v","n":7,"o":{"k":1}}', b'{"k":"w","n":8,"o":{"k":"x"}}']) | bodies,
    st.none() | headers | st.builds(lambda first, rest: first + rest, remembered, headers),
    short_values,
    st.integers(0, 3),
)
hole = st.sampled_from([
    "message_id", "type", "correlation_id", "header.h", "header.g", "header.v", "header.h!b", "body.k", "body.n",
    "body.o.k", "body.o.0.k", "now", "now:%Y", "timestamp", "timestamp:%Y", "priority", "routing_key", "exchange",
    "queue", "sha256", "item", "body.k:%Y.%m.%d", "body.n:%Y", "header.h:%Y",
])  # fmt: skip
filled = st.builds(
    lambda field, lower, spare: f"{{{field.replace(':', f'{lower}:') if ':' in field else field + lower}{spare}}}",
    hole,
    st.sampled_from(["", "", "!lower"]),
    st.sampled_from(["", "|", "|z", "|Z"]),
)
templates = st.lists(filled | st.sampled_from(["x", "x%", "{{", '"']), min_size=1, max_size=3).map(
    lambda all_: Template("".join(all_))
)
maybe = st.none() | templates
versions = st.sampled_from(["{priority|3}", "{timestamp|5}", "{body.n|1}"]).map(Template) | templates


@st.composite
def recipes(draw: st.DrawFn) -> EncoderConfig:
    id_mode = draw(st.sampled_from(["auto", "generated", "none", "template"]))
    return EncoderConfig(
        index=draw(st.just(Template("docs")) | templates),
        action=Template(draw(st.sampled_from(["index", "create"]))),
        id_mode=id_mode,  # type: ignore[arg-type]
        id=draw(templates) if id_mode == "template" else None,
        routing=draw(maybe),
        pipeline=draw(maybe),
        version=draw(st.none() | versions),
        index_allow=draw(st.sampled_from([(), (), ("docs", "*0*", "a")])),
        fields=draw(st.none() | st.builds(lambda value: Fields({"h": value, "k.n": value}), templates)),
        batch_key=draw(maybe),
    )


def first_delivery(one: Message) -> float:
    """Return what a copy would remember; the headers of one that remembers it count, whoever looked at them."""
    return TemplateContext(one, one.received_at).received_at


def encoded(encoder_config: EncoderConfig, chunk: list[tuple[Any, ...]], room: int) -> tuple[list[Any], list[Any]]:
    """Compose messages in as many goes as it takes; return what became of them."""
    made = iter(range(10**6))
    encoder = BulkEncoder(encoder_config, lambda: f"made-{next(made)}")
    of = ledger(delivered=len(chunk))
    left = [
        message(tag, body, of=of, raw=properties(table, **values) if cut != 1 else properties(table, **values)[:-1])
        for tag, (body, table, values, cut) in enumerate(chunk, 1)
    ]
    good, bad = [], []
    while left:
        encoder.room_bytes = room
        done, rejections = encoder.encode(left, NOW)
        good += [
            (
                one.tag,
                one.action_line,
                one.document_key,
                one.source,
                first_delivery(one),
                one.memory_bytes,
                encoder_config.batch_key and one.correlation.key,
            )
            for one in done
        ]
        bad += [
            (
                one.message.tag,
                one.reason,
                one.detail,
                one.message.action_line,
                one.message.document_key,
                first_delivery(one.message),
            )
            for one in rejections
        ]
        left = encoder.left
    return good, bad


@pytest.mark.draws(
    "one messages", "several messages", "all are taken", "all are refused", "some are refused", "one remembers",
    "no room", "an id from a template", "an index from a template", "routing", "a pipeline", "a version", "fields",
    "a batch key", "only some indices", "lower case", "a default", "a time", "a field of the body", "compressed",
    "properties that are cut", "lines of two kinds",
)  # fmt: skip
@settings(max_examples=examples(200))
@given(recipes(), st.lists(sent, min_size=1, max_size=8), st.sampled_from([0, 40, 10**6]))
def test_a_chunk_is_what_its_messages_are_one_by_one(
    encoder_config: EncoderConfig, chunk: list[tuple[Any, ...]], room: int
) -> None:
    """Whatever is absent, malformed or remembered: the same lines, keys, documents, refusals and memory.

    A recipe with a size of sets, even one that no message tells, has its messages looked at one by one.
    """
    if encoder_config.id_mode == "generated":  # which are made for some that need none
        encoder_config = replace(encoder_config, id_mode="auto")
    good, bad = made = encoded(encoder_config, chunk, room)
    assert made == encoded(replace(encoder_config, batch_complete_count=Template("")), chunk, room)
    drew(how_many(len(chunk), "messages"))
    drew("some are refused" if good and bad else "all are refused" if bad else "all are taken")
    drew("one remembers", any(name.startswith(b"sidecar-re") for _, table, _, _ in chunk for name, _ in table or []))
    drew("no room", not room and len(chunk) > 1)
    drew("compressed", any(values.get("content_encoding") == b"deflate" for _, _, values, _ in chunk))
    drew("properties that are cut", any(cut == 1 for _, _, _, cut in chunk))
    drew("lines of two kinds", len({line.count(b'":') for _, line, *_ in good}) > 1)
    for kind, template in (
        ("an id from a template", encoder_config.id), ("routing", encoder_config.routing),
        ("a version", encoder_config.version), ("a pipeline", encoder_config.pipeline),
        ("a batch key", encoder_config.batch_key),
    ):  # fmt: skip
        drew(kind, template)
    drew("an index from a template", encoder_config.index.constant is None)
    drew("fields", encoder_config.fields)
    drew("only some indices", encoder_config.index_allow)
    holes = [hole for template in encoder_config.templates for hole in template.placeholders]
    drew("lower case", any(hole.is_lowered for hole in holes))
    drew("a default", any(hole.default for hole in holes))
    drew("a time", any(hole.format for hole in holes))
    drew("a field of the body", any(hole.field.startswith("body.") for hole in holes))
