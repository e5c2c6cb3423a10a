"""`sidecar.core.encoding.encoder` where more than the id comes from the message."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from sidecar.core.encoding.encoder import ACTIONS, BulkEncoder, EncoderConfig
from sidecar.core.encoding.template import Template
from tests.builders import ledger, long_string, message, origin, properties, table

if TYPE_CHECKING:
    from sidecar.core.message import Message

NOW = 1_700_000_000.0


def make(index: str = "docs", action: str = "index", **options: Any) -> BulkEncoder:
    """Return a composer; templates are given as texts."""
    templates = {
        name: Template(text) for name, text in options.items() if name in {"id", "routing", "pipeline", "version"}
    }
    others = {name: value for name, value in options.items() if name not in templates}
    mode = {"id_mode": "template"} if "id" in templates else {}
    encoder_config = EncoderConfig(index=Template(index), action=Template(action), **{**mode, **templates, **others})
    return BulkEncoder(encoder_config, lambda: "made-here")


def encoded(encoder: BulkEncoder, one: Message) -> tuple[str, dict[str, Any]]:
    """Return action and parameters of the line that a message becomes."""
    accepted, rejections = encoder.encode([one], NOW)
    assert rejections == []
    assert accepted == [one]
    assert one.action_line.endswith(b"\n")
    assert one.action_line.count(b"\n") == 1
    ((action, parameters),) = orjson.loads(one.action_line).items()
    return action, parameters


def refused(encoder: BulkEncoder, one: Message) -> tuple[str, str]:
    """Return reason and detail of the reject that a message becomes."""
    accepted, (reject,) = encoder.encode([one], NOW)
    assert accepted == []
    return reject.reason, reject.detail


def test_the_index_comes_from_a_template() -> None:
    """It is named in the line then, and is part of the document's key."""
    one = message(body=b"{}", raw=properties(type=b"invoice", message_id=b"7"))
    assert encoded(make("{type}-{now:%Y.%m}"), one) == ("index", {"_index": "invoice-2023.11", "_id": "7"})
    assert one.document_key == b"invoice-2023.11\x007"


@pytest.mark.parametrize(
    ("name", "allow", "fits"),
    [
        ("logs-1", (), True),
        (".security", (), False),
        ("_all", (), False),
        ("<logs-{now/d}>", (), False),
        ("logs-1", ("logs-*", "audit"), True),
        ("audits", ("logs-*", "audit"), False),
        (".mine", (".mine",), True),
    ],
)
def test_an_index_outside_of_what_is_allowed_is_refused(name: str, allow: tuple[str, ...], fits: bool) -> None:
    """No routing key or header may send documents where they don't belong."""
    one = message(body=b"{}", raw=properties(type=name.encode()))
    encoder = make("{type}", index_allow=allow)
    if fits:
        assert encoded(encoder, one)[1]["_index"] == name
    else:
        assert refused(encoder, one)[0] == "index-not-allowed"


@pytest.mark.parametrize("action", ACTIONS)
def test_each_action_has_its_line_and_its_source(action: str) -> None:
    """The body goes in as it is; `update` and `upsert` wrap it, `delete` has none."""
    one = message(body=b'{"a":1e2}', raw=properties(message_id=b"7"))
    verb, parameters = encoded(make(action=action), one)
    assert verb == {"upsert": "update"}.get(action, action)
    assert parameters["_id"] == "7"
    assert one.source == {
        "update": b'{"doc":{"a":1e2}}',
        "upsert": b'{"doc":{"a":1e2},"doc_as_upsert":true}',
        "delete": None,
    }.get(action, b'{"a":1e2}')
    assert ("retry_on_conflict" in parameters) == (verb == "update")


@pytest.mark.parametrize(
    "body",
    [b'{"a":1},"upsert":{"x":1}', b'{"a":1}}\n{"x":1}', b'{"a":}', b"[1]", b"", b'{"a":1},"doc_as_upsert":true,"b":{}'],
)
@pytest.mark.parametrize("action", ["update", "upsert"])
def test_a_fragment_cant_smuggle_in_neighbours_of_doc(action: str, body: bytes) -> None:
    """Elasticsearch would take them as its own fields."""
    assert refused(make(action=action), message(body=body, raw=properties(message_id=b"7")))[0] == "malformed"


def test_the_action_may_come_from_the_message() -> None:
    """It is remembered for the verdict; what is none of the five is refused."""
    encoder = make(action="{header.op|index}")
    one = message(body=b"", raw=properties([(b"op", long_string(b"delete"))], message_id=b"7"))
    assert encoded(encoder, one)[0] == one.action == "delete"
    odd = message(body=b"{}", raw=properties([(b"op", long_string(b'index":{}},"x'))], message_id=b"7"))
    assert refused(encoder, odd)[0] == "malformed"


