"""`sidecar.core.encoding.forward`: what is published in a message's place, byte by byte."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.dead_letters.dead_letter import read, replay_properties
from sidecar.core.encoding.encoder import EncoderConfig
from sidecar.core.encoding.forward import ACTION, ForwardConfig, ForwardEncoder, ForwardProperties, append_headers
from sidecar.core.encoding.template import Template, TemplateContext
from sidecar.core.ledger import Ledger
from sidecar.core.message import Message
from sidecar.core.wire import properties as raw_properties
from sidecar.core.wire.properties import fields, header, headers, number_value, split, text_value
from sidecar.core.wire.republish import Failure as Buried
from sidecar.core.wire.republish import dead_letter_headers, delay_headers, republish_properties
from tests.builders import examples, long_string, origin, properties, short_string
from tests.drawing import drew, how_many

if TYPE_CHECKING:
    from sidecar.core.encoding.encoder import Rejection

NOW = 1_700_000_000.25
ISO = "2023-11-14T22:13:20.250Z"
ADDED = ["sidecar-copy", "sidecar-exchange", "sidecar-routing-key", "sidecar-received-at"]
SAME = ForwardConfig(routing_key=Template("{routing_key}"))
ENVELOPE = ForwardConfig(routing_key=Template("staging"), envelope=True)


def message(
    body: bytes, raw: bytes, *, queue: str = "work", exchange: bytes = b"", routing_key: bytes = b"work"
) -> Message:
    """Return a message as it comes off the wire."""
    route = short_string(exchange) + short_string(routing_key)
    return Message(Ledger(queue, 1), 1, 0, route, raw, body, len(raw) + len(body))


def forwarded(one: Message, staging: ForwardConfig = SAME, now: float = NOW) -> tuple[list[Message], list[Rejection]]:
    """Return what composing makes of a message."""
    return ForwardEncoder(EncoderConfig(index=staging.routing_key, action=Template(ACTION)), staging).encode([one], now)


def passed_on(one: Message, staging: ForwardConfig = SAME) -> bytes:
    """Return the properties with which a message is published."""
    encoded, rejections = forwarded(one, staging)
    assert (encoded, rejections) == ([one], [])
    return ForwardProperties(staging).properties(one, b"7")


def names(raw: bytes) -> list[str]:
    """Return the names of the headers, in order."""
    return [name.decode() for name, _ in fields(headers(raw))]


def test_body_properties_and_headers_go_on_as_they_are() -> None:
    """Byte by byte; headers are added at the end, and nothing else."""
    own = [(b"a", b"V"), (b"b", long_string(b"\xff")), (b"a", b"t\x01")]
    before = properties(
        own, content_type=b"x/y", delivery_mode=2, priority=5, message_id=b"m", timestamp=17, app_id=b"p"
    )
    one = message(b"\x00any bytes", before, exchange=b"shop", routing_key=b"order.new")
    after = passed_on(one)
    assert one.source is one.body
    assert (one.made, one.document_key) == (b"order.new", b"m\0order.new")
    mine, theirs = split(before), split(after)
    assert {name: value for name, value in theirs.items() if name != "headers"} == {
        name: value for name, value in mine.items() if name != "headers"
    }
    assert headers(after).startswith(headers(before))
    assert names(after)[3:] == ADDED
    assert [header(after, name.encode()) for name in ADDED] == [
        text_value(text) for text in ("7", "shop", "order.new", ISO)
    ]


def test_what_would_lead_it_astray_moves() -> None:
    """As in every copy; and rounds by the delay queue are this stage's own."""
    own = [(b"CC", b"A\0\0\0\0"), (b"x-death", b"A\0\0\0\0"), (b"sidecar-retry-count", number_value(2))]
    one = message(b"{}", properties(own, delivery_mode=1, expiration=b"500", user_id=b"guest"))
    after = passed_on(one)
    assert set(split(after)) == {"delivery_mode", "headers"}
    assert split(after)["delivery_mode"] == b"\x02"
    found = names(after)
    assert "sidecar-retry-count" not in found
    assert {"sidecar-original-CC", "sidecar-original-expiration", "sidecar-original-user_id"} <= set(found)
    assert header(after, b"sidecar-original-delivery_mode") == number_value(1)


VALUES = st.sampled_from([b"V", b"t\x01", number_value(9), long_string(b"text"), b"F\0\0\0\0", b"A\0\0\0\0"])
NAMES = st.sampled_from([
    b"a", b"traceparent", b"x-own", b"CC", b"BCC", b"x-death", b"x-first-death-queue", b"x-delivery-count",
    b"sidecar-exchange", b"sidecar-copy", b"sidecar-retry-count", b"deathly", b"ACCEPT",
])  # fmt: skip
PLAIN = (b"a", b"traceparent", b"x-own")
PLAIN_NAMES = st.sampled_from(PLAIN)
OPTIONAL = {
    "content_type": st.sampled_from([b"", b"application/json"]),
    "content_encoding": st.just(b"gzip"),
    "delivery_mode": st.sampled_from([1, 2]),
    "priority": st.integers(0, 9),
    "expiration": st.just(b"10"),
    "message_id": st.binary(max_size=9),
    "timestamp": st.integers(0, 1 << 40),
    "user_id": st.just(b"u"),
    "app_id": st.binary(max_size=4),
}


