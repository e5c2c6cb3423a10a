"""Chains (``SIDECAR_SINK=amqp``) on real servers: a stage, and the example with three sources and a writer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from dotenv import dotenv_values

from sidecar.amqp import check as amqp_check
from sidecar.amqp.connection import ConnectOptions
from sidecar.amqp.publisher import ReconnectingPublisher
from sidecar.amqp.topology import Topology
from tests.faults.proxy import Proxy
from tests.integration.harness import QUORUM, message
from tests.integration.process import SidecarProcess, run_sidecar, wait_until
from tests.integration.test_check import SECRET, with_login
from tests.servers.amqp import Outgoing
from tests.servers.es import ElasticError
from tests.servers.waiting import run_coroutine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.integration.harness import Harness
    from tests.servers.amqp import Amqp
    from tests.servers.es import Elastic
    from tests.servers.provider import Broker, Cluster

ROOT = Path(__file__).resolve().parents[2]
CHAIN = ROOT / "examples" / "chain"
SOURCES = ("orders", "clicks", "searches")
WITHIN_SECONDS = 40.0
WATERMARK = "0.4"
"""What RabbitMQ 3 has by itself; enough for all of these tests."""
EACH = 2_000
SLOW = {"BATCH_MAX_ITEMS": "5", "BULK_CONCURRENCY": "1"}
"""So that a kill comes in the middle."""


# A stage by itself ---------------------------------------------------------------------------------------------------


@pytest.fixture
def staging(bench: Harness) -> Iterator[str]:
    """Return the name of a queue that isn't there yet; afterwards it isn't any more."""
    name = f"{bench.queue}.staging"
    yield name
    bench.amqp.delete_queue(name)


def stage(bench: Harness, staging: str, **settings: str) -> SidecarProcess:
    """Start a sidecar that passes messages on to the queue `staging`."""
    told = {"AMQP_URL": bench.rabbitmq.amqp_url, "AMQP_QUEUE": bench.queue, "BATCH_MAX_AGE": "100ms"}
    told |= {"SINK": "amqp", "SINK_ROUTING_KEY": staging} | settings
    environment = {f"SIDECAR_{name}": value for name, value in told.items()}
    running = SidecarProcess(environment, bench.folder / f"stage-{len(bench.sidecars)}.log")
    bench.sidecars.append(running)
    return running


def test_a_stage_loses_nothing_and_changes_nothing(bench: Harness, staging: str) -> None:
    """The next queue comes later, and connections to it are lost in the middle; then all is there, byte by byte."""
    bench.declare()
    headers = {"traceparent": "00-1-2-01", "raw": b"\xff"}
    count = 3_000
    bodies = [b"\x00\xff not JSON %d" % number for number in range(count)]
    bench.publish(
        Outgoing(body, properties={"message_id": f"id-{at}", "delivery_mode": 2, "priority": 3, "headers": headers})
        for at, body in enumerate(bodies)
    )
    proxy = Proxy(bench.rabbitmq.amqp_url)
    try:
        url = with_login(bench.rabbitmq.amqp_url, "guest:guest").rpartition("@")[0] + f"@127.0.0.1:{proxy.port}/"
        running = stage(bench, staging, SINK_AMQP_URL=url, BATCH_MAX_ITEMS="100")
        reason = running.wait_for("sink.held")["reason"]
        assert "312 NO_ROUTE" in reason
        bench.amqp.declare_queue(staging, QUORUM)
        for share in (0.1, 0.5):
            wait_until(lambda share=share: bench.count(staging) > count * share, WITHIN_SECONDS, "some", running.told)  # type: ignore[misc]
            proxy.drop()
        bench.wait_empty(WITHIN_SECONDS, running)
        account = running.terminate()
    finally:
        proxy.close()
    assert (account["ack"], account["dead_letter"], account["delay"]) == (count, 0, 0)
    found = bench.amqp.drain(staging)
    assert {letter.body for letter in found} == set(bodies)
    print(f"{len(found) - count} of {count} are there twice, after two lost connections")
    assert len(found) <= 1.5 * count
    first = next(letter for letter in found if letter.message_id == "id-0")
    assert (first.properties.values["priority"], first.properties.values["delivery_mode"]) == (3, 2)
    assert {name: first.headers[name] for name in headers} == headers
    assert (first.headers["sidecar-exchange"], first.headers["sidecar-routing-key"]) == ("", bench.queue)
    assert bench.dead_letters() == []


def test_what_no_queue_takes_leaves_as_configured_and_a_full_queue_waits(bench: Harness, staging: str) -> None:
    """A route of each message's own: one is unroutable, one full, one takes all; none holds up another."""
    bench.declare()
    full = {"x-queue-type": "classic", "x-max-length": 2, "x-overflow": "reject-publish"}
    bench.amqp.declare_queue(staging, QUORUM)
    bench.amqp.declare_queue(f"{staging}.full", full)
    try:
        to = [staging, f"{staging}.full", f"{staging}.nowhere"]
        bench.publish(message(b'{"n":%d}' % at, f"id-{at}", headers={"to": to[at % 3]}) for at in range(30))
        running = stage(bench, "{header.to}", ON_UNROUTABLE="dead-letter", BATCH_MAX_ITEMS="30")
        wait_until(lambda: bench.count(bench.dead) == 10, WITHIN_SECONDS, "10 dead letters", running.told)
        wait_until(lambda: bench.count(staging) == 10, WITHIN_SECONDS, "10 staged", running.told)
        assert bench.count(f"{staging}.full") == 2
        letters = bench.dead_letters()
        assert {letter.headers["sidecar-reason"] for letter in letters} == {"unroutable"}
        assert {letter.headers["sidecar-action"] for letter in letters} == {"publish"}
        taken = 0
        while taken < 10:  # as a consumer makes room, the rest comes
            letters = bench.amqp.drain(f"{staging}.full")
            taken += len(letters)
            wait_until(
                lambda taken=taken: taken == 10 or bench.count(f"{staging}.full") > 0,  # type: ignore[misc]
                WITHIN_SECONDS, "room", running.told,
            )  # fmt: skip
        account = running.terminate()
        assert (account["ack"], account["dead_letter"]) == (20, 10)
    finally:
        bench.amqp.delete_queue(f"{staging}.full")


