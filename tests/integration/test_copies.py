"""Dead letters on a real broker: what could make a copy vanish, bounce or change arrives whole, and only there."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.harness import QUORUM
from tests.integration.process import wait_until
from tests.servers import wire
from tests.servers.amqp import Outgoing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.integration.harness import Harness
    from tests.integration.process import SidecarProcess
    from tests.servers.amqp import Received

DEADLINE_SECONDS = 60.0
FRAME_BYTES = 131_072
NOTE_BYTES = 256  # what the names of the cut ones take at most
BAD_BODY = b'{"half":\r\n \xff\x00'
ADDED = [
    "sidecar-copy", "sidecar-reason", "sidecar-status", "sidecar-error-type", "sidecar-attempts", "sidecar-failed-at",
    "sidecar-queue", "sidecar-action", "sidecar-exchange", "sidecar-routing-key", "sidecar-index", "sidecar-id",
    "sidecar-error-reason",
]  # fmt: skip

Entry = tuple[bytes, bytes]


def field(name: str | bytes, value: wire.FieldValue) -> Entry:
    """Return a header's name and its value's exact bytes, type letter first."""
    return wire.as_bytes(name), wire.encode_value(value)


def number(kind: bytes, layout: str, value: float) -> wire.Raw:
    """Return a number of exactly one of AMQP's types."""
    return wire.Raw(kind, struct.pack(layout, value))


def table(entries: Sequence[Entry]) -> bytes:
    """Return a table's entries as bytes, equal names included."""
    return b"".join(wire.short_string(name) + value for name, value in entries)


def entries(raw: bytes) -> list[Entry]:
    """Return a table's entries with their exact bytes, in order."""
    found, at = [], 0
    while at < len(raw):
        name_end = at + 1 + raw[at]
        _, end = wire.decode_value(raw, name_end)
        found.append((raw[at + 1 : name_end], raw[name_end:end]))
        at = end
    return found


def own_entries(letter: Received) -> list[Entry]:
    """Return a dead letter's headers but for those that tell why it is one, which stand at the end, in their order."""
    every = entries(letter.header_bytes)
    own, added = every[: -len(ADDED)], every[-len(ADDED) :]
    assert [name.decode() for name, _ in added] == ADDED
    return own


def bury(bench: Harness, *messages: Outgoing) -> dict[str, Received]:
    """Publish bad messages; return their dead letters by id, once the sidecar has ended and nothing is left."""
    bench.declare()
    sidecar = bench.sidecar()
    sidecar.wait_for("amqp.connected")  # those with an expiration must not lie in the queue for long
    bench.publish(messages)
    wait_for_letters(bench, len(messages), sidecar)
    account = sidecar.terminate()
    assert account["dead_letter"] == account["received"] == len(messages)
    assert sidecar.events("amqp.lost") == []
    assert bench.held() == 0
    letters = bench.dead_letters()
    assert len(letters) == len(messages)
    return {str(letter.message_id): letter for letter in letters}


def wait_for_letters(bench: Harness, count: int, sidecar: SidecarProcess) -> None:
    wait_until(lambda: bench.count(bench.dead) >= count, DEADLINE_SECONDS, f"{count} dead letters", sidecar.told)


