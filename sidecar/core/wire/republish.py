"""Copies of messages for the dead-letter queue: the same body and header bytes, with headers spliced in.

A copy must arrive where it is sent, and lie there until somebody looks. Some properties of the original would prevent
that (measured on RabbitMQ): with ``expiration`` the copy vanishes, with a foreign ``user_id`` it is refused and the
channel closed, with ``CC`` it also goes back to the queue that it came from, with an ``x-death`` entry it may be
dropped as a cycle. They move to headers ``sidecar-original-*``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

from sidecar.core.encoding.template import (
    FIRST_EXCHANGE,
    FIRST_ROUTING_KEY,
    RECEIVED_AT,
    RETRY_COUNT,
    TemplateContext,
    came_back,
)
from sidecar.core.timestamps import iso
from sidecar.core.wire.properties import (
    STRING_OVERHEAD,
    Field,
    PropertiesError,
    decode,
    fields,
    header,
    join,
    join_with_headers,
    number_value,
    split,
    text_value,
)

if TYPE_CHECKING:
    from sidecar.core.encoding.split import SplitMessage
    from sidecar.core.message import Message

TOKEN_HEADER = b"sidecar-copy"
"""The header by which a copy that comes back unroutable is known."""

MAX_DELAY_SECONDS = 300.0
_MAX_DOUBLINGS = 60

_PERSISTENT = b"\x02"
DELIVERY_COUNT = b"x-delivery-count"
_INTEGERS = (b"b", b"B", b"s", b"u", b"I", b"i", b"l", b"L")
_MAX_ROUNDS = 2**31 - 1
_RECIPIENTS = frozenset({b"CC", b"BCC"})
_MOVED_HEADERS = frozenset({*_RECIPIENTS, DELIVERY_COUNT})
_MOVED_PREFIXES = (b"x-death", b"x-first-death-")
_ORIGINAL = b"sidecar-original-"
_CUT_TO_BYTES = 64
_MAX_NOTE_BYTES = 256
_LISTED_ITEMS = 200
_LENGTH_BYTES = 4  # of a table, before its fields
_LEFT_OUT: Field = (b"", b"")
_MAX_NAME_BYTES = 255


class Failure(NamedTuple):
    """Why a copy of a message is published, and where to: to the dead letters, or for a while to a delay queue.

    Attributes:
        message: the original.
        reason: one of the contract's reasons (``rejected``, ``malformed``, …).
        status: Elasticsearch's status of the item; 0 when it never got there.
        error_type: Elasticsearch's error type; empty likewise.
        detail: a sentence without document text, at most 1 KiB.
        delay_milliseconds: how long a delayed copy waits; 0 for a dead letter.
        delay_rounds: counted rounds by the delay queue, this one included.
        items: the places of the documents at fault, where the message holds several.
        parts: the documents of the message, if it holds several and is delayed.
    """

    message: Message
    reason: str
    detail: str
    status: int = 0
    error_type: str = ""
    delay_milliseconds: int = 0
    delay_rounds: int = 0
    items: tuple[int, ...] = ()
    parts: SplitMessage | None = None

    @property
    def verdict(self) -> Literal["dead_letter", "delay"]:
        """How the original is counted once the copy is confirmed."""
        return "delay" if self.delay_milliseconds else "dead_letter"


def delay_rounds(message: Message) -> int:
    """Return how many counted rounds by the delay queue a message has behind it."""
    return _count(message, RETRY_COUNT) if came_back(message.properties) else 0


def _count(message: Message, name: bytes) -> int:
    """Return the number in a header; 0 where there is none. Anybody may send a header of that name, with anything."""
    value = header(message.properties, name) if name in message.properties else None
    if value is None or value[:1] not in _INTEGERS:
        return 0
    number = decode(value)
    return min(max(number, 0), _MAX_ROUNDS) if isinstance(number, int) else 0


def delivery_count(message: Message) -> int:
    """Return how often a quorum queue says that it delivered a message before; 0 where it doesn't say."""
    return _count(message, DELIVERY_COUNT)


