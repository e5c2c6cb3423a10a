"""What templates say of a whole chunk of messages: a column of values for each template.

Most of it happens in C (`map`, `zip`, `join`), which takes a third of what rendering by the message does. Whatever is
out of the ordinary is left out: a compressed body, a copy that remembers its first delivery, a property set that ends
too early, a field that is absent or no text. Such messages are noted as odd, and are looked at one by one, where every
rule has its place and every refusal its reason.
"""

from __future__ import annotations

from itertools import repeat
from operator import contains, itemgetter
from typing import TYPE_CHECKING

import orjson

from sidecar.core.encoding import exact_json
from sidecar.core.encoding.content_encoding import is_plain
from sidecar.core.encoding.document import METADATA, RefusedError, metadata_name
from sidecar.core.encoding.template import (
    IS_ENCODED,
    RECEIVED_AT,
    SHORT_PROPERTIES,
    MissingFieldError,
    TemplateContext,
    format_time,
    lowered,
    text_of,
)
from sidecar.core.wire import properties
from sidecar.core.wire.properties import LONG_STRING, STRING_OVERHEAD, header_column, short_column

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sidecar.core.encoding.template import Placeholder, Template
    from sidecar.core.message import Message

    Values = list[bytes | Exception | None]
    """A value of each message: None where it is absent, an error where that is for somebody else to find out."""
    Read = Callable[["Chunk"], Values]
    Column = Callable[["Chunk"], list[bytes]]

ORIGIN_FIELDS = frozenset({"now", "exchange", "routing_key"})
"""Fields that a copy from the delay queue answers as at its first delivery."""

_ORDINARY = bytes(octet for octet in range(0x20, 0x7F) if octet not in b'"\\')
_first = itemgetter(slice(1))
_read_encodings = short_column("content_encoding")


class Chunk:
    """Messages that are composed together.

    Args:
        messages: one or more.
        now: seconds since 1970.
        needs_origin: whether it matters that one is a copy that remembers its first delivery.

    Attributes:
        properties: of each message, raw.
        fallback: places of messages that must be looked at one by one; reading columns adds to them.
    """

    __slots__ = ("fallback", "messages", "now", "properties")

    def __init__(self, messages: list[Message], now: float, *, needs_origin: bool) -> None:
        self.messages = messages
        self.now = now
        self.properties = sets = [message.properties for message in messages]
        self.fallback: set[int] = set()
        if any(not octet or octet[0] & IS_ENCODED for octet in set(map(_first, sets))):
            self._note_encoded()
        if needs_origin and any(map(contains, sets, repeat(RECEIVED_AT))):
            self.fallback.update(place for place, raw in enumerate(sets) if RECEIVED_AT in raw)

    def _note_encoded(self) -> None:
        for place, encoding in enumerate(_read_encodings(self.properties)):
            if encoding is not None and (isinstance(encoding, Exception) or not is_plain(encoding)):
                self.fallback.add(place)


def column(template: Template) -> Column:
    """Return what renders a template for all messages of a chunk; for an odd one that is the empty text."""
    if template.constant is not None:
        value = template.constant
        return lambda chunk: [value] * len(chunk.messages)
    fills = [_filler(hole) for hole in template.placeholders]
    pattern = template.pattern
    if pattern == b"%b":
        return fills[0]
    if len(fills) == 1:
        return lambda chunk: [pattern % value for value in fills[0](chunk)]
    return lambda chunk: [pattern % row for row in zip(*[fill(chunk) for fill in fills], strict=True)]


def as_json(values: Sequence[bytes]) -> tuple[bytes, Iterable[bytes]]:
    """Return texts, which columns are, as JSON strings: what is to stand around each, and each.

    Most need nothing but quotes around them. What orjson makes of others is yielded one by one: each is cut from a
    kilobyte, and a thousand of these at once take longer than all the rest.
    """
    if b"".join(values).translate(None, _ORDINARY):
        return b"", map(orjson.dumps, map(bytes.decode, values))
    return b'"', values


def _filler(hole: Placeholder) -> Column:
    read, default = _reader(hole), hole.default

    def fill(chunk: Chunk) -> list[bytes]:
        values = read(chunk)
        if set(map(type, values)) != {bytes}:
            for place, value in enumerate(values):
                if value is None and default is not None:
                    values[place] = default
                elif type(value) is not bytes:
                    values[place] = b""
                    chunk.fallback.add(place)
        texts: list[bytes] = values  # type: ignore[assignment] # by now
        if not all(map(bytes.isascii, texts)):
            _note_what_is_no_text(texts, chunk)
        return list(map(lowered, texts)) if hole.is_lowered else texts

    return fill


def _note_what_is_no_text(values: list[bytes], chunk: Chunk) -> None:
    for place, value in enumerate(values):
        try:
            value.decode()
        except UnicodeDecodeError:
            values[place] = b""
            chunk.fallback.add(place)


def _reader(hole: Placeholder) -> Read:
    field, style = hole.field, hole.format
    if field in SHORT_PROPERTIES:
        read_short = short_column(field)
        return lambda chunk: list(read_short(chunk.properties))
    if style and field != "now":
        return _one_by_one(hole)
    if field.startswith("header."):
        return _header_reader(field.removeprefix("header.").encode())
    if field.startswith("body."):
        return _body_reader(field.removeprefix("body.").split("."))
    if field == "now":
        return lambda chunk: [format_time(chunk.now, style)] * len(chunk.messages)
    if field == "routing_key":
        return lambda chunk: [message.routing_key for message in chunk.messages]
    if field == "exchange":
        return lambda chunk: [message.exchange for message in chunk.messages]
    return _one_by_one(hole)


def _header_reader(name: bytes) -> Read:
    read = header_column(name)

    def text(raw: bytes) -> bytes | Exception | None:
        try:
            value = properties.decode(raw)
            return value if value is None or isinstance(value, bytes) else text_of(value)
        except (properties.PropertiesError, RecursionError, orjson.JSONEncodeError) as error:
            return error

    return lambda chunk: [
        raw if raw is None or isinstance(raw, Exception)
        else raw[STRING_OVERHEAD:] if raw[0] == LONG_STRING
        else text(raw)
        for raw in read(chunk.properties)
    ]  # fmt: skip


def _body_reader(path: list[str]) -> Read:
    loads, find, has_no_metadata = orjson.loads, exact_json.find, METADATA.isdisjoint

    def read(chunk: Chunk) -> Values:
        values: Values = []
        add = values.append
        for message in chunk.messages:
            try:
                content = value = loads(message.body)
                for step in path:
                    value = value[step]
            except orjson.JSONDecodeError as error:  # there are bodies that only a slower look can read
                add(error)
                continue
            except (KeyError, TypeError):
                value = None
            if value is None:
                value = find(content, path)
            kind = type(value)
            if type(content) is dict and not has_no_metadata(content):
                add(TypeError())
            elif kind is str:
                add(value.encode())
            elif kind is int:
                add(b"%d" % value)
            else:
                add(None if value is None else TypeError())
        return values

    return read


def _one_by_one(hole: Placeholder) -> Read:
    def read(chunk: Chunk) -> Values:
        values: Values = []
        context: TemplateContext | None = None
        for place, message in enumerate(chunk.messages):
            if place in chunk.fallback:
                values.append(None)
                continue
            if context is None:
                context = TemplateContext(message, chunk.now)
            else:
                context.reset(message)
            try:
                value = hole.render(context)
                values.append(TypeError() if metadata_name(context.parsed) else value)
            except MissingFieldError:
                values.append(None)
            except (RefusedError, properties.PropertiesError) as error:
                values.append(error)
        return values

    return read
