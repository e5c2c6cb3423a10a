"""Several documents in one message (``SIDECAR_SPLIT``): its body in pieces, and one settlement for all of them.

Each document is a message of its own on the way to Elasticsearch, with an item and a verdict of its own. The delivery
is settled when the last of them is decided: acked when all are stored, otherwise dead-lettered whole, with the list of
those at fault; the good ones stay stored.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from itertools import islice
from typing import TYPE_CHECKING, Literal

from sidecar.core.encoding import exact_json
from sidecar.core.encoding.document import SPACE, RefusedError
from sidecar.core.encoding.exact_json import JsonError, skip_space
from sidecar.core.message import Message

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sidecar.core.wire.republish import Failure

Mode = Literal["none", "array", "lines"]

PART_BYTES = 512
"""What a document takes of the memory limit beside its bytes: the objects that it needs."""
_DETAIL_CHARACTERS = 1024
_LISTED_ITEMS = 100


def split(message: Message, body: bytes, mode: Mode, max_bytes: int) -> list[Message]:
    """Return a message for each document of `body`, in order.

    Args:
        message: whose body it is.
        body: with its ``content_encoding`` undone.
        mode: ``array``: the elements of a JSON array; ``lines``: each line that isn't blank.
        max_bytes: what the documents' objects may take.

    Raises:
        RefusedError: the body is no such thing, holds no document, or too many.
    """
    body = body.removeprefix(BOM_UTF8)
    max_parts = max_bytes // PART_BYTES
    bodies = _elements(body, max_parts) if mode == "array" else list(islice(_lines(body), max_parts + 1))
    if len(bodies) > max_parts:
        raise RefusedError("too-large", f"the message holds more than {max_parts:,} documents")
    if not bodies:
        raise RefusedError("malformed", "the message holds no document")
    parts = SplitMessage(message, len(bodies))
    return [parts.part(item, piece) for item, piece in enumerate(bodies)]


def _lines(body: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(body):
        end = body.find(b"\n", at)
        end = end if end >= 0 else len(body)
        line = body[at:end].strip(SPACE)
        if line:
            yield line
        at = end + 1


def _elements(body: bytes, max_parts: int) -> list[bytes]:
    """Return the elements of a JSON array, as they are spelled: `max_parts` of them, and one more if there are more."""
    try:
        text = exact_json.decoded(body.strip(SPACE))
        try:
            return list(islice(_cut(text, text), max_parts + 1))
        except JsonError:
            blank = exact_json.without_comments(text)
            if blank is text:
                raise
            array = slice(skip_space(blank, 0), len(blank.rstrip(SPACE.decode())))
            return list(islice(_cut(text[array], blank[array]), max_parts + 1))
    except JsonError as error:
        raise RefusedError("malformed", error.why) from None


def _cut(text: str, read: str) -> Iterator[bytes]:
    """Yield the elements of an array.

    Args:
        text: the source of the elements, from [ to ].
        read: the same text, with comments replaced by white space.

    Raises:
        JsonError: it is not an array.
    """
    if read[:1] != "[" or read[-1:] != "]":
        raise JsonError("the body is not a JSON array: it doesn't begin with [ and end with ]")
    at, end = skip_space(read, 1), len(read) - 1
    while at < end:
        _, after = exact_json.value(read, at)
        if after > end:
            raise exact_json.error_in(read, at)
        yield text[at:after].encode()
        at = skip_space(read, after)
        if at == end:
            return
        if read[at] != ",":
            raise exact_json.error_in(read, at)
        at = skip_space(read, at + 1)
        if at == end:
            raise exact_json.error_in(read, at)
    if at != end:
        raise exact_json.error_in(read, at)


class SplitMessage:
    """The documents of one message: what became of each, and what that means for the message.

    Args:
        message: as it was delivered.
        count: of its documents.
    """

    __slots__ = ("_delayed", "_faults", "_memory_bytes", "_open", "count", "message")

    def __init__(self, message: Message, count: int) -> None:
        self.message = message
        self.count = count
        self._open = count
        self._memory_bytes = 0
        self._faults: list[tuple[int, Failure]] = []
        self._delayed: list[Failure] = []

    def part(self, item: int, body: bytes) -> Message:
        """Return the message that stands for a document.

        Args:
            item: its place, from 0.
            body: its bytes.
        """
        whole = self.message
        part = Message(whole.ledger, whole.tag, whole.redelivered, whole.route, whole.properties, body, 0)
        part.split, part.split_index = self, item
        part.ledger.charge_memory(part, PART_BYTES + len(body))
        return part

    def on_stored(self, part: Message) -> bool:
        """Note that a document is stored; return whether all are decided."""
        self._memory_bytes += part.memory_bytes
        self._open -= 1
        return not self._open

    def on_rejected(self, failure: Failure) -> bool:
        """Note that a document can't be stored; return whether all are decided."""
        self._faults.append((failure.message.split_index, failure))
        return self.on_stored(failure.message)

    def on_delayed(self, failure: Failure) -> bool:
        """Note that a document can't be stored now; return whether all are decided."""
        self._delayed.append(failure)
        return self.on_stored(failure.message)

    def reopen(self) -> list[Message]:
        """Undo the delay of the message, because the delay queue refused it; return the documents to retry."""
        parts = [failure.message for failure in self._delayed]
        self.message.memory_bytes -= sum(part.memory_bytes for part in parts)  # until they are decided again
        self._open = len(parts)
        self._delayed = []
        return parts

    def outcome(self) -> Failure | None:
        """Return what is to be done with the message when all are decided: None for an ack.

        One that can't be stored now takes the whole message round by the delay queue: its neighbours have ids, and are
        written again with the same content.
        """
        message = self.message
        message.memory_bytes += self._memory_bytes  # what was held for the documents goes with it
        self._memory_bytes = 0
        if self._delayed:
            longest = max(self._delayed, key=lambda failure: failure.delay_milliseconds)
            return longest._replace(message=message, parts=self)
        if not self._faults:
            return None
        faults = sorted(self._faults, key=lambda fault: fault[0])
        _, first = faults[0]
        # Where it was to go, for the copy's headers: the first one at fault speaks for all.
        message.action_line, message.action, message.attempts = (
            first.message.action_line,
            first.message.action,
            first.message.attempts,
        )
        told = "; ".join(f"{item}: {failure.detail}" for item, failure in faults[:_LISTED_ITEMS])
        detail = f"{len(faults)} of {self.count} documents can't be stored: {told}"
        return first._replace(
            message=message, detail=detail[:_DETAIL_CHARACTERS], items=tuple(item for item, _ in faults)
        )
