"""Queues that RabbitMQ deletes: the sidecar causes none of it, and one that is gone is an error, not a new queue."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.harness import QUORUM, message
from tests.integration.http_client import ANY_PORT, Http
from tests.integration.process import wait_until
from tests.servers.amqp import Amqp

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.harness import Harness
    from tests.integration.process import SidecarProcess
    from tests.integration.proxy import Call, Proxy, Reply

DEADLINE_SECONDS = 60.0
EXPIRES_SECONDS = 4.0
TYPES = ("classic", "quorum")


def documents(count: int, size: int = 0) -> list[Any]:
    return [message(json.dumps({"n": at, "text": "x" * size}).encode(), f"id-{at}") for at in range(count)]


def expiring(queue_type: str) -> dict[str, str]:
    """Return the settings with which the sidecar creates the queue: declared before, it may expire before the start."""
    return {
        "AMQP_QUEUE_TYPE": queue_type,
        "AMQP_QUEUE_ARGUMENTS": json.dumps({"x-expires": int(EXPIRES_SECONDS * 1000)}),
    }


def wait_stored(bench: Harness, count: int, sidecar: SidecarProcess) -> None:
    wait_until(lambda: bench.stored() == count, DEADLINE_SECONDS, f"{count} documents", sidecar.told)


def consumers(bench: Harness) -> int:
    state = bench.amqp.queue_state(bench.queue)
    assert state is not None, "the queue is gone"
    return state.consumers


def remains(bench: Harness, seconds: float) -> None:
    """See that the queue exists for so long; nothing but time deletes it."""
    until = time.monotonic() + seconds
    with Amqp(bench.rabbitmq.amqp_url) as watcher:
        while time.monotonic() < until:
            # Not by a passive declare, which renews the lease of a classic queue.
            time.sleep(0.5)
        assert watcher.queue_state(bench.queue) is not None, "the queue has expired"


@pytest.mark.parametrize("queue_type", TYPES)
def test_a_queue_that_expires_outlives_an_outage(
    bench: Harness, make_proxy: Callable[[str], Proxy], queue_type: str
) -> None:
    """A hold that is longer than SIDECAR_HOLD_MAX gives everything back, and the queue is kept for all that time."""
    proxy = make_proxy(bench.elasticsearch.url)
    proxy.change = lambda _: None
    sidecar = bench.sidecar(ELASTICSEARCH_URL=proxy.url, HOLD_MAX="2s", **expiring(queue_type))
    sidecar.wait_for("amqp.consuming")
    bench.publish(documents(101))
    sidecar.wait_for("amqp.given_back", DEADLINE_SECONDS)
    remains(bench, 2 * EXPIRES_SECONDS + 5.0)
    proxy.change = lambda call: call
    wait_stored(bench, 101, sidecar)
    assert sidecar.terminate()["dead_letter"] == 0


@pytest.mark.parametrize("queue_type", TYPES)
def test_a_queue_that_expires_outlives_a_start_without_elasticsearch(bench: Harness, queue_type: str) -> None:
    """Nothing is consumed before Elasticsearch answers."""
    sidecar = bench.sidecar(ELASTICSEARCH_URL="http://127.0.0.1:1", **expiring(queue_type))
    sidecar.wait_for("amqp.connected")
    bench.publish(documents(3))
    remains(bench, 2 * EXPIRES_SECONDS + 5.0)  # RabbitMQ looks every five seconds at quorum queues
    assert bench.count() == 3
    sidecar.terminate()


def test_a_queue_that_a_policy_has_expire_is_kept_too(bench: Harness) -> None:
    """RabbitMQ 3 lets a consumer ask for nothing, so it is always there; no client sees the policy."""
    policy = json.dumps({"expires": int(EXPIRES_SECONDS * 1000)})
    bench.declare()
    bench.publish(documents(3))
    sidecar = bench.sidecar(ELASTICSEARCH_URL="http://127.0.0.1:1")
    sidecar.wait_for("amqp.connected")
    try:
        bench.rabbitmq.rabbitmqctl("set_policy", bench.queue, f"^{bench.queue}$", policy, "--apply-to", "queues")
        remains(bench, 2 * EXPIRES_SECONDS + 5.0)
        assert bench.count() == 3
    finally:
        bench.rabbitmq.rabbitmqctl("clear_policy", bench.queue)
    sidecar.terminate()


def test_a_queue_that_expires_outlives_pauses_for_lack_of_memory(
    bench: Harness, make_proxy: Callable[[str], Proxy]
) -> None:
    """Slow answers and a small SIDECAR_MEMORY_LIMIT: the consumer steps aside, longer than the queue lives without."""
    proxy = make_proxy(bench.elasticsearch.url)
    slow = [True]

    def change(call: Call) -> Call | Reply:
        if slow[0]:
            time.sleep(1.5)
        return call

    proxy.change = change
    sidecar = bench.sidecar(
        ELASTICSEARCH_URL=proxy.url,
        MEMORY_LIMIT="8MiB",
        BATCH_MAX_ITEMS="5",
        BULK_CONCURRENCY="1",
        AMQP_PREFETCH="300",
        **expiring("classic"),
    )
    sidecar.wait_for("amqp.consuming")
    bench.publish(documents(300, 100_000))
    sidecar.wait_for("amqp.paused", DEADLINE_SECONDS)
    remains(bench, 2 * EXPIRES_SECONDS)
    slow[0] = False
    wait_stored(bench, 300, sidecar)
    sidecar.terminate()


@pytest.mark.parametrize("declare", ["missing", "never"])
def test_an_auto_delete_queue_is_refused_with_a_reason(bench: Harness, declare: str) -> None:
    """Consuming from it would be safe until the first pause: it isn't even begun, and the messages stay."""
    bench.amqp.declare_queue(bench.queue, {}, auto_delete=True)
    bench.amqp.declare_queue(bench.dead, QUORUM)
    bench.publish(documents(5))
    sidecar = bench.sidecar(AMQP_DECLARE=declare, HTTP_ADDRESS=ANY_PORT)
    refused = sidecar.wait_for("amqp.queue_refused")
    assert refused["level"] == "error"
    assert f"queue '{bench.queue}' can't be used: it is auto-delete" in refused["reason"]
    assert "declare it without auto-delete" in refused["reason"]
    answer = Http(sidecar).get("/readyz")
    assert (answer.status, answer.json["reason"]) == (503, "queue-refused")
    assert bench.count() == 5
    bench.amqp.delete_queue(bench.queue)
    bench.declare()
    bench.publish(documents(5))
    wait_stored(bench, 5, sidecar)
    assert len(sidecar.events("amqp.queue_refused")) == 1
    sidecar.terminate()


