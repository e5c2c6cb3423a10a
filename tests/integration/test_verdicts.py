"""Verdicts on real servers: actions, versions, targets that are missing, blocked or strict, and what users choose."""

from __future__ import annotations

import random
import time
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.harness import QUORUM, message
from tests.integration.process import wait_until

if TYPE_CHECKING:
    from tests.integration.harness import Harness
    from tests.servers.amqp import Received

SEED = 20_240_921
DEADLINE_SECONDS = 30.0
QUICK = {"BATCH_MAX_AGE": "50ms", "RETRY_DELAY_MIN": "50ms", "RETRY_DELAY_MAX": "500ms"}


def operation(op: str, document_id: str, body: bytes = b"") -> Any:
    """Return a message that names its action in a header."""
    return message(body, document_id, headers={"op": op})


def letters_by_id(bench: Harness) -> dict[Any, Received]:
    """Take all dead letters, by the id of the message."""
    return {letter.message_id: letter for letter in bench.dead_letters()}


def settle_all(bench: Harness, **settings: str) -> dict[str, Any]:
    """Run a sidecar until every message is settled, and return its account."""
    sidecar = bench.sidecar(**(QUICK | settings))
    bench.wait_empty(DEADLINE_SECONDS, sidecar)
    return sidecar.terminate()


@pytest.mark.parametrize("on_conflict", ["ack", "dead-letter"])
def test_each_message_chooses_its_action(bench: Harness, on_conflict: str) -> None:
    """Each action does what it says, in order on each document; what can't be done is settled as the table says."""
    bench.create_index()
    bench.declare()
    bench.publish(
        [
            operation("index", "indexed", b'{"n":1,"gone":true}'),
            operation("index", "indexed", b'{"n":2}'),
            operation("create", "created", b'{"n":1}'),
            operation("create", "created", b'{"n":2}'),
            operation("create", "updated", b'{"n":1,"stays":true}'),
            operation("update", "updated", b'{"n":2}'),
            operation("upsert", "upserted", b'{"n":1,"stays":true}'),
            operation("upsert", "upserted", b'{"n":2}'),
            operation("index", "deleted", b'{"n":1}'),
            operation("delete", "deleted"),
            operation("update", "nothing-to-update", b'{"n":1}'),
            operation("delete", "nothing-to-delete"),
        ]
    )
    account = settle_all(bench, ACTION="{header.op}", ON_CONFLICT=on_conflict)
    assert bench.documents() == {
        "indexed": {"n": 2},
        "created": {"n": 1},
        "updated": {"n": 2, "stays": True},
        "upserted": {"n": 2, "stays": True},
    }
    reasons = {"nothing-to-update": "rejected"} | ({"created": "conflict"} if on_conflict == "dead-letter" else {})
    letters = letters_by_id(bench)
    assert {document_id: letter.headers["sidecar-reason"] for document_id, letter in letters.items()} == reasons
    headers = letters["nothing-to-update"].headers
    assert headers["sidecar-error-type"] == "document_missing_exception"
    assert headers["sidecar-status"] == 404
    assert headers["sidecar-action"] == "update"
    assert account["dead_letter"] == len(reasons)
    assert account["ack"] == 12 - len(reasons)


def test_the_highest_external_version_wins(bench: Harness) -> None:
    """Versions that come out of order: the highest stays, older ones are acked and never overwrite it."""
    pairs = [(document_id, version) for document_id in ("a", "b", "c") for version in range(1, 13)]
    random.Random(SEED).shuffle(pairs)
    bench.create_index()
    bench.declare()
    bench.publish(
        [message(b'{"v":%d}' % version, document_id, headers={"version": version}) for document_id, version in pairs]
    )
    account = settle_all(bench, VERSION="{header.version}")
    assert {hit["_id"]: (hit["_version"], hit["_source"]["v"]) for hit in bench.hits()} == dict.fromkeys(
        "abc", (12, 12)
    )
    assert account["ack"] == len(pairs)
    assert account["documents"]["conflict"] > 0
    assert bench.dead_letters() == []


def test_a_data_stream_takes_creates(bench: Harness) -> None:
    """Documents with @timestamp, with and without ids, are appended to a data stream."""
    name = bench.index_name
    template = {
        "index_patterns": [name],
        "data_stream": {},
        "priority": 1000,
        "template": {"settings": {"number_of_replicas": 0}},
    }
    bench.es("PUT", f"/_index_template/{name}", template)
    bench.declare()
    body = b'{"@timestamp":"2024-09-21T10:00:00Z","n":%d}'
    bench.publish([message(body % at, f"id-{at}" if at % 2 else None) for at in range(100)])
    account = settle_all(bench, ACTION="create")
    hits = bench.hits()
    assert sorted(hit["_source"]["n"] for hit in hits) == list(range(100))
    assert {hit["_id"] for hit in hits} >= {f"id-{at}" for at in range(1, 100, 2)}
    assert all(hit["_index"].startswith(".ds-") for hit in hits)
    assert account["ack"] == 100
    assert bench.dead_letters() == []


