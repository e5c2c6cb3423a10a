"""Each row of the table in docs/queues.md on a real broker: what happens, what the session does, what `check` says."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from sidecar.amqp.check import check
from sidecar.amqp.connection import ConnectOptions
from sidecar.amqp.session import SessionOptions, open_session
from sidecar.amqp.topology import Topology
from sidecar.errors import BrokerError, QueueError
from tests.servers.amqp import Amqp, AmqpError, Outgoing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sidecar.core.findings import Finding
    from tests.servers.provider import Broker

PATIENCE_SECONDS = 20.0
SHORT_SECONDS = 1.5
QUORUM = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000_000}


class Side:
    """A queue of a test's own, and the two ways in which the sidecar meets it."""

    def __init__(self, broker: Broker, queue: str, *, may_expire: bool) -> None:
        self.broker = broker
        self.may_expire = may_expire
        self.queue = queue
        self.amqp = Amqp(broker.amqp_url)
        self.keeper = Amqp(broker.amqp_url)

    def declare(self, arguments: dict[str, Any], flags: dict[str, bool]) -> None:
        """Declare the queue; one that may expire has a consumer until `keeper` is closed."""
        self.amqp.declare_queue(self.queue, arguments, **flags)
        if self.may_expire:
            self.keeper.consume(self.queue)

    def topology(self, **changes: Any) -> Topology:
        return Topology(**{"queues": (self.queue,), **changes})

    def check(self) -> list[Finding]:
        """Return what `sidecar check` finds out about the work queue."""
        found = asyncio.run(check((self.broker.amqp_url,), ConnectOptions(), self.topology(), "dead-letter"))
        return [finding for finding in found if finding.where == f"queue {self.queue!r}"]

    def open(self, url: str = "", **changes: Any) -> list[str]:
        """Open a session as `sidecar run` does, and close it; return its notes."""

        async def scenario() -> list[str]:
            topology = self.topology(**changes)
            session = await open_session(
                (url or self.broker.amqp_url,), SessionOptions(topology=topology), lambda _: None
            )
            await session.close()
            return session.warnings

        return asyncio.run(scenario())

    def hold(self, count: int) -> Amqp:
        """Return a client that holds so many messages unacknowledged; closing it gives them back."""
        client = Amqp(self.broker.amqp_url)
        client.qos(count)
        client.consume(self.queue)
        for _ in range(count):
            client.next_delivery()
        return client

    def publish(self, *bodies: bytes) -> int:
        """Publish, and return how many were refused."""
        return len(self.amqp.publish(bodies, routing_key=self.queue).nacked)

    def bodies(self) -> list[bytes]:
        return [message.body for message in self.amqp.drain(self.queue)]

    def until(self, ready: int) -> None:
        """Wait until so many messages are ready."""
        eventually(lambda: self.amqp.count(self.queue) == ready)


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it doesn't happen"
        time.sleep(0.05)


def gone(side: Side) -> bool:
    """Whether the queue is gone; asked seldom, for asking renews the lease of a classic queue."""
    time.sleep(2 * SHORT_SECONDS)
    return side.amqp.queue_state(side.queue) is None


# What happens --------------------------------------------------------------------------------------------------------


def deleted_with_its_last_consumer(side: Side) -> None:
    side.publish(b"{}")
    side.amqp.cancel(side.amqp.consume(side.queue))
    assert side.amqp.queue_state(side.queue) is None


def deleted_with_its_connection(side: Side) -> None:
    side.publish(b"{}")
    side.amqp.close()
    side.amqp = Amqp(side.broker.amqp_url)
    eventually(lambda: side.amqp.queue_state(side.queue) is None)


def nothing_is_given_back(side: Side) -> None:
    side.publish(b"{}")
    client = Amqp(side.broker.amqp_url)
    client.qos(1)
    client.consume(side.queue, {"x-stream-offset": "first"})
    client.nack(client.next_delivery().tag)
    with pytest.raises((TimeoutError, AmqpError)):  # not again; older brokers close the channel
        client.next_delivery(timeout_seconds=0.5)
    client.close()


