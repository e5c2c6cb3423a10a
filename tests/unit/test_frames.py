"""`sidecar.core.wire.frames`: what no other test says by an example. The differential fuzz is among the properties."""

from __future__ import annotations

import struct
from collections import Counter
from itertools import product

import pytest

from sidecar.core.wire import frames
from sidecar.core.wire.frames import HEARTBEAT, Closed, Confirm, FrameParser, Returned
from sidecar.errors import ProtocolError
from tests.builders import content_header, deliver, delivery, frame, ledger, properties, short_string, tags

RPC = frame(1, 1, struct.pack(">HH", 60, 11))  # basic.qos-ok
CLOSE = frame(1, 1, struct.pack(">HHH", 20, 40, 406) + short_string(b"timeout") + b"\0\0\0\0")
RAW = properties(message_id=b"1")


def inbound(channel: int = 1) -> FrameParser:
    """Return a parser that takes the deliveries of `channel`."""
    made = FrameParser()
    made.register_consumer(ledger(channel=channel))
    return made


def trickle(parser: FrameParser, stream: bytes) -> None:
    """Feed a stream byte by byte."""
    for at in range(len(stream)):
        parser.feed(stream[at : at + 1])


def returned(channel: int, text: bytes = b"NO_ROUTE", body: bytes = b"b", raw: bytes = RAW) -> bytes:
    """Return the frames of a returned copy."""
    method = struct.pack(">HHH", 60, 50, 312) + short_string(text) + short_string(b"x") + short_string(b"key")
    return frame(1, channel, method) + content_header(channel, len(body), raw) + frame(3, channel, body)


def test_a_delivery_is_taken_with_its_raw_bytes() -> None:
    """Tag, flag, route, properties and body; nothing of it is passed on."""
    parser = inbound()
    stream = deliver(1, 1, exchange=b"e", routing_key=b"k", again=1) + content_header(1, 2, RAW) + frame(3, 1, b"{}")
    taken = parser.feed(stream)
    (one,) = taken.messages
    assert (one.tag, bool(one.redelivered), one.exchange, one.routing_key) == (1, True, b"e", b"k")
    assert (one.properties, one.body) == (RAW, b"{}")
    assert (taken.answers, taken.passthrough) == ([], b"")


def test_deliveries_that_are_alike_and_others_are_told_apart() -> None:
    """Whatever the ones before looked like: each has its own channel, exchange and routing key."""
    routes = [(b"", b"work"), (b"", b"work"), (b"e", b"wor"), (b"", b"work"), (b"", b"walk"), (b"longer", b"k")]
    for first, channels in product(range(len(routes)), [(1,) * 7, (1, 1, 2, 1, 2, 2, 1)]):
        parser, wanted, stream, counts = FrameParser(), [], b"", Counter[int]()
        for channel in (1, 2):
            parser.register_consumer(ledger(channel=channel))
        for at, channel in enumerate(channels, first):
            counts[channel] += 1
            exchange, key = routes[at % len(routes)]
            stream += deliver(channel, counts[channel], exchange=exchange, routing_key=key)
            stream += content_header(channel, 2, RAW) + frame(3, channel, b"{}")
            wanted.append((channel, counts[channel], exchange, key))
        taken = parser.feed(stream).messages
        assert [(one.ledger.channel, one.tag, one.exchange, one.routing_key) for one in taken] == wanted


def test_deliveries_are_admitted_to_their_ledger() -> None:
    """When the chunk arrives, the ledger already knows its tags."""
    book = ledger()
    parser = FrameParser()
    parser.register_consumer(book)
    parser.feed(delivery(1, 1) + delivery(1, 2) + delivery(1, 3)[:10])
    assert (book.next_tag, book.open) == (3, 2)


def test_everything_else_is_passed_on_whole_and_in_order() -> None:
    """RPC answers, heartbeats and other channels' messages are aiormq's."""
    parser = inbound()
    other = delivery(7, 1)
    taken = parser.feed(RPC + delivery(1, 1) + HEARTBEAT + other + delivery(1, 2) + CLOSE)
    assert tags(taken.messages) == [1, 2]
    assert taken.passthrough == RPC + HEARTBEAT + other + CLOSE


