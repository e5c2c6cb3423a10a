"""The examples, as somebody runs them: as processes, on real servers."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from dotenv import dotenv_values

from tests.integration.process import SidecarProcess, wait_until
from tests.servers.amqp import ChannelClosedError, Outgoing
from tests.servers.es import ElasticError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.servers.amqp import Amqp
    from tests.servers.es import Elastic
    from tests.servers.provider import Broker, Cluster

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
WITHIN_SECONDS = 30.0

Start = "Callable[..., subprocess.Popen[str]]"


@pytest.fixture
def start(rabbitmq: Broker) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start an example as a process; at the end it is told to stop, and must end well."""
    running: list[subprocess.Popen[str]] = []

    def run(script: str, *arguments: object, **settings: str) -> subprocess.Popen[str]:
        environment = os.environ | {"EXAMPLE_AMQP_URL": rabbitmq.amqp_url, "PYTHONPATH": str(ROOT)}
        environment |= {f"EXAMPLE_{name}": value for name, value in settings.items()}
        process = subprocess.Popen(
            [sys.executable, EXAMPLES / script, *map(str, arguments)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield run
    for process in running:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(WITHIN_SECONDS) == 0, f"{process.args}: exit status {process.returncode}"
        if process.stdout is not None:
            process.stdout.close()


def rows(path: Path, query: str) -> list[Any]:
    """Return what a query finds; nothing while the table isn't there."""
    with closing(sqlite3.connect(path)) as database:
        try:
            return database.execute(query).fetchall()
        except sqlite3.OperationalError:
            return []


def declare(amqp: Amqp, queue: str) -> None:
    """Declare a queue as the library would."""
    amqp.declare_queue(queue, {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000_000})


def test_into_sqlite(start: Any, amqp: Amqp, queue_name: str, tmp_path: Path) -> None:
    """Each order is a row, once, however often it comes; what is none is a dead letter."""
    declare(amqp, queue_name)
    orders = [(f"id-{number % 90}", b'{"amount": %d.5}' % (number % 90)) for number in range(100)]
    amqp.publish([Outgoing(body, queue_name, properties={"message_id": document_id}) for document_id, body in orders])
    amqp.publish([Outgoing(b"[]", queue_name), Outgoing(b'{"amount": 1}', queue_name)])
    start("into_sqlite.py", tmp_path / "orders.db", AMQP_QUEUE=queue_name, BATCH_MAX_AGE="100ms")
    dead = f"{queue_name}.dead"
    wait_until(
        lambda: len(rows(tmp_path / "orders.db", "SELECT * FROM orders")) == 90 and amqp.count(dead) == 2,
        WITHIN_SECONDS,
        "90 rows and 2 dead letters",
    )
    assert rows(tmp_path / "orders.db", "SELECT sum(amount) FROM orders") == [(sum(range(90)) + 45.0,)]
    assert {letter.headers["sidecar-reason"] for letter in amqp.drain(dead)} == {"malformed"}


def test_jobs_survive_a_crash(start: Any, amqp: Amqp, queue_name: str, tmp_path: Path) -> None:
    """A job is acked after its work: when its engine is killed, another one does it, and only then the next."""
    declare(amqp, queue_name)
    jobs = [(b'{"job": "report", "seconds": 2}', "long"), (b'{"job": "report"}', "next"), (b'{"job": "dance"}', "none")]
    amqp.publish([Outgoing(body, queue_name, properties={"message_id": document_id}) for body, document_id in jobs])
    first = start("jobs.py", tmp_path, AMQP_QUEUE=queue_name)
    assert first.stdout.readline() == "begun long\n"
    first.kill()
    first.wait()
    assert list(tmp_path.iterdir()) == []
    second = start("jobs.py", tmp_path, AMQP_QUEUE=queue_name)
    assert second.stdout.readline() == "again long\n"
    assert second.stdout.readline() == "begun next\n"
    wait_until(lambda: amqp.count(f"{queue_name}.dead") == 1, WITHIN_SECONDS, "the unknown job")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long.txt", "next.txt"]
    (letter,) = amqp.drain(f"{queue_name}.dead")
    assert letter.headers["sidecar-reason"] == "unknown-job"


def test_the_outbox_is_published_and_marked(start: Any, amqp: Amqp, queue_name: str, tmp_path: Path) -> None:
    """Only what the broker has is marked as sent; what no queue takes waits for one."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        import outbox  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(EXAMPLES))
    path = tmp_path / "shop.db"
    with closing(outbox.open_database(str(path))) as database:
        for number in range(20):
            outbox.place(database, number + 0.5)
    exchange = f"{queue_name}.x"
    start("outbox.py", path, AMQP_EXCHANGE=exchange)
    wait_until(lambda: _bound(amqp, queue_name, exchange), WITHIN_SECONDS, "the exchange")
    wait_until(
        lambda: rows(path, "SELECT count(*) FROM outbox WHERE sent_at IS NULL") == [(0,)], WITHIN_SECONDS, "all sent"
    )
    letters = amqp.drain(queue_name)
    assert {letter.message_id for letter in letters} == {f"outbox-{number}" for number in range(1, 21)}
    assert {json.loads(letter.body)["amount"] for letter in letters} == {number + 0.5 for number in range(20)}
    amqp.delete_exchange(exchange)


def _bound(amqp: Amqp, queue: str, exchange: str) -> bool:
    """Bind a queue to an exchange as soon as that is there."""
    declare(amqp, queue)
    try:
        amqp.bind(queue, exchange, "order.*")
    except ChannelClosedError:
        return False
    return True


def sidecar(env: str, rabbitmq: Broker, elasticsearch: Cluster, log: Path) -> SidecarProcess:
    """Start a sidecar with the settings of an example."""
    told = {name: value for name, value in dotenv_values(EXAMPLES / env).items() if value is not None}
    servers = {"SIDECAR_AMQP_URL": rabbitmq.amqp_url, "SIDECAR_ELASTICSEARCH_URL": elasticsearch.url}
    told["PYTHONPATH"] = os.pathsep.join([str(ROOT), str((EXAMPLES / env).parent)])  # as if started there
    return SidecarProcess(told | servers | {"SIDECAR_HTTP_ADDRESS": "", "SIDECAR_BATCH_MAX_AGE": "100ms"}, log)


def clean(amqp: Amqp, elastic: Elastic, *, queues: list[str], exchanges: list[str], indices: list[str]) -> None:
    """Remove what an example leaves: its names are the same each time."""
    for queue in queues:
        amqp.delete_queue(queue)
        amqp.delete_queue(f"{queue}.dead")
    for exchange in exchanges:
        amqp.delete_exchange(exchange)
    for index in indices:
        elastic.delete_index(index)


def documents(elastic: Elastic, index: str) -> dict[str, Any]:
    """Return what is in an index by id; nothing while there is none."""
    try:
        return {document.id: json.loads(document.source) for document in elastic.documents(index)}
    except ElasticError:  # there, but not ready yet
        return {}


def test_fan_in(
    start: Any, amqp: Amqp, elastic: Elastic, rabbitmq: Broker, elasticsearch: Cluster, tmp_path: Path
) -> None:
    """Three sources end in one staging queue, and every message of each in the index of its source."""
    sources = ["users", "impressions", "searches"]
    process = start("fan_in/collect.py")
    writer = sidecar("fan_in/writer.env", rabbitmq, elasticsearch, tmp_path / "writer.log")
    try:
        queues = [f"staging.{source}" for source in sources]
        wait_until(lambda: all(_consumed(amqp, queue) for queue in queues), WITHIN_SECONDS, "three consumers")
        for source in sources:
            messages = [
                Outgoing(b"%s %d" % (source.encode(), number), "", source, properties={"message_id": str(number)})
                for number in range(50)
            ]
            assert not amqp.publish(messages).returned
        wait_until(
            lambda: all(len(documents(elastic, f"fan-in-{source}")) == 50 for source in sources),
            WITHIN_SECONDS,
            "three times 50 documents",
        )
        assert documents(elastic, "fan-in-users")["users-7"] == {"source": "users", "id": "7", "payload": "users 7"}
        assert writer.terminate()["ack"] == 150
        process.send_signal(signal.SIGTERM)
        assert process.wait(WITHIN_SECONDS) == 0
    finally:
        writer.kill()
        clean(
            amqp, elastic, queues=[*queues, "staging.writer"], exchanges=[*sources, "staging"],
            indices=[f"fan-in-{source}" for source in sources],
        )  # fmt: skip


def _consumed(amqp: Amqp, queue: str) -> bool:
    state = amqp.queue_state(queue)
    return state is not None and state.consumers > 0


def test_pubsub(amqp: Amqp, elastic: Elastic, rabbitmq: Broker, elasticsearch: Cluster, tmp_path: Path) -> None:
    """Each sidecar on the exchange gets every message that it is bound to, and makes of it what it is for."""
    queues = ["shop.audit", "shop.search"]
    both = [
        sidecar(f"pubsub/{name}.env", rabbitmq, elasticsearch, tmp_path / f"{name}.log") for name in ("audit", "search")
    ]
    try:
        wait_until(lambda: all(_consumed(amqp, queue) for queue in queues), WITHIN_SECONDS, "two consumers")
        paid = [(number, b'{"order":"o%d","n":%d}' % (number % 3, number)) for number in range(9)]
        messages = [(f"e{number}", "order.paid", body) for number, body in paid]
        messages.append(("e9", "cart.filled", b'{"cart":1}'))
        published = amqp.publish(
            [Outgoing(body, key, "shop", properties={"message_id": document_id}) for document_id, key, body in messages]
        )
        assert not published.returned
        wait_until(
            lambda: len(documents(elastic, "shop-audit")) == 10 and len(documents(elastic, "shop-orders")) == 3,
            WITHIN_SECONDS,
            "10 events and 3 orders",
        )
        assert [one.terminate()["ack"] for one in both] == [10, 9]
        orders = documents(elastic, "shop-orders")
        assert {key: found["n"] for key, found in orders.items()} == {"o0": 6, "o1": 7, "o2": 8}
    finally:
        for one in both:
            one.kill()
        clean(amqp, elastic, queues=queues, exchanges=["shop"], indices=["shop-audit", "shop-orders"])


def test_transform(amqp: Amqp, elastic: Elastic, rabbitmq: Broker, elasticsearch: Cluster, tmp_path: Path) -> None:
    """Each line of an order is a document; a draft is none, and what the code doesn't understand is a dead letter."""
    running = sidecar("transform/orders.env", rabbitmq, elasticsearch, tmp_path / "orders.log")
    try:
        declare(amqp, "orders")
        line = {"sku": "tea", "price": 2, "count": 3}
        orders = [{"state": "paid", "customer": number, "lines": [line] * number} for number in range(1, 6)]
        bodies = [json.dumps(order).encode() for order in (*orders, {"state": "draft"}, {"state": "odd"})]
        amqp.publish(
            [Outgoing(body, "orders", properties={"message_id": f"o{number}"}) for number, body in enumerate(bodies, 1)]
        )
        wait_until(
            lambda: len(documents(elastic, "order-lines")) == 15 and amqp.count("orders.dead") == 1,
            WITHIN_SECONDS,
            "15 lines and a dead letter",
        )
        account = running.terminate()
        assert [account[name] for name in ("ack", "discard", "dead_letter")] == [5, 1, 1]
        found = documents(elastic, "order-lines")
        assert found["o1"] == {"order": "o1", "customer": 1, "sku": "tea", "amount": 6}
        assert found["o5-4"]["customer"] == 5
        (letter,) = amqp.drain("orders.dead")
        assert (letter.headers["sidecar-reason"], letter.headers["sidecar-error-type"]) == (
            "transform-failed",
            "KeyError",
        )
    finally:
        running.kill()
        clean(amqp, elastic, queues=["orders"], exchanges=[], indices=["order-lines"])