@pytest.mark.parametrize("action", ["update", "upsert", "delete"])
def test_what_changes_a_document_needs_an_id(action: str) -> None:
    """Elasticsearch would refuse the whole request."""
    assert refused(make(action=action), message(body=b"{}"))[0] == "missing-field"


def test_ids_are_made_here_and_kept_by_copies_that_come_back() -> None:
    """`generated`: an id on admission, the same one through the delay queue."""
    encoder = make(id_mode="generated")
    assert encoded(encoder, message(body=b"{}", raw=properties(message_id=b"7")))[1] == {"_id": "made-here"}
    kept = [(b"sidecar-retry-count", b"l" + bytes(8)), (b"sidecar-id", long_string(b"first"))]
    assert encoded(encoder, message(body=b"{}", raw=properties(kept + origin())))[1] == {"_id": "first"}
    assert encoded(encoder, message(body=b"{}", raw=properties(kept)))[1] == {"_id": "made-here"}, "not our headers"


def test_ids_from_templates_are_data_and_limited() -> None:
    """Whatever bytes they hold, up to 512; an empty one is a missing field."""
    odd = 'a"}}\n{"delete":{"_id":"victim"}}\n'
    encoder = make(id="{header.key}")
    assert encoded(encoder, message(body=b"{}", raw=properties([(b"key", long_string(odd.encode()))])))[1] == {
        "_id": odd
    }
    assert encoded(encoder, message(body=b"{}", raw=properties([(b"key", long_string(b"x" * 512))])))[1]
    too_long = message(body=b"{}", raw=properties([(b"key", long_string(b"x" * 513))]))
    assert refused(encoder, too_long) == ("malformed", "the id has 513 bytes; Elasticsearch takes 512")
    assert refused(encoder, message(body=b"{}", raw=properties([(b"key", long_string(b""))])))[0] == "missing-field"
    assert refused(encoder, message(body=b"{}")) == ("missing-field", "the message has no header.key")


@pytest.mark.parametrize("long", [b"x" * 513, b"a" * 513, b"\xc3\xa9" * 257])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_an_id_that_is_too_long_is_refused_wherever_it_stands(at: int, long: bytes) -> None:
    """Before any request, which would fail as a whole: in a chunk its neighbours get their lines."""
    idents = [b"b", b"z", b"m" * 512]
    idents.insert(at, long)
    of = ledger(delivered=len(idents))
    chunk = [
        message(tag, b"{}", of=of, raw=properties([(b"key", long_string(document_id))]))
        for tag, document_id in enumerate(idents, 1)
    ]
    accepted, rejections = make(id="{header.key}").encode(chunk, 0.0)
    assert [(reject.message.tag, reject.reason) for reject in rejections] == [(at + 1, "malformed")]
    assert [one.document_key for one in accepted] == [document_id for document_id in idents if document_id is not long]


def test_routing_pipeline_and_version_are_options_of_the_line() -> None:
    """Empty routing and pipeline are left out."""
    encoder = make(routing="{header.tenant|}", pipeline="{type|}", version="{body.v}", version_type="external_gte")
    raw = properties([(b"tenant", long_string(b'a"b'))], message_id=b"7", type=b"clean")
    assert encoded(encoder, message(body=b'{"v":12}', raw=raw))[1] == {
        "_id": "7",
        "routing": 'a"b',
        "pipeline": "clean",
        "version": 12,
        "version_type": "external_gte",
    }
    assert set(encoded(encoder, message(body=b'{"v":1}', raw=properties(message_id=b"7")))[1]) == {
        "_id",
        "version",
        "version_type",
    }


@pytest.mark.parametrize("version", ["-1", "1.5", "x", '1,"pipeline":"evil"', str(2**63), "", "\u0661"])
def test_a_version_is_a_whole_number(version: str) -> None:
    """Anything else would fail, or get into, the whole request."""
    raw = properties([(b"v", long_string(version.encode()))], message_id=b"7")
    assert refused(make(version="{header.v}"), message(body=b"{}", raw=raw))[0] == "malformed"


@pytest.mark.parametrize("action", ["create", "update", "upsert"])
def test_a_version_on_an_action_that_takes_none_is_refused(action: str) -> None:
    """Elasticsearch would refuse the whole request."""
    one = message(body=b"{}", raw=properties(message_id=b"7"))
    assert refused(make(action=action, version="1"), one) == ("malformed", f"{action} takes no version")


def test_a_copy_that_came_back_resolves_as_at_its_first_delivery() -> None:
    """Exchange, routing key and time are those of the first delivery, not of the delay queue."""
    headers = [(b"sidecar-retry-count", b"l" + bytes(8)), *origin()]
    one = message(body=b"{}", raw=properties(headers))
    encoder = make("{exchange}-{routing_key}-{now:%Y.%m.%d}")
    assert encoded(encoder, one)[1] == {"_index": "events-order.new-2020.02.03"}