def test_a_frame_in_pieces_is_passed_on_when_it_is_whole() -> None:
    """Aiormq never sees half a frame, so a heartbeat of ours may be put between two pieces."""
    parser = inbound()
    assert parser.feed(RPC[:5]).passthrough == b""
    assert parser.feed(RPC[5:]).passthrough == RPC


def test_without_channels_of_ours_all_is_passed_on() -> None:
    """Until `register_consumer` is called, deliveries are aiormq's too."""
    assert FrameParser().feed(delivery(1, 1)).passthrough == delivery(1, 1)


def test_a_released_channel_is_no_longer_ours() -> None:
    """Its number may be used again, by aiormq or by another epoch with tags from 1."""
    parser = inbound()
    parser.feed(delivery(1, 1) + deliver(1, 2))
    parser.unregister(1)
    assert parser.feed(delivery(1, 5)).passthrough == delivery(1, 5)
    parser.register_consumer(ledger())
    assert tags(parser.feed(delivery(1, 1)).messages) == [1]


def test_confirms_and_returns_come_in_the_order_of_the_wire() -> None:
    """A return belongs to the confirm that follows it, so their order matters."""
    parser = FrameParser()
    parser.register_publisher(3)
    ack = frame(1, 3, struct.pack(">HHQB", 60, 80, 5, 1))
    nack = frame(1, 3, struct.pack(">HHQB", 60, 120, 6, 0))
    taken = parser.feed(returned(3) + ack + nack)
    assert taken.answers == [Returned(312, "NO_ROUTE", RAW), Confirm(5, True, True), Confirm(6, False, False)]
    assert taken.passthrough == b""


def test_a_close_of_a_channel_to_publish_on_follows_the_confirms_before_it() -> None:
    """What was confirmed before it counts, and the number may be used again; the close itself is passed on as well."""
    parser = FrameParser()
    parser.register_publisher(3)
    ack = frame(1, 3, struct.pack(">HHQB", 60, 80, 5, 1))
    text = b"NOT_FOUND - no exchange"
    close = frame(1, 3, struct.pack(">HHHB", 20, 40, 404, len(text)) + text + bytes(4))
    taken = parser.feed(ack + close + ack)
    assert taken.answers == [Confirm(5, True, True), Closed("NOT_FOUND - no exchange")]
    assert taken.passthrough == close + ack
    other = frame(1, 4, struct.pack(">HHHB", 20, 40, 404, 0) + bytes(4))
    parser.register_publisher(3)
    assert parser.feed(other).answers == []


@pytest.mark.parametrize("before", [b"", deliver(1, 1) + content_header(1, 5)])
def test_a_close_of_a_consuming_channel_is_noted_in_its_ledger_at_once(before: bytes) -> None:
    """Before anything else can be written to the channel: also in the middle of a message, and only in that ledger."""
    parser = FrameParser()
    consuming, other = ledger(channel=1), ledger(channel=2)
    parser.register_consumer(consuming)
    parser.register_consumer(other)
    assert consuming.is_writable
    taken = parser.feed(before + CLOSE)
    assert (taken.passthrough, taken.answers) == (CLOSE, [])
    assert (consuming.is_writable, other.is_writable) == (False, True)


def test_acks_on_other_channels_are_passed_on() -> None:
    """A channel of aiormq's own in confirm mode keeps working."""
    parser = FrameParser()
    parser.register_publisher(3)
    ack = frame(1, 4, struct.pack(">HHQB", 60, 80, 5, 1))
    taken = parser.feed(ack + returned(4))
    assert (taken.answers, taken.passthrough) == ([], ack + returned(4))


