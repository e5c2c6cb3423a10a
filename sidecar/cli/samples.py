"""Sample messages: orders of a shop, a share of them bad, each in a way that somebody's queue has seen.

Pure and deterministic: the same arguments give the same bytes, so whoever knows the seed knows what must be found in
the end, document by document. What `sidecar produce` publishes, and what the demo checks.
"""

# ruff: noqa: RUF001 - letters of many alphabets are what these samples are for
from __future__ import annotations

from datetime import datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, NamedTuple

import orjson

from sidecar.core.wire.frames import short_string
from sidecar.core.wire.properties import join, table, text_value

if TYPE_CHECKING:
    from collections.abc import Iterator


class SampleKind(NamedTuple):
    """A way for a message to be.

    Attributes:
        name: stands in the message's header `KIND_HEADER`.
        reason: the ``sidecar-reason`` of its dead letter; empty for a good one.
        meaning: for people.
    """

    name: str
    reason: str
    meaning: str


ORDER = SampleKind("order", "", "an order as it should be")
STRANGE_ID = SampleKind("strange-id", "", "an id full of quotes and line breaks")
LINE_BREAKS = SampleKind("line-breaks", "", "valid JSON, printed over several lines")
MALFORMED = SampleKind("malformed-json", "rejected", "a quote is missing")
TRUNCATED = SampleKind("truncated", "malformed", "cut off in the middle")
ARRAY = SampleKind("array", "malformed", "a JSON array, where an object is due")
MAPPING_CONFLICT = SampleKind("mapping-conflict", "rejected", "`amount` is a word, where the mapping has a number")
SMUGGLED_DELETE = SampleKind(
    "smuggled-delete", "malformed", "a line break, then a bulk line that deletes another order"
)
SMUGGLED_INDEX = SampleKind(
    "smuggled-index", "malformed", "a line break, then a bulk line that overwrites another order"
)
EMPTY = SampleKind("empty", "malformed", "no body")
INVALID_UTF8 = SampleKind("invalid-utf8", "malformed", "bytes that are no text")

BAD = (MALFORMED, TRUNCATED, ARRAY, MAPPING_CONFLICT, SMUGGLED_DELETE, SMUGGLED_INDEX, EMPTY, INVALID_UTF8)
STRANGE = (STRANGE_ID, LINE_BREAKS)
"""Good ones that a careless pipeline would trip over."""

KIND_HEADER = b"sample"

_EPOCH = datetime(2026, 1, 1)  # noqa: DTZ001 - written with a Z, which is cheaper without a zone
_CUSTOMERS = [
    orjson.dumps({"id": 1001 + at, "name": name})
    for at, name in enumerate((
        "Zoë Müller", "Þórdís Jónsdóttir", "Nguyễn Văn An", "山田 太郎", "Олена Шевченко", "Maria da Conceição",
        "محمد علي", "Siobhán O'Brien", "Łukasz Wójcik", 'Anna "Annie" Smith', "Ελένη Παπαδοπούλου", "김서연",
    ))
]  # fmt: skip
_GOODS = [
    # fields of an item as JSON, and its price in cents
    (b'"sku":"%s","name":%s,"price":%d.%02d' % (sku.encode(), orjson.dumps(name), *divmod(cents, 100)), cents)
    for sku, name, cents in (
        ("TEA-001", "Green tea", 495), ("TEA-017", "Earl Grey, 100 g", 649), ("MUG-204", "Mug “sunrise”", 1290),
        ("POT-031", "Teapot, 1.2 l", 3450), ("SPN-008", "Spoon", 275), ("CAN-110", "Tin, large", 999),
        ("HON-042", "Honey, 500 g", 820), ("CKE-003", "Lemon cake", 1125),
    )
]  # fmt: skip
_CURRENCIES = (b"EUR", b"EUR", b"EUR", b"GBP", b"USD", b"CHF")
_NOTES = (
    "Please ring twice. ", "Gift wrap, mit Schleife – danke schön! ", "Leave it with the neighbour at № 7. ",
    "Ekki brjóta bollana. ", "壊れ物注意。", "Call before delivery ☎. ", "Don't bend; c'est fragile. ",
    "Привезіть після шостої. ", "No plastic, s’il vous plaît 🌱. ",
)  # fmt: skip


class Sample(NamedTuple):
    """A message to publish.

    Attributes:
        document_id: its ``message_id``; None without one.
        properties: flags and values, raw.
        body: as it is published.
    """

    kind: SampleKind
    document_id: str | None
    properties: bytes
    body: bytes