def test_an_alarm_is_waited_for_and_nothing_is_there_twice(bench: Harness, staging: str) -> None:
    """What was written when RabbitMQ ran short of resources waits at its door; nothing more is written."""
    bench.declare()
    bench.amqp.declare_queue(staging, QUORUM)
    bench.publish(message(b'{"n":%d}' % at, f"id-{at}") for at in range(500))
    bench.rabbitmq.rabbitmqctl("set_vm_memory_high_watermark", "0.0000001")
    try:
        running = stage(bench, staging, BATCH_MAX_ITEMS="50")
        assert "takes no messages for now: low on memory" in running.wait_for("sink.held")["reason"]
        assert bench.count(staging) == 0
    finally:
        bench.rabbitmq.rabbitmqctl("set_vm_memory_high_watermark", WATERMARK)
    bench.wait_empty(WITHIN_SECONDS, running)
    account = running.terminate()
    assert (account["ack"], account["requeue"]) == (500, 0)
    assert sorted(letter.message_id for letter in bench.amqp.drain(staging)) == sorted(f"id-{at}" for at in range(500))


def test_an_exchange_is_created_or_must_be_there(rabbitmq: Broker, amqp: Amqp, queue_name: str) -> None:
    """``SIDECAR_AMQP_DECLARE``: durable where it is missing; otherwise nothing is consumed, and it is said why."""

    async def look(*, declare: bool) -> str | None:
        topology = Topology(exchange=queue_name, exchange_type="topic", declare=declare, publishes=True)
        outlet = ReconnectingPublisher((rabbitmq.amqp_url,), topology, ConnectOptions())
        try:
            return await outlet.check()
        finally:
            await outlet.close()

    reason = run_coroutine(look(declare=False))
    assert f"'{queue_name}' doesn't exist, and SIDECAR_AMQP_DECLARE=never" in str(reason)
    assert run_coroutine(look(declare=True)) is None
    assert run_coroutine(look(declare=False)) is None
    amqp.declare_exchange(queue_name, "topic")  # the same again, or it would be refused
    amqp.delete_exchange(queue_name)


# Check ---------------------------------------------------------------------------------------------------------------