def kept_while_connected(side: Side) -> None:
    """A session that consumes nothing keeps it; afterwards it expires."""

    async def stay() -> None:
        session = await open_session((side.broker.amqp_url,), SessionOptions(topology=side.topology()), lambda _: None)
        await asyncio.sleep(SHORT_SECONDS / 2)
        side.keeper.close()
        side.publish(b"{}")
        await asyncio.sleep(3 * SHORT_SECONDS)
        await session.close()

    asyncio.run(stay())
    assert side.amqp.count(side.queue) == 1
    eventually(lambda: gone(side))


def kept_though_a_policy_has_it_expire(side: Side) -> None:
    with policy(side, {"expires": EXPIRES}):
        if _major(side) < 4:
            kept_while_connected(side)
        else:
            side.keeper.close()
            eventually(lambda: gone(side))


def not_kept_by_a_restart(side: Side) -> None:
    """What the broker lists. `tests/faults/test_rabbitmq_away.py` restarts a broker: the queue is gone."""
    listing = side.broker.rabbitmqctl("list_queues", "name", "durable", "--no-table-headers")
    assert f"{side.queue}\tfalse" in listing


def given_back_and_dropped(side: Side) -> None:
    side.publish(b"1", b"2", b"3")
    holder = side.hold(3)
    side.publish(b"4", b"5", b"6")
    holder.close()
    side.until(3)
    time.sleep(0.2)
    assert len(side.bodies()) == 3  # of six


def given_back_and_kept(side: Side) -> None:
    side.publish(b"1", b"2", b"3")
    holder = side.hold(3)
    refused = side.publish(b"4", b"5", b"6", b"7", b"8")
    assert refused > 0
    holder.close()
    side.until(8 - refused)


def limited_by_a_policy_while_it_runs(side: Side) -> None:
    side.publish(b"1", b"2", b"3", b"4")
    with policy(side, {"max-length": 2}):
        side.until(2)


def expired_when_given_back(side: Side) -> None:
    side.publish(b"1")
    holder = side.hold(1)
    time.sleep(1.0)
    holder.close()
    time.sleep(0.5)
    assert side.amqp.count(side.queue) == 0


def overtaken(side: Side) -> None:
    low, high = ({"priority": value} for value in (0, 5))
    side.amqp.publish([Outgoing(b"first", properties=low)], routing_key=side.queue)
    holder = side.hold(1)
    side.amqp.publish([Outgoing(b"later", properties=high)], routing_key=side.queue)
    holder.close()
    side.until(2)
    assert side.bodies() == [b"later", b"first"]


def served_one_at_a_time(side: Side) -> None:
    first, second = Amqp(side.broker.amqp_url), Amqp(side.broker.amqp_url)
    first.consume(side.queue)
    second.consume(side.queue)
    side.publish(b"1")
    assert first.next_delivery().body == b"1"
    with pytest.raises(TimeoutError):
        second.next_delivery(timeout_seconds=0.3)
    first.close()
    assert second.next_delivery().body == b"1"
    second.close()


def dropped_after_its_limit(side: Side) -> None:
    side.publish(b"1")
    for _ in range(3):
        side.hold(1).close()
        time.sleep(0.3)
    assert side.amqp.count(side.queue) == 0


def nothing_changes(side: Side) -> None:
    side.publish(b"1", b"2")
    side.hold(2).close()
    side.until(2)
    assert side.bodies() == [b"1", b"2"]


def rejected_to_its_own(side: Side) -> None:
    """What the broker drops goes there; the session's dead letters have a queue of their own."""
    side.publish(b"1")
    holder = side.hold(1)
    holder.nack(0, multiple=True, requeue=False)
    dead = f"{side.queue}.own"
    eventually(lambda: side.amqp.count(dead) == 1)
    holder.close()


# Virtual hosts -------------------------------------------------------------------------------------------------------


