"""`sidecar.core.encoding.split`."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Any

import pytest

from sidecar.core.encoding.document import RefusedError
from sidecar.core.encoding.encoder import BulkEncoder, EncoderConfig
from sidecar.core.encoding.split import PART_BYTES, split
from sidecar.core.encoding.template import Template
from sidecar.core.wire.republish import Failure, dead_letter_headers
from tests.builders import ledger, long_string, message, properties

if TYPE_CHECKING:
    from sidecar.core.encoding.split import Mode
    from sidecar.core.message import Message

MOST = 1_000_000


def bodies(body: bytes, mode: Mode, most: int = MOST) -> list[bytes]:
    return [part.body for part in split(message(1, body), body, mode, most)]


@pytest.mark.parametrize(
    ("body", "documents"),
    [
        (b"[{}]", [b"{}"]),
        (b' [ {"a":1} , {"b":[1,2]}\n]\r\n', [b'{"a":1}', b'{"b":[1,2]}']),
        (b'[{"a":1.0,"b":1e400,"c":"\\u00e9,]"}]', [b'{"a":1.0,"b":1e400,"c":"\\u00e9,]"}']),
        ('[{"a":"é"},{"b":"]"}]'.encode(), ['{"a":"é"}'.encode(), b'{"b":"]"}']),
        (b'[{"a":\n1}]', [b'{"a":\n1}']),
        (b'/*[*/[{"a":1}/*,*/,{"b":2}]// ]', [b'{"a":1}', b'{"b":2}']),
        (b"// [\n[1, // x\n2]", [b"1", b"2"]),
        (b'[1,"x",[2],null]', [b"1", b'"x"', b"[2]", b"null"]),
    ],
)
def test_the_elements_of_an_array_keep_their_exact_spelling(body: bytes, documents: list[bytes]) -> None:
    """What isn't an object is refused as a document of its own, later."""
    assert bodies(body, "array") == documents


@pytest.mark.parametrize(
    ("body", "documents"),
    [
        (b'{"a":1}\n{"b":2}\n', [b'{"a":1}', b'{"b":2}']),
        (b'{"a":1}\r\n\r\n  {"b":2}', [b'{"a":1}', b'{"b":2}']),
        (b"\n\nnot JSON\n", [b"not JSON"]),
    ],
)
def test_each_line_that_is_not_blank_is_a_document(body: bytes, documents: list[bytes]) -> None:
    """With any of the usual line ends, and none at the end."""
    assert bodies(body, "lines") == documents


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", "not a JSON array"),
        (b'{"a":1}', "not a JSON array"),
        (b"[]", "no document"),
        (b"[ ]", "no document"),
        (b"[{}", "not a JSON array"),
        (b"[{},]", "at byte 4"),
        (b"[,{}]", "at byte 1"),
        (b"[{} {}]", "at byte 4"),
        (b'["\xc3\xa9",}]', "at byte 6"),
        (b"[{]}]", "at byte 2"),
        (b"[{}]]", "at byte 3"),
        (b"[NaN]", "at byte 1"),
        (b"[1", "not a JSON array"),
        (b'["\xff"]', "not UTF-8"),
        (b"[" * 100_000 + b"]" * 100_000, "nested more than 1000 levels"),
    ],
)
def test_what_is_no_array_is_malformed_as_a_whole(body: bytes, detail: str) -> None:
    """Nothing of it is stored: where one document ends and another begins isn't known."""
    with pytest.raises(RefusedError, match=detail) as caught:
        bodies(body, "array")
    assert caught.value.reason == "malformed"


def test_blank_lines_hold_no_document() -> None:
    """Nothing is acked of which nothing was stored."""
    with pytest.raises(RefusedError, match="no document"):
        bodies(b" \r\n\n", "lines")


@pytest.mark.parametrize(
    ("mode", "pieces"),
    [("array", "[%s]"), ("array", "// x\n[%s]"), ("lines", "%s"), ("lines", "\n%s\n\n")],
)
def test_what_the_documents_take_beside_their_bytes_is_bounded(mode: Mode, pieces: str) -> None:
    """A few bytes of body could be a million objects otherwise. All of them are taken or none: no part is left out."""
    between = "," if mode == "array" else "\n"
    for count in range(1, 6):
        body = (pieces % between.join(map(str, range(count)))).encode()
        if count <= 3:
            assert bodies(body, mode, 3 * PART_BYTES) == [b"%d" % item for item in range(count)]
            continue
        with pytest.raises(RefusedError, match="more than 3 documents") as caught:
            bodies(body, mode, 3 * PART_BYTES)
        assert caught.value.reason == "too-large"


