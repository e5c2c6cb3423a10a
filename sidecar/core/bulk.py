"""The syntax of `_bulk`: the bytes of a request, and the results in a response. The only module that knows it.

Items are answered in request order (elasticsearch#36441), so results belong to messages by position, strictly: a
response with another count than the request is an unknown outcome, never a guess.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import orjson

from sidecar.core.responder import is_redirect, redirected

if TYPE_CHECKING:
    from sidecar.core.message import Message

FILTER_PATH = "errors,items.*.status,items.*.error,items.*.failure_store"
"""What is asked back. Without ``items.*.status`` the successful items vanish, and the positions with them."""

PARAMETERS = f"filter_path={FILTER_PATH}&include_source_on_error=false"
CONTENT_TYPE = "application/vnd.elasticsearch+x-ndjson; compatible-with=8"
ACCEPT = "application/vnd.elasticsearch+json; compatible-with=8"
"""Headers that servers 8 and 9 both take; a plain version 9 header is refused by version 8."""

STORED_STATUSES = frozenset({200, 201})

_ALL_WELL = re.compile(rb'\{"errors":\s*false\b')
_STORED = b'"status":20'  # 200 or 201; a delete of nothing is a 404, and no error
_WHOLE = b"]}"
_MAX_REASON_CHARACTERS = 1024


class Result(NamedTuple):
    """What Elasticsearch says of one item.

    Attributes:
        status: as of HTTP; 0 when the item has none.
        error_type: empty on success.
        reason: with that of ``caused_by``; it may quote the document.
        failure_store: the document went to the data stream's failure store, not into the data stream. (Other values of
            Elasticsearch's field are about documents that it stored nowhere: ``not_enabled``, ``failed``.)
    """

    status: int
    error_type: str = ""
    reason: str = ""
    failure_store: bool = False


class Fault(NamedTuple):
    """What Elasticsearch says of a whole request that it refused, or one that is not Elasticsearch's answer."""

    status: int
    error_type: str
    reason: str

    def __str__(self) -> str:
        """Return it for people."""
        if self.error_type:
            return f"{self.status} {self.error_type}: {self.reason}"
        return self.reason if is_redirect(self.status) else f"Elasticsearch answered {self.status}: {self.reason}"


def path(index: str | None) -> str:
    """Return the path and query to send to: of one index where all items go there, otherwise the action lines say."""
    prefix = f"/{quote(index, safe='')}" if index is not None else ""
    return f"{prefix}/_bulk?{PARAMETERS}"


def body(messages: list[Message]) -> bytes:
    """Return the body of a request, in the order of `messages`."""
    parts: list[bytes] = []
    add = parts.append
    for message in messages:
        add(message.line)
        source = message.source
        if source is not None:
            add(source)
            add(b"\n")
    return b"".join(parts)


def all_stored(answer: bytes, count: int) -> bool:
    """Whether `answer` says of each of `count` items that it was stored, without parsing it.

    Only a success is told this way; a no means no more than that `results` has to look. An answer that is cut is none:
    where only the end of the connection ends it, nothing else tells.
    """
    return (
        _ALL_WELL.match(answer) is not None
        and answer.endswith(_WHOLE)
        and answer.count(_STORED) == count
        and b"failure_store" not in answer
    )


def results(answer: bytes, count: int) -> list[Result] | None:
    """Return the result of each item by position, or None when `answer` doesn't answer `count` items."""
    try:
        items = _parse(answer)["items"]
        if len(items) != count:
            return None
        return [_result(item) for item in items]
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
        return None


def _parse(answer: bytes) -> Any:  # noqa: ANN401 - its callers look at what it is
    """Return an answer decoded; a reason may quote half a surrogate pair of a document, which orjson refuses."""
    try:
        return orjson.loads(answer)
    except orjson.JSONDecodeError:
        return orjson.loads(json.dumps(json.loads(answer), ensure_ascii=False).encode(errors="replace"))


def _result(item: dict[str, dict[str, object]]) -> Result:
    (outcome,) = item.values()
    status = outcome["status"]
    if not isinstance(status, int):
        raise TypeError("a status that is no number")
    error = outcome.get("error")
    store = outcome.get("failure_store") == "used"
    if error is None:
        return Result(status, failure_store=store)
    kind, reason = _explain(error)
    return Result(status, kind, reason, store)


