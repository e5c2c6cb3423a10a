"""The servers and clients that other tests stand on do what they say."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from devstack import compose
from devstack.processes import port_accepts, process_lives
from tests.servers.amqp import Amqp, ChannelClosedError, Outgoing
from tests.servers.es import Elastic
from tests.servers.waiting import wait_for
from tests.servers.wire import Raw

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.servers.provider import Broker, Cluster

MANY = 50_000


def test_many_messages_are_published_confirmed_counted_and_drained_in_order(amqp: Amqp, queue_name: str) -> None:
    """Fifty thousand messages are a matter of seconds, or tests would use fewer."""
    amqp.declare_queue(queue_name)
    started = time.monotonic()
    report = amqp.publish((b'{"n":%d}' % number for number in range(MANY)), routing_key=queue_name)
    published = time.monotonic()
    assert (report.count, report.nacked, report.returned) == (MANY, [], [])
    assert amqp.count(queue_name) == MANY
    bodies = [message.body for message in amqp.drain(queue_name)]
    drained = time.monotonic()
    assert bodies == [b'{"n":%d}' % number for number in range(MANY)]
    assert amqp.count(queue_name) == 0
    assert drained - started < 60, (published - started, drained - published)


def test_every_byte_of_headers_and_properties_comes_back(amqp: Amqp, queue_name: str) -> None:
    """Text that isn't UTF-8, equal names, every type: the header table keeps its bytes."""
    amqp.declare_queue(queue_name)
    entries = (
        b"\x03bad" + b"S" + b"\0\0\0\x02\xff\xfe"
        b"\x03bad" + b"l" + b"\0\0\1\x8b\xcf\xe5\x68\x00"
        b"\x05array" + b"A" + b"\0\0\0\x03" + b"t\x01V"
        b"\x02\xc3\x28" + b"D" + b"\x02\0\0\0\x2a"
    )  # fmt: skip
    sent = Outgoing(
        b"\x00\xff body", properties={"headers": entries, "message_id": b"\xfe", "timestamp": 1_700_000_000_123}
    )
    amqp.publish([sent], routing_key=queue_name)
    received = amqp.get(queue_name)
    assert received is not None
    assert received.body == sent.body
    assert received.raw_properties == sent.property_bytes()
    assert received.header_bytes == entries
    assert received.message_id == b"\xfe"
    assert received.headers["array"] == [True, None]
    assert received.headers[b"\xc3\x28"] == Raw(b"D", b"\x02\0\0\0\x2a")


def test_bodies_longer_than_a_frame_arrive_whole(amqp: Amqp, queue_name: str) -> None:
    """A body over several frames is one message."""
    amqp.declare_queue(queue_name)
    body = bytes(range(256)) * 4096
    amqp.publish([body], routing_key=queue_name)
    assert [message.body for message in amqp.drain(queue_name)] == [body]


def test_unroutable_messages_are_returned(amqp: Amqp, queue_name: str) -> None:
    """A return is reported with its message, though the broker confirms it as well."""
    report = amqp.publish([b"lost"], routing_key=queue_name)
    assert [(message.body, message.reply_code) for message in report.returned] == [(b"lost", 312)]
    assert report.nacked == []


def test_refused_messages_are_named_by_position(amqp: Amqp, queue_name: str) -> None:
    """A full queue that rejects publishes nacks them."""
    amqp.declare_queue(queue_name, {"x-max-length": 1, "x-overflow": "reject-publish"})
    assert amqp.publish([b"first"], routing_key=queue_name).nacked == []
    assert amqp.publish([b"second", b"third"], routing_key=queue_name).nacked == [0, 1]


def test_a_closed_channel_is_an_error_and_the_client_goes_on(amqp: Amqp, queue_name: str) -> None:
    """A 404 closes the channel; the next call works again."""
    assert amqp.queue_state(queue_name) is None
    with pytest.raises(ChannelClosedError, match="404"):
        amqp.count(queue_name)
    amqp.declare_queue(queue_name)
    amqp.publish([b"x"], routing_key=queue_name)
    assert amqp.count(queue_name) == 1


