"""What templates, added fields, splitting and code read in a body: the same of every body, by one idea of paths.

A default stands for what is absent. What is there and can't be read as asked is malformed: it never chooses an index.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from sidecar import Message as Shown
from sidecar import Outgoing
from sidecar.core.encoding.encoder import BulkEncoder, EncoderConfig
from sidecar.core.encoding.fields import Fields
from sidecar.core.encoding.template import Template, TemplateError
from sidecar.core.encoding.transform import TransformError
from sidecar.core.scheduling.json_merge import merged
from sidecar.library.transforming import hook
from tests.builders import long_string, message, origin, properties

if TYPE_CHECKING:
    from sidecar.core.message import Message

NOW = 1_700_000_000.0
ALIKE = "batch_complete_count"
"""A recipe with a size of sets has its messages looked at one by one; others by columns."""


def encoded(one: Message, index: str = "docs", *, singly: bool = False, **options: Any) -> Any:
    """Return action, parameters and document that a message becomes, or reason and detail of its rejection."""
    for name in ("id", "routing"):
        if name in options:
            options[name] = Template(options[name])
            options |= {"id_mode": "template"} if name == "id" else {}
    if singly:
        options[ALIKE] = Template("")
    accepted, rejections = BulkEncoder(EncoderConfig(index=Template(index), **options), lambda: "made").encode(
        [one], NOW
    )
    if rejections:
        return rejections[0].reason, rejections[0].detail
    ((action, parameters),) = orjson.loads(accepted[0].action_line).items()
    return action, parameters, accepted[0].source


def index_of(body: bytes, template: str, raw: bytes = properties()) -> Any:
    """Return the index of a body, or reason and detail; it is the same by columns and one by one."""
    by_columns = encoded(message(body=body, raw=raw), template)
    one_by_one = encoded(message(body=body, raw=raw), template, singly=True)
    assert by_columns == one_by_one
    return by_columns[1]["_index"] if len(by_columns) == 3 else by_columns


# What is unreadable is never absent ----------------------------------------------------------------------------------


@pytest.mark.parametrize("default", ["", "|other"])
@pytest.mark.parametrize(
    "body",
    [
        b'{"id":7,"text":"x \\ud83d"}',
        b'\xef\xbb\xbf{"id":7}',
        b'{"id":7,"n":1e400}',
        b'{"id":7,"n":%s}' % (b"9" * 400),
        b'{"id":7}//}',
        b'{/*"id":8,*/"id":7}',
        b'{"x":"\\ud83d","deep":' + b"[" * 990 + b"]" * 990 + b',"id":7}',
    ],
)
def test_what_elasticsearch_stores_is_read(body: bytes, default: str) -> None:
    """Half a surrogate pair made `{body.id}` absent: a dead letter, or with a default the wrong index."""
    assert index_of(body, f"docs-{{body.id{default}}}") == "docs-7"


@pytest.mark.parametrize("default", ["", "|other"])
@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"id":7,}', "not valid JSON: at byte"),
        (b'{"id":NaN}', "not valid JSON"),
        (b'{"id":"\xff"}', "not UTF-8: byte 7 of 10"),
        ('{"id":7}'.encode("utf-16"), "looks like UTF-16"),
        (b"text", "not valid JSON: at byte 0"),
        (b'{"id":"x \\ud83d"}', "body.id is not a text: it holds half of a surrogate pair"),
        (b'{"id":{"\\udc00":1.50}}', None),
        (b'{"id":' + b"[" * 5000 + b"]" * 5000 + b"}", "nested"),
    ],
)
def test_what_can_not_be_read_is_malformed(body: bytes, why: str | None, default: str) -> None:
    """With a default as without: nothing stands for it."""
    found = index_of(body, f"docs-{{body.id{default}}}")
    if why is None:
        assert found == 'docs-{"\\udc00":1.50}'  # in JSON it is written as an escape
    else:
        assert found[0] == "malformed"
        assert why in found[1]


def test_what_is_absent_is_absent() -> None:
    """An empty body has no fields; nor has one that is JSON and no object."""
    for body in (b'{"id":null}', b"{}", b'{"id":null,"x":"\\ud83d"}'):
        assert index_of(body, "docs-{body.id|other}") == "docs-other"
        assert index_of(body, "docs-{body.id}") == ("missing-field", "the message has no body.id")
    assert index_of(b"", "{body.id}")[0] == "missing-field"
    deleted = message(body=b"", raw=properties(message_id=b"7"))
    assert encoded(deleted, "{body.i|docs}", action=Template("delete"))[1] == {"_index": "docs", "_id": "7"}


def test_a_text_has_fields_only_if_it_is_json() -> None:
    """With SIDECAR_CONTENT=text what is not JSON is what was announced."""
    for body, index in ((b"plain, text", "other"), (b'{"app":"shop"}', "shop"), (b'{"app":"x', "other")):
        assert encoded(message(body=body), "{body.app|other}", content="text")[1]["_index"] == index


@pytest.mark.parametrize("field", ["header.h", "type"])
def test_bytes_that_are_no_text_are_malformed(field: str) -> None:
    """No default stands for them either."""
    raw = properties([(b"h", long_string(b"\xff"))], type=b"\xff")
    assert index_of(b"{}", f"docs-{{{field}|other}}", raw) == ("malformed", f"{field} is not a text: it is not UTF-8")


# Paths ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [b'{"event":{"dataset":"app"}}', b'{"event.dataset":"app"}', b'{"event":{"dataset":null},"event.dataset":"app"}',
     b'{"event":{"dataset":"app"},"event.dataset":"other"}', b'{"event":"x","event.dataset":"app"}',
     b'{"x":"\\ud83d","event.dataset":"app"}'],
)  # fmt: skip
def test_dotted_names_are_found(body: bytes) -> None:
    """As ECS loggers write both; nested counts first. A field to add isn't added to either."""
    assert index_of(body, "logs-{body.event.dataset|generic}") == "logs-app"
    fields = Fields({"event.dataset": Template("added")})
    for singly in (False, True):
        assert encoded(message(body=body), fields=fields, singly=singly)[2] == body


