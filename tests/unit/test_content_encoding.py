"""`sidecar.core.encoding.content_encoding`: compressed bodies and text, through the composer as `run` uses it."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from typing import Any

import orjson
import pytest

from sidecar.core.encoding.content_encoding import plain_body
from sidecar.core.encoding.document import RefusedError
from sidecar.core.encoding.encoder import BulkEncoder, EncoderConfig
from sidecar.core.encoding.fields import Fields
from sidecar.core.encoding.template import Template
from sidecar.core.ledger import Ledger
from sidecar.core.message import Message
from tests.builders import message, properties

MEBIBYTE = 1 << 20
DOCUMENT = b'{"n":1e2,"text":"' + b"abc" * 200 + b'"}'


def raw_deflate(data: bytes) -> bytes:
    """Compress without zlib's header, as some clients do."""
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


def encoded(body: bytes, encoding: bytes, **more: Any) -> Message:
    """Return a message with a ``content_encoding``."""
    return message(body=body, raw=properties(content_encoding=encoding, message_id=b"7", **more))


def encoder(**options: Any) -> BulkEncoder:
    """Return a composer of the index ``docs``."""
    return BulkEncoder(EncoderConfig(**{"index": Template("docs"), **options}), lambda: "made")


def composed(one: Message, **options: Any) -> Message:
    """Return the message, composed."""
    accepted, rejections = encoder(**options).encode([one], 0.0)
    assert rejections == []
    return accepted[0]


def refusal(one: Message, **options: Any) -> tuple[str, str]:
    """Return reason and detail of the reject that a message becomes."""
    accepted, (reject,) = encoder(**options).encode([one], 0.0)
    assert accepted == []
    return reject.reason, reject.detail


@pytest.mark.parametrize("options", [{}, {"routing": Template("{type|}")}], ids=["plain path", "by recipe"])
@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (gzip.compress(DOCUMENT, mtime=0), b"gzip"),
        (gzip.compress(DOCUMENT, mtime=0), b"x-gzip"),
        (gzip.compress(DOCUMENT, mtime=0), b" GZIP "),
        (zlib.compress(DOCUMENT), b"deflate"),
        (zlib.compress(DOCUMENT, 0), b"deflate"),
        (raw_deflate(DOCUMENT), b"deflate"),
    ],
)
def test_gzip_and_deflate_are_undone(body: bytes, encoding: bytes, options: dict[str, Any]) -> None:
    """The document is what was compressed, byte for byte; the body stays what came, for the dead letters."""
    one = composed(encoded(body, encoding), **options)
    assert one.source == DOCUMENT
    assert one.body == body
    assert orjson.loads(one.action_line) == {"index": {"_id": "7"}}


@pytest.mark.parametrize("encoding", [b"", b"identity", b"utf-8", b"UTF-8", b"binary", b"us-ascii"])
def test_names_of_no_compression_leave_the_body_alone(encoding: bytes) -> None:
    """Spring AMQP and Celery put the character set there; the same bytes object goes on, and takes no more memory."""
    one = encoded(DOCUMENT, encoding)
    held = one.memory_bytes
    assert composed(one).source is one.body
    assert one.memory_bytes == held


@pytest.mark.parametrize("encoding", [b"br", b"zstd", b"gzip, gzip", b"\xff", b"x" * 255])
def test_an_unknown_encoding_is_malformed_and_named(encoding: bytes) -> None:
    """Its bytes are no document that anybody meant."""
    reason, detail = refusal(encoded(DOCUMENT, encoding))
    assert reason == "malformed"
    assert f"the content_encoding {encoding.decode(errors='replace')[:64]!r} is unknown" in detail


