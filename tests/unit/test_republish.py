"""`sidecar.core.wire.republish`."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from sidecar.core.wire import properties as core
from sidecar.core.wire.republish import (
    MAX_DELAY_SECONDS,
    TOKEN_HEADER,
    Failure,
    dead_letter_headers,
    delay_headers,
    delay_rounds,
    delay_seconds,
    may_be_own_write,
    republish_properties,
)
from tests.builders import ledger, long_string, message, origin, properties, short_string, table

if TYPE_CHECKING:
    from sidecar.core.message import Message

ROOM = 128 * 1024


def headers(raw: bytes) -> list[tuple[bytes, bytes]]:
    """Return the header fields of a property set."""
    return list(core.fields(core.headers(raw)))


def added(**values: bytes) -> list[tuple[bytes, bytes]]:
    """Return headers to splice in."""
    return [(name.replace("_", "-").encode(), long_string(value)) for name, value in values.items()]


def test_headers_say_why_what_and_where_from() -> None:
    """All headers of the contract, what matters most first: from the end they are cut when room is short."""
    one = message(1, of=ledger("orders"), route=short_string(b"events") + short_string(b"order.new"))
    one.attempts = 3
    letter = Failure(one, "rejected", "failed to parse field [age]", 400, "document_parsing_exception")
    made = dead_letter_headers(
        letter, token=b"17", action="index", index="orders-1", document_id=b"o-7", failed_at=1_700_000_000.5
    )
    assert {name.decode(): core.decode(value) for name, value in made} == {
        "sidecar-copy": "17",
        "sidecar-reason": "rejected",
        "sidecar-status": 400,
        "sidecar-error-type": "document_parsing_exception",
        "sidecar-error-reason": "failed to parse field [age]",
        "sidecar-action": "index",
        "sidecar-index": "orders-1",
        "sidecar-id": "o-7",
        "sidecar-attempts": 3,
        "sidecar-failed-at": "2023-11-14T22:13:20.500Z",
        "sidecar-queue": "orders",
        "sidecar-exchange": "events",
        "sidecar-routing-key": "order.new",
    }
    assert (made[0][0], made[-1][0]) == (TOKEN_HEADER, b"sidecar-error-reason")


def test_the_table_is_spliced_and_keeps_its_bytes() -> None:
    """Order, repeated names, invalid UTF-8 and nested tables are those of the original."""
    own = [(b"a", long_string(b"\xff")), (b"a", b"t\x01"), (b"n", b"F\0\0\0\x03\x01xV"), (b"", b"V")]
    raw = republish_properties(properties(own, content_type=b"\xfe"), added(sidecar_reason=b"malformed"), ROOM)
    assert headers(raw) == [*own, *added(sidecar_reason=b"malformed")]
    assert core.short(raw, "content_type") == b"\xfe"


def test_no_property_is_invented_but_persistence() -> None:
    """A message id that wasn't there isn't there in the copy."""
    raw = republish_properties(properties(), added(x=b"1"), ROOM)
    assert set(core.split(raw)) == {"headers", "delivery_mode"}
    assert core.number(raw, "delivery_mode") == 2


def test_what_would_keep_the_copy_from_arriving_moves_to_headers() -> None:
    """``expiration`` makes it vanish, a foreign ``user_id`` closes the channel, mode 1 loses it at a restart."""
    raw = republish_properties(
        properties(expiration=b"60000", user_id=b"eve", delivery_mode=1, app_id=b"shop"), [], ROOM
    )
    assert set(core.split(raw)) == {"headers", "delivery_mode", "app_id"}
    assert {name: core.decode(value) for name, value in headers(raw)} == {
        b"sidecar-original-expiration": "60000",
        b"sidecar-original-user_id": "eve",
        b"sidecar-original-delivery_mode": 1,
    }


@pytest.mark.parametrize(
    "name",
    [b"CC", b"BCC", b"x-delivery-count", b"x-death", b"x-death-extra", b"x-first-death-queue", b"x-first-death-reason"],
)
def test_headers_that_the_broker_acts_on_move(name: bytes) -> None:
    """``CC`` sends the copy to the work queue again, an ``x-death`` entry has it dropped as a cycle."""
    value = b"A\0\0\0\x06S\0\0\0\x01q"
    raw = republish_properties(properties([(b"before", b"V"), (name, value), (b"after", b"V")]), [], ROOM)
    assert headers(raw) == [(b"before", b"V"), (b"sidecar-original-" + name, value), (b"after", b"V")]


def test_other_headers_stay() -> None:
    """Names that only look alike, and other cases, mean nothing to the broker."""
    own = [(b"cc", b"V"), (b"X-Death", b"V"), (b"x-message-ttl", b"V")]
    assert headers(republish_properties(properties(own), [], ROOM)) == own


def test_a_replayed_letter_tells_of_its_last_rejection_only() -> None:
    """Headers of the same name are replaced, not repeated."""
    first = republish_properties(properties([(b"own", b"V")]), added(sidecar_reason=b"malformed"), ROOM)
    again = republish_properties(first, added(sidecar_reason=b"rejected"), ROOM)
    assert headers(again) == [(b"own", b"V"), *added(sidecar_reason=b"rejected")]


def test_properties_that_cannot_be_read_do_not_cost_the_body() -> None:
    """The broker vouches for what it delivers; should it ever not, the letter still arrives."""
    raw = republish_properties(struct.pack(">H", 0xFFFF), added(sidecar_reason=b"malformed"), ROOM)
    assert headers(raw) == added(sidecar_reason=b"malformed")


def test_what_does_not_fit_is_cut_reason_first_and_named() -> None:
    """A header frame past frame_max closes the connection, so the copy would come again, for ever."""
    more = [(b"token", long_string(b"1")), (b"id", long_string(b"i" * 200)), (b"why", long_string(b"w" * 1024))]
    raw = republish_properties(properties([(b"own", long_string(b"o" * 300))]), list(more), 700)
    found = dict(headers(raw))
    assert len(raw) <= 700
    assert found[b"why"] == long_string(b"w" * 64)
    assert found[b"own"] == long_string(b"o" * 300)
    assert found[b"sidecar-cut"] == long_string(b"why")


def test_own_headers_are_cut_after_ours_the_longest_first() -> None:
    """What was cut is named in that order; short ones stay whole."""
    own = [(b"s", long_string(b"s" * 50)), (b"m", long_string(b"m" * 200)), (b"l", long_string(b"l" * 900))]
    raw = republish_properties(properties(own), [(b"token", long_string(b"1")), (b"why", long_string(b"w" * 500))], 600)
    found = dict(headers(raw))
    assert len(raw) <= 600
    assert found[b"l"] == long_string(b"l" * 64)
    assert found[b"m"] == long_string(b"m" * 200)
    assert found[b"s"] == long_string(b"s" * 50)
    assert found[b"sidecar-cut"] == long_string(b"why, l")


@pytest.mark.parametrize(
    "own",
    [
        [(b"h%d" % at, long_string(b"v" * 60)) for at in range(50)],
        [(b"n" * 250 + b"%d" % at, long_string(b"v" * 70)) for at in range(12)],
        [(b"t", b"F" + table([(b"k", long_string(b"v" * 93))] * 37))],
        [(b"%d" % at, b"V") for at in range(900)],
    ],
    ids=["many small", "long names", "a large table", "only names"],
)  # fmt: skip
def test_whatever_its_headers_the_copy_fits(own: list[tuple[bytes, bytes]]) -> None:
    """A message that filled its frame by itself has no room for what we add: something must give way, and is named."""
    limit = 4096 - 20
    full = properties(own, **dict.fromkeys(("content_type", "correlation_id", "reply_to", "message_id"), b"x" * 50))
    token = (TOKEN_HEADER, long_string(b"17"))
    raw = republish_properties(
        full, [token, (b"sidecar-reason", long_string(b"rejected")), (b"why", long_string(b"w" * 1024))], limit
    )
    found = dict(headers(raw))
    assert len(raw) <= limit
    assert found[TOKEN_HEADER] == token[1]
    assert found[b"sidecar-reason"] == long_string(b"rejected")
    assert b"why" in found[b"sidecar-cut"]
    assert len(found[b"sidecar-cut"]) <= 261


def test_the_callers_list_is_left_as_it_is() -> None:
    """It may be used for another try, to a broker with larger frames."""
    more = [(b"token", long_string(b"1")), (b"why", long_string(b"w" * 1024))]
    before = list(more)
    republish_properties(properties(), more, 200)
    assert more == before


def came_back(retry_count: bytes = b"l" + bytes(8), received_at: bytes = b"2023-11-14T22:13:20.000Z") -> Message:
    """Return a copy that came back from a delay queue."""
    fields = [(b"sidecar-retry-count", retry_count), *origin(received_at=received_at)]
    return message(raw=properties(fields))


RECEIVED_AT = 1_700_000_000.0


def test_the_delay_of_counted_rounds_doubles() -> None:
    """Up to five minutes."""
    delays = [
        delay_seconds(came_back(b"l" + count.to_bytes(8, "big")), 10.0, counted=True, now=RECEIVED_AT)
        for count in (0, 1, 2, 5, 2**31)
    ]
    assert delays == [10.0, 20.0, 40.0, 300.0, MAX_DELAY_SECONDS]


def test_the_delay_of_a_message_that_waits_for_its_target_grows_with_its_waiting() -> None:
    """By powers of two, for each length is a queue; a clock that was put back does no harm."""
    waited = (-60.0, 0.0, 10.0, 10.5, 30.5, 70.7, 151.0, 86_400.0)
    delays = [delay_seconds(came_back(), 10.0, counted=False, now=RECEIVED_AT + seconds) for seconds in waited]
    assert delays == [10.0, 10.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0]
    assert delay_seconds(message(), 0.3, counted=False, now=RECEIVED_AT) == 0.3


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (b"l" + (3).to_bytes(8, "big"), 3),
        (b"l" + (-3).to_bytes(8, "big", signed=True), 0),
        (b"T" + (2**64 - 1).to_bytes(8, "big"), 0),
        (long_string(b"3"), 0),
        (b"F" + table([(b"x", b"V")]), 0),
        (b"t\x01", 0),
    ],
)
def test_rounds_that_somebody_made_up_are_none(value: bytes, count: int) -> None:
    """Anybody may publish a header of that name, with anything in it: it must not end the process."""
    assert delay_rounds(came_back(value)) == count


@pytest.mark.parametrize("others", [[], origin()[1:], origin()[:2]])
def test_a_count_of_rounds_without_a_first_delivery_is_somebody_elses(others: list[tuple[bytes, bytes]]) -> None:
    """Such a message has no rounds behind it, and a conflict about it isn't taken for one with ourselves."""
    count = (b"sidecar-retry-count", b"l" + (3).to_bytes(8, "big"))
    foreign, ours = (message(raw=properties([count, *more])) for more in (others, origin()))
    assert (delay_rounds(foreign), may_be_own_write(foreign)) == (0, False)
    assert (delay_rounds(ours), may_be_own_write(ours)) == (3, True)