HEADERS: dict[str, list[Entry]] = {
    "none": [],
    "int64": [field("large", 2**62), field("small", -(2**63)), field("fits-32", number(b"l", ">q", 7))],
    "every-number": [
        field("b", number(b"b", ">b", -1)),
        field("B", number(b"B", ">B", 200)),
        field("s", number(b"s", ">h", -300)),
        field("u", number(b"u", ">H", 60_000)),
        field("I", number(b"I", ">i", -(2**31))),
        field("i", number(b"i", ">I", 2**32 - 1)),
        field("l", number(b"l", ">q", -(2**40))),
        field("f", number(b"f", ">f", 0.1)),
        field("d", number(b"d", ">d", 1e300)),
        field("D", wire.Raw(b"D", b"\x02\0\0\x04\xd2")),
        field("t", True),
        field("V", None),
        field("x", wire.Raw(b"x", b"\0\0\0\x03\0\xff\0")),
    ],
    "millisecond-times": [field("at", number(b"T", ">Q", 1_700_000_000_123)), field("far", number(b"T", ">Q", 2**40))],
    "nested": [field("deep", {"a": {"b": {"c": [1, "two", {"three": [None, False, {}]}, []]}}, "": "no name"})],
    "not-utf-8": [field("text", b"\xff\xfe caf\xe9"), field(b"na\xffme", "value"), field("zero", b"a\0b")],
    "repeated-names": [field("k", "first"), field("other", 1), field("k", "second"), field("k", 3)],
    "tracing": [field("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), field("é", "ü")],
}


def test_headers_of_every_kind_keep_their_exact_bytes_and_their_order(bench: Harness) -> None:
    """int64, decimals, milliseconds, nested tables, what is no UTF-8, repeated names: not a byte of them changes."""
    messages = [
        Outgoing(BAD_BODY, properties={"message_id": name, "delivery_mode": 2, "headers": table(fields)})
        for name, fields in HEADERS.items()
    ]
    letters = bury(bench, *messages)
    for name, fields in HEADERS.items():
        assert own_entries(letters[name]) == fields, name
        assert letters[name].body == BAD_BODY


def test_properties_arrive_as_they_were_and_none_is_invented(bench: Harness) -> None:
    """Each property keeps its bytes, also a timestamp in milliseconds; where there was none, there is none."""
    every = {
        "content_type": "application/x-\xe9", "content_encoding": b"\xff\xfe", "priority": 9, "correlation_id": "c",
        "reply_to": "elsewhere", "message_id": "every", "timestamp": 1_700_000_000_123, "type": "t", "app_id": b"a\xff",
        "delivery_mode": 2,
    }  # fmt: skip
    letters = bury(
        bench,
        Outgoing(BAD_BODY, properties=every),
        Outgoing(BAD_BODY, properties={"message_id": "few", "timestamp": 2**63}),
        Outgoing(b"", properties={"message_id": "transient", "delivery_mode": 1}),
    )
    assert letters["every"].properties.values == every
    assert letters["few"].properties.values == {"message_id": "few", "timestamp": 2**63, "delivery_mode": 2}
    assert own_entries(letters["transient"]) == [field("sidecar-original-delivery_mode", number(b"l", ">q", 1))]
    assert letters["transient"].body == b""
    assert [letters[name].body for name in ("every", "few")] == [BAD_BODY] * 2


def test_a_message_that_expires_has_a_dead_letter_that_does_not(bench: Harness) -> None:
    """``expiration`` moves aside: the copy is still there when the time is long over."""
    # Long enough to be delivered first, short enough to be waited for.
    letters = bury(bench, Outgoing(BAD_BODY, properties={"message_id": "mortal", "expiration": "3000"}))
    letter = letters["mortal"]
    assert "expiration" not in letter.properties.values
    assert own_entries(letter) == [field("sidecar-original-expiration", "3000")]


def test_a_dead_letter_outlives_the_expiration_in_its_queue(bench: Harness) -> None:
    """Lying in the dead-letter queue, where RabbitMQ would drop what expires."""
    bench.declare()
    sidecar = bench.sidecar()
    sidecar.wait_for("amqp.connected")
    bench.publish([Outgoing(BAD_BODY, properties={"message_id": "mortal", "expiration": "1000"})])
    bench.amqp.declare_queue(f"{bench.queue}.clock", QUORUM)
    wait_for_letters(bench, 1, sidecar)
    # A message of the same age that does expire is the clock.
    bench.amqp.publish([Outgoing(b"", properties={"expiration": "1500"})], routing_key=f"{bench.queue}.clock")
    wait_until(lambda: bench.count(f"{bench.queue}.clock") == 0, DEADLINE_SECONDS, "the clock")
    assert bench.count(bench.dead) == 1
    sidecar.terminate()
    assert [letter.body for letter in bench.dead_letters()] == [BAD_BODY]


def test_a_foreign_user_id_moves_aside(bench: Harness) -> None:
    """RabbitMQ closes the channel of who publishes with another's name; the sidecar logs in as somebody else here."""
    user = bench.queue[-20:]
    bench.rabbitmq.rabbitmqctl("add_user", user, "password")
    bench.rabbitmq.rabbitmqctl("set_permissions", user, ".*", ".*", ".*")
    try:
        bench.declare()
        url = bench.rabbitmq.amqp_url.replace("guest:guest@", f"{user}:password@")
        assert user in url
        sidecar = bench.sidecar(AMQP_URL=url)
        properties = {"message_id": "signed", "user_id": "guest", "headers": table([field("k", 1)])}
        bench.publish([Outgoing(BAD_BODY, properties=properties)])
        sidecar.wait_for("amqp.connected")
        wait_for_letters(bench, 1, sidecar)
        assert sidecar.terminate()["dead_letter"] == 1
        assert sidecar.events("amqp.lost") == []
    finally:
        bench.rabbitmq.rabbitmqctl("delete_user", user)
    (letter,) = bench.dead_letters()
    assert "user_id" not in letter.properties.values
    assert own_entries(letter) == [field("k", 1), field("sidecar-original-user_id", "guest")]
    assert letter.body == BAD_BODY


@pytest.mark.parametrize("name", ["CC", "BCC"])
def test_a_copy_goes_nowhere_else(bench: Harness, name: str) -> None:
    """``CC`` and ``BCC`` name more routing keys: a copy that kept them would come again, here and elsewhere."""
    elsewhere = f"{bench.queue}.elsewhere"
    bench.amqp.declare_queue(elsewhere, QUORUM)
    recipients = field(name, [elsewhere])
    bench.declare()
    fields = [field("before", 1), recipients, field("after", 2)]
    bench.publish([Outgoing(BAD_BODY, properties={"message_id": "m", "headers": table(fields)})])
    assert [one.body for one in bench.amqp.drain(elsewhere)] == [BAD_BODY]  # the publisher's own doing
    sidecar = bench.sidecar()
    wait_for_letters(bench, 1, sidecar)
    account = sidecar.terminate()
    assert account["received"] == account["dead_letter"] == 1
    assert bench.held(elsewhere) == bench.held() == 0
    (letter,) = bench.dead_letters()
    moved = [(b"sidecar-original-CC", recipients[1])] if name == "CC" else []  # the broker removes BCC by itself
    assert own_entries(letter) == [fields[0], *moved, fields[2]]


def test_a_copy_to_its_own_queue_by_cc_comes_once(bench: Harness) -> None:
    """The publisher named the work queue in ``CC``: the copy must not come round to be rejected again, for ever."""
    entry = field("CC", [bench.queue])
    bench.declare()
    bench.amqp.declare_exchange(f"{bench.queue}.x", "fanout")
    bench.amqp.bind(bench.queue, f"{bench.queue}.x")
    sent = Outgoing(BAD_BODY, properties={"message_id": "m", "headers": table([entry])}, exchange=f"{bench.queue}.x")
    letters = bury(bench, sent)
    assert own_entries(letters["m"]) == [(b"sidecar-original-CC", entry[1])]


def test_the_history_of_dead_lettering_moves_aside(bench: Harness) -> None:
    """By ``x-death`` RabbitMQ sees cycles and drops; what a client wrote there is kept, in another place."""
    death = [{"count": 1, "reason": "rejected", "queue": bench.dead, "exchange": "", "routing-keys": [bench.dead]}]
    fields = [
        field("x-first-death-queue", bench.dead), field("k", "v"), field("x-death", death),
        field("x-first-death-reason", "rejected"), field("x-delivery-count", 3), field("x-last", 1),
    ]  # fmt: skip
    kept = {b"k", b"x-last"}
    letters = bury(bench, Outgoing(BAD_BODY, properties={"message_id": "m", "headers": table(fields)}))
    own = own_entries(letters["m"])
    # RabbitMQ itself has a word on x-delivery-count: whose it is differs from version to version.
    moved = [(name if name in kept else b"sidecar-original-" + name, value) for name, value in fields]
    counted = b"sidecar-original-x-delivery-count"
    assert [entry for entry in own if entry[0] != counted] == [entry for entry in moved if entry[0] != counted]
    assert not any(name.startswith((b"x-death", b"x-first-death")) for name, _ in own)


def test_what_a_delivery_limit_and_a_real_dead_lettering_leave_behind_is_kept(bench: Harness) -> None:
    """A message that the broker itself dead-lettered into the work queue brings a true ``x-death``."""
    first = f"{bench.queue}.first"
    arguments = {**QUORUM, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": bench.queue, "x-message-ttl": 50}
    bench.amqp.declare_queue(first, arguments)
    bench.declare()
    sidecar = bench.sidecar()
    bench.amqp.publish([Outgoing(BAD_BODY, properties={"message_id": "m"})], routing_key=first)
    wait_for_letters(bench, 1, sidecar)
    assert sidecar.terminate()["dead_letter"] == 1
    (letter,) = bench.dead_letters()
    assert letter.body == BAD_BODY
    names = [name for name, _ in own_entries(letter)]
    assert b"sidecar-original-x-death" in names
    assert all(name.startswith(b"sidecar-original-x-") or not name.startswith(b"x-first") for name in names)
    deaths: Any = letter.headers["sidecar-original-x-death"]
    assert [(death["queue"], death["reason"]) for death in deaths] == [(first, "expired")]


def many(count: int, size: int) -> list[Entry]:
    return [field(f"header-{at:03}", bytes([at % 256]) * size) for at in range(count)]


FULL: dict[str, Callable[[], list[Entry]]] = {
    "one": lambda: [field("small", "kept"), field("big", "x" * (FRAME_BYTES - 200)), field("last", 7)],
    "several": lambda: many(13, 10_040),
    "numbers": lambda: [field(f"n{at:05}", at) for at in range(10_905)],  # nothing of it is a string that can be cut
}


def test_a_hundred_kilobytes_of_headers_are_kept(bench: Harness) -> None:
    """They fit into the frame together with what is added: not a byte of them is cut."""
    fields = [*many(100, 1000), field("deep", {"t": {"list": [1, 2, 3]}})]
    letters = bury(bench, Outgoing(BAD_BODY, properties={"message_id": "m", "headers": table(fields)}))
    assert own_entries(letters["m"]) == fields
    assert letters["m"].body == BAD_BODY


@pytest.mark.parametrize("name", FULL)
def test_what_does_not_fit_into_the_frame_is_cut_and_the_cut_is_named(bench: Harness, name: str) -> None:
    """Reason first, then the longest of the message's own; why, whence and the body stay whole."""
    fields = FULL[name]()
    sent = Outgoing(BAD_BODY * 50_000, properties={"message_id": "m", "headers": table(fields)})
    assert FRAME_BYTES - 500 < len(sent.property_bytes()) < FRAME_BYTES - 22
    letter = bury(bench, sent)["m"]
    assert letter.body == sent.body
    assert len(letter.raw_properties) <= FRAME_BYTES - 22
    assert letter.headers["sidecar-reason"] == "malformed"
    queue = letter.headers["sidecar-queue"]
    assert queue
    assert bench.queue.startswith(str(queue))
    every = entries(letter.header_bytes)
    assert every[-1][0] == b"sidecar-cut"
    cut = str(letter.headers["sidecar-cut"]).split(", ")
    assert cut[0] == "sidecar-error-reason"
    assert (queue == bench.queue) is ("sidecar-queue" not in cut)
    own = [entry for entry in every if entry[0].decode() not in {*ADDED, "sidecar-cut"}]
    if own != fields:
        left = dict(own)
        lost = [field_name for field_name, value in fields if left.get(field_name) != value]
        assert lost
        note = str(letter.headers["sidecar-cut"])
        unnamed = [field_name for field_name in lost if field_name.decode() not in cut]
        assert not unnamed or len(note) == NOTE_BYTES, (note, unnamed[:3])
        assert [entry for entry in own if entry[0] not in lost] == [entry for entry in fields if entry[0] not in lost]


def test_fifty_strange_messages_at_once_among_good_ones(bench: Harness) -> None:
    """One channel carries them all: none of them closes it, and the good ones are stored."""
    strange = [
        Outgoing(BAD_BODY, properties={"message_id": f"{name}-{at}", "user_id": "guest", "headers": table(fields)})
        for name, fields in HEADERS.items()
        for at in range(6)
    ]
    good = [Outgoing(b"{}", properties={"message_id": f"good-{at}", "user_id": "guest"}) for at in range(200)]
    bench.create_index()
    bench.declare()
    bench.publish([*good[:100], *strange, *good[100:]])
    sidecar = bench.sidecar()
    bench.wait_empty(DEADLINE_SECONDS, sidecar)
    account = sidecar.terminate()
    assert (account["ack"], account["dead_letter"]) == (len(good), len(strange))
    assert sidecar.events("amqp.lost") == []
    letters = {str(letter.message_id): letter for letter in bench.dead_letters()}
    assert len(letters) == len(strange)
    for sent in strange:
        letter = letters[str(sent.properties["message_id"])]
        kept = own_entries(letter)
        assert kept.pop() == field("sidecar-original-user_id", "guest")
        assert table(kept) == sent.properties["headers"]
