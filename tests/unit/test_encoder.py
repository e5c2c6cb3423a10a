"""`sidecar.core.encoding.encoder`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
import pytest

from sidecar.core.encoding.document import fragment
from tests.builders import encoder, message, properties, tags

if TYPE_CHECKING:
    from sidecar.core.message import Message


def encoded(body: bytes, raw: bytes = b"\0\0", *, action: str = "index", with_message_id: bool = True) -> Message:
    """Return the message that `body` becomes."""
    accepted, rejections = encoder(action, with_message_id=with_message_id).encode([message(body=body, raw=raw)], 0.0)
    assert rejections == []
    return accepted[0]


def refusal(body: bytes, raw: bytes = b"\0\0") -> tuple[str, str]:
    """Return reason and detail of the reject that `body` becomes."""
    accepted, rejections = encoder("index", with_message_id=True).encode([message(body=body, raw=raw)], 0.0)
    assert accepted == []
    return rejections[0].reason, rejections[0].detail


def test_a_plain_document_is_passed_through_as_it_is() -> None:
    """The same bytes object: nothing is copied, let alone decoded."""
    body = b'{"a":1e2, "n":12345678901234567890123}'
    assert encoded(body).source is body


def test_the_id_is_the_message_id() -> None:
    """It is the key of the order too."""
    one = encoded(b"{}", properties(message_id=b"order-7"))
    assert (one.action_line, one.document_key) == (b'{"index":{"_id":"order-7"}}\n', b"order-7")


@pytest.mark.parametrize("raw", [b"\0\0", properties(message_id=b""), properties(content_type=b"application/json")])
def test_without_a_message_id_elasticsearch_makes_one(raw: bytes) -> None:
    """An empty one counts as none: Elasticsearch would refuse it."""
    one = encoded(b"{}", raw, action="create")
    assert (one.action_line, one.document_key) == (b'{"create":{}}\n', None)


def test_the_message_id_can_be_left_unused() -> None:
    """``SIDECAR_ID=none``."""
    one = encoded(b"{}", properties(message_id=b"7"), with_message_id=False)
    assert (one.action_line, one.document_key) == (b'{"index":{}}\n', None)


@pytest.mark.parametrize(
    "document_id",
    [b'"', b"\\", b'"}}\n{"delete":{"_id":"victim"}}\n', b"\n", b"\r", b"\0", b"\x7f", "é\u2028".encode(), b"a" * 255],
)
def test_an_id_is_data_whatever_bytes_it_holds(document_id: bytes) -> None:
    """Quotes and line breaks can neither end the field nor the line."""
    line = encoded(b"{}", properties(message_id=document_id)).action_line
    assert line.count(b"\n") == 1
    assert orjson.loads(line) == {"index": {"_id": document_id.decode()}}


def test_an_id_that_is_not_utf8_is_malformed() -> None:
    """There is no JSON for it, and any replacement could be another message's id."""
    assert refusal(b"{}", properties(message_id=b"\xff"))[0] == "malformed"


def test_properties_cut_short_are_malformed_and_cost_nobody_else_anything() -> None:
    """The message is rejected, its neighbours are composed."""
    held = [message(1), message(2, raw=properties(message_id=b"12345")[:-2]), message(3)]
    accepted, rejections = encoder("index", with_message_id=True).encode(held, 0.0)
    assert tags(accepted) == [1, 3]
    assert [(reject.message, reject.reason) for reject in rejections] == [(held[1], "malformed")]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "empty"),
        (b" \r\n\t", "empty"),
        (b"[]", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"17", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"a":1', "not a JSON object"),
        (b'{"a":1},', "not a JSON object"),
        (b"\xef\xbb\xbf[1]", "not a JSON object"),
        (b'\xef\xbb\xbf\xef\xbb\xbf{"a":1}', "not a JSON object"),
        (b'{"a":"\xff"}', "not UTF-8: byte 6 of 9"),
        (b'{"a":"\xed\xa0\x80"}', "not UTF-8"),
        ('{"a":1}'.encode("utf-16"), "looks like UTF-16"),
        ('{"a":1}'.encode("utf-16-le"), "looks like UTF-16"),
        ('{"a":1}'.encode("utf-16-be"), "looks like UTF-16"),
        ('{"a":1}'.encode("utf-32"), "looks like UTF-16 or UTF-32"),
        (b'{"a":"x\ny"}', "line breaks and is not valid JSON: at byte"),
        (b"{\n", "not a JSON object"),
        (b"/*{}*/", "not a JSON object"),
        (b'{"a":1}/*x', "not a JSON object"),
        (b'{"a":1}//\xff', "not a JSON object"),
        (b'{"a":1}\n/**/{"delete":{"_id":"victim"}}', "line breaks and is not valid JSON: at byte 12"),
        (b"{\n}\n}", "line breaks and is not valid JSON"),
        (b'{"a":\nNaN}', "line breaks and is not valid JSON"),
        (b'{"a":1}\n{"delete":{"_id":"victim"}}', "line breaks and is not valid JSON: at byte 8"),
        (b'{"a":1}\n{"index":{"_id":"victim"}}\n{"b":2}', "line breaks and is not valid JSON: at byte 8"),
        ('{"é":1}\n{"delete":{"_id":"victim"}}'.encode(), "line breaks and is not valid JSON: at byte 9"),
        (b"[" * 2000 + b"\n" + b"]" * 2000, "not a JSON object"),
        (b'{"a":' + b"[" * 100_000 + b"\n" + b"]" * 100_000 + b"}", "line breaks and is not valid JSON"),
    ],
)
def test_what_could_break_a_request_never_reaches_one(body: bytes, says: str) -> None:
    """Rejected with reason ``malformed`` before any request, and the detail quotes nothing of it."""
    reason, detail = refusal(body)
    assert reason == "malformed"
    assert says in detail
    assert "victim" not in detail