def test_two_targets_that_take_nothing_stop_nobody_else(bench: Harness) -> None:
    """One write-blocked and one closed of ten: eight flow, the two wait in delay queues and flow when opened."""
    name, each = bench.index_name, 50
    targets = [f"{name}-{at}" for at in range(10)]
    blocked, closed = targets[3], targets[7]
    settings = {"settings": {"number_of_shards": 1, "number_of_replicas": 0}}
    for target in targets:
        bench.es("PUT", f"/{target}", settings)
    bench.es("PUT", f"/{blocked}/_settings", {"index.blocks.write": True})
    bench.es("POST", f"/{closed}/_close")
    bench.declare()
    bench.publish(
        [message(b'{"n":%d}' % at, str(at), headers={"to": target}) for at in range(each) for target in targets]
    )
    sidecar = bench.sidecar(**QUICK, INDEX="{header.to}", DELAYED_RETRY_DELAY="1s")
    bench.index_name = ",".join(target for target in targets if target not in (blocked, closed))
    wait_until(lambda: bench.stored() == 8 * each, DEADLINE_SECONDS, "eight flow", sidecar.told)
    delay_queue = f"{bench.queue}.delay.1000"
    wait_until(lambda: bench.amqp.queue_state(delay_queue) is not None, DEADLINE_SECONDS, "delays", sidecar.told)
    bench.index_name = blocked
    assert bench.stored() == 0
    bench.es("PUT", f"/{blocked}/_settings", {"index.blocks.write": False})
    bench.es("POST", f"/{closed}/_open")
    bench.index_name = ",".join(targets)
    wait_until(lambda: bench.stored() == 10 * each, DEADLINE_SECONDS, "ten flow", sidecar.told)
    bench.wait_empty(DEADLINE_SECONDS, sidecar)
    account = sidecar.terminate()
    assert Counter(hit["_index"] for hit in bench.hits()) == dict.fromkeys(targets, each)
    assert account["ack"] == 10 * each
    assert account["delay"] >= 2 * each
    assert account["received"] == account["ack"] + account["delay"]
    assert not sidecar.events("elasticsearch.held")
    assert bench.dead_letters() == []


def test_a_missing_index_that_may_not_be_created_is_a_dead_letter(bench: Harness) -> None:
    """With auto-creation off for its name, messages are dead letters with the reason `index-missing`."""
    setting = "action.auto_create_index"
    bench.es("PUT", "/_cluster/settings", {"persistent": {setting: f"-{bench.index_name}*,+*"}})
    try:
        bench.declare()
        bench.publish([message(b'{"n":1}', f"m-{at}") for at in range(5)])
        account = settle_all(bench)
    finally:
        bench.es("PUT", "/_cluster/settings", {"persistent": {setting: None}})
    letters = letters_by_id(bench)
    assert set(letters) == {f"m-{at}" for at in range(5)}
    for letter in letters.values():
        assert letter.headers["sidecar-reason"] == "index-missing"
        assert letter.headers["sidecar-error-type"] == "index_not_found_exception"
        assert letter.headers["sidecar-index"] == bench.index_name
    assert account["dead_letter"] == 5


def test_a_delayed_message_resolves_as_at_its_first_delivery(bench: Harness) -> None:
    """{routing_key}, {exchange} and {now} are those of the first delivery, however often it went round."""
    exchange, key = f"{bench.queue}-x", "orders.eu"
    bench.create_index()
    bench.es("PUT", f"/{bench.index_name}/_settings", {"index.blocks.write": True})
    bench.declare()
    bench.amqp.declare_exchange(exchange)
    bench.amqp.bind(bench.queue, exchange, key)
    sidecar = bench.sidecar(**QUICK, ID="{exchange}|{routing_key}|{now:%Y-%m-%dT%H:%M:%S}", DELAYED_RETRY_DELAY="3s")
    sidecar.wait_for("amqp.connected")
    before = time.time()
    published = bench.amqp.publish([message(b'{"n":1}')], exchange=exchange, routing_key=key)
    assert not published.returned
    delay_queue = f"{bench.queue}.delay.3000"
    wait_until(lambda: bench.amqp.queue_state(delay_queue) is not None, DEADLINE_SECONDS, "a delay", sidecar.told)
    after = time.time()
    bench.es("PUT", f"/{bench.index_name}/_settings", {"index.blocks.write": False})
    wait_until(lambda: bench.stored() == 1, DEADLINE_SECONDS, "the document", sidecar.told)
    assert time.time() - before > 2.9, "it did not wait"
    account = sidecar.terminate()
    (document_id,) = bench.documents()
    *where, when = document_id.split("|")
    assert where == [exchange, key]
    assert int(before) <= datetime.fromisoformat(when).replace(tzinfo=UTC).timestamp() <= after
    assert account["delay"] >= 1
    assert account["ack"] == 1
    assert bench.dead_letters() == []


