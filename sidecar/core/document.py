"""The body of a message as a line of a bulk request: what could break the lines is looked for, and no more.

What only concerns the document itself is Elasticsearch's to say, of that item alone.
"""

from __future__ import annotations

import json

import orjson

from sidecar.core.spelling import no_constant

MAX_DOCUMENT_BYTES = 100 * 1024 * 1024
"""What Elasticsearch takes by default (``http.max_content_length``) as the body of a whole request."""

LINE_BREAK = 10  # as a number: `in` looks for bytes four times slower
SPACE = b" \t\r\n"

_BRACE, _END_BRACE = b"{}"


class RefusedError(Exception):
    """A message that never becomes part of a request.

    Attributes:
        reason: as in the dead letter's header ``sidecar-reason``.
        detail: a sentence for people, without document text.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def too_large(size_bytes: int) -> RefusedError:
    """Return the refusal of a document of that size."""
    detail = f"the document has {size_bytes} bytes; Elasticsearch takes {MAX_DOCUMENT_BYTES}"
    return RefusedError("too-large", detail)


def not_utf8(error: UnicodeDecodeError, body: bytes) -> RefusedError:
    """Return the refusal of a body that is no text."""
    return RefusedError("malformed", f"the body is not UTF-8: byte {error.start} of {len(body)}")


def not_text(what: str) -> RefusedError:
    """Return the refusal of a message of which `what` is no text."""
    return RefusedError("malformed", f"{what} is not UTF-8")


def document(body: bytes) -> bytes:
    """Return `body` as one line that holds one JSON object, or refuse it.

    Raises:
        RefusedError: it is none, or Elasticsearch wouldn't take one of this size.
    """
    if (
        body
        and body[0] == _BRACE
        and body[-1] == _END_BRACE
        and LINE_BREAK not in body
        and body.isascii()
        and len(body) <= MAX_DOCUMENT_BYTES
    ):
        return body  # as most are: all of the look in C
    body = body.strip(SPACE)
    if len(body) > MAX_DOCUMENT_BYTES:
        raise too_large(len(body))
    if not body:
        raise RefusedError("malformed", "the body is empty")
    if body[:1] != b"{" or body[-1:] != b"}":
        raise RefusedError("malformed", "the body is not a JSON object: it doesn't begin with { and end with }")
    if not body.isascii():
        try:
            body.decode()
        except UnicodeDecodeError as error:
            raise not_utf8(error, body) from None
    if LINE_BREAK not in body:
        return body
    # A line break ends a bulk line. In valid JSON it can only stand between tokens, where a space means the same.
    position = _json_error(body)
    if position is not None:
        raise RefusedError("malformed", f"the body has line breaks and is not valid JSON: at byte {position}")
    return body.replace(b"\n", b" ")


def _json_error(body: bytes) -> int | None:
    """Return where `body` stops being one JSON value, or None when it is one."""
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError:
        # orjson refuses some JSON that Elasticsearch takes (lone surrogates, huge numbers): the slower one decides.
        try:
            json.loads(body, parse_constant=no_constant)
        except json.JSONDecodeError as error:
            return len(error.doc[: error.pos].encode(errors="replace"))
        except (ValueError, RecursionError):
            return 0
    return None


def fragment(body: bytes) -> bytes:
    """Return `body` as one line that holds one JSON object and nothing beside it, or refuse it.

    It becomes the value of a field (``doc``) of its action: what merely begins with { and ends with } could close that
    field, and go on with neighbours of its own.

    Raises:
        RefusedError: it is none.
    """
    line = document(body)
    position = _json_error(line)
    if position is not None:
        raise RefusedError("malformed", f"the body is not valid JSON: at byte {position}")
    return line


def json_string(data: bytes, what: str) -> bytes:
    """Return text from a message as a JSON string: data, whatever bytes it holds.

    Args:
        data: the text.
        what: names it for people.

    Raises:
        RefusedError: it is not UTF-8.
    """
    try:
        return orjson.dumps(data.decode())
    except UnicodeDecodeError:
        raise not_text(what) from None
