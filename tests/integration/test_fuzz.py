"""Whatever bytes come in body, id, headers, routing key and properties: each message ends once, and harms no other.

Between the random messages stand good ones, and one document was there before. The judge knows what was sent and looks
at the two servers only: what is stored, what lies in the dead letters, and what must be neither.
"""

from __future__ import annotations

import json
import math
import os
import random
import struct
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.integration.harness import exactly
from tests.integration.process import wait_until
from tests.integration.test_copies import ADDED, Entry, entries, field, table
from tests.servers import wire
from tests.servers.amqp import Outgoing
from tests.servers.es import Elastic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.integration.harness import Harness
    from tests.integration.process import SidecarProcess
    from tests.servers.amqp import Received
    from tests.servers.es import Document

SEED = int(os.environ.get("FUZZ_SEED", "20241121"))
DEADLINE_SECONDS = 60.0
CONTROL_EVERY = 10
MARK = b"\xef\xbb\xbf"
DEEPER_THAN_PYTHON = 20_000
VICTIM = b'{"victim":"untouched", "n":1.50}'
QUICK = {
    "BATCH_MAX_AGE": "50ms", "BATCH_MAX_ITEMS": "200", "RETRY_DELAY_MIN": "10ms", "RETRY_DELAY_MAX": "200ms",
}  # fmt: skip
STORED, DEAD, EITHER = "stored", "dead", "either"
ANY_ID = None  # what Elasticsearch or a template makes of it: known by its document alone
ANY_ROUTING = "any"

SPACES = [b"", b"", b"", b" ", b"\t", b"\r", b"\n", b"\r\n  "]
NUMBERS = [
    b"0", b"-0", b"1", b"-1", b"1.0", b"1.50", b"1e2", b"1E+2", b"-1.5e-7", b"12345678901234567890123", b"0.1000",
    b"9223372036854775808", b"-9223372036854775809", b"1" * 300,
]  # fmt: skip
STRINGS = [
    '""', '"a"', r'"\"}\n"', r'"\u0000"', r'"\/\b\f"', '"é€🙂"', r'"\ud83d\ude42"', r'"{\"index\":{}}"',
    '"\u2028\u2029\x7f"', '"' + "x" * 500 + '"',
]  # fmt: skip
SHORTS = [b"", b"a", b"text/\xff", "é🙂".encode(), b"\0", b"a\nb", b'"}', b"x" * 255, b"\xed\xa0\x80"]

NEIGHBOURS = [  # would close the field that an update's body becomes, and go on with fields of their own
    b'{"a":1},"upsert":{"smuggled":1}', b'{"a":1},"detect_noop":{"x":1}', b'{"a":1},"upsert":{"x":1},"doc":{"b":2}',
    b'{"a":1},"script":{"source":"ctx._source.x=1"}', b'{"a":1}},{"doc":{"b":2}',
]  # fmt: skip


class Body(NamedTuple):
    """A body, and what must become of it where nothing else is wrong with its message."""

    data: bytes
    fate: str


@dataclass(frozen=True, slots=True)
class Case:
    """A message and what may become of it.

    Attributes:
        serial: which it is; its ``correlation_id``.
        sent: the message.
        fate: `STORED`, `DEAD`, or `EITHER` of the two.
        action: what it asks for.
        index: where its document belongs.
        document_id: the document's id, or `ANY_ID`.
        routing: the document's, or None.
    """

    serial: int
    sent: Outgoing
    fate: str
    action: str
    index: str
    document_id: str | None
    routing: str | None = None

    def __repr__(self) -> str:
        """Show what is needed to send it again."""
        raw = self.sent.property_bytes()
        return (
            f"#{self.serial} {self.fate} {self.action} {self.index} id={str(self.document_id)[:80]!r} "
            f"key={self.sent.routing_key!r:.80} body={self.sent.body[:200]!r} ({len(self.sent.body)} bytes) "
            f"properties={raw[:200]!r} ({len(raw)} bytes)"
        )


