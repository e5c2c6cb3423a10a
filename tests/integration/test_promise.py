"""The promise, point by point, on real servers: the sidecar as a process, judged from outside."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.harness import QUORUM, exactly, message
from tests.integration.process import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.harness import Harness

    MakeBench = Callable[[Any, Any], Harness]

SEED = 20_240_917
DEADLINE_SECONDS = 120.0


def documents(count: int, rng: random.Random) -> dict[str, bytes]:
    """Return good documents by id whose numbers and letters a careless path would change."""
    words = ("plain", "Ünïcödé", "日本語", "emoji 🎉", 'quo"te', "back\\\\slash", "tab\\tand\\nline", "\\u00e9", "</x>")
    numbers = ("0", "-0.0", "1e2", "12345678901234567890123", "0.1", "1.10", "1E-7", "9007199254740993", "-17", "3.0")
    made = {}
    for at in range(count):
        word, number = rng.choice(words), rng.choice(numbers)
        spelt = word.replace('"', '\\"')
        text = f'{{"at":{at},"word":"{spelt}","number":{number},"deep":{{"list":[{number},null,true]}}}}'
        made[f"doc-{at}"] = text.encode()
    return made


BAD_BODIES = {
    "malformed": (b'{"at":', b"[1,2]", b"", b"null", b'{"at":1}\n{"delete":{"_id":"doc-0"}}\n{"x":1}', b'{"x":"\xff"}'),
    "rejected": (b'{"at":"no number"}', b'{"at":1}{"at":2}', b'{"at":1,}'),
}


@pytest.mark.parametrize("count", [20_000, pytest.param(100_000, marks=pytest.mark.full)])
def test_messages_of_mixed_quality_add_up_to_the_last_one(bench: Harness, count: int) -> None:
    """Every good message is a document equal to what was sent, every bad one a dead letter with its true reason."""
    rng = random.Random(SEED)
    good = documents(count - count // 100, rng)
    reasons = [(reason, body) for reason, bodies in BAD_BODIES.items() for body in bodies]
    bad = [(f"bad-{at}", *rng.choice(reasons)) for at in range(count // 100)]
    messages = [message(body, document_id) for document_id, body in good.items()]
    messages += [message(body, document_id) for document_id, _, body in bad]
    rng.shuffle(messages)
    bench.create_index({"at": {"type": "long"}, "number": {"enabled": False}, "deep": {"enabled": False}})
    bench.declare()
    bench.publish(messages)
    sidecar = bench.sidecar()
    bench.wait_empty(DEADLINE_SECONDS, sidecar)
    account = sidecar.terminate()
    assert account["received"] == count
    assert account["ack"] == len(good)
    assert account["dead_letter"] == len(bad)
    assert bench.documents(exact=True) == {document_id: exactly(body) for document_id, body in good.items()}
    letters = {letter.message_id: letter for letter in bench.dead_letters()}
    assert {
        document_id: (letter.headers["sidecar-reason"], letter.body) for document_id, letter in letters.items()
    } == {document_id: (reason, body) for document_id, reason, body in bad}
    assert bench.count() == 0


def test_bad_neighbours_harm_nobody(bench: Harness) -> None:
    """Good items beside every kind of bad one are stored; the bad ones are dead-lettered whole; the victim stays."""
    bench.create_index({"at": {"type": "long"}})
    bench.es("PUT", f"/{bench.index_name}/_doc/victim", b'{"at":1}')
    strange = '"}}\n{"delete":{"_id":"victim"}}\n'
    bad = {
        "half": (b'{"at":', "malformed"),
        "array": (b'[{"at":1}]', "malformed"),
        "conflict": (b'{"at":"word"}', "rejected"),
        "smuggled-delete": (b'{"at":1}\n{"delete":{"_id":"victim"}}\n', "malformed"),
        "smuggled-index": (b'{"at":1}\n{"index":{"_id":"victim"}}\n{"at":666}', "malformed"),
        "smuggled-crlf": (b'{"at":1}\r\n{"delete":{"_id":"victim"}}\r\n{"at":2}', "malformed"),
        "empty": (b"", "malformed"),
        "not-utf-8": (b'{"at":"\xff\xfe"}', "malformed"),
        "broken-string": (b'{"word":"a\nb"}', "malformed"),
    }
    good = {f"good-{at}": b'{"at":%d}' % at for at in range(600)}
    good |= {"pretty": b'{\n  "at": 7,\n  "word": "line breaks between tokens"\n}\n', strange: b'{"at":8}'}
    headers = {"x-number": 2**40, "x-text": "bäd", "x-list": [1, "two", {"three": 3}]}
    messages = [message(body, document_id) for document_id, body in good.items()]
    for at, (document_id, (body, _)) in enumerate(bad.items()):
        messages.insert(at * 60, message(body, document_id, headers=headers, timestamp=1_700_000_000 + at))
    bench.declare()
    bench.publish(messages)
    sidecar = bench.sidecar()
    bench.wait_empty(DEADLINE_SECONDS, sidecar)
    sidecar.terminate()
    stored = bench.documents()
    assert stored.pop("victim") == {"at": 1}
    assert stored == {document_id: json.loads(body) for document_id, body in good.items()}
    letters = {letter.message_id: letter for letter in bench.dead_letters()}
    assert set(letters) == set(bad)
    for at, (document_id, (body, reason)) in enumerate(bad.items()):
        letter = letters[document_id]
        assert letter.body == body
        assert letter.headers["sidecar-reason"] == reason, document_id
        assert {name: letter.headers[name] for name in headers} == headers
        assert letter.properties.values["timestamp"] == 1_700_000_000 + at
        assert letter.headers["sidecar-queue"] == bench.queue
        assert "word" not in letter.headers["sidecar-error-reason"], "it quotes the document"


def test_a_tiny_write_pool_slows_down_and_loses_nothing(make_bench: MakeBench, rabbitmq: Any, cramped: Any) -> None:
    """All is stored once, nothing is dead-lettered, and the share of 429s falls as the sidecar slows down."""
    bench = make_bench(rabbitmq, cramped)
    bench.create_index({"at": {"type": "long"}}, shards=4)
    count = 20_000
    bench.declare()
    bench.publish([message(b'{"at":%d}' % at, str(at)) for at in range(count)])
    sidecar = bench.sidecar(BULK_CONCURRENCY="8", BATCH_MAX_ITEMS="500")
    samples = [bench.write_pool()]
    while bench.count() or bench.held():
        samples.append(bench.write_pool())
        assert len(samples) < 2000, sidecar.told()
        time.sleep(0.05)
    samples.append(bench.write_pool())
    account = sidecar.terminate()
    assert account["ack"] == count
    assert account["dead_letter"] == 0
    assert account["documents"]["too_many"] > 0, "the pool was not tiny enough to refuse anything"
    versions = Counter(hit["_version"] for hit in bench.hits())
    assert versions == {1: count}
    quarter = max(2, len(samples) // 4)
    early, late = _refused_share(samples[:quarter]), _refused_share(samples[quarter - 1 :])
    print(f"share of refused shard requests: {early:.0%} in the first quarter, {late:.0%} afterwards")
    assert late < early


def _refused_share(samples: list[tuple[int, int]]) -> float:
    (done_before, refused_before), (done, refused) = samples[0], samples[-1]
    total = done - done_before + refused - refused_before
    return (refused - refused_before) / total if total else 0.0


def test_the_last_operation_on_a_document_wins_under_429s(make_bench: MakeBench, rabbitmq: Any, cramped: Any) -> None:
    """Operations on one document in one queue are applied in their order, at concurrency 8, through refusals."""
    bench = make_bench(rabbitmq, cramped)
    bench.create_index({"at": {"type": "long"}}, shards=4)
    rng = random.Random(SEED)
    keys = [rng.randrange(300) for _ in range(6000)]
    # In pairs, so that two operations on one document often stand in one batch.
    operations = [(f"k{keys[at // 2]}", at) for at in range(2 * len(keys))]
    bench.declare()
    bench.publish([message(b'{"at":%d}' % at, key) for key, at in operations])
    sidecar = bench.sidecar(BULK_CONCURRENCY="8", BATCH_MAX_ITEMS="200", RETRY_DELAY_MIN="50ms", BATCH_MAX_AGE="100ms")
    bench.wait_empty(DEADLINE_SECONDS, sidecar)
    account = sidecar.terminate()
    assert account["documents"]["too_many"] > 0
    assert bench.documents() == {key: {"at": at} for key, at in operations}


def test_five_kills_in_one_run_lose_and_double_nothing(bench: Harness) -> None:
    """``kill -9`` five times among 50,000 messages with ids: 50,000 documents, an empty queue, no dead letters."""
    count = 50_000
    bench.create_index({"at": {"type": "long"}})
    bench.declare()
    bench.publish([message(b'{"at":%d}' % at, str(at)) for at in range(count)])
    for kills in range(1, 6):
        sidecar = bench.sidecar()
        # In the middle of things: some are stored since the last kill, most are not.
        wait_until(lambda goal=kills * 7_000: bench.stored() >= goal, DEADLINE_SECONDS, "progress", sidecar.told)
        sidecar.kill()
    sidecar = bench.sidecar()
    bench.wait_empty(DEADLINE_SECONDS, sidecar)
    sidecar.terminate()
    assert bench.documents() == {str(at): {"at": at} for at in range(count)}
    assert bench.count() == 0
    assert bench.dead_letters() == []


@pytest.mark.parametrize("with_ids", [True, False])
def test_sigterm_under_load_leaves_nothing_half_done(bench: Harness, *, with_ids: bool) -> None:
    """Exit within the shutdown time; stored + left in the queue = published, also without ids."""
    count = 40_000
    bench.create_index({"at": {"type": "long"}})
    bench.declare()
    bench.publish([message(b'{"at":%d}' % at, str(at) if with_ids else None) for at in range(count)])
    sidecar = bench.sidecar(SHUTDOWN_TIMEOUT="20s")
    wait_until(lambda: bench.stored() >= 3000, DEADLINE_SECONDS, "load", sidecar.told)
    account = sidecar.terminate(seconds=20)
    left = bench.count()
    stored = bench.documents()
    assert account["ack"] == len(stored)
    assert len(stored) + left == count
    assert 0 < left < count
    assert len({document["at"] for document in stored.values()}) == len(stored)


def test_sigterm_while_elasticsearch_hangs_gives_everything_back(breakable: Harness) -> None:
    """The drain has an end: what can't be stored goes back to the queue within the shutdown time."""
    bench = breakable
    bench.create_index({"at": {"type": "long"}})
    bench.declare()
    sidecar = bench.sidecar(SHUTDOWN_TIMEOUT="4s")
    sidecar.wait_for("amqp.connected")
    bench.elasticsearch.freeze()
    try:
        bench.publish([message(b'{"at":%d}' % at, str(at)) for at in range(3000)])
        wait_until(lambda: bench.held() > 0, DEADLINE_SECONDS, "deliveries", sidecar.told)
        account = sidecar.terminate(seconds=6)
    finally:
        bench.elasticsearch.thaw()
    assert account["ack"] == 0
    assert bench.count() == 3000
    again = bench.sidecar()
    bench.wait_empty(DEADLINE_SECONDS, again)
    again.terminate()
    assert len(bench.documents()) == 3000


