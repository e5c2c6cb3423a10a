"""Copies of messages for the dead-letter queue: the same body and header bytes, with headers spliced in.

A copy must arrive where it is sent, and lie there until somebody looks. Some properties of the original would prevent
that (measured on RabbitMQ): with ``expiration`` the copy vanishes, with a foreign ``user_id`` it is refused and the
channel closed, with ``CC`` it also goes back to the queue that it came from, with an ``x-death`` entry it may be
dropped as a cycle. They move to headers ``sidecar-original-*``.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from sidecar.core.properties import Field, PropertiesError, fields, join, number_value, split, table, text_value

if TYPE_CHECKING:
    from sidecar.core.message import Message

TOKEN_HEADER = b"sidecar-copy"
"""The header by which a copy that comes back unroutable is known."""

_PERSISTENT = b"\x02"
_MOVED_HEADERS = frozenset({b"CC", b"BCC", b"x-delivery-count"})
_MOVED_PREFIXES = (b"x-death", b"x-first-death-")
_ORIGINAL = b"sidecar-original-"
_CUT_TO_BYTES = 64
_MAX_NOTE_BYTES = 256
_LENGTH_BYTES = 4  # of a table, before its fields
_STRING_OVERHEAD = 5  # of a long string: the type octet and the length
_LEFT_OUT: Field = (b"", b"")
_MAX_NAME_BYTES = 255


class Letter(NamedTuple):
    """What the dead letter of a message says.

    Attributes:
        reason: one of the contract's reasons (``rejected``, ``malformed``, …).
        status: Elasticsearch's status of the item; 0 when it never got there.
        error_type: Elasticsearch's error type; empty likewise.
        detail: a sentence without document text, at most 1 KiB.
    """

    message: Message
    reason: str
    detail: str
    status: int = 0
    error_type: str = ""


def dead_letter_headers(
    letter: Letter, *, token: bytes, action: str, index: str, document_id: bytes, failed_at: float
) -> list[Field]:
    """Return the headers that tell why a message was rejected, what matters most first.

    Args:
        letter: the message, and what is wrong with it.
        token: see `sidecar.ports.Copy`.
        action: what was to be done.
        index: the target, empty where it was not known yet.
        document_id: empty where there is none.
        failed_at: seconds since 1970.
    """
    message = letter.message
    moment = datetime.fromtimestamp(failed_at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return [
        (TOKEN_HEADER, text_value(token)),
        (b"sidecar-reason", text_value(letter.reason)),
        (b"sidecar-status", number_value(letter.status)),
        (b"sidecar-error-type", text_value(letter.error_type)),
        (b"sidecar-attempts", number_value(message.attempts)),
        (b"sidecar-failed-at", text_value(moment)),
        (b"sidecar-queue", text_value(message.ledger.queue)),
        (b"sidecar-action", text_value(action)),
        (b"sidecar-exchange", text_value(message.exchange)),
        (b"sidecar-routing-key", text_value(message.routing_key)),
        (b"sidecar-index", text_value(index)),
        (b"sidecar-id", text_value(document_id)),
        (b"sidecar-error-reason", text_value(letter.detail)),
    ]


def copy_properties(properties: bytes, added: list[Field], limit_bytes: int) -> bytes:
    """Return the properties of a copy: the original's, moved where they would do harm, with `added` headers.

    Args:
        properties: as they came.
        added: headers to splice in, what matters most first; they replace those of the same name.
        limit_bytes: what fits into the broker's frame. Beyond it strings are cut, the last of `added` first, then the
            longest of the message's own; ``sidecar-cut`` names them.
    """
    try:
        values = split(properties)
        own = list(fields(values.get("headers", b"")[4:]))
    except PropertiesError:
        # The broker vouches for what it delivers; should it ever not, the body still reaches the dead letters.
        values, own = {}, []
    replaced = {name for name, _ in added}
    kept = [_moved(name, value) for name, value in own if name not in replaced]
    kept += [
        (_ORIGINAL + name.encode(), text_value(values.pop(name)[1:]))
        for name in ("expiration", "user_id")
        if name in values
    ]
    mode = values.get("delivery_mode")
    if mode is not None and mode != _PERSISTENT:
        kept.append((_ORIGINAL + b"delivery_mode", number_value(mode[0])))
    values["delivery_mode"] = _PERSISTENT
    return _fit(values, kept, added, limit_bytes)


def _moved(name: bytes, value: bytes) -> Field:
    if name in _MOVED_HEADERS or name.startswith(_MOVED_PREFIXES):
        return (_ORIGINAL + name)[:_MAX_NAME_BYTES], value
    return name, value


def _fit(values: dict[str, bytes], kept: list[Field], added: list[Field], limit_bytes: int) -> bytes:
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
        elif len(value) - _STRING_OVERHEAD > _CUT_TO_BYTES:
            text = value[_STRING_OVERHEAD:][:_CUT_TO_BYTES] if value[:1] == b"S" else b""
            every[at] = name, text_value(text)
            used -= len(value) - len(every[at][1])
        else:
            continue
        cut[name] = None
        if len(cut) <= _MAX_NOTE_BYTES:  # what comes after that many names is not told any more
            note = [(b"sidecar-cut", text_value(b", ".join(cut)[:_MAX_NOTE_BYTES]))]
    content = table([field for field in every if field is not _LEFT_OUT] + note)
    return join({**values, "headers": len(content).to_bytes(_LENGTH_BYTES, "big") + content})


def _field_bytes(field: Field) -> int:
    return 1 + len(field[0]) + len(field[1])