class Words:
    """Random bytes of many kinds."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    # Bodies ----------------------------------------------------------------------------------------------------------

    def body(self, serial: int) -> Body:
        """Return a body; half of them are good JSON."""
        kind = self.rng.choice([self._good] * 8 + [self._bad] * 6 + [self._doubtful] * 2)
        return kind(serial)

    def good(self, serial: int) -> bytes:
        """Return a JSON object that no other message has, spelt in unusual ways."""
        members = [b'"serial"' + self._space() + b":" + self._space() + b"%d" % serial]
        names = self.rng.sample(["a", "b", "c d", "é", "index", "id", "doc", "x" * 100], self.rng.randrange(4))
        members += [json.dumps(name).encode() + self._space() + b":" + self._value(0) for name in names]
        self.rng.shuffle(members)
        inside = (self._space() + b"," + self._space()).join(members)
        return self._space() + b"{" + self._space() + inside + self._space() + b"}" + self._space()

    def _good(self, serial: int) -> Body:
        return Body(self.rng.choice([b""] * 9 + [MARK]) + self.good(serial), STORED)

    def _bad(self, serial: int) -> Body:
        body = self.good(serial).strip()
        inside = body[1:-1]
        act = b'{"index":{"_id":"victim"}}'
        return Body(
            self.rng.choice(
                [
                    b"", b" \r\n\t ", b"\n", b"null", b"7", b'"text"', b"[" + body + b"]", b"{", b"}", b"{}}", b"\0",
                    body[: self.rng.randrange(1, len(body))],
                    MARK + MARK + body, body.decode().encode("utf-16"), body + b"\0", b"{\0" + inside + b"}",
                    b"\xff" + body,
                    body + body, body + b"," + body, body + b"\n" + body, body + b" x}",
                    b'{"a":"\xff",' + inside + b"}", b'{"a":"\xed\xa0\x80",' + inside + b"}",
                    b'{"a":"\xc0\x80",' + inside + b"}",
                    b'{"a":"line\nbreak",' + inside + b"}", b'{"a":"\1",' + inside + b"}",
                    b'{"a":01,' + inside + b"}", b'{"a":+1,' + inside + b"}",
                    b"{'a':1," + inside + b"}", b"{a:1," + inside + b"}", b"{" + inside + b",}", b"{,}",
                    b'{"a":1,"a":2,' + inside + b"}", b'{"a":{"b":1,"b":1},' + inside + b"}",
                    b'{"\\ud800":1,"\\ud800":2,' + inside + b"}", b'{"a":"\\x",' + inside + b"}",
                    # What would be lines of its own, or neighbours in its action, were a body more than data.
                    body + b"\n" + act + b"\n" + body, b"{}\n" + act + b"\n{}", b"}\n" + act + b"\n{",
                    b'{"a":1}\r\n' + act + b"\r\n" + body, body + b'\n{"delete":{"_id":"victim"}}',
                    *NEIGHBOURS,
                ]
            ),
            DEAD,
        )  # fmt: skip

    def _doubtful(self, serial: int) -> Body:
        """Return what Elasticsearch takes or not, as it likes: a matter between it and that message alone."""
        body = self.good(serial)
        inside = body.strip()[1:-1]
        depth = self.rng.choice([50, 200, 300, 900, 985, 999, 1000, 1001, 1500, 3000])
        odd = [
            b'{"a":"\\ud800",' + inside + b"}",
            b'{"\\udc00":1,' + inside + b"}",
            b'{"a":NaN,' + inside + b"}",
            b'{"a":1e999,' + inside + b"}",
            b'{"a":' + b"9" * self.rng.choice([999, 1001, 5000]) + b"," + inside + b"}",
            b'{"deep":' + b"[" * depth + b"]" * depth + b"," + inside + b"}",
            b'{"f":1.5,"deep":' + b'{"a":' * depth + b"1" + b"}" * depth + b"," + inside + b"}",
            b'{"":1,' + inside + b"}",
            b'{"a..b":1,".":2,' + inside + b"}",
            b'{"_id":"victim","_index":"i",' + inside + b"}",
            b"{" + inside + b',"long":"' + b"y" * 70_000 + b'"}',
        ]
        if self.rng.random() < 0.5:
            return Body(self.rng.choice(odd), EITHER)
        return Body(self._mutated(body), EITHER)

    def _mutated(self, body: bytes) -> bytes:
        data = bytearray(body)
        for _ in range(self.rng.randint(1, 3)):
            at = self.rng.randrange(len(data))
            change = self.rng.randrange(3)
            if change == 0:
                data[at] = self.rng.choice(b'{}[]:,"\\\n\r\t\0 019eE+-.\x80\xff')
            elif change == 1 and len(data) > 1:
                del data[at]
            else:
                data.insert(at, self.rng.randrange(256))
        return bytes(data)

    def _value(self, depth: int) -> bytes:
        kind = self.rng.randrange(5 if depth < 3 else 3)
        if kind == 0:
            return self.rng.choice(NUMBERS)
        if kind == 1:
            return self.rng.choice(STRINGS).encode()
        if kind == 2:
            return self.rng.choice([b"true", b"false", b"null", b"[]", b"{}"])
        values = [self._value(depth + 1) for _ in range(self.rng.randrange(3))]
        if kind == 3:
            return b"[" + (self._space() + b",").join(values) + b"]"
        return b"{" + b",".join(b'"k%d":' % at + value for at, value in enumerate(values)) + b"}"

    def _space(self) -> bytes:
        return self.rng.choice(SPACES)

    # Everything else -------------------------------------------------------------------------------------------------

    def document_id(self, serial: int, max_bytes: int) -> bytes:
        """Return an id that no other message has; it may be too long, or no text."""
        odd = self.rng.choice(
            [
                b"", b"plain", b'"', b'"}}\n{"delete":{"_id":"victim"}}\n', b"\0", b"\n", b"\r\n", b"\x1f\x7f", b"\\",
                "é🙂".encode(), "\u2028".encode(), b"..", b"_id", b"_", b"*", b",", b"#", b" ", b"{now}", b"\xff",
                b"\xed\xa0\x80", b"x" * 240, b"x" * 500, b"x" * 600, "é".encode() * 256,
            ]
        )  # fmt: skip
        number = b"%d" % serial
        odd = odd[: max_bytes - len(number)]
        return number + odd if self.rng.random() < 0.5 else odd + number

    def routing_key(self) -> bytes:
        """Return up to 255 bytes of any kind."""
        kind = self.rng.randrange(3)
        if kind == 0:
            return self.rng.choice(SHORTS)
        if kind == 1:
            return self.rng.randbytes(self.rng.randrange(256))
        return b"orders.%d" % self.rng.randrange(5)

    def headers(self) -> list[Entry]:
        """Return some headers of any type, with names of any bytes."""
        return [self._header() for _ in range(self.rng.choice([0, 0, 1, 2, 5]))]

    def _header(self) -> Entry:
        name = self.rng.choice([b"", b"k", b"\xff\0", b"n" * 255, b"x-" + self.rng.randbytes(5)])
        return name, wire.encode_value(self.value(0))

    def value(self, depth: int) -> wire.FieldValue:
        """Return a value of any of AMQP's types, but no NaN: RabbitMQ hangs up on who sends one."""
        raw = self.rng.randbytes
        simple: list[wire.FieldValue] = [
            None, True, self.rng.choice(SHORTS), raw(self.rng.randrange(40)), wire.Raw(b"T", raw(8)),
            wire.Raw(b"l", raw(8)), wire.Raw(b"I", raw(4)), wire.Raw(b"f", struct.pack(">f", self.rng.random())),
            wire.Raw(b"D", raw(5)), wire.Raw(b"b", raw(1)), wire.Raw(b"B", raw(1)), wire.Raw(b"s", raw(2)),
            wire.Raw(b"u", raw(2)), wire.Raw(b"i", raw(4)), self.rng.random() * 10.0 ** self.rng.randrange(-300, 300),
            wire.Raw(b"x", wire.long_string(raw(self.rng.randrange(20)))),
        ]  # fmt: skip
        if depth < 4 and self.rng.random() < 0.3:
            items = [self.value(depth + 1) for _ in range(self.rng.randrange(4))]
            return items if self.rng.random() < 0.5 else {raw(at + 1): item for at, item in enumerate(items)}
        if depth == 0 and self.rng.random() < 0.03:
            return wire.Raw(b"F", nested(self.rng.choice([100, 300, 1200, 4000])))
        return self.rng.choice(simple)

    def properties(self, serial: int) -> dict[str, Any]:
        """Return some properties; ``correlation_id`` says which message it is."""
        values: dict[str, Any] = {"correlation_id": str(serial)}
        for name in ("content_type", "reply_to", "type", "app_id", "cluster_id"):
            if self.rng.random() < 0.15:
                values[name] = self.rng.choice(SHORTS)
        for name, choices in (
            ("priority", [0, 9, 255]), ("delivery_mode", [1, 2, 2]), ("timestamp", [0, 1_700_000_000_123, 2**64 - 1]),
            ("expiration", ["600000"]), ("user_id", ["guest"]),
        ):  # fmt: skip
            if self.rng.random() < 0.3:
                values[name] = self.rng.choice(choices)
        return values