def test_a_second_signal_ends_at_once(breakable: Harness) -> None:
    """Asked twice, the sidecar doesn't wait for anything; the broker has everything again."""
    bench = breakable
    bench.declare()
    sidecar = bench.sidecar(SHUTDOWN_TIMEOUT="60s")
    sidecar.wait_for("amqp.connected")
    bench.elasticsearch.freeze()
    try:
        bench.publish([message(b"{}", str(at)) for at in range(100)])
        wait_until(lambda: bench.held() > 0, DEADLINE_SECONDS, "deliveries", sidecar.told)
        sidecar.process.terminate()
        sidecar.wait_for("sidecar.draining")
        sidecar.process.terminate()
        assert sidecar.process.wait(5) == 1
    finally:
        bench.elasticsearch.thaw()
    wait_until(lambda: bench.count() == 100, DEADLINE_SECONDS, "the messages are back")


def test_batches_are_exactly_full_while_the_queue_has_enough(bench: Harness) -> None:
    """Twenty times 1,000 messages make 20 batches, each completed by count."""
    bench.declare()
    bench.publish([message(b"{}", str(at)) for at in range(20_000)])
    sidecar = bench.sidecar(BATCH_MAX_AGE="30s")
    bench.wait_empty(DEADLINE_SECONDS, sidecar)
    account = sidecar.terminate()
    assert account["batches"] == {"count": 20}
    assert account["requests"] == {"stored": 20}


