"""Bodies on the real Elasticsearch: what it stores is read alike by every reader, and ends where it belongs."""

from __future__ import annotations

import gzip
import json
import random
from typing import TYPE_CHECKING, Any

from sidecar import Message as Shown
from sidecar.core.encoding import exact_json
from sidecar.core.encoding.document import METADATA
from sidecar.core.encoding.encoder import BulkEncoder, EncoderConfig
from sidecar.core.encoding.fields import Fields
from sidecar.core.encoding.template import Template
from sidecar.core.scheduling.json_merge import merged
from tests.builders import message
from tests.integration.test_fuzz import LENIENT, MARK, QUICK, SEED, Words
from tests.servers.amqp import Outgoing
from tests.servers.es import Elastic

if TYPE_CHECKING:
    from tests.integration.harness import Harness

DOCUMENTS = 3_000
ODD = [
    b'{"serial":%d,"a":"x \\ud83d"}', b'{"serial":%d,"a":"\\udc00\\ud83d"}', b'{"\\ud83d":1,"serial":%d}',
    b'{"serial":%d,"n":1e400}', b'{"serial":%d,"n":' + b"9" * 999 + b"}", b'{"serial":%d,"n":-0}',
    b'{"serial":%d/*"*/,"a":"/*"}', b'{/*"serial":0,*/"serial":%d}', b'{"serial":%d}//}', b'{"a":"//","serial":%d}',
    b'{"serial":%d,"deep":' + b"[" * 999 + b"]" * 999 + b"}",
    b'{"half":"\\ud83d","deep":' + b'{"a":' * 998 + b"1" + b"}" * 998 + b',"serial":%d}',
    b'{"serial":%d}/*x*/', b'/*{*/ {"serial":%d} // }', b'// x\n{"serial":%d, // y\n"a":"//"}\n/* z\n*/',
    MARK + b'{"serial":%d}', MARK + b' {"serial":%d,"a":"\\ud83d"}\n',
]  # fmt: skip


def stored(elastic: Elastic, index: str, documents: dict[str, bytes]) -> dict[str, bool]:
    """Have Elasticsearch take documents, each by itself; return which it stored."""
    lines = b"".join(
        b'{"index":{"_index":"%s","_id":"%s"}}\n%s\n' % (index.encode(), name.encode(), body)
        for name, body in documents.items()
    )
    items = elastic.bulk(lines).json()["items"]
    return {name: item["index"]["status"] < 300 for name, item in zip(documents, items, strict=True)}


def ids(elastic: Elastic, index: str) -> set[str]:
    """Return the ids of all documents of an index."""
    elastic.refresh(index)
    return {hit["_id"] for hit in elastic.call("GET", f"/{index}/_search?size=1000")["hits"]["hits"]}


def one(body: bytes, **options: Any) -> Any:
    """Return what a message is made into."""
    accepted, rejects = BulkEncoder(EncoderConfig(index=Template("docs"), **options), lambda: "made").encode(
        [message(body=body)], 0.0
    )
    assert not rejects, (body[:200], rejects[0].detail)
    return accepted[0]


def test_what_elasticsearch_stores_is_read_alike_by_every_reader(elastic: Elastic, index_name: str) -> None:
    """The fuzzers' bodies and some odd ones: templates both ways, added fields, splitting, merging and code agree."""
    print(f"FUZZ_SEED={SEED}")
    words = Words(random.Random(SEED))
    bodies = [words.body(at).data for at in range(DOCUMENTS)] + [odd % at for at, odd in enumerate(ODD * 2)]
    # What the look at a document refuses, with its own reason, never gets to a reader; line breaks become spaces.
    documents = {}
    for at, body in enumerate(bodies):
        accepted, _ = BulkEncoder(EncoderConfig(index=Template("docs")), lambda: "").encode([message(body=body)], 0.0)
        if accepted:
            documents[str(at)] = body
    elastic.create_index(index_name, mappings={"dynamic": False})
    sources = {name: one(body).source for name, body in documents.items()}
    taken = stored(elastic, index_name, sources)
    assert sum(taken.values()) > DOCUMENTS // 3
    seen = 0
    for name, body in documents.items():
        if not taken[name]:
            continue
        content: Any = exact_json.read_exactly(body)
        assert exact_json.write(exact_json.read(body)) is not None
        assert exact_json.write(Shown(message(body=body)).json()) == exact_json.write(content)
        if "serial" not in content:
            continue
        seen += 1
        serial = str(content["serial"])
        template = Template("{body.serial}")
        line = json.loads(one(body, routing=template).action_line)["index"]["routing"]
        assert line == serial
        assert (
            json.loads(one(body, routing=template, batch_complete_count=Template("")).action_line)["index"]["routing"]
            == line
        )
        assert one(body, fields=Fields({"serial": Template("added")})).source == sources[name]
        added = one(body, fields=Fields({"added": Template("{body.serial}")})).source
        assert exact_json.find(exact_json.read(added), ["added"]) == serial
        part = one(b"[" + sources[name] + b"]", split="array", routing=template) if b"//" not in body else None
        assert part is None or (part.source, json.loads(part.action_line)["index"]["routing"]) == (
            sources[name],
            serial,
        )
        if exact_json.error_at(sources[name]) is None:  # a partial document is JSON in the strict sense
            both = merged(sources[name], b'{"merged":1}')
            assert both is not None
            assert exact_json.find(exact_json.read(both), ["serial"]) == content["serial"]
    assert seen > DOCUMENTS // 4