def test_a_close_in_the_middle_of_a_message_is_passed_on() -> None:
    """The broker may close a channel at any time; that message is void, the close is not."""
    parser = inbound()
    taken = parser.feed(deliver(1, 1) + content_header(1, 5) + CLOSE)
    assert (taken.messages, taken.passthrough) == ([], CLOSE)


def test_the_protocol_header_of_another_version_is_passed_on_at_any_split() -> None:
    """A broker that speaks another version answers with its own header; aiormq explains it."""
    header = b"AMQP\0\0\x09\x01"
    for cut in range(len(header)):
        parser = FrameParser()
        assert parser.feed(header[:cut]).passthrough + parser.feed(header[cut:]).passthrough == header


def test_a_message_of_the_largest_frames_is_taken() -> None:
    """The agreed limit counts the whole frame, with the eight bytes around its payload."""
    parser = inbound()
    parser.frame_max = 4096
    body = b"x" * 10_000
    taken = parser.feed(delivery(1, 1, body, step=4096 - 8))
    assert [one.body for one in taken.messages] == [body]
    with pytest.raises(ProtocolError, match="4097 bytes, where 4096"):
        parser.feed(delivery(1, 2, body, step=4096 - 7))


def test_no_limit_means_none() -> None:
    """A frame_max of 0 is the protocol's word for any size."""
    parser = inbound()
    parser.frame_max = 0
    assert len(parser.feed(delivery(1, 1, b"x" * (2 << 20), step=2 << 20)).messages) == 1


@pytest.mark.parametrize(
    ("stream", "says"),
    [
        (frame(1, 1, struct.pack(">HH", 60, 11), end=0), "doesn't end"),
        (delivery(1, 1)[:-1] + b"\0", "doesn't end"),
        (frame(4, 1, b"1234"), "unknown type 4"),
        (b"HTTP/1.1 400 Bad Request\r\n", "unknown type 72"),
        (frame(1, 1, b"\0\x3c"), "cut short"),
        (frame(1, 1, b""), "cut short"),
        (frame(1, 1, b"\0\x3c\0\x3c") + content_header(1, 0), "cut short"),
        (frame(1, 1, b"\0\x3c\0\x3c\x09c") + content_header(1, 0), "cut short"),
        (frame(1, 1, b"\0\x3c\0\x3c\x01c\0\0\0\0\0\0\0\x01\0\x05e") + content_header(1, 0), "cut short"),
        (frame(1, 1, b"\0\x3c\0\x3c\x01c\0\0\0\0\0\0\0\x01\0\0\x05rout") + content_header(1, 0), "cut short"),
        (frame(1, 1, b"\0\x3c\0\x3c\x01c\0\0\0\0\0\0\0\x01\0\0\x02rout") + content_header(1, 0), "cut short"),
        (deliver(1, 1) + frame(3, 1, b"{}"), "without a header"),
        (deliver(1, 1) + deliver(1, 2), "in the middle"),
        (deliver(1, 1) + content_header(1, 2) + content_header(1, 2), "two headers"),
        (deliver(1, 1) + content_header(1, 2) + frame(3, 1, b"{} "), "longer"),
        (deliver(1, 1) + content_header(1, 3) + frame(3, 1, b"{}") + deliver(1, 2), "in the middle"),
        (deliver(1, 1) + content_header(1, 3) + frame(3, 1, b"{}") + RPC, "in the middle"),
        (deliver(1, 1) + frame(2, 1, b"\0\x3c"), "cut short"),
        (deliver(1, 1) + frame(2, 1, struct.pack(">HHQ", 60, 0, 2)), "not one"),
        (deliver(1, 1) + frame(2, 1, struct.pack(">HHQH", 61, 0, 2, 0)), "not one"),
        (frame(3, 1, b"{}"), "belongs to none"),
        (content_header(1, 2), "belongs to none"),
        (delivery(1, 1) + frame(3, 1, b""), "belongs to none"),
        (delivery(1, 2), "delivery tag 2 where 1"),
        (delivery(1, 1) + delivery(1, 1), "delivery tag 1 where 2"),
        (delivery(1, 1) + delivery(1, 3, b""), "delivery tag 3 where 2"),
    ],
)
def test_malformed_streams_end_in_a_clear_error(stream: bytes, says: str) -> None:
    """Whatever is not AMQP, or not in its order, is a `ProtocolError`: whole, and byte by byte."""
    with pytest.raises(ProtocolError, match=says):
        inbound().feed(stream)
    with pytest.raises(ProtocolError, match=says):
        trickle(inbound(), stream)


