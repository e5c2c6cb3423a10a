"""One small language wherever a value comes from the message: literal text with ``{field}``.

    {field}  {field|default}  {field:%Y.%m.%d}  {field:%Y.%m.%d|default}  {field!lower}  {{ and }} for braces

``!lower`` stands before a format and a default, and puts all that comes out of the braces into lower case: names of
indices have no capitals. Any other ``!`` belongs to the name of a header or of a member of the body.

A default stands for what is absent, and for nothing else: what is there and can't be read as asked (a body that is not
JSON, a text that is not UTF-8, a time that is none) rejects the message as malformed.

Compiled once, at the start; a mistake is an error that points at the character. Values come out as bytes that are valid
UTF-8: data, never syntax.
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import orjson

from sidecar.core import timestamps
from sidecar.core.encoding import exact_json
from sidecar.core.encoding.content_encoding import plain_body
from sidecar.core.encoding.document import MAX_DOCUMENT_BYTES, SPACE, RefusedError
from sidecar.core.wire import properties
from sidecar.core.wire.properties import LONG_STRING, STRING_OVERHEAD
from sidecar.errors import SidecarError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from sidecar.core.message import Message

    Getter = Callable[["TemplateContext"], object]
    Render = Callable[["TemplateContext"], bytes]

SHORT_PROPERTIES = (
    "message_id", "correlation_id", "type", "app_id", "content_type", "user_id", "reply_to", "expiration",
)  # fmt: skip
_TIMES = ("timestamp", "now")
_PLAIN = ("priority", "routing_key", "exchange", "queue", "sha256", "item")
_PREFIXES = ("header.", "body.")
FIELDS = (*SHORT_PROPERTIES, *_TIMES, *_PLAIN, *(f"{prefix}NAME" for prefix in _PREFIXES))

RETRY_COUNT, RECEIVED_AT = b"sidecar-retry-count", b"sidecar-received-at"
FIRST_EXCHANGE, FIRST_ROUTING_KEY = b"sidecar-exchange", b"sidecar-routing-key"
"""The headers by which a delayed copy remembers its first delivery; what was passed on has all but the first."""
_MAX_NAME_BYTES = 255

IS_ENCODED = properties.FIELDS["content_encoding"][0] >> 8
"""The bit for a ``content_encoding`` in the first octet of properties."""
_TOKEN = re.compile(r"\{\{|\}\}|\{|\}")
_LOWER = "!lower"


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


class Origin(NamedTuple):
    """A message's first delivery.

    Attributes:
        exchange: that it was published to.
        routing_key: that it was published with.
        received_at: when it was delivered, in seconds since 1970.
    """

    exchange: bytes
    routing_key: bytes
    received_at: float


def origin(raw: bytes) -> Origin | None:
    """Return the first delivery that the headers tell of, on a copy from the delay queue or of another stage.

    None unless all three headers are there and may be ours: anybody may use one of these names.

    Args:
        raw: the message's properties.
    """
    if RECEIVED_AT not in raw:  # most messages; one look tells
        return None
    try:
        exchange, routing_key, moment = [
            _long_string(properties.header(raw, name)) for name in (FIRST_EXCHANGE, FIRST_ROUTING_KEY, RECEIVED_AT)
        ]
    except properties.PropertiesError:
        return None  # cut short: whoever needs a header of it says so
    received = timestamps.read(moment)
    if exchange is None or routing_key is None or received is None:
        return None
    if max(len(exchange), len(routing_key)) > _MAX_NAME_BYTES:
        return None
    return Origin(exchange, routing_key, received.timestamp())


def came_back(raw: bytes) -> bool:
    """Whether a message is a copy that came back from the delay queue.

    Args:
        raw: its properties.
    """
    return RETRY_COUNT in raw and origin(raw) is not None and properties.header(raw, RETRY_COUNT) is not None


_UNPARSED = object()


class TemplateContext:
    """What templates can see: a message, the time, and its body once it was parsed.

    On a copy that came back from the delay queue, or was passed on by another stage, exchange, routing key and time are
    those of the first delivery.

    Args:
        message: whose values are wanted.
        now: seconds since 1970.
        max_bytes: a compressed body that holds more is refused.
        part: the message is one document of several, and its body is that.
        text: the body is a text (``SIDECAR_CONTENT=text``): one that is not JSON has no fields.

    Attributes:
        received_at: when it was first delivered here, in seconds since 1970.
        split_index: the place of the document in its message, from 0; None where a message is a document.
    """

    __slots__ = ("_body", "_content", "_max_bytes", "_now", "_origin", "_text", "message", "received_at", "split_index")

    split_index: int | None
    _body: object
    _content: bytes | None
    _origin: Origin | None

    def __init__(
        self,
        message: Message,
        now: float,
        max_bytes: int = MAX_DOCUMENT_BYTES,
        *,
        part: bool = False,
        text: bool = False,
    ) -> None:
        self._now = now
        self._text = text
        self._max_bytes = max_bytes
        self.reset(message)
        if part:
            self.split_index, self._content = message.split_index, message.body

    def reset(self, message: Message) -> None:
        """Show another message from here on: that is cheaper than another scene."""
        raw = message.properties
        self.message = message
        self.split_index = None
        self._body = _UNPARSED
        self._content = None if not raw or raw[0] & IS_ENCODED else message.body
        self._origin = origin(raw)
        self.received_at = self._now if self._origin is None else self._origin.received_at

    @property
    def exchange(self) -> bytes:
        """The exchange that it was first published to."""
        return self.message.exchange if self._origin is None else self._origin.exchange

    @property
    def routing_key(self) -> bytes:
        """The routing key that it was first published with."""
        return self.message.routing_key if self._origin is None else self._origin.routing_key

    def content(self) -> bytes:
        """Return the body, with its ``content_encoding`` undone.

        Raises:
            RefusedError: that can't be done.
        """
        if self._content is None:
            self._content = plain_body(self.message, self._max_bytes)
        return self._content

    def body(self) -> object:
        """Return the parsed body, in which numbers may be rounded; None if it is empty.

        Raises:
            RefusedError: it is not JSON.
        """
        if self._body is _UNPARSED:
            content = self.content()
            try:
                self._body = exact_json.read(content)
            except exact_json.JsonError as error:
                if content.strip(SPACE) and not self._text:
                    raise RefusedError("malformed", error.why) from None
                self._body = None
        return self._body

    @property
    def parsed(self) -> object:
        """The parsed body, if anything asked for it; else None."""
        return None if self._body is _UNPARSED else self._body

    def find(self, path: list[str]) -> object:
        """Return what stands at a path in the body, numbers as they are spelled; None if it is absent.

        Raises:
            RefusedError: the body is not JSON.
        """
        content = self.body()
        found: Any = content
        try:
            for step in path:
                found = found[step]
        except (KeyError, TypeError):
            found = None
        if found is None:  # absent, or spelled with dots, or in an array
            found = exact_json.find(content, path)
        if isinstance(found, float | list | dict):
            found = exact_json.find(exact_json.read_exactly(self.content()), path)
        return found


def _long_string(value: bytes | None) -> bytes | None:
    return value[STRING_OVERHEAD:] if value is not None and value[:1] == b"S" else None


class Placeholder(NamedTuple):
    """A field in its braces.

    Attributes:
        field: its name.
        format: of a time, as for ``strftime``; empty: as ISO 8601 has it.
        default: what stands for it where it is absent; None: the message is rejected.
        render: returns what stands for it; raises `MissingFieldError` where that is nothing.
        is_lowered: in lower case, which `render` sees to.
    """

    field: str
    format: str
    default: bytes | None
    render: Render
    is_lowered: bool = False


class Template:
    """A compiled template.

    Args:
        text: what was configured.

    Attributes:
        constant: the value where it is the same for every message, otherwise None.
        placeholders: what it reads, in order.
        pattern: of its text, with a ``%b`` for each of these.
        render: returns the value for a message; raises `MissingFieldError` where it has no such field and there is no
            default.

    Raises:
        TemplateError: the text is no template.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        parts = _compile(text)
        self.placeholders = [part for part in parts if isinstance(part, Placeholder)]
        self.pattern = b"".join(part.replace(b"%", b"%%") if isinstance(part, bytes) else b"%b" for part in parts)
        self.constant = None if self.placeholders else b"".join(part for part in parts if isinstance(part, bytes))
        self.render: Render = _constant(self.constant) if self.constant is not None else _renderer(self)

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that it reads, in order."""
        return tuple(hole.field for hole in self.placeholders)

    def __repr__(self) -> str:
        """Show what was configured."""
        return f"<Template {self.text!r}>"


def _constant(value: bytes) -> Render:
    return lambda _: value


def _renderer(template: Template) -> Render:
    """Return what fills the holes of a template, with nothing left to find out on the way."""
    pattern, fills = template.pattern, [hole.render for hole in template.placeholders]
    first = fills[0]
    if pattern == b"%b":
        return first
    if len(fills) == 1:
        return lambda context: pattern % first(context)
    return lambda context: pattern % tuple([fill(context) for fill in fills])


def _filler(field: str, get: Getter, default: bytes | None) -> Render:
    def fill(context: TemplateContext) -> bytes:
        try:
            value = get(context)
            if isinstance(value, bytes):
                if not value.isascii():
                    value.decode()  # raises for what is not text
                return value
            if value is not None:
                return text_of(value)
        except UnicodeError as error:
            raise RefusedError("malformed", f"{field} is not a text: {_why_no_text(error)}") from None
        except (RecursionError, TypeError):
            raise RefusedError("malformed", f"{field} is nested too deeply to be a text") from None
        if default is None:
            raise MissingFieldError(field)
        return default

    return fill


def _why_no_text(error: UnicodeError) -> str:
    half = isinstance(error, UnicodeEncodeError)  # of what was read from JSON: \\ud83d without what belongs to it
    return "it holds half of a surrogate pair, which UTF-8 can't hold" if half else "it is not UTF-8"


def text_of(value: object) -> bytes:
    """Return the text of what isn't text: compact JSON, for what is neither a number nor a boolean.

    Raises:
        UnicodeEncodeError: it holds half of a surrogate pair.
        TypeError, RecursionError: it is nested too deeply.
    """
    if isinstance(value, bool):
        return b"true" if value else b"false"
    if isinstance(value, str | int | float):
        return str(value).encode()
    return orjson.dumps(value, default=str)


def _compile(text: str) -> list[bytes | Placeholder]:
    parts: list[bytes | Placeholder] = []
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
        parts.append(_placeholder(text, at, text[at:end]))
        at = end + 1
    literal += text[at:]
    if literal:
        parts.append(literal.encode())
    return parts


def _placeholder(text: str, at: int, inside: str) -> Placeholder:
    spec, bar, default = inside.partition("|")
    name, colon, style = spec.partition(":")
    field, is_lowered = _converted(name)
    if "{" in inside:
        raise TemplateError(text, at + inside.index("{"), "a { inside of braces")
    getter = _getter(field, style)
    if getter is None:
        known, bang, conversion = field.partition("!")
        if bang and _getter(known, style) is not None:
            raise TemplateError(text, at + len(known) + 1, f"{conversion!r} is not a conversion; there is {_LOWER}")
        raise TemplateError(text, at, f"{field!r} is no field; there are {', '.join(FIELDS)}")
    if colon and field not in _TIMES and not field.startswith(_PREFIXES):
        times_known = ", ".join((*_TIMES, *(f"{prefix}NAME" for prefix in _PREFIXES)))
        what = f"a format on {field!r}, which is not a time ({times_known} may be)"
        raise TemplateError(text, at + len(field), what)
    if colon and "%" not in style:
        raise TemplateError(text, at + len(name), "a format without %: write one as for strftime, such as %Y.%m.%d")
    if style.endswith(_LOWER):
        raise TemplateError(text, at + len(spec) - len(_LOWER), f"{_LOWER} stands before a format, not behind it")
    spare = default.encode() if bar else None
    fill = _filler(field, getter, spare)
    if is_lowered:
        return Placeholder(field, style, spare, lambda context: lowered(fill(context)), is_lowered=True)
    return Placeholder(field, style, spare, fill)


def _converted(name: str) -> tuple[str, bool]:
    """Return a field, and whether it is converted to lower case: any other ``!`` belongs to the name."""
    field = name.removesuffix(_LOWER)
    return field, field != name


def lowered(text: bytes) -> bytes:
    """Return a text, which is valid UTF-8, in lower case."""
    return text.lower() if text.isascii() else text.decode().lower().encode()


def _getter(field: str, format_: str) -> Getter | None:
    if field in SHORT_PROPERTIES:
        read = properties.short_reader(field)
        return lambda context: read(context.message.properties)
    if field == "timestamp":
        return _timestamp_getter(format_)
    if field == "now":
        return lambda context: format_time(context.received_at, format_)
    if field == "priority":
        return lambda context: properties.number(context.message.properties, "priority")
    if field == "sha256":
        return lambda context: hashlib.sha256(context.content()).hexdigest()
    if field in _PLAIN:
        return _ROUTE[field]
    if field.startswith("header.") and field != "header.":
        return _time_getter(field, _header_getter(field.removeprefix("header.").encode()), format_)
    if field.startswith("body.") and field != "body.":
        return _time_getter(field, _body_getter(field.removeprefix("body.").split(".")), format_)
    return None


_ROUTE: dict[str, Getter] = {
    "routing_key": lambda context: context.routing_key,
    "exchange": lambda context: context.exchange,
    "queue": lambda context: context.message.ledger.queue,
    "item": lambda context: context.split_index,
}


def _timestamp_getter(format_: str) -> Getter:
    def get(context: TemplateContext) -> bytes | None:
        number = properties.number(context.message.properties, "timestamp")
        return _formatted("timestamp", number, format_) if number is not None else None

    return get


def _time_getter(field: str, get: Getter, format_: str) -> Getter:
    """Return what reads a field, as a time if it has a format."""
    if not format_:
        return get

    def get_time(context: TemplateContext) -> bytes | None:
        value = get(context)
        return _formatted(field, value, format_) if value is not None else None

    return get_time


def _formatted(field: str, value: object, format_: str) -> bytes:
    moment = timestamps.read(value)
    if moment is None:
        known = "write it as ISO 8601, or seconds, milliseconds, microseconds or nanoseconds since 1970"
        raise RefusedError("malformed", f"{field} is not a time: {known}")
    return timestamps.as_text(moment, format_).encode()


@lru_cache(maxsize=64)  # all messages of a chunk have the same `now`
def format_time(seconds: float, format_: str) -> bytes:
    """Return a time, in seconds since 1970, as a text."""
    return timestamps.as_text(datetime.fromtimestamp(seconds, UTC), format_).encode()


def _header_getter(name: bytes) -> Getter:
    read = properties.header_reader(name)

    def get(context: TemplateContext) -> object:
        raw = read(context.message.properties)
        if raw is None:
            return None
        return raw[STRING_OVERHEAD:] if raw[0] == LONG_STRING else properties.decode(raw)

    return get


def _body_getter(path: list[str]) -> Getter:
    def get(context: TemplateContext) -> object:
        found = context.find(path)
        return exact_json.write(found) if isinstance(found, list | dict) else found

    return get