def test_a_trickle_waits_no_longer_than_the_age(bench: Harness) -> None:
    """The age counts from the first item; messages that keep coming don't put it off."""
    bench.create_index()
    bench.declare()
    sidecar = bench.sidecar(BATCH_MAX_AGE="1s")
    sidecar.wait_for("amqp.connected")
    published: dict[str, float] = {}
    seen: dict[str, float] = {}
    names = (f"t{at}" for at in itertools.count())
    start = time.monotonic()
    while len(seen) < 12:
        now = time.monotonic()
        assert now - start < DEADLINE_SECONDS, sidecar.told()
        if len(published) < 12 and now - start > 0.3 * len(published):
            name = next(names)
            bench.publish([message(b"{}", name)])
            published[name] = time.monotonic()
        for name in published.keys() - seen.keys():
            if bench.has_document(name):
                seen[name] = time.monotonic()
    sidecar.terminate()
    waits = [seen[name] - published[name] for name in published]
    print("waits:", ", ".join(f"{wait:.2f} s" for wait in waits))
    assert max(waits) < 1.0 + 1.5  # the age, and room for a busy machine


def test_999_hot_documents_flow_in_batches_of_1000(bench: Harness) -> None:
    """A batch that can never fill is completed when nothing more can arrive (pressure), and the last version wins."""
    count = 20_000
    bench.create_index({"at": {"type": "long"}})
    bench.declare()
    bench.publish([message(b'{"at":%d}' % at, f"hot-{at % 999}") for at in range(count)])
    sidecar = bench.sidecar(BATCH_MAX_ITEMS="1000", BATCH_MAX_AGE="60s")
    # Once the queue is empty the window isn't full any more and only the age is left: leave the rest to the drain.
    wait_until(lambda: bench.count() == 0, DEADLINE_SECONDS, "deliveries", sidecar.told)
    account = sidecar.terminate()
    assert account["ack"] == count
    assert account["batches"]["pressure"] >= 10
    assert bench.documents() == {f"hot-{at % 999}": {"at": at} for at in range(count)}