def test_the_guard_holds_a_strict_mapping_until_it_is_mended(bench: Harness) -> None:
    """Fifty refused in a row are dead letters, the others wait; once the mapping is mended they are stored."""
    bench.es("PUT", f"/{bench.index_name}", {"mappings": {"dynamic": "strict", "properties": {}}})
    bench.declare()
    bench.publish([message(b'{"word":"w"}', str(at)) for at in range(200)])
    sidecar = bench.sidecar(**QUICK, REJECT_GUARD="50", BATCH_MAX_ITEMS="20")
    held = sidecar.wait_for("elasticsearch.held")
    assert "50 documents in a row were refused" in held["reason"]
    assert "strict_dynamic_mapping_exception" in held["reason"]
    wait_until(lambda: bench.count(bench.dead) == 50, DEADLINE_SECONDS, "50 dead letters", sidecar.told)
    time.sleep(1)
    assert bench.count(bench.dead) == 50
    bench.es("PUT", f"/{bench.index_name}/_mapping", {"properties": {"word": {"type": "keyword"}}})
    bench.wait_empty(DEADLINE_SECONDS, sidecar)
    account = sidecar.terminate()
    assert account["dead_letter"] == 50
    assert account["ack"] == 150
    letters = letters_by_id(bench)
    assert {letter.headers["sidecar-reason"] for letter in letters.values()} == {"rejected"}
    assert set(bench.documents()) | set(letters) == {str(at) for at in range(200)}
    assert sidecar.events("elasticsearch.resumed")


def test_without_a_guard_a_strict_mapping_dead_letters_all(bench: Harness) -> None:
    """With SIDECAR_REJECT_GUARD=0 nothing holds: every refused message is a dead letter."""
    bench.es("PUT", f"/{bench.index_name}", {"mappings": {"dynamic": "strict", "properties": {}}})
    bench.declare()
    bench.publish([message(b'{"word":"w"}', str(at)) for at in range(200)])
    account = settle_all(bench, REJECT_GUARD="0", BATCH_MAX_ITEMS="20")
    assert account["dead_letter"] == 200
    assert set(letters_by_id(bench)) == {str(at) for at in range(200)}
    assert bench.stored() == 0


@pytest.mark.parametrize("on_reject", ["broker", "discard"])
def test_rejects_go_where_users_choose(bench: Harness, on_reject: str) -> None:
    """`broker`: the queue's own dead-letter exchange takes them, unchanged; `discard`: they are acked and counted."""
    own = f"{bench.queue}.own"
    bench.create_index({"n": {"type": "long"}})
    bench.declare({**QUORUM, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": own})
    bench.amqp.declare_queue(own, QUORUM)
    bad = {"malformed": b"no json", "refused": b'{"n":"no number"}'}
    bench.publish([message(body, document_id) for document_id, body in bad.items()])
    bench.publish([message(b'{"n":%d}' % at, str(at)) for at in range(20)])
    account = settle_all(bench, ON_REJECT=on_reject)
    taken = {letter.message_id: letter.body for letter in bench.amqp.drain(own)}
    assert taken == (bad if on_reject == "broker" else {})
    assert account["dead_letter" if on_reject == "broker" else "discard"] == 2
    assert account["ack"] == 20
    assert set(bench.documents()) == {str(at) for at in range(20)}
    assert bench.dead_letters() == []
    events = bench.sidecars[-1].events("items.rejected")
    assert sum(event["count"] for event in events) == 2


def test_a_fragment_smuggles_no_neighbours_into_an_update(bench: Harness) -> None:
    """A body that would close `doc` and add fields beside it is malformed, for updates and upserts."""
    bench.create_index()
    bench.es("PUT", f"/{bench.index_name}/_doc/there", b'{"n":1}')
    body = b'{"a":1},"upsert":{"x":1}'
    bench.declare()
    bench.publish(
        [operation(op, f"{op}-{document_id}", body) for op in ("update", "upsert") for document_id in ("there", "new")]
    )
    bench.publish([operation("update", "there", body), operation("update", "there", b'{"n":2}')])
    account = settle_all(bench, ACTION="{header.op}")
    letters = bench.dead_letters()
    assert [letter.headers["sidecar-reason"] for letter in letters] == ["malformed"] * 5
    assert {letter.body for letter in letters} == {body}
    assert bench.documents() == {"there": {"n": 2}}
    assert account["ack"] == 1


def test_what_names_no_allowed_index_never_gets_into_a_request(bench: Harness) -> None:
    """A name outside of SIDECAR_INDEX_ALLOW is `index-not-allowed`; an absent field is `missing-field`."""
    allowed = f"{bench.index_name}-good"
    bench.declare()
    bench.publish(
        [
            message(b'{"n":1}', "good", headers={"to": allowed}),
            message(b'{"n":2}', "outside", headers={"to": f"other-{bench.index_name}"}),
            message(b'{"n":3}', "absent"),
        ]
    )
    account = settle_all(bench, INDEX="{header.to}", INDEX_ALLOW=f"{bench.index_name}-*")
    letters = letters_by_id(bench)
    assert {document_id: letter.headers["sidecar-reason"] for document_id, letter in letters.items()} == {
        "outside": "index-not-allowed",
        "absent": "missing-field",
    }
    assert account["ack"] == 1
    bench.index_name = f"*{bench.index_name}*"
    assert [(hit["_index"], hit["_id"]) for hit in bench.hits()] == [(allowed, "good")]
