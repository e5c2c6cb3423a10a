"""Copies of messages for the dead-letter queue: the same body and header bytes, with headers spliced in.

A copy must arrive where it is sent, and lie there until somebody looks. Some properties of the original would prevent
that (measured on RabbitMQ): with ``expiration`` the copy vanishes, with a foreign ``user_id`` it is refused and the
channel closed, with ``CC`` it also goes back to the queue that it came from, with an ``x-death`` entry it may be dropped
as a cycle. They move to headers ``sidecar-original-*``.
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
    for name in ("expiration", "user_id"):
        if name in values:
            kept.append((_ORIGINAL + name.encode(), text_value(values.pop(name)[1:])))
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
    """Join all; while it doesn't fit, cut the next string: of `added` from the end, then the longest of `kept`."""
    cut: list[bytes] = []
    longest_first = sorted(range(len(kept)), key=lambda at: -len(kept[at][1]))
    candidates = [(added, at) for at in range(len(added) - 1, 0, -1)] + [(kept, at) for at in longest_first]
    while True:
        note = [(b"sidecar-cut", text_value(b", ".join(cut)))] if cut else []
        content = table([*kept, *added, *note])
        joined = join({**values, "headers": len(content).to_bytes(4, "big") + content})
        if len(joined) <= limit_bytes or not candidates:
            return joined
        where, at = candidates.pop(0)
        name, value = where[at]
        if len(value) - 5 > _CUT_TO_BYTES:
            where[at] = name, text_value(value[5 : 5 + _CUT_TO_BYTES] if value[:1] == b"S" else b"")
            cut.append(name)