@pytest.mark.draws(
    "no table", "one headers", "several headers", "spliced", "taken apart", "expiration", "user_id", "transient",
    "persistent", "no delivery mode", "other properties behind the headers",
)  # fmt: skip
@settings(max_examples=examples(300))
@given(
    own=st.none() | st.lists(st.tuples(PLAIN_NAMES | NAMES, VALUES), max_size=5),
    values=st.fixed_dictionaries({}, optional=OPTIONAL),
    ordinary=st.booleans(),
)
def test_splicing_gives_what_taking_apart_gives(
    own: list[tuple[bytes, bytes]] | None, values: dict[str, object], ordinary: bool
) -> None:
    """The quick way is only quicker; and it is taken where nothing is in the way."""
    if ordinary:
        own = [(b"x-own" if name not in PLAIN else name, value) for name, value in own or []]
        values = {name: value for name, value in values.items() if name not in {"expiration", "user_id"}}
        values["delivery_mode"] = 2
    before = properties(own, **values)  # type: ignore[arg-type]
    added = [(b"sidecar-copy", text_value(b"1")), (b"sidecar-exchange", text_value(b""))]
    quick = append_headers(before, raw_properties.table(added)) if b"sidecar-" not in before else None
    slow = republish_properties(before, added, 1 << 30, without=frozenset({b"sidecar-retry-count"}))
    drew("no table", own is None)
    drew(how_many(len(own or []), "headers"), own)
    drew("spliced" if quick else "taken apart")
    for name in ("expiration", "user_id"):
        drew(name, name in values)
    drew({1: "transient", 2: "persistent", None: "no delivery mode"}[values.get("delivery_mode")])  # type: ignore[index]
    drew("other properties behind the headers", quick and own and values.keys() & {"message_id", "timestamp", "app_id"})
    assert quick in {None, slow}
    plain = all(name in PLAIN for name, _ in own or [])
    if plain and values.get("delivery_mode") == 2 and not {"expiration", "user_id"} & values.keys():
        assert quick == slow


@pytest.mark.parametrize("cut", range(2, 40))
def test_properties_that_are_cut_short_are_left_to_those_who_know(cut: int) -> None:
    """RabbitMQ vouches for what it delivers; should it ever not, nothing breaks here."""
    whole = properties([(b"a", long_string(b"text"))], content_type=b"text/plain", delivery_mode=2, message_id=b"m")
    append_headers(whole[:cut], b"")


def test_a_routing_key_that_is_none_is_a_reject() -> None:
    """Absent, or longer than AMQP takes."""
    by_header = ForwardConfig(routing_key=Template("{header.to}"))
    (reject,) = forwarded(message(b"{}", properties()), by_header)[1]
    assert (reject.reason, reject.detail) == ("missing-field", "the message has no header.to")
    long = properties([(b"to", long_string(b"x" * 256))])
    (reject,) = forwarded(message(b"{}", long), by_header)[1]
    assert (reject.reason, reject.detail) == ("malformed", "the routing key has 256 bytes; AMQP takes 255")


def test_templates_mean_at_the_next_stage_what_they_meant_here() -> None:
    """Exchange, routing key and time of the first delivery, through any number of stages."""
    one = message(b"{}", properties(delivery_mode=2), exchange=b"shop", routing_key=b"order.new")
    second = message(b"{}", passed_on(one), exchange=b"", routing_key=b"staging")
    third = message(b"{}", passed_on(second), exchange=b"x", routing_key=b"y")
    context = TemplateContext(third, NOW + 1000)
    told = Template("{exchange}/{routing_key}/{now}").render(context).decode()
    assert told == f"shop/order.new/{ISO}"
    assert names(third.properties) == ADDED


def test_what_the_writer_delays_or_buries_comes_back_to_the_staging_queue() -> None:
    """And still remembers the first delivery: a dead letter's queue is the one that it was rejected in."""
    one = message(b"{}", properties(delivery_mode=2, message_id=b"m"), exchange=b"shop", routing_key=b"order.new")
    at_writer = message(b"{}", passed_on(one), queue="staging", exchange=b"", routing_key=b"staging")
    delayed = republish_properties(
        at_writer.properties,
        delay_headers(Buried(at_writer, "", "", delay_rounds=1), token=b"1", document_id=b"", now=NOW + 9),
        1 << 30,
    )
    again = TemplateContext(message(b"{}", delayed, queue="staging"), NOW + 99)
    assert (again.exchange, again.routing_key, again.received_at) == (b"shop", b"order.new", NOW)
    buried = dead_letter_headers(
        Buried(at_writer, "rejected", "why"), token=b"2", action="index", index="i", document_id=b"m", failed_at=NOW + 9
    )
    letter = message(b"{}", republish_properties(at_writer.properties, buried, 1 << 30), queue="staging.dead")
    found = read(letter, 1)
    assert (found.queue, found.exchange, found.routing_key) == ("staging", "shop", "order.new")
    back = TemplateContext(
        message(b"{}", replay_properties(letter, found, token=b"3", user=None), queue="staging"), NOW + 999
    )
    assert (back.exchange, back.routing_key, back.received_at) == (b"shop", b"order.new", NOW)