def test_memory_is_counted_and_given_back_with_the_message() -> None:
    """For each document its bytes and objects, until the message is settled."""
    of = ledger(delivered=1)
    whole = message(1, b"[{},{}]", of=of)
    of.memory_bytes = whole.memory_bytes
    parts = split(whole, whole.body, "array", MOST)
    assert of.memory_bytes == whole.memory_bytes + 2 * (PART_BYTES + 2)
    for part in parts:
        assert part.split is not None
        part.split.on_stored(part)
    assert parts[0].split is not None
    assert parts[0].split.outcome() is None
    of.mark_stored([whole])
    assert of.memory_bytes == 0


def encoded(
    body: bytes, raw: bytes | None = None, **encoder_config: Any
) -> tuple[list[Message], list[tuple[int, str]]]:
    values = {"index": Template("docs"), "split": "array", **encoder_config}
    encoder = BulkEncoder(EncoderConfig(**values), lambda: "made")
    raw = properties(message_id=b"m") if raw is None else raw
    parts, rejections = encoder.encode([message(1, body, raw=raw)], 0.0)
    return parts, [(reject.message.split_index if reject.message.split else -1, reject.reason) for reject in rejections]


def test_ids_are_the_message_id_and_the_place() -> None:
    """By default, and with any template over `{item}`."""
    parts, _ = encoded(b"[{},{}]")
    assert [part.action_line for part in parts] == [b'{"index":{"_id":"m-0"}}\n', b'{"index":{"_id":"m-1"}}\n']
    parts, _ = encoded(b'[{"k":"a"}]', id_mode="template", id=Template("{body.k}/{item}"))
    assert parts[0].document_key == b"a/0"
    parts, _ = encoded(b"[{}]", b"\0\0")
    assert parts[0].action_line == b'{"index":{}}\n'


def test_templates_look_into_their_own_document() -> None:
    """`body.PATH` and `sha256` are those of the document, fields are added to each."""
    parts, rejections = encoded(b'[{"to":"x"},{"to":"y"},{}]', index=Template("{body.to}"))
    assert [part.action_line for part in parts] == [
        b'{"index":{"_index":"x","_id":"m-0"}}\n',
        b'{"index":{"_index":"y","_id":"m-1"}}\n',
    ]
    assert rejections == [(2, "missing-field")]


def test_a_bad_document_is_rejected_and_its_neighbours_are_not() -> None:
    """Each gets the look that a whole body gets."""
    parts, rejections = encoded(b'[{"a":1},2,{"b":2}]')
    assert [part.split_index for part in parts] == [0, 2]
    assert rejections == [(1, "malformed")]
    parts, rejections = encoded(b"{}\n[1]\n{}", split="lines")
    assert [part.split_index for part in parts] == [0, 2]


def test_a_compressed_body_is_undone_once() -> None:
    """The documents in it are plain, whatever the property says."""
    raw = properties(message_id=b"m", content_encoding=b"gzip")
    parts, _ = encoded(gzip.compress(b"[{},{}]", mtime=0), raw)
    assert [part.source for part in parts] == [b"{}", b"{}"]


def test_lines_of_text_are_documents() -> None:
    """Each of them wrapped."""
    parts, _ = encoded(b"one\ntwo", split="lines", content="text")
    assert [part.source for part in parts] == [b'{"message":"one"}', b'{"message":"two"}']


def test_what_completes_a_group_does_so_with_its_last_document() -> None:
    """Or the first one would leave alone. A body that is empty is a mere signal, and no document."""
    raw = properties([(b"end", long_string(b"1"))], message_id=b"m")
    parts, _ = encoded(b"[{},{}]", raw, batch_flush_when=Template("{header.end|}"))
    assert [part.correlation.completes for part in parts] == [False, True]
    (signal,), _ = encoded(b"", raw, batch_flush_when=Template("{header.end|}"))
    assert signal.correlation.is_signal
    assert signal.split is None


