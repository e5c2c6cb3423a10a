"""The action lines of a whole chunk of messages, joined from columns: the way of all that is ordinary."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import repeat
from typing import TYPE_CHECKING

from sidecar.core.encoding.columns import ORIGIN_FIELDS, Chunk, as_json, column
from sidecar.core.encoding.document import RefusedError, json_string
from sidecar.core.encoding.template import Template

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.core.encoding.columns import Column
    from sidecar.core.encoding.encoder import EncoderConfig
    from sidecar.core.message import Message

MAX_ID_BYTES = 512
CLOSING = b"}}\n"
_ZERO = ord("0")
_SURELY_A_VERSION = 18  # digits: one less than the greatest has
_Parameter = tuple[bytes, Iterable[bytes], bytes]
"""Of a line: its name, its value in each message, and what stands behind that."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SHOWN_CHARACTERS = 255  # Elasticsearch takes no longer name
_MAX_NAMES = 1024  # kept of indices; whoever has more pays for looking at them again


class IndexParameterCache:
    """What action lines say of their index. Most are of a few, each of which is looked at once.

    Args:
        encoder_config: which says what is allowed.
    """

    def __init__(self, encoder_config: EncoderConfig) -> None:
        self._allows = encoder_config.allows
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
            if len(self._known) >= _MAX_NAMES:
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
            chunk.fallback.update(place for place, index in enumerate(indexes) if not made[index])
        return [made[index] for index in indexes]


class ActionLineEncoder:
    """Makes the lines of chunks.

    Args:
        encoder_config: one that these `supports`.
        make_id: gives ids that nobody else has.
        names: of its indices.
    """

    def __init__(self, encoder_config: EncoderConfig, make_id: Callable[[], str], names: IndexParameterCache) -> None:
        self._names = names
        self._opening = b'{"%s":{' % (encoder_config.constant_action or "").encode()
        self._index = column(encoder_config.index) if encoder_config.path_index is None else None
        self._document_ids = _document_ids(encoder_config, make_id)
        options = (("routing", encoder_config.routing), ("pipeline", encoder_config.pipeline))
        self._options = [(b'"%s":' % name.encode(), column(template)) for name, template in options if template]
        self._version = column(encoder_config.version) if encoder_config.version is not None else None
        self._closing = (
            b',"version_type":"%s"' % encoder_config.version_type.encode() + CLOSING if self._version else CLOSING
        )
        reads = {field for template in encoder_config.templates for field in template.fields}
        self._needs_origin = bool(reads & ORIGIN_FIELDS) or encoder_config.id_mode == "generated"

    @staticmethod
    def supports(encoder_config: EncoderConfig) -> bool:
        """Whether all messages of a recipe are treated alike, each by itself."""
        action = encoder_config.constant_action
        return (
            (action == "index" or (action == "create" and encoder_config.version is None))
            and encoder_config.content == "json"
            and encoder_config.coalesce == "none"
            and not (encoder_config.splits or encoder_config.batch_flush_when or encoder_config.batch_complete_count)
        )

    def chunk(self, messages: list[Message], now: float) -> Chunk:
        """Return messages as a chunk; `now` is in seconds since 1970."""
        return Chunk(messages, now, needs_origin=self._needs_origin)

    def encode(self, chunk: Chunk) -> tuple[Iterable[bytes], Iterable[bytes | None]]:
        """Return line and key of each message; those of an odd one mean nothing."""
        indexes = self._index(chunk) if self._index is not None else None
        idents = self._document_ids(chunk)
        if indexes is None and not self._options and self._version is None:
            return self._with_ids(idents), _keys(None, idents)
        parameters: list[_Parameter] = []
        if indexes is not None:
            parameters.append((b"", self._names.parameters(indexes, chunk), b""))
        have_ids = _all_present(idents, chunk, needed=self._version is not None)
        if have_ids:
            parameters.append(_text(b'"_id":', idents))
        for opening, read in self._options:
            values = read(chunk)
            if _all_present(values, chunk):
                parameters.append(_text(opening, values))
        if self._version is not None:
            versions = self._version(chunk)
            chunk.fallback.update(place for place, version in enumerate(versions) if not _is_plain_version(version))
            parameters.append((b'"version":', versions, b""))
        return self._joined(parameters, len(chunk.messages)), _keys(indexes, idents if have_ids else None)

    def _with_ids(self, document_ids: list[bytes]) -> Iterable[bytes]:
        """Return lines with nothing but an id: those of most users."""
        name, texts, end = _text(self._opening + b'"_id":', document_ids)
        end += CLOSING
        if b"" not in document_ids:
            return [name + text + end for text in texts]
        anonymous = self._opening + CLOSING
        return [
            name + text + end if document_id else anonymous
            for document_id, text in zip(document_ids, texts, strict=True)
        ]

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


def _document_ids(encoder_config: EncoderConfig, make_id: Callable[[], str]) -> Column:
    """Return what finds or makes ids; they are empty where there are none."""
    if encoder_config.id_mode == "auto":
        return column(Template("{message_id|}"))
    if encoder_config.id_mode == "generated":
        return lambda chunk: [make_id().encode() for _ in chunk.messages]
    return (
        _checked(column(encoder_config.id))
        if encoder_config.id is not None
        else lambda chunk: [b""] * len(chunk.messages)
    )


def _checked(read: Column) -> Column:
    def idents(chunk: Chunk) -> list[bytes]:
        found = read(chunk)
        if b"" in found or len(max(found, key=len)) > MAX_ID_BYTES:
            chunk.fallback.update(
                place for place, document_id in enumerate(found) if not 0 < len(document_id) <= MAX_ID_BYTES
            )
        return found

    return idents


def _keys(indexes: list[bytes] | None, document_ids: list[bytes] | None) -> Iterable[bytes | None]:
    if document_ids is None:
        return repeat(None)
    if indexes is not None:
        return map(b"\0".join, zip(indexes, document_ids, strict=True))
    return [document_id or None for document_id in document_ids] if b"" in document_ids else document_ids


def _all_present(values: list[bytes], chunk: Chunk, *, needed: bool = False) -> bool:
    """Return whether most values are there; a message that differs in that, or lacks what is needed, is odd."""
    gaps = values.count(b"")
    if not gaps:
        return True
    are_there = needed or 2 * gaps < len(values)
    chunk.fallback.update(place for place, value in enumerate(values) if bool(value) is not are_there)
    return are_there


def _is_plain_version(text: bytes) -> bool:
    return text.isdigit() and len(text) <= _SURELY_A_VERSION and (text[0] != _ZERO or len(text) == 1)
