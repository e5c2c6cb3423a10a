"""Round by the delay queue and back, on a real broker: nothing of a message is lost, and what moved can be put back."""

from __future__ import annotations

import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tests.integration.harness import QUORUM
from tests.integration.process import wait_until
from tests.integration.test_copies import DEADLINE_SECONDS, HEADERS, Entry, entries, field, many, number, table
from tests.servers import wire
from tests.servers.amqp import Outgoing
from tests.servers.es import Elastic

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.integration.harness import Harness
    from tests.servers.amqp import Received

ORIGINAL = b"sidecar-original-"
OURS = b"sidecar-"
BROKERS = (b"x-death", b"x-first-death-", b"x-delivery-count", b"x-last-death-", b"x-acquired-count")
TRACE = {b"sidecar-copy", b"sidecar-retry-count", b"sidecar-received-at", b"sidecar-exchange", b"sidecar-routing-key"}
QUICK = {"BATCH_MAX_AGE": "50ms", "RETRY_DELAY_MIN": "50ms", "RETRY_DELAY_MAX": "500ms"}
LONG_MILLISECONDS, SHORT_MILLISECONDS = 300_000, 300
STORED, REFUSED = b'{"n":1.50}', b'{ "n" : "no number" }'


def awkward(bench: Harness, elsewhere: str) -> dict[str, dict[str, Any]]:
    """Return properties by name, each of which could make a copy vanish, bounce, go elsewhere or change."""
    death = {"count": 3, "exchange": "", "routing-keys": [bench.queue], "time": number(b"T", ">Q", 1_700_000_000)}
    delays = [f"{bench.queue}.delay.{milliseconds}" for milliseconds in (LONG_MILLISECONDS, SHORT_MILLISECONDS)]
    deaths = [{**death, "queue": queue, "reason": "expired"} for queue in (bench.queue, *delays)]
    headers: dict[str, list[Entry]] = {
        **HEADERS,
        "CC": [field("before", 1), field("CC", [elsewhere]), field("after", 2)],
        "BCC": [field("BCC", [elsewhere]), field("after", 2)],
        "x-death": [field("k", 1), field("x-death", deaths), field("x-last", b"\xff")],
        "x-first-death": [
            field("x-first-death-reason", "expired"), field("x-first-death-queue", delays[1]),
            field("x-first-death-exchange", ""), field("k", "v"),
        ],
        "x-delivery-count": [field("x-delivery-count", 3), field("k", "v")],
        "large": [*many(100, 1000), field("deep", {"t": {"list": [1, 2, 3]}})],
    }  # fmt: skip
    return {
        **{name: {"delivery_mode": 2, "headers": table(fields)} for name, fields in headers.items()},
        "expiration": {"expiration": "600000"},
        "user_id": {"user_id": "guest", "headers": table([field("k", 1)])},
        "transient": {"delivery_mode": 1},
        "without-mode": {"timestamp": 1_700_000_000_123},
        "every-property": {
            "content_type": "application/x-\xe9", "content_encoding": "utf-8", "priority": 9, "correlation_id": "c",
            "reply_to": "elsewhere", "timestamp": 2**63, "type": "t", "app_id": b"a\xff", "delivery_mode": 1,
            "expiration": "500000", "user_id": "guest", "headers": table([field("CC", [elsewhere])]),
        },
    }  # fmt: skip


@contextmanager
def somebody_else(bench: Harness) -> Iterator[str]:
    """Give the URL of another user: for whom ``guest`` is a foreign name."""
    user = bench.queue[-20:]
    bench.rabbitmq.rabbitmqctl("add_user", user, "password")
    try:
        bench.rabbitmq.rabbitmqctl("set_permissions", user, ".*", ".*", ".*")
        yield bench.rabbitmq.amqp_url.replace("guest:guest@", f"{user}:password@")
    finally:
        bench.rabbitmq.rabbitmqctl("delete_user", user)


