"""The body of a message as a line of a bulk request: what could break the lines is looked for, and no more.

What only concerns the document itself is Elasticsearch's to say, of that item alone.
"""

from __future__ import annotations

from codecs import BOM_UTF8

import orjson

from sidecar.core.encoding import exact_json

MAX_DOCUMENT_BYTES = 100 * 1024 * 1024
"""What Elasticsearch takes by default (``http.max_content_length``) as the body of a whole request."""

METADATA = frozenset(
    ("_id", "_index", "_routing", "_source", "_version", "_seq_no", "_field_names", "_ignored", "_nested_path")
)
"""Metadata fields: every Elasticsearch refuses them at the top level of a document."""

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
    return RefusedError("malformed", exact_json.not_utf8(body, error))


def not_text(what: str) -> RefusedError:
    """Return the refusal of a message of which `what` is no text."""
    return RefusedError("malformed", f"{what} is not UTF-8")


def document(body: bytes) -> bytes:
    """Return `body` as one line that holds one JSON object, or refuse it.

    White space, comments and a byte order mark around it are left out.

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
    body = body.removeprefix(BOM_UTF8).strip(SPACE)
    if len(body) > MAX_DOCUMENT_BYTES:
        raise too_large(len(body))
    if not body:
        raise RefusedError("malformed", "the body is empty")
    if exact_json.is_wide(body):
        raise RefusedError("malformed", "the body looks like UTF-16 or UTF-32; it must be UTF-8")
    if body[:1] != b"{" or body[-1:] != b"}":
        body = exact_json.uncommented(body)  # Elasticsearch reads over comments
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
    return _strict(body, "the body has line breaks and").replace(b"\n", b" ")


def _strict(body: bytes, what: str) -> bytes:
    """Return `body` as JSON in the strict sense, so without comments.

    Args:
        body: a document.
        what: begins the reason of a refusal.

    Raises:
        RefusedError: it is none.
    """
    position = exact_json.error_at(body)
    if position is not None:
        plain = exact_json.uncommented(body)
        if plain is not body:
            body, position = plain, exact_json.error_at(plain)
    if position is not None:
        raise RefusedError("malformed", f"{what} is not valid JSON: at byte {position}")
    return body


def fragment(body: bytes) -> bytes:
    """Return `body` as one line that holds one JSON object and nothing beside it, or refuse it.

    It becomes the value of a field (``doc``) of its action: what merely begins with { and ends with } could close that
    field, and go on with neighbours of its own.

    Raises:
        RefusedError: it is none.
    """
    return _strict(document(body), "the body")


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


def metadata_name(content: object) -> str:
    """Return a name of a document that Elasticsearch refuses inside of it; empty if there is none.

    It also refuses names that begin with one and a dot, which nobody has: its answer says so.
    """
    if not isinstance(content, dict) or METADATA.isdisjoint(content):
        return ""
    return min(METADATA.intersection(content))


def has_metadata(name: str) -> RefusedError:
    """Return the refusal of a document with such a name."""
    what = f"the document has the field {name}, which Elasticsearch refuses inside a document"
    return RefusedError("malformed", f"{what}: give it another name, or leave it out (SIDECAR_TRANSFORM)")