@pytest.mark.parametrize("moment", [b"0001-01-01T00:00:00+23:59", b"9999-12-31T23:59:59-23:59", b"soon", b"\xff"])
def test_a_time_that_somebody_made_up_is_none(moment: bytes) -> None:
    """A delivery that says it was first received in another age is received now."""
    letter = Failure(came_back(received_at=moment), "index-blocked", "", delay_milliseconds=10)
    made = dict(delay_headers(letter, token=b"1", document_id=b"", now=RECEIVED_AT))
    assert core.decode(made[b"sidecar-received-at"]) == "2023-11-14T22:13:20.000Z"


def test_what_the_delay_queue_left_on_a_copy_is_not_taken_for_the_originals() -> None:
    """Its ``x-death`` and its count of deliveries: put back by hand, the message would have a history not its own."""
    own = [
        (b"x-death", b"A\0\0\0\0"),
        (b"x-first-death-queue", long_string(b"q")),
        (b"x-delivery-count", b"l" + bytes(8)),
    ]
    raw = republish_properties(came_back().properties, [], ROOM)
    again = properties([*headers(raw), *own, (b"CC", b"A\0\0\0\0")])
    names = [name for name, _ in headers(republish_properties(again, [], ROOM))]
    assert names == [b"sidecar-retry-count", *(name for name, _ in origin()), b"sidecar-original-CC"]