def test_an_exclusive_queue_is_refused_with_a_reason(bench: Harness) -> None:
    """It belongs to another connection: RabbitMQ doesn't even tell about it."""
    bench.amqp.declare_queue(bench.queue, {}, exclusive=True)
    sidecar = bench.sidecar()
    assert "exclusive" in sidecar.wait_for("amqp.queue_refused")["reason"]
    sidecar.kill()


@pytest.mark.parametrize("declare", ["missing", "never"])
def test_a_queue_that_is_deleted_is_an_error_until_it_is_declared_again(bench: Harness, declare: str) -> None:
    """It isn't created anew, whatever SIDECAR_AMQP_DECLARE says; then the sidecar goes on by itself."""
    bench.declare()
    bench.amqp.declare_queue(bench.dead, QUORUM)
    sidecar = bench.sidecar(AMQP_DECLARE=declare, HTTP_ADDRESS=ANY_PORT)
    sidecar.wait_for("amqp.consuming")
    http = Http(sidecar)
    bench.amqp.delete_queue(bench.queue)
    gone = sidecar.wait_for("amqp.queue_gone")
    assert gone["level"] == "error"
    assert f"the queue '{bench.queue}' was there and is gone" in gone["reason"]
    wait_until(lambda: http.get("/readyz").json.get("reason") == "queue-gone", DEADLINE_SECONDS, "queue-gone")
    assert http.get("/status").json["reason"] == "queue-gone"
    time.sleep(3.0)  # several more tries
    assert bench.amqp.queue_state(bench.queue) is None
    assert len(sidecar.events("amqp.queue_gone")) == 1
    bench.declare()
    bench.publish(documents(5))
    wait_stored(bench, 5, sidecar)
    wait_until(lambda: http.get("/readyz").status == 200, DEADLINE_SECONDS, "ready", sidecar.told)
    sidecar.terminate()


def test_a_dead_letter_queue_and_an_exchange_that_are_deleted_are_created_again_with_an_error(bench: Harness) -> None:
    """They hold nothing that is still to be stored; but whoever deleted them should know what it did."""
    exchange = f"{bench.queue}.x"
    sidecar = bench.sidecar(AMQP_EXCHANGE=exchange)
    sidecar.wait_for("amqp.consuming")
    bench.amqp.delete_queue(bench.dead)
    bench.amqp.delete_exchange(exchange)
    bench.rabbitmq.rabbitmqctl("close_all_connections", "a test")
    bench.reconnect()
    wait_until(lambda: len(sidecar.events("amqp.recreated")) == 2, DEADLINE_SECONDS, "errors", sidecar.told)
    told = [event["reason"] for event in sidecar.events("amqp.recreated")]
    assert all(event["level"] == "error" for event in sidecar.events("amqp.recreated"))
    assert f"dead-letter queue '{bench.dead}' was deleted; it is created again" in told[0]
    assert f"exchange '{exchange}' was deleted; it is created again" in told[1]
    assert bench.amqp.queue_state(bench.dead) is not None
    sidecar.terminate()
    bench.amqp.delete_exchange(exchange)


@pytest.mark.parametrize("properties", ["auto-delete", "expires"])
def test_a_queue_whose_properties_cannot_be_read_is_never_without_a_consumer(bench: Harness, properties: str) -> None:
    """With the least permissions (configure ^$) nobody knows that it is auto-delete: neither the start of consumption
    nor a hold longer than SIDECAR_HOLD_MAX may be what deletes it.
    """
    user = f"{bench.queue}-user"
    bench.rabbitmq.rabbitmqctl("add_user", user, "pw")
    bench.rabbitmq.rabbitmqctl("set_permissions", user, "^$", ".*", ".*")
    bench.create_index()
    bench.es("POST", f"/{bench.index_name}/_close?wait_for_active_shards=0")
    url = bench.rabbitmq.amqp_url.replace("guest:guest@", f"{user}:pw@")
    try:
        bench.amqp.declare_queue(bench.dead, QUORUM)
        arguments = {"x-expires": int(5 * EXPIRES_SECONDS * 1000)} if properties == "expires" else {}
        bench.amqp.declare_queue(bench.queue, arguments, auto_delete=properties == "auto-delete")
        bench.publish(documents(50))
        sidecar = bench.sidecar(AMQP_URL=url, AMQP_DECLARE="never", ON_INDEX_BLOCKED="hold", HOLD_MAX="2s")
        sidecar.wait_for("amqp.given_back", DEADLINE_SECONDS)
        remains(bench, EXPIRES_SECONDS)
        bench.es("POST", f"/{bench.index_name}/_open")
        wait_stored(bench, 50, sidecar)
        assert not sidecar.events("amqp.queue_gone")
        sidecar.terminate()
    finally:
        bench.rabbitmq.rabbitmqctl("delete_user", user)