@contextmanager
def virtual_host(side: Side, limits: dict[str, int]) -> Iterator[str]:
    name = f"{side.queue}-host"
    ctl = side.broker.rabbitmqctl
    ctl("add_vhost", name)
    try:
        ctl("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
        ctl("set_vhost_limits", "-p", name, json.dumps(limits))
        yield side.broker.amqp_url.rstrip("/") + f"/{name}"
    finally:
        ctl("delete_vhost", name)


def no_queue_can_be_created(side: Side) -> None:
    with virtual_host(side, {"max-queues": 1}) as url, pytest.raises(BrokerError, match=r"declare the queue .*dead"):
        side.open(url)


def no_second_connection(side: Side) -> None:
    with virtual_host(side, {"max-connections": 1}) as url, pytest.raises(BrokerError, match="connection limit"):
        side.open(url)


@contextmanager
def policy(side: Side, definition: dict[str, int]) -> Iterator[None]:
    ctl = side.broker.rabbitmqctl
    ctl("set_policy", side.queue, f"^{side.queue}$", json.dumps(definition), "--apply-to", "queues")
    try:
        yield
    finally:
        ctl("clear_policy", side.queue)


def _major(side: Side) -> int:
    return int(side.broker.rabbitmqctl("version").strip().partition(".")[0])


# The table -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        severity: of what `check` says; empty: it says nothing.
        show: shows what happens.
        arguments: of the queue.
        flags: of the queue.
        refused: the session doesn't begin.
    """

    severity: str
    show: Callable[[Side], None]
    arguments: dict[str, Any] = field(default_factory=lambda: dict(QUORUM))
    flags: dict[str, bool] = field(default_factory=dict)
    refused: bool = False


def classic(**arguments: Any) -> dict[str, Any]:
    return {"x-queue-type": "classic"} | {f"x-{name.replace('_', '-')}": value for name, value in arguments.items()}


EXPIRES = int(SHORT_SECONDS * 1000)
ROWS: dict[str, Row] = {
    "`auto_delete`": Row("problem", deleted_with_its_last_consumer, classic(), {"auto_delete": True}, refused=True),
    "`exclusive`": Row("problem", deleted_with_its_connection, classic(), {"exclusive": True}, refused=True),
    "`x-queue-type: stream`": Row("problem", nothing_is_given_back, {"x-queue-type": "stream"}, refused=True),
    "`x-expires`": Row("warning", kept_while_connected, classic(expires=EXPIRES)),
    "policy `expires`": Row("", kept_though_a_policy_has_it_expire),
    "not durable": Row("warning", not_kept_by_a_restart, {}, {"durable": False}),
    "`x-max-length` (drop-head)": Row("warning", given_back_and_dropped, classic(max_length=3)),
    "`x-max-length` (reject-publish)": Row(
        "note", given_back_and_kept, classic(max_length=3, overflow="reject-publish")
    ),
    "policy `max-length`": Row("", limited_by_a_policy_while_it_runs),
    "`x-message-ttl`": Row("warning", expired_when_given_back, classic(message_ttl=500)),
    "`x-max-priority`": Row("note", overtaken, classic(max_priority=5)),
    "`x-single-active-consumer`": Row("note", served_one_at_a_time, QUORUM | {"x-single-active-consumer": True}),
    "low `x-delivery-limit`": Row("warning", dropped_after_its_limit, QUORUM | {"x-delivery-limit": 2}),
    "`x-queue-mode: lazy`": Row("", nothing_changes, classic(queue_mode="lazy")),
    "`x-dead-letter-exchange`": Row("note", rejected_to_its_own, QUORUM | {"x-dead-letter-exchange": ""}),
    "virtual host's `max-queues`": Row("", no_queue_can_be_created),
    "virtual host's `max-connections`": Row("", no_second_connection),
}


@pytest.mark.server
@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_the_table(rabbitmq: Broker, queue_name: str, name: str) -> None:
    """What `check` says, whether a session begins, and what happens to messages."""
    row = ROWS[name]
    side = Side(rabbitmq, queue_name, may_expire="expires" in name)
    arguments = dict(row.arguments)
    if "x-dead-letter-exchange" in arguments:
        arguments["x-dead-letter-routing-key"] = f"{queue_name}.own"
        side.amqp.declare_queue(f"{queue_name}.own", QUORUM)
    side.declare(arguments, row.flags)
    others = "than the sidecar would declare"  # is said of arguments that differ, whatever they do
    severities = [finding.severity for finding in side.check() if others not in finding.what]
    assert severities == ([row.severity] if row.severity else [])
    if row.refused:
        with pytest.raises(QueueError) as refused:
            side.open()
        assert refused.value.reason == "queue-refused"
    else:
        assert len(side.open()) == (row.severity == "warning")
    row.show(side)
    side.amqp.delete_queue(f"{queue_name}.own")
    side.amqp.close()
    side.keeper.close()
