"""The syntax of `_bulk`: the bytes of a request, and the results in a response. The only module that knows it.

Items are answered in request order (elasticsearch#36441), so results belong to messages by position, strictly: a
response with another count than the request is an unknown outcome, never a guess.
"""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import orjson

from sidecar.core.results.responder import is_redirect, redirected

if TYPE_CHECKING:
    from collections.abc import Callable

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
_MAX_REASON_BYTES = 1024


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
        add(message.action_line)
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
        return "", str(error)
    reasons = []
    at: object = error
    while isinstance(at, dict):
        reason = at.get("reason")
        if isinstance(reason, str) and reason not in reasons:
            reasons.append(reason)
        at = at.get("caused_by")
    return str(error.get("type", "")), "; caused by: ".join(reasons)


MIN_RUN = 16
"""So many characters of a document in a row are a part of it; fewer may be anybody's words."""
_BLOCK = MIN_RUN // 2
_MAX_SEARCHED = 16 * 1024
_QUOTES = ("''", '""', "[]", "()")
_QUOTED = re.compile(  # what is opened and not closed reaches to the end
    r"'[^']*(?:'|$)|\"[^\"]*(?:\"|$)|\[[^\[\]]*(?:\]|$)|\([^()]*(?:\)|$)"
)
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
_LONG_NUMBER = re.compile(rf"-?\d[\d.eE+-]{{{MIN_RUN - 1},}}")
_ABBREVIATED = "..."
_BLANK = "…"
_CLOSING = frozenset("'\"])")


def redact(reason: str, document: bytes) -> str:
    """Return a reason without what it quotes from `document`, for headers and logs; at most 1 KiB.

    Elasticsearch quotes values ("Preview of field's value: …"), and a dead letter's headers and our log go where
    documents may not. What stands in quotes or brackets is kept only if it names something (``field [age]``) or is
    nowhere in the document. What stands in none is kept if less than `MIN_RUN` characters of it are a value's.

    Args:
        reason: of Elasticsearch, whole: a value of which only the beginning is left might not be found.
        document: what it may quote from; several of them, or what is not JSON, are searched as text.
    """
    source = _Source(document)

    def conceal(match: re.Match[str]) -> str:
        quoted = match.group()
        closed = len(quoted) > 1 and quoted[-1] in _CLOSING
        text = (quoted[1:-1] if closed else quoted[1:]).removesuffix(_ABBREVIATED)
        if _is_named(match) or not text or text == _BLANK or not source.has(text):
            return quoted
        return quoted[0] + _BLANK + (quoted[-1] if closed else "")

    # Whole values first: one may hold quotes itself, and would be taken for several quoted words.
    for value in source.values:
        if value in reason:
            reason = re.sub("|".join(re.escape(mark[0] + value + mark[1]) for mark in _QUOTES), conceal, reason)
    reason = _without_runs(_UNQUOTED.sub(rf"\1{_BLANK}", reason)[:_MAX_SEARCHED], source.text)
    return _QUOTED.sub(conceal, reason).encode()[:_MAX_REASON_BYTES].decode(errors="ignore")


def _is_named(match: re.Match[str]) -> bool:
    """Whether something quoted is a name, by the word before it."""
    return _NAMED.search(match.string, max(0, match.start() - 24), match.start()) is not None


def _without_runs(reason: str, text: str) -> str:
    """Return a reason without what is as long as `MIN_RUN`, and in `text` as well, unless that is a quoted name.

    Each such run holds one of the blocks that are looked for, and reaches from it as far as the text goes on alike.
    """
    runs: list[tuple[int, int]] = []
    start = 0
    while start + _BLOCK <= len(reason):
        end = start + _BLOCK
        if reason[start:end] in text:
            first, last = _run(reason, text, start, end)
            if last - first >= MIN_RUN:
                runs.append((first, last))
                end = max(end, last // _BLOCK * _BLOCK)
        start = end
    if not runs:
        return reason
    names = [match.span() for match in _QUOTED.finditer(reason) if _is_named(match)]
    parts, done = [], 0
    for first, last in runs:
        if not any(begin < first and last < close for begin, close in names):
            parts += [reason[done : max(first, done)], _BLANK]
            done = max(last, done)
    return "".join([*parts, reason[done:]])


def _run(reason: str, text: str, start: int, end: int) -> tuple[int, int]:
    """Return how far a reason is like a text before and behind a block that is in both."""
    ahead = _longest(len(reason) - end, lambda size: reason[start : end + size] in text)
    back = _longest(start, lambda size: reason[start - size : end] in text)
    return start - back, end + ahead


def _longest(limit: int, holds: Callable[[int], bool]) -> int:
    """Return the largest size up to `limit` for which something holds that holds for all smaller ones."""
    low, high = 0, 1
    while high <= limit and holds(high):
        low, high = high, high * 2
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


class _Source:
    """A document as reasons are compared with it.

    Args:
        document: as it was sent.
    """

    def __init__(self, document: bytes) -> None:
        self._document = document

    @cached_property
    def values(self) -> list[str]:
        """The strings among its values, the longest first; none when it isn't JSON."""
        found: set[str] = set()
        try:
            open_values = [orjson.loads(self._document)]
        except orjson.JSONDecodeError:
            return []
        while open_values:
            value = open_values.pop()
            if isinstance(value, dict):
                open_values += value.values()
            elif isinstance(value, list):
                open_values += value
            elif isinstance(value, str) and value:
                found.add(value)
        return sorted(found, key=len, reverse=True)

    @cached_property
    def text(self) -> str:
        """Its values in a row, or all of it when it isn't JSON."""
        if not self.values:
            return self._meant
        return "\0".join([*self.values, *_LONG_NUMBER.findall(self._document.decode(errors="replace"))])

    @cached_property
    def _meant(self) -> str:
        """All of it, without JSON's escapes."""
        written = self._document.decode(errors="replace")
        return _ESCAPES.sub(_unescape, written) if "\\" in written else written

    def has(self, text: str) -> bool:
        """Whether `text` occurs in it, as it is or written with JSON's escapes."""
        return text.encode() in self._document or (b"\\" in self._document and text in self._meant)


def _unescape(match: re.Match[str]) -> str:
    if match[1]:
        return bytes.fromhex(match[1].replace("\\u", "")).decode("utf-16-be", errors="replace")
    return {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}.get(match[2], match[2])
