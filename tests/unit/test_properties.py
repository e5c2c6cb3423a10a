"""`sidecar.core.wire.properties`."""

from __future__ import annotations

import struct

import pytest

from sidecar.core.wire import properties as core
from sidecar.core.wire.properties import PropertiesError
from tests.builders import FLAGS, long_string, properties, short_string

STRINGS = [name for name in FLAGS if name not in ("headers", "delivery_mode", "priority", "timestamp")]
EVERYTHING = {
    **{name: name.encode() for name in STRINGS},
    "delivery_mode": 2,
    "priority": 9,
    "timestamp": 1_700_000_000_123,
}
HEADERS = [(b"a", long_string(b"1")), (b"a", long_string(b"2")), (b"\xff", b"t\x01")]


@pytest.mark.parametrize("name", STRINGS)
def test_each_string_is_found_behind_any_other_property(name: str) -> None:
    """The place of a value depends on the flags before it: alone, and with all others."""
    assert core.short(properties(HEADERS, **EVERYTHING), name) == name.encode()
    assert core.short(properties(**{name: b"\xff\n"}), name) == b"\xff\n"
    others = {other: value for other, value in EVERYTHING.items() if other != name}
    assert core.short(properties(HEADERS, **others), name) is None


@pytest.mark.parametrize("name", ["delivery_mode", "priority", "timestamp"])
def test_numbers_keep_every_bit(name: str) -> None:
    """A timestamp in milliseconds is not divided by 1000."""
    raw = properties(HEADERS, **EVERYTHING)
    assert core.number(raw, name) == EVERYTHING[name]
    assert core.number(properties(), name) is None


def test_headers_keep_order_repetition_and_bytes() -> None:
    """Names may repeat, and need not be UTF-8."""
    raw = properties(HEADERS, **EVERYTHING)
    assert list(core.fields(core.headers(raw))) == HEADERS
    assert core.headers(properties()) == b""


def test_the_first_header_of_a_name_counts() -> None:
    """And a name that only occurs inside a value is no header."""
    raw = properties([(b"x", long_string(b"name")), (b"a", b"t\x01"), (b"a", b"t\x00")])
    assert core.header(raw, b"a") == b"t\x01"
    assert core.header(raw, b"name") is None
    assert core.header(raw, b"none") is None


def test_splitting_and_joining_gives_the_same_bytes() -> None:
    """A property set goes through without any codec touching it."""
    raw = properties(HEADERS, **EVERYTHING)
    assert core.join(core.split(raw)) == raw
    assert list(core.split(raw)) == list(FLAGS)
    assert core.join(core.split(properties())) == properties()


def test_a_table_is_joined_from_its_fields() -> None:
    """`table` is the inverse of `fields`."""
    assert list(core.fields(core.table(HEADERS))) == HEADERS


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (long_string("é".encode()), "é"),
        (long_string(b"\xff"), b"\xff"),
        (b"t\x01", True),
        (b"t\x00", False),
        (b"b\xff", -1),
        (b"B\xff", 255),
        (b"s\xff\xfe", -2),
        (b"u\xff\xfe", 65534),
        (b"I\xff\xff\xff\xff", -1),
        (b"i\xff\xff\xff\xff", 2**32 - 1),
        (b"l" + struct.pack(">q", -5), -5),
        (b"L" + struct.pack(">q", -5), -5),
        (b"f" + struct.pack(">f", 1.5), 1.5),
        (b"d" + struct.pack(">d", 0.1), 0.1),
        (b"T" + struct.pack(">Q", 1_700_000_000_123), 1_700_000_000_123),
        (b"D\x02" + struct.pack(">i", -150), -1.5),
        (b"V", None),
        (b"\x00", None),
        (b"x\0\0\0\x02\xff\0", b"\xff\0"),
        (b"A\0\0\0\x04t\x01VV", [True, None, None]),
        (b"F\0\0\0\x05\x02\xc3\xa9t\x01"[:10], {"é": True}),
    ],
)
def test_every_type_of_table_value_is_decoded(raw: bytes, value: object) -> None:
    """RabbitMQ's types, source: its errata to the specification."""
    assert core.decode(raw) == value
    assert list(core.fields(short_string(b"n") + raw)) == [(b"n", raw)]


def test_values_are_made_as_rabbitmq_reads_them() -> None:
    """Long strings, signed 64-bit integers and timestamps."""
    assert core.decode(core.text_value("é")) == "é"
    assert core.decode(core.text_value(b"\xff")) == b"\xff"
    assert core.decode(core.number_value(-(2**63))) == -(2**63)
    assert core.decode(core.timestamp_value(1_700_000_000)) == 1_700_000_000


