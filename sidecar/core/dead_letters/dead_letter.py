"""Dead letters read, chosen, grouped, and made into messages again.

What the sidecar wrote into a letter's headers is data from a queue that others can write to as well: nothing here
trusts that a header is there, or is of the type that it should be.

A replayed message is the original but for what would keep it from arriving in its queue, and only there; see
`replayed`.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

from sidecar.core import timestamps
from sidecar.core.encoding.template import FIRST_EXCHANGE, FIRST_ROUTING_KEY, RECEIVED_AT, RETRY_COUNT
from sidecar.core.wire.properties import (
    FIELDS,
    Field,
    PropertiesError,
    decode,
    fields,
    headers,
    join_with_headers,
    number_value,
    short,
    split,
    text_value,
)
from sidecar.core.wire.republish import TOKEN_HEADER, republish_properties

if TYPE_CHECKING:
    from sidecar.core.message import Message

REPLAYS = b"sidecar-replays"
"""The header that counts how often a message was replayed; it stays in it, and in the letter that it may become."""

MAX_GROUPS = 10_000
"""Groups told apart; what comes after them is one more group, or an index name for each letter fills the memory."""

_DELIVERIES = (b"x-delivery-count", b"x-acquired-count")
_ID, _QUEUE = b"sidecar-id", b"sidecar-queue"
_ADDED = frozenset({
    TOKEN_HEADER, b"sidecar-reason", b"sidecar-status", b"sidecar-error-type", b"sidecar-attempts",
    b"sidecar-failed-at", _QUEUE, b"sidecar-action", b"sidecar-index", b"sidecar-error-reason",
    b"sidecar-items", b"sidecar-cut",
})  # fmt: skip
_MEMORY = frozenset({FIRST_EXCHANGE, FIRST_ROUTING_KEY, RECEIVED_AT, RETRY_COUNT, REPLAYS, _ID})
_DETAIL_HEADERS = frozenset({
    "sidecar-error-type", "sidecar-action", "sidecar-index", "sidecar-items", "sidecar-error-reason",
})  # fmt: skip
"""Headers that may be cut: a replay doesn't need them."""

_ORIGINAL = b"sidecar-original-"
_EXPIRATION, _USER_ID, _DELIVERY_MODE = (_ORIGINAL + name for name in (b"expiration", b"user_id", b"delivery_mode"))
_DEATHS = (b"x-death", _ORIGINAL + b"x-death")
_FULL_NOTE_BYTES = 256
_MAX_SHORT_STRING = 255
_MAX_OCTET = 255
_MAX_EXPIRATION = 4_294_967_295  # RabbitMQ closes the channel over a longer one
_LENGTH_BYTES = 4
_NO_LIMIT = 1 << 30
_OTHERS = "(others)"
_UNREADABLE = "(malformed, or nested too deeply)"


class DeadLetter(NamedTuple):
    """What a dead letter says about itself; text that isn't there is empty.

    Attributes:
        position: in the queue, from 1, as it was read.
        message_id: the property.
        document_id: that the document has or would have.
        reason: one of the contract's reasons; for a letter of RabbitMQ's own making, RabbitMQ's.
        status: Elasticsearch's; 0 where the message never got there.
        error_type: Elasticsearch's.
        error_reason: a sentence.
        action: what was to be done.
        index_name: where it was to go.
        attempts: that were counted.
        failed_at: when it became a dead letter, as ISO 8601.
        queue: that it came from.
        exchange: that it was first published to.
        routing_key: that it was first published with.
        replays: how often it was replayed.
        deliveries: how often it was given back to its present queue; a quorum queue drops it at its limit.
        cut: what of it was cut to fit into a frame.
        size_bytes: of the body.
        expires: whether the original had an expiration.
    """

    position: int
    message_id: str
    document_id: str
    reason: str
    status: int
    error_type: str
    error_reason: str
    action: str
    index_name: str
    attempts: int
    failed_at: str
    queue: str
    exchange: str
    routing_key: str
    replays: int
    deliveries: int
    cut: str
    size_bytes: int
    expires: bool

    @property
    def name(self) -> str:
        """What it is best found by."""
        return self.message_id or self.document_id or f"#{self.position}"


