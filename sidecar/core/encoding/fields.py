"""Fields that are added to documents (``SIDECAR_FIELDS``): spliced into the bytes, never decoded and encoded again.

They go in behind the first ``{``: whatever follows there means the same as before, valid JSON or not. A document's own
value wins, and is nearly never looked for in earnest: a search for the name's bytes tells most documents without it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import orjson

from sidecar.core.encoding import document, exact_json
from sidecar.core.encoding.columns import as_json, column
from sidecar.core.encoding.document import json_string

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sidecar.core.encoding.columns import Chunk
    from sidecar.core.encoding.template import Template, TemplateContext

Rows = list[tuple[bytes, ...]]
"""Texts to add to each of several documents."""

_RESERVED = document.METADATA | {"_type", "_primary_term", "_size", "_tier", "_data_stream_timestamp", "_index_mode"}
"""Names that some Elasticsearch keeps for itself, by its version and plugins."""


_QUOTE, _BACKSLASH = b'"\\'
_EMPTY = re.compile(rb"\{(?:[ \t\r\n]|/\*(?:[^*]|\*(?!/))*\*/|//[^\r\n]*[\r\n])*\}").match


class FieldNameError(ValueError):
    """A field's name that can't be one; says why."""


class _Field(NamedTuple):
    """A field to add.

    Attributes:
        path: its name between the dots.
        owners: the names, in quotes, by one of which a document that has the field must begin the way to it.
        escaped: finds what may be one of those spelled with escapes.
        opening: its name with the colon, as JSON.
        template: its value.
    """

    path: list[str]
    owners: list[bytes]
    escaped: re.Pattern[bytes]
    opening: bytes
    template: Template


class Fields:
    """The fields that are added to each document.

    A value is a JSON string always; one that comes out empty adds no field.

    Args:
        templates: the value of each field, by its name. Dots in a name mean to Elasticsearch what they do in any
            document: the fields of an object.

    Attributes:
        names: of the fields, in order.

    Raises:
        FieldNameError: a name that Elasticsearch would refuse, or two of which one lies inside the other.
    """

    def __init__(self, templates: Mapping[str, Template]) -> None:
        for name in templates:
            _check(name, templates)
        self.names = tuple(templates)
        self._fields = [_field(name, template) for name, template in templates.items()]
        self._columns = [column(field.template) for field in self._fields]

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._fields)

    @property
    def templates(self) -> list[Template]:
        """Their values, in order."""
        return [field.template for field in self._fields]

    def rows(self, chunk: Chunk) -> Rows:
        """Return what is to be added to each document of a chunk, unless it has that: an empty text for an empty value.

        A message without such a value is odd.
        """
        columns = []
        for field, read in zip(self._fields, self._columns, strict=True):
            values = read(chunk)
            quote, texts = as_json(values)
            opening = field.opening + quote
            pairs = zip(values, texts, strict=True)
            columns.append([opening + text + quote if value else b"" for value, text in pairs])
        return list(zip(*columns, strict=True))

    def splice(self, line: bytes, row: tuple[bytes, ...]) -> bytes:
        """Return a document with what it has not of a row; `line` is the document, from { to }."""
        added = b""
        for text, (path, owners, escaped, _, _) in zip(row, self._fields):  # noqa: B905 - costs 0.2 µs
            if text and _lacks(line, path, owners, escaped):
                added = added + b"," + text if added else text
        return _spliced(line, added)

    def add(self, line: bytes, context: TemplateContext) -> bytes:
        """Return a document with the fields that it has not.

        Args:
            line: the document, from { to }.
            context: what the values come from.

        Raises:
            MissingFieldError: the message has no such value, and there is no default.
        """
        added = []
        for path, owners, escaped, opening, template in self._fields:
            if not _lacks(line, path, owners, escaped):
                continue
            value = template.render(context)
            if value:
                added.append(opening + json_string(value, "a field's value"))
        return _spliced(line, b",".join(added))


def _spliced(line: bytes, added: bytes) -> bytes:
    if not added:
        return line
    # `{}` may have spaces in it, and comments.
    comma = b"," if line[1] == _QUOTE or not _EMPTY(line) else b""
    return b"{" + added + comma + line[1:]


def _check(name: str, templates: Mapping[str, Template]) -> None:
    path = name.split(".")
    if not all(part.strip() for part in path):
        raise FieldNameError("a field's name is empty, or has an empty part between its dots")
    if path[0] in _RESERVED:
        raise FieldNameError(f"{name} is Elasticsearch's own; no document may have such a field")
    for end in range(1, len(path)):
        outer = ".".join(path[:end])
        if outer in templates:
            raise FieldNameError(f"{name} would lie inside of {outer}, which is a text")


def _field(name: str, template: Template) -> _Field:
    path = name.split(".")
    owners = [".".join(path[: end + 1]) for end in range(len(path))]
    # Any character may be spelled \u0041; some writers do so with all but ASCII, and hardly any with a letter.
    spelled = "|".join(sorted({f"{ord(unit):04x}" for unit in _utf16(name)}))
    shorthand = "|\\\\[^u]" if orjson.dumps(name) != b'"%s"' % name.encode() or "/" in name else ""
    return _Field(
        path,
        [orjson.dumps(owner) for owner in owners],
        re.compile(f"\\\\u(?:{spelled}){shorthand}".encode(), re.IGNORECASE),
        orjson.dumps(name) + b":",
        template,
    )


def _utf16(text: str) -> list[str]:
    """Return the 16-bit units of a text as characters: JSON escapes what is beyond them in two halves."""
    data = text.encode("utf-16-be", errors="surrogatepass")
    return [chr(int.from_bytes(data[at : at + 2], "big")) for at in range(0, len(data), 2)]


def _lacks(line: bytes, path: list[str], owners: list[bytes], escaped: re.Pattern[bytes]) -> bool:
    """Whether a document has no such field for certain; it is read only where the bytes of the name are in it."""
    for owner in owners:
        if line.find(owner) >= 0:  # twice as fast as `in`
            return _is_absent(line, path)
    return _BACKSLASH not in line or escaped.search(line) is None or _is_absent(line, path)


def _is_absent(line: bytes, path: list[str]) -> bool:
    """Whether a document, read, has no such field; what is not JSON is Elasticsearch's to refuse, as it is."""
    try:
        return not exact_json.has(exact_json.read(line), path)
    except exact_json.JsonError:
        return False
