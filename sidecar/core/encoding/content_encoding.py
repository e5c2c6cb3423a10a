"""What the body of a message says: its ``content_encoding`` undone, and text made a document.

What comes out of a compressed body is bounded: a kilobyte of it can stand for a megabyte. It is undone in small pieces,
and nothing goes on once the bound is reached. One stream is undone, and what follows it is no part of any document.
"""

from __future__ import annotations

import zlib
from codecs import BOM_UTF8
from typing import TYPE_CHECKING

import orjson

from sidecar.core.encoding.document import MAX_DOCUMENT_BYTES, RefusedError, not_utf8, too_large
from sidecar.core.wire.properties import short_reader

if TYPE_CHECKING:
    from sidecar.core.message import Message

TEXT_FIELD = "message"
_STEP_BYTES = 256 * 1024
_SHOWN_CHARACTERS = 64

_PLAIN = frozenset({b"", b"identity", b"utf-8", b"utf8", b"us-ascii", b"ascii", b"binary", b"8bit"})
"""Names of no compression. Some clients put the character set here (Spring AMQP and Celery say UTF-8)."""
_GZIP = frozenset({b"gzip", b"x-gzip"})
_DEFLATE = b"deflate"
_GZIP_WINDOW = 16 + zlib.MAX_WBITS
_read_encoding = short_reader("content_encoding")
_ZLIB_METHOD, _ZLIB_CHECK, _ZLIB_HEADER_BYTES = 8, 31, 2


def plain_body(message: Message, max_bytes: int) -> bytes:
    """Return the body of a message with its ``content_encoding`` undone: itself, where it has none.

    Args:
        message: whose body is wanted.
        max_bytes: more than that is not brought to light.

    Raises:
        PropertiesError: the properties are cut short.
        RefusedError: the encoding is unknown, the body is not in it, or holds more than `max_bytes`.
    """
    body = message.body
    encoding = _read_encoding(message.properties)
    if encoding is None:
        return body
    if is_plain(encoding):
        return body
    name = encoding.strip().lower()
    if name in _GZIP:
        return _inflated(body, _GZIP_WINDOW, "gzip", max_bytes)
    if name == _DEFLATE:
        return _inflated(body, _deflate_window(body), "deflate", max_bytes)
    shown = name.decode(errors="replace")[:_SHOWN_CHARACTERS]
    raise RefusedError("malformed", f"the content_encoding {shown!r} is unknown; gzip and deflate are undone")


def is_plain(encoding: bytes) -> bool:
    """Whether a ``content_encoding`` says that the body is what it is."""
    return encoding.strip().lower() in _PLAIN


def _deflate_window(body: bytes) -> int:
    """Return what to tell zlib: ``deflate`` means with zlib's header by the standard, and without it by custom."""
    header = body[:_ZLIB_HEADER_BYTES]
    whole = len(header) == _ZLIB_HEADER_BYTES and header[0] & 0x0F == _ZLIB_METHOD
    with_header = whole and int.from_bytes(header, "big") % _ZLIB_CHECK == 0
    return zlib.MAX_WBITS if with_header else -zlib.MAX_WBITS


def _inflated(body: bytes, window: int, name: str, max_bytes: int) -> bytes:
    decompressor = zlib.decompressobj(window)
    view = memoryview(body)
    parts: list[bytes] = []
    size = 0
    try:
        for at in range(0, len(view), _STEP_BYTES):
            data: bytes | memoryview = view[at : at + _STEP_BYTES]
            piece = b""
            # A full piece says that there is more to come, even where all of the input was taken.
            while (data or len(piece) == _STEP_BYTES) and not decompressor.eof:
                piece = decompressor.decompress(data, _STEP_BYTES)
                size += len(piece)
                if size > max_bytes:
                    raise RefusedError("too-large", f"what the {name} body holds is above {max_bytes:,} bytes")
                parts.append(piece)
                data = decompressor.unconsumed_tail
            if decompressor.eof:
                if decompressor.unused_data or at + _STEP_BYTES < len(view):
                    raise RefusedError("malformed", f"something follows the {name} data of the body")
                return b"".join(parts)
    except zlib.error:
        raise RefusedError("malformed", f"the body is not {name} data, as its content_encoding says") from None
    raise RefusedError("malformed", f"the {name} data of the body end too early")


def text_document(text: bytes) -> bytes:
    """Return text as a document: ``{"message": …}``, on one line. A byte order mark before it is left out.

    Raises:
        RefusedError: it is not UTF-8, or is larger than Elasticsearch takes.
    """
    text = text.removeprefix(BOM_UTF8)
    try:
        decoded = text.decode()
    except UnicodeDecodeError as error:
        raise not_utf8(error, text) from None
    document = orjson.dumps({TEXT_FIELD: decoded})
    if len(document) > MAX_DOCUMENT_BYTES:
        raise too_large(len(document))
    return document
