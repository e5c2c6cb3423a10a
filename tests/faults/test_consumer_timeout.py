"""A hold that lasts longer than RabbitMQ waits for an ack: the channel is gone, and no message with it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.harness import DEADLINE_SECONDS, FaultHarness
from tests.integration.process import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMEOUT_SECONDS = 5
TICK_MILLISECONDS = 500
"""How often a channel looks: a minute by default, and then a timeout of seconds would take that long."""
AWAY_SECONDS = 4.0
MOST_DELIVERIES = 2


@pytest.fixture
def impatient(breakable_broker: Any) -> Iterator[Any]:
    """Return a broker that waits for an ack for a few seconds only; what it is told is forgotten afterwards."""
    breakable_broker.rabbitmqctl("eval", f"application:set_env(rabbit, consumer_timeout, {1000 * TIMEOUT_SECONDS}).")
    breakable_broker.rabbitmqctl("eval", f"application:set_env(rabbit, channel_tick_interval, {TICK_MILLISECONDS}).")
    yield breakable_broker
    breakable_broker.rabbitmqctl("eval", "application:set_env(rabbit, consumer_timeout, 1800000).")
    breakable_broker.rabbitmqctl("eval", "application:set_env(rabbit, channel_tick_interval, 60000).")


def test_a_hold_longer_than_the_consumer_timeout(harness: FaultHarness, impatient: Any) -> None:
    """RabbitMQ takes everything back, once: it is left alone until Elasticsearch is there, and nothing is lost."""
    count = 2000
    harness.create_index({"at": {"type": "long"}})
    harness.declare()
    sidecar = harness.sidecar(BATCH_MAX_ITEMS="100", HOLD_MAX="10m")
    sidecar.wait_for("amqp.consuming")
    harness.http.cut()
    harness.publish_more(count)
    sidecar.wait_for("elasticsearch.held")
    lost = sidecar.wait_for("amqp.lost", DEADLINE_SECONDS)
    assert "timeout" in lost["reason"], lost
    wait_until(lambda: harness.count() == count, DEADLINE_SECONDS, "all messages back", sidecar.told)
    # Longer than it would take to consume and lose them again: the next session must not even begin.
    time.sleep(TIMEOUT_SECONDS + AWAY_SECONDS)
    assert harness.count() == count
    assert len(sidecar.events("amqp.lost")) == 1
    consumers = impatient.rabbitmqctl("list_consumers", "queue_name", "consumer_tag", "--no-table-headers").splitlines()
    ours = [line.split("\t")[1] for line in consumers if line.startswith(f"{harness.queue}\t")]
    assert set(ours) <= {"sidecar-lease"}  # without credit: it keeps the queue, and takes nothing
    # The first of them are those that were with the sidecar; all would take longer than this broker has patience.
    worn = [one.headers.get("x-delivery-count", 0) for one in harness.amqp.peek(harness.queue, count // 20)]
    print(f"deliveries that were given back: {min(worn)} to {max(worn)}")
    assert max(worn) < MOST_DELIVERIES
    harness.http.lift()
    harness.wait_all_stored(sidecar)
    account = sidecar.terminate()
    # What went without an answer may be written again, but here nothing could be answered: nobody heard it.
    harness.judge(account, most_rewritten=0)
    assert account["stale"] == account["received"] - count