def read(message: Message, position: int) -> DeadLetter:
    """Return what a dead letter says about itself.

    Args:
        message: from the dead-letter queue.
        position: in it, from 1.
    """
    try:
        found = dict(reversed(list(fields(headers(message.properties)))))  # of equal names the first counts
        message_id = short(message.properties, "message_id")
    except PropertiesError:
        found, message_id = {}, None
    death = _last_death(found)

    def text(name: bytes, otherwise: object = "") -> str:
        return _text(_decoded(found[name]) if name in found else otherwise)

    return DeadLetter(
        position=position,
        message_id=_text(message_id or b""),
        document_id=text(_ID),
        reason=text(b"sidecar-reason", death.get("reason", "")),
        status=_number(found.get(b"sidecar-status")),
        error_type=text(b"sidecar-error-type"),
        error_reason=text(b"sidecar-error-reason"),
        action=text(b"sidecar-action"),
        index_name=text(b"sidecar-index"),
        attempts=_number(found.get(b"sidecar-attempts")),
        failed_at=text(b"sidecar-failed-at", _time(death.get("time"))),
        queue=text(_QUEUE, death.get("queue", "")),
        exchange=text(FIRST_EXCHANGE, death.get("exchange", "")),
        routing_key=text(FIRST_ROUTING_KEY, death.get("routing_key", "")),
        replays=_number(found.get(REPLAYS)),
        deliveries=max(_number(found.get(name)) for name in _DELIVERIES),
        cut=text(b"sidecar-cut"),
        size_bytes=len(message.body),
        expires=_EXPIRATION in found,
    )


def _last_death(found: dict[bytes, bytes]) -> dict[str, object]:
    """Return the latest entry of RabbitMQ's own dead-lettering: its ``reject``, where ``SIDECAR_ON_REJECT=broker``."""
    for name in _DEATHS:
        deaths = _decoded(found.get(name))
        if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict):
            death = deaths[0]
            keys = death.get("routing-keys")
            return {**death, "routing_key": keys[0] if isinstance(keys, list) and keys else ""}
    return {}


def _decoded(value: bytes | None) -> object:
    try:
        return _plain(decode(value)) if value is not None else None
    except (PropertiesError, RecursionError):
        return _UNREADABLE


def _number(value: bytes | None) -> int:
    number = _decoded(value)
    return max(number, 0) if isinstance(number, int) else 0


def _text(value: object) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


def _time(number: object) -> str:
    moment = timestamps.read(number) if isinstance(number, int) else None
    return timestamps.as_text(moment) if moment is not None else ""


# Choosing and grouping -----------------------------------------------------------------------------------------------


class DeadLetterFilter(NamedTuple):
    """Which letters are meant: patterns (``*``, ``?``, ``[…]``) of each; empty means all.

    Attributes:
        reasons: of `Letter.reason`.
        error_types: of `Letter.error_type`.
        indices: of `Letter.index_name`.
        ids: of `Letter.message_id` or `Letter.document_id`.
    """

    reasons: tuple[str, ...] = ()
    error_types: tuple[str, ...] = ()
    indices: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()

    def matches(self, dead_letter: DeadLetter) -> bool:
        """Whether a letter is meant."""
        return (
            _any(self.reasons, dead_letter.reason)
            and _any(self.error_types, dead_letter.error_type)
            and _any(self.indices, dead_letter.index_name)
            and (not self.ids or _any(self.ids, dead_letter.message_id) or _any(self.ids, dead_letter.document_id))
        )


def _any(patterns: tuple[str, ...], text: str) -> bool:
    return not patterns or any(fnmatchcase(text, pattern) for pattern in patterns)