def test_check_looks_at_both_ends(bench: Harness, staging: str) -> None:
    """Exchange, rights and queue, and at no Elasticsearch; nothing is created by looking."""
    found = run_check(bench, SINK_EXCHANGE="amq.topic", SINK_EXCHANGE_TYPE="topic", BULK_TIMEOUT="20s")
    assert found.returncode == 0
    assert "exchange 'amq.topic' (SIDECAR_SINK_EXCHANGE)" in found.stdout
    assert "lasticsearch" not in found.stdout
    assert "come back, again and again" not in found.stdout
    found = run_check(bench, SINK_EXCHANGE="amq.topic", AMQP_EXCHANGE="amq.topic")
    assert "come back, again and again" in found.stdout
    found = run_check(bench, SINK_EXCHANGE=staging, AMQP_DECLARE="never")
    assert found.returncode == 1
    assert "it doesn't exist, and SIDECAR_AMQP_DECLARE=never forbids creating it" in found.stdout
    found = run_check(bench, SINK_ROUTING_KEY=staging, SINK_AMQP_URL="amqp://127.0.0.1:1/")
    assert found.returncode == 1
    assert "host and port in SIDECAR_SINK_AMQP_URL are right" in found.stdout
    found = run_check(bench, SINK_ROUTING_KEY=staging)
    assert "it doesn't exist: messages wait until one is there" in found.stdout
    assert bench.amqp.queue_state(staging) is None