def as_delivered(bench: Harness, sent: Sequence[Outgoing]) -> dict[str, Received]:
    """Return messages as the broker delivers them for the first time: it has a word on some headers itself."""
    reference = f"{bench.queue}.reference"
    bench.amqp.declare_queue(reference, QUORUM)
    bench.amqp.publish(sent, routing_key=reference)
    return by_id(bench.amqp.drain(reference))


def by_id(messages: Sequence[Received]) -> dict[str, Received]:
    """Return messages by their id; no id comes twice."""
    found = {str(message.message_id): message for message in messages}
    assert len(found) == len(messages)
    return found


def look(bench: Harness, queue: str, count: int) -> dict[str, Received]:
    """Return what lies in a queue, and leave it unsettled.

    By a consumer: at ``basic.get`` RabbitMQ adds a header of its own and sorts them all.
    """
    bench.amqp.qos(count)
    consumer = bench.amqp.consume(queue)
    seen = [bench.amqp.next_delivery() for _ in range(count)]
    bench.amqp.cancel(consumer)
    bench.amqp.qos()
    return by_id(seen)


def put_back(message: Received, *, dropped: tuple[bytes, ...] = (OURS,)) -> bytes:
    """Return the properties of a copy with everything moved put back, and all that was added dropped: as by hand."""
    values: dict[str, Any] = dict(message.properties.values)
    own: list[Entry] = []
    for name, value in entries(message.header_bytes):
        if name.startswith(ORIGINAL):
            first = name.removeprefix(ORIGINAL).decode()
            if first in {"expiration", "user_id"}:
                values[first] = value[5:]
            elif first == "delivery_mode":
                values[first] = struct.unpack(">q", value[1:])[0]
            else:
                own.append((first.encode(), value))
        elif not name.startswith(dropped):
            own.append((name, value))
    if "sidecar-original-delivery_mode" not in message.headers and "delivery_mode" not in values:
        values["delivery_mode"] = 2
    return wire.encode_properties({**values, "headers": table(own)})


def plain(message: Received) -> bytes:
    """Return a message's properties with what a copy always has: a header table, and a mode (2 where there is none)."""
    values: dict[str, Any] = {"delivery_mode": 2, **message.properties.values}
    return wire.encode_properties({**values, "headers": message.header_bytes})


def in_order(raw: bytes) -> bytes:
    """Return properties with their headers sorted by name, as RabbitMQ sorts them when it dead-letters a message."""
    properties = wire.decode_properties(raw)
    fields = sorted(entries(properties.header_bytes), key=lambda entry: entry[0])
    return wire.encode_properties({**properties.values, "headers": table(fields)})


def check_trace(bench: Harness, message: Received) -> None:
    """A copy on its way is persistent, lives long enough, goes nowhere else, and says whence it came."""
    assert message.properties.values["delivery_mode"] == 2
    assert not {"expiration", "user_id"} & message.properties.values.keys()
    names = {name for name, _ in entries(message.header_bytes)}
    assert not {b"CC", b"BCC"} & names
    assert names >= TRACE
    assert message.headers["sidecar-retry-count"] == 0  # waiting for a target is not counted
    assert (message.headers["sidecar-exchange"], message.headers["sidecar-routing-key"]) == ("", bench.queue)