class DeadLetterGroup:
    """Letters with the same reason, error type and index.

    Attributes:
        count: of them.
        oldest: the earliest `Letter.failed_at`.
        newest: the latest.
        example: the first of them.
    """

    __slots__ = ("count", "example", "newest", "oldest")

    def __init__(self, example: DeadLetter) -> None:
        self.count = 0
        self.example = example
        self.oldest = self.newest = example.failed_at


class DeadLetterSummary:
    """Counts letters by what is wrong with them, without keeping them.

    Attributes:
        count: of all.
    """

    def __init__(self) -> None:
        self.count = 0
        self._groups: dict[tuple[str, str, str], DeadLetterGroup] = {}

    def add(self, dead_letter: DeadLetter) -> None:
        """Count a letter."""
        self.count += 1
        key = (dead_letter.reason, dead_letter.error_type, dead_letter.index_name)
        if key not in self._groups and len(self._groups) >= MAX_GROUPS:
            key = (_OTHERS, "", "")
            dead_letter = dead_letter._replace(reason=_OTHERS, error_type="", index_name="")
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = DeadLetterGroup(dead_letter)
        group.count += 1
        times = [moment for moment in (group.oldest, group.newest, dead_letter.failed_at) if moment]
        group.oldest, group.newest = (min(times), max(times)) if times else ("", "")

    def groups(self) -> list[DeadLetterGroup]:
        """Return the groups, the largest first."""
        return sorted(self._groups.values(), key=lambda group: -group.count)


# Back to the queue ---------------------------------------------------------------------------------------------------


def replay_obstacle(dead_letter: DeadLetter, max_replays: int) -> str | None:
    """Return why a letter is not to be replayed, or None.

    Args:
        dead_letter: a letter.
        max_replays: how often a message may be replayed.
    """
    if not dead_letter.queue:
        return "nothing says which queue it came from (no sidecar-queue, no x-death)"
    if len(dead_letter.queue.encode()) > _MAX_SHORT_STRING:
        return "its sidecar-queue is no queue's name"
    if dead_letter.replays >= max_replays:
        times = "once" if dead_letter.replays == 1 else f"{dead_letter.replays} times"
        return f"it was replayed {times} and came back (--max-replays {max_replays})"
    cut = [name for name in dead_letter.cut.split(", ") if name]
    lost = [name for name in cut if name not in _DETAIL_HEADERS]
    if lost:
        return f"it was cut when it became a dead letter, and is not the original any more: {', '.join(lost)}"
    if len(dead_letter.cut.encode()) >= _FULL_NOTE_BYTES:
        return "more of it was cut than sidecar-cut can tell"
    return None


def replay_properties(message: Message, dead_letter: DeadLetter, *, token: bytes, user: str | None) -> bytes:
    """Return the properties of the message that a dead letter was, for its own queue.

    What the sidecar added is gone, and ``expiration``, ``delivery_mode`` and, where it names whom we log in as,
    ``user_id`` are properties again: they are the publisher's word about this very queue. What would have the message
    refused or sent elsewhere stays in ``sidecar-original-*``: a foreign ``user_id`` (406), ``CC`` and ``BCC`` (their
    queues got the message when it was first published), ``x-death`` (RabbitMQ drops what seems to go in a circle, or
    ignores it).

    Headers that remember the first delivery stay or are added, so that templates resolve as at that one, and a
    generated id stays the same; `REPLAYS` is counted.

    Args:
        message: from the dead-letter queue.
        dead_letter: what it says about itself.
        token: see `sidecar.ports.Copy`.
        user: whom we log in as, or None where that is not known.

    Raises:
        PropertiesError: the message's properties are malformed.
    """
    values, own = _uncounted(message)
    # A letter of RabbitMQ's own making still has in place what the sidecar moves aside.
    values = split(republish_properties(join_with_headers(values, own), [], _NO_LIMIT))
    own = list(fields(values.pop("headers")[_LENGTH_BYTES:]))
    remembered = {name: value for name, value in own if name in _MEMORY}
    kept = [field for field in own if field[0] not in _ADDED | _MEMORY]
    kept = [field for field in kept if not _restored(values, field, user)]
    received_at = remembered.get(RECEIVED_AT) or (text_value(dead_letter.failed_at) if dead_letter.failed_at else None)
    kept += [
        (TOKEN_HEADER, text_value(token)),
        (RETRY_COUNT, number_value(0)),
        (FIRST_EXCHANGE, remembered.get(FIRST_EXCHANGE) or text_value(dead_letter.exchange)),
        (FIRST_ROUTING_KEY, remembered.get(FIRST_ROUTING_KEY) or text_value(dead_letter.routing_key)),
    ]
    if received_at is not None:
        kept.append((RECEIVED_AT, received_at))
    if remembered.get(_ID, b"")[:1] == b"S" and dead_letter.document_id:
        kept.append((_ID, remembered[_ID]))
    kept.append((REPLAYS, number_value(dead_letter.replays + 1)))
    return join_with_headers(values, kept)


