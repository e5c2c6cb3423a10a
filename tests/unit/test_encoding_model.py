"""Each field of a template, in each place, of each kind of message: against a model written from the contract.

The model reads what a message was made of, not its bytes, and shares no code with the product. By columns, and one by
one (a recipe with a size of sets), the same bytes must come out.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import struct
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from sidecar.core.encoding.action_lines import _MAX_NAMES, IndexParameterCache
from sidecar.core.encoding.encoder import BulkEncoder, EncoderConfig
from sidecar.core.encoding.fields import Fields
from sidecar.core.encoding.template import Template, TemplateContext
from tests.builders import ledger, long_string, message, origin, properties, short_string

if TYPE_CHECKING:
    from sidecar.core.message import Message

NOW = 1_700_000_000.5
QUEUE = "work"
FIRST_SEEN = "2020-02-03T23:59:59.250Z"
LONG_ID = "é" * 256
"""As long as an id may be: 512 bytes, and half as many characters."""


@dataclass(frozen=True)
class Sent:
    """What a message is made of.

    Attributes:
        body: as it is published, before it is compressed.
        headers: type octet, bytes, and the value that they mean (None: nothing).
        first: exchange and routing key of the first delivery, which a copy from the delay queue remembers.
    """

    body: bytes = b'{"k":"v","n":7}'
    texts: dict[str, bytes] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    headers: dict[str, tuple[bytes, object]] = field(default_factory=dict)
    route: tuple[bytes, bytes] = (b"in", b"Key")
    first: tuple[bytes, bytes] | None = None
    is_compressed: bool = False

    def raw(self) -> bytes:
        """Return the properties."""
        given = [(name.encode(), raw) for name, (raw, _) in self.headers.items()]
        if self.first is not None:
            exchange, routing_key = self.first
            given += [
                (b"sidecar-retry-count", b"l" + bytes(7) + b"\1"),
                (b"sidecar-exchange", long_string(exchange)),
                (b"sidecar-routing-key", long_string(routing_key)),
                (b"sidecar-received-at", long_string(FIRST_SEEN.encode())),
            ]
        encoding = {"content_encoding": b"gzip"} if self.is_compressed else {}
        return properties(given or None, **self.texts, **self.numbers, **encoding)


def text(value: bytes) -> tuple[bytes, object]:
    """Return a header that is a text."""
    return long_string(value), value


MESSAGES = [
    Sent(),
    Sent(texts={"message_id": b"m1", "type": b"Order", "content_type": b"application/json"}),
    Sent(texts={"message_id": b"", "type": b""}),
    Sent(texts={"message_id": "\u00c9t\u00e9".encode(), "type": "\u00c9".encode()}),
    Sent(texts={"message_id": b"\xff", "type": b"\xfe"}),
    Sent(texts={"message_id": b'q"\\\n', "type": b'"', "correlation_id": b"c", "app_id": b"a", "reply_to": b"r"}),
    Sent(texts={"message_id": b"m2"}, numbers={"priority": 0, "timestamp": 1_600_000_000}),
    Sent(texts={"message_id": b"m3"}, numbers={"priority": 9, "timestamp": 1_600_000_000_123}),
    Sent(texts={"message_id": b"m4"}, numbers={"timestamp": 1_600_000_000_123_456}),
    Sent(texts={"message_id": b"m5"}, numbers={"timestamp": 0}),
    Sent(headers={"h": text(b"Tenant")}, texts={"message_id": b"m6"}),
    Sent(headers={"g": text(b"other"), "h": text(b"007")}, texts={"message_id": b"m7"}),
    Sent(headers={"h": text(b"7")}, texts={"message_id": b"m8", "type": b"7"}),
    Sent(headers={"h": text(b"9223372036854775807")}, texts={"message_id": b"m9"}),
    Sent(headers={"h": text(b"9223372036854775808")}, texts={"message_id": b"m10"}),
    Sent(headers={"h": text(LONG_ID.encode())}, texts={"message_id": b"m11"}),
    Sent(headers={"h": text(LONG_ID.encode() + b"x")}, texts={"message_id": b"m12"}),
    Sent(headers={"h": text(b"a" * 512)}),
    Sent(headers={"h": text(b"a" * 513)}),
    Sent(headers={"h": text(b"")}),
    Sent(headers={"h": text(b"\xff")}),
    Sent(headers={"h": text(b"2026-11-30T23:30:00-02:00")}),
    Sent(headers={"h": (b"t\1", True)}),
    Sent(headers={"h": (b"t\0", False)}),
    Sent(headers={"h": (b"V", None)}),
    Sent(headers={"h": (b"l" + struct.pack(">q", -1), -1)}),
    Sent(headers={"h": (b"i" + struct.pack(">I", 70_000), 70_000)}),
    Sent(headers={"h": (b"d" + struct.pack(">d", 0.5), 0.5)}),
    Sent(headers={"h": (b"F" + struct.pack(">I", 8) + short_string(b"b") + long_string(b"c")[:6], {"b": "c"})}),
    Sent(headers={"hh": text(b"near"), "H": text(b"case")}),
    Sent(b'{"k":true,"n":-0.50,"o":{"k":1}}', {"message_id": b"m13"}),
    Sent(b'{"k":false,"n":1e2,"o.k":"dotted"}', {"message_id": b"m14"}),
    Sent(b'{"k":null,"n":12345678901234567890123}', {"message_id": b"m15"}),
    Sent(b'{"k":{"a":[1,2.50]},"n":0,"o":[{"k":"in"}]}', {"message_id": b"m16"}),
    Sent('{"k":"\u00c9","n":"2026-01-02"}'.encode(), {"message_id": b"m17"}),
    Sent(b' {"k":"around","n":3} ', {"message_id": b"m18"}),
    Sent(b"{}", {"message_id": b"m19"}),
    Sent(b"", {"message_id": b"m20"}),
    Sent(b"[1]", {"message_id": b"m21"}),
    Sent(b'{"k":"cut"', {"message_id": b"m22"}),
    Sent(b'{"f":"own","k":"x"}', {"message_id": b"m23", "type": b"t"}),
    Sent(b'{"_id":"own","k":"x"}', {"message_id": b"m24"}),
    Sent(b'{"k":"packed","n":4}', {"message_id": b"m25"}, is_compressed=True),
    Sent(texts={"message_id": b"m26", "type": b"t"}, first=(b"origin", b"First")),
    Sent(texts={"message_id": b"m27"}, first=(b"", b"only-key"), headers={"h": text(b"x")}),
    Sent(route=(b"", b"work"), texts={"message_id": b"m28"}),
    Sent(route=(b"ex", b"_hidden"), texts={"message_id": b"m29", "type": b"_up"}),
    Sent(route=(b"ex", b"with\nbreak"), texts={"message_id": b"m30"}),
]
TEXTS = ["message_id", "type", "correlation_id", "app_id", "reply_to", "content_type"]
HOLES = [
    *TEXTS, "priority", "timestamp", "timestamp:%Y.%m.%d", "now", "now:%Y-%m-%dT%H", "routing_key", "exchange", "queue",
    "sha256", "item", "header.h", "header.h:%Y.%m.%d", "header.g", "body.k", "body.n", "body.o.k", "body.o.0.k",
    "body.n:%Y",
]  # fmt: skip
AROUND = ["{%s}", "{%s|}", "{%s|Z}", "{%s!lower|Z}", "x-{%s|z}", "p%%-{%s}{{{type|T}"]
PLACES = ["index", "id", "routing", "pipeline", "version", "fields", "batch_key"]


class No(Exception):  # noqa: N818 - a value of the model
    """A message that is rejected, with its reason."""


class Absent(Exception):  # noqa: N818 - a value of the model
    """A field that isn't there."""