def run_check(bench: Harness, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run ``sidecar check`` for a stage."""
    told = {"AMQP_URL": bench.rabbitmq.amqp_url, "AMQP_QUEUE": bench.queue, "SINK": "amqp"} | settings
    environment = {name: text for name, text in os.environ.items() if not name.startswith("SIDECAR_")}
    environment |= {f"SIDECAR_{name}": value for name, value in told.items()}
    return run_sidecar("check", environment=environment, seconds=60.0)


def test_the_rights_to_publish_are_looked_at(bench: Harness, staging: str) -> None:
    """Each that is wanting is named, with what the pattern has to match."""
    user, exchange = f"{bench.queue}-user", f"{staging}.x"
    control = bench.rabbitmq.rabbitmqctl
    control("add_user", user, SECRET)
    url = with_login(bench.rabbitmq.amqp_url, f"{user}:{SECRET}")

    def lacks(topology: Topology, routing_key: str | None = None) -> list[str]:
        look = amqp_check.check_sink(
            (url,), ConnectOptions(), topology, routing_key, named="SIDECAR_AMQP_URL", on_unroutable="hold"
        )
        found = run_coroutine(look)
        return [f"{one.where}: {one.what.partition(' lacks ')[2]}" for one in found if " lacks " in one.what]

    try:
        control("set_permissions", user, "^$", "^$", "^$")
        assert lacks(Topology(publishes=True), staging) == [
            "the default exchange: write there: nothing can be published"
        ]
        assert lacks(Topology(exchange="amq.direct", publishes=True)) == [
            "exchange 'amq.direct': write there: nothing can be published"
        ]
        assert lacks(Topology(exchange=exchange, publishes=True)) == [
            f"exchange '{exchange}': configure there: it is absent, and can't be created: nothing can be published"
        ]
        control("set_permissions", user, f"^{exchange}$", "^amq.(default|direct)$", "^$")
        for topology in (Topology(publishes=True), Topology(exchange="amq.direct", publishes=True)):
            assert lacks(topology) == []
        assert lacks(Topology(exchange=exchange, publishes=True)) == []
    finally:
        control("delete_user", user)


# The example ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def start(rabbitmq: Broker, elasticsearch: Cluster, tmp_path: Path) -> Iterator[Callable[..., SidecarProcess]]:
    """Start a stage of the example, with its settings and where the servers are; all are ended after the test."""
    running: list[SidecarProcess] = []

    def run(name: str, **settings: str) -> SidecarProcess:
        told = {key: value for key, value in dotenv_values(CHAIN / f"{name}.env").items() if value is not None}
        told |= {"SIDECAR_AMQP_URL": rabbitmq.amqp_url, "SIDECAR_BATCH_MAX_AGE": "100ms", "SIDECAR_HTTP_ADDRESS": ""}
        if name == "writer":
            told["SIDECAR_ELASTICSEARCH_URL"] = elasticsearch.url
        told |= {f"SIDECAR_{key}": value for key, value in settings.items()}
        running.append(SidecarProcess(told, tmp_path / f"{name}-{len(running)}.log"))
        return running[-1]

    yield run
    for one in running:
        one.kill()


def documents(elastic: Elastic, source: str) -> dict[str, Any]:
    """Return what came of a source, by id; nothing while there is no index."""
    try:
        found = elastic.documents(f"chain-{source}")
    except ElasticError:  # there, but not ready yet
        return {}
    return {document.id: json.loads(document.source) for document in found}


def send(amqp: Amqp, source: str, numbers: range) -> None:
    """Publish messages to the exchange of a source."""
    messages = [
        message(b'{"source":"%s","n":%d}' % (source.encode(), number), f"{source}-{number}") for number in numbers
    ]
    assert not amqp.publish(messages, exchange=source, routing_key=f"{source}.new").returned


def test_three_sources_a_staging_queue_and_a_writer(
    start: Callable[..., SidecarProcess], amqp: Amqp, elastic: Elastic, rabbitmq: Broker
) -> None:
    """A source and the writer are killed in the middle: every message is a document, once, and nothing is left over.

    What the writer refuses goes back, by ``sidecar dlq replay``, to the queue that it was staged in, and still knows
    where it came from.
    """
    queues = ["chain.writer", *(f"chain.{source}" for source in SOURCES)]
    try:
        stages = {source: start(source, **(SLOW if source == "orders" else {})) for source in SOURCES}
        for source in SOURCES:
            stages[source].wait_for("amqp.consuming")
            send(amqp, source, range(EACH // 2))
        # Nobody takes what is staged yet: it waits at its source.
        assert "NO_ROUTE" in stages["orders"].wait_for("sink.held")["reason"]
        writer = start("writer", **SLOW)
        # Several requests: the first are acked by then, so that the next writer has less to do than all of it.
        wait_until(lambda: len(documents(elastic, "orders")) >= EACH // 2, WITHIN_SECONDS, "documents", writer.told)
        for source in SOURCES:
            send(amqp, source, range(EACH // 2, EACH))
        stages["orders"].kill()
        writer.kill()
        told = writer.events("sidecar.stopped") + stages["orders"].events("sidecar.stopped")
        assert told == [], "killed, not ended"
        stages["orders"], writer = start("orders"), start("writer")
        for source in SOURCES:
            wait_until(
                lambda source=source: len(documents(elastic, source)) == EACH,  # type: ignore[misc]
                WITHIN_SECONDS, f"{EACH} documents of {source}", writer.told,
            )  # fmt: skip
        bad = amqp.publish([message(b"[1]", "bad")], exchange="orders", routing_key="orders.bad")
        assert not bad.returned
        wait_until(lambda: amqp.count("chain.writer.dead") == 1, WITHIN_SECONDS, "a dead letter", writer.told)
        accounts = {source: running.terminate() for source, running in stages.items()}
        written = writer.terminate()
        assert [accounts[source]["ack"] for source in ("clicks", "searches")] == [EACH, EACH]
        assert 1 < accounts["orders"]["ack"] <= EACH + 1, "killed in the middle"
        assert 0 < written["ack"] < len(SOURCES) * EACH, "likewise"
        assert written["dead_letter"] == 1
        assert sum(accounts[source][name] for source in SOURCES for name in ("dead_letter", "delay", "discard")) == 0
        assert [amqp.count(queue) for queue in queues] == [0] * 4
        found = {source: documents(elastic, source) for source in SOURCES}
        assert found["orders"]["orders-7"] == {"source": "orders", "n": 7}
        assert found["clicks"]["clicks-7"] == {"source": "clicks", "n": 7}
        envelope = found["searches"]["searches-7"]
        assert envelope.pop("received_at").endswith("Z")
        assert envelope == {
            "message_id": "searches-7", "exchange": "searches", "routing_key": "searches.new",
            "queue": "chain.searches", "body": {"source": "searches", "n": 7},
        }  # fmt: skip
        print(f"the writer stored {written['ack']} after it was killed, for {len(SOURCES) * EACH} messages")
        environment = os.environ | {"SIDECAR_AMQP_URL": rabbitmq.amqp_url, "SIDECAR_AMQP_QUEUE": "chain.writer"}
        replay = [sys.executable, "-m", "sidecar", "dlq", "replay"]
        subprocess.run(replay, env=environment, check=True, capture_output=True, timeout=60)
        (back,) = amqp.drain("chain.writer")
        assert (back.body, back.message_id) == (b"[1]", "bad")
        assert (back.headers["sidecar-exchange"], back.headers["sidecar-routing-key"]) == ("orders", "orders.bad")
    finally:
        for queue in queues:
            amqp.delete_queue(queue)
            amqp.delete_queue(f"{queue}.dead")
        for exchange in ("chain", *SOURCES):
            amqp.delete_exchange(exchange)
        for source in SOURCES:
            elastic.delete_index(f"chain-{source}")
