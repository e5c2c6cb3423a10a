"""From a message to the bytes that it takes in a bulk request, or to the reason why it never gets into one.

Encoding on admission: sizes are exact, what can't be sent never gets in, and a retry is a selection and a join.
The body goes in as the bytes that it is. What could break the request's lines, or smuggle in an action of its own, is
looked for here, and no more: what only concerns the document itself is Elasticsearch's to say, of that item alone.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import orjson

from sidecar.core.properties import PropertiesError, short_reader

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sidecar.core.message import Message

MAX_ID_BYTES = 512
MAX_DOCUMENT_BYTES = 100 * 1024 * 1024
"""What Elasticsearch takes: an id, and (by default, ``http.max_content_length``) the body of a whole request."""

_PLAIN_ID = re.compile(rb"[ !#-\[\]-~]+").fullmatch  # printable ASCII that JSON doesn't escape
_SPACE = b" \t\r\n"
_BRACE, _END_BRACE = b"{}"
_LINE_BREAK = 10  # as a number: `in` looks for bytes four times slower
_CLOSING = b'"}}\n'


class Reject(NamedTuple):
    """Why a message never becomes part of a request.

    Attributes:
        reason: as in the dead letter's header ``sidecar-reason``.
        detail: a sentence for people, without document text.
    """

    message: Message
    reason: str
    detail: str


class _RefusedError(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class Composer:
    """Makes action line, source and key of messages for one index.

    Args:
        action: ``index`` or ``create``.
        with_message_id: take the document's id from the property ``message_id`` where there is one.
    """

    def __init__(self, action: str, *, with_message_id: bool) -> None:
        self._action = action
        self._read_id = short_reader("message_id") if with_message_id else None
        self._anonymous = b'{"%s":{}}\n' % action.encode()
        self._opening = b'{"%s":{"_id":"' % action.encode()

    def compose(self, messages: Iterable[Message]) -> tuple[list[Message], list[Reject]]:
        """Fill in `line`, `source` and `key`; return the messages that can be sent, and the others with reasons."""
        composed: list[Message] = []
        rejects: list[Reject] = []
        add, opening, anonymous, read_id = composed.append, self._opening, self._anonymous, self._read_id
        for message in messages:
            body = message.body
            try:
                ident = read_id(message.properties) if read_id is not None else None
                if not ident:
                    message.line = anonymous
                elif _PLAIN_ID(ident):
                    message.key = ident
                    message.line = opening + ident + _CLOSING
                else:
                    message.key = ident
                    message.line = opening[:-1] + json_string(ident) + _CLOSING[1:]
                # The cheap look, all of it in C: a plain document passes without a single call of ours.
                if (
                    not body
                    or body[0] != _BRACE
                    or body[-1] != _END_BRACE
                    or _LINE_BREAK in body
                    or not body.isascii()
                    or len(body) > MAX_DOCUMENT_BYTES
                ):
                    message.source = document(body)
            except _RefusedError as refused:
                rejects.append(Reject(message, refused.reason, refused.detail))
                continue
            except PropertiesError as error:
                rejects.append(Reject(message, "malformed", str(error)))
                continue
            add(message)
        return composed, rejects


def document(body: bytes) -> bytes:
    """Return `body` as one line that holds one JSON object, or refuse it.

    Raises:
        _RefusedError: it is none, or Elasticsearch wouldn't take one of this size.
    """
    body = body.strip(_SPACE)
    if len(body) > MAX_DOCUMENT_BYTES:
        detail = f"the document has {len(body)} bytes; Elasticsearch takes {MAX_DOCUMENT_BYTES}"
        raise _RefusedError("too-large", detail)
    if not body:
        raise _RefusedError("malformed", "the body is empty")
    if body[:1] != b"{" or body[-1:] != b"}":
        raise _RefusedError("malformed", "the body is not a JSON object: it doesn't begin with { and end with }")
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise _RefusedError("malformed", f"the body is not UTF-8: byte {error.start} of {len(body)}") from None
    if _LINE_BREAK not in body:
        return body
    # A line break ends a bulk line. In valid JSON it can only stand between tokens, where a space means the same.
    position = _json_error(body)
    if position is not None:
        raise _RefusedError("malformed", f"the body has line breaks and is not valid JSON: at byte {position}")
    return body.replace(b"\n", b" ")


def _json_error(body: bytes) -> int | None:
    """Return where `body` stops being one JSON value, or None when it is one."""
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError:
        # orjson refuses some JSON that Elasticsearch takes (lone surrogates, huge numbers): the slower one decides.
        try:
            json.loads(body, parse_constant=_no_constant)
        except json.JSONDecodeError as error:
            return len(error.doc[: error.pos].encode(errors="replace"))
        except (ValueError, RecursionError):
            return 0
    return None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def json_string(data: bytes) -> bytes:
    """Return text from a message as a JSON string: data, whatever bytes it holds.

    Raises:
        _RefusedError: it is not UTF-8, or longer than an id may be.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise _RefusedError("malformed", "message_id is not UTF-8") from None
    if len(data) > MAX_ID_BYTES:
        raise _RefusedError("malformed", f"the id has {len(data)} bytes; Elasticsearch takes {MAX_ID_BYTES}")
    return orjson.dumps(text)
