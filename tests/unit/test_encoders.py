"""What holds of whatever prepares messages for a sink, of each kind: the memory account, and nothing is left behind."""

from __future__ import annotations

import asyncio
import gzip
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from sidecar.core.encoding.correlation_encoder import CorrelationEncoder
from sidecar.core.encoding.encoder import BulkEncoder, EncoderConfig
from sidecar.core.encoding.fields import Fields
from sidecar.core.encoding.forward import ForwardConfig, ForwardEncoder
from sidecar.core.encoding.split import PART_BYTES
from sidecar.core.encoding.template import Template
from sidecar.library.transforming import hook
from tests.builders import ledger, long_string, message, properties

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.core.encoding.encoder import Rejection
    from sidecar.core.message import Message
    from sidecar.pipeline.work import Encoder

NOW = 1_700_000_000.0
PLENTY = 1 << 30
FINISHED = properties([(b"done", long_string(b"yes"))], message_id=b"signal")


def objects(number: int) -> bytes:
    """Return the body of a plain document."""
    return b'{"n":%d,"t":"abc"}' % number


def pretty(number: int) -> bytes:
    """Return the body of a document that must be rewritten."""
    return b'{"n":%d,\n "t":"abc"}' % number


def mixed(number: int) -> bytes:
    """Return a body: plain, to be rewritten, or no document at all."""
    return (objects(number), pretty(number), b"[%d" % number)[number % 3]


def arrays(number: int) -> bytes:
    """Return a body with up to three documents."""
    return b"[" + b",".join(objects(number) for _ in range(number % 4)) + b"]"


def lines(number: int) -> bytes:
    """Return the same, by lines."""
    return b"\n".join(mixed(number + at).replace(b"\n", b"") for at in range(number % 4))


def transformed(shown: Any) -> object:
    """Return nothing, a document, or several; raise an exception for some."""
    number = shown.json()["n"]
    if number % 5 == 4:
        raise ValueError
    return (None, {"n": number}, [{"n": number, "of": at} for at in range(3)], [])[number % 4]


async def transformed_later(shown: Any) -> object:
    """Return the same, asynchronously."""
    return transformed(shown)


@dataclass(frozen=True)
class Kind:
    """One kind of preparing messages.

    Attributes:
        sink: what does it: ``bulk``, ``publish`` or ``handler``.
        config: what is otherwise than for plain documents.
        body: of the message of each number.
        is_compressed: bodies come compressed.
        signals: each fourth message is nothing but a signal.
        envelope: bodies go into one.
        has_room: nothing is made that takes room, so no chunk is cut short.
    """

    sink: str = "bulk"
    config: dict[str, Any] = field(default_factory=dict)
    body: Callable[[int], bytes] = objects
    is_compressed: bool = False
    signals: bool = False
    envelope: bool = False
    has_room: bool = False

    def encoder(self) -> Encoder:
        """Return a new encoder."""
        config = EncoderConfig(**{"index": Template("docs"), **self.config})
        if self.sink == "bulk":
            return BulkEncoder(config, lambda: "made")
        forward = ForwardConfig(routing_key=Template("{header.to|next}"), envelope=self.envelope)
        return ForwardEncoder(config, forward) if self.sink == "publish" else CorrelationEncoder(config)

    def messages(self, numbers: int) -> list[Message]:
        """Return so many new messages of one ledger, counted in its account as a pipeline does."""
        of = ledger(delivered=numbers)
        encoding = {"content_encoding": b"gzip"} if self.is_compressed else {}
        made = []
        for number in range(numbers):
            headers = [(b"group", long_string(b"g%d" % (number % 2)))]
            raw = properties(headers, message_id=b"m%d" % number, **encoding)
            body = gzip.compress(self.body(number), mtime=0) if self.is_compressed else self.body(number)
            if self.signals and number % 4 == 3:
                raw, body = FINISHED, b""
            made.append(message(number + 1, body, of=of, raw=raw))
        of.memory_bytes = sum(one.memory_bytes for one in made)
        if prepare := self.config.get("prepare"):
            asyncio.run(prepare(made))
        return made