@pytest.mark.parametrize(
    ("body", "source"),
    [
        (b'{"a":1}/*x*/', b'{"a":1}'),
        (b'/*x*/ {"a":1} // {', b'{"a":1}'),
        (b'// x\n{"a":"//"}\n// y', b'{"a":"//"}'),
        (b'\xef\xbb\xbf/*}*/{"a":1}/**/', b'{"a":1}'),
        (b'{"a":1, // c\n"b":2}', b'{"a":1,      "b":2}'),
        ('{"a":1/*é\n*/}'.encode(), b'{"a":1      }'),
    ],
)
def test_comments_around_a_document_and_before_line_breaks_are_left_out(body: bytes, source: bytes) -> None:
    """Elasticsearch reads over comments; in a bulk request one must neither hide a line break nor what follows it."""
    assert encoded(body).source == source
    assert fragment(body) == source


@pytest.mark.parametrize(
    ("body", "at"),
    [(b'{"a":"NaN",\n"b":NaN}', 16), (b'{"a":-Infinity\n}', 5), (b'{"a":12,\n"b":' + b"9" * 5000 + b"}", 13)],
)
def test_a_word_or_number_that_is_not_json_is_told_with_its_place(body: bytes, at: int) -> None:
    """The place of the word, not the beginning of the body."""
    assert refusal(body) == ("malformed", f"the body has line breaks and is not valid JSON: at byte {at}")


@pytest.mark.parametrize(
    "body", [b"{not json}", b'{"a":01}', b'{"a":1,"a":2}', b'{"a":1}{"b":2}', b'{"a":"\0"}', b'{"a":1}\r{"b":2}']
)
def test_what_only_concerns_the_document_is_elasticsearchs_to_say(body: bytes) -> None:
    """It spoils its own item only, and comes back with the true reason."""
    assert encoded(body).source == body


@pytest.mark.parametrize(
    ("body", "source"),
    [
        (b'{\n  "a": 1e2,\r\n  "b": "x"\n}\n', b'{   "a": 1e2,\r   "b": "x" }'),
        (b' {"a":1}\n', b'{"a":1}'),
        (b'{"a":"\\n"}\n', b'{"a":"\\n"}'),
        ('{"é":\n1}'.encode(), '{"é": 1}'.encode()),
        (b'{"big":\n1234567890123456789012345, "x":1.0e-400}', b'{"big": 1234567890123456789012345, "x":1.0e-400}'),
        (b'{"lone":\n"\\ud800"}', b'{"lone": "\\ud800"}'),
    ],
)  # fmt: skip
def test_line_breaks_outside_strings_become_spaces(body: bytes, source: bytes) -> None:
    """Only once it is known to be JSON; numbers and text keep their exact spelling."""
    assert encoded(body).source == source


def test_a_document_no_request_could_carry_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it is plain ASCII on one line, and measured without the space around it."""
    monkeypatch.setattr("sidecar.core.encoding.document.MAX_DOCUMENT_BYTES", 10)
    monkeypatch.setattr("sidecar.core.encoding.encoder.MAX_DOCUMENT_BYTES", 10)
    assert refusal(b'{"a":"xxx"}')[0] == "too-large"
    assert refusal('{"a":"é"}\n '.encode()[:-2] + b"x}")[0] == "too-large"
    assert encoded(b'{"a":"xx"}').source == b'{"a":"xx"}'
    assert encoded(b' {"a":"xx"}\n').source == b'{"a":"xx"}'


def test_accepted_and_rejected_keep_their_order() -> None:
    """Order for one document is that of the queue."""
    bodies = [b"{}", b"", b"{}", b"[]", b"{}"]
    accepted, rejections = encoder("index", with_message_id=True).encode(
        [message(tag, body) for tag, body in enumerate(bodies, 1)], 0.0
    )
    assert tags(accepted) == [1, 3, 5]
    assert [reject.message.tag for reject in rejections] == [2, 4]