def test_what_goes_round_twice_arrives_whole_or_can_be_put_back_by_hand(bench: Harness) -> None:
    """Every awkward kind, with a foreign user's name: on its way, stored, or dead at last, it is what it was."""
    elsewhere = f"{bench.queue}.elsewhere"
    bench.amqp.declare_queue(elsewhere, QUORUM)
    kinds = awkward(bench, elsewhere)
    bodies = {f"{fate}-{name}": body for name in kinds for fate, body in (("good", STORED), ("bad", REFUSED))}
    sent = [
        Outgoing(body, properties={**kinds[name.partition("-")[2]], "message_id": name})
        for name, body in bodies.items()
    ]
    first = as_delivered(bench, sent)
    assert len(first) == len(sent)
    bench.amqp.purge(elsewhere)
    bench.create_index({"n": {"type": "double"}})
    bench.es("PUT", f"/{bench.index_name}/_settings", {"index.blocks.write": True})
    bench.declare()
    bench.publish(sent)
    by_publisher = bench.amqp.purge(elsewhere)
    assert by_publisher == 2 * 3  # CC, BCC, and every property
    with somebody_else(bench) as url:
        let_go_by_hand(bench, url, first)
        let_go_by_time(bench, url, first)
        bench.es("PUT", f"/{bench.index_name}/_settings", {"index.blocks.write": False})
        sidecar = bench.sidecar(**QUICK, AMQP_URL=url)
        good = {name for name in bodies if name.startswith("good-")}
        dead = bodies.keys() - good
        wait_until(lambda: bench.stored() == len(good), DEADLINE_SECONDS, "all stored", sidecar.told)
        wait_until(lambda: bench.count(bench.dead) == len(dead), DEADLINE_SECONDS, "all dead", sidecar.told)
        account = sidecar.terminate()
    assert (account["ack"], account["dead_letter"]) == (len(good), len(dead))
    with Elastic(bench.elasticsearch.url) as elastic:
        documents = elastic.by_id(bench.index_name)
    assert {name: (one.version, one.source) for name, one in documents.items()} == dict.fromkeys(good, (1, STORED))
    assert bench.count(elsewhere) == 0
    check_letters(bench, by_id(bench.dead_letters()), first, dead)


def let_go_by_hand(bench: Harness, url: str, first: dict[str, Received]) -> None:
    """Look at what waits for five minutes, byte by byte, and have the broker give it back at once."""
    sidecar = bench.sidecar(**QUICK, AMQP_URL=url, DELAYED_RETRY_DELAY="300s")
    waiting = f"{bench.queue}.delay.{LONG_MILLISECONDS}"
    wait_until(lambda: bench.count(waiting) == len(first), DEADLINE_SECONDS, "all wait", sidecar.told)
    account = sidecar.terminate()
    assert account["received"] == account["delay"] == len(first)
    assert sidecar.events("amqp.lost") == []
    copies = look(bench, waiting, len(first))
    for name, message in first.items():
        copy = copies[name]
        check_trace(bench, copy)
        assert copy.body == message.body
        assert put_back(copy) == plain(message), name
    bench.amqp.nack(max(copy.tag for copy in copies.values()), multiple=True, requeue=False)
    wait_until(lambda: bench.count() == len(first), DEADLINE_SECONDS, "all came back")


def let_go_by_time(bench: Harness, url: str, first: dict[str, Received]) -> None:
    """Have all go round as users do, and look at what came back."""
    sidecar = bench.sidecar(**QUICK, AMQP_URL=url, DELAYED_RETRY_DELAY="300ms")
    sidecar.wait_for("amqp.connected")
    wait_until(lambda: bench.count() == 0, DEADLINE_SECONDS, "all on their way", sidecar.told)
    account = sidecar.terminate()
    assert account["received"] == account["delay"] + account["requeue"]
    assert account["delay"] >= len(first)
    wait_until(lambda: bench.count() == len(first), DEADLINE_SECONDS, "all came back")
    copies = look(bench, bench.queue, len(first))
    for name, message in first.items():
        copy = copies[name]
        check_trace(bench, copy)
        assert copy.body == message.body
        assert b"x-death" in dict(entries(copy.header_bytes))
        assert in_order(put_back(copy, dropped=(OURS, *BROKERS))) == in_order(plain(message)), name
    bench.amqp.nack(max(copy.tag for copy in copies.values()), multiple=True)