@pytest.mark.parametrize(
    ("body", "encoding", "says"),
    [
        (b"", b"gzip", "end too early"),
        (DOCUMENT, b"gzip", "is not gzip data"),
        (DOCUMENT, b"deflate", "is not deflate data"),
        (gzip.compress(DOCUMENT, mtime=0)[:-1], b"gzip", "end too early"),
        (gzip.compress(DOCUMENT, mtime=0)[:-9], b"gzip", "end too early"),
        (zlib.compress(DOCUMENT)[:-5], b"deflate", "end too early"),
        (gzip.compress(DOCUMENT, mtime=0) + b"\0", b"gzip", "something follows"),
        (gzip.compress(DOCUMENT, mtime=0) * 2, b"gzip", "something follows"),
        (zlib.compress(DOCUMENT) + b"{}", b"deflate", "something follows"),
        (gzip.compress(DOCUMENT, mtime=0)[:-8] + bytes(8), b"gzip", "is not gzip data"),
        (gzip.compress(b"[1]", mtime=0), b"gzip", "not a JSON object"),
        (gzip.compress(b'{"a":"\xff"}', mtime=0), b"gzip", "not UTF-8"),
        (gzip.compress(b'{"a":1}\n{"delete":{"_id":"victim"}}', mtime=0), b"gzip", "line breaks and is not valid JSON"),
    ],
)
def test_what_is_no_compressed_document_is_malformed(body: bytes, encoding: bytes, says: str) -> None:
    """Cut short, with something behind it, damaged, or no document inside."""
    reason, detail = refusal(encoded(body, encoding))
    assert reason == "malformed"
    assert says in detail


def test_something_behind_a_body_of_many_steps_is_found() -> None:
    """The input is looked at in steps; the stream may end exactly with one of them."""
    step = 256 * 1024
    sizes = range(3 * step - 99, 3 * step)
    size, whole = next((size, whole) for size in sizes if not len(whole := zlib.compress(b"x" * size, 0)) % step)
    assert plain_body(encoded(whole, b"deflate"), 1 << 30) == b"x" * size
    with pytest.raises(RefusedError, match="something follows"):
        plain_body(encoded(whole + b"x", b"deflate"), 1 << 30)


@pytest.mark.parametrize("size", [1, 256 * 1024 - 1, 256 * 1024, 256 * 1024 + 1, 256 * 1024 + 21, 3 * MEBIBYTE])
def test_the_bound_is_exact(size: int) -> None:
    """What holds as much as it may is taken, one byte more is too large.

    With 21 bytes above a step, raw deflate has all of its input taken in while there is still more to come out.
    """
    data = b" " * size
    for body in (zlib.compress(data, 0), zlib.compress(data, 9), raw_deflate(data)):
        assert plain_body(encoded(body, b"deflate"), size) == data
        with pytest.raises(RefusedError, match="above") as caught:
            plain_body(encoded(body, b"deflate"), size - 1)
        assert caught.value.reason == "too-large"


def test_a_bomb_takes_no_more_than_the_bound() -> None:
    """A quarter of a megabyte that stands for 256 of them: nothing goes on once the bound is reached."""
    compressor = zlib.compressobj(9, wbits=31)
    bomb = b"".join([compressor.compress(bytes(MEBIBYTE)) for _ in range(256)]) + compressor.flush()
    assert len(bomb) < MEBIBYTE / 2
    one = encoded(bomb, b"gzip")
    tracemalloc.start()
    try:
        assert refusal(one, max_bytes=4 * MEBIBYTE)[0] == "too-large"
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    print(f"{len(bomb):,} bytes for 256 MiB: {peak_bytes:,} bytes at most")
    assert peak_bytes < 6 * MEBIBYTE


def test_the_document_is_counted_beside_the_body() -> None:
    """Both are held until the message is settled."""
    of = Ledger("work", 1)
    body = gzip.compress(DOCUMENT, mtime=0)
    one = Message(of, 1, 0, b"\0\4work", properties(content_encoding=b"gzip"), body, len(body))
    composed(one)
    assert one.memory_bytes == len(body) + len(DOCUMENT)
    assert of.memory_bytes == len(DOCUMENT)


def test_templates_look_into_what_was_compressed() -> None:
    """`body.PATH` and `sha256` are those of the document, however it was packed."""
    ids = set()
    for body, encoding in ((gzip.compress(b'{"n":5}', mtime=0), b"gzip"), (zlib.compress(b'{"n":5}'), b"deflate")):
        one = composed(encoded(body, encoding), id_mode="template", id=Template("{body.n}-{sha256}"))
        ids.add(orjson.loads(one.action_line)["index"]["_id"])
    (document_id,) = ids
    assert document_id.startswith("5-")