def test_peeking_and_draining_a_part_leave_the_rest(amqp: Amqp, queue_name: str) -> None:
    """Looking takes nothing away; a limit is a limit."""
    amqp.declare_queue(queue_name)
    amqp.publish([b"1", b"2", b"3", b"4"], routing_key=queue_name)
    assert [message.body for message in amqp.peek(queue_name, 2)] == [b"1", b"2"]
    assert [message.body for message in amqp.drain(queue_name, limit=3)] == [b"1", b"2", b"3"]
    assert [message.body for message in amqp.drain(queue_name)] == [b"4"]


def test_a_late_delivery_is_not_lost_by_a_time_out(amqp: Amqp, queue_name: str) -> None:
    """Waiting in vain and waiting again sees every message."""
    amqp.declare_queue(queue_name)
    amqp.consume(queue_name)
    with pytest.raises(TimeoutError):
        amqp.next_delivery(timeout_seconds=0.05)
    amqp.publish([b"late"], routing_key=queue_name)
    assert amqp.next_delivery().body == b"late"


def test_exchanges_bind_and_unbind(amqp: Amqp, queue_name: str) -> None:
    """Messages take the way of the binding."""
    amqp.declare_queue(queue_name)
    amqp.declare_exchange(queue_name, "topic")
    amqp.bind(queue_name, queue_name, "a.*")
    assert amqp.publish([b"x"], exchange=queue_name, routing_key="a.b").returned == []
    amqp.unbind(queue_name, queue_name, "a.*")
    assert len(amqp.publish([b"x"], exchange=queue_name, routing_key="a.b").returned) == 1
    amqp.delete_exchange(queue_name)
    assert amqp.purge(queue_name) == 1


def test_documents_come_back_letter_by_letter(elastic: Elastic, index_name: str) -> None:
    """Sources keep the spelling of their numbers, in a search as well as alone."""
    sources = {
        "a": b'{"n":12345678901234567890123, "f":1e2,"t":"\\u00e9\xc3\xa9"}',
        'b/"?#': b'{"a": {"_id": {"hits": [1.0]}}}',
    }
    elastic.create_index(index_name, mappings={"dynamic": False})
    for identifier, source in sources.items():
        elastic.put(index_name, identifier, source)
        assert elastic.source(index_name, identifier) == source
    assert {key: document.source for key, document in elastic.by_id(index_name).items()} == sources
    assert elastic.count(index_name) == len(sources)
    assert elastic.source(index_name, "missing") is None


def test_many_documents_come_back_over_several_pages(elastic: Elastic, index_name: str) -> None:
    """More documents than one page holds are all found, once."""
    number = 12_000
    elastic.create_index(index_name)
    lines = b"".join(b'{"index":{"_index":"%s"}}\n{"n":%d}\n' % (index_name.encode(), n) for n in range(number))
    assert elastic.bulk(lines).json()["errors"] is False
    assert sorted(document.json()["n"] for document in elastic.documents(index_name)) == list(range(number))


def test_templates_blocks_and_the_write_pool(elastic: Elastic, index_name: str) -> None:
    """What tests set takes effect."""
    elastic.put_template(index_name, [f"{index_name}*"], {"mappings": {"properties": {"n": {"type": "long"}}}})
    elastic.put(index_name, "1", {"n": 1})
    mappings = elastic.call("GET", f"/{index_name}/_mapping")
    assert mappings[index_name]["mappings"]["properties"]["n"] == {"type": "long"}
    elastic.put_settings(index_name, {"index.blocks.write": True})
    line = b'{"index":{"_index":"%s"}}\n{"n":2}\n' % index_name.encode()
    assert elastic.bulk(line).json()["items"][0]["index"]["status"] == 403
    assert elastic.write_pool().completed > 0
    elastic.delete_index(index_name)
    elastic.delete_template(index_name)
    assert not elastic.index_exists(index_name)
    assert elastic.count(index_name) == 0