@pytest.mark.parametrize("place", ["²", "１", "1_0", "-1", "9" * 5000])  # noqa: RUF001
def test_what_is_no_place_in_an_array_is_absent(place: str) -> None:
    """Python takes some of these for digits, and can't make a number of them."""
    assert index_of(b'{"a":[1,2]}', f"docs-{{body.a.{place}|other}}") == "docs-other"


def test_values_keep_their_spelling_inside_of_others() -> None:
    """Whichever reader a body needs."""
    for extra in (b"", b',"x":"\\ud83d"'):
        one = message(body=b'{"o":{"n":1.50,"m":[1e2,18446744073709551616]}%s}' % extra)
        assert encoded(one, routing="{body.o}")[1]["routing"] == '{"n":1.50,"m":[1e2,18446744073709551616]}'


# Times ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    ['"2026-11-30T12:00:00+02:00"', '"2026-12-01T01:00:00+02:00"', '"2026-11-30T12:00:00.123456789Z"', '"2026-11-30"',
     '"2026-11-30 23:59:59"', "1796040000", "1796040000.5", "1796040000123", "1796040000123456", "1796040000123456789",
     '"1796040000"', '"1796040000123"', "1.79604e9"],
)  # fmt: skip
def test_a_date_out_of_the_body_names_the_index(value: str) -> None:
    """ISO 8601 of any zone, or a number since 1970; the day is that of UTC."""
    template = "logs-{body.@timestamp:%Y.%m.%d}"
    assert index_of(f'{{"@timestamp":{value}}}'.encode(), template) == "logs-2026.11.30"
    assert index_of(f'{{"\\ud83d":1,"@timestamp":{value}}}'.encode(), template) == "logs-2026.11.30"
    nested = "logs-{body.event.created:%Y.%m.%d|none}"
    assert index_of(f'{{"event.created":{value}}}'.encode(), nested) == "logs-2026.11.30"


@pytest.mark.parametrize("value", ['"soon"', '""', "true", "{}", "[]", "1e300", '"\\ud83d"', '"2026-13-01"'])
@pytest.mark.parametrize("default", ["", "|other"])
def test_what_is_no_time_chooses_no_index(value: str, default: str) -> None:
    """It is there, and is no time: that names the field, whatever the default."""
    reason, detail = index_of(f'{{"t":{value}}}'.encode(), f"logs-{{body.t:%Y{default}}}")
    assert reason == "malformed"
    assert detail.startswith("body.t is not a time: write it as ISO 8601")


def test_an_absent_time_is_absent() -> None:
    """As everywhere."""
    assert index_of(b'{"t":null}', "logs-{body.t:%Y|none}") == "logs-none"
    assert index_of(b"{}", "logs-{body.t:%Y}") == ("missing-field", "the message has no body.t")


