"""One small language wherever a value comes from the message: literal text with ``{field}``.

    {field}  {field|default}  {field:%Y.%m.%d}  {field:%Y.%m.%d|default}  {{ and }} for braces

Compiled once, at the start; a mistake is an error that points at the character. Values come out as bytes that are valid
UTF-8: data, never syntax.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

import orjson

from sidecar.core import properties
from sidecar.core.content import plain_body
from sidecar.core.document import MAX_DOCUMENT_BYTES
from sidecar.errors import SidecarError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.core.message import Message

    Getter = Callable[["Scene"], object]

SHORT_PROPERTIES = (
    "message_id", "correlation_id", "type", "app_id", "content_type", "user_id", "reply_to", "expiration",
)  # fmt: skip
_TIMES = ("timestamp", "now")
_PLAIN = ("priority", "routing_key", "exchange", "queue", "sha256", "item")
_PREFIXES = ("header.", "body.")
FIELDS = (*SHORT_PROPERTIES, *_TIMES, *_PLAIN, *(f"{prefix}NAME" for prefix in _PREFIXES))

RETRY_COUNT, RECEIVED_AT = b"sidecar-retry-count", b"sidecar-received-at"
FIRST_EXCHANGE, FIRST_ROUTING_KEY = b"sidecar-exchange", b"sidecar-routing-key"
"""The headers by which a delayed copy remembers its first delivery."""

_MILLISECONDS_FROM = 100_000_000_000
"""AMQP timestamps are seconds; many publishers send milliseconds. In seconds this number is the year 5138."""
_STRING_OVERHEAD = 5  # of a header's text: the octet of its type, and its length
_TOKEN = re.compile(r"\{\{|\}\}|\{|\}")


class TemplateError(SidecarError):
    """A template that can't be compiled; says where.

    Attributes:
        position: of the character that is wrong, from 0.
    """

    def __init__(self, text: str, position: int, why: str) -> None:
        super().__init__(f"{why}, at character {position + 1}: {text!r}")
        self.position = position


class MissingFieldError(Exception):
    """A message without a field that a template needs; the message is rejected, with reason ``missing-field``."""

    def __init__(self, field: str) -> None:
        super().__init__(field)
        self.field = field


class Scene:
    """What templates can see: a message, the time, and its body once it was parsed.

    On a copy that came back from the delay queue, exchange, routing key and time are those of the first delivery.

    Args:
        message: whose values are wanted.
        now: seconds since 1970.
        most_bytes: a compressed body that holds more is refused.
        part: the message is one document of several, and its body is that.

    Attributes:
        received_at: when it was first delivered here, in seconds since 1970.
        item: the place of the document in its message, from 0; None where a message is a document.
    """

    __slots__ = ("_body", "_content", "_first_route", "_most_bytes", "item", "message", "received_at")

    def __init__(
        self, message: Message, now: float, most_bytes: int = MAX_DOCUMENT_BYTES, *, part: bool = False
    ) -> None:
        self.message = message
        self.item = message.item if part else None
        self._most_bytes = most_bytes
        self._content: bytes | None = message.body if part else None
        self._first_route: tuple[bytes, bytes] | None = None
        self.received_at = now
        self._body: object = _UNPARSED
        if RETRY_COUNT in message.properties:
            self._remember()

    def _remember(self) -> None:
        raw = self.message.properties
        if properties.header(raw, RETRY_COUNT) is None:
            return
        exchange = _long_string(properties.header(raw, FIRST_EXCHANGE)) or b""
        self._first_route = exchange, _long_string(properties.header(raw, FIRST_ROUTING_KEY)) or b""
        moment = _long_string(properties.header(raw, RECEIVED_AT))
        with suppress(ValueError, OverflowError):
            seconds = datetime.fromisoformat((moment or b"").decode(errors="replace")).timestamp()
            datetime.fromtimestamp(seconds, UTC)  # raises for what is outside of the years 1 to 9999
            self.received_at = seconds

    @property
    def exchange(self) -> bytes:
        """The exchange that it was first published to."""
        return self.message.exchange if self._first_route is None else self._first_route[0]

    @property
    def routing_key(self) -> bytes:
        """The routing key that it was first published with."""
        return self.message.routing_key if self._first_route is None else self._first_route[1]

    def content(self) -> bytes:
        """Return the body, with its ``content_encoding`` undone.

        Raises:
            RefusedError: that can't be done.
        """
        if self._content is None:
            self._content = plain_body(self.message, self._most_bytes)
        return self._content

    def body(self) -> object:
        """Return the parsed body; None where it is no JSON."""
        if self._body is _UNPARSED:
            try:
                self._body = orjson.loads(self.content())
            except orjson.JSONDecodeError:
                self._body = None
        return self._body


_UNPARSED = object()


def _long_string(value: bytes | None) -> bytes | None:
    return value[_STRING_OVERHEAD:] if value is not None and value[:1] == b"S" else None


class _Hole(NamedTuple):
    field: str
    get: Getter
    default: bytes | None


class Template:
    """A compiled template.

    Args:
        text: what was configured.

    Attributes:
        constant: the value where it is the same for every message, otherwise None.

    Raises:
        TemplateError: the text is no template.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._parts = _compile(text)
        literal = all(isinstance(part, bytes) for part in self._parts)
        self.constant = b"".join(part for part in self._parts if isinstance(part, bytes)) if literal else None
        alone = self._parts[0] if len(self._parts) == 1 else None
        self._alone = alone if isinstance(alone, _Hole) else None

    def __repr__(self) -> str:
        """Show what was configured."""
        return f"<Template {self.text!r}>"

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that it reads, in order."""
        return tuple(part.field for part in self._parts if isinstance(part, _Hole))

    def render(self, scene: Scene) -> bytes:
        """Return the value for a message.

        Raises:
            MissingFieldError: the message has no such field, and there is no default.
        """
        if self.constant is not None:
            return self.constant
        if self._alone is not None:
            return _fill(self._alone, scene)
        return b"".join([part if isinstance(part, bytes) else _fill(part, scene) for part in self._parts])


def _fill(hole: _Hole, scene: Scene) -> bytes:
    try:
        value = hole.get(scene)
        text = None if value is None else _text(value)
    except (properties.PropertiesError, UnicodeDecodeError, RecursionError, orjson.JSONEncodeError):
        text = None  # no text, or nested too deeply to be written as one
    if text is not None:
        return text
    if hole.default is None:
        raise MissingFieldError(hole.field)
    return hole.default


def _text(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, bool):
        return b"true" if value else b"false"
    if isinstance(value, str | int | float):
        return str(value).encode()
    return orjson.dumps(value, default=str)


def _compile(text: str) -> list[bytes | _Hole]:
    parts: list[bytes | _Hole] = []
    literal = ""
    at = 0
    while match := _TOKEN.search(text, at):
        literal += text[at : match.start()]
        brace = match.group()
        at = match.end()
        if brace in {"{{", "}}"}:
            literal += brace[0]
            continue
        if brace == "}":
            raise TemplateError(text, match.start(), "a } without its {; write }} for a brace")
        end = text.find("}", at)
        if end < 0:
            raise TemplateError(text, match.start(), "a { without its }; write {{ for a brace")
        if literal:
            parts.append(literal.encode())
            literal = ""
        parts.append(_hole(text, at, text[at:end]))
        at = end + 1
    literal += text[at:]
    if literal:
        parts.append(literal.encode())
    return parts


def _hole(text: str, at: int, inside: str) -> _Hole:
    spec, bar, default = inside.partition("|")
    field, colon, style = spec.partition(":")
    if "{" in inside:
        raise TemplateError(text, at + inside.index("{"), "a { inside of braces")
    if colon and field not in _TIMES:
        raise TemplateError(text, at + len(field), f"a format on {field!r}, which is no time ({', '.join(_TIMES)} are)")
    if colon and not style:
        raise TemplateError(text, at + len(field), "an empty format")
    getter = _getter(field, style)
    if getter is None:
        raise TemplateError(text, at, f"{field!r} is no field; there are {', '.join(FIELDS)}")
    return _Hole(field, getter, default.encode() if bar else None)


def _getter(field: str, style: str) -> Getter | None:
    if field in SHORT_PROPERTIES:
        return lambda scene: _utf8(properties.short(scene.message.properties, field))
    if field == "timestamp":
        return lambda scene: _moment(properties.number(scene.message.properties, "timestamp"), style)
    if field == "now":
        return lambda scene: _format(scene.received_at, style)
    if field == "priority":
        return lambda scene: properties.number(scene.message.properties, "priority")
    if field == "sha256":
        return lambda scene: hashlib.sha256(scene.content()).hexdigest()
    if field in _PLAIN:
        return _ROUTE[field]
    if field.startswith("header.") and field != "header.":
        name = field.removeprefix("header.").encode()
        return lambda scene: _header(scene, name)
    if field.startswith("body.") and field != "body.":
        path = field.removeprefix("body.").split(".")
        return lambda scene: _body(scene, path)
    return None


_ROUTE: dict[str, Getter] = {
    "routing_key": lambda scene: _utf8(scene.routing_key),
    "exchange": lambda scene: _utf8(scene.exchange),
    "queue": lambda scene: scene.message.ledger.queue,
    "item": lambda scene: scene.item,
}


def _utf8(value: bytes | None) -> bytes | None:
    if value is not None and not value.isascii():
        value.decode()  # raises for what is no text
    return value


def _moment(value: int | None, style: str) -> str | None:
    if value is None:
        return None
    return _format(value / 1000 if value >= _MILLISECONDS_FROM else value, style)


def _format(seconds: float, style: str) -> str | None:
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None
    if style:
        return moment.strftime(style)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _header(scene: Scene, name: bytes) -> object:
    raw = properties.header(scene.message.properties, name)
    if raw is None:
        return None
    if raw[:1] == b"S":
        return _utf8(raw[_STRING_OVERHEAD:])
    value = properties.decode(raw)
    if isinstance(value, bytes):
        value.decode()  # raises for what is no text
    return value


def _body(scene: Scene, path: list[str]) -> object:
    value = _walk(scene.body(), path)
    if isinstance(value, float):  # its spelling in the document may be another: 1e2, or 23 digits
        value = _walk(json.loads(scene.content(), parse_float=str, parse_int=str), path)
    return value


def _walk(value: object, path: list[str]) -> object:
    for step in path:
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value