def fault(status: int, answer: bytes, location: str = "") -> Fault:
    """Return what a refused request was refused for; `error_type` is empty when that isn't Elasticsearch speaking.

    Args:
        status: of HTTP.
        answer: the body.
        location: where a redirect points.
    """
    if is_redirect(status):
        return Fault(status, "", str(redirected(status, location)))
    try:
        error = _parse(answer)["error"]
        kind, reason = _explain(error)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
        return Fault(status, "", "the answer is not one of Elasticsearch's")
    return Fault(status, kind, reason)


def _explain(error: object) -> tuple[str, str]:
    if not isinstance(error, dict):
        return "", str(error)[:_MAX_REASON_CHARACTERS]
    reasons = []
    at: object = error
    while isinstance(at, dict):
        reason = at.get("reason")
        if isinstance(reason, str) and reason not in reasons:
            reasons.append(reason)
        at = at.get("caused_by")
    return str(error.get("type", "")), "; caused by: ".join(reasons)


_QUOTES = ("''", '""', "[]", "()")
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|\[[^\[\]]*\]|\([^()]*\)")
_UNQUOTED = re.compile(
    r"(Preview of field's value: |For input string: |Current token |Unrecognized token |Cannot deserialize value |"
    r"The prefix of the first immense term is: ).*?(?=; caused by: |, original message: |$)",
    re.DOTALL,
)
_NAMED = re.compile(  # a date field is not named by what follows, but quoted
    r"(?<!\bdate )\b(?:fields?|field name|of type|from type|types|index|id|pipeline|alias|data stream|path|with format|"
    r"mapping for|mapper|introduction of)[ =]$"
)
_ESCAPES = re.compile(r"((?:\\u[0-9a-fA-F]{4})+)|\\(.)", re.DOTALL)
_ABBREVIATED = "..."
_BLANK = "…"


def blank(reason: str, document: bytes) -> str:
    """Return a reason without what it quotes from `document`, for headers and logs; at most 1 KiB.

    Elasticsearch quotes values ("Preview of field's value: …"), and a dead letter's headers and our log go where
    documents may not. What stands in quotes or brackets is kept only if it names something (``field [age]``) or is
    nowhere in the document.
    """

    def conceal(match: re.Match[str]) -> str:
        quoted = match.group()
        text = quoted[1:-1].removesuffix(_ABBREVIATED)
        named = _NAMED.search(match.string, max(0, match.start() - 24), match.start()) is not None
        return quoted if named or not text or not _occurs(text, document) else quoted[0] + _BLANK + quoted[-1]

    # Whole values first: one may hold quotes itself, and would be taken for several quoted words.
    for value in _texts(document):
        if value in reason:
            reason = re.sub("|".join(re.escape(mark[0] + value + mark[1]) for mark in _QUOTES), conceal, reason)
    reason = _QUOTED.sub(conceal, _UNQUOTED.sub(rf"\1{_BLANK}", reason))
    return reason.encode()[:_MAX_REASON_CHARACTERS].decode(errors="ignore")


def _texts(document: bytes) -> list[str]:
    """Return the strings among the values of a document, the longest first; none when it isn't JSON."""
    texts: set[str] = set()
    try:
        open_values = [orjson.loads(document)]
    except orjson.JSONDecodeError:
        return []
    while open_values:
        value = open_values.pop()
        if isinstance(value, dict):
            open_values += value.values()
        elif isinstance(value, list):
            open_values += value
        elif isinstance(value, str) and value:
            texts.add(value)
    return sorted(texts, key=len, reverse=True)


def _occurs(text: str, document: bytes) -> bool:
    """Whether `text` occurs in `document`, as it is or written with JSON's escapes."""
    if text.encode() in document:
        return True
    return b"\\" in document and text in _ESCAPES.sub(_unescape, document.decode(errors="replace"))


def _unescape(match: re.Match[str]) -> str:
    if match[1]:
        return bytes.fromhex(match[1].replace("\\u", "")).decode("utf-16-be", errors="replace")
    return {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}.get(match[2], match[2])