@pytest.mark.parametrize("unit", [1, 10**3, 10**6, 10**9])
def test_a_timestamp_is_read_in_any_unit(unit: int) -> None:
    """In microseconds it was absent."""
    raw = properties(timestamp=1_796_040_000 * unit)
    assert index_of(b"{}", "logs-{timestamp:%Y.%m.%d|none}", raw) == "logs-2026.11.30"
    assert encoded(message(body=b"{}", raw=raw), routing="{timestamp}")[1]["routing"] == "2026-11-30T12:00:00.000Z"


@pytest.mark.parametrize(
    "value",
    [long_string(b"2026-11-30T12:00:00+02:00"), long_string(b"1796040000"), b"T" + (1796040000).to_bytes(8, "big"),
     b"l" + (1796040000123456).to_bytes(8, "big")],
)  # fmt: skip
def test_a_header_may_be_a_time(value: bytes) -> None:
    """As text, as a number, and as AMQP's own type."""
    assert index_of(b"{}", "logs-{header.at:%Y.%m.%d}", properties([(b"at", value)])) == "logs-2026.11.30"


@pytest.mark.parametrize(
    ("text", "why"),
    [("{body.t:}", "a format without %"), ("{body.t:Y}", "a format without %"), ("{type:%Y}", "a format on 'type'")],
)
def test_a_format_is_one(text: str, why: str) -> None:
    """A mistake is found at the start."""
    with pytest.raises(TemplateError, match=why):
        Template(text)


def test_what_a_copy_remembers_has_no_zone_of_the_machine() -> None:
    """A time without a zone is UTC, as everywhere."""
    remembered = [
        (b"sidecar-retry-count", b"l" + bytes(8)),
        *origin(received_at=b"2020-02-03T00:10:00"),
    ]
    assert index_of(b"{}", "logs-{now:%Y.%m.%d}", properties(remembered)) == "logs-2020.02.03"


def test_a_timestamp_to_publish_is_whole() -> None:
    """Anything else is refused in words."""
    for wrong in (1.5, -1, 1 << 64, "now"):
        with pytest.raises(ValueError, match="the timestamp must be a whole number"):
            Outgoing(body=b"", timestamp=wrong).copy()  # type: ignore[arg-type]


# A byte order mark ---------------------------------------------------------------------------------------------------

MARK = b"\xef\xbb\xbf"


def test_a_byte_order_mark_is_left_out() -> None:
    """Elasticsearch would store it, and give back what no JSON parser of Python's reads."""
    for singly in (False, True):
        assert encoded(message(body=MARK + b' {"a":1}\n'), singly=singly)[2] == b'{"a":1}'
        fields = Fields({"f": Template("v")})
        assert encoded(message(body=MARK + b'{"a":1}'), fields=fields, singly=singly)[2] == b'{"f":"v","a":1}'
    raw = properties(message_id=b"7")
    updated = encoded(message(body=MARK + b'{"a":1}', raw=raw), action=Template("update"))
    assert updated[2] == b'{"doc":{"a":1}}'
    assert json.loads(encoded(message(body=MARK + b"text"), content="text")[2]) == {"message": "text"}
    packed = message(body=gzip.compress(MARK + b'{"a":1}'), raw=properties(content_encoding=b"gzip"))
    assert encoded(packed, "docs-{body.a}")[1]["_index"] == "docs-1"


@pytest.mark.parametrize(("mode", "body"), [("array", b'[{"a":1},{"b":2}]'), ("lines", b'{"a":1}\n{"b":2}')])
def test_a_byte_order_mark_belongs_to_no_document(mode: Any, body: bytes) -> None:
    """Of several in one message it stands before the first."""
    accepted, rejections = BulkEncoder(EncoderConfig(index=Template("docs"), split=mode), lambda: "made").encode(
        [message(body=MARK + body)], NOW
    )
    assert ([one.source for one in accepted], rejections) == ([b'{"a":1}', b'{"b":2}'], [])


def test_an_array_is_cut_whatever_stands_in_it() -> None:
    """Half pairs, long numbers and comments, which are cut along with their document."""
    pieces = [b'{"a":"\\ud83d"}', b'{"n":%s}' % (b"9" * 999), b'{"c":/*]},*/1}', b'{"//":1}']
    one = message(body=b"[" + b" ,/* , */".join(pieces) + b"]")
    accepted, rejections = BulkEncoder(EncoderConfig(index=Template("docs"), split="array"), lambda: "made").encode(
        [one], NOW
    )
    assert ([part.source for part in accepted], rejections) == (pieces, [])


def test_fields_are_added_among_comments() -> None:
    """An object that holds nothing else takes no comma."""
    fields = Fields({"f": Template("v")})
    for body, document in (
        (b"{/*x*/}", b'{"f":"v"/*x*/}'),
        (b'{/*a*/"x":1/*b*/}', b'{"f":"v",/*a*/"x":1/*b*/}'),
        (b'{"f":2/*x*/}', b'{"f":2/*x*/}'),
    ):
        assert encoded(message(body=body), fields=fields)[2] == document