def test_comments_are_read_as_elasticsearch_reads_them(elastic: Elastic, index_name: str) -> None:
    """Of each document that isn't JSON in the strict sense: stored there means read here."""
    elastic.create_index(index_name, mappings={"dynamic": False})
    documents = {name: body for name, body in LENIENT.items() if b"\n" not in body}
    for name, is_stored in stored(elastic, index_name, documents).items():
        try:
            exact_json.read(documents[name])
            is_read = True
        except exact_json.JsonError:
            is_read = False
        assert is_read == is_stored, name


def test_documents_end_in_the_index_that_their_body_names(bench: Harness) -> None:
    """With a default and without it: half a pair, a mark, dotted names, times of every kind, compressed or not."""
    day, other = f"{bench.index_name}-2026.11.30", f"{bench.index_name}-other"
    times = [
        b'"2026-11-30T12:00:00+02:00"', b'"2026-12-01T01:00:00+02:00"', b'"2026-11-30T12:00:00"', b"1796040000",
        b"1796040000123", b"1796040000123456", b'"1796040000"', b"1796040000.5",
    ]  # fmt: skip
    bodies = {f"time-{at}": b'{"@timestamp":%s}' % moment for at, moment in enumerate(times)}
    bodies |= {
        "half": b'{"text":"x \\ud83d","@timestamp":1796040000}',
        "mark": MARK + b'{"@timestamp":1796040000}',
    }
    wrong = {
        "no-json": b'{"@timestamp":1796040000,}',
        "no-time": b'{"@timestamp":"soon"}',
        "wide": '{"@timestamp":1796040000}'.encode("utf-16"),
        "metadata": b'{"@timestamp":1796040000,"_id":"x"}',
    }
    sent = [Outgoing(body, properties={"message_id": name}) for name, body in {**bodies, **wrong}.items()]
    sent.append(Outgoing(b'{"text":"no time"}', properties={"message_id": "absent"}))
    packed = gzip.compress(b'{"@timestamp":1796040000}')
    sent.append(Outgoing(packed, properties={"message_id": "packed", "content_encoding": "gzip"}))
    bench.declare()
    bench.publish(sent)
    index = f"{bench.index_name}-{{body.@timestamp:%Y.%m.%d|other}}"
    sidecar = bench.sidecar(**QUICK, INDEX=index, FIELDS='{"event.dataset":"added"}')
    bench.wait_empty(60.0, sidecar)
    sidecar.terminate()
    dead = {str(letter.message_id): letter.headers for letter in bench.dead_letters()}
    assert {name: headers["sidecar-reason"] for name, headers in dead.items()} == dict.fromkeys(wrong, "malformed")
    for name, says in (
        ("no-time", "not a time"),
        ("wide", "UTF-16"),
        ("metadata", "the field _id"),
        ("no-json", "JSON"),
    ):
        assert says in str(dead[name]["sidecar-error-reason"])
    with Elastic(bench.elasticsearch.url) as elastic:
        assert ids(elastic, day) == {*bodies, "packed"}
        assert ids(elastic, other) == {"absent"}
        for index in (day, other):
            elastic.delete_index(index)


def test_names_that_elasticsearch_keeps_for_itself(elastic: Elastic, index_name: str) -> None:
    """It refuses every one of them, at the top of a document and with dots, also behind an ingest pipeline."""
    elastic.create_index(index_name, mappings={"dynamic": False})
    documents = {f"plain{name}": json.dumps({name: 1}).encode() for name in METADATA}
    documents |= {f"dotted{name}": json.dumps({f"{name}.x": 1}).encode() for name in METADATA}
    assert not any(stored(elastic, index_name, documents).values())
    assert all(stored(elastic, index_name, {"inside": b'{"o":{"_id":1}}', "like": b'{"_idx":1}'}).values())