@pytest.mark.parametrize(
    "arguments", [b"", b"\x01", b"\x01\x38", b"\x01\x38\x08NO", b"\x01\x38\x02NO", b"\x01\x38\x02NO\0"]
)
def test_a_return_that_is_cut_short_is_an_error(arguments: bytes) -> None:
    """Half a return must not pass for a whole one."""
    parser = FrameParser()
    parser.register_publisher(1)
    with pytest.raises(ProtocolError, match="cut short"):
        parser.feed(frame(1, 1, b"\0\x3c\0\x32" + arguments) + content_header(1, 1) + frame(3, 1, b"b"))


def test_a_confirm_that_is_cut_short_is_an_error() -> None:
    """An ack without its tag confirms nothing."""
    parser = FrameParser()
    parser.register_publisher(1)
    with pytest.raises(ProtocolError, match="cut short"):
        parser.feed(frame(1, 1, struct.pack(">HHI", 60, 80, 5)))


def test_a_ledger_knows_only_what_was_handed_on() -> None:
    """Messages that went down with a broken piece were never received: the account of the lost epoch adds up."""
    book = ledger()
    parser = FrameParser()
    parser.register_consumer(book)
    assert len(parser.feed(delivery(1, 1)).messages) == 1
    with pytest.raises(ProtocolError):
        parser.feed(delivery(1, 2) + delivery(1, 3) + b"HTTP/1.1")
    assert book.close() == 1


def test_a_published_body_of_any_size_is_cut_into_frames() -> None:
    """Exactly full frames have no empty one behind them, and an empty body has no frame at all."""
    for size, pieces in ((0, 0), (1, 1), (92, 1), (93, 2), (184, 2), (185, 3)):
        made = frames.publish(1, b"", b"dead", b"\0\0", b"x" * size, 100)
        stream = b"".join(made)
        assert stream.count(b"x") == size
        assert sum(len(part) == 7 and part[0] == 3 for part in made) == pieces


def test_names_too_long_for_the_protocol_are_refused() -> None:
    """A short string has at most 255 bytes; a longer one would shift everything behind it."""
    assert frames.short_string(b"x" * 255) == b"\xff" + b"x" * 255
    with pytest.raises(ValueError, match="256"):
        frames.short_string(b"x" * 256)


def test_properties_limit_fills_the_header_frame_exactly() -> None:
    """A header frame with that many bytes of properties is as large as the broker takes, and no larger."""
    raw = b"\0\0" + b"x" * (frames.properties_limit(4096) - 2)
    method, header, *_ = frames.publish(1, b"", b"k", raw, b"", 4096)
    assert len(header) + len(raw) + 1 == 4096
    assert method[:1] == b"\x01"


def test_the_heartbeat_is_one() -> None:
    """Type 8, channel 0, no payload."""
    assert frame(8, 0, b"") == HEARTBEAT


def test_what_the_broker_says_of_publishing_is_read() -> None:
    """``connection.blocked`` with its reason, ``connection.unblocked``, among whole frames of other kinds."""
    reason = b"low on memory"
    blocking = frame(1, 0, struct.pack(">HHB", 10, 60, len(reason)) + reason)
    other = frame(1, 1, struct.pack(">HHB", 10, 60, 0)) + frame(1, 0, struct.pack(">HH", 10, 51)) + HEARTBEAT
    unblocking = frame(1, 0, struct.pack(">HH", 10, 61))
    assert frames.blocked(other + blocking + other + unblocking) == ["low on memory", None]
    assert frames.blocked(other) == []