def nested(depth: int) -> bytes:
    """Return the payload of a table inside a table inside a table."""
    inner = wire.long_string(b"")
    for _ in range(depth):
        inner = wire.long_string(b"\1kF" + inner)
    return inner


def is_text(data: bytes) -> bool:
    """Whether bytes are UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


# Settings, and what messages mean under them -------------------------------------------------------------------------


def plain(words: Words, serial: int, name: str) -> Case:
    """Return a message for the default settings: the id is the property of that name, if it is there."""
    body = words.body(serial)
    properties = words.properties(serial) | {"headers": table(words.headers())}
    document_id = ANY_ID
    fate = body.fate
    if words.rng.random() < 0.8:
        raw = words.document_id(serial, 255) if words.rng.random() < 0.95 else b""
        properties["message_id"] = raw
        fate = fate if is_text(raw) else DEAD
        document_id = raw.decode(errors="replace") or ANY_ID
    sent = Outgoing(body.data, properties=properties, routing_key=words.routing_key())
    return Case(serial, sent, fate, "index", name, document_id)


def by_headers(words: Words, serial: int, name: str) -> Case:
    """Return a message whose headers name action, index, id and routing."""
    rng = words.rng
    body = words.body(serial)
    fate, action, index, routing = body.fate, "index", name, None
    own: list[Entry] = []
    document_id: str | None
    if rng.random() < 0.9:
        raw = words.document_id(serial, 1000)
        own.append(field("id", raw))
        document_id = raw.decode(errors="replace")
        fate = fate if is_text(raw) and 0 < len(raw) <= 512 else DEAD
    else:
        values: list[wire.FieldValue] = [
            serial,
            serial + 0.5,
            [serial, words.value(0)],
            {"s": serial, "v": words.value(0)},
        ]
        own.append((b"id", wire.encode_value(rng.choice(values))))
        document_id, fate = ANY_ID, DEAD if fate == DEAD else EITHER
    if rng.random() < 0.5 and document_id is not ANY_ID:
        action = rng.choice(["create", "upsert", "update", "delete", "index", "INDEX", "", 'index":{}}\n{"', "bulk"])
        own.append(field("op", action))
        if action in {"update", "upsert"} and rng.random() < 0.4:
            body = Body(rng.choice(NEIGHBOURS), DEAD)
            fate = DEAD
        if action not in {"index", "create", "upsert"}:
            fate = EITHER if action == "delete" and is_text(raw) and len(raw) <= 512 else DEAD
        elif action == "upsert" and fate == STORED:
            fate = EITHER if b"e" in body.data or b"1" * 300 in body.data else STORED
    if rng.random() < 0.15:
        index, allowed = rng.choice(odd_indices(name))
        own.append(field("index", index))
        fate = (EITHER if fate == STORED else fate) if allowed else DEAD
    if rng.random() < 0.3:
        value = rng.choice([b"r", "é".encode(), b'","_id":"victim', b"\n", b"a,b", b"\0", b"r" * 2000])
        own.append(field("routing", value))
        routing = value.decode()
    every = own + words.headers()
    rng.shuffle(every)
    properties = words.properties(serial) | {"headers": table(every)}
    sent = Outgoing(body.data, properties=properties, routing_key=words.routing_key())
    return Case(serial, sent, fate, action, index, document_id, routing)


def odd_indices(name: str) -> list[tuple[str, bool]]:
    """Return names of indices, and whether the settings allow them; what Elasticsearch says is its own matter."""
    inside = ["é", "UP", "*", "a,b", "a/b", '"x', "\n", "..", "<{now/d}>", "\\", "?", "#", ":", "a" * 250, "\0", " "]
    outside = ["", "*", "_all", ".security", f"{name}-smuggled", f"-{name}", f"{name},{name}-odd-a", f"{name}-odd"]
    return [(f"{name}-odd-{end}", True) for end in inside] + [(other, False) for other in outside]


def by_route(words: Words, serial: int, name: str) -> Case:
    """Return a message whose id is made of routing key and body, with an external version."""
    rng = words.rng
    body = words.body(serial)
    key = words.routing_key()
    known = body.fate == STORED and is_text(key)
    document_id = f"{key.decode(errors='replace')}/{serial}/{serial}"
    fate = DEAD if body.fate == DEAD or not is_text(key) else EITHER
    fate = STORED if known and len(document_id.encode()) <= 512 else fate
    version: wire.FieldValue = rng.choice(["1", "0", 7, "00012", 2**63 - 1, 2**63 - 1, 5])
    own: list[Entry] = [field("version", version)]
    if rng.random() < 0.15:
        bad: list[wire.FieldValue] = [
            "",
            "-1",
            "1,2",
            "9" * 19,
            "9" * 5000,
            "1}",
            "\u0661",
            None,
            {"a": 1},
            1.5,
            b"\xff",
        ]
        own = [field("version", rng.choice(bad))]
        fate = DEAD
    if rng.random() < 0.1:
        own.append((b"sidecar-received-at", wire.encode_value(rng.choice(["0001-01-01T00:00:00+23:59", "x", 7]))))
    sent = Outgoing(
        body.data, properties=words.properties(serial) | {"headers": table(own + words.headers())}, routing_key=key
    )
    routing = ANY_ROUTING if b'"deep"' in body.data or b'"f"' in body.data else "--"
    return Case(serial, sent, fate, "index", name, document_id if known else ANY_ID, routing)


class Kind(NamedTuple):
    """Settings, and messages for them."""

    settings: Callable[[str], dict[str, str]]
    make: Callable[[Words, int, str], Case]
    control: Callable[[int], dict[str, Any]]


KINDS = {
    "plain": Kind(lambda name: {}, plain, lambda serial: {"message_id": f"control-{serial}"}),
    "headers": Kind(
        lambda name: {
            "INDEX": "{header.index|" + name + "}",
            "INDEX_ALLOW": f"{name},{name}-odd-*",
            "ACTION": "{header.op|index}",
            "ID": "{header.id}",
            "ROUTING": "{header.routing|}",
        },
        by_headers,
        lambda serial: {"headers": table([field("id", f"control-{serial}")])},
    ),
    "route": Kind(
        lambda name: {
            "ID": "{routing_key}/{body.serial}/{correlation_id}",
            "ROUTING": "{body.f|-}{body.deep|-}",
            "VERSION": "{header.version}",
        },
        by_route,
        lambda serial: {"headers": table([field("version", 1)])},
    ),
}


def cases(kind: Kind, words: Words, name: str, count: int) -> list[Case]:
    """Return so many random messages, and good ones between them."""
    made = []
    for serial in range(count + count // CONTROL_EVERY):
        if serial % (CONTROL_EVERY + 1):
            made.append(kind.make(words, serial, name))
        else:
            properties = {"correlation_id": str(serial), "delivery_mode": 2, **kind.control(serial)}
            body = b'{"serial":%d,"control" : 1.50}' % serial
            document_id = f"control/{serial}/{serial}" if "message_id" not in properties else f"control-{serial}"
            document_id = f"control-{serial}" if b"id" in dict(entries(properties.get("headers", b""))) else document_id
            sent = Outgoing(body, properties=properties, routing_key="control")
            made.append(Case(serial, sent, STORED, "index", name, document_id, ANY_ROUTING))
    return made


# The judge -----------------------------------------------------------------------------------------------------------


class Judge:
    """Compares what was sent with what is on the servers.

    Args:
        sent: the messages.
        documents: everything that is stored but for the victim.
        letters: all dead letters.
    """

    def __init__(self, sent: Sequence[Case], documents: Sequence[Document], letters: Sequence[Received]) -> None:
        self.sent = sent
        self.wrong: list[str] = []
        self.letters: dict[int, list[Received]] = {}
        for letter in letters:
            self.letters.setdefault(int(letter.properties.values["correlation_id"]), []).append(letter)
        self.by_id = {(document.index, document.id): document for document in documents}
        self.left = set(self.by_id)
        self.by_source: dict[bytes, list[tuple[str, str]]] = {}
        for place, document in self.by_id.items():
            self.by_source.setdefault(document.source, []).append(place)
        if len(self.by_id) != len(documents):
            self.wrong.append("one id is stored twice in one index")

    def judge(self) -> list[str]:
        """Return what is wrong."""
        known = [case for case in self.sent if case.document_id is not ANY_ID]
        for case in (*known, *(case for case in self.sent if case.document_id is ANY_ID)):
            letters = self.letters.pop(case.serial, [])
            document = self._find(case)
            if len(letters) > 1:
                self._say(f"{len(letters)} dead letters", case)
            elif letters and document is not None:
                self._say("stored and dead", case)
            elif letters:
                self._judge_letter(case, letters[0])
            elif document is not None:
                self._judge_document(case, document)
            elif case.action != "delete" or case.fate == DEAD:  # deleting nothing is no failure
                self._say("lost", case)
        self.wrong += [f"nobody sent this document: {self.by_id[place]}" for place in self.left]
        self.wrong += [f"a dead letter of nobody: {serial}" for serial in self.letters]
        return self.wrong

    def _find(self, case: Case) -> Document | None:
        place: tuple[str, str] | None = (case.index, case.document_id or "")
        if case.document_id is ANY_ID:
            places = self.by_source.get(as_stored(case.sent.body), [])
            place = next((place for place in places if place in self.left), None)
        if place is None or place not in self.left:
            return None
        self.left.remove(place)
        return self.by_id[place]

    def _judge_letter(self, case: Case, letter: Received) -> None:
        if case.fate not in {DEAD, EITHER}:
            self._say(f"dead, {letter.headers['sidecar-reason']}, {letter.headers['sidecar-error-reason']}", case)
        if letter.body != case.sent.body:
            self._say("its body changed", case)
        if not letter.headers.get("sidecar-reason") or not letter.headers.get("sidecar-error-reason"):
            self._say("no reason", case)
        ours = {name.encode() for name in ADDED}
        sent = wire.decode_properties(case.sent.property_bytes())
        kept = [entry for entry in entries(letter.header_bytes) if entry[0] not in ours]
        moved = [entry for entry in kept if entry[0].startswith(b"sidecar-original-")]
        own = [entry for entry in entries(sent.header_bytes) if entry[0] not in ours]
        if b"sidecar-cut" not in dict(kept) and [entry for entry in kept if entry not in moved] != own:
            self._say("its headers changed", case)
        as_they_were = {"delivery_mode": 2}
        values = {name: value for name, value in sent.values.items() if name not in {"expiration", "user_id"}}
        if letter.properties.values != values | as_they_were:
            self._say(f"its properties changed: {letter.properties.values}", case)

    def _judge_document(self, case: Case, document: Document) -> None:
        if case.fate not in {STORED, EITHER}:
            self._say("stored", case)
        elif case.action == "upsert":
            if value(document.source) != value(case.sent.body):
                self._say(f"its value changed: {document.source[:200]!r}", case)
        elif document.source != as_stored(case.sent.body):
            self._say(f"its bytes changed: {document.source[:200]!r}", case)
        elif b"\n" in case.sent.body and exactly(document.source) != exactly(case.sent.body.strip()):
            self._say(f"its content changed: {document.source[:200]!r}", case)
        if case.routing not in {document.routing, ANY_ROUTING}:
            self._say(f"its routing is {document.routing!r}", case)

    def _say(self, what: str, case: Case) -> None:
        self.wrong.append(f"{what}: {case!r}")


def as_stored(body: bytes) -> bytes:
    """Return the bytes that a document must have: those that were sent, on one line."""
    return body.removeprefix(MARK).strip(b" \t\r\n").replace(b"\n", b" ")


def value(text: bytes) -> Any:
    """Return what a JSON text means to Elasticsearch; an update writes numbers anew, and those without end as text."""

    def finite(spelt: str) -> float | str:
        number = float(spelt)
        return number if math.isfinite(number) else str(number).replace("inf", "Infinity")

    return json.loads(text, parse_float=finite, parse_constant=str)


@contextmanager
def deep_recursion() -> Iterator[None]:
    """Let the judge read what is nested deeper than Python likes."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(DEEPER_THAN_PYTHON)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def fuzz(bench: Harness, kind: Kind, seed: int, count: int) -> None:
    """Send random messages, let a sidecar work them off, and judge."""
    print(f"seed {seed}: FUZZ_SEED={seed} sends the same again")
    name = bench.index_name
    with Elastic(bench.elasticsearch.url) as elastic:
        elastic.put_template(
            name, [f"{name}*"], {"settings": {"number_of_replicas": 0}, "mappings": {"dynamic": False}}
        )
        try:
            elastic.create_index(name, mappings={"dynamic": False})
            elastic.put(name, "victim", VICTIM)
            indices = set(elastic.call("GET", "/_all/_settings/index.uuid?expand_wildcards=all"))
            sent = cases(kind, Words(random.Random(seed)), name, count)
            account, sidecar = work_off(bench, kind, sent)
            letters = bench.dead_letters()
            with deep_recursion():
                everything = elastic.documents(f"{name}*")
                victims = [one for one in everything if (one.index, one.id) == (name, "victim")]
                assert [(one.source, one.version) for one in victims] == [(VICTIM, 1)]
                wrong = Judge(sent, [one for one in everything if one not in victims], letters).judge()
            new = set(elastic.call("GET", "/_all/_settings/index.uuid?expand_wildcards=all")) - indices
        finally:
            elastic.delete_template(name)
    assert not wrong, f"seed {seed}, {len(wrong)} wrong:\n" + "\n".join(wrong[:20])
    odd = {index for index, _ in odd_indices(name) if index.startswith(f"{name}-odd-")}
    assert {index for index in new if name in index} <= odd
    assert account["received"] == len(sent)
    assert account["ack"] + account["dead_letter"] == len(sent)
    assert account["dead_letter"] == len(letters)
    assert sidecar.events("amqp.lost") == []
    assert len(sidecar.events("elasticsearch.held")) == len(sidecar.events("elasticsearch.resumed"))
    print(f"{len(sent)} sent, {Counter(case.fate for case in sent)}, {len(letters)} dead, splits {account['splits']}")