# Values --------------------------------------------------------------------------------------------------------------


def moment_of(value: Any) -> datetime:
    """Return a time as the contract has it: ISO 8601, or a number whose magnitude tells the unit; UTC."""
    if isinstance(value, bool):
        raise No("malformed")
    try:
        if isinstance(value, str) and not value.isdigit():
            found = datetime.fromisoformat(value)
            return found.replace(tzinfo=found.tzinfo or UTC).astimezone(UTC)
        number = Fraction(value)
    except (TypeError, ValueError):
        raise No("malformed") from None
    unit = next((unit for unit in (1, 1000, 10**6, 10**9) if number < 10**11 * unit), 0)
    if not unit:
        raise No("malformed")
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(number * 10**6 // unit))


def written(moment: datetime, style: str) -> str:
    """Return a time as a text."""
    return moment.strftime(style) if style else moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment:%f}"[:3] + "Z"


class Spelled(NamedTuple):
    """A number of a body, as it is spelled."""

    spelling: str


def parsed(sent: Sent) -> Any:
    """Return the body with numbers as they are spelled."""
    if not sent.body.strip():
        return None
    try:
        return json.loads(sent.body, parse_int=Spelled, parse_float=Spelled)
    except ValueError:
        raise No("malformed") from None


def compact(value: Any) -> str:
    """Return a value as JSON, numbers as they were spelled."""
    if isinstance(value, Spelled):
        return value.spelling
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(name)}:{compact(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(compact, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def at_path(content: Any, path: list[str]) -> Any:
    """Return what stands at a path of at most two names and a place, nested before dotted."""
    nested = content
    for step in path:
        if isinstance(nested, dict):
            nested = nested.get(step)
        elif isinstance(nested, list) and step.isdigit() and int(step) < len(nested):
            nested = nested[int(step)]
        else:
            nested = None
    if nested is None and isinstance(content, dict):
        return content.get(".".join(path))
    return nested


def value_of(name: str, sent: Sent) -> Any:
    """Return what a field is: bytes, or a value; None if it is absent."""
    if name in TEXTS:
        return sent.texts.get(name)
    if name in {"priority", "timestamp"}:
        return sent.numbers.get(name)
    if name == "now":
        return FIRST_SEEN if sent.first is not None else NOW
    if name in {"exchange", "routing_key"}:
        return (sent.first or sent.route)[name == "routing_key"]
    if name == "queue":
        return QUEUE
    if name == "sha256":
        return hashlib.sha256(sent.body).hexdigest()
    if name.startswith("header."):
        return sent.headers.get(name.removeprefix("header."), (b"", None))[1]
    if name.startswith("body."):
        return at_path(parsed(sent), name.removeprefix("body.").split("."))
    assert name == "item"
    return None


def as_text(value: Any) -> str:
    """Return a value as a text."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise No("malformed") from None
    return value if isinstance(value, str) else compact(value)


def filled(hole: str, sent: Sent) -> str:
    """Return what stands for a field."""
    name, _, style = hole.partition(":")
    value = value_of(name, sent)
    if value is None:
        raise Absent
    if name == "now":
        moment = moment_of(value) if isinstance(value, str) else datetime.fromtimestamp(NOW, UTC)
        return written(moment, style)
    if style or name == "timestamp":
        if isinstance(value, Spelled):
            value = Fraction(value.spelling)
        return written(moment_of(as_text(value) if isinstance(value, bytes) else value), style)
    return as_text(value)


def rendered(hole: str, around: str, sent: Sent) -> str:
    """Return what a template gives."""
    before, _, rest = around.partition("{%s")
    inside, _, after = rest.partition("}")
    lower, bar, default = inside.partition("|")
    try:
        found = filled(hole, sent)
    except Absent:
        if not bar:
            raise No("missing-field") from None
        found = default
    made = before + (found.lower() if lower else found)
    if after:
        kind = sent.texts.get("type")
        made += "{" + (as_text(kind) if kind is not None else "T")
    return made.replace("%%", "%")


# Lines ---------------------------------------------------------------------------------------------------------------


def quoted(value: str) -> str:
    """Return a JSON string."""
    return json.dumps(value, ensure_ascii=False)


def document(sent: Sent, reads_body: bool) -> bytes:
    """Return the document."""
    body = sent.body.strip()
    if not (body.startswith(b"{") and body.endswith(b"}")) or (reads_body and b'{"_id"' in body):
        raise No("malformed")
    return body


class Made(NamedTuple):
    """What becomes of a message."""

    line: bytes
    key: bytes | None
    source: bytes
    group: bytes | None


def expected(place: str, hole: str, around: str, sent: Sent) -> Made:  # noqa: C901, PLR0912 - a rule each
    """Return what becomes of a message if a template stands in one place, or raise why nothing does."""
    parameters = []
    index = "docs"
    value = rendered(hole, around, sent) if place in {"batch_key", "index", "id"} else ""
    if place == "index":
        index = value
        if not index[:1].isascii() or not index[:1].isalnum() or any(ord(one) < 32 or ord(one) == 127 for one in index):
            raise No("index-not-allowed")
        parameters.append(f'"_index":{quoted(index)}')
    if place == "id":
        document_id: str | None = value
        if not value:
            raise No("missing-field")
        if len(value.encode()) > 512:
            raise No("malformed")
    else:
        document_id = as_text(sent.texts.get("message_id", b"")) or None
    if document_id is not None:
        parameters.append(f'"_id":{quoted(document_id)}')
    if place in {"routing", "pipeline", "version"}:
        value = rendered(hole, around, sent)
    if place in {"routing", "pipeline"} and value:
        parameters.append(f'"{place}":{quoted(value)}')
    if place == "version":
        if document_id is None:
            raise No("missing-field")
        if not (value.isascii() and value.isdigit()) or int(value) >= 2**63:
            raise No("malformed")
        parameters.append(f'"version":{int(value)},"version_type":"external"')
    source = document(sent, hole.startswith("body.") and place != "fields")
    if place == "fields" and b'"f"' not in source:
        value = rendered(hole, around, sent)
        if value:
            source = f'{{"f":{quoted(value)}'.encode() + (b"," if source != b"{}" else b"") + source[1:]
    space = f"{index}\0" if place == "index" else ""
    key = (space + document_id).encode() if document_id is not None else None
    line = f'{{"index":{{{",".join(parameters)}}}}}\n'.encode()
    return Made(line, key, source, value.encode() if place == "batch_key" else None)


def outcome(place: str, hole: str, around: str, sent: Sent) -> Made | str:
    """Return what becomes of a message, or the reason why nothing does."""
    try:
        return expected(place, hole, around, sent)
    except No as no:
        return str(no)


# The product ---------------------------------------------------------------------------------------------------------


def encoder_config(place: str, template: Template) -> EncoderConfig:
    """Return a recipe with a template in one place."""
    given: dict[str, Any] = {"index": Template("docs")}
    given[place] = Fields({"f": template}) if place == "fields" else template
    if place == "id":
        given["id_mode"] = "template"
    return EncoderConfig(**given)


def template(hole: str, around: str) -> Template:
    """Return a template with a field in it; a conversion stands before a format."""
    name, colon, style = hole.partition(":")
    lower = "!lower" if "!lower" in around else ""
    return Template(around.replace("%s!lower", "%s").replace("%s", name + lower + colon + style).replace("%%", "%"))


def encoded(made: EncoderConfig, sent: list[Sent]) -> list[Made | str]:
    """Return what becomes of messages, in their order."""
    encoder = BulkEncoder(made, lambda: "made")
    of = ledger(QUEUE, delivered=len(sent))
    held = [
        message(
            tag,
            gzip.compress(one.body, mtime=0) if one.is_compressed else one.body,
            of=of,
            raw=one.raw(),
            route=b"".join(map(short_string, one.route[:1])) + short_string(one.route[1]),
        )
        for tag, one in enumerate(sent, 1)
    ]
    good, bad = encoder.encode(held, NOW)
    assert [one.tag for one in good] == sorted(one.tag for one in good)
    found: dict[int, Made | str] = {one.message.tag: one.reason for one in bad}
    for one in good:
        assert one.source is not None
        assert one.memory_bytes == len(one.properties) + len(one.body) + (
            len(one.source) if one.source is not one.body else 0
        )
        group = one.correlation.key if made.batch_key is not None else None
        assert group is None or (one.correlation == (group, 0, False, False) and one.operation is None)
        found[one.tag] = Made(one.action_line, one.document_key, one.source, group)
    return [found[tag] for tag in range(1, len(sent) + 1)]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("hole", HOLES)
def test_each_field_in_each_place_is_what_the_contract_says(hole: str, place: str) -> None:
    """By columns, one by one, backwards, and each alone: lines, keys, documents, groups and reasons, to the byte."""
    for at, around in enumerate(AROUND):
        made = encoder_config(place, template(hole, around))
        wanted = [outcome(place, hole, around, one) for one in MESSAGES]
        ways = made, replace(made, batch_complete_count=NO_SIZE)
        for way in ways:
            step = 1 if at % 2 else -1
            found = encoded(way, MESSAGES[::step])[::step]
            differing = [them for them in zip(MESSAGES, found, wanted, strict=True) if them[1] != them[2]]
            assert not differing, (around, way is made, *differing[:2])
    wanted = [outcome(place, hole, AROUND[0], one) for one in MESSAGES]
    alone = encoder_config(place, template(hole, AROUND[0]))
    assert [encoded(alone, [one])[0] for one in MESSAGES] == wanted


NO_SIZE = Template("")


def test_the_messages_are_of_every_kind() -> None:
    """Each place has messages that are composed and such as are rejected for each reason; no field is always absent."""
    reasons = {
        place: {out for hole in HOLES for one in MESSAGES if isinstance(out := outcome(place, hole, "{%s}", one), str)}
        for place in PLACES
    }
    assert reasons.pop("index") == {"missing-field", "malformed", "index-not-allowed"}
    assert set(map(frozenset, reasons.values())) == {frozenset({"missing-field", "malformed"})}
    for hole in HOLES:
        stored = {isinstance(outcome("routing", hole, "{%s}", one), Made) for one in MESSAGES}
        assert stored == ({False} if hole == "item" else {True, False}), hole


def test_most_messages_are_composed_by_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the comparison would be one of the slow way with itself."""
    calls = []
    slow = BulkEncoder._encode_one

    def counted(self: BulkEncoder, message: Message, context: TemplateContext) -> None:
        calls.append(message)
        slow(self, message, context)

    monkeypatch.setattr(BulkEncoder, "_encode_one", counted)
    for place in PLACES:
        for hole in HOLES:
            made = encoder_config(place, Template(f"{{{hole}|9}}"))
            calls.clear()
            encoded(made, MESSAGES)
            stored = sum(isinstance(outcome(place, hole, "{%s|9}", one), Made) for one in MESSAGES)
            assert len(calls) <= len(MESSAGES) - stored / 3, (place, hole, len(calls), stored)


def test_names_of_indices_are_kept_up_to_a_bound() -> None:
    """Whatever names messages give: what is kept of them has a limit, and each is right behind it as well."""
    names = IndexParameterCache(EncoderConfig(index=Template("{type}")))
    for number in range(3 * _MAX_NAMES):
        assert names.parameter(b"n-%d" % number) == b'"_index":"n-%d"' % number
        assert len(names._known) <= _MAX_NAMES
    assert names.parameter(b"n-0") == b'"_index":"n-0"'


@pytest.mark.parametrize("more", [{}, {"batch_complete_count": NO_SIZE}], ids=["columns", "one by one"])
def test_only_what_is_held_beside_its_message_uses_up_the_room(more: dict[str, Any]) -> None:
    """A document that is its own body costs nothing, however little room there is; the odd one in the middle does."""
    encoder = BulkEncoder(EncoderConfig(index=Template("docs"), **more), lambda: "made")
    plain, odd = [message(tag, b'{"n":1}') for tag in (1, 2, 3)], message(4, b' {"n":2}')
    refused, last = message(5, b"[1]"), message(6, b'{"n":3}')
    encoder.room_bytes = 0
    good, bad = encoder.encode([*plain, odd, refused, last], NOW)
    assert [one.tag for one in good] == [1, 2, 3, 4]
    assert (bad, encoder.left) == ([], [refused, last])
    encoder.room_bytes = 7
    good, bad = encoder.encode([*plain, odd, refused, last], NOW)
    assert [one.tag for one in good] == [1, 2, 3, 4, 6]
    assert ([one.message.tag for one in bad], encoder.left) == ([5], [])


def test_documents_of_a_copy_that_keeps_its_id_get_one_each() -> None:
    """An id that was made for a message as a whole must not become that of all of its documents."""
    raw = properties([(b"sidecar-retry-count", b"l" + bytes(8)), *origin(), (b"sidecar-id", long_string(b"kept"))])
    made = iter(range(9))
    encoder = BulkEncoder(
        EncoderConfig(index=Template("docs"), id_mode="generated", split="array"), lambda: f"made-{next(made)}"
    )
    good, _ = encoder.encode([message(1, b'[{"n":1},{"n":2}]', raw=raw)], NOW)
    assert [one.document_key for one in good] == [b"made-0", b"made-1"]


@pytest.mark.parametrize("place", ["id", "routing", "pipeline", "fields"])
def test_each_character_is_data_alone_among_plain_texts(place: str) -> None:
    """A column is looked at as a whole: one backslash in it must be enough."""
    made = encoder_config(place, Template("{header.h}"))
    for one in [chr(code) for code in range(0x80)] + ["\u00e9", "\u2028", "\U0001f389"]:
        sent = [
            Sent(headers={"h": text(value)}, texts={"message_id": b"m%d" % at})
            for at, value in enumerate([b"a", f"b{one}c".encode(), b"d"])
        ]
        assert encoded(made, sent) == [outcome(place, "header.h", "{%s}", each) for each in sent], one