@pytest.mark.full
def test_a_broker_of_ones_own_is_killed_restarted_and_frozen(rabbitmq_factory: Callable[..., Broker]) -> None:
    """Address and durable messages outlive SIGKILL; a frozen broker accepts connections and says nothing."""
    broker = rabbitmq_factory({"consumer_timeout": 7000}, advanced="[{rabbit,[{channel_tick_interval,500}]}].")
    persistent = {"delivery_mode": 2}
    with Amqp(broker.amqp_url) as client:
        client.declare_queue("q")
        client.publish([Outgoing(b"kept", properties=persistent)], routing_key="q")
    settings = broker.rabbitmqctl(
        "eval", "{application:get_env(rabbit,consumer_timeout),application:get_env(rabbit,channel_tick_interval)}."
    )
    assert settings.strip() == "{{ok,7000},{ok,500}}"
    broker.kill()
    assert not broker.running
    with pytest.raises(OSError, match="refused"):
        Amqp(broker.amqp_url)
    broker.start()
    with Amqp(broker.amqp_url) as client:
        assert client.count("q") == 1
    broker.freeze()
    with pytest.raises(TimeoutError):
        Amqp(broker.amqp_url, timeout_seconds=0.5)
    broker.thaw()
    with Amqp(broker.amqp_url) as client:
        assert client.count("q") == 1
    broker.restart()
    with Amqp(broker.amqp_url) as client:
        assert [message.body for message in client.drain("q")] == [b"kept"]


@pytest.mark.full
def test_a_cluster_of_ones_own_is_killed_restarted_and_frozen(elasticsearch_factory: Callable[..., Cluster]) -> None:
    """Address and documents outlive SIGKILL; a frozen cluster answers nobody until it is thawed."""
    cluster = elasticsearch_factory({"thread_pool.write.size": 1, "thread_pool.write.queue_size": 1})
    with Elastic(cluster.url) as client:
        client.put("kept", "1", b'{"n":1}')
        pool = next(iter(client.call("GET", "/_nodes/thread_pool")["nodes"].values()))["thread_pool"]["write"]
        assert (pool["size"], pool["queue_size"]) == (1, 1)
        cluster.kill()
        with pytest.raises(OSError, match="refused"):
            client.send("GET", "/kept/_count")
        cluster.start()
        assert client.count("kept") == 1
        cluster.freeze()
        with Elastic(cluster.url, timeout_seconds=0.5) as hasty, pytest.raises(TimeoutError):
            hasty.send("GET", "/kept/_count")
        cluster.thaw()
        wait_for(lambda: client.count("kept") == 1, seconds=10, what="the thawed cluster answers")


@pytest.mark.full
def test_a_cluster_with_a_password_lets_nobody_else_in(elasticsearch_factory: Callable[..., Cluster]) -> None:
    """Security with the password that the test chose, and a role from a file."""
    role = 'reader:\n  indices:\n    - names: ["*"]\n      privileges: ["read"]\n'
    cluster = elasticsearch_factory(password="a-secret", files={"roles.yml": role})
    with Elastic(cluster.url) as stranger:
        assert stranger.send("GET", "/_cluster/health").status == 401
    with Elastic(cluster.url, username="elastic", password="a-secret") as client:
        client.put("kept", "1", b'{"n":1}')
        assert client.count("kept") == 1


@pytest.mark.skipif(compose.engine_answers(), reason="native processes are for machines without a Docker engine")
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGTERM, marks=pytest.mark.full),
        pytest.param(signal.SIGINT, marks=pytest.mark.full),
    ],
    ids=lambda number: number.name,
)
def test_native_servers_do_not_outlive_the_process_that_started_them(number: signal.Signals, rabbitmq: Broker) -> None:
    """Whatever ends their parent, servers and their folders are gone."""
    del rabbitmq  # a machine without RabbitMQ has skipped or failed this test by now
    parent = subprocess.Popen(
        [sys.executable, "-u", "-c", STARTS_A_BROKER],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert parent.stdout is not None
    pid, epmd_port, port, home = parent.stdout.readline().split()
    assert port_accepts(int(port))
    parent.send_signal(number)
    parent.communicate()
    wait_for(lambda: not process_lives(int(pid)), seconds=10, what="the node ends")
    wait_for(lambda: not port_accepts(int(epmd_port)), seconds=10, what="its port mapper ends")
    wait_for(lambda: not Path(home).exists(), seconds=10, what="its folder is removed")


STARTS_A_BROKER = """
import time
from devstack.rabbitmq import RabbitMQ
node = RabbitMQ().start()
print(node.pid, node._epmd_port, node.port, node.home)
time.sleep(600)
"""