def test_partial_documents_with_half_a_pair_are_merged() -> None:
    """Their bytes are kept."""
    assert merged(b'{"a":"\\ud83d","n":1.50}', b'{"b":1e400}') == b'{"a":"\\ud83d","n":1.50,"b":1e400}'


# Names that are Elasticsearch's own ----------------------------------------------------------------------------------


@pytest.mark.parametrize("singly", [False, True])
@pytest.mark.parametrize("name", ["_id", "_index", "_routing", "_source", "_version"])
def test_a_document_with_a_name_of_elasticsearchs_is_refused_before_the_request(name: str, singly: bool) -> None:
    """If it was looked into: every such document would come back as an error."""
    body = json.dumps({"k": "7", name: "8"}).encode()
    reason, detail = encoded(message(body=body), id="{body.k}", singly=singly)
    assert reason == "malformed"
    assert detail.startswith(f"the document has the field {name}, which Elasticsearch refuses inside a document")


@pytest.mark.parametrize("singly", [False, True])
def test_an_id_out_of_a_field_of_that_name_is_refused(singly: bool) -> None:
    """SIDECAR_ID={body._id} seemed fine, and everything was refused."""
    for template in ("{body._id}", "{body.a:%Y}"):
        assert encoded(message(body=b'{"_id":"7","a":1}'), id=template, singly=singly)[0] == "malformed"


@pytest.mark.parametrize(
    "body", [b'{"k":"7","o":{"_id":1}}', b'{"k":"7","_type":"x","_idx":1}', b'{"k":"7","x":"_id"}']
)
def test_other_names_are_elasticsearchs_to_judge(body: bytes) -> None:
    """Inside of others, or with no meaning, it takes them."""
    assert encoded(message(body=body), id="{body.k}")[2] == body


def test_a_text_and_a_deletion_hold_no_names() -> None:
    """A text is wrapped, and a deletion sends no document."""
    body = b'{"_id":"7"}'
    assert encoded(message(body=body), id="{body._id}", content="text")[1]["_id"] == "7"
    assert encoded(message(body=body), id="{body._id}", action=Template("delete"))[1]["_id"] == "7"


# Code ----------------------------------------------------------------------------------------------------------------

EXACT = b'{"n":18446744073709551616,"d":0.1234567890123456789012345,"p":1.50,"e":1e400,"s":"\\ud83d","z":-0}'


@pytest.mark.parametrize(
    ("body", "encoding"),
    [(EXACT, None), (gzip.compress(EXACT, mtime=0), b"gzip"), (zlib.compress(EXACT), b"deflate"), (EXACT, b"utf-8"),
     (MARK + EXACT, None)],
)  # fmt: skip
def test_a_transform_keeps_numbers_and_gets_bodies_undone(body: bytes, encoding: bytes | None) -> None:
    """It rounded numbers, and got compressed bytes."""
    raw = properties(content_encoding=encoding) if encoding else properties()

    def changed(shown: Shown) -> Any:
        document: Any = shown.json()
        document["added"] = 1
        return document

    async def later(shown: Shown) -> Any:
        return changed(shown)

    assert changed(Shown(message(body=body, raw=raw)))["n"] == 18446744073709551616
    one = message(body=body, raw=raw)
    assert hook(changed).transform(one) == [EXACT[:-1] + b',"added":1}']
    assert Shown(one).content().removeprefix(MARK) == EXACT
    waiting = hook(later)
    assert waiting.prepare is not None
    asyncio.run(waiting.prepare([one]))  # type: ignore[arg-type]
    assert waiting.transform(one) == [EXACT[:-1] + b',"added":1}']
    with pytest.raises(TransformError):  # what was made is used once: nothing made is not "no document", which is acked
        waiting.transform(one)


def test_a_compressed_body_is_bounded_for_code_too() -> None:
    """A kilobyte may stand for a megabyte."""
    bomb = message(body=gzip.compress(b'{"a":"%s"}' % (b"x" * 100_000)), raw=properties(content_encoding=b"gzip"))
    with pytest.raises(ValueError, match="above 1,000 bytes"):
        Shown(bomb, 1_000).json()
    with pytest.raises(ValueError, match="unknown"):
        Shown(message(body=b"{}", raw=properties(content_encoding=b"zstd"))).json()
    with pytest.raises(ValueError, match="not valid JSON"):
        Shown(message(body=b"{,}")).json()