def may_be_own_write(message: Message) -> bool:
    """Whether a conflict may be with an earlier attempt of ours: one that went unanswered, or an earlier delivery."""
    return bool(message.times_unanswered or message.redelivered or came_back(message.properties))


def may_delay(message: Message, *, versioned: bool, max_rounds: int) -> bool:
    """Whether a message may still go round by the delay queue after its attempts in place.

    Where a document has an id and no version, later operations would overtake this one on its way round.
    """
    return (message.document_key is None or versioned) and delay_rounds(message) < max_rounds


def delay_seconds(message: Message, first_seconds: float, *, counted: bool, now: float) -> float:
    """Return how long a message waits in the delay queue: longer each time.

    It doubles with each round. Waiting for a target isn't counted, so there the time since the first delivery tells how
    often it has doubled: a target that stays blocked for days must not be asked for each message every few seconds. (It
    is always the first delay times a power of two, for each length is a queue.)

    Args:
        message: the message.
        first_seconds: of the first round.
        counted: whether it goes round for a failure of its own.
        now: seconds since 1970.
    """
    if counted:
        doublings = min(delay_rounds(message), _MAX_DOUBLINGS)
    else:
        waited = min(now - TemplateContext(message, now).received_at, MAX_DELAY_SECONDS)
        doublings = math.ceil(math.log2(max(1.0, waited / first_seconds)))
    return min(first_seconds * 2.0**doublings, MAX_DELAY_SECONDS)


def delay_lengths(first_seconds: float) -> tuple[int, ...]:
    """Return how long messages may wait in a delay queue, in milliseconds: each length is a queue."""
    lengths, seconds = [], first_seconds
    while seconds < MAX_DELAY_SECONDS:
        lengths.append(milliseconds(seconds))
        seconds *= 2
    return (*lengths, milliseconds(MAX_DELAY_SECONDS))


def milliseconds(seconds: float) -> int:
    """Return a delay as the name of its queue has it."""
    return max(1, int(1000 * seconds))


def delay_headers(failure: Failure, *, token: bytes, document_id: bytes, now: float) -> list[Field]:
    """Return the headers by which a copy that comes back is treated as at its first delivery.

    Args:
        failure: the message, and how many rounds it has.
        token: see `sidecar.ports.Copy`.
        document_id: empty where there is none; one that was made here is kept by it.
        now: seconds since 1970.
    """
    message = failure.message
    first = TemplateContext(message, message.received_at or now)
    added = [
        (TOKEN_HEADER, text_value(token)),
        (RETRY_COUNT, number_value(failure.delay_rounds)),
        (RECEIVED_AT, text_value(iso(first.received_at))),
        (FIRST_EXCHANGE, text_value(first.exchange)),
        (FIRST_ROUTING_KEY, text_value(first.routing_key)),
    ]
    return [*added, (b"sidecar-id", text_value(document_id))] if document_id else added


def dead_letter_headers(
    failure: Failure, *, token: bytes, action: str, index: str, document_id: bytes, failed_at: float
) -> list[Field]:
    """Return the headers that tell why a message was rejected, what matters most first.

    Args:
        failure: the message, and what is wrong with it.
        token: see `sidecar.ports.Copy`.
        action: what was to be done.
        index: the target, empty where it was not known yet.
        document_id: empty where there is none.
        failed_at: seconds since 1970.
    """
    message = failure.message
    first = TemplateContext(message, failed_at)
    items = [(b"sidecar-items", text_value(_listed(failure.items)))] if failure.items else []
    return [
        (TOKEN_HEADER, text_value(token)),
        (b"sidecar-reason", text_value(failure.reason)),
        (b"sidecar-status", number_value(failure.status)),
        (b"sidecar-error-type", text_value(failure.error_type)),
        (b"sidecar-attempts", number_value(message.attempts)),
        (b"sidecar-failed-at", text_value(iso(failed_at))),
        (b"sidecar-queue", text_value(message.ledger.queue)),
        (b"sidecar-action", text_value(action)),
        (b"sidecar-exchange", text_value(first.exchange)),
        (b"sidecar-routing-key", text_value(first.routing_key)),
        (b"sidecar-index", text_value(index)),
        (b"sidecar-id", text_value(document_id)),
        *items,
        (b"sidecar-error-reason", text_value(failure.detail)),
    ]