class Samples:
    """Makes messages, for ever; iterate over it.

    Args:
        seed: decides everything that chance decides.
        size_bytes: of a good body, to the byte, if the fields leave room for that: from about 400 bytes on with all of
            them, from about 100 with three.
        bad_ratio: the share of bad messages, 0 to 1; a quarter as many again are good, but strange.
        keys: the ids are drawn from so many; 0: every id is another.
        with_ids: whether there is a ``message_id`` at all.
    """

    def __init__(
        self, seed: int, *, size_bytes: int = 512, bad_ratio: float = 0.0, keys: int = 0, with_ids: bool = True
    ) -> None:
        self._seed = seed
        self._size_bytes = size_bytes
        self._bad_ratio = bad_ratio
        self._keys = keys
        self._with_ids = with_ids
        self._rng = Random(seed)
        sentences = list(_NOTES)
        self._rng.shuffle(sentences)
        paragraph = "".join(sentences)
        repeats = 1 + (size_bytes + 2 * len(paragraph.encode())) // len(paragraph.encode())
        self._text = (paragraph * repeats).encode()
        starts = [0]
        for sentence in sentences:
            starts.append(starts[-1] + len(sentence.encode()))
        self._starts = starts[:-1]

    def __iter__(self) -> Iterator[Sample]:
        """Yield the messages in the order of their sequence numbers."""
        rng, ratio = self._rng.random, self._bad_ratio
        strange_below = ratio * 1.25
        bad = strange = sequence = 0
        while True:
            jitter = rng()
            kind = ORDER
            if jitter < ratio:
                kind = BAD[bad % len(BAD)]  # by turns, so that none is left out of a small number
                bad += 1
            elif jitter < strange_below:
                kind = STRANGE[strange % len(STRANGE)]
                strange += 1
            yield self._make(sequence, kind)
            sequence += 1

    def _make(self, sequence: int, kind: SampleKind) -> Sample:
        number = int(self._rng.random() * self._keys) if self._keys else sequence
        order_id = self._order_id(number)
        document_id = order_id if self._with_ids else None
        if kind is ORDER:
            body = self._order(sequence, order_id)
        else:
            victim = self._order_id(max(0, number - 1))  # somebody else's order: the one before
            body = self._unusual(sequence, order_id, victim.encode(), kind)
            if kind is STRANGE_ID and self._with_ids and not self._keys:
                document_id = f'"}}}}\r\n{{"delete":{{"_id":"{victim}"}}}}\n\t\\"\' é {order_id}'
        return Sample(kind, document_id, _properties(kind, document_id), body)

    def _order_id(self, number: int) -> str:
        return f"order-{self._seed:x}-{number:06d}"

    def _order(self, sequence: int, order_id: str) -> bytes:
        jitter = self._rng.random
        first, first_price = _GOODS[int(jitter() * len(_GOODS))]
        second, second_price = _GOODS[int(jitter() * len(_GOODS))]
        quantity = 1 + int(jitter() * 4)
        whole, cents = divmod(first_price * quantity + second_price, 100)
        moment = (_EPOCH + timedelta(milliseconds=37 * sequence)).isoformat(timespec="milliseconds")
        brief = b'{"@timestamp":"%sZ","sequence":%d,"order_id":"%s","amount":%d.%02d' % (
            moment.encode(), sequence, order_id.encode(), whole, cents,
        )  # fmt: skip
        body = b'%s,"currency":"%s","customer":%s,"items":[{%s,"quantity":%d},{%s,"quantity":1}],"note":""}' % (
            brief,
            _CURRENCIES[int(jitter() * len(_CURRENCIES))],
            _CUSTOMERS[int(jitter() * len(_CUSTOMERS))],
            first,
            quantity,
            second,
        )
        start = self._starts[int(jitter() * len(self._starts))]
        if len(body) > self._size_bytes:
            body = b'%s,"note":""}' % brief
        return self._filled(body, start)

    def _filled(self, body: bytes, start: int) -> bytes:
        """Lengthen the note, which comes last, until the body has its size; never end inside a character."""
        missing = self._size_bytes - len(body)
        if missing <= 0:
            return body
        text, end = self._text, start + missing
        while text[end] & 0xC0 == 0x80:  # noqa: PLR2004 - the second or a later byte of a character in UTF-8
            end -= 1
        return b"%s%s%s%s" % (body[:-2], text[start:end], b"." * (start + missing - end), body[-2:])

    def _unusual(self, sequence: int, order_id: str, victim: bytes, kind: SampleKind) -> bytes:
        if kind is EMPTY:
            return b""
        body = self._order(sequence, order_id)
        if kind is LINE_BREAKS:
            return orjson.dumps(orjson.loads(body), option=orjson.OPT_INDENT_2)
        if kind is MALFORMED:
            return body.replace(b'"order_id":', b'"order_id:', 1)
        if kind is TRUNCATED:
            return body[: len(body) * 2 // 3].rstrip(b"}")
        if kind is ARRAY:
            return b"[%s]" % body
        if kind is MAPPING_CONFLICT:
            return orjson.dumps({**orjson.loads(body), "amount": "a lot"})
        if kind is SMUGGLED_DELETE:
            return b'%s\n{"delete":{"_id":"%s"}}' % (body, victim)
        if kind is SMUGGLED_INDEX:
            return b'%s\n{"index":{"_id":"%s"}}\n{"order_id":"%s","amount":0}' % (body, victim, victim)
        if kind is INVALID_UTF8:
            return b'%s,"raw":"\xff\xfe\xc3"}' % body[:-1]
        return body


def _properties(kind: SampleKind, document_id: str | None) -> bytes:
    if document_id is None:
        return _WITHOUT_ID[kind.name]
    before, after = _AROUND_ID[kind.name]
    data = document_id.encode()
    return b"%s%c%s%s" % (before, len(data), data, after)


def _values(kind: SampleKind) -> dict[str, bytes]:
    """Return the raw values of a message's properties but for its id."""
    content = table([(KIND_HEADER, text_value(kind.name))])
    return {
        "content_type": short_string(b"application/json"),
        "headers": len(content).to_bytes(4, "big") + content,
        "delivery_mode": b"\x02",
        "type": short_string(b"order.created"),
        "app_id": short_string(b"sidecar produce"),
    }


def _around_id(kind: SampleKind) -> tuple[bytes, bytes]:
    """Return what comes before and after the id: joining a set anew costs as much as the rest of a message."""
    values = _values(kind)
    after = values["type"] + values["app_id"]
    return join({**values, "message_id": b""}).removesuffix(after), after


_KINDS = (ORDER, *STRANGE, *BAD)
_WITHOUT_ID = {kind.name: join(_values(kind)) for kind in _KINDS}
_AROUND_ID = {kind.name: _around_id(kind) for kind in _KINDS}