def test_the_message_is_dead_lettered_with_the_list_of_those_at_fault() -> None:
    """When the last one is decided, and not before; the reason is that of the first."""
    parts, _ = encoded(b"[{},{},{},{}]")
    joint = parts[0].split
    assert joint is not None
    assert not joint.on_rejected(Failure(parts[3], "rejected", "no number", 400, "document_parsing_exception"))
    assert not joint.on_stored(parts[0])
    assert not joint.on_stored(parts[2])
    assert joint.on_rejected(Failure(parts[1], "missing-field", "the message has no x"))
    letter = joint.outcome()
    assert letter is not None
    assert letter.message is joint.message
    assert (letter.reason, letter.items) == ("missing-field", (1, 3))
    assert letter.detail == "2 of 4 documents can't be stored: 1: the message has no x; 3: no number"
    headers = dict(
        dead_letter_headers(letter, token=b"1", action="index", index="docs", document_id=b"m-1", failed_at=0.0)
    )
    assert headers[b"sidecar-items"] == long_string(b"1,3")


def test_of_many_at_fault_the_first_are_listed() -> None:
    """The header fits into any frame."""
    letter = Failure(message(1), "rejected", "", items=tuple(range(10_000)))
    headers = dict(dead_letter_headers(letter, token=b"1", action="", index="", document_id=b"", failed_at=0.0))
    assert len(headers[b"sidecar-items"]) < 1024
    assert headers[b"sidecar-items"].endswith("199,…".encode())


def test_a_document_that_is_delayed_takes_the_message_along() -> None:
    """Once all are decided, for the longest delay of them; those at fault are found again when it is back."""
    parts, _ = encoded(b"[{},{},{}]")
    joint = parts[0].split
    assert joint is not None
    joint.on_delayed(Failure(parts[0], "index-blocked", "", delay_milliseconds=10))
    joint.on_delayed(Failure(parts[1], "index-blocked", "", delay_milliseconds=20))
    assert joint.on_rejected(Failure(parts[2], "rejected", ""))
    letter = joint.outcome()
    assert letter is not None
    assert (letter.verdict, letter.delay_milliseconds, letter.message) == ("delay", 20, joint.message)


def test_documents_that_cannot_be_delayed_are_open_again_and_memory_adds_up() -> None:
    """Those that were stored stay decided; the message is settled when the others are decided anew."""
    documents, _ = encoded(b"[{},{},{}]")
    first, second, third = documents
    joint = first.split
    assert joint is not None
    own = joint.message.memory_bytes
    assert not joint.on_stored(first)
    assert not joint.on_delayed(Failure(second, "index-blocked", "", delay_milliseconds=10))
    assert joint.on_delayed(Failure(third, "index-blocked", "", delay_milliseconds=20))
    letter = joint.outcome()
    assert letter is not None
    assert letter.parts is joint
    assert joint.reopen() == [second, third]
    assert not joint.on_stored(second)
    assert joint.on_stored(third)
    assert joint.outcome() is None
    assert joint.message.memory_bytes == own + sum(document.memory_bytes for document in documents)


@pytest.mark.parametrize("delays", [(10, 30, 20), (30, 10, 20), (20, 10, 30)])
def test_a_message_is_delayed_for_the_longest_delay_of_its_documents(delays: tuple[int, ...]) -> None:
    """Wherever that document stands."""
    documents, _ = encoded(b"[{},{},{}]")
    joint = documents[0].split
    assert joint is not None
    for document, milliseconds in zip(documents, delays, strict=True):
        joint.on_delayed(Failure(document, "index-blocked", "", delay_milliseconds=milliseconds))
    letter = joint.outcome()
    assert letter is not None
    assert letter.delay_milliseconds == 30


@pytest.mark.parametrize("size", [1, 3])
def test_documents_use_up_the_room_and_later_messages_wait(size: int) -> None:
    """The room may be exceeded by one message; those behind it are left untouched, in their order."""
    encoder = BulkEncoder(EncoderConfig(index=Template("docs"), split="array"), lambda: "made")
    of = ledger(delivered=4)
    held = [message(tag, b"[{},{}]", of=of, raw=properties(message_id=b"m")) for tag in range(1, 5)]
    each = 2 * (PART_BYTES + len(b"{}"))
    encoder.room_bytes = size * each - 1
    documents, rejections = encoder.encode(held, 0.0)
    assert (len(documents), rejections, encoder.left) == (2 * size, [], held[size:])
    assert of.memory_bytes == size * each
    documents, _ = encoder.encode(encoder.left, 0.0)  # with room for `size` again, and none left over
    assert len(documents) == 2 * min(size, 4 - size)
