"""Start in any order, servers that go and come back, on servers of the test's breakable."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration.harness import message
from tests.integration.process import wait_until

if TYPE_CHECKING:
    from tests.integration.harness import Harness

DEADLINE_SECONDS = 120.0


def test_servers_may_come_after_the_sidecar(breakable: Harness) -> None:
    """It waits for Elasticsearch, then for RabbitMQ, says so once for each, and works when both are there."""
    breakable.anew = True
    breakable.elasticsearch.stop()
    breakable.rabbitmq.stop()
    sidecar = breakable.sidecar()
    unreachable = sidecar.wait_for("elasticsearch.unreachable")
    assert str(breakable.elasticsearch.port) in unreachable["reason"]
    breakable.elasticsearch.start()
    sidecar.wait_for("elasticsearch.reached")
    unreachable = sidecar.wait_for("amqp.unreachable")
    assert str(breakable.rabbitmq.port) in unreachable["reason"]
    assert "guest:guest" not in sidecar.log.read_text()
    breakable.rabbitmq.start()
    sidecar.wait_for("amqp.connected", DEADLINE_SECONDS)
    breakable.publish([message(b"{}", str(at)) for at in range(100)])
    breakable.wait_empty(DEADLINE_SECONDS, sidecar)
    assert sidecar.terminate()["ack"] == 100
    assert len(sidecar.events("elasticsearch.unreachable")) == 1
    assert len(sidecar.events("amqp.unreachable")) == 1


@pytest.mark.full  # the faults of each server are tried in tests/faults
def test_it_comes_back_to_both_servers(breakable: Harness) -> None:
    """Connections cut, both servers killed, Elasticsearch frozen, in one run: all stored, nothing dead-lettered."""
    breakable.create_index({"at": {"type": "long"}})
    breakable.declare()
    published = 0

    def publish() -> None:
        nonlocal published
        breakable.publish([message(b'{"at":%d}' % at, str(at)) for at in range(published, published + 10_000)])
        published += 10_000

    def wait_for(name: str, times: int) -> None:
        wait_until(lambda: len(sidecar.events(name)) >= times, DEADLINE_SECONDS, f"{name} {times}", sidecar.told)

    publish()
    sidecar = breakable.sidecar(BULK_TIMEOUT="3s", BATCH_MAX_ITEMS="200")
    wait_for("amqp.connected", 1)
    breakable.rabbitmq.rabbitmqctl("close_all_connections", "test")
    breakable.reconnect()
    wait_for("amqp.connected", 2)
    assert "CONNECTION_FORCED" in sidecar.events("amqp.lost")[0]["reason"]
    breakable.elasticsearch.kill()
    publish()
    wait_for("elasticsearch.held", 1)
    breakable.elasticsearch.start()
    wait_for("elasticsearch.resumed", 1)
    publish()
    breakable.rabbitmq.restart(graceful=False)
    breakable.reconnect()
    wait_for("amqp.connected", 3)
    breakable.elasticsearch.freeze()
    try:
        publish()
        wait_for("elasticsearch.held", 2)
    finally:
        breakable.elasticsearch.thaw()
    breakable.wait_empty(DEADLINE_SECONDS, sidecar)
    account = sidecar.terminate()
    assert account["dead_letter"] == 0
    assert breakable.documents() == {str(at): {"at": at} for at in range(published)}


def test_a_missing_virtual_host_is_told_by_its_name(bench: Harness) -> None:
    """In the words of the broker, and tried again: somebody may be about to create it."""
    url = bench.rabbitmq.amqp_url.rstrip("/")
    sidecar = bench.sidecar(AMQP_URL=f"{url}/nowhere")
    assert "vhost nowhere not found" in sidecar.wait_for("amqp.unreachable")["reason"]
    sidecar.terminate()
