"""Messages and AMQP bytes for tests, made by hand, so that they don't lean on the code under test."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Any

from sidecar.config.settings import PREFIX
from sidecar.core.encoding.encoder import BulkEncoder, EncoderConfig
from sidecar.core.encoding.template import Template
from sidecar.core.ledger import Ledger
from sidecar.core.message import Message
from sidecar.core.scheduling.batcher import Batch
from sidecar.core.stats.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sidecar.core.stats.counters import Counters

FLAGS = {
    "content_type": 15,
    "content_encoding": 14,
    "headers": 13,
    "delivery_mode": 12,
    "priority": 11,
    "correlation_id": 10,
    "reply_to": 9,
    "expiration": 8,
    "message_id": 7,
    "timestamp": 6,
    "type": 5,
    "user_id": 4,
    "app_id": 3,
    "cluster_id": 2,
}
"""The properties in the order of the wire, with the bit that announces each."""

NUMBERS = {"delivery_mode": ">B", "priority": ">B", "timestamp": ">Q"}
THOROUGHNESS = int(os.environ.get("TEST_THOROUGHNESS", "1"))


def without_settings() -> dict[str, str | None]:
    """Return an environment for click's runner in which no setting is left that this process was started with."""
    return {name: None for name in os.environ if name.upper().startswith(PREFIX)}


def examples(count: int) -> int:
    """Return how many examples to look at: `count` in the quick run, more with ``TEST_THOROUGHNESS`` set."""
    return count * THOROUGHNESS


def short_string(data: bytes) -> bytes:
    """Return an AMQP short string."""
    return struct.pack(">B", len(data)) + data


def long_string(data: bytes) -> bytes:
    """Return a header's value: a long string with its type octet."""
    return b"S" + struct.pack(">I", len(data)) + data


def table(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return a table with its length; names may repeat."""
    content = b"".join(short_string(name) + value for name, value in fields)
    return struct.pack(">I", len(content)) + content


def properties(headers: Iterable[tuple[bytes, bytes]] | None = None, /, **values: Any) -> bytes:
    """Return a raw property set: strings as bytes, the three numbers as numbers."""
    flags, parts = 0, []
    for name, bit in FLAGS.items():
        if name == "headers":
            if headers is not None:
                flags |= 1 << bit
                parts.append(table(headers))
        elif name in values:
            value = values[name]
            flags |= 1 << bit
            parts.append(short_string(value) if isinstance(value, bytes) else struct.pack(NUMBERS[name], value))
    return struct.pack(">H", flags) + b"".join(parts)


def origin(
    exchange: bytes = b"events", routing_key: bytes = b"order.new", received_at: bytes = b"2020-02-03T04:05:06.000Z"
) -> list[tuple[bytes, bytes]]:
    """Return the headers by which a message remembers its first delivery."""
    values = (b"exchange", exchange), (b"routing-key", routing_key), (b"received-at", received_at)
    return [(b"sidecar-" + name, long_string(value)) for name, value in values]


def ledger(queue: str = "work", channel: int = 1, *, delivered: int = 0) -> Ledger:
    """Return a ledger with so many open deliveries."""
    made = Ledger(queue, channel)
    made.next_tag = delivered + 1
    made.open_new()
    return made


def message(
    tag: int = 1,
    body: bytes = b"{}",
    *,
    of: Ledger | None = None,
    key: bytes | None = None,
    raw: bytes = b"\0\0",
    route: bytes = b"\0\x04work",
) -> Message:
    """Return a message as the wire gives it, but for its key."""
    made = Message(of or Ledger("work", 1), tag, 0, route, raw, body, len(raw) + len(body))
    made.document_key = key
    return made


def messages(count: int, *, of: Ledger | None = None, size: int = 10) -> list[Message]:
    """Return messages that take `size` bytes each in a request."""
    of = of or Ledger("work", 1)
    made = [message(tag, b"x" * (size - 1), of=of) for tag in range(1, count + 1)]
    assert all(one.bulk_bytes == size for one in made)
    return made


def batch(held: list[Message], *, mergeable: bool = False, opened_at: float = 0.0, ready_at: float = 0.0) -> Batch:
    """Return a complete batch."""
    made = Batch(held, sum(one.bulk_bytes for one in held), opened_at)
    made.mergeable, made.ready_at = mergeable, ready_at
    return made


def tags(held: Iterable[Message]) -> list[int]:
    """Return the delivery tags, which tell messages of one ledger apart."""
    return [one.tag for one in held]


def frame(kind: int, channel: int, payload: bytes, end: int = 0xCE) -> bytes:
    """Return a frame."""
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + bytes([end])


def deliver(
    channel: int,
    tag: int,
    *,
    exchange: bytes = b"",
    routing_key: bytes = b"work",
    consumer: bytes = b"c",
    again: int = 0,
) -> bytes:
    """Return the frame of ``basic.deliver``."""
    arguments = short_string(consumer) + struct.pack(">QB", tag, again)
    return frame(1, channel, b"\0\x3c\0\x3c" + arguments + short_string(exchange) + short_string(routing_key))


def content_header(channel: int, size: int, raw: bytes = b"\0\0") -> bytes:
    """Return the header's frame of a message of `size` bytes."""
    return frame(2, channel, struct.pack(">HHQ", 60, 0, size) + raw)


def delivery(channel: int, tag: int, body: bytes = b"{}", raw: bytes = b"\0\0", step: int = 1 << 16) -> bytes:
    """Return all frames of a delivery, the body in pieces of at most `step` bytes."""
    pieces = [frame(3, channel, body[at : at + step]) for at in range(0, len(body), step)]
    return deliver(channel, tag) + content_header(channel, len(body), raw) + b"".join(pieces)


def encoder(action: str = "index", *, with_message_id: bool = True) -> BulkEncoder:
    """Return a composer for one index, in which nothing but the id comes from the message."""
    encoder_config = EncoderConfig(
        index=Template("docs"), action=Template(action), id_mode="auto" if with_message_id else "none"
    )
    return BulkEncoder(encoder_config, lambda: "made")


def state(account: Counters, **values: object) -> Snapshot:
    """Return the state of a sidecar that works on an empty queue, but for `values`."""
    usual = Snapshot(
        counters=account,
        queues=("work",),
        connected=True,
        reached_broker=True,
        reached_elasticsearch=True,
        not_ready=None,
        held=None,
        held_seconds=0.0,
        next_try_seconds=0.0,
        breaker="closed",
        copies_held=None,
        delays_held=None,
        in_flight=0,
        in_flight_bytes=0,
        bulk_in_flight=0,
        bulk_limit=4.0,
        prefetch=6000,
        failures=[],
    )
    return usual._replace(**values)  # type: ignore[arg-type]