def _restored(values: dict[str, bytes], field: Field, user: str | None) -> bool:
    """Make a header a property again, if it was one; return whether it was done."""
    name, value = field
    if name == _EXPIRATION and value[:1] == b"S" and value[5:].isdigit() and int(value[5:]) <= _MAX_EXPIRATION:
        values["expiration"] = _short_string(value[5:])
    elif name == _USER_ID and user is not None and value[:1] == b"S" and value[5:] == user.encode():
        values["user_id"] = _short_string(value[5:])
    elif name == _DELIVERY_MODE and 0 <= _number(value) <= _MAX_OCTET:
        values["delivery_mode"] = bytes([_number(value)])
    else:
        return False
    return True


def refreshed_properties(message: Message, *, token: bytes, limit_bytes: int) -> bytes:
    """Return the properties of a letter that goes to the tail of its own queue, where its deliveries count anew.

    A letter of the sidecar's keeps every byte but for its token and RabbitMQ's count. In one of RabbitMQ's own making
    moves aside what would keep it from arriving there, as in any copy.

    Args:
        message: from the dead-letter queue.
        token: see `sidecar.ports.Copy`.
        limit_bytes: what fits into the broker's frame.

    Raises:
        PropertiesError: the message's properties are malformed.
    """
    values, own = _uncounted(message)
    marked = (TOKEN_HEADER, text_value(token))
    at = next((at for at, (name, _) in enumerate(own) if name == TOKEN_HEADER), len(own))
    own = [*own[:at], marked, *own[at + 1 :]]
    origin = read(message, 0).queue
    if origin and all(name != _QUEUE for name, _ in own):  # what tells it now may be dropped from the copy
        own.append((_QUEUE, text_value(origin)))
    return republish_properties(join_with_headers(values, own), [], limit_bytes)


def _uncounted(message: Message) -> tuple[dict[str, bytes], list[Field]]:
    """Return the properties but for headers, and the headers but for RabbitMQ's count of how often it came back."""
    values = split(message.properties)
    own = fields(values.pop("headers", b"")[_LENGTH_BYTES:])
    return values, [field for field in own if field[0] not in _DELIVERIES]


def _short_string(data: bytes) -> bytes:
    return bytes([len(data)]) + data


# One letter in full --------------------------------------------------------------------------------------------------


def property_values(message: Message) -> dict[str, object]:
    """Return the properties of a message but for its headers, by name.

    Raises:
        PropertiesError: they are malformed.
    """
    told: dict[str, object] = {}
    for name, raw in split(message.properties).items():
        width = FIELDS[name][1]
        if width > 0:
            told[name] = int.from_bytes(raw, "big")
        elif width == 0:
            told[name] = _text(raw[1:])
    return told


def header_values(message: Message) -> list[tuple[str, object]]:
    """Return the headers of a message in order, equal names included.

    Raises:
        PropertiesError: they are malformed.
    """
    return [(_text(name), _decoded(value)) for name, value in fields(headers(message.properties))]


def _plain(value: object) -> object:
    """Return a header's value as JSON has it."""
    if isinstance(value, bytes):
        return _text(value)
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
