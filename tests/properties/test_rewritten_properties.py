"""What is published in a message's place, byte for byte, against a model that reads the specification by itself."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.encoding.forward import ForwardConfig, ForwardProperties
from sidecar.core.encoding.template import Template
from sidecar.core.ledger import Ledger
from sidecar.core.message import Message
from sidecar.core.wire.properties import text_value
from sidecar.core.wire.republish import republish_properties
from tests.builders import examples, origin, short_string
from tests.drawing import drew
from tests.servers.wire import Raw, decode_value, encode_properties, encode_value
from tests.servers.wire import short_string as wire_short

NOW = 1_700_000_000.25
ORDER = (
    "content_type", "content_encoding", "headers", "delivery_mode", "priority", "correlation_id", "reply_to",
    "expiration", "message_id", "timestamp", "type", "user_id", "app_id",
)  # fmt: skip
TOKEN, EXCHANGE, KEY, TIME = b"sidecar-copy", b"sidecar-exchange", b"sidecar-routing-key", b"sidecar-received-at"

Fields = list[tuple[bytes, bytes]]
ORIGIN: Fields = origin()


def text(raw: bytes) -> bytes:
    """Return a long string as a field value."""
    return encode_value(Raw(b"S", struct.pack(">I", len(raw)) + raw))


def entries(table: bytes) -> Fields:
    """Return names and raw values of a table, by the lengths that the specification gives."""
    found, at = [], 0
    while at < len(table):
        name = table[at + 1 : at + 1 + table[at]]
        start = at + 1 + table[at]
        _, at = decode_value(table, start)
        found.append((name, table[start:at]))
    return found


def expected(values: dict[str, Any], own: Fields | None, added: Fields, *, dropped: set[bytes], json: bool) -> bytes:
    """Return the properties of a copy: what would lead it astray moved behind ``sidecar-original-``."""
    values = dict(values)
    fields = own or []
    there = {name for name, _ in fields}
    came_round = b"sidecar-retry-count" in there and fields[: len(ORIGIN)] == ORIGIN
    kept: Fields = []
    for name, value in fields:
        recipients = name in {b"CC", b"BCC"}
        moves = recipients or name == b"x-delivery-count" or name.startswith((b"x-death", b"x-first-death-"))
        moved = b"sidecar-original-" + name
        if name in dropped or name in {one for one, _ in added}:
            continue
        if not moves:
            kept.append((name, value))
        elif moved not in there and (recipients or not came_round):
            kept.append((moved, value))
    for given_name in ("expiration", "user_id"):
        if given_name in values:
            kept.append((b"sidecar-original-" + given_name.encode(), text(values.pop(given_name))))
    if values.get("delivery_mode", 2) != 2:
        kept.append((b"sidecar-original-delivery_mode", b"l" + struct.pack(">q", values["delivery_mode"])))
    values["delivery_mode"] = 2
    if json:
        values.pop("content_encoding", None)
        if "content_type" in values:
            values["content_type"] = b"application/json"
    table = b"".join(wire_short(name) + value for name, value in [*kept, *added])
    return encode_properties({**values, "headers": table})


VALUES = st.sampled_from([
    b"V", b"t\x01", b"t\0", b"l" + bytes(7) + b"\x05", b"I" + bytes(4), b"b\xff", b"d" + bytes(8), b"D\x02\0\0\0\x07",
    b"T" + bytes(8), b"x\0\0\0\2ab", text(b""), text(b"text"), text(b"\xff\xfe"), text(b"CC"), text(b"sidecar-copy"),
    b"F\0\0\0\x05\x02CCt\x01", b"A\0\0\0\x09" + text(b"elsw"),
])  # fmt: skip
NAMES = st.sampled_from([
    b"a", b"", b"\xff", b"traceparent", b"CC", b"BCC", b"cc", b"x-death", b"x-first-death-queue", b"x-delivery-count",
    b"x-deathly", b"X-death", TOKEN, EXCHANGE, b"sidecar-other", b"sidecar-original-CC", b"sidecar-original-x-death",
    b"n" * 200,
])  # fmt: skip
SHORT = st.sampled_from([b"", b"text", b"\xff", b"x" * 255])
PROPERTIES = {
    **dict.fromkeys(("content_type", "correlation_id", "reply_to", "message_id", "type", "app_id"), SHORT),
    "content_encoding": st.sampled_from([b"gzip", b"identity", b""]),
    "expiration": st.sampled_from([b"0", b"60000"]),
    "user_id": st.sampled_from([b"guest", b""]),
    "delivery_mode": st.sampled_from([1, 2, 2, 2]),
    "priority": st.integers(0, 255),
    "timestamp": st.integers(0, (1 << 64) - 1),
}
OWN = st.none() | st.lists(st.tuples(NAMES, VALUES), max_size=6)


def raw_of(values: dict[str, Any], own: Fields | None) -> bytes:
    """Return properties as bytes."""
    table = {} if own is None else {"headers": b"".join(wire_short(name) + value for name, value in own)}
    return encode_properties({**values, **table})


@pytest.mark.draws(
    "plain", "no headers", "transient", "no mode", "moved", "moved before", "packed", "a field of ours", "envelope",
)  # fmt: skip
@settings(max_examples=examples(300))
@given(
    values=st.fixed_dictionaries({}, optional=PROPERTIES),
    own=OWN,
    envelope=st.booleans(),
    exchange=st.sampled_from([b"", b"shop", b"\xff"]),
    key=st.sampled_from([b"", b"order.new", b"k" * 255]),
    token=st.sampled_from([b"1", b"99", b"1234567"]),
)
def test_what_is_passed_on_is_the_message_but_for_what_leads_astray(
    values: dict[str, Any], own: Fields | None, envelope: bool, exchange: bytes, key: bytes, token: bytes
) -> None:
    """Every other property, header and byte stays in its place, by the quick way and by the long one."""
    names = {name for name, _ in own or []}
    drew("plain", not names & {b"CC", b"BCC"} and values.get("delivery_mode") == 2)
    drew("no headers", own is None)
    drew("transient", values.get("delivery_mode") == 1)
    drew("no mode", "delivery_mode" not in values)
    drew("moved", names & {b"CC", b"BCC", b"x-death"})
    drew("moved before", b"sidecar-original-CC" in names and b"CC" in names)
    drew("packed", values.get("content_encoding") == b"gzip")
    drew("a field of ours", names & {TOKEN, EXCHANGE})
    drew("envelope", envelope)
    raw = raw_of(values, own)
    assert own is None or entries(raw_table(raw)) == own
    message = Message(Ledger("work", 1), 1, 0, short_string(exchange) + short_string(key), raw, b"{}", 9)
    message.received_at = NOW
    found = ForwardProperties(ForwardConfig(routing_key=Template("q"), envelope=envelope)).properties(message, token)
    added = [
        (TOKEN, text(token)), (EXCHANGE, text(exchange)), (KEY, text(key)), (TIME, text(b"2023-11-14T22:13:20.250Z")),
    ]  # fmt: skip
    assert found == expected(values, own, added, dropped={b"sidecar-retry-count"}, json=envelope)


def raw_table(raw: bytes) -> bytes:
    """Return the header table of properties."""
    flags = struct.unpack_from(">H", raw)[0]
    at = 2
    for bit in (15, 14):
        if flags >> bit & 1:
            at += 1 + raw[at]
    return raw[at + 4 : at + 4 + struct.unpack_from(">I", raw, at)[0]]


@pytest.mark.draws("fits", "too much", "came round", "somebody else's count", "moved")
@settings(max_examples=examples(300))
@given(
    values=st.fixed_dictionaries({}, optional=PROPERTIES),
    first=st.sampled_from([[], ORIGIN]),
    own=st.lists(st.tuples(NAMES | st.just(b"sidecar-retry-count"), VALUES | st.just(text(b"y" * 900))), max_size=6),
    limit=st.integers(700, 4_000) | st.just(1 << 30),
    reason=st.integers(0, 1_500),
)
def test_a_copy_fits_its_frame_and_loses_nothing_that_fits(
    values: dict[str, Any], first: Fields, own: Fields, limit: int, reason: int
) -> None:
    """Below the limit it is the model's, byte for byte; above it, it fits, and the last header names what was cut."""
    own = first + own
    added = [
        (TOKEN, text(b"7")),
        (b"sidecar-reason", text(b"rejected")),
        (b"sidecar-error-reason", text(b"r" * reason)),
    ]
    assert added[0][1] == text_value(b"7")
    values.pop("correlation_id", None)
    values.pop("reply_to", None)
    whole = expected(values, own, added, dropped=set(), json=False)
    drew("fits" if len(whole) <= limit else "too much")
    counts = any(name == b"sidecar-retry-count" for name, _ in own)
    drew("came round", counts and first)
    drew("somebody else's count", counts and not first)
    drew("moved", any(name == b"CC" for name, _ in own))
    found = republish_properties(raw_of(values, own), added, limit)
    if len(whole) <= limit:
        assert found == whole
        return
    fixed = len(
        encode_properties({name: value for name, value in values.items() if name not in {"expiration", "user_id"}})
    )
    assert len(found) <= max(limit, fixed + 400)
    kept = entries(raw_table(found))
    assert kept[-1][0] == b"sidecar-cut"
    named = kept[-1][1][5:].split(b", ")
    before = entries(raw_table(whole))
    assert (TOKEN, text(b"7")) in kept
    for name, value in before:
        if name not in named and len(kept[-1][1]) < 5 + 256:
            assert (name, value) in kept, "cut, and not named"
    if reason > 64:
        assert b"sidecar-error-reason" in named, "the reason goes first"