@pytest.mark.parametrize("trace", [[], [(b"sidecar-retry-count", b"l" + bytes(8))]])
def test_the_first_delivery_is_what_three_headers_say_that_may_be_ours(trace: list[tuple[bytes, bytes]]) -> None:
    """The delay queue's copies and other stages have all three. Otherwise somebody else uses one of the names.

    That includes `sidecar-retry-count`: with it alone, the message is nobody's but its producer's.
    """
    encoder = make("x{exchange}-{routing_key}-{now:%Y.%m.%d}")

    def index(headers: list[tuple[bytes, bytes]]) -> object:
        return encoded(encoder, message(body=b"{}", raw=properties([*trace, *headers])))[1]["_index"]

    assert index(origin()) == "xevents-order.new-2020.02.03"
    assert index(origin(b"", b"", b"2020-02-03")) == "x--2020.02.03"
    assert index(origin(b"e" * 255, b"k" * 245)) == "x" + "e" * 255 + "-" + "k" * 245 + "-2020.02.03"
    foreign = [[], origin(b"e" * 256), origin(b"e", b"k" * 256), origin(received_at=b"soon"), origin(received_at=b"")]
    for name, value in origin():
        others = [field for field in origin() if field[0] != name]
        foreign += [others, [*others, (name, b"I" + bytes(4))], [*others, (b"x" + name, value)]]
    for headers in foreign:
        assert index(headers) == "x-work-2023.11.14", headers


@pytest.mark.parametrize("action", ["index", "update"])
def test_a_copy_that_is_cut_short_is_refused_like_any_message(action: str) -> None:
    """What it remembers can't be read: that is nothing to fall over, whichever template asks for it."""
    headers = [(b"sidecar-retry-count", b"l" + bytes(8)), *origin()]
    torn = message(body=b"{}", raw=properties(headers, message_id=b"7")[:-3])
    encoder = make("x{exchange}-{now:%Y}", action=action)
    assert refused(encoder, torn)[0] == "malformed"


@pytest.mark.parametrize("digits", [20, 5_000])
def test_a_version_of_thousands_of_digits_is_refused(digits: int) -> None:
    """Python refuses to read such a number, in its own way."""
    one = message(body=b"{}", raw=properties([(b"v", long_string(b"9" * digits))], message_id=b"7"))
    assert refused(make(version="{header.v}"), one)[0] == "malformed"
    zeros = message(body=b"{}", raw=properties([(b"v", long_string(b"0" * digits + b"7"))], message_id=b"7"))
    assert encoded(make(version="{header.v}"), zeros)[1]["version"] == 7


@pytest.mark.parametrize("depth", [300, 999])
def test_a_value_is_nested_as_deeply_as_elasticsearch_takes_it(depth: int) -> None:
    """A thousand levels are read and written again, whoever calls from however deep."""
    value = b"[" * depth + b"]" * depth
    assert encoded(make(routing="{body.x}"), message(body=b'{"x":' + value + b"}"))[1]["routing"] == value.decode()


def _nested(depth: int) -> bytes:
    value = b"V"
    for _ in range(depth):
        value = b"F" + table([(b"", value)])
    return value


@pytest.mark.parametrize("depth", [3_000, 100_000])
def test_a_value_that_is_nested_too_deeply_is_malformed(depth: int) -> None:
    """It is there, and can't be written as text: no default stands for it."""
    body = b'{"x":' + b"[" * depth + b"]" * depth + b"}"
    reason, detail = refused(make("{body.x|other}"), message(body=body))
    assert (reason, "nested" in detail) == ("malformed", True)
    opening = len(b"F" + table([(b"", b"")]))
    around = [b"F%b\0" % struct.pack(">I", 2 + opening * level) for level in reversed(range(depth))]
    nested = b"".join(around) + b"V"
    assert depth > 9_000 or nested == _nested(depth)
    one = message(body=b"{}", raw=properties([(b"h", nested)]))
    assert refused(make("{header.h|x}"), one) == ("malformed", "header.h is nested too deeply to be a text")


@pytest.mark.parametrize("name", ["logs\0", "logs\n", "log\x7fs"])
def test_an_index_with_control_characters_is_refused(name: str) -> None:
    """Elasticsearch would create it, and nobody could name it again."""
    assert refused(make("{type}"), message(body=b"{}", raw=properties(type=name.encode())))[0] == "index-not-allowed"


def test_a_refusal_of_a_long_index_is_short() -> None:
    """A header may hold 100 KB; the reason of a dead letter has a kilobyte."""
    one = message(body=b"{}", raw=properties([(b"i", long_string(b"-" + b"y" * 100_000))]))
    reason, detail = refused(make("{header.i}"), one)
    assert reason == "index-not-allowed"
    assert len(detail) < 400
