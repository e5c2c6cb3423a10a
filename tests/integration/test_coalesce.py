"""Writes that are never sent, on the real servers: the same documents as if all were done in turn."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from sidecar.core.scheduling.batcher import Batcher
from sidecar.core.scheduling.coalesce import Coalescer, Operation, source_line
from sidecar.core.scheduling.order import DocumentOrder
from tests.fakes.elasticsearch import merge
from tests.integration.harness import message
from tests.integration.process import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.harness import Harness
    from tests.servers.amqp import Outgoing

SECONDS = 400.0
SEED = 20_261_121
ACTIONS = ("index", "create", "update", "upsert", "delete")
ANY_FIELD = {"settings": {"number_of_shards": 1, "number_of_replicas": 0}, "mappings": {"enabled": False}}
SIZES = [pytest.param(2_500, id="short"), pytest.param(100_000, id="long", marks=pytest.mark.full)]


class Model:
    """What is stored when every operation is done in turn."""

    def __init__(self) -> None:
        self.documents: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, int] = {}

    def do(self, action: str, document_id: str, document: dict[str, Any], version: int = 0) -> None:
        """Do one; of versions that come late nothing is left."""
        if version and version <= self.versions.get(document_id, 0):
            return
        self.versions[document_id] = version
        there = self.documents.get(document_id)
        if action == "delete":
            self.documents.pop(document_id, None)
        elif action == "index" or (there is None and action != "update"):
            self.documents[document_id] = document
        elif there is not None and action != "create":
            self.documents[document_id] = merge(there, document)


def any_document(rng: random.Random, number: int) -> dict[str, Any]:
    """Return a small document, often with the same names as others."""
    values: list[Any] = [number, f"text {number}", [number], None, {"x": number}, {"y": {"z": number}}, {}, 1.0]
    return {name: rng.choice(values) for name in rng.sample("abc", rng.randint(0, 3))} | {"n": number}


def operation(action: str, document_id: str, document: dict[str, Any], version: int = 0) -> Outgoing:
    """Return the message that asks for it."""
    headers = {"do": action, "v": str(version)}
    return message(json.dumps(document, separators=(",", ":")).encode(), document_id, headers=headers)


@pytest.mark.parametrize("mode", ["none", "merge"])
@pytest.mark.parametrize("count", SIZES)
def test_every_document_ends_as_if_all_was_done_in_turn(
    make_bench: Callable[[Any, Any], Harness], rabbitmq: Any, cramped: Any, count: int, mode: str
) -> None:
    """Random operations of every kind on 100 documents, concurrency 8, a tiny write pool: as a model says."""
    bench = make_bench(rabbitmq, cramped)
    rng, model = random.Random(SEED), Model()
    operations = []
    for number in range(count):
        one = rng.choice(ACTIONS), f"d{rng.randrange(100)}", any_document(rng, number)
        model.do(*one)
        operations.append(operation(*one))
    bench.es("PUT", f"/{bench.index_name}", ANY_FIELD)
    bench.declare()
    bench.publish(operations)
    sidecar = bench.sidecar(
        ACTION="{header.do}",
        BATCH_COALESCE=mode,
        BATCH_MAX_ITEMS="500",
        BATCH_MAX_AGE="200ms",
        BULK_CONCURRENCY="8",
        RETRY_DELAY_MIN="20ms",
        RETRY_DELAY_MAX="200ms",
    )
    bench.wait_empty(SECONDS, sidecar)
    account = sidecar.terminate()
    print(f"seed {SEED}: {account['documents']} sent of {count}; {account['retries']}")
    assert bench.documents() == model.documents
    assert account["received"] == account["ack"] + account["dead_letter"] == count


@pytest.mark.parametrize("count", SIZES)
def test_the_highest_version_stays_through_kills(bench: Harness, count: int) -> None:
    """`index` and `delete` in any order of their versions, the sidecar killed three times on the way."""
    rng, model = random.Random(SEED), Model()
    last = [0] * 100
    operations = []
    for number in range(count):
        at = rng.randrange(100)
        # Versions that mostly grow, and sometimes come late.
        last[at] += rng.randint(1, 3)
        version = max(1, last[at] - (rng.randint(1, 9) if rng.random() < 0.2 else 0))
        one = rng.choice(("index", "delete")), f"d{at}", {"n": number, "v": version}, version
        if model.versions.get(one[1]) == version:
            continue  # two writes of one version: either may stay
        model.do(*one)
        operations.append(operation(*one))
    bench.es("PUT", f"/{bench.index_name}", ANY_FIELD)
    bench.declare()
    bench.publish(operations)
    settings = {"ACTION": "{header.do}", "VERSION": "{header.v}", "BATCH_COALESCE": "latest", "BATCH_MAX_ITEMS": "300"}
    for part in (1, 2, 3):
        sidecar = bench.sidecar(**settings, BULK_CONCURRENCY="8")
        goal = len(operations) * (4 - part) // 4
        wait_until(lambda goal=goal: bench.held() <= goal, SECONDS, f"{goal} left", sidecar.told)  # type: ignore[misc]
        sidecar.kill()
    sidecar = bench.sidecar(**settings, BULK_CONCURRENCY="8")
    bench.wait_empty(SECONDS, sidecar)
    sidecar.terminate()
    assert {document_id: source["v"] for document_id, source in bench.documents().items()} == {
        document_id: document["v"] for document_id, document in model.documents.items()
    }


class Cost(NamedTuple):
    sent: int
    cpu_seconds: float


@pytest.mark.parametrize(
    "count", [pytest.param(10_000, id="short"), pytest.param(100_000, id="long", marks=pytest.mark.full)]
)
def test_a_tenth_of_the_operations_is_sent_and_elasticsearch_is_spared(bench: Harness, count: int) -> None:
    """`index` and `delete` on 1,000 documents in batches of 20,000, as they are and with `latest`: the same end."""
    rng, model = random.Random(SEED), Model()
    operations = []
    for number in range(count):
        one = rng.choice(("index", "index", "delete")), f"d{rng.randrange(1_000)}", {"n": number, "pad": "x" * 200}
        model.do(*one)
        operations.append(operation(*one))
    costs: dict[str, Cost] = {}
    for mode in ("none", "latest"):
        bench.index_name = f"{bench.queue}-{mode}"
        bench.es("PUT", f"/{bench.index_name}", ANY_FIELD)
        bench.declare()
        bench.publish(operations)
        before = cpu_seconds(bench)
        sidecar = bench.sidecar(
            INDEX=bench.index_name,
            ACTION="{header.do}",
            BATCH_COALESCE=mode,
            BATCH_MAX_ITEMS="20000",
            BATCH_MAX_AGE="2s",
            BULK_CONCURRENCY="1",
        )
        bench.wait_empty(SECONDS, sidecar)
        account = sidecar.terminate()
        costs[mode] = Cost(sum(account["documents"].values()), cpu_seconds(bench) - before)
        assert account["ack"] == count
        assert bench.documents() == model.documents
    print(f"seed {SEED}, {count} operations: {costs}")
    assert costs["none"].sent == count
    # Where the whole stream is one batch, each document is sent once, and the rest depends on how it is cut.
    assert costs["latest"].sent <= count / 10
    assert costs["latest"].cpu_seconds < costs["none"].cpu_seconds


def cpu_seconds(bench: Harness) -> float:
    """Return what Elasticsearch's process has used."""
    (node,) = json.loads(bench.es("GET", "/_nodes/stats/process"))["nodes"].values()
    milliseconds: int = node["process"]["cpu"]["total_in_millis"]
    return milliseconds / 1000