def test_unroutable_dead_letters_ack_no_original(bench: Harness) -> None:
    """Copies that no queue takes, with equal ids: the originals stay until the route is there; then all arrive."""
    bench.declare()
    exchange = f"{bench.queue}.dlx"
    bench.amqp.declare_exchange(exchange)
    bad = [message(b"no json %d" % at, "the-same") for at in range(40)]
    good = [message(b"{}", str(at)) for at in range(40)]
    bench.publish([one for pair in zip(bad, good, strict=True) for one in pair])
    sidecar = bench.sidecar(DEAD_LETTER_EXCHANGE=exchange, DEAD_LETTER_ROUTING_KEY="nowhere", RETRY_DELAY_MAX="1s")
    held = sidecar.wait_for("dead_letters.held")
    assert "312" in held["reason"]
    assert "NO_ROUTE" in held["reason"]
    wait_until(lambda: bench.held() == len(bad), DEADLINE_SECONDS, "good ones go on", sidecar.told)
    bench.amqp.declare_queue(bench.dead, QUORUM)
    bench.amqp.bind(bench.dead, exchange, "nowhere")
    wait_until(lambda: bench.held() == 0, DEADLINE_SECONDS, "dead letters", sidecar.told)
    account = sidecar.terminate()
    assert account["dead_letter"] == len(bad)
    assert sorted(letter.body for letter in bench.dead_letters()) == sorted(one.body for one in bad)


def test_big_bodies_in_many_frames_arrive_whole(bench: Harness) -> None:
    """Bodies over many frames, between small ones, good and bad."""
    bench.create_index({"big": {"enabled": False}})
    sizes = (10, 131_000, 131_064, 131_065, 300_000, 5_000_000)
    good = {f"big-{size}": b'{"big":["%s"]}' % (b"x" * size) for size in sizes}
    bad = {f"bad-{size}": b"[%s]" % (b"1," * size) for size in sizes}
    bench.declare()
    bench.publish([message(body, document_id) for document_id, body in (good | bad).items()])
    sidecar = bench.sidecar()
    bench.wait_empty(DEADLINE_SECONDS, sidecar)
    sidecar.terminate()
    assert bench.documents() == {document_id: json.loads(body) for document_id, body in good.items()}
    assert {letter.message_id: letter.body for letter in bench.dead_letters()} == bad


@pytest.mark.full
def test_a_connection_lives_through_deliveries_without_heartbeats(bench: Harness) -> None:
    """Deliveries for longer than three heartbeats, then silence for as long: the same connection goes on."""
    bench.declare()
    sidecar = bench.sidecar(AMQP_URL=bench.rabbitmq.amqp_url + "?heartbeat=2", BATCH_MAX_AGE="100ms")
    sidecar.wait_for("amqp.connected")
    published = 0
    start = time.monotonic()
    while time.monotonic() - start < 11:
        bench.publish([message(b"{}", f"h{published + at}") for at in range(50)])
        published += 50
        time.sleep(0.1)
    bench.wait_empty(DEADLINE_SECONDS, sidecar)
    time.sleep(11)
    bench.publish([message(b"{}", "after"), message(b"[]", "bad")])
    bench.wait_empty(DEADLINE_SECONDS, sidecar)
    account = sidecar.terminate()
    assert account["ack"] == published + 1
    assert account["dead_letter"] == 1
    assert len(sidecar.events("amqp.connected")) == 1
    assert sidecar.events("amqp.lost") == []
