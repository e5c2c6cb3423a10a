"""Compressed bodies, text and added fields, from the broker to the stored document."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import TYPE_CHECKING

from tests.integration.harness import exactly, message

if TYPE_CHECKING:
    from tests.integration.harness import Harness

SECONDS = 60.0
MEBIBYTE = 1 << 20


def test_compressed_bodies_are_stored_as_what_was_compressed(bench: Harness) -> None:
    """Each beside the others; what is damaged or a bomb is a dead letter with its own bytes and properties."""
    documents = {f"d{at}": b'{"n":%d,"number":1.10,"text":"%s"}' % (at, b"long " * at) for at in range(300)}
    packers = {"gzip": gzip.compress, "deflate": zlib.compress, "identity": bytes, "UTF-8": bytes}
    names = list(packers)
    messages = [
        message(packers[names[at % 4]](body), document_id, content_encoding=names[at % 4])
        for at, (document_id, body) in enumerate(documents.items())
    ]
    bomb = gzip.compress(b'{"n":"' + b" " * (48 * MEBIBYTE) + b'"}')
    whole = gzip.compress(b'{"n":1}')
    bad = {
        "bomb": (bomb, "gzip", "too-large"),
        "cut": (whole[:-3], "gzip", "malformed"),
        "more": (whole + b"x", "gzip", "malformed"),
        "plain": (b'{"n":1}', "gzip", "malformed"),
        "unknown": (b'{"n":1}', "br", "malformed"),
        "smuggler": (gzip.compress(b'{"n":1}\n{"delete":{"_id":"d1"}}'), "gzip", "malformed"),
    }
    for at, (document_id, (body, encoding, _)) in enumerate(bad.items()):
        messages.insert(at * 40, message(body, document_id, content_encoding=encoding))
    bench.create_index({"n": {"type": "long"}, "number": {"enabled": False}})
    bench.declare()
    bench.publish(messages)
    sidecar = bench.sidecar(MEMORY_LIMIT="32MiB")
    bench.wait_empty(SECONDS, sidecar)
    account = sidecar.terminate()
    assert (account["ack"], account["dead_letter"]) == (len(documents), len(bad))
    assert bench.documents(exact=True) == {document_id: exactly(body) for document_id, body in documents.items()}
    letters = {letter.message_id: letter for letter in bench.dead_letters()}
    assert set(letters) == set(bad)
    for document_id, (body, encoding, reason) in bad.items():
        letter = letters[document_id]
        assert (letter.body, letter.headers["sidecar-reason"]) == (body, reason), document_id
        assert letter.properties.values["content_encoding"] == encoding


def test_a_refusal_of_a_compressed_document_quotes_nothing_of_it(bench: Harness) -> None:
    """Elasticsearch's reason does; neither the dead letter nor the log may."""
    bench.create_index({"n": {"type": "long"}})
    bench.declare()
    bench.publish([message(gzip.compress(b'{"n":"a secret word"}'), "x", content_encoding="gzip")])
    sidecar = bench.sidecar()
    bench.wait_empty(SECONDS, sidecar)
    sidecar.terminate()
    (letter,) = bench.dead_letters()
    assert letter.headers["sidecar-reason"] == "rejected"
    assert "secret" not in str(letter.headers)
    assert "secret" not in sidecar.log.read_text()


def test_text_and_fields_are_stored(bench: Harness) -> None:
    """Lines of a log with the time that their publisher gave them, and where they came from."""
    bench.declare()
    lines = {f"l{at}": f'line {at}: "quoted" \\ \t ünï\n{{"delete":{{"_id":"l1"}}}}\n' for at in range(50)}
    bench.publish([message(text.encode(), document_id, timestamp=1_600_000_000) for document_id, text in lines.items()])
    fields = {"@timestamp": "{timestamp:%Y-%m-%dT%H:%M:%SZ}", "source.queue": "{queue}", "none": "{header.none|}"}
    sidecar = bench.sidecar(CONTENT="text", FIELDS=json.dumps(fields))
    bench.wait_empty(SECONDS, sidecar)
    sidecar.terminate()
    assert bench.documents() == {
        document_id: {"@timestamp": "2020-09-13T12:26:40Z", "source.queue": bench.queue, "message": text}
        for document_id, text in lines.items()
    }
    query = {"query": {"bool": {"filter": [{"range": {"@timestamp": {"gte": "2020", "lt": "2021"}}}]}}}
    assert json.loads(bench.es("POST", f"/{bench.index_name}/_count", query))["count"] == len(lines)


def test_a_documents_own_field_wins_and_is_never_doubled(bench: Harness) -> None:
    """Elasticsearch refuses a document with two fields of a name, however they are spelled."""
    bench.create_index({"tag": {"type": "keyword"}})
    bench.declare()
    bodies = {
        "empty": b"{}",
        "spaces": b"{ }",
        "none": b'{"n":1}',
        "own": b'{"tag":"own"}',
        "escaped": b'{"\\u0074ag":"own"}',
        "elsewhere": b'{"deep":{"tag":"x"},"v":"tag"}',
    }
    bench.publish([message(body, document_id) for document_id, body in bodies.items()])
    sidecar = bench.sidecar(ACTION="upsert", FIELDS='{"tag": "added"}')
    bench.wait_empty(SECONDS, sidecar)
    assert sidecar.terminate()["ack"] == len(bodies)
    assert bench.documents() == {
        document_id: {"tag": "added"} | json.loads(body) for document_id, body in bodies.items()
    }


def test_several_documents_in_one_message_are_settled_together(bench: Harness) -> None:
    """Arrays, one with bad documents in it: the good ones stay, the bad ones are named."""
    bench.create_index({"n": {"type": "long"}})
    bench.declare()
    bench.publish(
        [
            message(b"[%s]" % b",".join(b'{"n":%d}' % (10 * at + item) for item in range(10)), f"m{at}")
            for at in range(50)
        ]
    )
    mixed = b'[{"n":1},{"n":"a secret word"},7,{"n":2}]'
    bench.publish([message(mixed, "mixed"), message(b'{"n":1}', "none")])
    sidecar = bench.sidecar(SPLIT="array")
    bench.wait_empty(SECONDS, sidecar)
    account = sidecar.terminate()
    documents = bench.documents()
    assert len(documents) == 502
    assert documents["m49-9"] == {"n": 499}
    assert documents["mixed-3"] == {"n": 2}
    assert (account["ack"], account["dead_letter"]) == (50, 2)
    letters = {letter.properties.values["message_id"]: letter for letter in bench.dead_letters()}
    headers = letters["mixed"].headers
    assert letters["mixed"].body == mixed
    assert headers["sidecar-items"] == "1,2"
    assert (headers["sidecar-reason"], headers["sidecar-id"]) == ("rejected", "mixed-1")
    assert "secret" not in f"{headers}{sidecar.log.read_text()}"
    assert letters["none"].headers["sidecar-reason"] == "malformed"