def check_letters(bench: Harness, letters: dict[str, Received], first: dict[str, Received], dead: set[str]) -> None:
    """What was delayed and then dead-lettered has its originals, and once they are put back it is what it was."""
    assert letters.keys() == dead
    for name, letter in letters.items():
        names = {name for name, _ in entries(letter.header_bytes)}
        assert letter.body == REFUSED
        assert letter.headers["sidecar-reason"] == "rejected"
        assert not {name for name in names if name.startswith(BROKERS) or name in {b"CC", b"BCC"}}
    moved = {
        "bad-expiration": {"expiration": "600000"},
        "bad-user_id": {"user_id": "guest"},
        "bad-transient": {"delivery_mode": 1},
        "bad-every-property": {"expiration": "500000", "user_id": "guest", "delivery_mode": 1},
    }
    for name, originals in moved.items():
        headers = letters[name].headers
        assert {key: headers[f"sidecar-original-{key}"] for key in originals} == originals
    changed = {
        name: (entries(letter.header_bytes), entries(first[name].header_bytes))
        for name, letter in letters.items()
        if in_order(put_back(letter)) != in_order(plain(first[name]))
    }
    assert not changed, changed
    # And the broker takes them again.
    again = [Outgoing(letter.body, raw_properties=put_back(letter)) for letter in letters.values()]
    second = as_delivered(bench, again)
    assert {name: (one.body, in_order(plain(one))) for name, one in second.items()} == {
        name: (first[name].body, in_order(plain(first[name]))) for name in dead
    }


def nested(levels: int) -> wire.Raw:
    """Return a table inside a table inside a table."""
    inner = wire.long_string(b"")
    for _ in range(levels):
        inner = wire.long_string(b"\1kF" + inner)
    return wire.Raw(b"F", inner)


FORGED = {
    "unsigned": [field("sidecar-retry-count", number(b"T", ">Q", 2**64 - 1))],
    "most": [field("sidecar-retry-count", number(b"l", ">q", 2**63 - 1))],
    "negative": [field("sidecar-retry-count", number(b"l", ">q", -(2**63)))],
    "table": [field("sidecar-retry-count", {"a": [1, {"b": None}]})],
    "list": [field("sidecar-retry-count", [])],
    "deep": [field("sidecar-retry-count", nested(4000))],
    "text": [field("sidecar-retry-count", "many"), field("sidecar-received-at", "yesterday")],
    "before-time": [field("sidecar-retry-count", 1), field("sidecar-received-at", "0001-01-01T00:00:00+23:59")],
    "after-time": [field("sidecar-retry-count", 1), field("sidecar-received-at", "9999-12-31T23:59:59-23:59")],
    "types": [field("sidecar-retry-count", 1), field("sidecar-received-at", 7), field("sidecar-exchange", [1])],
    "route": [field("sidecar-retry-count", 1), field("sidecar-routing-key", b"\xff" * 300), field("sidecar-id", 9)],
}  # fmt: skip


def test_a_forged_trace_of_a_round_harms_nobody(bench: Harness) -> None:
    """Anybody may send headers that are called like ours: such messages go round like the others, and are stored."""
    bench.create_index()
    bench.es("PUT", f"/{bench.index_name}/_settings", {"index.blocks.write": True})
    bench.declare()
    sent = [Outgoing(b"{}", properties={"message_id": f"good-{at}"}) for at in range(20)]
    sent += [Outgoing(b"{}", properties={"message_id": name, "headers": table(FORGED[name])}) for name in FORGED]
    bench.publish(sent)
    sidecar = bench.sidecar(**QUICK, DELAYED_RETRY_DELAY="300ms")
    waiting = f"{bench.queue}.delay.{SHORT_MILLISECONDS}"

    def all_wait() -> bool:
        assert sidecar.process.poll() is None, f"it ended: {sidecar.told()}"
        return bench.count(waiting) == len(sent)

    wait_until(all_wait, DEADLINE_SECONDS, "all wait", sidecar.told)
    bench.es("PUT", f"/{bench.index_name}/_settings", {"index.blocks.write": False})
    wait_until(lambda: bench.stored() == len(sent), DEADLINE_SECONDS, "all stored", sidecar.told)
    account = sidecar.terminate()
    assert account["ack"] == len(sent)
    assert bench.documents().keys() == {one.properties["message_id"] for one in sent}
    assert bench.dead_letters() == []
    assert sidecar.events("amqp.lost") == []