UPDATE, UPSERT, DELETE = Template("update"), Template("upsert"), Template("delete")
GROUPED = {
    "batch_key": Template("{header.group|}"),
    "batch_flush_when": Template("{header.done|}"),
}
SYNCHRONOUS, ASYNCHRONOUS = hook(transformed)._asdict(), hook(transformed_later)._asdict()
FIELDS = {"fields": Fields({"key": Template("{routing_key}")})}
KINDS = {
    "plain": Kind(has_room=True),
    "rewritten": Kind(body=pretty),
    "mixed": Kind(body=mixed),
    "fields": Kind(config=FIELDS, body=mixed),
    "compressed": Kind(is_compressed=True, body=mixed),
    "text": Kind(config={"content": "text"}, body=mixed),
    "text, compressed": Kind(config={"content": "text", **FIELDS}, is_compressed=True),
    "update": Kind(config={"action": UPDATE}, body=mixed),
    "upsert": Kind(config={"action": UPSERT}),
    "delete": Kind(config={"action": DELETE}, has_room=True),
    "index by body": Kind(config={"index": Template("docs-{body.n}")}, body=mixed),
    "generated ids": Kind(config={"id_mode": "generated"}, body=pretty),
    "groups of one template": Kind(config={"batch_key": Template("{header.group|}")}, body=mixed),
    "groups and signals": Kind(config=GROUPED, body=mixed, signals=True),
    "coalesced": Kind(config={"coalesce": "merge", "action": UPDATE}, body=mixed),
    "array": Kind(config={"split": "array"}, body=arrays),
    "lines": Kind(config={"split": "lines", **FIELDS}, body=lines),
    "lines, compressed": Kind(config={"split": "lines"}, body=lines, is_compressed=True),
    "array, groups and signals": Kind(config={"split": "array", **GROUPED}, body=arrays, signals=True),
    "transform": Kind(config=SYNCHRONOUS),
    "transform, asynchronous": Kind(config=ASYNCHRONOUS, is_compressed=True),
    "publish": Kind("publish", body=mixed, has_room=True),
    "publish, groups and signals": Kind("publish", config=GROUPED, body=mixed, signals=True, has_room=True),
    "publish, envelope": Kind("publish", body=mixed, envelope=True),
    "publish, envelope, compressed": Kind("publish", body=mixed, envelope=True, is_compressed=True),
    "publish, envelope, groups and signals": Kind("publish", config=GROUPED, envelope=True, signals=True),
    "handler": Kind("handler", has_room=True),
    "handler, groups": Kind("handler", config=GROUPED, signals=True, has_room=True),
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


def whole(one: Message) -> Message:
    """Return the delivery that a message is, or is a part of."""
    parts = getattr(one, "split", None)
    return parts.message if parts is not None else one


def made_of(encoded: list[Message], rejections: list[Rejection]) -> list[Message]:
    """Return all messages that preparing gave, in no order."""
    return [*encoded, *(rejection.message for rejection in rejections)]


def described(encoded: list[Message], rejections: list[Rejection]) -> list[tuple[object, ...]]:
    """Return all that a sink or a dead letter takes from messages."""
    told: list[tuple[object, ...]] = [
        (
            one.tag,
            getattr(one, "split_index", 0),
            one.action_line,
            one.source,
            one.document_key,
            one.action,
            getattr(one, "made", None),
        )
        + ((one.correlation,) if hasattr(one, "correlation") else ())
        for one in encoded
    ]
    return told + [(rejection.message.tag, *rejection[1:]) for rejection in rejections]


def reckoned(messages: list[Message], given: list[Message]) -> int:
    """Return what messages hold: what came, and each document that isn't the body itself."""
    own = {id(one): one for one in (*messages, *given)}.values()
    size = 0
    for one in own:
        is_part = getattr(one, "split", None) is not None
        size += PART_BYTES if is_part else len(one.properties)
        size += len(one.body) + (len(one.source or b"") if one.source is not one.body else 0)
    return size


@every_kind
@pytest.mark.parametrize("room_bytes", [0, 100, PLENTY])
def test_the_ledger_counts_what_messages_hold(kind: Kind, room_bytes: int) -> None:
    """Whatever becomes of a body: after each chunk, of those looked at and those left; nothing when all are settled."""
    encoder, messages = kind.encoder(), kind.messages(12)
    of = messages[0].ledger
    given: list[Message] = []
    chunk = messages
    while chunk:
        encoder.room_bytes = room_bytes
        given += made_of(*encoder.encode(chunk, NOW))
        assert of.memory_bytes == reckoned(messages, given)
        rest = list(encoder.left)
        assert len(rest) < len(chunk)
        chunk = rest
    for one in given:
        if whole(one) is not one:
            assert one.split is not None
            if one.split.on_stored(one):
                one.split.outcome()
    of.mark_stored(messages)
    assert of.memory_bytes == 0


@every_kind
@pytest.mark.parametrize("room_bytes", [0, 60, 200, 1_000])
def test_a_chunk_that_is_cut_short_leaves_its_rest_once(kind: Kind, room_bytes: int) -> None:
    """At least one goes, what is left keeps its order, and all chunks together give what one gives."""
    encoder, messages = kind.encoder(), kind.messages(12)
    encoded: list[Message] = []
    rejections: list[Rejection] = []
    chunk = messages
    calls = 0
    while chunk:
        encoder.room_bytes = room_bytes
        found = encoder.encode(chunk, NOW)
        looked_at = {whole(one).tag for one in made_of(*found)}
        rest = list(encoder.left)
        assert rest == chunk[len(chunk) - len(rest) :] != chunk
        assert looked_at == {one.tag for one in chunk[: len(chunk) - len(rest)]} != set()
        encoded += found[0]
        rejections += found[1]
        chunk = rest
        calls += 1
    assert (calls == 1) if kind.has_room else (calls > 1 or room_bytes)
    at_once = kind.messages(12)
    alone = kind.encoder()
    alone.room_bytes = PLENTY
    assert described(encoded, rejections) == described(*alone.encode(at_once, NOW))
    assert alone.left == []


@every_kind
def test_no_chunk_leaves_anything_to_the_next(kind: Kind) -> None:
    """Neither the rest of one that ran short nor its room: a chunk that has room goes whole."""
    for following in (1, 5):
        encoder, fresh = kind.encoder(), kind.encoder()
        encoder.room_bytes = 0
        encoder.encode(kind.messages(8), NOW)
        assert bool(encoder.left) != kind.has_room
        encoder.room_bytes = fresh.room_bytes = PLENTY
        found = encoder.encode(kind.messages(following), NOW)
        assert encoder.left == []
        assert described(*found) == described(*fresh.encode(kind.messages(following), NOW))