def test_an_envelope_tells_where_the_body_came_from() -> None:
    """The body in it keeps its exact bytes; what is absent is left out."""
    body = b'{"price": 1.0e2,\n "name":"\xc3\xa9"}'
    own = [
        (b"kind", long_string(b"big")), (b"n", number_value(3)), (b"raw", long_string(b"\xff")),
        (b"list", b"A\0\0\0\2t\1"), (b"sidecar-retry-count", number_value(0)), (b"x-delivery-count", number_value(1)),
        *origin(b"first", b"key", ISO.encode()),
    ]  # fmt: skip
    one = message(body, properties(own, message_id=b"m-1", timestamp=1_600_000_000), queue="work")
    (encoded,), _ = forwarded(one, ENVELOPE)
    assert encoded.source is not None
    assert encoded.source.endswith(b'"body":' + body + b"}")
    told = json.loads(encoded.source)
    assert told == {
        "message_id": "m-1",
        "exchange": "first",
        "routing_key": "key",
        "queue": "work",
        "timestamp": "2020-09-13T12:26:40.000Z",
        "received_at": ISO,
        "headers": {"kind": "big", "n": 3, "raw": "\ufffd", "list": [True]},
        "body": json.loads(body),
    }
    bare = forwarded(message(b"[1]", properties(), queue="work", routing_key=b"work"), ENVELOPE)[0][0]
    assert json.loads(bare.source or b"") == {"routing_key": "work", "queue": "work", "received_at": ISO, "body": [1]}


def test_a_compressed_body_is_undone_and_its_properties_say_so() -> None:
    """Bounded, as everywhere; ids stay what they are."""
    packed = properties(content_encoding=b"gzip", content_type=b"text/x", delivery_mode=2, message_id=b"m")
    one = message(gzip.compress(b'{"a":1}'), packed)
    (encoded,), _ = forwarded(one, ENVELOPE)
    assert json.loads(encoded.source or b"")["body"] == {"a": 1}
    after = split(ForwardProperties(ENVELOPE).properties(one, b"1"))
    assert (after["content_type"], after["message_id"]) == (b"\x10application/json", b"\x01m")
    assert "content_encoding" not in after


@pytest.mark.parametrize(
    "body",
    [b"", b" ", b"{", b"text", b'{"a":1} x', b'{"a":1},"queue":"other"', b"NaN", b"\xff", b"\xef\xbb\xbf", b"{}//",
     '{"a":1}'.encode("utf-16"), b"[" * 100_000],
)  # fmt: skip
def test_what_is_no_json_gets_no_envelope(body: bytes) -> None:
    """It could close the envelope, and go on with neighbours of its own."""
    encoded, (reject,) = forwarded(message(body, properties()), ENVELOPE)
    assert (encoded, reject.reason) == ([], "malformed")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.draws(
    "an object", "an array", "a text", "a number", "an id with a quote", "a header that isn't UTF-8", "an empty name",
)  # fmt: skip
@settings(max_examples=examples(200))
@given(
    body=JSON,
    document_id=st.text(max_size=20) | st.text('"\\{},:\n', max_size=9),
    name=st.text(max_size=9),
    value=st.binary(max_size=20),
)
def test_every_envelope_is_json_and_holds_the_body(body: object, document_id: str, name: str, value: bytes) -> None:
    """No id, header or body can add to it, change it or end it."""
    raw = properties([(name.encode(), long_string(value))], message_id=document_id.encode())
    text = json.dumps(body).encode()
    encoded, rejections = forwarded(message(text, raw, queue="work"), ENVELOPE)
    assert rejections == []
    for kind, of in (("a text", str), ("a number", int | float), ("an array", list), ("an object", dict)):
        drew(kind, isinstance(body, of) and not isinstance(body, bool))
    drew("an id with a quote", '"' in document_id)
    drew("a header that isn't UTF-8", value.decode(errors="ignore").encode() != value)
    drew("an empty name", not name)
    told = json.loads(encoded[0].source or b"")
    assert told.keys() <= {"message_id", "routing_key", "exchange", "queue", "received_at", "headers", "body"}
    assert told["body"] == json.loads(text)
    assert told.get("message_id", "") == document_id


def test_envelopes_beyond_the_room_wait() -> None:
    """What they take beside the bodies is bounded; one always goes."""
    encoder = ForwardEncoder(EncoderConfig(index=Template("q"), action=Template(ACTION)), ENVELOPE)
    several = [message(b"[%d]" % number, properties()) for number in range(4)]
    encoder.room_bytes = 150
    encoded, _ = encoder.encode(several, NOW)
    assert 0 < len(encoded) < 4
    assert encoded + encoder.left == several


def test_raw_properties_are_what_amqp_says() -> None:
    """The flags that the quick way knows are those of the table."""
    assert raw_properties.FIELDS["expiration"][0] | raw_properties.FIELDS["user_id"][0] == 0x0110