def work_off(bench: Harness, kind: Kind, sent: Sequence[Case]) -> tuple[dict[str, Any], SidecarProcess]:
    """Publish, run a sidecar until the queue is empty, and return its account."""
    bench.declare()
    exchange = f"{bench.queue}-x"
    bench.amqp.declare_exchange(exchange, "fanout")
    bench.amqp.bind(bench.queue, exchange)
    published = bench.amqp.publish([case.sent for case in sent], exchange=exchange)
    assert not published.nacked
    assert not published.returned
    sidecar = bench.sidecar(**QUICK, **kind.settings(bench.index_name))

    def none_left(count: Callable[[], int]) -> bool:
        assert sidecar.process.poll() is None, f"it ended: {sidecar.told()}"
        assert not sidecar.events("amqp.lost"), sidecar.told()
        return count() == 0

    wait_until(lambda: none_left(bench.count), DEADLINE_SECONDS, "an empty queue", sidecar.told)
    wait_until(lambda: none_left(bench.held), DEADLINE_SECONDS, "nothing unsettled", sidecar.told)
    return sidecar.terminate(), sidecar


@pytest.mark.parametrize("name", KINDS)
def test_whatever_comes_ends_once_and_harms_no_other(bench: Harness, name: str) -> None:
    """A thousand random messages: each is one document, byte for byte, or one dead letter with a reason."""
    fuzz(bench, KINDS[name], SEED, 1000)