def _listed(items: tuple[int, ...]) -> str:
    """Return places as a text; of very many the first ones."""
    listed = ",".join(map(str, items[:_LISTED_ITEMS]))
    return f"{listed},…" if len(items) > _LISTED_ITEMS else listed


def republish_properties(
    properties: bytes, added: list[Field], limit_bytes: int, *, without: frozenset[bytes] = frozenset()
) -> bytes:
    """Return the properties of a copy: the original's, moved where they would do harm, with `added` headers.

    Args:
        properties: as they came.
        added: headers to splice in, what matters most first; they replace those of the same name.
        limit_bytes: what fits into the broker's frame. Beyond it strings are cut, the last of `added` first, then the
            longest of the message's own; ``sidecar-cut`` names them.
        without: headers to leave out.
    """
    try:
        values = split(properties)
        own = list(fields(values.get("headers", b"")[4:]))
    except PropertiesError:
        # The broker vouches for what it delivers; should it ever not, the body still reaches the dead letters.
        values, own = {}, []
    replaced = without.union(name for name, _ in added)
    # What moved on an earlier round is the original's; what stands in such a place now is the delay queue's trace.
    came_round = came_back(properties)
    there = {name for name, _ in own}
    kept = []
    for name, value in own:
        item = _renamed(name, value)
        trace = item[0] != name and (item[0] in there or (came_round and name not in _RECIPIENTS))
        if name not in replaced and not trace:
            kept.append(item)
    kept += [
        (_ORIGINAL + name.encode(), text_value(values.pop(name)[1:]))
        for name in ("expiration", "user_id")
        if name in values
    ]
    mode = values.get("delivery_mode")
    if mode is not None and mode != _PERSISTENT:
        kept.append((_ORIGINAL + b"delivery_mode", number_value(mode[0])))
    values["delivery_mode"] = _PERSISTENT
    return _truncate_to_fit(values, kept, added, limit_bytes)


def _renamed(name: bytes, value: bytes) -> Field:
    if name in _MOVED_HEADERS or name.startswith(_MOVED_PREFIXES):
        return (_ORIGINAL + name)[:_MAX_NAME_BYTES], value
    return name, value


def _truncate_to_fit(values: dict[str, bytes], kept: list[Field], added: list[Field], limit_bytes: int) -> bytes:
    """Join all. While it doesn't fit, cut the next string, of `added` from the end, then the longest of `kept`.

    When even that is too much, headers of the message's own are left out, the largest first: a copy that the broker
    can't take would come again for ever.
    """
    every = [*kept, *added]
    room = limit_bytes - len(join({**values, "headers": bytes(_LENGTH_BYTES)}))
    used = sum(map(_field_bytes, every))
    ours = range(len(every) - 1, len(kept), -1)  # but for the first
    own = sorted(range(len(kept)), key=lambda at: -len(kept[at][1]))
    largest = sorted(range(len(kept)), key=lambda at: -_field_bytes(kept[at]))
    cut: dict[bytes, None] = {}
    note: list[Field] = []
    for at, leave_out in (*((at, False) for at in (*ours, *own)), *((at, True) for at in largest)):
        if used + sum(map(_field_bytes, note)) <= room:
            break
        name, value = field = every[at]
        if leave_out:
            used -= _field_bytes(field)
            every[at] = _LEFT_OUT
        elif len(value) - STRING_OVERHEAD > _CUT_TO_BYTES:
            text = value[STRING_OVERHEAD:][:_CUT_TO_BYTES] if value[:1] == b"S" else b""
            every[at] = name, text_value(text)
            used -= len(value) - len(every[at][1])
        else:
            continue
        cut[name] = None
        if len(cut) <= _MAX_NOTE_BYTES:  # what comes after that many names is not told any more
            note = [(b"sidecar-cut", text_value(b", ".join(cut)[:_MAX_NOTE_BYTES]))]
    return join_with_headers(values, [field for field in every if field is not _LEFT_OUT] + note)


def _field_bytes(field: Field) -> int:
    return 1 + len(field[0]) + len(field[1])