def test_a_deletion_has_no_need_of_its_body() -> None:
    """Clients say gzip of empty bodies too."""
    assert composed(encoded(b"", b"gzip"), action=Template("delete")).source is None


@pytest.mark.parametrize("action", ["update", "upsert"])
def test_what_was_compressed_cant_smuggle_in_neighbours_of_doc(action: str) -> None:
    """It is looked at like any other body."""
    body = gzip.compress(b'{"a":1},"upsert":{"x":1}', mtime=0)
    assert refusal(encoded(body, b"gzip"), action=Template(action))[0] == "malformed"


# Text ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["", "plain", '{"a":1}', 'quo"te \\ \n\r\t\0 \x7f', "Ünïcödé \u2028 🎉", '"}\n{"delete":{"_id":"victim"}}\n'],
)
def test_text_is_wrapped(text: str) -> None:
    """Whatever it holds: it is the value of one field, on one line."""
    one = composed(message(body=text.encode()), content="text")
    assert one.source is not None
    assert b"\n" not in one.source
    assert orjson.loads(one.source) == {"message": text}


@pytest.mark.parametrize(
    ("action", "wrapped"),
    [
        ("create", {"message": "x"}),
        ("update", {"doc": {"message": "x"}}),
        ("upsert", {"doc": {"message": "x"}, "doc_as_upsert": True}),
    ],
)
def test_text_goes_with_every_action(action: str, wrapped: dict[str, Any]) -> None:
    """The document of an update is wrapped once more."""
    one = composed(message(body=b"x", raw=properties(message_id=b"7")), content="text", action=Template(action))
    assert orjson.loads(one.source or b"") == wrapped


def test_text_that_is_not_utf8_is_malformed() -> None:
    """Any replacement would be another text."""
    assert refusal(message(body=b"caf\xe9"), content="text") == ("malformed", "the body is not UTF-8: byte 3 of 4")


def test_text_may_be_compressed() -> None:
    """The one is undone before the other is done."""
    assert composed(encoded(gzip.compress(b"a\nb", mtime=0), b"gzip"), content="text").source == b'{"message":"a\\nb"}'


def test_text_no_request_could_carry_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured as it would be sent."""
    monkeypatch.setattr("sidecar.core.encoding.content_encoding.MAX_DOCUMENT_BYTES", 20)
    assert composed(message(body=b"123456"), content="text").source == b'{"message":"123456"}'
    assert refusal(message(body=b"1234567"), content="text")[0] == "too-large"


def test_a_body_without_properties_is_malformed() -> None:
    """No broker sends that; it costs its neighbours nothing."""
    accepted, rejections = encoder(id_mode="none").encode([message(1, raw=b""), message(2)], 0.0)
    assert [one.tag for one in accepted] == [2]
    assert [reject.reason for reject in rejections] == ["malformed"]


@pytest.mark.parametrize("more", [{}, {"fields": {"queue": "{queue}"}}, {"split": "array"}])
def test_no_more_is_brought_to_light_than_there_is_room_for(more: dict[str, Any]) -> None:
    """What a chunk holds beyond that is left for later, in its order; one message is always looked at."""
    document = b'{"n":"%s"}' % (b" " * 10_000)
    whole = b"[%s]" % document if "split" in more else document
    values = {**more, "fields": Fields({"queue": Template("{queue}")})} if "fields" in more else more
    encoder = BulkEncoder(EncoderConfig(index=Template("docs"), **values), lambda: "made")
    raw = properties(message_id=b"m", content_encoding=b"gzip")
    chunk = [message(tag, gzip.compress(whole, mtime=0), raw=raw) for tag in range(1, 10)]
    encoder.room_bytes = 25_000
    composed, rejections = encoder.encode(chunk, 0.0)
    assert (len(composed), rejections) == (3, [])
    assert encoder.left == chunk[3:]
    encoder.room_bytes = 0
    assert len(encoder.encode(encoder.left, 0.0)[0]) == 1
    assert encoder.left == chunk[4:]
    encoder.room_bytes = 1_000_000
    assert len(encoder.encode(encoder.left, 0.0)[0]) == 5
    assert encoder.left == []