@pytest.mark.parametrize(
    "count", [pytest.param(1_000, id="short"), pytest.param(20_000, id="long", marks=pytest.mark.full)]
)
def test_every_fold_leaves_what_the_operations_leave_whatever_is_stored(bench: Harness, count: int) -> None:
    """Two or three operations on a document that is there or isn't: one after the other, and folded."""
    bench.es("PUT", f"/{bench.index_name}", ANY_FIELD)
    rng = random.Random(SEED)
    coalescer = Coalescer("merge", DocumentOrder(), Batcher(1, 1, 1.0), conflicts_matter=False, equal_wins=False)
    prepared: list[bytes] = []
    steps: list[list[bytes]] = [[], [], []]
    together: list[bytes] = []
    folds = 0
    while folds < count:
        chain = [_any_operation(rng, number) for number in range(rng.randint(2, 3))]
        folded: Operation | None = chain[0]
        for later in chain[1:]:
            folded = coalescer.fold(folded, later) if folded is not None else None
        if folded is None:
            continue
        there = Operation("index", document=json.dumps(any_document(rng, -1)).encode()) if rng.random() < 0.6 else None
        for half in ("turn", "fold"):
            prepared += _lines(there, f"{half}-{folds}") if there is not None else []
        for at, one in enumerate(chain):
            steps[at] += _lines(one, f"turn-{folds}")
        together += _lines(folded, f"fold-{folds}")
        folds += 1
    for lines in (prepared, *steps, together):
        bench.es("POST", f"/{bench.index_name}/_bulk?filter_path=errors", b"".join(lines))
    stored = bench.documents()
    in_turn = {
        document_id.removeprefix("turn-"): source
        for document_id, source in stored.items()
        if document_id.startswith("turn-")
    }
    at_once = {
        document_id.removeprefix("fold-"): source
        for document_id, source in stored.items()
        if document_id.startswith("fold-")
    }
    different = [
        document_id for document_id in {**in_turn, **at_once} if in_turn.get(document_id) != at_once.get(document_id)
    ]
    print(f"seed {SEED}: {folds} folds, {len(in_turn)} documents")
    assert not different, [(in_turn.get(document_id), at_once.get(document_id)) for document_id in different[:5]]
    assert len(in_turn) > folds / 3


def _any_operation(rng: random.Random, number: int) -> Operation:
    action = rng.choice(ACTIONS)
    document = None if action == "delete" else json.dumps(any_document(rng, number)).encode()
    return Operation(action, document=document)


def _lines(one: Operation, document_id: str) -> list[bytes]:
    verb = "update" if one.action == "upsert" else one.action
    source = source_line(one.action, one.document, one.upsert)
    action = b'{"%s":{"_id":"%s"}}\n' % (verb.encode(), document_id.encode())
    return [action] if source is None else [action, source + b"\n"]
