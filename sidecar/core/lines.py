"""The action lines of a whole chunk of messages, joined from columns: the way of all that is ordinary."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import repeat
from typing import TYPE_CHECKING

from sidecar.core.columns import LOOKING_BACK, Chunk, as_json, column
from sidecar.core.document import RefusedError, json_string
from sidecar.core.template import Template

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.core.columns import Column
    from sidecar.core.compose import Recipe
    from sidecar.core.message import Message

MAX_ID_BYTES = 512
CLOSING = b"}}\n"
_ZERO = ord("0")
_SURELY_A_VERSION = 18  # digits: one less than the greatest has
_Parameter = tuple[bytes, Iterable[bytes], bytes]
"""Of a line: its name, its value in each message, and what stands behind that."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SHOWN_CHARACTERS = 255  # Elasticsearch takes no longer name
_MOST_NAMES = 1024  # kept of indices; whoever has more pays for looking at them again


class IndexNames:
    """What action lines say of their index. Most are of a few, each of which is looked at once.

    Args:
        recipe: which says what is allowed.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._allows = recipe.allows
        self._known: dict[bytes, bytes] = {}

    def parameter(self, index: bytes) -> bytes:
        """Return what a line says of an index.

        Raises:
            RefusedError: documents must not go there.
        """
        parameter = self._known.get(index)
        if parameter is None:
            name = index.decode()
            if not self._allows(name) or _CONTROL.search(name):
                shown = name[:_SHOWN_CHARACTERS]
                raise RefusedError("index-not-allowed", f"the index {shown!r} is outside of SIDECAR_INDEX_ALLOW")
            if len(self._known) >= _MOST_NAMES:
                self._known.clear()
            parameter = self._known[index] = b'"_index":' + json_string(index, "the index's name")
        return parameter

    def parameters(self, indexes: list[bytes], chunk: Chunk) -> list[bytes]:
        """Return that of each message of a chunk; those that are refused are odd."""
        made = {}
        for index in set(indexes):
            try:
                made[index] = self._known.get(index) or self.parameter(index)
            except RefusedError:
                made[index] = b""
        if b"" in made.values():
            chunk.odd.update(place for place, index in enumerate(indexes) if not made[index])
        return [made[index] for index in indexes]


class Lines:
    """Makes the lines of chunks.

    Args:
        recipe: one that these `suit`.
        make_id: gives ids that nobody else has.
        names: of its indices.
    """

    def __init__(self, recipe: Recipe, make_id: Callable[[], str], names: IndexNames) -> None:
        self._names = names
        self._opening = b'{"%s":{' % (recipe.constant_action or "").encode()
        self._index = column(recipe.index) if recipe.path_index is None else None
        self._idents = _idents(recipe, make_id)
        options = (("routing", recipe.routing), ("pipeline", recipe.pipeline))
        self._options = [(b'"%s":' % name.encode(), column(template)) for name, template in options if template]
        self._version = column(recipe.version) if recipe.version is not None else None
        self._closing = b',"version_type":"%s"' % recipe.version_type.encode() + CLOSING if self._version else CLOSING
        reads = {field for template in recipe.templates for field in template.fields}
        self._looks_back = bool(reads & LOOKING_BACK) or recipe.id_mode == "generated"

    @staticmethod
    def suit(recipe: Recipe) -> bool:
        """Whether all messages of a recipe are treated alike, each by itself."""
        action = recipe.constant_action
        return (
            (action == "index" or (action == "create" and recipe.version is None))
            and recipe.content == "json"
            and recipe.coalesce == "none"
            and not (recipe.has_parts or recipe.batch_flush_when or recipe.batch_complete_count)
        )

    def chunk(self, messages: list[Message], now: float) -> Chunk:
        """Return messages as a chunk; `now` is in seconds since 1970."""
        return Chunk(messages, now, looks_back=self._looks_back)

    def make(self, chunk: Chunk) -> tuple[Iterable[bytes], Iterable[bytes | None]]:
        """Return line and key of each message; those of an odd one mean nothing."""
        indexes = self._index(chunk) if self._index is not None else None
        idents = self._idents(chunk)
        if indexes is None and not self._options and self._version is None:
            return self._with_ids(idents), _keys(None, idents)
        parameters: list[_Parameter] = []
        if indexes is not None:
            parameters.append((b"", self._names.parameters(indexes, chunk), b""))
        have_ids = _are_there(idents, chunk, needed=self._version is not None)
        if have_ids:
            parameters.append(_text(b'"_id":', idents))
        for opening, read in self._options:
            values = read(chunk)
            if _are_there(values, chunk):
                parameters.append(_text(opening, values))
        if self._version is not None:
            versions = self._version(chunk)
            chunk.odd.update(place for place, version in enumerate(versions) if not _is_plain_version(version))
            parameters.append((b'"version":', versions, b""))
        return self._joined(parameters, len(chunk.messages)), _keys(indexes, idents if have_ids else None)

    def _with_ids(self, idents: list[bytes]) -> Iterable[bytes]:
        """Return lines with nothing but an id: those of most users."""
        name, texts, end = _text(self._opening + b'"_id":', idents)
        end += CLOSING
        if b"" not in idents:
            return [name + text + end for text in texts]
        anonymous = self._opening + CLOSING
        return [name + text + end if ident else anonymous for ident, text in zip(idents, texts, strict=True)]

    def _joined(self, parameters: list[_Parameter], count: int) -> Iterable[bytes]:
        if not parameters:
            return [self._opening + CLOSING] * count
        columns: list[Iterable[bytes]] = []
        between = self._opening
        for name, values, end in parameters:
            columns += repeat(between + name, count), values
            between = end + b","
        return map(b"".join, zip(*columns, repeat(end + self._closing, count), strict=True))


def _text(name: bytes, values: list[bytes]) -> _Parameter:
    quote, texts = as_json(values)
    return name + quote, texts, quote


def _idents(recipe: Recipe, make_id: Callable[[], str]) -> Column:
    """Return what finds or makes ids; they are empty where there are none."""
    if recipe.id_mode == "auto":
        return column(Template("{message_id|}"))
    if recipe.id_mode == "generated":
        return lambda chunk: [make_id().encode() for _ in chunk.messages]
    return _checked(column(recipe.id)) if recipe.id is not None else lambda chunk: [b""] * len(chunk.messages)


def _checked(read: Column) -> Column:
    def idents(chunk: Chunk) -> list[bytes]:
        found = read(chunk)
        if b"" in found or len(max(found, key=len)) > MAX_ID_BYTES:
            chunk.odd.update(place for place, ident in enumerate(found) if not 0 < len(ident) <= MAX_ID_BYTES)
        return found

    return idents


def _keys(indexes: list[bytes] | None, idents: list[bytes] | None) -> Iterable[bytes | None]:
    if idents is None:
        return repeat(None)
    if indexes is not None:
        return map(b"\0".join, zip(indexes, idents, strict=True))
    return [ident or None for ident in idents] if b"" in idents else idents


def _are_there(values: list[bytes], chunk: Chunk, *, needed: bool = False) -> bool:
    """Return whether most values are there; a message that differs in that, or lacks what is needed, is odd."""
    gaps = values.count(b"")
    if not gaps:
        return True
    are_there = needed or 2 * gaps < len(values)
    chunk.odd.update(place for place, value in enumerate(values) if bool(value) is not are_there)
    return are_there


def _is_plain_version(text: bytes) -> bool:
    return text.isdigit() and len(text) <= _SURELY_A_VERSION and (text[0] != _ZERO or len(text) == 1)
