"""Delay queues that refuse messages, on real servers: nobody else waits, nothing is lost, and it says why."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from tests.integration.harness import QUORUM, message
from tests.integration.http_client import Http
from tests.integration.process import wait_until
from tests.servers.amqp import Amqp

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.harness import Harness
    from tests.integration.process import SidecarProcess

SECONDS = 45.0
PASSWORD = secrets.token_hex(8)
BY_HEADER: dict[str, str] = {"INDEX": "{header.i}", "ID": "none", "BATCH_MAX_AGE": "50ms"}
SMALL: dict[str, str] = BY_HEADER | {"BATCH_MAX_ITEMS": "10", "AMQP_PREFETCH": "60"}


class Targets:
    """An index that is closed, one whose mapping wants a number, and one that takes everything."""

    def __init__(self, bench: Harness) -> None:
        self.bench = bench
        self.closed, self.strict, self.open = (f"{bench.index_name}-{name}" for name in ("closed", "strict", "open"))
        for name in (self.closed, self.strict, self.open):
            settings = {"number_of_shards": 1, "number_of_replicas": 0}
            bench.es("PUT", f"/{name}", {"settings": settings, "mappings": {"properties": {"n": {"type": "long"}}}})
        bench.es("POST", f"/{self.closed}/_close?wait_for_active_shards=0")

    def publish(self, index: str, *bodies: bytes) -> None:
        self.bench.publish([message(body, headers={"i": index}) for body in bodies])

    def numbers(self, index: str) -> list[int]:
        """Return what is stored, each as often as it is there."""
        self.bench.es("POST", f"/{index}/_refresh")
        found = self.bench.es("GET", f"/{index}/_search?size=500").decode()
        return sorted(hit["_source"]["n"] for hit in json.loads(found)["hits"]["hits"])


@pytest.fixture
def targets(bench: Harness) -> Targets:
    """Return three indices, and see that queue and dead-letter queue are there, and nothing else."""
    bench.declare()
    bench.amqp.declare_queue(bench.dead, QUORUM)
    return Targets(bench)


def numbers(first: int, count: int) -> list[bytes]:
    return [b'{"n":%d}' % number for number in range(first, first + count)]


def wait_for_dead_letters(bench: Harness, count: int, sidecar: SidecarProcess) -> None:
    wait_until(lambda: bench.count(bench.dead) == count, SECONDS, f"{count} dead letters", sidecar.told)


def unready(http: Http) -> Any:
    answer = http.get("/readyz")
    return (answer.status, answer.json.get("reason"), answer.json.get("detail", ""))


def test_each_copy_of_a_turn_has_its_own_fate(bench: Harness, targets: Targets) -> None:
    """One for a closed index that can't be delayed, one that a mapping refuses, one good, in one request.

    The malformed neighbour is dead-lettered at once, the good one acked though it stands behind a hole, and
    `/readyz` and the log name the refusal and what to do. When the queue can be had, messages are delayed again.
    """
    bench.publish(
        [
            message(body, headers={"i": index})
            for index, body in (
                (targets.closed, b'{"n":1}'),
                (targets.strict, b'{"n":"x"}'),
                (targets.open, b'{"n":2}'),
            )
        ]
    )
    sidecar = bench.sidecar(**BY_HEADER, AMQP_DECLARE="never", HTTP_ADDRESS="127.0.0.1:0", DELAYED_RETRY_DELAY="1s")
    held = sidecar.wait_for("delays.held", SECONDS)
    delay = f"{bench.queue}.delay.1000"
    assert held["queue"] == delay
    assert "SIDECAR_AMQP_DECLARE=never" in held["reason"]
    assert "create this queue" in held["fix"]
    wait_for_dead_letters(bench, 1, sidecar)
    assert [letter.body for letter in bench.dead_letters()] == [b'{"n":"x"}']
    assert targets.numbers(targets.open) == [2]
    wait_until(lambda: bench.held() == 1, SECONDS, "two acks", sidecar.told)
    http = Http(sidecar)
    status, reason, detail = unready(http)
    assert (status, reason) == (503, "delays-held")
    assert delay in detail
    assert "SIDECAR_AMQP_DECLARE=never" in detail
    assert http.get("/status").json["delays_held"] == detail
    assert http.metrics().total("delays_held") == 1
    # All delay queues that it may take: it waited for longer than the first one's delay.
    for milliseconds in (1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000):
        bench.amqp.declare_queue(f"{bench.queue}.delay.{milliseconds}", delay_arguments(bench, milliseconds))
    sidecar.wait_for("delays.resumed", SECONDS)
    bench.es("POST", f"/{targets.closed}/_open")
    wait_until(lambda: bench.held() == 0, SECONDS, "the last one", sidecar.told)
    wait_until(lambda: targets.numbers(targets.closed) == [1], 2 * SECONDS, "the one that waited", sidecar.told)
    wait_until(lambda: unready(http)[0] == 200, SECONDS, "ready", sidecar.told)


def delay_arguments(bench: Harness, milliseconds: int) -> dict[str, Any]:
    return QUORUM | {
        "x-message-ttl": milliseconds,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": bench.queue,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


def test_a_blocked_target_that_cannot_be_delayed_leaves_room_for_others(bench: Harness, targets: Targets) -> None:
    """100 for a closed index and then 20 good ones, with a prefetch of 60: the 20 are stored, and acked within seconds.

    Half of the prefetch waits in place, the rest is dead-lettered with its reason. After kill -9 nothing that was
    acked comes again, and what waits in place is stored when its index is open.
    """
    targets.publish(targets.closed, *numbers(0, 100))
    targets.publish(targets.open, *numbers(100, 20))
    sidecar = bench.sidecar(**SMALL, AMQP_DECLARE="never", HTTP_ADDRESS="127.0.0.1:0")
    wait_until(lambda: len(targets.numbers(targets.open)) == 20, SECONDS, "the good ones", sidecar.told)
    wait_for_dead_letters(bench, 70, sidecar)
    wait_until(lambda: bench.held() == 30, 10.0, "acks of all that is stored", sidecar.told)
    sidecar.kill()
    targets.publish(targets.open, *numbers(120, 10))
    again = bench.sidecar(**SMALL, AMQP_DECLARE="never")
    wait_until(lambda: len(targets.numbers(targets.open)) == 30, SECONDS, "others", again.told)
    bench.es("POST", f"/{targets.closed}/_open")
    bench.wait_empty(SECONDS, again)
    again.terminate()
    assert targets.numbers(targets.open) == list(range(100, 130))
    letters = bench.dead_letters()
    assert {letter.headers["sidecar-reason"] for letter in letters} == {"index-blocked"}
    dead = {letter.body for letter in letters}
    assert len(letters) == len(dead) == 70
    kept = [b'{"n":%d}' % number for number in targets.numbers(targets.closed)]
    assert sorted([*kept, *dead]) == sorted(numbers(0, 100))


def test_messages_are_dead_lettered_at_once_if_that_is_configured(bench: Harness, targets: Targets) -> None:
    """SIDECAR_ON_DELAY_REFUSED=dead-letter."""
    targets.publish(targets.closed, *numbers(0, 20))
    targets.publish(targets.open, *numbers(20, 5))
    sidecar = bench.sidecar(**SMALL, AMQP_DECLARE="never", ON_DELAY_REFUSED="dead-letter")
    wait_for_dead_letters(bench, 20, sidecar)
    bench.wait_empty(SECONDS, sidecar)
    assert targets.numbers(targets.open) == list(range(20, 25))


@pytest.fixture
def host(bench: Harness) -> Iterator[str]:
    """Return a virtual host of the test's own."""
    name = f"{bench.queue}-host"
    bench.rabbitmq.rabbitmqctl("add_vhost", name)
    bench.rabbitmq.rabbitmqctl("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
    yield name
    bench.rabbitmq.rabbitmqctl("delete_vhost", name)


@pytest.fixture
def elsewhere(bench: Harness, host: str) -> Harness:
    """Return the bench in that virtual host."""
    base = bench.rabbitmq.amqp_url.rstrip("/").removesuffix("%2F").rstrip("/")
    url = f"{base}/{quote(host, safe='')}"
    bench._client = Amqp(url)
    bench.url = url  # type: ignore[attr-defined]
    return bench


def test_a_limit_of_queues_keeps_messages_in_place(elsewhere: Harness, host: str) -> None:
    """A virtual host's max-queues refuses the delay queue (406): what is good is stored, what is bad dead-lettered."""
    elsewhere.declare()
    elsewhere.amqp.declare_queue(elsewhere.dead, QUORUM)
    targets = Targets(elsewhere)
    elsewhere.rabbitmq.rabbitmqctl("set_vhost_limits", "-p", host, '{"max-queues":2}')
    targets.publish(targets.closed, b'{"n":1}')
    targets.publish(targets.strict, b'{"n":"x"}')
    targets.publish(targets.open, b'{"n":2}')
    sidecar = elsewhere.sidecar(**BY_HEADER, AMQP_URL=elsewhere.url, DELAYED_RETRY_DELAY="1s")  # type: ignore[attr-defined]
    held = sidecar.wait_for("delays.held", SECONDS)
    assert "limit" in held["reason"]
    wait_for_dead_letters(elsewhere, 1, sidecar)
    assert targets.numbers(targets.open) == [2]
    elsewhere.rabbitmq.rabbitmqctl("clear_vhost_limits", "-p", host)
    sidecar.wait_for("delays.resumed", SECONDS)
    elsewhere.es("POST", f"/{targets.closed}/_open")
    wait_until(lambda: targets.numbers(targets.closed) == [1], 2 * SECONDS, "the one that waited", sidecar.told)
    assert not sidecar.events("amqp.lost")


def test_a_full_delay_queue_keeps_messages_in_place(bench: Harness, targets: Targets) -> None:
    """A policy bounds it (x-max-length) and it refuses (reject-publish): what doesn't fit waits in place."""
    name = f"{bench.queue}-bound"
    pattern = f"^{bench.queue}.delay"
    bench.rabbitmq.rabbitmqctl("set_policy", "--apply-to", "queues", name, pattern, '{"max-length":1}')
    try:
        targets.publish(targets.closed, *numbers(0, 12))
        targets.publish(targets.open, *numbers(12, 10))
        sidecar = bench.sidecar(**SMALL, DELAYED_RETRY_DELAY="20s")
        held = sidecar.wait_for("delays.held", SECONDS)
        assert "basic.nack" in held["reason"]
        wait_until(lambda: targets.numbers(targets.open) == list(range(12, 22)), SECONDS, "good ones", sidecar.told)
    finally:
        bench.rabbitmq.rabbitmqctl("clear_policy", name)
    sidecar.wait_for("delays.resumed", SECONDS)
    bench.es("POST", f"/{targets.closed}/_open")
    stored = list(range(12))
    wait_until(lambda: targets.numbers(targets.closed) == stored, 2 * SECONDS, "all that waited", sidecar.told)
    assert not sidecar.events("amqp.lost")
    assert bench.count(bench.dead) == 0


def test_a_dead_letter_exchange_that_is_deleted_costs_no_session(bench: Harness, targets: Targets) -> None:
    """RabbitMQ closes the publishing channel over it (404): delayed messages go on by another one."""
    exchange = f"{bench.queue}.dlx"
    bench.amqp.declare_exchange(exchange)
    sidecar = bench.sidecar(**BY_HEADER, DEAD_LETTER_EXCHANGE=exchange, DELAYED_RETRY_DELAY="1s")
    sidecar.wait_for("amqp.consuming", SECONDS)
    bench.amqp.delete_exchange(exchange)
    targets.publish(targets.strict, *[b'{"n":"x%d"}' % number for number in range(5)])
    held = sidecar.wait_for("dead_letters.held", SECONDS)
    assert "NOT_FOUND" in held["reason"]
    targets.publish(targets.closed, b'{"n":1}')
    targets.publish(targets.open, b'{"n":2}')
    delay = f"{bench.queue}.delay.1000"
    wait_until(lambda: bench.amqp.queue_state(delay) is not None, SECONDS, "a delay queue", sidecar.told)
    bench.es("POST", f"/{targets.closed}/_open")
    wait_until(lambda: targets.numbers(targets.closed) == [1], SECONDS, "the delayed one", sidecar.told)
    bench.amqp.declare_exchange(exchange)
    bench.amqp.bind(bench.dead, exchange, bench.dead)
    wait_for_dead_letters(bench, 5, sidecar)
    assert sorted(letter.body for letter in bench.dead_letters()) == [b'{"n":"x%d"}' % number for number in range(5)]
    assert not sidecar.events("amqp.lost")


def test_a_right_that_is_missing_refuses_single_copies(bench: Harness, targets: Targets) -> None:
    """Configure: delay queues can't be declared (403). Write on the default exchange: no copy can be published.

    Either way what is good is stored and acked, the session lives, and all goes on when the right is given.
    """
    user, base = f"{bench.queue}-user", bench.rabbitmq.amqp_url
    bench.rabbitmq.rabbitmqctl("add_user", user, PASSWORD)
    try:
        bench.rabbitmq.rabbitmqctl("set_permissions", user, "^$", "^$", ".*")
        url = f"amqp://{user}:{PASSWORD}@{base.rpartition('@')[2]}"
        targets.publish(targets.closed, b'{"n":1}')
        targets.publish(targets.strict, b'{"n":"x"}')
        targets.publish(targets.open, b'{"n":2}')
        sidecar = bench.sidecar(**BY_HEADER, AMQP_URL=url, DELAYED_RETRY_DELAY="1s")
        assert "ACCESS_REFUSED" in sidecar.wait_for("delays.held", SECONDS)["reason"]
        assert "ACCESS_REFUSED" in sidecar.wait_for("dead_letters.held", SECONDS)["reason"]
        wait_until(lambda: targets.numbers(targets.open) == [2], SECONDS, "the good one", sidecar.told)
        wait_until(lambda: bench.held() == 2, SECONDS, "its ack", sidecar.told)
        bench.rabbitmq.rabbitmqctl("set_permissions", user, ".*", ".*", ".*")
        wait_for_dead_letters(bench, 1, sidecar)
        sidecar.wait_for("delays.resumed", SECONDS)
        bench.es("POST", f"/{targets.closed}/_open")
        wait_until(lambda: targets.numbers(targets.closed) == [1], 2 * SECONDS, "the one that waited", sidecar.told)
        assert not sidecar.events("amqp.lost")
        sidecar.terminate()
    finally:
        bench.rabbitmq.rabbitmqctl("delete_user", user)