def test_sets_that_end_too_early_say_so() -> None:
    """Every prefix of a property set is an error for what it lacks, and never an IndexError."""
    raw = properties(HEADERS, **EVERYTHING)
    for end in range(2, len(raw)):
        with pytest.raises(PropertiesError):
            core.split(raw[:end])
        with pytest.raises(PropertiesError):
            core.short(raw[:end], "cluster_id")
    for end in range(len(properties(timestamp=1))):
        with pytest.raises(PropertiesError):
            core.number(properties(timestamp=1)[:end], "timestamp")
    for end in range(2, len(properties(HEADERS))):
        with pytest.raises(PropertiesError):
            core.headers(properties(HEADERS)[:end])


def test_a_reader_of_many_messages_reads_what_short_reads() -> None:
    """Whether they look alike or not, are cut short or don't have it: what it learned from one is true of the next."""
    whole = properties(HEADERS, **EVERYTHING)
    sets = [
        properties(message_id=b"1"),
        properties(message_id=b"22"),
        properties(message_id=b""),
        properties(content_type=b"a", message_id=b"3"),
        properties(content_type=b"ab", message_id=b"4"),
        properties(content_type=b"ab"),
        properties(content_type=b"ab", message_id=b"5")[:-1],
        properties(content_type=b"ab", message_id=b"5")[:5],
        properties(message_id=b"1"),
        *(properties(HEADERS[:count], content_type=b"ab", delivery_mode=2, message_id=b"6") for count in range(4)),
        *(properties(HEADERS[:count], priority=1, correlation_id=b"c" * count, message_id=b"7") for count in range(4)),
        properties(HEADERS, content_type=b"ab", delivery_mode=2),
        properties(HEADERS, content_type=b"ab", delivery_mode=2, message_id=b"8")[:9],
        properties(HEADERS, content_type=b"ab", delivery_mode=2, message_id=b"8")[:-1],
        *(whole[:end] for end in range(len(whole))),
        whole,
    ]
    read = core.short_reader("message_id")
    for raw in [*sets, *sets[::-1], *(raw for raw in sets for _ in range(2))]:
        try:
            expected = core.short(raw, "message_id")
        except PropertiesError:
            with pytest.raises(PropertiesError):
                read(raw)
        else:
            assert read(raw) == expected


def test_a_headers_reader_finds_what_is_found_one_by_one() -> None:
    """Wherever it stands, whatever its type, cut short or absent: what it learned from one is true of the next."""
    texts = [(b"other", long_string(b"wanted")), (b"wanted", long_string(b"1")), (b"wanted", long_string(b"2"))]
    tables = [*(texts[:count] for count in range(4)), texts[1:], [*HEADERS, *texts], [*texts, *HEADERS]]
    tables += [[(b"wanted", value)] for _, value in HEADERS] + [[(b"WANTED", long_string(b"3")), (b"wante", b"V")]]
    whole = [properties(table, **others) for table in tables for others in ({}, {"content_type": b"a", "priority": 1})]
    whole.append(properties(content_type=b"a", message_id=b"wanted"))
    torn = [raw[:end] for raw in whole for end in range(len(raw))]
    overlong = [raw.replace(b"wantedS\0\0\0\1", b"wantedS\0\0\0\7") for raw in whole]
    read = core.header_reader(b"wanted")
    for raw in [*whole, *torn, *overlong, *whole[::-1]]:
        try:
            expected = next((value for name, value in core.fields(core.headers(raw)) if name == b"wanted"), None)
        except PropertiesError:
            if b"wanted" in raw:  # otherwise it isn't there, whatever else is wrong
                with pytest.raises(PropertiesError):
                    read(raw)
        else:
            assert read(raw) == expected, raw
    assert core.header_reader(b"w" * 300)(whole[-1]) is None


def test_a_set_longer_than_its_flags_say_is_refused_for_copies() -> None:
    """What it doesn't announce can't be put back together."""
    with pytest.raises(PropertiesError):
        core.split(properties(message_id=b"1") + b"x")


@pytest.mark.parametrize(
    "broken", [b"\x05a", b"\x01a", b"\x01aS", b"\x01aS\0\0\0\x02x", b"\x01aZ", b"\x01aF\0\0\0\x09"]
)
def test_malformed_tables_are_errors(broken: bytes) -> None:
    """A name or value cut short, or of an unknown type."""
    with pytest.raises(PropertiesError):
        list(core.fields(broken))


def test_properties_are_found_behind_further_flag_words() -> None:
    """The standard lets flags go on in another word; bit 0 says so."""
    raw = struct.pack(">HH", 0x8001 | 1 << FLAGS["message_id"], 0) + short_string(b"t") + short_string(b"id")
    assert core.short(raw, "message_id") == b"id"
    assert core.short(raw, "content_type") == b"t"