LENIENT = {
    "comment-before-the-end": b'{"n":1//}',
    "comment-to-the-end": b'{"n":1}//}',
    "comment-inside": b'{"n":1/*}*/}',
    "comment-after": b'{"n":1}/*}',
    "no-number": b'{"n":NaN}',
    "no-quotes": b"{n:1}",
    "two-lines": b'{"n":1//\n}',
}


def test_what_is_no_json_but_elasticsearch_takes_it_ends_once(bench: Harness) -> None:
    """Its parser likes comments: such a document is stored as the bytes that it is, or dead, and no other is harmed.

    They are read one by one, for a search that finds one of them has an answer that is no JSON either.
    """
    sent = [Outgoing(body, properties={"message_id": name}) for name, body in LENIENT.items()]
    good = [Outgoing(b"{}", properties={"message_id": f"good-{at}"}) for at in range(20)]
    bench.es("PUT", f"/{bench.index_name}", {"mappings": {"dynamic": False}})
    bench.declare()
    bench.publish([*good[:10], *sent, *good[10:]])
    sidecar = bench.sidecar(**QUICK)
    bench.wait_empty(DEADLINE_SECONDS, sidecar)
    account = sidecar.terminate()
    dead = {str(letter.message_id): letter.body for letter in bench.dead_letters()}
    with Elastic(bench.elasticsearch.url) as elastic:
        for name, body in LENIENT.items():
            stored = elastic.source(bench.index_name, name)
            sent_as = body.replace(b"//\n", b"   ")  # a request is lines: a comment can't end one
            assert (stored, dead.get(name)) in {(sent_as, None), (None, body)}, name
        assert {elastic.source(bench.index_name, f"good-{at}") for at in range(20)} == {b"{}"}
        assert elastic.count(bench.index_name) == account["ack"]
    assert account["ack"] + account["dead_letter"] == len(sent) + len(good)
    print(f"dead: {sorted(dead)}")


@pytest.mark.full
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("more", range(1, 6))
def test_whatever_comes_ends_once_in_bulk(bench: Harness, name: str, more: int) -> None:
    """The same with other seeds, thirty thousand in all."""
    fuzz(bench, KINDS[name], SEED + more, 2000)
